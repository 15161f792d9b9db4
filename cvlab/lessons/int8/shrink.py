"""From an accuracy that may be lost to an INT8 model that keeps it, for any ONNX classifier."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd

from cvlab.lessons.int8.ladder import Kept, against, digest, first
from cvlab.lessons.int8.quantize import RANGES, QuantizeError, Recipe, Source
from cvlab.lessons.int8.sensitivity import Journal, leave_one_out
from cvlab.metrics import Z
from cvlab.runtime import Model
from cvlab.show import progress

SCREEN = 500  # validation images that rank the layers


@dataclass(frozen=True)
class Found:
    """What a search ended with."""

    recipe: Recipe
    model: Model
    reached: bool  # is the drop within what was tolerated?
    max_drop: float
    row: dict  # of `cvlab.lessons.int8.ladder.compared`
    tried: pd.DataFrame  # the same for every recipe that was tried, by its text

    def __str__(self) -> str:
        """One sentence, with the drop's interval and whether it is what was asked for."""
        loses = "loses {drop_pp:.2f} points (95 % interval {drop_low:.2f} to {drop_high:.2f})"
        text = f"{self.recipe}: {loses.format(**self.row)} on {self.row['n']:,.0f} images"
        if self.reached:
            within = f"with one standard error within the {self.max_drop:g} that may be lost"
            return f"{text}, {within}"
        return (
            f"{self.max_drop:g} points cannot be kept with half of the layers in float. The best "
            f"is {text}. Tolerate more, give more validation images, or train for INT8: "
            "cvlab.lessons.int8.qat"
        )


def standard_error(row: dict) -> float:
    """Of a paired drop, percentage points, from its 95 % interval."""
    return (row["drop_high"] - row["drop_low"]) / (2 * Z)


def search(
    source: Source,
    batches: Kept,
    max_drop: float = 0.2,
    *,
    target: str = "any",
    what: str | None = None,
) -> Found:
    """The fewest layers left in float with which INT8 loses no more than `max_drop`.

    First all layers in INT8, with ranges by each method until one will do; then that of the least
    divergence and 1, 2, 4, ... of the layers that `leave_one_out` ranks first, at most half of
    them; then the numbers between. A recipe is accepted if its drop and one standard error of it
    are within `max_drop`: else one of so many would be accepted by luck.

    What was measured is kept in the folder of `source`: stopped and called again, it goes on.

    Args:
        source: holds the float model.
        batches: validation images; thousands, or the standard error alone is too much.
        max_drop: percentage points of accuracy.
        target: CPUs that shall run it, see `Recipe`.
        what: label of progress bars; None shows none.

    Returns:
        the accepted recipe, or else that of the least divergence, with `reached` False.
    """
    trials = _Trials(source, batches, max_drop)
    with progress(None, what and f"{what}: ranges", "recipe") as bar:
        for recipe in [Recipe(ranges=kind, target=target) for kind in RANGES]:
            bar.update()
            if trials.good(recipe):
                return trials.found(recipe, True)
    best = trials.least()
    label = what and f"{what}: layers"
    order = leave_one_out(source, best, first(batches, SCREEN), what=label).index
    with progress(None, what and f"{what}: how many", "recipe") as bar:

        def enough(k: int) -> bool:
            bar.update()
            return trials.good(replace(best, keep=tuple(order[:k])))

        k = fewest(enough, max(1, len(order) // 2))
    if k is None:
        return trials.found(trials.least(), False)
    return trials.found(replace(best, keep=tuple(order[:k])), True)


def fewest(enough: Callable[[int], bool], most: int) -> int | None:
    """The smallest number up to `most` that is enough, found by doubling and then halving."""
    low, high = 0, 1
    while not enough(high):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


class _Trials:
    """Recipes, each measured once on the same images, the rows kept in a journal."""

    def __init__(self, source: Source, batches: Kept, max_drop: float):
        if not math.isfinite(max_drop) or max_drop < 0:
            raise QuantizeError(f"max_drop={max_drop} was given; expected percentage points >= 0.")
        self.source, self.max_drop, self.rows = source, max_drop, {}
        self.journal = Journal(source.folder / f"search-{digest(batches)}.json")
        self.judged = against(source.float_model, batches)

    def good(self, recipe: Recipe) -> bool:
        """Is its drop, with one standard error, within the limit?"""

        def measure() -> dict:
            return self.judged(self.source.make(recipe))

        row = self.rows[recipe] = self.journal.row(recipe.key, measure)
        return row["drop_pp"] + standard_error(row) <= self.max_drop

    def least(self) -> Recipe:
        """Of those measured the one with the least divergence."""
        return min(self.rows, key=lambda recipe: self.rows[recipe]["kl"])

    def found(self, recipe: Recipe, reached: bool) -> Found:
        table = pd.DataFrame({str(one): row for one, row in self.rows.items()}).T
        made, row = self.source.make(recipe), self.rows[recipe]
        return Found(recipe, made, reached, self.max_drop, row, table.rename_axis("recipe"))
