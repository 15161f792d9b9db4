"""Fine-tuning: features, the new head, frozen layers, and the file that other notebooks find."""

from types import SimpleNamespace

import pytest
import torch

import cvlab
from cvlab import store, train
from cvlab.lessons.pretrained import finetune, zoo
from cvlab.train import CheckpointError, predict

LITE = "tf_efficientnet_lite0"
RECIPE = SimpleNamespace(
    model=LITE,
    size=32,
    head_images=40,
    frozen_layers=15,
    epochs=2,
    parts=2,
    batch_size=20,
    lr=1e-3,
    patience=None,
    download="no",
)


@pytest.fixture
def run():
    return cvlab.start("03_pretrained_zoo", "smoke", "synthetic", 0)


@pytest.fixture(scope="module")
def few(drawn):
    return zoo.as_seen_by(zoo.card(LITE), drawn.take(80, 40, 20), 32)


def test_features_are_what_the_head_turns_into_logits(few):
    net = zoo.pretrained(LITE)
    batches = few.batches("val", 20)
    seen, labels = finetune.features(net, batches)
    logits, expected = predict(net, batches)
    assert seen.shape == (40, 1280)
    assert torch.equal(labels, expected)
    with torch.no_grad():
        again = finetune.head_of(net)[1](seen)
    assert (again - logits).abs().max() < 0.1  # one of them in bf16
    assert not finetune.head_of(net)[1]._forward_pre_hooks


def test_a_head_learns_from_features_in_no_time():
    torch.manual_seed(0)
    labels = torch.arange(600) % 3
    seen = torch.randn(600, 8) + 3 * torch.eye(8)[labels]
    head = finetune.fit_head(seen[:500], labels[:500], 3, seed=0)
    assert (head(seen[500:]).argmax(1) == labels[500:]).float().mean() > 0.9


@pytest.mark.parametrize("name", [LITE, "mobilenet_v3_small", "resnet18", "alexnet"])
def test_every_kind_of_network_gets_a_new_head(name):
    net = zoo.build(name, 12)
    finetune.replace_head(net, torch.nn.Linear(finetune.head_of(net)[1].in_features, 4))
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 4)
    assert net.arguments == {"name": name, "classes": 4}


def test_a_network_without_a_linear_head_is_refused():
    with pytest.raises(ValueError, match="no linear layer"):
        finetune.head_of(zoo.build("squeezenet1_1"))


def test_a_rival_head_leaves_the_network_as_it_was(few, run):
    """Fine-tuning goes on from that network: were its head replaced, the race would be another."""
    net = finetune.with_new_head(few, RECIPE, run)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rival = finetune.with_head_for(net, few.batches("train", 20, seed=0), run)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    assert not torch.equal(rival.classifier.weight, net.classifier.weight)
    assert torch.equal(rival.conv_stem.weight, net.conv_stem.weight)


def test_frozen_layers_stay_bit_for_bit_and_the_others_learn(few, run):
    """BatchNorm's running statistics too: they are no parameters, but they would drift."""
    net = finetune.with_new_head(few, RECIPE, run)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    history = finetune.train(net, few, RECIPE, run)
    after = net.state_dict()
    frozen = ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2")
    for name, value in before.items():
        if name.startswith(frozen):
            assert torch.equal(after[name], value), name
    learned = ["blocks.3.0.conv_pw.weight", "blocks.3.0.bn1.running_mean", "classifier.weight"]
    assert not any(torch.equal(after[name], before[name]) for name in learned)
    assert len(history.epoch_rows) == 2
    assert len(history.batch_rows) == 4  # two parts of one pass over 80 images


def test_train_mode_puts_frozen_layers_only_into_eval():
    net = torch.nn.Sequential(
        torch.nn.BatchNorm2d(3), torch.nn.Dropout(), torch.nn.BatchNorm2d(3)
    ).eval()
    net[0].requires_grad_(False)
    train.train_mode(net)
    assert [layer.training for layer in net] == [False, True, True]


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """`get_or_train` with a small recipe and a data folder of its own."""
    monkeypatch.setattr(finetune, "project_root", lambda: tmp_path)
    small = vars(RECIPE) | {"n_train": 80}
    monkeypatch.setattr(finetune, "profiles", lambda: {finetune.NOTEBOOK: {"smoke": small}})
    return tmp_path / "data" / "models"


def test_get_or_train_trains_once_and_then_reads(own_folder, run, monkeypatch, capsys):
    run.load("cifar10")
    first = finetune.get_or_train(run)
    assert "is trained" in capsys.readouterr().out
    assert first.size == 32
    assert first.mean == [0.5, 0.5, 0.5]
    monkeypatch.setattr(finetune, "train", None)  # it must not be called again
    second = finetune.get_or_train(run)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(first.model(images), second.model(images))
    (path,) = own_folder.glob("*.pt")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=path.name):
        finetune.get_or_train(run)


def test_another_seed_recipe_or_data_is_another_file(run):
    files = {finetune.model_file(RECIPE, run)}
    run.seed = 1
    files.add(finetune.model_file(RECIPE, run))
    run.fingerprint = "other images"
    files.add(finetune.model_file(RECIPE, run))
    other = SimpleNamespace(**vars(RECIPE) | {"size": 64})
    files.add(finetune.model_file(other, run))
    assert len(files) == 4


def test_a_fine_tuned_network_comes_back_with_its_input_size(few, run, tmp_path):
    net = finetune.with_new_head(few, RECIPE, run)
    back = store.load(store.save(net, tmp_path / "net.pt", few))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(back.model(images), net(images))
    assert (back.size, back.interpolation) == (32, "bicubic")
    assert back.classes == few.classes
