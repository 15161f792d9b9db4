"""What `full` would take here: a unit of each notebook's training, timed, times how many there are.

Only training on the device is counted: what a notebook measures or quantises besides is the CPU's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from types import SimpleNamespace

from torch import nn

from cvlab.data import ImageData
from cvlab.models import POOLINGS, LeNet, PoolingNet
from cvlab.profiles import profiles
from cvlab.tools.gpu_check import Context, Row, left_out, number, spread
from cvlab.train import History, Training, fit

CIFAR10, FIVE_CLASSES = 45_000, 2_250  # training images, of CIFAR-10 and of 02's five classes


@dataclass(frozen=True)
class Unit:
    """A unit of a notebook's trainings, `seconds` each time that it was timed, on `images`."""

    what: str
    seconds: list[float]
    images: int
    of: int  # images that the unit has in the profile
    count: float  # of units in the profile
    source: str  # of these images


def budgets(given: Context) -> Iterator[Row]:
    """Time a unit of each notebook, estimate all of the notebook's trainings from that."""
    profile = given.sizes.profile
    for notebook, time_unit in UNITS.items():
        try:
            unit = time_unit(given, SimpleNamespace(**profiles()[notebook][profile]))
        except ModuleNotFoundError as error:  # a machine with a GPU may be bare otherwise
            yield left_out(notebook, f"{error.name} is not installed")
            continue
        what = f"{notebook}, {unit.what}, {unit.images:,} of {unit.of:,} images"
        yield spread(what, unit.seconds, "s", source=unit.source)
        minutes = median(unit.seconds) * unit.of / unit.images * unit.count / 60
        what = f"{notebook}, estimate of {profile}, {unit.count:,.0f} times that"
        yield number(what, minutes, "min", units=unit.count)


def few(data: ImageData, images: int) -> ImageData:
    """`images` of `data`, and a ninth of that to judge by."""
    return data.take(n_train=images, n_val=max(32, images // 9))


def timed(history: History) -> list[float]:
    """Seconds of each epoch, its evaluation included, without the first, which warms up."""
    return [row["seconds"] for row in history.epoch_rows[1:]]


def fitted(
    what: str,
    net: nn.Module,
    how: Training,
    given: Context,
    images: ImageData,
    of: int,
    count: float,
) -> Unit:
    """A unit that is an epoch of `fit`."""
    data = few(images, min(of, given.sizes.unit_images))
    how = replace(how, epochs=given.sizes.unit_epochs)
    history = fit(net, data, how, device=given.device, what=None)
    return Unit(what, timed(history), len(data.train), of, count, data.source)


def optimizers(given: Context, knobs: SimpleNamespace) -> Unit:
    """01: the report's experiment, the sweep, the duel, the final runs."""
    how = Training(lr=0.001, batch_size=knobs.batch_size, precision="fp32")
    sweep = len(knobs.optimizers) * len(knobs.rates) * knobs.sweep_seeds
    passes = (3 + 2 * len(knobs.duel_rates) - 2) * knobs.epochs  # two of the duel are known
    passes += len(knobs.optimizers) * knobs.final_seeds * knobs.final_epochs
    passes += sweep * knobs.sweep_images / CIFAR10
    return fitted("a pass of LeNet", LeNet(), how, given, given.data, CIFAR10, passes)


def pooling(given: Context, knobs: SimpleNamespace) -> Unit:
    """02: every kind and seed as they are and cropped, at other rates, with joined edges."""
    images, how = given.load("cifar100", knobs.classes), Training(batch_size=knobs.batch_size)
    trainings = (2 * knobs.seeds + len(knobs.rates) - 1) * len(POOLINGS) + len(knobs.joined)
    net = PoolingNet(len(images.classes), "max", knobs.width)
    count = trainings * knobs.epochs
    return fitted("an epoch of PoolingNet", net, how, given, images, FIVE_CLASSES, count)


def pretrained(given: Context, knobs: SimpleNamespace) -> Unit:
    """03: fine-tuning, timed from random weights."""
    from cvlab.lessons.pretrained import finetune, zoo

    images = few(given.data, given.sizes.large_images)
    data = zoo.as_seen_by(zoo.card(knobs.model), images, knobs.size)
    recipe = SimpleNamespace(**vars(knobs) | {"epochs": given.sizes.unit_epochs, "patience": None})
    net = zoo.build(knobs.model, len(data.classes))
    history = finetune.train(net, data, recipe, SimpleNamespace(device=given.device, seed=0))
    what = f"an epoch of {knobs.model}, {knobs.size} px"
    on, of = len(data.train) // knobs.parts, CIFAR10 // knobs.parts
    return Unit(what, timed(history), on, of, knobs.epochs, data.source)


def search(given: Context, knobs: SimpleNamespace) -> Unit:
    """04: trials of two searches, each of which ends after `search_seconds` at the latest."""
    from optuna.trial import FixedTrial

    from cvlab.lessons.search.tune import KNOWN, Objective

    data = few(given.data, min(knobs.search_images, given.sizes.unit_images))
    budget = len(data.train), knobs.search_epochs, len(data.val), knobs.search_parts
    for trial in (FixedTrial(KNOWN), FixedTrial(KNOWN)):  # the first warms up
        Objective(data, "better", *budget, device=given.device)(trial)
    seconds, of = trial.user_attrs["seconds"], knobs.search_images
    in_time = knobs.search_seconds / (seconds * of / len(data.train))
    count = 2 * min(knobs.search_trials, in_time)
    return Unit("a trial of what we knew", [seconds], len(data.train), of, count, data.source)


def capstone(given: Context, knobs: SimpleNamespace) -> Unit:
    """07: the budget, of search and final, and once more for the known setting."""
    from optuna.trial import FixedTrial

    from cvlab.lessons.search.tune import KNOWN_KNOBS, SPACES

    known = FixedTrial(KNOWN_KNOBS[knobs.model])
    net, how = SPACES[knobs.model](known, len(given.data.classes))
    what, passes = f"a pass of {knobs.model}", 2 * knobs.budget
    return fitted(what, net, how, given, given.data, CIFAR10, passes)


def smaller(given: Context, knobs: SimpleNamespace) -> Unit:
    """08: the last student; that its teacher answers instead of the labels takes no time."""
    from cvlab.lessons.smaller.distil import Student

    how, of = Training(lr=knobs.lr, batch_size=knobs.batch_size), knobs.taught_images
    return fitted("a pass of Student", Student(), how, given, given.data, of, knobs.passes)


UNITS: dict[str, Callable[[Context, SimpleNamespace], Unit]] = {
    "01_optimizers": optimizers,
    "02_pooling": pooling,
    "03_pretrained_zoo": pretrained,
    "04_optuna": search,
    "07_capstone": capstone,
    "08_smaller": smaller,
}
