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

LITE0 = {"network": "tf_efficientnet_lite0"}
FLOAT = {"method": "fp32"}
CHOSEN = {"method": "chosen", "part": "test"}
COLUMNS = ("accuracy", "size_mb", "latency_ms")

Where = tuple[str, str, Mapping]  # of a record: notebook, name, tags that it has


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
    found, rows = published(), {}

    def get(where: Where) -> dict:
        notebook, name, tags = where
        records = found.get(notebook, [])
        fits = [r for r in records if r["name"] == name and tags.items() <= r["tags"].items()]
        return fits[0] if fits else {"value": float("nan"), "device": None}

    lite0 = ("03_pretrained_zoo", "test_accuracy", LITE0)
    ms = ("06_int8", "latency_ms", FLOAT)
    rows["Lite0, fp32"] = [get(one) for one in (lite0, ("06_int8", "size_mb", FLOAT), ms)]
    ratio = get(("06_int8", "size_ratio", {}))["value"]
    size = {"value": rows["Lite0, fp32"][1]["value"] / ratio}
    rows["Lite0, INT8"] = [get(("06_int8", "accuracy", CHOSEN)), size, get(("", "", {}))]
    for stage in ("PyTorch", "ONNX Runtime", "INT8"):
        tags = {"stage": stage}
        rows[f"capstone, {stage}"] = [get(("07_capstone", name, tags)) for name in COLUMNS]
    for record in found.get("03_pretrained_zoo", []):
        if record["name"] == "parameters" and record["tags"] != LITE0:
            name = record["tags"]["network"]
            time = get(("03_pretrained_zoo", "latency_ms", record["tags"]))
            rows[name] = [get(("", "", {})), {"value": 4e-6 * record["value"]}, time]
    here = {name: one[2].get("device") == hardware().name for name, one in rows.items()}
    values = {name: [part["value"] for part in one] for name, one in rows.items()}
    table = pd.DataFrame.from_dict(values, "index", columns=[*COLUMNS]).dropna(subset=["size_mb"])
    stated = capstone.reports().dropna(subset=["size_mb"])[["accuracy", "size_mb"]]
    stated.index = [f"{name} (stated)" for name in stated.index]
    table = pd.concat([table.assign(kind="earlier notebooks"), stated.assign(kind="reports")])
    return table.assign(here=[here.get(name, False) for name in table.index])


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
