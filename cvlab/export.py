"""From PyTorch to ONNX, and the proof that both say the same."""

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cvlab import runtime
from cvlab.machine import versions
from cvlab.paths import replace_atomically
from cvlab.store import Stored

SIDE = 32  # pixels of CIFAR's images


class ExportError(RuntimeError):
    """A model cannot be exported as asked; the message says why and what to do."""


class FoldError(ValueError):
    """Batch normalisation cannot be folded; the message says what would change."""


@dataclass(frozen=True)
class Parity:
    """How far two engines agree on `n` images."""

    max_difference: float  # the largest difference of two logits
    mean_difference: float
    same_answer: float  # share of images with the same predicted class
    n: int

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.same_answer:.2%} of {self.n:,} images get the same answer, "
            f"logits differ by {self.max_difference:.1g} at most"
        )


def to_onnx(
    model: nn.Module,
    path: Path,
    size: tuple[int, ...] = (3, 32, 32),
    *,
    about: Mapping[str, str] | None = None,
    opset: int | None = None,
) -> Path:
    """Export a model in eval mode and fp32 to one ONNX file that takes batches of any size.

    Args:
        model: maps float32 [N, *size] to logits; it is left as it is.
        path: file to write; the weights go into it, not into a file beside it.
        size: shape of one input, channels first.
        about: stored in the file's metadata, see `about`.
        opset: version of ONNX's operators; None takes the exporter's own.

    Returns:
        `path`. The input is called "images", the output "logits".

    Raises:
        ExportError: the operators of this model cannot be had in `opset`.
    """
    noise = torch.Generator().manual_seed(0)
    example = torch.randn(2, *size, generator=noise)  # a batch of 1 would be taken for a constant
    example = example.to(next(model.parameters()).device)

    def write(file: Path) -> None:
        _torch_export(_folded(model.eval(), example), example, file, opset)
        content = onnx.load(file)
        found = {one.domain: one.version for one in content.opset_import}[""]
        if opset and found != opset:  # where it cannot convert, the exporter only logs
            raise ExportError(f"opset {opset} cannot be had, the exporter stays at {found}.")
        onnx.helper.set_model_props(content, dict(about or {}))
        save_checked(content, file)

    was_training = model.training
    try:
        with runtime.quiet():
            return replace_atomically(write, path)
    except (torch.onnx.OnnxExporterError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        advice = "Leave opset out, or try another." if opset else "Change what it names."
        raise ExportError(
            f"{type(model).__name__} cannot be exported: {reason} {advice}"
        ) from error
    finally:
        model.train(was_training)


def _torch_export(model: nn.Module, example: Tensor, file: Path, opset: int | None) -> None:
    """Opset 18 and later comes from torch's exporter, less only from its deprecated predecessor."""
    modern = opset is None or opset >= 18
    batch = {0: torch.export.Dim("batch")} if modern else {0: "batch"}
    with _quick_to_trace(model):
        torch.onnx.export(
            model,
            (example,),
            file,
            input_names=["images"],
            output_names=["logits"],
            opset_version=opset,
            dynamo=modern,
            dynamic_shapes=(batch,) if modern else None,
            dynamic_axes=None if modern else {"images": batch, "logits": batch},
            external_data=False,
            verbose=False,
        )


def _folded(model: nn.Module, example: Tensor) -> nn.Module:
    """The exporter would fold as well, but takes twice as long to trace what it then drops."""
    try:
        return fold(model, example)
    except FoldError:
        return model


def save_checked(content: onnx.ModelProto, path: Path) -> None:
    """Write a graph that ONNX's own checker has nothing against."""
    onnx.checker.check_model(content, full_check=True)  # infers all shapes too
    onnx.save(content, path)


def about(stored: Stored) -> dict[str, str]:
    """What a user of the exported file must know, as ONNX metadata: text, lists as JSON."""
    facts = {"classes": stored.classes, "mean": stored.mean, "std": stored.std}
    facts = {key: json.dumps(value) for key, value in facts.items()}
    resized = {"size": str(stored.size or SIDE), "interpolation": stored.interpolation}
    return facts | resized | {"source": f"cvlab, {versions(('torch',))}"}


@contextmanager
def _quick_to_trace(model: nn.Module) -> Iterator[None]:
    """Collecting garbage takes a fifth of the exporter's time, activations in place a third."""
    was_on, in_place = gc.isenabled(), [m for m in model.modules() if getattr(m, "inplace", False)]
    gc.disable()
    try:
        for module in in_place:
            module.inplace = False
        yield
    finally:
        for module in in_place:
            module.inplace = True
        if was_on:
            gc.enable()


def parity(reference: Tensor, other: Tensor) -> Parity:
    """Compare two engines' logits, float [N, classes], for the same images."""
    if reference.shape != other.shape:
        raise ValueError(f"Logits of shapes {[*reference.shape]} and {[*other.shape]} were given.")
    same = (reference.argmax(1) == other.argmax(1)).float().mean().item()
    difference = (reference - other).abs()
    return Parity(difference.max().item(), difference.mean().item(), same, len(reference))


def fold(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy in which each batch normalisation is part of the convolution called before it.

    Args:
        model: it is used in eval mode, as its copy is.
        images: one or more, float32 [N, 3, H, W]; shows the order, and that nothing has changed.

    Raises:
        FoldError: it changed what the network says, so that calls its layers in another order.
    """
    net = deepcopy(model).eval()
    with torch.inference_mode():
        before = net(images)
    for (first, conv), (second, norm) in pairwise(
        called(net, images, (nn.Conv2d, nn.Linear, _BatchNorm))
    ):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm):
            fused = fuse_conv_bn_eval(conv, norm).requires_grad_(True)  # the bias is new
            net.set_submodule(first, fused)
            net.set_submodule(second, getattr(norm, "act", nn.Identity()))  # timm's has one inside
    with torch.inference_mode():
        after = net(images)
    if not torch.allclose(before, after, atol=1e-3, rtol=1e-3):
        raise FoldError(
            f"Folding batch normalisation changed logits of {type(model).__name__} by "
            f"{(before - after).abs().max():.2g}: a normalisation follows another layer than the "
            "convolution called before it. Use this network as it is."
        )
    return net


def called(net: nn.Module, images: Tensor, kinds: tuple[type, ...]) -> list[tuple[str, nn.Module]]:
    """Names and modules of these kinds, in the order they are called."""
    found = []
    hooks = [
        module.register_forward_pre_hook(lambda *_, pair=(name, module): found.append(pair))
        for name, module in net.named_modules()
        if isinstance(module, kinds)
    ]
    try:
        with torch.inference_mode():
            net(images[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return found
