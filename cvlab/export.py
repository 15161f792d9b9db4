"""From PyTorch to ONNX, and the proof that both say the same."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cvlab.paths import replace_atomically


@dataclass(frozen=True)
class Parity:
    """How far two engines agree on `n` images."""

    max_difference: float  # the largest difference of two logits
    same_answer: float  # share of images with the same predicted class
    n: int

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.same_answer:.2%} of {self.n:,} images get the same answer, "
            f"logits differ by {self.max_difference:.1g} at most"
        )


def to_onnx(model: nn.Module, path: Path, size: tuple[int, ...] = (3, 32, 32)) -> Path:
    """Export a model in eval mode and fp32 to one ONNX file that takes batches of any size.

    Args:
        model: maps float32 [N, *size] to logits; it is left as it is.
        path: file to write; the weights go into it, not into a file beside it.
        size: shape of one input, channels first.

    Returns:
        `path`. The input is called "images", the output "logits".
    """
    was_training, device = model.training, next(model.parameters()).device
    example = torch.zeros(2, *size, device=device)  # a batch of 1 would be taken for a constant
    how = {"input_names": ["images"], "output_names": ["logits"], "verbose": False}
    shapes = ({0: torch.export.Dim("batch")},)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own deprecated calls
            program = torch.onnx.export(
                model.eval(), (example,), dynamic_shapes=shapes, dynamo=True, **how
            )
    finally:
        model.train(was_training)
    return replace_atomically(lambda file: program.save(file, external_data=False), path)


def onnx_logits(path: Path, images: Tensor, *, threads: int | None = None) -> Tensor:
    """Logits, float32 [N, classes], that ONNX Runtime computes on the CPU.

    Args:
        path: an ONNX file with one input and one output.
        images: normalised float32 [N, 3, H, W].
        threads: None takes as many as torch uses: ONNX Runtime does not know of torch's setting.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.ascontiguousarray(images.cpu().numpy())}
    return torch.from_numpy(session.run(None, feed)[0])


def parity(reference: Tensor, other: Tensor) -> Parity:
    """Compare two engines' logits, float [N, classes], for the same images."""
    if reference.shape != other.shape:
        raise ValueError(f"Logits of shapes {[*reference.shape]} and {[*other.shape]} were given.")
    same = (reference.argmax(1) == other.argmax(1)).float().mean().item()
    return Parity((reference - other).abs().max().item(), same, len(reference))
