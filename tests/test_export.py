"""From PyTorch to ONNX: one file, the same answers, wrong input refused, pixels in the graph."""

import subprocess
import sys
import venv
from importlib.metadata import version

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from cvlab import export, metrics, runtime, store
from cvlab.data import load
from cvlab.lessons.engines import deploy
from cvlab.models import PoolingNet, SmallCNN
from cvlab.tools import cli


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = PoolingNet(10, "blur", 16)
    return model, export.to_onnx(model, tmp_path_factory.mktemp("onnx") / "net.onnx")


@pytest.fixture(scope="module")
def drawn():
    return load("cifar10", "synthetic", n_train=200, n_val=50, n_test=50)


@pytest.fixture(scope="module")
def resized(drawn, tmp_path_factory):
    """A network that sees images enlarged to 48 pixels, stored and exported with what it needs."""
    folder = tmp_path_factory.mktemp("resized")
    torch.manual_seed(0)
    stored = store.Stored(
        SmallCNN(10).eval(), drawn.classes, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], 48, "bicubic"
    )
    path = folder / "net.onnx"
    return stored, export.to_onnx(stored.model, path, (3, 48, 48), about=export.about(stored))


def random_images(n, side=32):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(n))


def said(path, images):
    return torch.from_numpy(runtime.Model(path).run(images.numpy()))


# --- export --------------------------------------------------------------------------------------


def test_onnx_runtime_says_the_same_for_any_batch_size(exported):
    model, path = exported
    assert model.training, "the export must put the mode back"
    for n in (1, 2, 7):
        images = random_images(n)
        with torch.inference_mode():
            found = export.parity(model.eval()(images), said(path, images))
        assert found.max_difference < 1e-4
        assert (found.same_answer, found.n) == (1, n)
    model.train()


def test_the_onnx_file_holds_its_weights(exported):
    model, path = exported
    assert [file.name for file in path.parent.iterdir()] == ["net.onnx"]
    assert path.stat().st_size > 4 * sum(p.numel() for p in model.parameters())


def test_parity_sees_a_difference():
    one, other = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    found = export.parity(one, other)
    assert (found.max_difference, found.same_answer) == (3.0, 0.5)
    assert found.mean_difference == 1.0
    with pytest.raises(ValueError, match="shapes"):
        export.parity(one, other[:1])


def test_accuracy_by_class_is_that_of_each_engine():
    labels = torch.tensor([0, 0, 1, 1])
    right, half = torch.eye(2)[labels], torch.eye(2)[[0, 1, 1, 1]]
    table = metrics.by_class({"a": right, "b": half}, labels, ["cat", "dog"])
    assert table["a"].tolist() == [1, 1, 1]
    assert table.loc[["cat", "dog", "all"], "b"].tolist() == [0.5, 1, 0.75]


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_the_file_has_the_opset_that_was_asked_for(opset, tmp_path):
    """The exporter alone leaves 18 in the file when it cannot convert to less, and only logs it."""
    torch.manual_seed(0)
    model, images = SmallCNN(10).eval(), random_images(3)
    path = export.to_onnx(model, tmp_path / "net.onnx", opset=opset)
    assert onnx.load(path).opset_import[0].version == opset
    with torch.inference_mode():
        assert export.parity(model(images), said(path, images)).same_answer == 1


class Branching(nn.Module):
    """Its way depends on what is in the image: no fixed graph can say that."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 10)

    def forward(self, x):
        return self.layer(x.flatten(1)) if x.sum() > 0 else x.flatten(1)[:, :10]


def test_a_model_that_cannot_be_exported_is_one_message(tmp_path, capfd):
    with pytest.raises(
        export.ExportError, match=r"^Branching cannot be exported: \w.*\.$"
    ) as found:
        export.to_onnx(Branching(), tmp_path / "net.onnx")
    assert "\x1b" not in str(found.value)
    assert len("".join(capfd.readouterr()).splitlines()) == 0
    assert list(tmp_path.iterdir()) == []


def test_an_opset_that_does_not_exist_is_one_message(tmp_path):
    with pytest.raises(export.ExportError, match="opset 99"):
        export.to_onnx(SmallCNN(10), tmp_path / "net.onnx", opset=99)
    assert list(tmp_path.iterdir()) == []


# --- sessions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda x: x[0], "batch of one"),
        (lambda x: x.astype("float64"), "astype"),
        (lambda x: x.astype("uint8"), "Normalise"),
        (lambda x: x.transpose(0, 2, 3, 1), "transpose"),
        (lambda x: x[:0], "was given"),
        (lambda x: np.where(x > 1, np.nan, x), "NaN"),
        (lambda x: np.where(x > 1, np.inf, x), "infinite"),
    ],
)
def test_a_wrong_input_is_one_message_that_says_what_to_do(exported, change, advice):
    images = change(random_images(2).numpy())
    with pytest.raises(ValueError, match=advice):
        runtime.Model(exported[1]).run(images)


def test_a_missing_or_damaged_model_is_one_message(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match="Export the model first"):
        runtime.session(tmp_path / "none.onnx")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(exported[1].read_bytes()[:5000])
    with pytest.raises(runtime.ModelError, match=r"damaged\.onnx"):
        runtime.session(damaged)


def test_a_session_has_the_threads_it_was_given(exported):
    for threads in (1, 2):
        options = runtime.session(exported[1], threads=threads).get_session_options()
        assert options.intra_op_num_threads == threads


def test_operators_are_counted_before_and_after_the_rewriting(exported):
    table = runtime.operators(exported[1])
    assert table.loc["Conv", "as exported"] == 6
    assert "BatchNormalization" not in table.index  # folded by the exporter
    assert table["extended"].sum() < table["as exported"].sum()
    assert table.loc["Relu", "extended"] < table.loc["Relu", "as exported"]  # fused into Conv


def test_predict_keeps_the_order_of_the_images(resized, drawn):
    stored, path = resized
    batches = stored.view(drawn).batches("test", 16)
    logits, labels = runtime.Model(path).predict(batches)
    assert torch.equal(labels, drawn.test.labels)
    with torch.inference_mode():
        own = torch.cat([stored.model(images) for images, _ in batches.epoch()])
    assert export.parity(own, logits).max_difference < 1e-4


# --- without PyTorch -----------------------------------------------------------------------------


def test_pixels_in_the_graph_are_treated_as_batches_treat_them(resized, drawn, tmp_path):
    stored, path = resized
    logits, _ = runtime.Model(path).predict(stored.view(drawn).batches("test", 50))
    model = deploy.with_pixels(path, tmp_path / "model.onnx")
    pixels = drawn.test.images.permute(0, 2, 3, 1).contiguous().numpy()
    found = torch.from_numpy(runtime.Model(model).run(pixels))
    assert torch.allclose(found, logits.softmax(1), atol=1e-5)


def test_a_model_that_does_not_say_its_preprocessing_is_refused(exported, tmp_path):
    with pytest.raises(export.ExportError, match="classes, interpolation, mean"):
        deploy.with_pixels(exported[1], tmp_path / "model.onnx")


@pytest.fixture(scope="module")
def folder(resized, drawn, tmp_path_factory):
    folder = deploy.package(resized[1], tmp_path_factory.mktemp("deployed") / "classifier")
    for i in range(2):
        pixels = drawn.test.images[i].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_the_folder_works_where_only_three_packages_are(folder, tmp_path):
    """A fresh environment with onnxruntime, NumPy and Pillow and nothing else of ours."""
    wanted = ["onnxruntime", "numpy", "pillow"]
    pins = [f"{name}=={version(name)}" for name in wanted]
    venv.create(tmp_path / "env")
    python = next(tmp_path.glob("env/[bS]*/python*"))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    install += ["--no-compile", *pins]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no package index can be reached: {done.stderr.strip()[-200:]}")
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode != 0
    command = [python, "predict.py", "0.png", "1.png"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    answers = deploy.classify(folder / "model.onnx", [folder / "0.png", folder / "1.png"])
    best = zip(answers.idxmax(axis=1), answers.max(axis=1), strict=True)
    expected = [f"{i}.png: {name}, {share:.1%}" for i, (name, share) in enumerate(best)]
    assert done.stdout.splitlines() == expected, done.stderr


def test_the_command_line_classifies_and_says_what_is_wrong(folder, resized, capsys):
    picture = str(folder / "0.png")
    assert cli.main(["predict", str(folder / "model.onnx"), picture, picture]) == 0  # named twice
    best = deploy.classify(folder / "model.onnx", [picture]).iloc[0].idxmax()
    assert f"0.png: {best}" in capsys.readouterr().out
    wrong = {
        (str(resized[1]), picture): "takes pixels",
        (str(folder / "labels.txt"), picture): "cannot load",
        (str(folder / "model.onnx"), str(folder / "labels.txt")): "labels.txt is no picture",
        (str(folder / "model.onnx"), str(folder / "none.png")): "none.png cannot be read",
        (str(folder / "none.onnx"), picture): "no model file",
    }
    for arguments, message in wrong.items():
        assert cli.main(["predict", *arguments]) == 2
        assert message in capsys.readouterr().err
