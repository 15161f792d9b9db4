"""The capstone's own pieces: one budget, every stage on one table, the reports', your report."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import optuna
import pandas as pd
import torch
from matplotlib.figure import Figure
from onnxruntime.quantization import QuantType, quantize_dynamic
from optuna.trial import FixedTrial
from torch import nn

from cvlab import export, runtime
from cvlab.data import ImageData
from cvlab.lessons.engines import calls
from cvlab.lessons.int8.ladder import comparison, megabytes
from cvlab.lessons.pretrained import zoo
from cvlab.lessons.search import tune
from cvlab.metrics import paired_drop
from cvlab.models import MODELS
from cvlab.paths import output_folder, store_text
from cvlab.plots import COLOURS, MARKERS, PERCENT, STYLES, canvas, footnote, log_scale
from cvlab.records import in_words, interval
from cvlab.run import Run
from cvlab.show import interactive
from cvlab.train import History, fit, predict

ENDS = ("points", "low", "high")
PARTS = 3  # an epoch of the final is a third of a pass, so that little of the budget is left over
SIZE = 64  # pixels a side for a network that ImageNet has trained

REPORTS_SIDE = 224  # pixels a side of the images that the reports' EfficientNet-B3 saw


def view(model: str, data: ImageData) -> ImageData:
    """`data` as the network of this name takes it: ours its 32 pixels, one of the zoo `SIZE`."""
    return data if model in MODELS else zoo.as_seen_by(zoo.card(model), data, SIZE)


def passes(study: optuna.Study, objective: tune.Objective) -> float:
    """What a search has cost: passes over all training images, pruned trials included.

    Counted are the epochs that trials reported, so `objective.prune` must be on.
    """
    epochs = sum(len(trial.intermediate_values) for trial in tune.finished(study))
    images = min(objective.images, len(objective.data.train)) / objective.parts
    return epochs * images / len(objective.data.train)


def finalists(
    trials: pd.DataFrame, known: Mapping[str, float], n: int
) -> tuple[dict[str, int], float]:
    """What is known goes on to the final, and the best trial if it beats it by a standard error.

    Args:
        trials: of `cvlab.lessons.search.tune.table`, `score` an accuracy of `n` images.
        known: the parameters to be beaten; one trial has them.
        n: validation images.

    Returns:
        ("known" and perhaps "searched" to the number of their trial, standard error of the
        known one's score).
    """
    same = (trials[[*known]] == pd.Series(known)).all(axis=1)
    first, best = int(trials.index[same][0]), int(trials["score"].idxmax())
    score = trials.loc[first, "score"]
    error = float(np.sqrt(score * (1 - score) / n))
    beaten = trials.loc[best, "score"] > score + error
    return {"known": first} | ({"searched": best} if beaten else {}), error


def train(
    model: str, knobs: Mapping[str, float], passes: float, data: ImageData, run: Run, what: str
) -> tuple[nn.Module, History]:
    """Train the network of this name for so many passes, in whole thirds; no epoch is chosen.

    `knobs` are parameters of its space; a stopped kernel goes on with the epoch after the last one.
    """
    torch.manual_seed(run.seed)
    net, training = tune.SPACES[model](FixedTrial(dict(knobs)), len(data.classes))
    epochs = max(1, int(PARTS * passes))
    training = replace(training, epochs=epochs, parts=PARTS, seed=run.seed)
    file = f"{model}-{training.lr:.4g}-{training.weight_decay:.4g}-{epochs}.checkpoint"
    checkpoint = output_folder() / run.name / file
    history = fit(net, data, training, device=run.device, checkpoint=checkpoint, what=what)
    return net, history


def costs(histories: Mapping[str, History]) -> pd.DataFrame:
    """What trainings of `train` took: a row each, `seconds`, `passes`, last `val_accuracy`."""
    rows = {
        name: (one.seconds, len(one.epoch_rows) / PARTS, one.epoch_rows[-1]["val_accuracy"])
        for name, one in histories.items()
    }
    return pd.DataFrame(rows, index=["seconds", "passes", "val_accuracy"]).T


def ahead(
    networks: Mapping[str, nn.Module], than: str, images: ImageData
) -> tuple[pd.DataFrame, float]:
    """By how many points each network is better than one of them, on the same validation images.

    Returns:
        (a row each of the others: `points`, 95 % interval `low` to `high`; that one's accuracy).
    """
    batches = images.batches("val", 25)
    answers = {name: predict(net, batches, precision="fp32") for name, net in networks.items()}
    reference, labels = answers.pop(than)
    rows = {
        name: [-100 * value for value in paired_drop(reference, logits, labels)]
        for name, (logits, _) in answers.items()
    }
    accuracy = (reference.argmax(1) == labels).double().mean().item()
    table = pd.DataFrame(rows, index=["points", "high", "low"]).T
    return table[[*ENDS]], accuracy


def stages(
    net: Path,
    model: runtime.Model,
    int8: runtime.Model,
    data: ImageData,
    threads: int,
    *,
    rounds: int = 12,
) -> pd.DataFrame:
    """PyTorch, ONNX Runtime and INT8 on all test images, and racing on one image.

    Args:
        net: the trained network, see `cvlab.store`.
        model: exported from it.
        int8: made of `model`.
        data: as the network sees it.
        threads: for each engine.
        rounds: see `cvlab.bench.race`.

    Returns:
        a row a stage: see `cvlab.lessons.int8.ladder.comparison`, against PyTorch, and
        `cvlab.lessons.engines.calls.timed`.
    """
    models = {"ONNX Runtime": model, "INT8": int8}
    files = {"PyTorch": net} | {name: one.path for name, one in models.items()}
    ways = {"PyTorch": partial(calls.pytorch, net)}
    ways |= {name: partial(calls.onnx, one.path) for name, one in models.items()}
    test, answers = data.batches("test", 25), {}
    answers["PyTorch"], labels = predict(calls.network(net, threads), test, precision="fp32")
    for name, one in models.items():
        answers[name], _ = one.predict(test, what=name)
    image = next(iter(test))[0][:1].contiguous().numpy()
    times = calls.timed(ways, image, threads, rounds=rounds, what="race")
    return comparison(answers, labels, files).join(times).rename_axis("stage")


def race(
    files: Mapping[str, Path], image: np.ndarray, threads: int, rounds: int, what: str
) -> pd.DataFrame:
    """`latency_ms` of one image, with `p10` and `p90`, of ONNX files in turns."""
    ways = {name: partial(calls.onnx, file) for name, file in files.items()}
    times = calls.timed(ways, image, threads, rounds=rounds, what=what)
    return times[["latency_ms", "p10", "p90"]]


def ledger(
    paid: Mapping[str, Sequence[float]], bought: Mapping[str, Sequence[float]], stages: pd.DataFrame
) -> pd.DataFrame:
    """What each step took and what it changed; a row that made things worse is negative.

    Args:
        paid: (seconds, passes) by step.
        bought: points of accuracy of steps that trained, with their 95 % interval if there is one.
        stages: see `stages`: the same of the steps that did not.
    """
    changed = {step: dict(zip(ENDS, points, strict=False)) for step, points in bought.items()}
    for step, stage in {"export": "ONNX Runtime", "INT8": "INT8"}.items():
        row = stages.loc[stage]
        ends = zip(ENDS, row[["drop_pp", "drop_high", "drop_low"]], strict=True)
        changed[step] = {end: 0 - value for end, value in ends}
        changed[step] |= row[["latency_ms", "size_mb"]].to_dict()
    table = pd.DataFrame(paid, index=["seconds", "passes"]).T
    return table.join(pd.DataFrame(changed).T).astype(float)


def reports() -> pd.DataFrame:
    """What the student reports stated: a row each, `accuracy`, its interval `low` to `high` where
    they say how many images `n` it is of, else NaN, `size_mb`, `conditions`.
    """
    text = (Path(__file__).parent / "reports.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)["report"]
    table = pd.DataFrame(rows).set_index("what")
    for what, row in table.iterrows():
        share = {"value": row["accuracy"], "unit": "fraction", "tags": {"n": row["n"]}}
        table.loc[what, ["low", "high"]] = interval(share) or (np.nan, np.nan)
    return table.assign(n=table["n"].replace(0, np.nan))


def reports_speed(folder: Path, threads: int, *, rounds: int = 12) -> pd.DataFrame:
    """The reports' EfficientNet-B3 built again, in fp32 and quantised as they did: time and bytes.

    Neither depends on what the weights are, so they are drawn at random; accuracy cannot be had so.

    Returns:
        a row each, as `reports` calls them: `latency_ms` of one image with `p10` and `p90`,
        `built_mb`, the size of our file.
    """
    torch.manual_seed(0)
    net = zoo.build("efficientnet_b3", 10).eval()
    side = (3, REPORTS_SIDE, REPORTS_SIDE)
    model, int8 = export.to_onnx(net, folder / "b3.onnx", side), folder / "b3.int8.onnx"
    with runtime.quiet():  # unsigned weights have zero points: int8 ones, the default, lose more
        quantize_dynamic(model, int8, weight_type=QuantType.QUInt8)
    files = {"EfficientNet-B3": model, "EfficientNet-B3, INT8": int8}
    image = np.random.default_rng(0).normal(size=(1, *side)).astype(np.float32)
    times = race(files, image, threads, rounds, "the reports' network")
    return times.assign(built_mb=[megabytes(file) for file in files.values()])


def like_for_like(ours: Mapping[str, pd.Series], reports: pd.DataFrame) -> pd.DataFrame:
    """How many times our `latency_ms` and `size_mb` the reports' network takes, in equal numbers.

    `ours`: a row of ours for "fp32" and for "dynamic INT8"; `reports` with `reports_speed`.
    """
    theirs = {"fp32": "EfficientNet-B3", "dynamic INT8": "EfficientNet-B3, INT8"}
    times = {
        kind: reports.loc[theirs[kind], ["latency_ms", "built_mb"]].to_numpy(float)
        / row[["latency_ms", "size_mb"]].to_numpy(float)
        for kind, row in ours.items()
    }
    return pd.DataFrame.from_dict(times, "index", columns=["times the ms", "times the MB"])


def write_report(run: Run, words: str, picture: str, folder: Path) -> str:
    """Your own report, from what the run has recorded and claimed, as Markdown.

    Args:
        run: its records with a tag `stage` become a table, the others a list.
        words: your own conclusion, Markdown.
        picture: file name of a figure that `run.show` saved in `figures` of `folder`.
        folder: gets `report.md`.

    Returns:
        the Markdown.

    Raises:
        OSError: the file cannot be written; nothing else is lost.
    """
    text = _markdown(run, words, f"figures/{picture}")
    store_text(text, folder / "report.md")
    return text


def _markdown(run: Run, words: str, figure: str) -> str:
    staged = [record for record in run.records if "stage" in record["tags"]]
    rest = [record for record in run.records if record not in staged]
    cells: dict[str, dict[str, str]] = {}
    for record in staged:
        cells.setdefault(record["tags"]["stage"], {})[record["name"]] = in_words(record)
    table = pd.DataFrame(cells).T.fillna("").rename_axis("stage").reset_index()
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    about = {record["device"] for record in run.records}
    source = run.source if run.real else "the synthetic stand-in, not real images"
    lines = [f"# {run.name}", "", *(f"> {line}" for line in words.strip().splitlines()), ""]
    lines += [f"On {', '.join(sorted(about))}; {source}; profile {run.profile}, seed {run.seed}."]
    lines += ["", "## Stages", "", *(f"| {' | '.join(row)} |" for row in rows)]
    lines += ["", f"![accuracy over latency]({figure})", "", "## How it came about", ""]
    lines += [f"- {_named(record)}: {in_words(record)}" for record in rest]
    lines += ["", "## What holds", ""]
    lines += [f"- {'✓' if holds else '✗'} {claim}" for claim, holds in run.claims]
    return "\n".join(lines) + "\n"


def _named(record: dict) -> str:
    tags = ", ".join(f"{k} {v}" for k, v in record["tags"].items() if k != "n")
    return record["name"].replace("_", " ") + (f" ({tags})" if tags else "")


def plot_products(table: pd.DataFrame, title: str) -> Figure:
    """Accuracy over latency, the area of a circle its size; steps of one `kind` are joined.

    Columns `kind`, `accuracy`, `latency_ms`, `size_mb`; rows of a kind in the order of its steps.
    """
    figure, axis = canvas(title, size=(8.5, 4.4))
    log_scale(axis)
    above = table["latency_ms"].rank().astype(int) % 2 == 1  # neighbours' labels keep apart
    for i, (kind, rows) in enumerate(table.groupby("kind", sort=False)):
        x, y = rows["latency_ms"], rows["accuracy"]
        axis.plot(x, y, STYLES[i], color=COLOURS[i], marker=MARKERS[i], markersize=3, label=kind)
        axis.scatter(x, y, s=20 * rows["size_mb"], color=COLOURS[i], alpha=0.35)
        if y.max() - y.min() > 0.2:  # and off a steep line
            above[rows.index] = y > y.mean()
    for name, row in table.iterrows():
        size = f"{row['size_mb']:,.0f}" if row["size_mb"] >= 10 else f"{row['size_mb']:.2g}"
        side = 1 if above[name] else -1
        place = (row["latency_ms"], row["accuracy"])
        away = 10 + np.sqrt(20 * row["size_mb"] / np.pi)
        text, shift = f"{name}, {size} MB", (0, side * away)
        axis.annotate(
            text, place, shift, textcoords="offset points", ha="center", va="center", fontsize=9
        )
    axis.set(xlabel="latency of one image, ms (log scale)", ylabel="accuracy", ylim=(-0.1, 1.15))
    axis.margins(x=0.2)
    axis.set_yticks(np.arange(0, 1.01, 0.2))
    axis.yaxis.set_major_formatter(PERCENT)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    footnote(figure, "Area of the circles: size of the file.")
    return figure


def explore(models: pd.DataFrame) -> widgets.Widget:
    """Say what a device has to spare, in ms and MB; see which models fit, and the best of them.

    `models`: `accuracy`, `latency_ms`, `size_mb` by name.
    """
    most = {"latency_ms": "at most, ms", "size_mb": "at most, MB"}
    sliders = {
        column: widgets.FloatLogSlider(
            value=100, min=-2, max=2, step=0.1, description=label, continuous_update=False
        )
        for column, label in most.items()
    }

    def draw(latency_ms: float, size_mb: float):
        fits = (models["latency_ms"] <= latency_ms) & (models["size_mb"] <= size_mb)
        best = models["accuracy"][fits].idxmax() if fits.any() else "nothing"
        title = f"With {latency_ms:.3g} ms and {size_mb:.3g} MB: {best}"
        title += f", {models.loc[best, 'accuracy']:.1%}" if fits.any() else " fits"
        return plot_products(models[fits] if fits.any() else models, title)

    return interactive(draw, sliders)
