"""The command `quantize`: an INT8 model of any ONNX classifier, judged on the test images."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from cvlab.data import ImageData
from cvlab.lessons.int8.ladder import FLOAT, Kept, in_memory, side_by_side, stacked
from cvlab.lessons.int8.quantize import QuantizeError, Source
from cvlab.lessons.int8.shrink import Found, search
from cvlab.paths import replace_atomically
from cvlab.runtime import Model

CALIBRATION = 256  # training images


def seen_by(model: Model, data: ImageData) -> tuple[ImageData, list[str]]:
    """The dataset as an ONNX file wants it: size, normalisation, classes; and what was guessed.

    Raises:
        QuantizeError: the file says other classes, or gives another number of logits.
    """
    known, notes = model.metadata, []
    names, outputs = model.classes or data.classes, model.session.get_outputs()
    width = outputs[0].shape[-1] if outputs[0].shape else None
    if names != data.classes or (isinstance(width, int) and width != len(names)):
        raise QuantizeError(
            f"{model.path} tells {width} classes apart ({', '.join(names)}); {data.name} has "
            f"{len(data.classes)}: {', '.join(data.classes)}. Name the dataset it was trained on."
        )
    given = {name: json.loads(known[name]) for name in ("mean", "std") if name in known}
    if len(given) < 2:
        notes.append(
            f"{model.path.name} does not say how its inputs were normalised; those of {data.name} "
            "are taken. If accuracy in float is poor, export it with about=export.about(stored)."
        )
    side = model.input.shape[-1]
    size = int(known["size"]) if "size" in known else side if isinstance(side, int) else None
    seen = replace(
        data,
        size=None if size == data.train.images.shape[-1] else size,
        interpolation=known.get("interpolation", "bilinear"),
        mean=tuple(given.get("mean", data.mean)),
        std=tuple(given.get("std", data.std)),
    )
    return seen, notes


def shrink(
    file: Path, data: ImageData, out: Path, max_drop: float = 0.2, target: str = "any"
) -> tuple[Found, pd.DataFrame]:
    """Search on validation images, write the model to `out`, read the test images once.

    Args:
        file: a float ONNX classifier of this dataset's classes.
        data: calibration takes some of its training images.
        out: the file to write. What was measured is kept in `.cvlab` beside it.
        max_drop: percentage points that may be lost.
        target: CPUs that shall run it, see `cvlab.lessons.int8.quantize.Recipe`.

    Returns:
        what was found, and a table of both models: accuracy on the test images, size, speed.

    Raises:
        QuantizeError: the model cannot be quantised, or is of no use in float.
    """
    model = Model(file)
    view, notes = seen_by(model, data)
    size = model.batch_size(25)
    if size != 25:
        notes.append(f"{file.name} takes {size} images at a time; what is left over is not used.")
    for note in notes:
        print(f"note: {note}")
    parts = data.train.take(CALIBRATION), data.val, data.test
    train, val, test = (
        view.batches(part.take(len(part) - len(part) % size), size) for part in parts
    )
    source = Source(model, stacked(train), out.parent / ".cvlab")
    some = in_memory(val)
    _check_useful(model, some, len(data.classes))
    found = search(source, some, max_drop, target=target, what="search")
    replace_atomically(partial(shutil.copy, found.model.path), out)
    batch, models = some[0][0].numpy(), {FLOAT: model, out.name: found.model}
    table = side_by_side(models, test, batch, torch.get_num_threads())
    columns = ["accuracy", "low", "high", "n", "agreement", "drop_pp", "size_mb"]
    return found, table[[*columns, "latency_ms", "throughput", "speedup"]]


def _check_useful(model: Model, val: Kept, classes: int) -> None:
    logits, labels = model.predict(val)
    right = (logits.argmax(1) == labels).double().mean().item()
    if right < 2 / classes:
        raise QuantizeError(
            f"{model.path} in float is right in {right:.1%} of {len(labels):,} validation images, "
            "which is near guessing: other classes, their order, or another normalisation?"
        )
