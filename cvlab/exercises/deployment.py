"""Checks of 04 to 06: how a network is searched for, exported and rounded to integers.

Each takes the learner's function and returns what to say when it is right; see `judge`.
"""

import copy
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cvlab.exercises.answers import SEED, Wrong, ask, cases, expect, several

# --- 04_optuna -----------------------------------------------------------------------------------


def images_needed(answer: Callable) -> str:
    """Computed: 4 times the variance of a difference, over the gap squared."""
    known = [(0.5, 0.03), (0.8, 0.012), (0.9, 0.07)]
    for p, gap in cases(known, lambda draw: (draw.uniform(0.2, 0.9), draw.uniform(0.02, 0.1))):
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
    known = [("A", "B", "C", "D", "late", "E", "F", "G")]
    for names in cases(known, lambda chance: tuple(chance.sample("HIJKLMNOPQRST", 8)), 1):
        curves = dict(zip(names, CURVES, strict=True))
        shown = {name: list(curves[name]) for name in sorted(names)}
        _survive(ask(answer, shown), names)
    return "A and B. What halving gives up, 'late', would have won: that is its price."


CURVES = [
    [0.40, 0.45, 0.50, 0.52],
    [0.38, 0.50, 0.55, 0.58],
    [0.36, 0.39, 0.41, 0.42],
    [0.35, 0.37, 0.38, 0.39],
    [0.10, 0.48, 0.60, 0.70],  # late
    [0.30, 0.31, 0.32, 0.33],
    [0.20, 0.47, 0.40, 0.41],
    [0.15, 0.20, 0.25, 0.30],
]


def _survive(got, names: tuple[str, ...]) -> None:
    """The first two of `names` reach the end, the first four epoch 1; the fifth is late."""
    one, two, late = names[0], names[1], names[4]
    try:
        got = set(got)
    except TypeError as error:
        raise Wrong("a set of names was expected.") from error
    if late in got:
        raise Wrong(f"{late!r} is last but one after epoch 1 and given up; nobody sees its future.")
    if got == set(names[:4]):
        raise Wrong("after epoch 1 these four are left; after epoch 2 the better half goes on.")
    if got != {one, two}:
        raise Wrong(f"{one} and {two} reach the end, {sorted(map(str, got))} came.")


def suggest(answer: Callable) -> str:
    """100 random trials of Optuna, whose distributions tell what was asked."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=SEED.get()))
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
    got = _timed(answer, 2)
    for usual in cases([], lambda chance: chance.uniform(6, 9), 1):
        _timed(answer, usual)
    return f"{got:.0f} ms: neither the first call nor the slow and lucky ones deceive you."


def _timed(answer: Callable, usual: float) -> float:
    """What the answer says of a call that mostly takes `usual` milliseconds."""
    made = []

    def call() -> None:
        made.append(None)
        n = len(made)
        takes = 15 * usual if n == 1 else 30 * usual if n % 8 == 0 else usual / 4
        time.sleep((takes if n == 1 or n % 8 == 0 or n % 7 == 0 else usual) / 1000)

    got = ask(answer, call, 21)
    if not isinstance(got, int | float | np.number):
        raise Wrong(f"one number was expected, {type(got).__name__} came.")
    if len(made) <= 21:
        raise Wrong(f"{len(made)} calls were made: make one at least before you start the clock.")
    if got < 0.05 * usual:
        raise Wrong(f"{got:.3g} came, about {usual:.3g} was expected: is that in seconds?")
    if got < 0.75 * usual:
        raise Wrong(f"{got:.2f} ms came: that is the luckiest call, not the usual one.")
    if got > 2.5 * usual:
        told = f"{got:.1f} ms came, about {usual:.3g} was expected"
        raise Wrong(f"{told}: a few slow calls spoil a mean.")
    return float(got)


def fold(answer: Callable) -> str:
    """A grouped convolution with a bias; its output and PyTorch's own fusion are the reference."""
    torch.manual_seed(SEED.get())
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
        kind = "with one" if bias else "without"
        expect(got.bias, theirs.bias, f"the bias, of a convolution {kind}")
        with torch.no_grad():
            expect(got(images), norm(conv(images)), "the output", tolerance=1e-4)
    return "one convolution does the work of both."


def to_file(answer: Callable) -> str:
    """ONNX Runtime must give the network's answers for one image and for five."""
    from cvlab import runtime

    torch.manual_seed(SEED.get())
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
        engine = getattr(answer, "session", runtime.session)(file)  # elsewhere, if it lives there
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
    for values, scale, zero_point in cases([(x, 0.5, 100)], _ruler, 1):
        _rounded(answer, values, np.float32(scale), np.uint8(zero_point))
    return "ten numbers are those of ONNX Runtime."


def _ruler(chance) -> tuple[np.ndarray, float, int]:
    values = [chance.uniform(-80, 200) for _ in range(10)]
    return np.array(values, np.float32), chance.choice((0.25, 0.5, 2)), chance.randint(10, 200)


def _rounded(answer: Callable, x: np.ndarray, scale: np.float32, zero_point: np.uint8) -> None:
    right = _quantize_linear(x, scale, zero_point)
    steps = x / scale + int(zero_point)
    wrapped = np.round(steps).astype(np.int64) % 256
    hints = {
        "255 is the end of the ruler and 0 its start: clip before you change the type.": wrapped,
        "clip to 0 ... 255: nothing else fits into uint8.": np.round(steps),
        "that cuts the fraction off; round.": np.floor(steps).clip(0, 255),
        "halves go to the even neighbour, as with np.round.": np.floor(steps + 0.5).clip(0, 255),
    }
    got = np.asarray(ask(answer, x.copy(), scale, zero_point))
    expect(got, right, f"x = {x.tolist()}, s = {scale}, z = {zero_point}", hints)
    if got.dtype != np.uint8:
        raise Wrong(f"the numbers are right, but as {got.dtype}: end with .astype(np.uint8).")


def _quantize_linear(x: np.ndarray, scale: np.float32, zero_point: np.uint8) -> np.ndarray:
    """ONNX Runtime's QuantizeLinear."""
    from onnx import parser
    from onnxruntime import InferenceSession

    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 13]>
        quantize (float[{len(x)}] x, float s, uint8 z) => (uint8[{len(x)}] q)
        {{ q = QuantizeLinear(x, s, z) }}"""
    )
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x, "s": np.asarray(scale), "z": np.asarray(zero_point)})[0]


def scale_and_zero_point(answer: Callable) -> str:
    """Beside ONNX Runtime's own quantiser."""
    from onnxruntime.quantization.quant_utils import compute_scale_zp

    ends = np.array(0, np.uint8), np.array(255, np.uint8)
    known = [(-1.0, 3.0), (0.0, 6.0), (2.0, 6.0), (-168.0, 204.0), (-4.0, -1.0)]
    for low, high in cases(known, lambda chance: (chance.uniform(-9, 0), chance.uniform(1, 9))):
        zero, scale = compute_scale_zp(np.float32(low), np.float32(high), *ends)
        narrow = (high - low) / 255
        unwidened = "the range must reach to 0, else no integer means 0: padding needs it."
        got = several(ask(answer, low, high), 2)
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
    known = [[-9.0, -0.6, -0.2, 0.0, 0.3, 0.7, 1.2, 9.0]]

    def draw(chance) -> list[float]:  # none at the ends, which may count to either side
        return [chance.uniform(-6, 6) for _ in range(6)] + [
            chance.uniform(7, 9),
            -7 - chance.random(),
        ]

    for values in cases(known, draw, 1):
        _with_gradient(answer, torch.tensor(values))
    return "values and gradients are torch's: with this a network learns to bear rounding."


def _with_gradient(answer: Callable, values: torch.Tensor) -> None:
    theirs, mine = (values.clone().requires_grad_() for _ in range(2))
    right = torch.fake_quantize_per_tensor_affine(theirs, 0.05, 0, -128, 127)
    right.sum().backward()
    got = ask(answer, mine, 0.05)
    steps = values / 0.05
    hints = {
        "that is cut, not rounded.": steps.trunc().clamp(-128, 127) * 0.05,
        "the ruler ends at -128 and 127 steps: clip.": steps.round() * 0.05,
        "these are the integers; multiply by the scale again.": steps.round().clamp(-128, 127),
    }
    expect(got, right, f"x = {[round(v, 1) for v in values.tolist()]}, scale 0.05", hints)
    if not isinstance(got, torch.Tensor) or not got.requires_grad:
        raise Wrong("the values are right, but no gradient flows: use torch, and detach less.")
    got.sum().backward()
    ones = torch.ones(8)
    hints = {
        "rounding has gradient 0 nearly everywhere: let it pass as if nothing had been "
        "rounded, x + (rounded - x).detach().": torch.zeros(8),
        "outside of the ruler the gradient must be 0: more of x changes nothing there.": ones,
    }
    gradient = torch.zeros(8) if mine.grad is None else mine.grad
    expect(gradient, theirs.grad, "the gradient", hints)
