"""The second opinion: only where OpenVINO and NNCF are installed."""

import pytest
import torch

from cvlab import export, runtime
from cvlab.lessons.int8 import openvino_int8, quantize
from cvlab.models import SmallCNN

pytestmark = pytest.mark.skipif(not openvino_int8.available(), reason="an optional extra")


def test_the_table_names_the_precision_that_ran(tmp_path):
    torch.manual_seed(0)
    path = export.to_onnx(SmallCNN(10).eval(), tmp_path / "net.onnx")
    images = torch.randn(64, 3, 32, 32)
    model = runtime.Model(path)
    ours = quantize.Source(model, images, tmp_path).make(quantize.Recipe())
    nncf = openvino_int8.nncf_int8(path, images.numpy(), tmp_path / "net.xml")
    some = [*zip(images.split(25), (torch.arange(64) % 10).split(25), strict=True)]
    kept = openvino_int8.nncf_int8(path, images.numpy(), tmp_path / "kept.xml", some, 100)
    files = {"our int8": ours.path, "NNCF int8": nncf, "kept": kept}
    table = openvino_int8.table(model, files, some, 1, rounds=6)
    assert table["precision"].tolist()[:2] == ["fp32", "f32"]
    assert set(table["precision"].iloc[3:]) <= {"i8", "u8"}
    assert table.loc["OpenVINO our int8", "agreement"] > 0.9
    assert table.loc["OpenVINO f32", "agreement"] == 1
    assert (table["throughput"] > 0).all()
    assert table.loc["OpenVINO NNCF int8", "size_mb"] < 0.4 * table.loc["ONNX Runtime", "size_mb"]
