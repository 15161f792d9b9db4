"""Checks of 09: what a training costs, steps of equal size, inputs of equal size.

Each takes the learner's function and returns what to say when it is right; see `judge`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cvlab.exercises.answers import SEED, Wrong, ask, cases, expect, numbers

# Jordan and others, "Muon: An optimizer for hidden layers in neural networks", 2024
WEIGHTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(answer: Callable) -> str:
    """Beside the same steps in float64. In float32, transposed or not, they end some 1e-6 off."""
    torch.manual_seed(SEED.get())
    known = [(3, 5, 1), (6, 20, 5), (20, 6, 5)]

    def draw(chance) -> tuple[int, int, int]:
        return chance.randint(4, 30), chance.randint(4, 30), chance.choice((2, 3, 5, 6))

    for rows, columns, steps in cases(known, draw, 2):
        gradient = torch.randn(rows, columns)
        right = _newton_schulz(gradient.double() / gradient.norm(), steps)
        given = f"a gradient of shape {[rows, columns]}, steps = {steps}"
        got = ask(answer, gradient.clone(), steps)
        _expect_digits(got, right, given)
        expect(got, right, given, _wrong_steps(gradient.double(), steps), tolerance=1e-4)
        if not isinstance(got, Tensor):
            raise Wrong(f"{given}: right, but a tensor was expected, {type(got).__name__} came.")
    before, after = (torch.linalg.svdvals(one.detach()) for one in (gradient, got))
    return (
        f"of the last gradient the singular values were {before[-1]:.2f} to {before[0]:.2f}, "
        f"after {steps} steps they are {after[-1]:.2f} to {after[0]:.2f}."
    )


def _newton_schulz(
    start: Tensor,
    steps: int,
    weights: tuple[float, float, float] = WEIGHTS,
    product: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
) -> Tensor:
    """So many steps of X <- a X + (b A + c A A) X with A = X X^T, from `start` on."""
    a, b, c = weights
    for _ in range(steps):
        gram = start @ start.T
        start = a * start + (b * gram + c * product(gram, gram)) @ start
    return start


def _wrong_steps(gradient: Tensor, steps: int) -> dict[str, Tensor]:
    """Hint -> what one gets who makes that mistake."""
    unit, (a, b, c) = gradient / gradient.norm(), WEIGHTS
    largest = gradient / torch.linalg.matrix_norm(gradient, 2)
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    gram, eye = unit @ unit.T, torch.eye(len(unit), dtype=unit.dtype)
    first = torch.linalg.matrix_power(a * eye + b * gram + c * gram @ gram, steps)
    exact = "that is U V^T itself. These steps only come near it, but need no decomposition."
    hints = {
        "that is the gradient as it was.": gradient,
        "divide by the norm first: the steps run away from large values.": _newton_schulz(
            gradient, steps
        ),
        "that was divided by the largest singular value; Frobenius's norm, gradient.norm(), is "
        "the root of the sum of all squares.": _newton_schulz(largest, steps),
        exact: left @ right,
        "b and c are exchanged.": _newton_schulz(unit, steps, (a, c, b)),
        "b is negative.": _newton_schulz(unit, steps, (a, -b, c)),
        "A A is a product of matrices, A @ A.": _newton_schulz(unit, steps, product=torch.mul),
        "A = X X^T must be computed anew in each step.": first @ unit,
    }
    others = {n: _newton_schulz(unit, n) for n in range(8) if n != steps}
    return hints | {f"that is X after {n} steps.": value for n, value in others.items()}


def _expect_digits(got: object, right: Tensor, given: str) -> None:
    """Near, but with bfloat16's three digits, as `torch.optim.Muon` computes, is `Wrong` too."""
    found = numbers(got, given)
    rounded = found.shape == right.shape and torch.equal(found.bfloat16().double(), found)
    if rounded and (found - right).abs().max() < 0.2:
        raise Wrong(f"{given}: near, but rounded to bfloat16. Stay in float32 here.")


def training_operations(answer: Callable) -> str:
    """Beside PyTorch's own counter of operations, forward and backward through a convolution."""
    from torch.utils.flop_counter import FlopCounterMode

    known = [(24, 64, 31, 50_000, 8), (3, 16, 32, 45_000, 20), (64, 10, 1, 1_000, 9)]

    def draw(chance) -> tuple[int, ...]:
        ends = ((1, 60), (1, 60), (2, 20), (100, 60_000), (7, 40))
        return tuple(chance.randint(*one) for one in ends)

    for inputs, outputs, side, images, passes in cases(known, draw):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        with FlopCounterMode(display=False) as counter:
            conv(torch.zeros(1, inputs, side, side, requires_grad=True)).sum().backward()
        one, macs = counter.get_total_flops(), conv.weight.numel() * side**2
        forward, right = macs * images * passes, one * images * passes
        both = (
            "forward comes first, and backward costs twice as much: it makes the gradients of the "
            "inputs and those of the weights."
        )
        hints = {
            "that is forward alone; backward costs twice as much again.": 2 * forward,
            "a multiply-accumulate is two operations.": 3 * forward,
            "these are the multiply-accumulates of forward alone.": forward,
            both: 4 * forward,
            "that is one pass over the images.": one * images,
            "that is one image.": one * passes,
            "in trillions; the number itself was expected.": right / 1e12,
        }
        given = f"{macs:,} multiply-accumulates, {images:,} images, {passes} passes"
        expect(ask(answer, macs, images, passes), right, given, hints)
    return "three trainings cost what PyTorch's own counter says."


def whitening_filters(answer: Callable) -> str:
    """Patches with a mean, whose variances differ 4,000-fold; the smallest is about 5e-4.

    Order and sign of the filters are free. Those of ZCA, or of Cholesky's factor, are right too:
    they are rotations of the eigenvectors', and nothing of what is asked tells them apart.
    """
    torch.manual_seed(SEED.get())
    for size in cases([12, 8], lambda chance: chance.randint(5, 14), 2):
        turn = torch.linalg.qr(torch.randn(size, size)).Q
        patches = torch.randn(400, size) * torch.logspace(0.3, -3.3, size).sqrt() @ turn + 0.5
        given = f"400 patches of {size} numbers"
        filters = numbers(ask(answer, patches.clone()), given)
        if filters.shape != (size, size):
            raise Wrong(f"{given}: {_wrong_shape([*filters.shape], 400, size)}")
        covariance = torch.cov(patches.double().T)
        if not _whitens(filters, covariance + 5e-4 * torch.eye(size)):
            raise Wrong(f"{given}: {_wrong_whitening(filters, patches.double())}")
        after = torch.linalg.eigvalsh(filters @ covariance @ filters.T)
        before = torch.linalg.eigvalsh(covariance)
    return (
        f"the patches' largest variance is {before[-1] / before[0]:,.0f} times the smallest, "
        f"that of your filters' answers {after[-1] / after[0]:.1f} times."
    )


def _wrong_shape(shape: list[int], count: int, size: int) -> str:
    hints = {
        (count, count): " torch.cov takes a row for each variable: give it patches.T.",
        (count, size): " Return the filters, not their answers to the patches.",
    }
    return f"shape {[size, size]} was expected, {shape} came.{hints.get((*shape,), '')}"


def _whitens(filters: Tensor, covariance: Tensor) -> bool:
    """Have the answers to inputs of this covariance the identity as theirs, within 2 %?"""
    answers = filters @ covariance @ filters.T
    return torch.allclose(answers, torch.eye(len(answers)).double(), rtol=0, atol=0.02)


def _wrong_whitening(filters: Tensor, patches: Tensor) -> str:
    """What is wrong: a usual mistake is one that whitens, or its like, another covariance."""
    eye, plain = torch.eye(len(filters)).double(), torch.cov(patches.T)
    covariance, moment = plain + 5e-4 * eye, patches.T @ patches / len(patches) + 5e-4 * eye
    values, vectors = torch.linalg.eigh(plain)
    beside = vectors * (values.sqrt() + 5e-4) ** 2 @ vectors.T
    hints = {
        "a filter is a row; yours stand in columns.": (filters.T, covariance),
        "you divided along the wrong dimension: each row has a root of its own.": (
            filters * (values + 5e-4).sqrt(),
            eye,
        ),
        "these have length 1: divide each by the root of its variance.": (filters, eye),
        "divided by the variances; divide by their roots.": (filters, covariance @ covariance),
        "multiplied by the roots; divide by them.": (filters, covariance.inverse()),
        "5e-4 is missing under the root.": (filters, plain),
        "5e-4 belongs under the root, not beside it.": (filters, beside),
        "their mean is still in it: take the covariance of patches - patches.mean(0), as "
        "torch.cov does.": (filters, moment),
        "that is the covariance, or multiplied by its values: divide its eigenvectors by the "
        "roots of its eigenvalues.": (filters, (plain @ plain).inverse()),
    }
    for hint, (like, whitened) in hints.items():
        if _whitens(like, whitened):
            return hint
    answers = filters @ covariance @ filters.T
    low, high = answers.diagonal().aminmax()
    if not 0.98 < low <= high < 1.02:
        return f"with the 5e-4 the answers' variances are {low:.3g} to {high:.3g}, not 1."
    most = (answers - eye).abs().max()
    return f"the answers of two filters still correlate, by {most:.2g}; 0 was expected."
