"""The exercises: solutions pass, usual mistakes are named, an untouched stub disturbs nothing."""

import ast
import re
import textwrap
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from pending import PENDING

from cvlab.exercises import judge
from cvlab.run import start
from cvlab.tools.executed import stored_in

NOTEBOOKS = {
    path.stem: nbformat.read(path, as_version=4)
    for path in sorted((Path(__file__).parent.parent / "notebooks").glob("0[1-689]*.ipynb"))
}
EXERCISES = {  # name -> (notebook, number)
    re.search(r"run\.(?:check|use)\(\s*(\w+)", cell.source)[1]: (name, cell.id[-1])
    for name, notebook in NOTEBOOKS.items()
    for cell in notebook.cells
    if re.fullmatch(r"exercise-\d", cell.id)
}
CLOCK = """from time import perf_counter as now
{}times = []
for _ in range(calls):
    began = now(); call(); times.append(now() - began)
return {}"""
DISTIL = """F = torch.nn.functional
s, t = (F.log_softmax(x / temperature, 1) for x in (logits, teacher))
told = F.kl_div(s, t, reduction="batchmean", log_target=True)
hard = F.cross_entropy(logits, labels)
return {}"""
MUON = """X = gradient / gradient.norm()
for _ in range(steps):
    A = X @ X.T
    X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
return X"""
WHITEN = """values, vectors = torch.linalg.eigh(torch.cov(patches.T))
return {}"""
# Exercise -> (a wrong body of the stub, a part of what its learner must be told).
WRONG = {
    "momentum_step": [
        (
            "velocity = 0.9 * velocity + 0.1 * gradient; return weight - lr * velocity, velocity",
            "10 times too small",
        ),
        ("velocity = 0.9 * velocity + gradient; return weight + lr * velocity, velocity", "uphill"),
        ("return weight - lr * gradient, 0 * velocity", "nothing of the first"),
        ("return weight - lr * gradient", "2 things were expected"),
        ("return weight[0], velocity", "shape [4] was expected, [] came"),
    ],
    "adam_step": [
        (
            "mean = 0.9 * mean + 0.1 * gradient; square = 0.999 * square + 0.001 * gradient**2\n"
            "return weight - lr * mean / (square.sqrt() + eps), mean, square",
            "factor of 3",
        ),
        (
            "mean = 0.9 * mean + 0.1 * gradient; square = 0.999 * square + 0.001 * gradient**2\n"
            "root = (square / (1 - 0.999**step) + eps).sqrt()\n"
            "return weight - lr * mean / (1 - 0.9**step) / root, mean, square",
            "outside of the root",
        ),
    ],
    "fair_rates": [
        (
            "return table.loc[table.groupby('optimizer').score.idxmax()].set_index('optimizer').lr",
            "lucky seed",
        ),
        ("return {'SGD': 0.1}", "those of ['SGD'] came"),
        ("return 0.1", "a dictionary was expected"),
    ],
    "output_size": [
        ("return -(-(size + 2 * padding - kernel) // stride) + 1", "round down, not up"),
        ("return (size + padding - kernel) // stride + 1", "both sides"),
        ("return (size + 2 * padding - kernel) // stride", "+ 1"),
        ("return (size + 2 * padding - kernel) / stride + 1", "whole number"),
        ("return size // stride", "was expected"),
    ],
    "blur_pool": [
        ("return images[:, :, ::2, ::2]", "without a blur"),
        ("return torch.nn.functional.avg_pool2d(images, 2)", "not 1-2-1"),
        ("return images[:, :, ::2]", "shape [2, 3, 4, 4] was expected"),
    ],
    "same_answer": [
        (
            "moved = torch.roll(images, 1, dims=3)\n"
            "return (model(images).argmax(1) != model(moved).argmax(1)).float().mean()",
            "answer changed",
        ),
        (
            "moved = torch.roll(images, 1, dims=2)\n"
            "return (model(images).argmax(1) == model(moved).argmax(1)).float().mean()",
            "down",
        ),
        ("return (model(images) == model(torch.roll(images, 1, 3))).float().mean()", "not logits"),
        (
            "moved = torch.roll(images, 1, dims=3)\n"
            "return (model(images).argmax(1) == model(moved).argmax(1)).float().mean()",
            "by how many pixels",
        ),
    ],
    "interval": [
        ("p = right / n; h = 1.96 * (p * (1 - p) / n) ** 0.5; return p - h, p + h", "certainty"),
        ("return 0.5", "2 things"),
    ],
    "multiplications": [
        ("return conv.weight.numel()", "number of weights"),
        (
            "k = conv.weight[0, 0].numel()\n"
            "return k * conv.in_channels * conv.out_channels * height * width",
            "with groups",
        ),
        ("return 2 * conv.weight.numel() * height * width", "one MAC is both"),
    ],
    "likeliest_group": [
        ("return torch.stack([probabilities[:, g].sum(1) for g in groups]).argmax(0)", "sum"),
        ("return torch.stack([probabilities[:, g].amax(1) for g in groups]).argmax(0)", "maximum"),
        ("return torch.stack([probabilities[:, g].mean(1) for g in groups], 1)", "shape [60]"),
    ],
    "images_needed": [
        ("return int(np.ceil(4 * p * (1 - p) / gap**2))", "both scores"),
        ("return int(np.ceil(2 * p * (1 - p) / gap**2))", "one standard error"),
        ("return 8 * p * (1 - p) / gap**2", "round up"),
    ],
    "survivors": [
        ("return set(sorted(curves, key=lambda name: curves[name][-1])[-2:])", "future"),
        ("return set(sorted(curves, key=lambda name: curves[name][0])[-4:])", "after epoch 2"),
        ("return {'A'}", "['A'] came"),
        ("return 3", "a set of names"),
    ],
    "suggest": [
        (
            "trial.suggest_float('lr', 1e-4, 1)\n"
            "for i in range(trial.suggest_int('layers', 1, 3)): "
            "trial.suggest_int(f'units_{i}', 16, 128)\n"
            "return trial.params",
            "log=True",
        ),
        (
            "trial.suggest_float('lr', 1e-4, 1, log=True); trial.suggest_int('layers', 1, 3)\n"
            "for i in range(3): trial.suggest_int(f'units_{i}', 16, 128)\n"
            "return trial.params",
            "one 'units_i' for each layer",
        ),
        ("return {'lr': trial.suggest_float('lr', 1e-4, 1, log=True)}", "['lr'] came"),
        ("trial.suggest_int('layers', 1, 3); return {}", "return what was suggested"),
        (
            "trial.suggest_float('lr', 1e-3, 1, log=True)\n"
            "for i in range(trial.suggest_int('layers', 1, 3)): "
            "trial.suggest_int(f'units_{i}', 16, 128)\n"
            "return trial.params",
            "between 0.0001 and 1",
        ),
    ],
    "milliseconds": [
        (CLOCK.format("call(); ", "1000 * np.mean(times)"), "spoil a mean"),
        (CLOCK.format("", "1000 * np.median(times)"), "before you start the clock"),
        (CLOCK.format("call(); ", "np.median(times)"), "in seconds"),
        (CLOCK.format("call(); ", "1000 * min(times)"), "luckiest"),
        (CLOCK.format("call(); ", "times"), "one number was expected"),
    ],
    "fold": [
        (
            "conv.weight.data *= (norm.weight / norm.running_var.sqrt()).view(-1, 1, 1, 1)\n"
            "return conv",
            "eps is missing",
        ),
        ("return conv", "the same as before"),
        ("return torch.nn.Sequential(conv, norm)", "Sequential came"),
        (
            "s = norm.weight / (norm.running_var + norm.eps).sqrt()\n"
            "conv.weight.data *= s.view(-1, 1, 1, 1)\n"
            "conv.bias.data = norm.bias - s * norm.running_mean\nreturn conv",
            "the bias, of a convolution with one",
        ),
    ],
    "to_file": [
        (
            "torch.onnx.export(net.eval(), (torch.zeros(1, 3, 8, 8),), file, "
            "external_data=False, verbose=False)\nreturn file",
            "must be dynamic",
        ),
        (
            "torch.onnx.export(net.eval(), (torch.zeros(2, 3, 8, 8),), file, "
            "dynamic_shapes=({0: 'batch'},), verbose=False)\nreturn file",
            "external_data=False",
        ),
        ("return file", "no file was written"),
    ],
    "to_uint8": [
        (
            "return np.round(x / scale + zero_point).astype(np.int64).astype(np.uint8)",
            "clip before",
        ),
        ("return np.round(x / scale) + zero_point", "clip to 0"),
        ("return np.clip(x / scale + zero_point, 0, 255).astype(np.uint8)", "cuts the fraction"),
        ("return np.clip(np.floor(x / scale + 0.5) + zero_point, 0, 255)", "even neighbour"),
        ("return np.clip(np.round(x / scale) + zero_point, 0, 255)", "astype(np.uint8)"),
    ],
    "scale_and_zero_point": [
        ("scale = (high - low) / 255; return scale, round(-low / scale)", "must reach to 0"),
        ("low, high = min(low, 0), max(high, 0); return (high - low) / 256, 0", "255 steps"),
        (
            "low, high = min(low, 0), max(high, 0); scale = (high - low) / 255\n"
            "return scale, -low / scale",
            "must be rounded",
        ),
    ],
    "fake_quantize": [
        ("return torch.clamp(torch.round(x / scale), -128, 127) * scale", "gradient 0 nearly"),
        ("return torch.round(x / scale) * scale", "clip"),
        ("return torch.clamp(torch.round(x / scale), -128, 127)", "by the scale again"),
        (
            "r = torch.clamp(torch.round(x / scale), -128, 127) * scale\n"
            "return x + (r - x).detach()",
            "outside of the ruler",
        ),
        (
            "return torch.clamp(torch.round(x.detach() / scale), -128, 127) * scale",
            "no gradient flows",
        ),
    ],
    "magnitude_mask": [
        ("return weight.abs() < weight.abs().flatten().quantile(sparsity)", "other way round"),
        ("return weight.argsort() * 0 + 1", "it must say False"),
        (
            "o = weight.flatten().argsort()[: round(sparsity * weight.numel())]\n"
            "m = torch.ones(weight.numel()); m[o] = 0\nreturn m.view(weight.shape)",
            "absolute values",
        ),
        (
            "o = weight.abs().flatten().argsort()[: round(sparsity * weight.numel())]\n"
            "m = torch.ones(weight.numel()); m[o] = 0\nreturn weight * m.view(weight.shape)",
            "these are the weights",
        ),
    ],
    "distillation_loss": [
        (DISTIL.format("weight * told + (1 - weight) * hard"), "square of the temperature"),
        (DISTIL.format("weight * hard + (1 - weight) * temperature**2 * told"), "exchanged"),
        (
            DISTIL.replace("batchmean", "mean").format(
                "weight * temperature**2 * told + (1 - weight) * hard"
            ),
            "batchmean",
        ),
        (
            DISTIL.replace("kl_div(s, t", "kl_div(t, s").format(
                "weight * temperature**2 * told + (1 - weight) * hard"
            ),
            "wrong side",
        ),
        (
            DISTIL.format("weight * temperature**2 * told + (1 - weight) * hard").replace(
                "told = ", "told = -(t.exp() * s).sum(1).mean(); ignored = "
            ),
            "the teacher's entropy",
        ),
        (
            DISTIL.format("(weight * temperature**2 * told + (1 - weight) * hard).item()"),
            "no gradient flows",
        ),
    ],
    "share_weights": [
        ("return weight", "different ones came"),
        (
            "step = (weight.max() - weight.min()) / (values - 1)\n"
            "return ((weight - weight.min()) / step).round() * step + weight.min()",
            "Evenly spaced",
        ),
        ("return weight.flatten()", "shape [20, 10, 3, 3] was expected"),
    ],
    "orthogonalise": [
        (MUON.replace(" / gradient.norm()", ""), "divide by the norm first"),
        (MUON.replace("norm()", "norm(dim=1, keepdim=True)"), "was expected at place"),
        (
            MUON.replace("gradient.norm()", "torch.linalg.norm(gradient, 2)"),
            "divided by the largest singular value",
        ),
        ("return gradient", "as it was"),
        (MUON.replace("steps", "steps - 1"), "after 0 steps"),
        (MUON.replace("steps", "5"), "after 5 steps"),
        (
            MUON.replace("-4.7750", "z").replace("2.0315", "-4.7750").replace("z", "2.0315"),
            "exchanged",
        ),
        (MUON.replace("-4.7750", "4.7750"), "b is negative"),
        (MUON.replace("A @ A", "A**2"), "a product of matrices"),
        (
            MUON.replace("for _", "A = X @ X.T\nfor _").replace("    A = X @ X.T\n", ""),
            "anew in each step",
        ),
        (MUON.replace("A = X @ X.T", "A = X.T @ X"), "cannot be multiplied"),
        (
            "U, _, Vh = torch.linalg.svd(gradient, full_matrices=False); return U @ Vh",
            "U V^T itself",
        ),
        (MUON.replace("X = gradient /", "X = gradient.bfloat16() /"), "rounded to bfloat16"),
        (MUON.replace("return X", "return X.float().numpy()"), "a tensor was expected"),
    ],
    "training_operations": [
        ("return 2 * multiplications * images * passes", "forward alone"),
        ("return 3 * multiplications * images * passes", "two operations"),
        ("return 4 * multiplications * images * passes", "twice as much: it makes"),
        ("return multiplications * images * passes", "these are the multiply-accumulates"),
        ("return 6 * multiplications * images", "one pass"),
        ("return 6 * multiplications * passes", "one image"),
        ("return 6e-12 * multiplications * images * passes", "in trillions"),
    ],
    "whitening_filters": [
        (WHITEN.format("vectors / (values + 5e-4).sqrt()"), "stand in columns"),
        (WHITEN.format("vectors.T"), "have length 1"),
        (WHITEN.format("(vectors / (values + 5e-4)).T"), "divide by their roots"),
        (WHITEN.format("(vectors * (values + 5e-4).sqrt()).T"), "multiplied by the roots"),
        (WHITEN.format("vectors.T / (values + 5e-4).sqrt()"), "along the wrong dimension"),
        (WHITEN.format("(vectors / values.sqrt()).T"), "5e-4 is missing"),
        (WHITEN.format("(vectors / (values.sqrt() + 5e-4)).T"), "not beside it"),
        (WHITEN.format("(vectors / (len(patches) * values + 5e-4).sqrt()).T"), "not 1"),
        (
            WHITEN.replace("torch.cov(patches.T)", "patches.T @ patches / len(patches)").format(
                "(vectors / (values + 5e-4).sqrt()).T"
            ),
            "their mean is still in it",
        ),
        (
            WHITEN.replace("patches.T", "patches").format("(vectors / (values + 5e-4).sqrt()).T"),
            "give it patches.T",
        ),
        (
            WHITEN.format("patches @ (vectors / (values + 5e-4).sqrt())"),
            "not their answers to the patches",
        ),
        ("return torch.cov(patches.T)", "that is the covariance"),
        (
            "return torch.diag(1 / (patches.var(0) + 5e-4).sqrt())",
            "still correlate",
        ),
    ],
}


def cells(name):
    """The text and the stub of an exercise."""
    notebook, number = EXERCISES[name]
    by_id = {cell.id: cell for cell in NOTEBOOKS[notebook].cells}
    return by_id[f"exercise-{number}-text"], by_id[f"exercise-{number}"]


def outcome(name, source):
    """What the check says of a function defined by this source, in its notebook's names."""
    names = {"torch": torch, "np": np}
    exec(compile(source, "<answer>", "exec"), names)
    return judge.judge(names[name])


def with_body(name, body):
    """The stub with another body."""
    stub = re.split(r"\n\n\n.*run\.(?:check|use)", cells(name)[1].source)[0]
    return stub.replace("    ...", textwrap.indent(body, "    "))


def test_a_share_that_is_right_by_chance_does_not_pass():
    """With seed 99 as many answers survive a shift by 3 as by 1, to the image."""
    names = {"torch": torch}
    exec(with_body("same_answer", WRONG["same_answer"][-1][0]), names)
    outcome, said = judge.judge(names["same_answer"], seed=99)
    assert (outcome, "by how many pixels" in said) == ("wrong", True)


def test_there_are_three_in_each_of_eight_notebooks_and_each_has_its_check():
    assert [[*NOTEBOOKS].index(notebook) for notebook, _ in EXERCISES.values()] == [
        place for place in range(8) for _ in range(3)
    ]
    assert set(EXERCISES) == set(judge.CHECKS) == set(WRONG)


@pytest.mark.parametrize("name", EXERCISES)
def test_its_text_says_how_hard_and_how_long_and_unfolds_hints_and_a_solution(name):
    text = cells(name)[0].source
    assert re.search(r"^\*(●○○|●●○|●●●) · \d+ minutes( · .+)?\*$", text, re.M)
    folds = re.findall(r"<details><summary>(.*?)</summary>\n\n.+?\n\n</details>", text, re.DOTALL)
    assert "$" not in text.partition("<details>")[2], "VS Code draws no formula inside a fold"
    assert folds[-1] == "Solution"
    assert folds[:-1] == [f"Hint {i}" for i in range(1, len(folds))]
    assert len(folds) >= 3


@pytest.mark.parametrize("name", EXERCISES)
def test_the_published_stub_says_that_it_was_not_attempted(name):
    """In the same words wherever it is executed, so that headless runs pass and compare."""
    said = "".join(o.text for o in cells(name)[1].outputs if o.output_type == "stream")
    if said or EXERCISES[name][0] not in PENDING:  # a new cell of those has said nothing yet
        assert said.startswith(f"○ {name}: {judge.TO_DO}\n")  # `use` tells also whose is used
    stub = re.split(r"\n\n\n.*run\.(?:check|use)", cells(name)[1].source)[0]
    assert outcome(name, stub) == ("not attempted", judge.TO_DO)


@pytest.mark.parametrize("name", EXERCISES)
def test_its_folded_solution_is_right(name):
    solution = re.search(r"```python\n(.+?)```", cells(name)[0].source, re.DOTALL)[1]
    found, said = outcome(name, solution)
    assert found == "solved", said


@pytest.mark.parametrize(("name", "body", "hint"), [(n, *w) for n in WRONG for w in WRONG[n]])
def test_a_usual_mistake_is_named(name, body, hint):
    found, said = outcome(name, with_body(name, body))
    assert found == "wrong"
    assert hint in said


@pytest.mark.parametrize(
    "body",
    [
        WHITEN.format("(vectors / (values + 5e-4).sqrt()).T.flip(0) * -1"),
        WHITEN.format("vectors / (values + 5e-4).sqrt() @ vectors.T"),  # ZCA
        "covariance = torch.cov(patches.T) + 5e-4 * torch.eye(patches.shape[1])\n"
        "return torch.linalg.inv(torch.linalg.cholesky(covariance))",
        "_, S, Vh = torch.linalg.svd(patches - patches.mean(0), full_matrices=False)\n"
        "return Vh / (S**2 / len(patches) + 5e-4).sqrt()[:, None]",
    ],
)
def test_whatever_whitens_is_right(body):
    """Order, signs and rotations of the filters are not asked for."""
    found, said = outcome("whitening_filters", with_body("whitening_filters", body))
    assert found == "solved", said


def test_an_error_in_the_answer_names_its_line():
    def output_size(size, kernel, stride, padding):
        return size / 0

    said = "your code stopped with ZeroDivisionError in `return size / 0`: division by zero"
    assert judge.judge(output_size) == ("wrong", said)


@pytest.mark.parametrize("name", EXERCISES)
def test_what_is_no_answer_is_wrong_and_stops_nothing(name):
    """A learner may return anything."""
    for value in ("'text'", "[]", "object()", "float('nan')", "{}"):
        assert outcome(name, with_body(name, f"return {value}"))[0] == "wrong", value


@pytest.mark.parametrize("name", EXERCISES)
def test_its_name_hides_nothing_that_the_notebook_uses(name):
    """Else a cell that is run again finds the learner's function in place of its own."""
    sources = [c.source for c in NOTEBOOKS[EXERCISES[name][0]].cells if c.cell_type == "code"]
    own = f"{name} = run.use({name},"  # then it is what the later cells shall find
    others = [s for s in sources if f"run.check({name})" not in s and "%pip" not in s]
    others = [] if any(own in s for s in sources) else others
    nodes = [node for source in others for node in ast.walk(ast.parse(source))]
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    imported = {alias.name for n in nodes if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert name not in names | imported


def test_a_check_leaves_random_numbers_as_they_were():
    before = torch.get_rng_state()
    outcome("output_size", with_body("output_size", "torch.manual_seed(5); return 1"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_renamed_answer_is_refused_by_name():
    def other():
        return 1

    with pytest.raises(ValueError, match="no exercise 'other'; keep the stub's name"):
        judge.judge(other)


def test_the_run_prints_and_stores_the_outcome(capsys, monkeypatch):
    stored = []
    monkeypatch.setattr("cvlab.records.store", stored.append)
    run = start("01_optimizers", "smoke")
    capsys.readouterr()

    def output_size(size, kernel, stride, padding):
        return size

    run.check(output_size)
    assert capsys.readouterr().out.startswith("✗ output_size: size 33, kernel 2, stride 2")
    (entry,) = stored
    assert (entry["exercise"], entry["outcome"]) == ("output_size", "wrong")
    assert entry["said"].startswith("size 33, kernel 2, stride 2")


def test_the_published_notebooks_hold_their_outcomes():
    for name, notebook in NOTEBOOKS.items():
        found = [r["exercise"] for r in stored_in(notebook) if "exercise" in r]
        asked = [exercise for exercise, (where, _) in EXERCISES.items() if where == name]
        if name in PENDING:
            found = [exercise for exercise in found if exercise in asked]
            asked = [exercise for exercise in asked if exercise in found]
        assert found == asked
