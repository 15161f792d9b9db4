"""Checks of 01 to 03: how a network learns, what it sees and what it costs.

Each takes the learner's function and returns what to say when it is right; see `judge`.
"""

import math
from collections.abc import Callable

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from cvlab import models
from cvlab.exercises.answers import SEED, Wrong, ask, cases, expect, several

# --- 01_optimizers -------------------------------------------------------------------------------


def momentum_step(answer: Callable) -> str:
    """Five steps beside `torch.optim.SGD(momentum=0.9)`."""
    start, gradients, theirs = _five_steps(torch.optim.SGD, lr=0.1, momentum=0.9)
    weight, velocity = start.clone(), torch.zeros(4)
    plain = theirs[0] - 0.1 * gradients[1]
    later = {"the second step knows nothing of the first: return the velocity too.": plain}
    hints = {
        "the first step is 10 times too small: torch adds the gradient as it is, not (1 - "
        "momentum) times the gradient.": start - 0.01 * gradients[0],
        "you walk uphill: the velocity must be subtracted.": start + 0.1 * gradients[0],
    }
    for step, (gradient, right) in enumerate(zip(gradients, theirs, strict=True), start=1):
        got = several(ask(answer, weight, gradient.clone(), velocity, 0.1, 0.9), 2)
        expect(got[0], right, f"the weight after step {step}", hints)
        hints = later
        weight, velocity = (torch.as_tensor(one).detach().clone() for one in got)
    return "five steps are those of torch.optim.SGD."


def adam_step(answer: Callable) -> str:
    """Five steps beside `torch.optim.Adam`; one gradient is as small as eps matters."""
    start, gradients, theirs = _five_steps(torch.optim.Adam, lr=0.01)
    weight, mean, square = start.clone(), torch.zeros(4), torch.zeros(4)
    g = gradients[0]
    root = (0.001 * g**2).sqrt() + 1e-8  # of the square as it is stored
    hints = {
        "too large by a factor of 3: divide mean by 1 - beta1 ** step and square by 1 - beta2 ** "
        "step.": start - 0.01 * 0.1 * g / root,
        "only the mean is corrected: divide square by 1 - beta2 ** step too.": start
        - 0.01 * g / root,
        "eps belongs outside of the root.": start - 0.01 * g / (g**2 + 1e-8).sqrt(),
        "you walk uphill: the step must be subtracted.": start + 0.01 * g / (g.abs() + 1e-8),
    }
    for step, (gradient, right) in enumerate(zip(gradients, theirs, strict=True), start=1):
        got = several(ask(answer, weight, gradient.clone(), mean, square, step, 0.01), 3)
        expect(got[0], right, f"the weight after step {step}", hints, 1e-4)
        weight, mean, square = (torch.as_tensor(one).detach().clone() for one in got)
    return "five steps are those of torch.optim.Adam."


def fair_rates(answer: Callable) -> str:
    """A table in which one lucky seed looks best; a fresh one has other rates."""
    for sgd, adam in cases([(0.1, 0.001)], lambda chance: (chance.random(), chance.random()), 1):
        scores = {("SGD", sgd): (0.5, 0.52, 0.51), ("SGD", 10 * sgd): (0.7, 0.1, 0.1)}
        scores |= {("Adam", adam): (0.55, 0.56, 0.54), ("Adam", 10 * adam): (0.5, 0.5, 0.58)}
        rows = [(*key, seed, s) for key, seeds in scores.items() for seed, s in enumerate(seeds)]
        table = pd.DataFrame(rows, columns=["optimizer", "lr", "seed", "score"])
        try:
            got = dict(ask(answer, table.copy()))
        except (TypeError, ValueError) as error:
            told = "a dictionary was expected, from each optimizer's name to its rate."
            raise Wrong(told) from error
        if set(got) != {"SGD", "Adam"}:
            raise Wrong(f"the rates of SGD and Adam were expected, those of {[*got]} came.")
        best = f"{10 * sgd:.3g} has the best single score, 0.7,"
        lucky = f"{best} by one lucky seed: compare means over seeds."
        late = f"{10 * adam:.3g} is best with the last seed alone."
        expect(got["SGD"], sgd, "SGD's rate", {lucky: 10 * sgd})
        expect(got["Adam"], adam, "Adam's rate", {late: 10 * adam})
    return "one lucky seed does not fool you."


def _five_steps(kind, **options) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """A weight [4], gradients [5, 4], and the weight after each step of torch's optimizer."""
    torch.manual_seed(SEED.get())
    gradients = torch.randn(5, 4)
    gradients[:, 3] *= 1e-6
    start = torch.randn(4)
    weight = start.clone().requires_grad_()
    optimizer, path = kind([weight], **options), []
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        path.append(weight.detach().clone())
    return start, gradients, path


# --- 02_pooling ----------------------------------------------------------------------------------


def output_size(answer: Callable) -> str:
    """Beside what `torch.nn.functional.conv2d` makes of an image of that size."""
    known = [(33, 2, 2, 0), (32, 3, 1, 1), (32, 3, 2, 1)]
    known += [(32, 5, 2, 0), (31, 3, 2, 1), (32, 7, 3, 2)]

    def draw(chance) -> tuple[int, ...]:
        return tuple(chance.randint(*ends) for ends in ((9, 60), (1, 7), (1, 4), (0, 3)))

    for size, kernel, stride, padding in cases(known, draw):
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
    torch.manual_seed(SEED.get())
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
    torch.manual_seed(SEED.get())
    images = torch.rand(400, 3, 8, 8)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
    far = (3, 2, 5)  # of one distance the share may be that of 1 by chance
    with torch.no_grad():
        still = net(images).argmax(1)
        moved = {
            key: (net(torch.roll(images, *key)).argmax(1) == still).double().mean()
            for key in ((1, 3), (1, 2), (-1, 3), *((pixels, 3) for pixels in far))
        }
    hints = {
        "that is the share whose answer changed.": 1 - moved[1, 3],
        "you moved the images down: the width is the last dimension.": moved[1, 2],
        "you moved the images to the left.": moved[-1, 3],
        "compare classes, not logits: these always change a little.": 0.0,
    }
    expect(ask(answer, net, images.clone()), moved[1, 3], "400 random images", hints)
    forgets = {"you moved them by 1: the third argument says by how many pixels.": moved[1, 3]}
    for pixels in far:
        given, right = f"the same, by {pixels} pixels", moved[pixels, 3]
        expect(ask(answer, net, images.clone(), pixels), right, given, forgets)
    return f"of 400 images {moved[1, 3]:.0%} keep their answer, as they should."


# --- 03_pretrained_zoo ---------------------------------------------------------------------------


def interval(answer: Callable) -> str:
    """Beside SciPy's Wilson interval."""
    from scipy.stats import binomtest

    known = [(40, 50), (50, 50), (0, 20), (9165, 10_000)]
    for right, n in cases(known, lambda chance: (chance.randint(20, 80), chance.randint(90, 900))):
        theirs = binomtest(right, n).proportion_ci(0.95, method="wilson")
        p, given = right / n, f"{right} of {n}"
        half = 1.96 * math.sqrt(p * (1 - p) / n)
        hints = {
            "that is p ± 1.96 standard errors, which calls all of 50 a certainty. Wilson's formula "
            "does not.": (p - half, p + half),
            "in percent; shares were expected, from 0 to 1.": (100 * theirs[0], 100 * theirs[1]),
        }
        got = several(ask(answer, right, n), 2)
        expect(got, (theirs.low, theirs.high), given, hints, tolerance=1e-4)
    return "four intervals are SciPy's. 50 of 50 right prove 93 %, not 100 %."


def multiplications(answer: Callable) -> str:
    """Beside PyTorch's own counter of operations."""
    from torch.utils.flop_counter import FlopCounterMode

    known = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(64, 128, 1),
        nn.Conv2d(32, 32, 3, groups=32, padding=1),
        nn.Conv2d(8, 12, (3, 5), groups=4),
    ]

    def draw(chance) -> nn.Conv2d:
        groups, more = chance.choice((1, 2, 4)), chance.randint(2, 9)
        return nn.Conv2d(groups * more, groups * chance.randint(2, 9), more, groups=groups)

    for conv in cases(known, draw):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            height, width = conv(torch.zeros(1, conv.in_channels, 16, 16)).shape[2:]
        right, weights = counter.get_total_flops() // 2, conv.weight.numel()
        ungrouped = conv.groups * right
        hints = {
            "that is the number of weights: each is used at every position of the output.": weights,
            "with groups an output channel sees in_channels / groups channels only.": ungrouped,
            "that counts multiplications and additions apart; one MAC is both.": 2 * right,
        }
        got = ask(answer, conv, height, width)
        expect(got, right, f"{conv} with an output of {height} x {width}", hints)
    return "four convolutions cost what PyTorch's own counter says."


def likeliest_group(answer: Callable) -> str:
    """Random probabilities and unequal groups, by each of three rules."""
    torch.manual_seed(SEED.get())
    logits = 2 * torch.randn(60, 40)
    groups = [torch.arange(20), torch.arange(20, 24), torch.tensor([30])]
    shares = [logits.softmax(1)[:, members] for members in groups]
    by_sum, by_mean, by_max = (
        torch.stack([rule(one, 1) for one in shares], 1).argmax(1)
        for rule in (torch.sum, torch.mean, torch.amax)
    )
    hints = {
        "that is the rule of the sum, which large groups win.": by_sum,
        "that is the rule of the maximum.": by_max,
    }
    got = ask(answer, logits.softmax(1), groups)
    expect(got, by_mean, "60 images, groups of 20, 4 and 1", hints)
    return "60 answers are right, and no large group wins by its size."
