"""Teach a pretrained network new classes: its head first, then all but its first layers.

The recipe of a profile is what `profiles.toml` gives `03_pretrained_zoo`, so that the notebooks
after it find the network that this one trained, or train the same themselves: `get_or_train`.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvlab import store, zoo
from cvlab.data import ImageData, load
from cvlab.paths import project_root
from cvlab.profiles import profiles
from cvlab.run import Run
from cvlab.train import History, fit, predict

NOTEBOOK = "03_pretrained_zoo"


RECIPE = ("model", "size", "head_images", "frozen_layers")


RECIPE += ("epochs", "parts", "patience", "batch_size", "lr")


EVAL_BATCH = 25  # larger ones leave the cache of a CPU


def head_of(net: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of the last linear layer, which makes logits of features.

    Raises:
        ValueError: the network has none.
    """
    linear = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(net).__name__} has no linear layer to replace; choose another.")
    return linear[-1]


def features(net: nn.Module, batches) -> tuple[Tensor, Tensor]:
    """What the head is given for each image: float32 [N, features], with labels int64 [N]."""
    seen = []
    hook = head_of(net)[1].register_forward_pre_hook(lambda _, given: seen.append(given[0].float()))
    try:
        _, labels = predict(net, batches)
    finally:
        hook.remove()
    return torch.cat(seen).cpu(), labels


def fit_head(seen: Tensor, labels: Tensor, classes: int, *, steps: int = 300, seed: int = 0):
    """A new head, `nn.Linear`, trained on cached features: takes seconds.

    Args:
        seen: float32 [N, features], of `features`.
        labels: int64 [N].
        classes: logits to give.
        steps: of AdamW, on 512 random rows each, the rate falling from 0.01 to 0.
        seed: of weights and rows.
    """
    torch.manual_seed(seed)
    head = nn.Linear(seen.shape[1], classes)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        rows = torch.randint(len(seen), (512,))
        optimizer.zero_grad()
        F.cross_entropy(head(seen[rows]), labels[rows]).backward()
        optimizer.step()
    return head


def replace_head(net: nn.Module, head: nn.Linear) -> None:
    """Put `head` where the network's own was."""
    path = head_of(net)[0].split(".")
    setattr(net.get_submodule(".".join(path[:-1])), path[-1], head)
    net.arguments = net.arguments | {"classes": head.out_features}


def freeze(net: nn.Module, layers: int) -> None:
    """Keep the first `layers` convolutions as they are, with the normalisation between them.

    `fit` leaves frozen layers in eval mode: their statistics stay those of ImageNet.
    """
    convolutions = 0
    for module in net.modules():
        convolutions += isinstance(module, nn.Conv2d)
        if convolutions > layers:
            break
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)


def with_new_head(data: ImageData, recipe: SimpleNamespace, run: Run, **weights) -> nn.Module:
    """A pretrained network whose new head is trained on features of `head_images` images.

    Args:
        data: as the network sees it, see `cvlab.zoo.as_seen_by`.
        recipe: with the names in `RECIPE`.
        run: its seed and device.
        weights: `allow_download`, see `cvlab.zoo.pretrained`.
    """
    net = zoo.pretrained(recipe.model, run.data, **weights).to(run.device)
    some = data.batches(data.train.take(recipe.head_images), EVAL_BATCH, device=run.device)
    head = fit_head(*features(net, some), len(data.classes), seed=run.seed)
    replace_head(net, head.to(run.device))
    return net


def train(
    net: nn.Module,
    data: ImageData,
    recipe: SimpleNamespace,
    run: Run,
    *,
    checkpoint: Path | None = None,
    watch: Callable | None = None,
) -> History:
    """Fine-tune `net` in place with a low rate, its first layers frozen.

    AdamW, one-cycle, crops and mirror images, label smoothing 0.1; the weights of the best epoch
    are kept. On a CPU in fp32: bf16 makes the backward pass of depthwise convolutions slower.

    Args:
        net: of `with_new_head`.
        data: as the network sees it.
        recipe: with the names in `RECIPE`.
        run: its seed and device.
        checkpoint: to store every epoch in and to go on from, see `cvlab.train.fit`.
        watch: as of `fit`.
    """
    freeze(net, recipe.frozen_layers)
    batches = {"seed": run.seed, "device": run.device, "parts": recipe.parts}
    train = data.batches("train", recipe.batch_size, **batches)
    val = data.batches("val", EVAL_BATCH, device=run.device)
    how = {"optimizer": "AdamW", "weight_decay": 0.05, "schedule": "one-cycle"}
    how |= {"label_smoothing": 0.1, "precision": "fp32" if run.device.type == "cpu" else "auto"}
    limits = {"epochs": recipe.epochs, "patience": recipe.patience, "lr": recipe.lr}
    what = f"fine-tuning {recipe.model}"
    return fit(net, train, val, **limits, **how, checkpoint=checkpoint, watch=watch, what=what)


def model_file(recipe: SimpleNamespace, run: Run) -> Path:
    """Where the network of this recipe is kept for all notebooks; `run` has loaded its data."""
    facts = {name: getattr(recipe, name, None) for name in (*RECIPE, "n_train", "n_val")}
    facts |= {"seed": run.seed, "real": run.real}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    return project_root() / "data" / "models" / f"{recipe.model}-{digest}.pt"


def get_or_train(run: Run) -> store.Stored:
    """The network that `03_pretrained_zoo` fine-tunes in this profile, from disk or trained now.

    Args:
        run: its profile and seed choose the network; it has loaded CIFAR-10 (or its stand-in).

    Raises:
        cvlab.zoo.WeightsError: there are no pretrained weights to begin with.
        cvlab.train.CheckpointError: a file is damaged; the message names it.
    """
    recipe = SimpleNamespace(**profiles()[NOTEBOOK][run.profile])
    path = model_file(recipe, run)
    if not path.is_file():
        print(f"{NOTEBOOK} has not been run with this profile and seed: {path.name} is trained")
        print("now. The bar shows the time left; a stopped training goes on where it was.")
        parts = {part: getattr(recipe, part, None) for part in ("n_train", "n_val")}
        data = load("cifar10", run.data, **parts)
        data = zoo.as_seen_by(zoo.card(recipe.model), data, recipe.size)
        net = with_new_head(data, recipe, run, allow_download=recipe.download == "yes")
        train(net, data, recipe, run, checkpoint=path.with_suffix(".checkpoint"))
        store.save(net, path, data)
    return store.load(path)
