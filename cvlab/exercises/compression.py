"""Checks of 08: fewer weights, a teacher, fewer different values.

Each takes the learner's function and returns what to say when it is right; see `judge`.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from cvlab.exercises.answers import SEED, Wrong, ask, cases, expect, numbers


def magnitude_mask(answer: Callable) -> str:
    """Beside the mask of `torch.nn.utils.prune.l1_unstructured`."""
    torch.manual_seed(SEED.get())
    known = [((6, 4, 3, 3), 0.5), ((10, 20), 0.9), ((8, 3, 3, 3), 0.0)]

    def draw(chance) -> tuple[tuple[int, ...], float]:
        return (chance.randint(3, 9), chance.randint(3, 9), 3, 3), chance.choice((0.25, 0.75, 0.8))

    for shape, sparsity in cases(known, draw, 2):
        weight = torch.randn(shape)
        layer = nn.Linear(1, 1)
        layer.weight = nn.Parameter(weight.clone())
        right = prune.l1_unstructured(layer, "weight", amount=sparsity).weight_mask
        ranks = weight.flatten().argsort().argsort().view(shape)
        signed = ranks >= round(sparsity * weight.numel())
        hints = {
            "that is the other way round: True where a weight stays.": 1 - right,
            "-2 is larger than 0.1 here: compare absolute values.": signed.double(),
            "these are the weights; a mask was expected, True where one stays.": weight * right,
            "where a weight goes it must say False, for the others True.": right * 0 + 1,
        }
        got = ask(answer, weight.clone(), sparsity)
        expect(got, right, f"a weight of shape {[*shape]}, sparsity {sparsity}", hints)
    return "three masks are those of torch.nn.utils.prune."


def distillation_loss(answer: Callable) -> str:
    """Four losses from their definition; the teacher's part is 0 where both agree."""
    torch.manual_seed(SEED.get())
    known = [(4.0, 1.0), (1.0, 0.5), (2.0, 0.9), (3.0, 0.0)]
    for temperature, weight in cases(known, lambda c: (c.uniform(1.5, 9), c.uniform(0.1, 0.9)), 2):
        logits, teacher, labels = torch.randn(6, 5), 3 * torch.randn(6, 5), torch.randint(5, (6,))
        soft, target = (F.log_softmax(x / temperature, 1) for x in (logits, teacher))
        told = (target.exp() * (target - soft)).sum(1).mean()
        hard, square = F.cross_entropy(logits, labels), temperature**2
        entropy = -(target.exp() * target).sum(1).mean()
        mirrored = (soft.exp() * (soft - target)).sum(1).mean()
        given = f"temperature {temperature:.3g}, the teacher's share {weight:.3g}"

        def both(part: torch.Tensor, share: float = weight, hard: torch.Tensor = hard):
            return share * part + (1 - share) * hard

        right = both(square * told)
        hints = {
            "the square of the temperature is missing.": both(told),
            "the teacher's share and the labels' are exchanged.": both(square * told, 1 - weight),
            "that is the mean over images and classes; sum over the classes, see "
            "reduction='batchmean'.": both(square * told / 5),
            "that is the cross-entropy with the teacher's shares: its gradients are right, but it "
            "is not 0 where both agree. Subtract the teacher's entropy.": both(
                square * (told + entropy)
            ),
            "the divergence is taken from the wrong side: the teacher's shares weigh.": both(
                square * mirrored
            ),
        }
        got = ask(answer, logits.clone().requires_grad_(), teacher, labels, temperature, weight)
        expect(got, right, given, hints)
        if not isinstance(got, torch.Tensor) or not got.requires_grad:
            raise Wrong(f"{given}: right, but no gradient flows to the student; use torch.")
    return "four losses are torch's, and gradients flow."


def share_weights(answer: Callable) -> str:
    """Its squared errors beside those of scikit-learn's k-means; half as much again is forgiven."""
    from sklearn.cluster import KMeans

    torch.manual_seed(SEED.get())
    for shape, values in cases([((20, 10, 3, 3), 16), ((300,), 4)], lambda c: ((400,), 8), 1):
        weight = torch.randn(shape)
        column, given = weight.reshape(-1, 1).numpy(), f"{weight.numel()} numbers, {values} values"
        best = KMeans(values, n_init=3, random_state=0).fit(column).inertia_
        found = numbers(ask(answer, weight.clone(), values), given)
        if found.shape != weight.shape:
            raise Wrong(f"{given}: shape {[*shape]} was expected, {[*found.shape]} came.")
        many = len(found.unique())
        if many > values:
            raise Wrong(f"{given}: {many} different ones came.")
        error = ((found - weight) ** 2).sum()
        if not error <= 1.5 * best:
            told = f"the squared errors add up to {error:.3g}, with k-means to {best:.3g}"
            raise Wrong(f"{given}: {told}. Evenly spaced values are not where the weights are.")
    return "16 values, so 4 bits each, stand for 1,800 numbers as well as k-means can."
