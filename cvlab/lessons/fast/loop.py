"""One training of `FastNet`, from the tutorial's way to the record's: a field for each change."""

import ctypes
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from cvlab.data import Batches, ImageData, Split
from cvlab.lessons.fast.network import Conv, FastNet, whitening
from cvlab.machine import import_torchvision
from cvlab.show import progress
from cvlab.train import autocast, choose_precision

# Learning rates for a loss that is summed over the batch, all but Muon's as in airbench. With the
# sum a step grows with its batch, so that twice the batch in half the steps goes as far. Muon's
# step has a length of its own: its rate is for batches of 500, and grows with the batch's root.
HEAD, BIASES, MUON, SGD = 0.67, 0.053, 0.18, 0.0015
DECAY = 2e-6  # of the head's and the biases' weights, for each image of a batch
# Else torch.compile keeps in float32 what bf16 rounds: no feature is then equal to the rounded
# maximum, and that one's gradient is 0 / 0 (pytorch's issue 186799).
ROUNDED = {"emulate_precision_casts": True}
STEM_LEARNS = 3 / 8  # of the steps: then its biases stay, and nothing is sent back to it


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How `FastNet` is trained. The defaults are the record's; `changes.ladder` takes them back."""

    passes: float = 8  # over the training images
    batch_size: int = 500
    whole_batches: bool = True  # else torch's DataLoader, an image at a time
    channels_last: bool = True
    precision: str = "auto"  # see `cvlab.train.choose_precision`
    widths: tuple[int, int, int] = (64, 256, 256)
    falling: bool = True  # the rates go to 0 in a straight line
    label_smoothing: float = 0.2
    augment: bool = True
    whitened: bool = True
    muon: bool = True
    sizes: tuple[int, ...] = (32,)  # pixels a side, each for an equal part of the steps
    averaged: bool = False  # the weights of the last steps
    four_views: bool = True  # an answer is the mean of four: of the image, mirrored, moved, both
    compiled: bool = False


@dataclass(frozen=True)
class Trained:
    """A network and what its training took, in seconds of this machine."""

    net: nn.Module
    recipe: Recipe
    images: int  # that were trained on, those met again counted again
    seconds: float
    losses: list[float]  # mean of each batch

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


def train(
    data: ImageData, recipe: Recipe, seed: int, device: torch.device, what: str | None = None
) -> Trained:
    """Train a new `FastNet` on `data.train`; no other image is looked at, no epoch chosen.

    The clock runs from the first layer's filters to the last step.
    """
    torch.manual_seed(seed)
    start = time.perf_counter()
    net = make(data, recipe, device)
    steps = max(len(recipe.sizes), round(recipe.passes * len(data.train) / recipe.batch_size))
    made, mean = optimizers(net, recipe), _mean(net) if recipe.averaged else None
    call = torch.compile(net, options=ROUNDED) if recipe.compiled else net
    batches, losses = _batches(data, recipe, steps, seed, device), []
    with progress(steps, what, "step") as bar:
        for done, (images, labels) in enumerate(batches):
            if done >= STEM_LEARNS * steps and recipe.whitened:
                net.stem.requires_grad_(False)
            losses.append(step(call, images, labels, made, recipe, 1 - done / steps))
            if mean is not None:
                mean.update_parameters(net)
            bar.update()
    losses = torch.stack(losses).tolist()  # reading them waits for a GPU: once, at the end
    seconds, kept = time.perf_counter() - start, net if mean is None else mean.module
    return Trained(kept, recipe, steps * recipe.batch_size, seconds, losses)


def step(
    call: Callable,
    images: Tensor,
    labels: Tensor,
    made: Iterable[optim.Optimizer],
    recipe: Recipe,
    left: float,
) -> Tensor:
    """One step of all optimizers: the batch's mean loss, before it.

    `left` is the share of the training that is still to come.
    """
    with autocast(images.device, choose_precision(images.device, recipe.precision)):
        logits = call(images).float()
    smoothing = recipe.label_smoothing
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    loss.backward()
    for optimizer in made:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (left if recipe.falling else 1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.detach() / len(labels)


def make(data: ImageData, recipe: Recipe, device: torch.device) -> FastNet:
    """A new `FastNet`; with `whitened` its first layer is made of 5,000 training images."""
    stem = None
    if recipe.whitened:
        stem = whitening(next(data.batches(data.train.take(5_000), 5_000).epoch())[0])
    net = FastNet(len(data.classes), recipe.widths, stem)
    return net.to(device, memory_format=_layout(recipe))


def _layout(recipe: Recipe) -> torch.memory_format:
    return torch.channels_last if recipe.channels_last else torch.contiguous_format


def _mean(net: nn.Module) -> AveragedModel:
    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.95), use_buffers=True)


class Muon(optim.Muon):
    """torch's Muon for layers that a normalisation follows: the length of a weight is kept.

    There only the direction of a weight counts. At length 1 a row, the rate is the angle that a
    step turns it by, in radians, from the first step to the last.
    """

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One step."""
        for group in self.param_groups:
            for weight in group["params"]:
                weight.mul_(len(weight) ** 0.5 / weight.norm())
        super().step(closure)


def optimizers(net: FastNet, recipe: Recipe) -> list[optim.Optimizer]:
    """SGD with Nesterov's momentum, and with `muon` that for the matrices of convolutions."""
    matrices = [layer.weight for layer in net.modules() if isinstance(layer, Conv)]
    head = [net.classifier.weight]
    own = {*map(id, matrices + head)}
    others = [p for p in net.parameters() if p.requires_grad and id(p) not in own]
    decay = DECAY * recipe.batch_size
    groups = [
        {"params": head, "lr": HEAD, "weight_decay": decay / HEAD},
        {"params": others, "lr": BIASES, "weight_decay": decay / BIASES},
    ]
    made = []
    if recipe.muon:
        rate = MUON * (recipe.batch_size / 500) ** 0.5
        made.append(Muon(matrices, lr=rate, momentum=0.6, weight_decay=0.0, ns_steps=3))
    else:
        groups.append({"params": matrices, "lr": SGD})
    made.append(optim.SGD(groups, lr=SGD, momentum=0.85, nesterov=True))
    for group in (group for one in made for group in one.param_groups):
        group["initial_lr"] = group["lr"]
    return made


def _batches(
    data: ImageData, recipe: Recipe, steps: int, seed: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """As many batches as there are steps, an equal part of them for each of `sizes`."""
    done, epoch, layout = 0, 0, _layout(recipe)
    for part, size in enumerate(recipe.sizes, 1):
        batches_of = feed(data, recipe, size, seed, device)
        until = steps * part // len(recipe.sizes)
        while done < until:
            for images, labels in islice(batches_of(epoch), until - done):
                yield images.to(device, memory_format=layout), labels.to(device)
                done += 1
            epoch += 1


def feed(
    data: ImageData, recipe: Recipe, size: int, seed: int, device: torch.device
) -> Callable[[int], Iterable]:
    """A function of the epoch that gives its batches."""
    if not recipe.whole_batches:
        loader = tutorial_loader(data, recipe.batch_size)
        return lambda epoch: loader
    view = replace(data, size=None if size == data.train.images.shape[-1] else size)
    batch = recipe.batch_size
    if recipe.augment:
        return TakingTurns(view, data.train, batch, True, True, device, seed, 1).epoch
    return view.batches("train", batch, augment=False, seed=seed, device=device).epoch


class TakingTurns(Batches):
    """Batches whose images are mirrored in every second epoch, and moved by 2 pixels at most.

    Chance shows half of the images the same side twice in two epochs; this shows all of them both.
    Source: Jordan, 2024 (airbench).
    """

    def __post_init__(self):
        super().__post_init__()
        random = torch.Generator(self.device).manual_seed(self.seed)
        self.first = torch.rand(len(self.split), generator=random, device=self.device) < 0.5
        self.turn = False

    def epoch(self, n: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """As of `Batches`; those of one epoch are to be taken before the next is begun."""
        self.turn = bool(n % 2)
        return super().epoch(n)

    def _augmented(self, rows: Tensor, random: torch.Generator) -> Tensor:
        down, right = torch.randint(2, 7, (2, len(rows)), generator=random, device=self.device)
        images = self.crops[rows, down, right]  # of 9 x 9 places; the fifth moves nothing
        mirrored = (self.first[rows] ^ self.turn)[:, None, None, None]
        return torch.where(mirrored, images.flip(2), images)  # a mask would make a GPU wait


def orthogonalise(gradient: Tensor, steps: int) -> Tensor:
    """A matrix like `gradient`, float [rows, columns], with all singular values near 1.

    By a Newton-Schulz iteration, as `torch.optim.Muon` does it in bf16. Source: Jordan, "Muon",
    2024, with its coefficients.
    """
    x = gradient / (gradient.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x


class _Pictures(Dataset):
    """A split as PyTorch's tutorial has it: pictures, turned into tensors one by one."""

    def __init__(self, split: Split, transform: Callable):
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        pixels = self.split.images[i].permute(1, 2, 0).numpy()
        return self.transform(pixels), int(self.split.labels[i])


def tutorial_loader(data: ImageData, batch_size: int) -> DataLoader:
    """The training images as in PyTorch's tutorial on CIFAR-10, with its two workers.

    Source: docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html
    """
    import_torchvision()
    from torchvision.transforms import Compose, Normalize, ToTensor

    transform = Compose([ToTensor(), Normalize(data.mean, data.std)])
    pictures = _Pictures(data.train, transform)
    return DataLoader(pictures, batch_size, shuffle=True, num_workers=2, drop_last=True)


def judge(trained: Trained, data: ImageData, split: Split, device: torch.device) -> Tensor:
    """Logits for all of `split`, float [N, classes]; with `four_views` means of four for each."""
    trained.net.eval()
    answers, layout = [], _layout(trained.recipe)
    precision = choose_precision(device, trained.recipe.precision)
    with torch.inference_mode(), autocast(device, precision):
        for images, _ in data.batches(split, 500, device=device).epoch():
            views = [images]
            if trained.recipe.four_views:
                moved = F.pad(images, (1, 0, 1, 0), mode="reflect")[:, :, :-1, :-1]
                views = [images, images.flip(3), moved, moved.flip(3)]
            views = [view.contiguous(memory_format=layout) for view in views]
            answers.append(sum(trained.net(view).float() for view in views) / len(views))
    return torch.cat(answers).cpu()


def keep_memory() -> None:
    """Ask the C library to keep freed memory, so that the next batch finds it mapped already.

    By default glibc gives large blocks back to the system, which must clear and map each page of
    the next one again. Elsewhere than on Linux nothing happens.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):
            library.mallopt(parameter, value)  # of malloc.h: mmap_max, trim_threshold, top_pad
