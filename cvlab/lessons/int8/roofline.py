"""The machine's limit: how many operations networks make a second, beside the roofs of 00."""

import json
from collections.abc import Mapping
from functools import partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import torch
from matplotlib.figure import Figure

from cvlab.bench import Contestant, race
from cvlab.lessons.engines.calls import onnx as onnx_call
from cvlab.lessons.environment import rates
from cvlab.plots import COLOURS, MARKERS, canvas
from cvlab.runtime import Model

WIDTH = {"fp32": 4, "INT8": 1}  # bytes of a number
KINDS = ("1x1 convolution", "depthwise convolution", "other convolution", "linear")
AROUND = {"QuantizeLinear": "quantise, dequantise", "DequantizeLinear": "quantise, dequantise"}
AROUND |= dict.fromkeys(("Transpose", "ReorderInput", "ReorderOutput"), "reorder")


def costs(path: Path) -> pd.DataFrame:
    """What the layers with weights cost for one image, by the name of their node.

    Returns:
        `kind`, one of `KINDS`; `operations`, two for each multiply-accumulate; `weights` and
        `values`, counts: what a layer reads and writes of activations, each once.
    """
    model, rows = onnx.load(path), {}
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for told in (*graph.input, *graph.value_info, *graph.output):
        shapes[told.name] = [dim.dim_value for dim in told.type.tensor_type.shape.dim]
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            given, weight, out = (shapes[n] for n in (*node.input[:2], node.output[0]))
            rows[node.name] = {
                "kind": _kind(weight),
                "operations": 2 * prod(weight) * prod(out[2:]),
                "weights": prod(weight),
                "values": prod(given[1:]) + prod(out[1:]),
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def _kind(weight: list[int]) -> str:
    if len(weight) == 2:
        return "linear"
    if weight[1] == 1:
        return "depthwise convolution"
    return "1x1 convolution" if weight[2:] == [1, 1] else "other convolution"


def points(
    networks: Mapping[str, Mapping[str, Model]],
    batches: list[int],
    threads: int,
    *,
    rounds: int = 12,
    what: str | None = None,
) -> pd.DataFrame:
    """Where models lie under the roofs; those of one network race on the same noise.

    Args:
        networks: by name, each a mapping of precision ("fp32", "INT8") to model.
        batches: images in one call.
        threads: of every model.
        rounds: of each race.
        what: labels the bars.

    Returns:
        a row for each `network`, `batch` and `precision`: `intensity`, operations a byte, if
        weights and each layer's input and output go through memory once; `median`, `p10`, `p90` in
        10^9 operations a second.
    """
    found = []
    for network, models in networks.items():
        one = next(iter(models.values()))
        total = costs(one.path).sum(numeric_only=True)  # an INT8 file costs what its float one does
        calls = {name: partial(onnx_call, model.path) for name, model in models.items()}
        for batch in batches:
            images, label = _noise(one, batch), what and f"{what}: {network}, batch {batch}"
            field = {name: Contestant(call, images, threads) for name, call in calls.items()}
            rows = rates(race(field, rounds=rounds, what=label), total["operations"] * batch / 1e9)
            moved = total["weights"] + total["values"] * batch
            rows["intensity"] = total["operations"] * batch / moved / rows.index.map(WIDTH)
            rows = rows.assign(batch=batch, network=network).drop(columns="times")
            found.append(rows.rename_axis("precision").reset_index())
    return pd.concat(found, ignore_index=True)


def _noise(model: Model, batch: int) -> np.ndarray:
    shape = (batch, *model.input.shape[1:])
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def profile(model: Model, batch: int, calls: int = 12) -> pd.DataFrame:
    """Who takes the time of an INT8 model, as ONNX Runtime's own profile says, by kind of operator.

    Returns:
        `time` and `operations`, shares of the whole; `Gop/s`, NaN for what has no weights.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_profiling = True
    with TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        session = onnxruntime.InferenceSession(model.path, options, ["CPUExecutionProvider"])
        for _ in range(calls):
            session.run(None, {model.input.name: _noise(model, batch)})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    layers = costs(model.path)
    nodes = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    table = pd.DataFrame({"name": [e["name"] for e in nodes], "us": [e["dur"] for e in nodes]})
    table["kind"] = [_kind_of(e, layers["kind"].to_dict()) for e in nodes]
    us = table.groupby(["kind", "name"])["us"].median().groupby("kind").sum()
    operations = layers.groupby("kind")["operations"].sum().reindex(us.index)
    shares = {"time": us / us.sum(), "operations": (operations / operations.sum()).fillna(0)}
    found = pd.DataFrame(shares).assign(**{"Gop/s": operations * batch / us / 1e3})
    return found.sort_values("time", ascending=False)


def _kind_of(event: dict, layers: Mapping[str, str]) -> str:
    name = event["name"].removesuffix("_kernel_time").partition("_token_")[0]
    return layers.get(name) or AROUND.get(event["args"]["op_name"], "other operators")


def plot(table: pd.DataFrame, peaks: pd.DataFrame, title: str) -> Figure:
    """The roofs of `environment.peaks`, and under them `points`: filled in INT8, hollow in fp32."""
    figure, axis = canvas(title, size=(8, 4.6))
    top, wide = peaks["median"], np.geomspace(1, 3e4, 200)
    for kind, colour, style in zip(("fp32", "INT8"), COLOURS, ("-", "--"), strict=False):
        roof = np.minimum(top[kind], wide * top["memory"])
        axis.plot(wide, roof, style, color=colour)
        where = (wide[-1], top[kind])
        text = f"{kind}: {top[kind]:,.0f} Gop/s"
        axis.annotate(text, where, (0, 4), textcoords="offset points", ha="right", color=colour)
    slope = f"memory: {top['memory']:.0f} GB/s"
    axis.annotate(slope, (1.1, 1.1 * top["memory"]), (6, -10), textcoords="offset points")
    networks, groups = [*table["network"].unique()], ["network", "precision"]
    for (network, precision), rows in table.groupby(groups, sort=False):
        colour = COLOURS[[*WIDTH].index(precision)]
        x, y, face = rows["intensity"], rows["median"], colour if precision == "INT8" else "white"
        look, name = MARKERS[networks.index(network)] + ":", f"{network} {precision}"
        axis.plot(x, y, look, label=name, color=colour, markerfacecolor=face, ms=7)
        for _, row in rows.iterrows():
            at = row["intensity"], row["median"]
            axis.annotate(f"{row['batch']}", at, (6, -9), textcoords="offset points", fontsize=8)
    axis.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="Gop/s")
    axis.legend(loc="lower right", title="model; number: images in a batch")
    return figure
