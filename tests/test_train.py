"""Training: exact resume, early stopping, clear errors, honest intervals."""

import subprocess
import sys
import time
from dataclasses import fields

import pytest
import torch
from torch import nn

from cvlab.metrics import Score
from cvlab.models import LeNet, SmallCNN
from cvlab.train import (
    OPTIMIZERS,
    CheckpointError,
    Training,
    TrainingDiverged,
    autocast,
    evaluate,
    fit,
    one_cycle,
)


@pytest.fixture(autouse=True)
def one_thread():
    """For networks this small a second thread costs more than it does; conftest puts it back."""
    torch.set_num_threads(1)


class Dropping(nn.Module):
    """LeNet with dropout: it depends on torch's random state, which a resume must restore."""

    def __init__(self):
        super().__init__()
        self.net, self.drop = LeNet(), nn.Dropout(0.2)

    def forward(self, images):
        return self.net(self.drop(images))


def how(**options):
    return Training(**{"epochs": 4, "optimizer": "Adam", "lr": 0.002, "batch_size": 50} | options)


def train(drawn, model=None, checkpoint=None, watch=None, **options):
    torch.manual_seed(0)
    model = model or Dropping()
    training = how(**options)
    return model, fit(model, drawn, training, checkpoint=checkpoint, watch=watch, what=None)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.state_dict().values()])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
def test_resume_ends_with_the_same_weights(drawn, tmp_path, name, schedule):
    options = {"optimizer": name, "lr": 0.003, "schedule": schedule}
    drawn = drawn.take(200, 100, 10)
    whole, history = train(drawn, **options)

    class Stop(Exception):
        pass

    def stop(history, optimizer):
        if len(history.epoch_rows) == 2:
            raise Stop

    file = tmp_path / "run.pt"
    with pytest.raises(Stop):
        train(drawn, checkpoint=file, watch=stop, **options)
    torch.manual_seed(99)  # a new process would be in any state
    resumed = Dropping()
    later = fit(resumed, drawn, how(**options), checkpoint=file, what=None)
    assert torch.equal(weights(whole), weights(resumed))
    assert later.batches["loss"].tolist() == history.batches["loss"].tolist()
    assert later.epochs["epoch"].tolist() == [1, 2, 3, 4]


SCRIPT = """
import sys, time
from pathlib import Path
from cvlab import data
from cvlab.models import LeNet
from cvlab.train import Training, fit
import torch
drawn = data.load("cifar10", "synthetic", n_train=500, n_val=100, n_test=100)
torch.manual_seed(0)
model, slow = LeNet(), (lambda *_: time.sleep(0.3)) if sys.argv[2] == "slow" else None
training = Training(epochs=6, optimizer="Nesterov", lr=0.01, batch_size=50)
fit(model, drawn, training, checkpoint=Path(sys.argv[1]), watch=slow, what=None)
torch.save(model.state_dict(), sys.argv[1] + ".weights")
"""


def test_a_killed_process_is_resumed_to_the_same_weights(tmp_path):
    """Kill -9 in mid-training, then the same command again."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    command = [sys.executable, "-c", SCRIPT]
    subprocess.run([*command, str(once), "fast"], check=True)
    victim = subprocess.Popen([*command, str(twice), "slow"])
    until = time.monotonic() + 60
    while not twice.exists() and time.monotonic() < until:
        time.sleep(0.02)
    victim.kill()
    victim.wait()
    done = len(torch.load(twice)["history"]["epoch_rows"])
    assert 1 <= done < 6
    subprocess.run([*command, str(twice), "fast"], check=True)
    first, second = (torch.load(f"{path}.weights") for path in (once, twice))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("damage", ["cut", "other model", "other file"])
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_cure(drawn, tmp_path, damage):
    """Going on with half a file or another run's weights would give a silent wrong number."""
    file = tmp_path / "run.pt"
    train(drawn, checkpoint=file, epochs=1)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    if damage == "other file":
        torch.save(Dropping().state_dict(), file)
    model = SmallCNN() if damage == "other model" else None
    with pytest.raises(CheckpointError, match=r"run\.pt.*Delete it"):
        train(drawn, model, checkpoint=file, epochs=1)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"lr": 0.5}, r"lr=0\.002, not 0\.5\."),
        ({"epochs": 2, "patience": 1}, r"epochs=1, not 2; patience=None, not 1\."),
        ({"batch_size": 25, "parts": 2, "seed": 3}, r"batch_size=50, not 25; parts=1, not 2; seed"),
        (
            {"augment": False, "label_smoothing": 0.1},
            r"label_smoothing=0\.0, not 0\.1; augment=True",
        ),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_with_the_differences(
    drawn, tmp_path, other, said
):
    file = tmp_path / "run.pt"
    train(drawn, checkpoint=file, epochs=1)
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match=rf"run\.pt.*written with {said}.*Delete it"):
        train(drawn, checkpoint=file, **{"epochs": 1} | other)
    assert file.read_bytes() == before


def test_a_checkpoint_knows_the_precision_that_auto_meant(drawn, tmp_path, monkeypatch):
    """On a machine without bf16, "auto" is another training."""
    file = tmp_path / "run.pt"
    train(drawn, checkpoint=file, epochs=1, precision="bf16")
    monkeypatch.setattr("cvlab.train.choose_precision", lambda device, asked: "fp32")
    with pytest.raises(CheckpointError, match="precision='bf16', not 'fp32'"):
        train(drawn, checkpoint=file, epochs=1, precision="auto")


def test_early_stopping_restores_the_best_epoch(drawn):
    """The rate is absurd, so late epochs are worse; the weights must be those of the best."""
    model, history = train(drawn, LeNet(), epochs=12, lr=0.02, patience=2)
    accuracy = history.epochs["val_accuracy"]
    assert history.best_epoch == accuracy.idxmax() + 1
    score = evaluate(model, drawn.batches("val", 100))
    assert score.accuracy == pytest.approx(accuracy.max())
    assert history.stopped_early == (len(accuracy) - history.best_epoch >= 2)


def test_patience_counts_epochs_without_improvement(drawn):
    def spoil(history, optimizer):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.data.zero_()

    _, history = train(drawn, epochs=20, lr=1e-6, patience=3, watch=spoil)
    assert history.stopped_early
    assert len(history.epochs) == history.best_epoch + 3


def test_divergence_names_step_and_rate_and_keeps_the_history(drawn):
    with pytest.raises(TrainingDiverged, match=r"step \d+ .*learning rate 1e\+06") as error:
        train(drawn, LeNet(), optimizer="SGD", lr=1e6, precision="fp32")
    losses = error.value.history.batches["loss"]
    assert torch.isfinite(torch.tensor(losses.iloc[:-1].tolist())).all()
    assert not torch.isfinite(torch.tensor(losses.iloc[-1]))


def test_history_holds_every_batch_and_epoch(drawn):
    _, history = train(drawn, epochs=2, schedule="one-cycle")
    assert history.batches["step"].tolist() == list(range(20))
    assert history.batches["lr"].max() == pytest.approx(0.002)
    means = history.batches.groupby("epoch")["loss"].mean()
    assert history.epochs["train_loss"].tolist() == pytest.approx(means.tolist())
    assert history.seconds > 0


def test_one_cycle_climbs_for_a_quarter_then_falls_to_zero():
    rates = [one_cycle(step, 100) for step in range(101)]
    assert rates.index(max(rates)) == 25
    assert max(rates) == 1
    assert rates[0] == pytest.approx(0.04)
    assert rates[100] == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_small_cnn_learns_in_every_precision(drawn, precision):
    _, history = train(
        drawn, SmallCNN(), epochs=4, optimizer="Nesterov", lr=0.05, precision=precision
    )
    assert history.epochs["train_loss"].iloc[-1] < history.epochs["train_loss"].iloc[0] - 0.3


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ({"optimizer": "adam"}, "'Adam'"),
        ({"schedule": "cosine"}, "one-cycle"),
        ({"precision": "int8"}, "bf16"),
        ({"lr": -1.0}, "positive"),
        ({"lr": float("nan")}, "positive"),
        ({"epochs": 0}, "at least 1"),
        ({"patience": 0}, "at least 1"),
    ],
)
def test_wrong_options_are_answered_with_the_choices(option, hint):
    with pytest.raises(ValueError, match=hint):
        Training(**option)


OTHERS = {"optimizer": "SGD", "lr": 0.01, "weight_decay": 0.5, "schedule": "one-cycle"}
OTHERS |= {"label_smoothing": 0.1, "precision": "bf16", "epochs": 3, "patience": 1}
OTHERS |= {"batch_size": 25, "augment": False, "parts": 2, "seed": 1}


@pytest.mark.parametrize("name", [field.name for field in fields(Training)])
def test_every_setting_of_a_training_changes_it(drawn, name):
    """One that `fit` forgets to pass on would change nothing, and nobody would see it."""
    options = {"epochs": 2, "precision": "fp32"}
    if name == "patience":
        options |= {"epochs": 12, "lr": 0.02}
    few = drawn.take(200, 100, 10)
    plain, other = (
        train(few, LeNet(), **one)[1] for one in (options, options | {name: OTHERS[name]})
    )
    assert plain.batches["loss"].tolist() != other.batches["loss"].tolist()


def test_evaluate_counts_every_image_and_puts_the_mode_back(drawn):
    model = SmallCNN().train()
    score = evaluate(model, drawn.batches("test", 64), precision="fp32")
    assert model.training
    with torch.inference_mode():
        images = torch.cat([x for x, _ in drawn.batches("test", 200).epoch()])
        right = (model.eval()(images).argmax(1) == drawn.test.labels).sum().item()
    assert (score.correct, score.n) == (right, 200)


def test_the_interval_is_wilsons():
    """Against the values of statsmodels.proportion_confint(method="wilson")."""
    assert Score(0, 881, 1000).interval == pytest.approx((0.8594, 0.8997), abs=1e-4)
    low, high = Score(0, 10, 10).interval
    assert (low, high) == (pytest.approx(0.7225, abs=1e-4), pytest.approx(1.0))


def test_a_budget_says_what_each_contestant_gets(drawn):
    line = how(epochs=3, parts=2, augment=False).budget(drawn, "its own", 2)
    assert f"{len(drawn.train):,} images of 32 px, as they are" in line
    assert "passes: 1.5, 50 a batch; rate its own; seeds: 2" in line
    assert line.endswith(f"judged on the same {len(drawn.val)} validation images.")
    assert how().budget(drawn, "any", 1, "by their loss").endswith("; judged by their loss.")


def test_depthwise_convolutions_train_in_float_under_bf16():
    """Their gradients in bf16 take many times as long: a silent loss of most of the speed."""
    images, cpu = torch.randn(2, 4, 8, 8), torch.device("cpu")
    depthwise, dense = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3)
    with autocast(cpu, "bf16"):
        outputs = [layer(images) for layer in (depthwise, dense)]
    with torch.inference_mode(), autocast(cpu, "bf16"):
        answered = depthwise(images)
    assert {output.dtype for output in (*outputs, answered)} == {torch.bfloat16}
    exact, rounded = (layer(images).bfloat16() for layer in (depthwise, dense))
    assert torch.equal(outputs[0], exact)  # the inputs were not rounded first
    assert not torch.equal(outputs[1], rounded)
    assert not torch.equal(answered, exact)
    outputs[0].sum().backward()
    assert depthwise.weight.grad.dtype == torch.float32
