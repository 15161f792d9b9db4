"""The checks of the notebooks' exercises: references, usual mistakes, and what to say.

Each takes the learner's function and returns what to say when it is right; see `cvlab.exercises`.
"""

import copy
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from cvlab import models
from cvlab.exercises.answers import Wrong, ask, expect

# --- 01_optimizers -------------------------------------------------------------------------------


def momentum_step(answer: Callable) -> str:
    """Five steps beside `torch.optim.SGD(momentum=0.9)`."""
    start, gradients = _weight_and_gradients()
    theirs = _torch_steps(torch.optim.SGD, start, gradients, lr=0.1, momentum=0.9)
    weight, velocity = start.clone(), torch.zeros(4)
    wrong_first = {
        "the first step is 10 times too small: torch adds the gradient as it is, not (1 - "
        "momentum) times the gradient.": start - 0.01 * gradients[0],
        "you walk uphill: the velocity must be subtracted.": start + 0.1 * gradients[0],
    }
    plain = theirs[0] - 0.1 * gradients[1]
    wrong_later = {"the second step knows nothing of the first: return the velocity too.": plain}
    for step, gradient in enumerate(gradients):
        got = _several(ask(answer, weight, gradient.clone(), velocity, 0.1, 0.9), 2)
        hints = wrong_later if step else wrong_first
        expect(got[0], theirs[step], f"the weight after step {step + 1}", hints)
        weight, velocity = (torch.as_tensor(one).detach().clone() for one in got)
    return "five steps are those of torch.optim.SGD."


def adam_step(answer: Callable) -> str:
    """Five steps beside `torch.optim.Adam`; one gradient is as small as eps matters."""
    start, gradients = _weight_and_gradients()
    theirs = _torch_steps(torch.optim.Adam, start, gradients, lr=0.01)
    weight, mean, square = start.clone(), torch.zeros(4), torch.zeros(4)
    g = gradients[0]
    hints = {
        "too large by a factor of 3: divide mean by 1 - beta1 ** step and square by 1 - beta2 ** "
        "step.": start - 0.01 * 0.1 * g / ((0.001 * g**2).sqrt() + 1e-8),
        "only the mean is corrected: divide square by 1 - beta2 ** step too.": start
        - 0.01 * g / ((0.001 * g**2).sqrt() + 1e-8),
        "eps belongs outside of the root.": start - 0.01 * g / (g**2 + 1e-8).sqrt(),
        "you walk uphill: the step must be subtracted.": start + 0.01 * g / (g.abs() + 1e-8),
    }
    for step, gradient in enumerate(gradients, start=1):
        got = _several(ask(answer, weight, gradient.clone(), mean, square, step, 0.01), 3)
        expect(got[0], theirs[step - 1], f"the weight after step {step}", hints, 1e-4)
        weight, mean, square = (torch.as_tensor(one).detach().clone() for one in got)
    return "five steps are those of torch.optim.Adam."


def fair_rates(answer: Callable) -> str:
    """A table in which one lucky seed looks best."""
    scores = {("SGD", 0.1): (0.5, 0.52, 0.51), ("SGD", 1.0): (0.7, 0.1, 0.1)}
    scores |= {("Adam", 0.001): (0.55, 0.56, 0.54), ("Adam", 0.01): (0.5, 0.5, 0.58)}
    rows = [(*key, seed, s) for key, seeds in scores.items() for seed, s in enumerate(seeds)]
    table = pd.DataFrame(rows, columns=["optimizer", "lr", "seed", "score"])
    try:
        got = dict(ask(answer, table.copy()))
    except (TypeError, ValueError) as error:
        raise Wrong("a dictionary was expected, from each optimizer's name to its rate.") from error
    if set(got) != {"SGD", "Adam"}:
        raise Wrong(f"the rates of SGD and Adam were expected, those of {[*got]} came.")
    lucky = "1.0 has the best single score, 0.7, by one lucky seed: compare means over seeds."
    expect(got["SGD"], 0.1, "SGD's rate", {lucky: 1.0})
    expect(got["Adam"], 0.001, "Adam's rate", {"0.01 is best with the last seed alone.": 0.01})
    return "one lucky seed does not fool you."


def _weight_and_gradients() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    gradients = torch.randn(5, 4)
    gradients[:, 3] *= 1e-6
    return torch.randn(4), gradients


def _torch_steps(optimizer, start, gradients, **options) -> list[torch.Tensor]:
    """The weight after each step of one of torch's optimizers."""
    weight = start.clone().requires_grad_()
    theirs, path = optimizer([weight], **options), []
    for gradient in gradients:
        weight.grad = gradient.clone()
        theirs.step()
        path.append(weight.detach().clone())
    return path


def _several(result, count: int) -> tuple:
    if not isinstance(result, tuple | list) or len(result) != count:
        raise Wrong(f"{count} things were expected, as in the stub's docstring.")
    return tuple(result)


# --- 02_pooling ----------------------------------------------------------------------------------


def output_size(answer: Callable) -> str:
    """Beside what `torch.nn.functional.conv2d` makes of an image of that size."""
    for size, kernel, stride, padding in (
        (33, 2, 2, 0),
        (32, 3, 1, 1),
        (32, 3, 2, 1),
        (32, 5, 2, 0),
        (31, 3, 2, 1),
        (32, 7, 3, 2),
    ):
        image, weight = torch.zeros(1, 1, size, size), torch.zeros(1, 1, kernel, kernel)
        right = F.conv2d(image, weight, stride=stride, padding=padding).shape[-1]
        room = size + 2 * padding - kernel
        hints = {
            "a window that does not fit is left out: round down, not up.": -(-room // stride) + 1,
            "there is padding on both sides.": (size + padding - kernel) // stride + 1,
            "the first position counts too: + 1.": room // stride,
            "a whole number was expected: round down.": room / stride + 1,
        }
        given = f"size {size}, kernel {kernel}, stride {stride}, padding {padding}"
        expect(ask(answer, size, kernel, stride, padding), right, given, hints)
    return "six sizes are those of torch's convolution."


def blur_pool(answer: Callable) -> str:
    """Beside `cvlab.models.BlurPool`."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 8, 8)
    right = models.BlurPool()(images)
    hints = {
        "that is every second pixel without a blur.": images[:, :, ::2, ::2],
        "that is the mean of 2 x 2, not 1-2-1.": F.avg_pool2d(images, 2),
        "the weights must sum to 1: divide by 16, 4 for each direction.": 16 * right,
        "divide by 4 for each direction, not once.": 4 * right,
    }
    expect(ask(answer, images.clone()), right, "two random images", hints)
    return "the same as cvlab's BlurPool."


def same_answer(answer: Callable) -> str:
    """A random linear network, whose answers change often, on random images."""
    torch.manual_seed(0)
    images = torch.rand(400, 3, 8, 8)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
    with torch.no_grad():
        still = net(images).argmax(1)
        moved = {
            key: (net(torch.roll(images, *key)).argmax(1) == still).double().mean()
            for key in ((1, 3), (1, 2), (-1, 3))
        }
    hints = {
        "that is the share whose answer changed.": 1 - moved[1, 3],
        "you moved the images down: the width is the last dimension.": moved[1, 2],
        "you moved the images to the left.": moved[-1, 3],
        "compare classes, not logits: these always change a little.": 0.0,
    }
    expect(ask(answer, net, images.clone()), moved[1, 3], "400 random images", hints)
    return f"of 400 images {moved[1, 3]:.0%} keep their answer, as they should."


# --- 03_pretrained_zoo ---------------------------------------------------------------------------


def interval(answer: Callable) -> str:
    """Beside SciPy's Wilson interval."""
    from scipy.stats import binomtest

    for right, n in ((40, 50), (50, 50), (0, 20), (9165, 10_000)):
        theirs = binomtest(right, n).proportion_ci(0.95, method="wilson")
        p, given = right / n, f"{right} of {n}"
        half = 1.96 * math.sqrt(p * (1 - p) / n)
        hints = {
            "that is p ± 1.96 standard errors, which calls all of 50 a certainty. Wilson's formula "
            "does not.": (p - half, p + half),
            "in percent; shares were expected, from 0 to 1.": (100 * theirs[0], 100 * theirs[1]),
        }
        got = _several(ask(answer, right, n), 2)
        expect(got, (theirs.low, theirs.high), given, hints, tolerance=1e-4)
    return "four intervals are SciPy's. 50 of 50 right prove 93 %, not 100 %."


def multiplications(answer: Callable) -> str:
    """Beside PyTorch's own counter of operations."""
    from torch.utils.flop_counter import FlopCounterMode

    for options in (
        {"in_channels": 3, "out_channels": 16, "kernel_size": 3, "padding": 1},
        {"in_channels": 64, "out_channels": 128, "kernel_size": 1},
        {"in_channels": 32, "out_channels": 32, "kernel_size": 3, "groups": 32, "padding": 1},
        {"in_channels": 8, "out_channels": 12, "kernel_size": (3, 5), "groups": 4},
    ):
        conv = nn.Conv2d(**options)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            height, width = conv(torch.zeros(1, conv.in_channels, 16, 16)).shape[2:]
        right, weights = counter.get_total_flops() // 2, conv.weight.numel()
        hints = {
            "that is the number of weights: each is used at every position of the output.": weights,
            "with groups an output channel sees in_channels / groups channels only.": right
            * conv.groups,
            "that counts multiplications and additions apart; one MAC is both.": 2 * right,
        }
        got = ask(answer, conv, height, width)
        expect(got, right, f"{conv} with an output of {height} x {width}", hints)
    return "four convolutions cost what PyTorch's own counter says."


def likeliest_group(answer: Callable) -> str:
    """Random probabilities and unequal groups, by each of three rules."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(60, 40)
    members = {"bird": torch.arange(20), "dog": torch.arange(20, 24), "horse": torch.tensor([30])}
    groups = [logits.softmax(1)[:, index] for index in members.values()]
    scores = {
        "sum": [shares.sum(1) for shares in groups],
        "mean": [shares.mean(1) for shares in groups],
        "max": [shares.amax(1) for shares in groups],
    }
    rules = {rule: torch.stack(columns, 1).argmax(1) for rule, columns in scores.items()}
    hints = {
        "that is the rule of the sum, which large groups win.": rules["sum"],
        "that is the rule of the maximum.": rules["max"],
    }
    got = ask(answer, logits.softmax(1), list(members.values()))
    expect(got, rules["mean"], "60 images, groups of 20, 4 and 1", hints)
    return "60 answers are right, and no large group wins by its size."


# --- 04_optuna -----------------------------------------------------------------------------------


def images_needed(answer: Callable) -> str:
    """Computed: 4 times the variance of a difference, over the gap squared."""
    for p, gap in ((0.5, 0.03), (0.8, 0.012), (0.9, 0.07)):
        exact = 8 * p * (1 - p) / gap**2
        both = "both scores have an error: the variance of a difference is the sum of both."
        hints = {
            both: math.ceil(exact / 2),
            "that makes the gap one standard error; two were asked for.": math.ceil(exact / 4),
            "a whole number was expected: round up.": exact,
        }
        got = ask(answer, p, gap)
        expect(got, math.ceil(exact), f"p = {p}, gap = {gap}", hints, tolerance=1e-9)
    return "right: to tell 50 from 53 % takes 2,223 images, not 32."


def survivors(answer: Callable) -> str:
    """Eight curves, of which one would have won if it had not been given up."""
    curves = {
        "A": [0.40, 0.45, 0.50, 0.52],
        "B": [0.38, 0.50, 0.55, 0.58],
        "C": [0.36, 0.39, 0.41, 0.42],
        "D": [0.35, 0.37, 0.38, 0.39],
        "late": [0.10, 0.48, 0.60, 0.70],
        "E": [0.30, 0.31, 0.32, 0.33],
        "F": [0.20, 0.47, 0.40, 0.41],
        "G": [0.15, 0.20, 0.25, 0.30],
    }
    got = ask(answer, {name: list(curve) for name, curve in curves.items()})
    try:
        got = set(got)
    except TypeError as error:
        raise Wrong("a set of names was expected.") from error
    if "late" in got:
        raise Wrong("'late' is last but one after epoch 1 and given up; nobody sees its future.")
    if got == {"A", "B", "C", "D"}:
        raise Wrong("after epoch 1 these four are left; after epoch 2 the better half goes on.")
    if got != {"A", "B"}:
        raise Wrong(f"A and B reach the end, {sorted(map(str, got))} came.")
    return "A and B. What halving gives up, 'late', would have won: that is its price."


def suggest(answer: Callable) -> str:
    """100 random trials of Optuna, whose distributions tell what was asked."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(100):
        trial = study.ask()
        got = ask(answer, trial)
        if got != trial.params:
            raise Wrong(
                f"return what was suggested, {trial.params}, as a dictionary; {got!r} came."
            )
        _suggested(trial)
    return "100 random trials lie in the space that was asked for."


def _suggested(trial) -> None:
    """The distributions of one trial are those of the exercise's text."""
    space, params = trial.distributions, trial.params
    if "lr" not in space or "layers" not in space:
        raise Wrong(f"'lr' and 'layers' were expected, {sorted(space)} came.")
    if not getattr(space["lr"], "log", False):
        raise Wrong("'lr' is drawn evenly: nine of ten trials exceed 0.1. Give it log=True.")
    units = {f"units_{i}" for i in range(params["layers"])}
    if set(space) != {"lr", "layers"} | units:
        asked = f"{sorted(units)} for {params['layers']} layers"
        raise Wrong(f"one 'units_i' for each layer was expected, {asked}; {sorted(space)} came.")
    wanted = {"lr": (1e-4, 1), "layers": (1, 3)} | dict.fromkeys(units, (16, 128))
    for name, (low, high) in wanted.items():
        if (space[name].low, space[name].high) != (low, high):
            raise Wrong(f"{name!r} must lie between {low} and {high}, not in {space[name]}.")


# --- 05_onnx -------------------------------------------------------------------------------------


def milliseconds(answer: Callable) -> str:
    """A call of 2 ms, of which the first takes 30, some others 60 and some half a millisecond."""
    made = []

    def call() -> None:
        made.append(None)
        n = len(made)
        time.sleep(0.03 if n == 1 else 0.06 if n % 8 == 0 else 0.0005 if n % 7 == 0 else 0.002)

    got = ask(answer, call, 21)
    if not isinstance(got, int | float | np.number):
        raise Wrong(f"one number was expected, {type(got).__name__} came.")
    if len(made) <= 21:
        raise Wrong(f"{len(made)} calls were made: make one at least before you start the clock.")
    if got < 0.1:
        raise Wrong(f"{got:.3g} came, about 2 was expected: is that in seconds?")
    if got < 1.5:
        raise Wrong(f"{got:.2f} ms came: that is the luckiest call, not the usual one.")
    if got > 5:
        raise Wrong(f"{got:.1f} ms came, about 2 was expected: a few slow calls spoil a mean.")
    return f"{got:.0f} ms: neither the first call nor the slow and lucky ones deceive you."


def fold(answer: Callable) -> str:
    """A grouped convolution with a bias; its output and PyTorch's own fusion are the reference."""
    torch.manual_seed(0)
    images = torch.randn(2, 4, 8, 8)
    for bias in (True, False):
        conv, norm = nn.Conv2d(4, 6, 3, groups=2, bias=bias), nn.BatchNorm2d(6).eval()
        for tensor in (norm.weight, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 2)
        norm.eps = 0.1  # whoever forgets it shall notice
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        theirs = nn.utils.fuse_conv_bn_eval(conv.eval(), norm)
        got = ask(answer, copy.deepcopy(conv), copy.deepcopy(norm))
        if not isinstance(got, nn.Conv2d):
            raise Wrong(f"a torch.nn.Conv2d was expected, {type(got).__name__} came.")
        no_eps = conv.weight * (norm.weight / norm.running_var.sqrt()).view(-1, 1, 1, 1)
        hints = {
            "the same as before: scale each output channel.": conv.weight,
            "eps is missing under the root.": no_eps,
        }
        expect(got.weight, theirs.weight, "the weight", hints)
        if got.bias is None:
            raise Wrong("it has no bias; the folded one needs one even where conv had none.")
        expect(
            got.bias, theirs.bias, "the bias, of a convolution " + ("with one" * bias or "without")
        )
        with torch.no_grad():
            expect(got(images), norm(conv(images)), "the output", tolerance=1e-4)
    return "one convolution does the work of both."


def to_file(answer: Callable) -> str:
    """ONNX Runtime must give the network's answers for one image and for five."""
    from cvlab import runtime

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    net[1].running_mean.normal_()
    net.train()  # as after a training
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.onnx"
        ask(answer, net, file)
        if not file.is_file():
            raise Wrong("no file was written where the second argument says.")
        if len(list(Path(folder).iterdir())) > 1:
            raise Wrong("the weights lie in a second file: pass external_data=False.")
        engine = runtime.session(file)
        for count in (1, 5):
            images = torch.randn(count, 3, 8, 8)
            with torch.no_grad():
                right = net.eval()(images)
            _runs(engine, images.numpy(), right)
    return "one file, any number of images, the same logits."


def _runs(engine, images: np.ndarray, right: torch.Tensor) -> None:
    given = f"a batch of {len(images)}"
    try:
        (logits,) = engine.run(None, {engine.get_inputs()[0].name: images})
    except Exception as error:  # ONNX Runtime's own classes
        raise Wrong(
            f"{given} is refused: the batch must be dynamic, see dynamic_shapes."
        ) from error
    try:
        expect(logits, right, given, tolerance=1e-4)
    except Wrong as wrong:
        raise Wrong(f"{wrong} Was the network in eval mode when it was exported?") from wrong


# --- 06_int8 -------------------------------------------------------------------------------------


def to_uint8(answer: Callable) -> str:
    """Beside ONNX Runtime's operator QuantizeLinear."""
    x = np.array([0, 0.1, 0.24, 0.26, 0.75, 1.25, -0.3, 50, 200, -80], np.float32)
    scale, zero_point = np.float32(0.5), np.uint8(100)
    steps = x / scale + 100
    hints = {
        "255 is the end of the ruler and 0 its start: clip before you change the type.": np.round(
            steps
        ).astype(np.int64)
        % 256,
        "clip to 0 ... 255: nothing else fits into uint8.": np.round(steps),
        "that cuts the fraction off; round.": np.clip(np.floor(steps), 0, 255),
        "halves go to the even neighbour, as with np.round.": np.clip(
            np.floor(steps + 0.5), 0, 255
        ),
    }
    got = np.asarray(ask(answer, x.copy(), scale, zero_point))
    expect(
        got, _quantize_linear(x, scale, zero_point), f"x = {x.tolist()}, s = 0.5, z = 100", hints
    )
    if got.dtype != np.uint8:
        raise Wrong(f"the numbers are right, but as {got.dtype}: end with .astype(np.uint8).")
    return "ten numbers are those of ONNX Runtime."


def _quantize_linear(x: np.ndarray, scale: np.float32, zero_point: np.uint8) -> np.ndarray:
    """ONNX Runtime's QuantizeLinear."""
    from onnx import TensorProto, helper
    from onnxruntime import InferenceSession

    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
    types = {"x": TensorProto.FLOAT, "s": TensorProto.FLOAT, "z": TensorProto.UINT8}
    sizes = {"x": [len(x)], "s": [], "z": []}
    inputs = [helper.make_tensor_value_info(n, kind, sizes[n]) for n, kind in types.items()]
    output = helper.make_tensor_value_info("q", TensorProto.UINT8, [len(x)])
    graph = helper.make_graph([node], "quantize", inputs, [output])
    opset = [helper.make_opsetid("", 13)]
    content = helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    session = InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x, "s": np.asarray(scale), "z": np.asarray(zero_point)})[0]


def scale_and_zero_point(answer: Callable) -> str:
    """Beside ONNX Runtime's own quantiser."""
    from onnxruntime.quantization.quant_utils import compute_scale_zp

    ends = np.array(0, np.uint8), np.array(255, np.uint8)
    for low, high in ((-1.0, 3.0), (0.0, 6.0), (2.0, 6.0), (-168.0, 204.0), (-4.0, -1.0)):
        zero, scale = compute_scale_zp(np.float32(low), np.float32(high), *ends)
        narrow = (high - low) / 255
        unwidened = "the range must reach to 0, else no integer means 0: padding needs it."
        got = _several(ask(answer, low, high), 2)
        given = f"from {low:g} to {high:g}"
        steps = {unwidened: narrow, "256 marks have 255 steps between them.": (high - low) / 256}
        expect(got[0], scale, f"the scale {given}", steps)
        hints = {
            "the zero point must be rounded.": -min(low, 0) / float(scale),
            unwidened: round(-low / narrow),
        }
        expect(got[1], int(zero), f"the zero point {given}", hints, tolerance=1e-3)
    return "five rulers are those of ONNX Runtime."


def fake_quantize(answer: Callable) -> str:
    """Values and gradients beside `torch.fake_quantize_per_tensor_affine`."""
    values = torch.tensor([-9.0, -0.6, -0.2, 0.0, 0.3, 0.7, 1.2, 9.0])
    theirs, mine = (values.clone().requires_grad_() for _ in range(2))
    right = torch.fake_quantize_per_tensor_affine(theirs, 0.05, 0, -128, 127)
    right.sum().backward()
    got = ask(answer, mine, 0.05)
    hints = {
        "that is cut, not rounded.": torch.clamp((values / 0.05).trunc(), -128, 127) * 0.05,
        "the ruler ends at -128 and 127 steps: clip.": torch.round(values / 0.05) * 0.05,
        "these are the integers; multiply by the scale again.": torch.clamp(
            torch.round(values / 0.05), -128, 127
        ),
    }
    expect(got, right, f"x = {[round(v, 1) for v in values.tolist()]}, scale 0.05", hints)
    if not isinstance(got, torch.Tensor) or not got.requires_grad:
        raise Wrong("the values are right, but no gradient flows: use torch, and detach less.")
    got.sum().backward()
    hints = {
        "rounding has gradient 0 nearly everywhere: let it pass as if nothing had been "
        "rounded, x + (rounded - x).detach().": torch.zeros(8),
        "outside of the ruler the gradient must be 0: more of x changes nothing there.": (
            torch.ones(8)
        ),
    }
    gradient = torch.zeros(8) if mine.grad is None else mine.grad
    expect(gradient, theirs.grad, "the gradient", hints)
    return "values and gradients are torch's: with this a network learns to bear rounding."


CHECKS: dict[str, Callable[[Callable], str]] = {
    check.__name__: check
    for check in (
        *(momentum_step, adam_step, fair_rates),
        *(output_size, blur_pool, same_answer),
        *(interval, multiplications, likeliest_group),
        *(images_needed, survivors, suggest),
        *(milliseconds, fold, to_file),
        *(to_uint8, scale_and_zero_point, fake_quantize),
    )
}
