"""The command `quantize`: an INT8 model of any ONNX classifier, judged on the test images."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from cvlab import runtime
from cvlab.data import Batches, ImageData
from cvlab.lessons.int8 import ladder
from cvlab.lessons.int8.ladder import FLOAT, Examples, compared, examples
from cvlab.lessons.int8.quantize import QuantizeError, Source, batch_size
from cvlab.lessons.int8.shrink import Found, search

CALIBRATION = 256  # training images


def seen_by(model: Path, data: ImageData) -> tuple[ImageData, list[str]]:
    """The dataset as an ONNX file wants it: size, normalisation, classes; and what was guessed.

    Raises:
        QuantizeError: the file says other classes, or gives another number of logits.
    """
    engine = runtime.session(model)
    known, notes = engine.get_modelmeta().custom_metadata_map, []
    names, outputs = runtime.classes(engine) or data.classes, engine.get_outputs()
    width = outputs[0].shape[-1] if outputs[0].shape else None
    if names != data.classes or (isinstance(width, int) and width != len(names)):
        raise QuantizeError(
            f"{model} tells {width} classes apart ({', '.join(names)}); {data.name} has "
            f"{len(data.classes)}: {', '.join(data.classes)}. Name the dataset it was trained on."
        )
    given = {name: json.loads(known[name]) for name in ("mean", "std") if name in known}
    if len(given) < 2:
        notes.append(
            f"{model.name} does not say how its inputs were normalised; those of {data.name} are "
            "taken. If accuracy in float is poor, export it with about=export.about(stored)."
        )
    side = engine.get_inputs()[0].shape[-1]
    size = int(known["size"]) if "size" in known else side if isinstance(side, int) else None
    how = {"interpolation": known.get("interpolation", "bilinear")}
    how["size"] = None if size == data.train.images.shape[-1] else size
    return replace(data, **how, **{k: tuple(v) for k, v in given.items()}), notes


def shrink(
    model: Path, data: ImageData, out: Path, max_drop: float = 0.2
) -> tuple[Found, pd.DataFrame]:
    """Search on validation images, write the model to `out`, read the test images once.

    Args:
        model: a float ONNX classifier of this dataset's classes.
        data: calibration takes some of its training images.
        out: the file to write. What was measured is kept in `.cvlab` beside it.
        max_drop: percentage points that may be lost.

    Returns:
        what was found, and a table of both models: accuracy on the test images, size, speed.

    Raises:
        QuantizeError: the model cannot be quantised, or is of no use in float.
    """
    view, notes = seen_by(model, data)
    for note in notes:
        print(f"note: {note}")
    size = batch_size(runtime.session(model), 25)
    if size != 25:
        print(f"note: {model.name} takes {size} images at a time; what is left over is not used.")
    parts = {"train": data.train.take(CALIBRATION), "val": data.val, "test": data.test}
    parts = {name: part.take(len(part) - len(part) % size) for name, part in parts.items()}
    images = torch.cat([x for x, _ in view.batches(parts["train"], size).epoch()]).contiguous()
    source = Source(model, images, out.parent / ".cvlab")
    some = examples(view.batches(parts["val"], size))
    logits, labels = runtime.predict(model, some)
    right = (logits.argmax(1) == labels).double().mean().item()
    if right < 2 / len(data.classes):
        raise QuantizeError(
            f"{model} in float is right in {right:.1%} of {len(labels):,} validation images, which "
            f"is near guessing: other classes, their order, or another normalisation?"
        )
    found = search(source, some, max_drop, what="search")
    source.make(found.recipe, out)
    return found, _table({FLOAT: model, out.name: out}, view.batches(parts["test"], size), some)


def _table(files: dict[str, Path], test: Batches, some: Examples) -> pd.DataFrame:
    answers = {name: runtime.predict(file, test, what=name) for name, file in files.items()}
    rows = {name: compared(answers[FLOAT][0], *pair) for name, pair in answers.items()}
    table = pd.DataFrame(rows).T[["accuracy", "low", "high", "n", "agreement", "drop_pp"]]
    table["size_mb"] = [file.stat().st_size / 1e6 for file in files.values()]
    batch = some.images[: some.batch_size].numpy()
    times = ladder.speed(files, batch, torch.get_num_threads(), what="race")
    return table.join(times[["latency_ms", "throughput", "speedup"]])
