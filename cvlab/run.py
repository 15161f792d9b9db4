"""A notebook's context: profile, device, seed and budget; its records, claims and figures.

The executed notebook is its own record: what `cvlab.records` stores in it, tests and report read.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from cvlab import data as cvdata
from cvlab import records
from cvlab.machine import hardware, limit_threads, versions
from cvlab.paths import output_folder
from cvlab.profiles import check_parameters, profiles
from cvlab.records import OUTCOMES, OWN_TIME, STAND_IN_LABEL
from cvlab.show import in_notebook, png


class ClaimsFailed(AssertionError):
    """The notebook's own conclusions do not hold on this run."""


@dataclass(frozen=True)
class Guess:
    """What the reader expected, see `Run.guess`."""

    value: float | None

    def score(self, measured: float, unit: str = "") -> None:
        """Print the guess beside what was measured, in the same unit."""
        told = f"Measured: {measured:.3g}{unit}."
        if self.value is None:
            print(f"{told} You made no guess.")
        elif min(self.value, measured) <= 0 or unit in (" %", " points"):
            print(f"{told} Your guess: {self.value:g}{unit}, {self.value - measured:+.2g} off.")
        else:
            ratio = max(self.value / measured, measured / self.value)
            print(f"{told} Your guess: {self.value:g}{unit}, off by a factor of {ratio:.2g}.")


@dataclass
class Run:
    """What `start` returns. `knobs` holds the notebook's budget, one attribute a knob."""

    name: str
    profile: str
    data: str
    seed: int
    device: torch.device
    knobs: SimpleNamespace
    records: list[dict] = field(default_factory=list)  # as stored, see `record`
    claims: list[tuple[str, bool]] = field(default_factory=list)
    source: str | None = None  # of the last data loaded
    real: bool = True
    fingerprint: str = ""  # of its images, see `cvlab.data.ImageData`
    began: float = field(default_factory=time.perf_counter)
    _shown: dict = field(default_factory=dict, repr=False)  # (cell, figure) -> what redraws it

    def load(self, dataset: str, classes: list[str] | None = None) -> "cvdata.ImageData":
        """Load a dataset as this run's profile wants it, and print where it came from.

        The knobs n_train, n_val and n_test limit it; only "class" and "full" may download.
        """
        loaded = cvdata.load(
            dataset,
            self.data,
            classes=classes,
            allow_download=self.profile != "smoke",
            n_train=getattr(self.knobs, "n_train", None),
            n_val=getattr(self.knobs, "n_val", None),
            n_test=getattr(self.knobs, "n_test", None),
        )
        self.source, self.real, self.fingerprint = loaded.source, loaded.real, loaded.fingerprint
        print(f"data   {loaded}")
        return loaded

    def record(self, name: str, value: float, unit: str = "fraction", **tags: Any) -> None:
        """Store a measured number in the notebook, with what it was measured on.

        Raises:
            ValueError: the value is not a finite number: it was not measured.
        """
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(
                f"record({name!r}) was given {value}; only finite numbers are records."
            )
        stored = {
            "name": name,
            "value": value,
            "unit": unit,
            "tags": tags,
            "device": hardware().on(self.device),
            "source": self.source if self.real else STAND_IN_LABEL,
            "profile": self.profile,
        }
        self.records.append(stored)
        records.store(stored)

    def claim(self, text: str, holds: bool) -> None:
        """Print a conclusion with ✓ or ✗ and store it; a false one makes `finish` raise.

        The text must not contain measured numbers: tests compare it between runs.
        """
        holds = bool(holds)
        self.claims.append((text, holds))
        print(f"{'✓' if holds else '✗'} {text}")
        records.store({"claim": text, "holds": holds})

    def check(self, answer: Callable) -> None:
        """Check an exercise by the learner's function, whose name must be the stub's.

        The outcome is printed and stored for the report; a wrong answer stops nothing.
        """
        self._judge(answer)

    def use(self, answer: Callable, ours: Callable) -> Callable:
        """`check`, where the next cells need the answer: it if it is right, else `ours`."""
        if self._judge(answer) == "solved":
            return answer
        print("  The cells below use our own.")
        return ours

    def _judge(self, answer: Callable) -> str:
        from cvlab.exercises import judge

        outcome, said = judge.judge(answer)
        print(f"{OUTCOMES[outcome]} {answer.__name__}: {said}")
        records.store({"exercise": answer.__name__, "outcome": outcome, "said": said})
        return outcome

    def guess(self, question: str, value: float | None) -> "Guess":
        """Take the reader's guess before the answer is measured; None is no guess."""
        yours = "None yet: put a number in its place" if value is None else f"{value:g}"
        print(f"{question} Your guess: {yours}.")
        return Guess(value)

    def show(self, figure, what: str) -> None:
        """Show a figure and save it as `<notebook's number>_<what>.png` in the output folder.

        Shown again from the same cell under the same name, it is redrawn in place. A figure of
        the stand-in says so in its title. When the file cannot be written, the figure is shown
        all the same, with a note.
        """
        import matplotlib.pyplot as plt

        from cvlab import plots

        title = figure.get_suptitle()
        if not self.real:
            plots.set_title(figure, f"{title}\n[{STAND_IN_LABEL}]")
        path = output_folder() / "figures" / f"{self.name[:2]}_{what}.png"
        image = png(figure)
        plt.close(figure)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
        except OSError as error:
            print(f"The figure was not saved to {path.name}: {error.strerror}.")
        self._display(what, {"image/png": image, "text/plain": f"Figure: {title}"})

    def _display(self, what: str, output: dict) -> None:
        if not in_notebook():
            return
        from IPython import get_ipython
        from IPython.display import display

        place = (get_ipython().execution_count, what)
        if place in self._shown:
            self._shown[place].update(output, raw=True)
        else:
            self._shown[place] = display(output, raw=True, display_id=True)

    def finish(self) -> None:
        """Close the notebook: record its time, sum up the claims.

        Raises:
            ClaimsFailed: at least one claim did not hold; all are named.
        """
        seconds = time.perf_counter() - self.began
        self.record(OWN_TIME, seconds, unit="s")
        failed = [text for text, holds in self.claims if not holds]
        claims, held = len(self.claims), len(self.claims) - len(failed)
        print(f"{held} of {claims} claims hold · {seconds:.0f} s")
        if failed:
            told = f"{len(failed)} claim(s) of {self.name} do not hold here: "
            raise ClaimsFailed(told + "; ".join(failed))


def start(
    name: str, profile: str | None = None, data: str = "auto", seed: int = 0, **knobs: Any
) -> Run:
    """Begin a notebook: check its parameters, seed everything, print a banner.

    Args:
        name: the notebook's file name without `.ipynb`.
        profile: "smoke", "class" or "full"; None takes `$CVLAB_PROFILE`, else "class".
        data: "auto", a folder or "synthetic".
        seed: of weights, batches and draws.
        knobs: this notebook's own parameters; None takes the profile's value.

    Raises:
        ParameterError: something is unknown or out of range; the message lists the choices.
    """
    profile = profile or os.environ.get("CVLAB_PROFILE") or "class"
    check_parameters(name, {"profile": profile, "data": data, "seed": seed} | knobs)
    budgets = profiles()[name]
    budget = dict.fromkeys(budgets.get("limits", {})) | budgets.get(profile, {})
    budget |= {key: value for key, value in knobs.items() if value is not None}
    torch.manual_seed(seed)
    limit_threads()
    machine = hardware()
    device = torch.device("cpu") if profile == "smoke" else machine.device
    features = ", ".join(machine.features) or "no known vector features"
    where = "cpu" if device.type == "cpu" else f"cuda, {machine.gpu}"
    print(f"run    {name} · profile {profile} · seed {seed} · computes on {where}")
    print(f"cpu    {machine.cpu}")
    print(f"       {machine.cores} logical cores, {torch.get_num_threads()} threads · {features}")
    print(f"with   {versions()}")
    return Run(name, profile, data, seed, device, SimpleNamespace(**budget))
