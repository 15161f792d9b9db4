"""What a file is made of, and what can be left out of it."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import torch
from torch import Tensor, nn

from cvlab.export import save_checked
from cvlab.lessons.smaller.prune import weights
from cvlab.paths import replace_atomically

MLPERF = 98_496  # bytes of MLPerf Tiny's reference network for CIFAR-10 in INT8, its gate: 85 %


def strip(model: Path, path: Path) -> Path:
    """Write a copy without notes on how it was made and with names of a few letters.

    What is computed, the names of inputs and outputs and the file's own metadata stay.
    """
    content = onnx.load(model)
    graph = content.graph
    for kept in ("value_info", "metadata_props"):
        graph.ClearField(kept)
    ends = {one.name: one.name for one in [*graph.input, *graph.output]}
    short = dict(ends)

    def rename(name: str) -> str:
        return short.setdefault(name, f"{len(short) - len(ends):x}") if name else ""

    for tensor in graph.initializer:
        tensor.name = rename(tensor.name)
    for node in graph.node:
        for field in ("name", "doc_string", "metadata_props"):
            node.ClearField(field)
        for names in (node.input, node.output):
            names[:] = [rename(name) for name in names]
    return replace_atomically(lambda file: save_checked(content, file), path)


def breakdown(model: Path) -> pd.Series:
    """Bytes of a `file` by use: `weights`, `biases and rulers`, `all else`."""
    found = {"weights": 0, "biases and rulers": 0}
    for tensor in onnx.load(model).graph.initializer:
        kind = "weights" if len(tensor.dims) > 1 else "biases and rulers"
        found[kind] += onnx.numpy_helper.to_array(tensor).nbytes
    found["all else"] = model.stat().st_size - sum(found.values())
    return pd.Series(found | {"file": model.stat().st_size})


def share_weights(weight: Tensor, values: int) -> Tensor:
    """The weight with so many different values: each number becomes the mean of its cluster.

    The clusters are those of k-means. Source: Han, Mao and Dally, "Deep compression", 2016.
    """
    from sklearn.cluster import KMeans

    numbers = weight.detach().reshape(-1, 1).numpy()
    start = np.linspace(numbers.min(), numbers.max(), values)[:, None]
    found = KMeans(values, init=start, n_init=1, max_iter=50).fit(numbers)
    shared = found.cluster_centers_[found.labels_].astype(np.float32)
    return torch.from_numpy(shared).view_as(weight)


def shared(net: nn.Module, values: int) -> nn.Module:
    """A copy in which each layer's weight has so many different values."""
    copy = deepcopy(net)
    with torch.no_grad():
        for module, _ in weights(copy):
            module.weight.copy_(share_weights(module.weight, values))
    return copy
