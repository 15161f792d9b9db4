"""Training with rounding: what is simulated is what ONNX Runtime will do, and it can be undone."""

import pytest
import torch
from torch import nn

from cvlab import export, runtime
from cvlab.data import load
from cvlab.lessons.int8 import ladder, qat, quantize
from cvlab.lessons.int8.qat import replace_layers
from cvlab.models import SmallCNN
from cvlab.train import Training, fit, predict


@pytest.fixture(scope="module")
def data():
    return load("cifar10", "synthetic", n_train=640, n_val=200)


@pytest.fixture(scope="module")
def net(data):
    torch.manual_seed(0)
    model = SmallCNN(10)
    replace_layers(model, nn.ReLU, nn.SiLU)
    fit(model, data, Training(epochs=2, lr=0.03, batch_size=64))
    return model.eval()


@pytest.fixture(scope="module")
def some(data):
    return [x.contiguous() for x, _ in data.batches(data.train, 64).epoch()][:4]


def test_folding_changes_no_answer_and_leaves_no_normalisation(net, some):
    folded = export.fold(net, some[0])
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules()), "the network itself is kept"
    with torch.inference_mode():
        assert torch.allclose(folded(some[0]), net(some[0]), atol=1e-4)


def test_a_network_that_calls_its_layers_otherwise_is_refused(some):
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10)

        def forward(self, x):
            return self.norm(self.conv(x).abs()).mean((2, 3))

    torch.manual_seed(0)
    model = Between().train()
    model(some[0])
    with pytest.raises(ValueError, match="Folding batch normalisation changed"):
        qat.prepare(model.eval(), some)


def test_weights_and_activations_have_few_levels(net, some):
    rounded = qat.prepare(net, some)
    layer = next(m for m in rounded.modules() if isinstance(m, qat.Rounded))
    weight, before = layer._weight()["weight"], layer.layer.weight
    assert all(len(channel.unique()) <= 255 for channel in weight)
    steps = before.abs().flatten(1).amax(1) / 127
    assert ((weight - before).abs() <= steps.reshape(-1, 1, 1, 1) / 2 + 1e-6).all()
    with torch.inference_mode():
        out = layer(torch.randn(8, 3, 32, 32))
    assert len(out.unique()) <= 256
    assert out.min() >= layer.low - 1e-3
    assert out.max() <= layer.high + 1e-3


def test_gradients_pass_the_rounding(net, some):
    rounded = qat.prepare(net, some).train()
    nn.functional.cross_entropy(rounded(some[0]), torch.arange(64) % 10).backward()
    still = [n for n, p in rounded.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_what_was_simulated_is_what_onnx_runtime_does(net, data, some, tmp_path):
    """The INT8 file is nearer to the rounded network than to the float one."""
    rounded = qat.prepare(net, some)
    fit(rounded, data, Training(epochs=1, lr=0.003, batch_size=64))
    plain = qat.finish(rounded)
    path = export.to_onnx(plain, tmp_path / "net.onnx")
    source = quantize.Source(runtime.Model(path), torch.cat(some), tmp_path)
    int8, labels = source.make(quantize.Recipe()).predict(data.batches("val", 100))
    simulated, _ = predict(rounded.eval(), data.batches("val", 100), precision="fp32")
    row = ladder.compared(simulated, int8, labels)
    assert row["agreement"] > 0.9
    assert row["kl"] < 0.02


def test_relu_costs_no_operator_of_its_own(data, some, tmp_path):
    torch.manual_seed(0)
    net = qat.finish(qat.prepare(SmallCNN(10).eval(), some))
    torch.export.export(net, (some[0],), strict=False)  # if not, to_onnx takes twice as long
    path = export.to_onnx(net, tmp_path / "net.onnx")
    kinds = runtime.operators(path).index
    assert "Clip" in kinds
    assert "Relu" not in kinds
    source = quantize.Source(runtime.Model(path), torch.cat(some), tmp_path)
    made = source.make(quantize.Recipe())
    assert "Clip" not in runtime.operators(made.path).index, "the quantiser has removed it"
