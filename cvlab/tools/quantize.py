"""The command `quantize`: INT8 of any ONNX classifier, judged on images it has not seen."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from cvlab.data import ImageData
from cvlab.lessons.int8.ladder import FLOAT, in_memory, side_by_side, stacked
from cvlab.lessons.int8.quantize import Source
from cvlab.lessons.int8.shrink import Found, search
from cvlab.paths import replace_atomically
from cvlab.tools.examine import BATCH, Examined, examine, whole

CALIBRATION = 256  # training images


@dataclass(frozen=True)
class Shrunk:
    """What came of it."""

    found: Found  # on validation images
    table: pd.DataFrame  # both models on test images: accuracy, size, speed

    @property
    def good(self) -> bool:
        """Was what may be lost kept, as far as validation and test images tell?"""
        return bool(self.found.reached and self.table["drop_low"].iloc[-1] <= self.found.max_drop)

    def __str__(self) -> str:
        """What validation said, what the test images say, and whether it was worth it."""
        last = self.table.iloc[-1]
        lost = "{drop_pp:.2f} points (95 % interval {drop_low:.2f} to {drop_high:.2f})".format(
            **last
        )
        words = f"{self.found}.\nOn {last['n']:,.0f} test images it loses {lost}: "
        beyond = last["drop_low"] > self.found.max_drop
        words += "more than may be lost. " if beyond else "they do not contradict that. "
        gain = last["speedup"]
        if gain < 1:
            return words + (
                f"It has only {gain:.2f} times the speed: here the float file is the fastest that "
                "keeps the accuracy, and INT8 saves bytes only."
            )
        return words + f"It is {gain:.2f} times as fast."


def shrink(
    file: Path,
    data: ImageData,
    out: Path,
    max_drop: float = 0.2,
    target: str = "any",
    stated: Mapping[str, object] | None = None,
) -> Shrunk:
    """Search on validation images, write the model to `out`, read the test images once.

    Validation images are a part of CIFAR's training images. A network that others trained has seen
    them: where they show it, half of the test images takes their place.

    Args:
        file: an ONNX classifier of this dataset's classes.
        data: calibration takes some of its training images.
        out: the file to write. What was measured is kept in `.cvlab` beside it.
        max_drop: percentage points that may be lost.
        target: CPUs that shall run it, see `cvlab.lessons.int8.quantize.Recipe`.
        stated: see `cvlab.tools.examine.examine`.

    Raises:
        QuantizeError: the model cannot be quantised, or is of no use in float.
    """
    folder = out.parent / ".cvlab"
    known = examine(file, data, folder, stated)
    for what in ("made readable", "fed", "classes", "right"):
        print(f"{what}: {known.about[what]}")
    model, size = known.model, known.model.batch_size(BATCH)
    if size != BATCH:
        print(f"note: {file.name} takes {size} images at a time; what is left over is not used.")
    view = unseen(known)
    train = view.train.take(max(CALIBRATION, size))
    source = Source(model, stacked(whole(model, view, train)), folder)
    val = in_memory(whole(model, view, view.val))
    found = search(source, val, max_drop, target=target, what="search")
    replace_atomically(partial(shutil.copy, found.model.path), out)
    models = {FLOAT: model, out.name: found.model}
    threads, batch = torch.get_num_threads(), val[0][0].numpy()
    table = side_by_side(models, whole(model, view, view.test), batch, threads)
    columns = ["accuracy", "low", "high", "n", "agreement", "drop_pp", "drop_low", "drop_high"]
    table = table[[*columns, "size_mb", "latency_ms", "throughput", "speedup"]]
    if (at_once := model.batch_size(1)) > 1:
        table = table.rename(columns={"latency_ms": f"ms_for_{at_once}"})
    return Shrunk(found, table)


def unseen(known: Examined) -> ImageData:
    """The view with half of the test images for validation, if those for that were trained on.

    That is so if the network is right in them clearly more often: by 3 standard errors.
    """
    view, model = known.view, known.model
    test = [view.test.select(torch.arange(half, len(view.test), 2).numpy()) for half in (0, 1)]
    rights = []
    for part in (view.val, test[0]):
        logits, labels = model.predict(whole(model, view, part))
        rights.append((logits.argmax(1) == labels).double())
    seen, new = (right.mean().item() for right in rights)
    error = sum(right.var().item() / len(right) for right in rights) ** 0.5
    if seen - new <= 3 * error:
        return view
    print(
        f"note: it is right in {seen:.1%} of the validation images, which are of CIFAR's training "
        f"images, and in {new:.1%} of {len(test[0]):,} test images: it was trained on the former. "
        "Half of the test images takes their place."
    )
    return replace(view, val=test[0], test=test[1])
