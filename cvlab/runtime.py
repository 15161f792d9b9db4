"""ONNX Runtime: sessions that say how many threads they use, checked inputs, a look inside."""

import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import torch
from torch import Tensor

from cvlab.machine import hardware
from cvlab.show import progress

LEVELS = {  # how far the graph is rewritten when it is loaded
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,  # constants, dead nodes
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,  # fused kernels
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,  # memory layout for this CPU too
}

KINDS = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


class ModelError(RuntimeError):
    """A file is not a model that ONNX Runtime can run; the message says why and what to do."""


def session(
    path: str | Path,
    *,
    threads: int | None = None,
    level: str = "all",
    device: str = "cpu",
    spin: bool = False,
    without: str = "",
    write_to: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Load a model.

    Args:
        path: an ONNX file.
        threads: None takes as many as torch uses: ONNX Runtime does not know of torch's setting.
        level: a key of `LEVELS`.
        device: "cpu", or "cuda" where `has_cuda`.
        spin: let threads spin while they wait, as ONNX Runtime's own default does: quicker for
            one image, but they take cores from everything else. For races.
        without: name of an optimiser of ONNX Runtime that shall not rewrite the graph.
        write_to: also write the rewritten graph to this file.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: it is damaged, or needs what this ONNX Runtime does not have.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no model file {path}. Export the model first.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.graph_optimization_level = LEVELS[level]
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    options.add_session_config_entry("optimization.disable_specified_optimizers", without)
    if write_to:
        options.optimized_model_filepath = str(write_to)
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    try:
        return onnxruntime.InferenceSession(path, options, providers=[provider])
    except Exception as error:  # ONNX Runtime has a dozen kinds, which share no base class
        reason = str(error).rpartition(" : ")[2].strip()
        cure = "If it was cut short, export it again; if it is too new, with a lower opset."
        if "xternal" in reason:
            cure = "Its weights lie in a file of their own: keep that in the same folder."
        raise ModelError(f"ONNX Runtime cannot load {path}: {reason}. {cure}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters and quantisers print, log and warn of: deprecations of their own."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def has_cuda() -> bool:
    """Was this ONNX Runtime built for GPUs? The package `onnxruntime` is not, `-gpu` is."""
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def saturates() -> bool:
    """Does this CPU add products of uint8 and int8 in 16 bits, too few? x86 without VNNI does."""
    machine = hardware()
    return machine.has("avx2") and not machine.has("avx512_vnni", "avx_vnni")


class Model:
    """An ONNX file, loaded once: what it takes, what it knows of itself, what it says."""

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        level: str = "all",
        device: str = "cpu",
        spin: bool = False,
        without: str = "",
    ):
        """Load it by `session`, which explains the arguments and what can go wrong.

        Warns if it was quantised for CPUs with VNNI and this one has none.
        """
        self.path = Path(path)
        self.session = session(
            path, threads=threads, level=level, device=device, spin=spin, without=without
        )
        self.metadata = self.session.get_modelmeta().custom_metadata_map
        if self.metadata.get("int8_target") == "vnni" and device == "cpu" and saturates():
            warnings.warn(
                f"{path} is INT8 for CPUs with VNNI, and this one has none: sums may saturate and "
                "answers be wrong. Quantise the float model again with target 'any'.",
                stacklevel=2,
            )

    @property
    def input(self) -> onnxruntime.NodeArg:
        """The first input: its `name`, `shape` and `type`."""
        return self.session.get_inputs()[0]

    @property
    def classes(self) -> list[str]:
        """The names of its classes; none where its metadata does not say them."""
        return json.loads(self.metadata.get("classes", "[]"))

    def batch_size(self, wanted: int) -> int:
        """The batch that it takes: its own where that is fixed, else `wanted`."""
        first = self.input.shape[:1]
        return first[0] if first and isinstance(first[0], int) else wanted

    def check(self, images: np.ndarray) -> None:
        """Is this an input that the model understands?

        Raises:
            ValueError: wrong type, wrong shape, or numbers that are none; says what is expected.
        """
        kind, shape = np.dtype(KINDS[self.input.type]), self.input.shape
        fits = len(shape) == images.ndim and all(
            not isinstance(want, int) or want == have
            for want, have in zip(shape, images.shape, strict=False)
        )
        if images.dtype != kind or not fits or 0 in images.shape:
            raise ValueError(
                f"{images.dtype} {[*images.shape]} was given; this model takes {kind} "
                f"[{', '.join(map(str, shape))}].{_advice(images, kind)}"
            )
        if kind == np.float32 and not np.isfinite(images).all():
            bad = images.size - np.isfinite(images).sum()
            raise ValueError(
                f"{bad:,} of {images.size:,} values are NaN or infinite; the answer would be too. "
                "Look at the step that made this input."
            )

    def run(self, images: np.ndarray) -> np.ndarray:
        """The first output for one batch, checked by `check`."""
        self.check(images)
        return self.session.run(None, {self.input.name: images})[0]

    def predict(self, batches, *, what: str | None = None) -> tuple[Tensor, Tensor]:
        """Logits, float32 [N, classes], and labels, int64 [N]: `cvlab.train.predict` of ONNX.

        Args:
            batches: a `cvlab.data.Batches`, or a list of (images, labels).
            what: label of a progress bar; None shows none.
        """
        found = []
        with progress(len(batches), what, "batch") as bar:
            for images, labels in batches:
                logits = torch.from_numpy(self.run(images.cpu().numpy()))
                found.append((logits, labels.cpu()))
                bar.update()
        logits, labels = zip(*found, strict=True)
        return torch.cat(logits), torch.cat(labels)


def _advice(images: np.ndarray, kind: np.dtype) -> str:
    if images.ndim == 3:
        return " A single image is a batch of one: images[None]."
    if images.dtype == np.float64 and kind == np.float32:
        return " NumPy makes float64; use images.astype('float32')."
    if images.dtype != kind and kind == np.float32:
        return " Normalise the pixels first, as the model's metadata says."
    if images.ndim == 4 and images.shape[-1] == 3 and kind == np.float32:
        return " Channels come before height and width: images.transpose(0, 3, 1, 2)."
    return ""


def operators(path: Path) -> pd.DataFrame:
    """How often each operator occurs: as exported, and after ONNX Runtime's rewriting.

    Returns:
        columns `as exported` and one for each of "basic", "extended", "all"; the index is the
        operator, the most frequent in any of them first.
    """
    counts = {"as exported": Counter(node.op_type for node in onnx.load(path).graph.node)}
    with TemporaryDirectory() as folder:
        for level in ("basic", "extended", "all"):
            rewritten = Path(folder) / f"{level}.onnx"
            session(path, level=level, write_to=rewritten)
            nodes = onnx.load(rewritten).graph.node
            counts[level] = Counter(node.op_type for node in nodes)
    table = pd.DataFrame(counts).fillna(0).astype(int).rename_axis("operator")
    return table.loc[table.max(axis=1).sort_values(ascending=False, kind="stable").index]
