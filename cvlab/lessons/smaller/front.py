"""Every network of the course beside the new ones: accuracy for bytes, and for milliseconds."""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from torch import nn

from cvlab.data import Batches
from cvlab.lessons import capstone
from cvlab.machine import hardware
from cvlab.metrics import score
from cvlab.paths import project_root
from cvlab.train import predict

COLUMNS = ("accuracy", "size_mb", "latency_ms")
ZOO, INT8, CAPSTONE = "03_pretrained_zoo", "06_int8", "07_capstone"
FLOAT = {"method": "fp32"}
LITE0 = {"network": "tf_efficientnet_lite0"}
RECORDED = {  # where a network's columns are recorded: notebook, name, tags
    "Lite0, fp32": {
        "accuracy": (ZOO, "test_accuracy", LITE0),
        "size_mb": (INT8, "size_mb", FLOAT),
        "latency_ms": (INT8, "latency_ms", FLOAT),
    },
    "Lite0, INT8": {"accuracy": (INT8, "accuracy", {"method": "chosen", "part": "test"})},
}
RECORDED |= {
    f"capstone, {stage}": {column: (CAPSTONE, column, {"stage": stage}) for column in COLUMNS}
    for stage in ("PyTorch", "ONNX Runtime", "INT8")
}


def published() -> dict[str, list[dict]]:
    """Notebook -> records of its published run; empty where there is no clone, as in Colab."""
    files = sorted((project_root() / "data" / "results").glob("0*.json"))
    stored = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return {one["notebook"]: [r for r in one["records"] if "name" in r] for one in stored}


def course() -> pd.DataFrame:
    """What the notebooks before this one have published, and what the reports state.

    Returns:
        a row a network: `accuracy` of test images of CIFAR-10, NaN where nobody asked it;
        `size_mb` of its file; `latency_ms` of one image, NaN where it was not recorded;
        `kind`, whose it is; `here`, was its time taken on this machine.
    """
    found = published()
    rows = {
        name: {column: _record(found, *where) for column, where in one.items()}
        for name, one in RECORDED.items()
    }
    for tags in [r["tags"] for r in found.get(ZOO, []) if r["name"] == "parameters"]:
        if tags != LITE0:
            sizes, time = (_record(found, ZOO, n, tags) for n in ("parameters", "latency_ms"))
            in_mb = sizes | {"value": 4e-6 * sizes["value"]}
            rows[tags["network"]] = {"size_mb": in_mb, "latency_ms": time}
    times = {name: one.get("latency_ms") or {} for name, one in rows.items()}
    values = {n: {c: r["value"] for c, r in one.items() if r} for n, one in rows.items()}
    table = pd.DataFrame(values).T.reindex(columns=[*COLUMNS]).astype(float)
    if ratio := _record(found, INT8, "size_ratio", {}):  # of the chosen file
        table.loc["Lite0, INT8", "size_mb"] = table.loc["Lite0, fp32", "size_mb"] / ratio["value"]
    table["here"] = [times[name].get("device") == hardware().name for name in table.index]
    stated = capstone.reports()[["accuracy", "size_mb"]].add_suffix(" (stated)", axis=0)
    both = [table.assign(kind="earlier notebooks"), stated.assign(kind="reports", here=False)]
    return pd.concat(both).dropna(subset=["size_mb"]).astype({"here": bool})


def _record(
    found: Mapping[str, list[dict]], notebook: str, name: str, tags: Mapping
) -> dict | None:
    """The first record of that name with these tags."""
    records = (r for r in found.get(notebook, []) if r["name"] == name)
    return next((r for r in records if tags.items() <= r["tags"].items()), None)


def made(
    nets: Mapping[str, nn.Module], files: Mapping[str, Path], ms: Mapping[str, float], test: Batches
) -> pd.DataFrame:
    """The same of networks that were made here: `files` and times `ms` by their names."""
    rows = {
        name: score(*predict(net, test)).row
        | {"size_mb": files[name].stat().st_size / 1e6, "latency_ms": ms[name]}
        for name, net in nets.items()
    }
    return pd.DataFrame(rows).T.assign(kind="this notebook", here=True)


def frontier(table: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The rows that no other beats in both accuracy and `cost`, the cheapest first."""
    known = table.dropna(subset=["accuracy", cost]).sort_values(
        [cost, "accuracy"], ascending=[True, False]
    )
    best = known["accuracy"].cummax()
    return known[known["accuracy"] > best.shift(fill_value=-1)]
