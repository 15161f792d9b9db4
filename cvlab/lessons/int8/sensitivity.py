"""Where INT8 loses: the ranges of weights, the noise of layers, what one layer in float saves."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pandas as pd
from onnx import numpy_helper
from onnxruntime.quantization import qdq_loss_debug

from cvlab import runtime
from cvlab.lessons.int8.ladder import Kept, against, digest
from cvlab.lessons.int8.quantize import Recipe, Source, output_axis, weights
from cvlab.paths import as_json, store_text
from cvlab.show import each


def titles(model: Path) -> dict[str, str]:
    """Name of each layer's node to the name of its weight, which says where it stands."""
    found = weights(onnx.load(model))
    return {node: weight.name.removesuffix(".weight") for node, weight in found.items()}


def channel_ranges(model: Path) -> pd.DataFrame:
    """The largest |weight| of every output channel of every layer of a float model.

    Returns:
        a row a channel: `layer`, `title`, `channel`, `range`, and `levels`: how many steps lie
        between 0 and `range` when one scale serves the whole layer (127 for its largest channel).
    """
    content, rows = onnx.load(model), []
    nodes = {node.name: node for node in content.graph.node}
    for name, stored in weights(content).items():
        weight, axis = numpy_helper.to_array(stored), output_axis(nodes[name])
        ranges = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis))
        levels = 127 * ranges / ranges.max()
        columns = {"layer": name, "title": stored.name.removesuffix(".weight"), "range": ranges}
        rows.append(pd.DataFrame(columns | {"levels": levels}).rename_axis("channel").reset_index())
    return pd.concat(rows, ignore_index=True)


def sqnr(source: Source, made: runtime.Model) -> pd.DataFrame:
    """Signal-to-quantisation-noise ratio of every layer, by ONNX Runtime's own comparison.

    Ten times the decimal logarithm of the signal's energy over the noise's, in dB: 6 dB are one
    bit. ONNX Runtime also compares a tensor before and after its own rounding; that says nothing
    of layers with ReLU6, whose clipping the quantiser leaves to the rounding.

    Args:
        source: the float model, with the images to run.
        made: of it by a static recipe.

    Returns:
        a row a layer, in the order of the graph: `title`, `weights`, and `activations`, what comes
        out of the layer against the float model: all noise up to there. NaN where ONNX Runtime
        finds no pair.
    """
    pair, feed = (source.prepared, made.path), source.feeds(8)[0]  # all activations are kept
    with runtime.quiet():
        matched = qdq_loss_debug.create_weight_matching(*map(str, pair))
        noise = qdq_loss_debug.compute_weight_error(matched)
        float_run, int8_run = (_activations(one, feed) for one in pair)
        found = qdq_loss_debug.create_activation_matching(int8_run, float_run)
        activations = qdq_loss_debug.compute_activation_error(found)
    stored, rows = weights(onnx.load(source.prepared)), {}
    for layer, outputs in _outputs(source).items():
        known = next((activations[o] for o in outputs if o in activations), {})
        rows[layer] = {
            "title": stored[layer].name.removesuffix(".weight"),
            "weights": noise.get(stored[layer].name, np.nan),
            "activations": known.get("xmodel_err", np.nan),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer")


def _outputs(source: Source) -> dict[str, list[str]]:
    """The tensors that each layer makes, that behind its activation function first."""
    made = {node.name: list(node.output) for node in onnx.load(source.prepared).graph.node}
    return {
        layer: [output for node in nodes[::-1] for output in made[node]]
        for layer, nodes in source.layers.items()
    }


def _activations(model: Path, feed: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    with TemporaryDirectory() as folder:
        wide = Path(folder) / "wide.onnx"
        qdq_loss_debug.modify_model_output_intermediate_tensors(model, wide)
        return qdq_loss_debug.collect_activations(str(wide), [feed])


class Journal:
    """Rows that were measured, kept in a file: a search that was stopped goes on where it was."""

    def __init__(self, path: Path):
        self.path, self.rows = path, {}
        if path.is_file():
            with suppress(json.JSONDecodeError):  # damaged: measure again
                self.rows = json.loads(path.read_text(encoding="utf-8"))

    def row(self, key: str, measure: Callable[[], dict]) -> dict:
        """The row of this key, measured now if it is not known; JSON must be able to hold it."""
        if key not in self.rows:
            self.rows[key] = measure()
            store_text(as_json(self.rows), self.path)
        return self.rows[key]


def leave_one_out(
    source: Source,
    recipe: Recipe,
    batches: Kept,
    *,
    layers: Sequence[str] | None = None,
    what: str | None = None,
) -> pd.DataFrame:
    """What each layer costs: the recipe with only that layer in float.

    Stopped and called again, it goes on with the layers that are missing.

    Args:
        source: holds the float model.
        recipe: static or dynamic; layers that it keeps are kept.
        batches: validation images; some hundred will do, because `kl` is a smooth measure.
        layers: those to try; None tries all.

    Returns:
        a row a layer: `title`, `kl` and `agreement` with that layer in float, and `gain`, the
        share of the recipe's divergence that this saves; the greatest first.
    """
    journal = Journal(source.folder / f"layers-{digest(batches)}.json")
    names, judged = titles(source.prepared), against(source.float_model, batches)

    def measured(tried: Recipe) -> dict:
        return judged(source.make(tried, source.folder / "layer.onnx"))

    before, rows = journal.row(recipe.key, lambda: measured(recipe))["kl"], {}
    for layer in each(layers or [*source.layers], what, "layer"):
        if layer not in recipe.keep:
            tried = replace(recipe, keep=(*recipe.keep, layer))
            row = journal.row(tried.key, partial(measured, tried))
            rows[layer] = {"title": names[layer], "kl": row["kl"], "agreement": row["agreement"]}
            rows[layer]["gain"] = 1 - row["kl"] / before
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer")
    return table.sort_values("gain", ascending=False)
