"""CIFAR as uint8 tensors: where it comes from, how it is split, how it is fed to a network.

Data is looked for in this order: an archive in the data folder (torchvision's extracted pickles,
its `.tar.gz`, a class-folder `.tgz`), each with a cache of its decoded images; a cache alone; a
download; the synthetic stand-in. See `cvlab.sources` for the formats.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import torch
from torch.nn import functional as F

from cvlab import sources, synthetic
from cvlab.paths import data_folder, wants_stand_in

VAL_PER_CLASS = 0.1  # of the training images: 5,000 of CIFAR-10's 50,000
SPLIT_SEED = 2009  # never the notebook's seed: all notebooks must hold out the same images
STAND_IN = {"train": 600, "test": 200}  # images per class of the synthetic stand-in


@dataclass(frozen=True)
class Split:
    """Images, uint8 [N, 3, H, W], and labels, int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def take(self, n: int | None) -> "Split":
        """`n` images spread evenly over the classes, always the same ones; all of them for None."""
        if n is None or n >= len(self):
            return self
        if n < 1:
            raise ValueError(f"take({n}) was asked for; at least 1 image is needed.")
        return self.select(_round_robin(self.labels.numpy())[:n])

    def rest(self, n: int) -> "Split":
        """The images that `take(n)` leaves."""
        return self.select(_round_robin(self.labels.numpy())[n:])

    def select(self, indices: np.ndarray) -> "Split":
        """The images at `indices`, int [n], in that order."""
        chosen = torch.as_tensor(indices)
        return Split(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class ImageData:
    """A dataset in three parts. `source` says where it came from, `real` whether it is CIFAR."""

    name: str
    classes: list[str]
    train: Split
    val: Split
    test: Split
    source: str
    real: bool
    mean: tuple[float, float, float]  # of the training images, per channel, in 0..1
    std: tuple[float, float, float]
    size: int | None = None  # pixels a side that batches are resized to; None leaves 32
    interpolation: str = "bilinear"
    fingerprint: str = ""  # of all training images, whatever was taken or how they are seen

    def batches(
        self,
        part: str | Split,
        batch_size: int,
        *,
        augment: bool | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
        parts: int = 1,
    ) -> "Batches":
        """Feed "train" shuffled and augmented, "val", "test" or any `Split` in order, as they are.

        augment=False feeds "train" shuffled only; `parts`: see `Batches`.
        """
        choices = ("train", "val", "test")
        if not isinstance(part, Split) and part not in choices:
            raise ValueError(f"part={part!r} was given; choose one of {choices}, or give a Split.")
        split = part if isinstance(part, Split) else getattr(self, part)
        shuffle = part == "train"
        augment = shuffle if augment is None else augment
        return Batches(self, split, batch_size, shuffle, augment, torch.device(device), seed, parts)

    def take(
        self, n_train: int | None = None, n_val: int | None = None, n_test: int | None = None
    ) -> "ImageData":
        """At most so many images of each part, see `Split.take`; None keeps the part whole."""
        train, val, test = self.train.take(n_train), self.val.take(n_val), self.test.take(n_test)
        return replace(self, train=train, val=val, test=test)

    def __str__(self) -> str:
        """One line: name, source, sizes."""
        kind = "" if self.real else "SYNTHETIC STAND-IN, not "
        sizes = f"{len(self.train):,} train / {len(self.val):,} val / {len(self.test):,} test"
        return f"{kind}{sources.TITLES[self.name]} · {self.source} · {sizes}"


def load(
    name: str,
    where: str = "auto",
    *,
    classes: Sequence[str] | None = None,
    allow_download: bool = True,
    n_train: int | None = None,
    n_val: int | None = None,
    n_test: int | None = None,
) -> ImageData:
    """Load a dataset from the best source there is.

    Args:
        name: "cifar10" or "cifar100".
        where: "auto" (`$CVLAB_DATA`, else `data/`), a folder, or "synthetic".
        classes: a subset of the class names, relabelled 0..n-1 in the order given.
        allow_download: fetch the original archive when nothing is on disk.
        n_train: at most so many training images, see `Split.take`; likewise `n_val`, `n_test`.

    Raises:
        ValueError: unknown dataset or class name; the message lists or suggests the choices.
        cvlab.sources.DataError: an archive is there but damaged.
        FileNotFoundError: `where` names a folder that does not exist.
    """
    if name not in sources.TITLES:
        raise ValueError(f"Dataset {name!r} was given; choose one of {sorted(sources.TITLES)}.")
    raw = None
    if not wants_stand_in(where):
        raw = sources.read(name, data_folder(where), allow_download=allow_download)
    if raw is None:
        raw = stand_in(name, classes)
    elif classes is not None:
        raw = sources.keep_classes(raw, classes)
    train, val = _hold_out(_tensors(raw.train))
    mean, std = _statistics(train.images)
    test = _tensors(raw.test)
    facts = json.dumps([name, raw.classes, raw.real, mean, std])  # exact counts of all pixels
    fingerprint = sha256(facts.encode()).hexdigest()[:8]
    parts, origin = (train, val, test), (raw.source, raw.real)
    data = ImageData(name, raw.classes, *parts, *origin, mean, std, fingerprint=fingerprint)
    return data.take(n_train, n_val, n_test)


def stand_in(name: str, classes: Sequence[str] | None = None) -> sources.RawData:
    """The synthetic stand-in for a dataset, drawn anew: see `cvlab.synthetic`."""
    published = sources.class_names(name)
    names = list(classes or published)
    sources.check_classes(names, published, sources.TITLES[name])
    parts = {}
    for seed, (part, per_class) in enumerate(STAND_IN.items()):
        labels = np.repeat(np.arange(len(names)), per_class)
        parts[part] = (synthetic.draw(labels, names, seed), labels)
    return sources.RawData(names, parts["train"], parts["test"], "drawn by cvlab", real=False)


def _tensors(part: tuple[np.ndarray, np.ndarray]) -> Split:
    images, labels = part
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels).long())


def _round_robin(labels: np.ndarray) -> np.ndarray:
    """All indices in an order whose every prefix holds the classes in nearly equal numbers."""
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    by_class = [shuffled[labels[shuffled] == c] for c in np.unique(labels)]
    rank = np.concatenate([np.arange(len(rows)) for rows in by_class])
    return np.concatenate(by_class)[np.argsort(rank, kind="stable")]


def _hold_out(everything: Split) -> tuple[Split, Split]:
    """Keep the same tenth of each class for validation, whatever the notebook's seed."""
    order = _round_robin(everything.labels.numpy())
    held_out = round(len(order) * VAL_PER_CLASS)
    return everything.select(np.sort(order[held_out:])), everything.select(order[:held_out])


def _statistics(images: torch.Tensor) -> tuple[tuple, tuple]:
    """Mean and standard deviation per channel in 0..1, from exact counts of the 256 levels."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.unbind(1)])
    weights = counts.double() / counts.sum(1, keepdim=True)
    mean = weights @ levels
    std = ((weights @ levels**2) - mean**2).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


@dataclass(eq=False, repr=False)
class Batches:
    """Batches of normalised float images on a device: a whole batch is cropped and flipped at once.

    The images stay uint8, padded once by 4 reflected pixels. All 9 x 9 crops of an image are a
    strided view of it, so a batch of random crops is one indexing operation; no worker process,
    no per-image Python. `epoch(n)` depends on the seed and on n alone: an interrupted run that
    starts again at epoch n sees the very batches it would have seen.

    Made by `ImageData.batches`; finished ones get its `size`. With `parts`, an epoch is only that
    fraction of a pass over the images, so that long passes are judged more often.
    """

    data: ImageData
    split: Split
    batch_size: int
    shuffle: bool
    augment: bool
    device: torch.device
    seed: int
    parts: int

    def __post_init__(self):
        split, parts = self.split, self.parts
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} was given; it must be at least 1.")
        if self.augment and not self.shuffle:
            raise ValueError('augment=True is for "train": evaluation takes images as they are.')
        if len(split) == 0:
            raise ValueError("The split holds no images.")
        if not 1 <= parts <= len(split) or (parts > 1 and not self.shuffle):
            raise ValueError(
                f"parts={parts} was given for {len(split)} images; at least one image a part is "
                "needed, and only shuffled batches come in parts."
            )
        self.batch_size = min(self.batch_size, len(split) // parts)
        mean, std = torch.tensor(self.data.mean), torch.tensor(self.data.std)
        self.scale, self.shift = (1 / (255 * std)).to(self.device), (-mean / std).to(self.device)
        self.labels = split.labels.to(self.device)
        images = _padded(split.images, 4 if self.augment else 0).to(self.device)
        height, width = split.images.shape[2:]
        # a view [N, 9, 9, H, W, 3] or [N, 1, 1, ...]: every crop in contiguous rows, nothing copied
        self.crops = images.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)

    def __len__(self) -> int:
        """Batches in an epoch: the last, incomplete one is kept in order, dropped when shuffled."""
        n = len(self.split) // self.parts
        return n // self.batch_size if self.shuffle else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The first epoch, so that `list(batches)` keeps it."""
        return self.epoch()

    def epoch(self, n: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (images float32 [B, 3, H, W] in channels_last, labels int64 [B]) of epoch `n`."""
        done, part = divmod(n, self.parts)
        random = torch.Generator(self.device).manual_seed(self.seed * 100_003 + done)
        order = torch.arange(len(self.split), device=self.device)
        if self.shuffle:
            order = torch.randperm(len(self.split), generator=random, device=self.device)
        if part:  # the same pass, but not the same crops again
            random.manual_seed(self.seed * 100_003 + n + 50_000)
        order = order[part * (len(order) // self.parts) :][: len(self) * self.batch_size]
        for rows in order.split(self.batch_size):
            images = self._augmented(rows, random) if self.augment else self.crops[rows, 0, 0]
            yield self._normalise(images), self.labels[rows]

    def _augmented(self, rows: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        offsets, device = self.crops.shape[1], self.device
        down, right = torch.randint(offsets, (2, len(rows)), generator=random, device=device)
        images = self.crops[rows, down, right]  # [B, H, W, 3]
        mirrored = torch.rand(len(rows), generator=random, device=device) < 0.5
        images[mirrored] = images[mirrored].flip(2)
        return images

    def _normalise(self, images: torch.Tensor) -> torch.Tensor:
        images, size = images.float(), self.data.size
        if size:  # as image libraries do it: bicubic overshoots at edges, and is cut off there
            planes = images.permute(0, 3, 1, 2)
            planes = F.interpolate(planes, size, mode=self.data.interpolation, antialias=True)
            images = planes.clamp_(0, 255).permute(0, 2, 3, 1)
        images = images.mul_(self.scale).add_(self.shift)  # NHWC: channels come last
        return images.permute(0, 3, 1, 2)  # seen as NCHW this is torch's channels_last


def _padded(images: torch.Tensor, pad: int) -> torch.Tensor:
    """[N, H, W, 3], edges reflected; by NumPy, as torch needs floats and eight times as long."""
    pixels = images.permute(0, 2, 3, 1).numpy()
    padded = np.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    return torch.from_numpy(padded)
