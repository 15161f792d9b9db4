"""Teach a pretrained network new classes: its head first, then all but its first layers.

The recipe of a profile is what `profiles.toml` gives `03_pretrained_zoo`, so that the notebooks
after it find the network that this one trained, or train the same themselves: `get_or_train`.
"""

import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvlab import store
from cvlab.data import Batches, ImageData, load
from cvlab.lessons.pretrained import zoo
from cvlab.paths import project_root
from cvlab.profiles import profiles
from cvlab.run import Run
from cvlab.train import History, Training, fit, predict

NOTEBOOK = "03_pretrained_zoo"
RECIPE = ("model", "size", "head_images", "frozen_layers")
RECIPE += ("epochs", "parts", "patience", "batch_size", "lr")
EVAL_BATCH = 25  # larger ones leave the cache of a CPU
TRAINING = Training(
    optimizer="AdamW",
    lr=1e-3,
    weight_decay=0.05,
    schedule="one-cycle",
    label_smoothing=0.1,
    precision="fp32",  # bf16 makes the backward pass of depthwise convolutions slower on a CPU
    batch_size=64,
)


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
    _, head = head_of(net)
    seen = []
    with head.register_forward_pre_hook(lambda _, given: seen.append(given[0].float())):
        _, labels = predict(net, batches)
    return torch.cat(seen).cpu(), labels


def fit_head(seen: Tensor, labels: Tensor, classes: int, seed: int) -> nn.Linear:
    """A new head, trained on what `features` gives, which takes seconds.

    300 steps of AdamW, on 512 random rows each, the rate falling from 0.01 to 0.
    """
    torch.manual_seed(seed)
    head = nn.Linear(seen.shape[1], classes)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 300)
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


def with_head_for(net: nn.Module, batches: Batches, run: Run) -> nn.Module:
    """A copy of `net` with a new head for the classes of `batches`, trained on their features."""
    head = fit_head(*features(net, batches), len(batches.data.classes), run.seed)
    other = deepcopy(net)
    replace_head(other, head.to(run.device))
    return other


def with_new_head(data: ImageData, recipe: SimpleNamespace, run: Run) -> nn.Module:
    """A pretrained network whose new head is trained on features of `head_images` images.

    Args:
        data: as the network sees it, see `cvlab.lessons.pretrained.zoo.as_seen_by`.
        recipe: the names in `RECIPE`, and `download`, "yes" or "no", as in profiles.toml.
        run: its seed and device.
    """
    net = zoo.pretrained(recipe.model, run.data, allow_download=recipe.download == "yes")
    some = data.batches(data.train.take(recipe.head_images), EVAL_BATCH, device=run.device)
    return with_head_for(net.to(run.device), some, run)


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

    `TRAINING` is AdamW, one-cycle, crops and mirror images, label smoothing 0.1. Arguments as of
    `with_new_head`, which made `net`, and of `cvlab.train.fit`.
    """
    freeze(net, recipe.frozen_layers)
    training = replace(
        TRAINING,
        lr=recipe.lr,
        precision="fp32" if run.device.type == "cpu" else "auto",
        epochs=recipe.epochs,
        patience=recipe.patience,
        batch_size=recipe.batch_size,
        parts=recipe.parts,
        seed=run.seed,
    )
    what = f"fine-tuning {recipe.model}"
    return fit(
        net, data, training, device=run.device, checkpoint=checkpoint, watch=watch, what=what
    )


def model_file(recipe: SimpleNamespace, run: Run) -> Path:
    """Where the network of this recipe is kept for all notebooks; `run` has loaded its data."""
    facts = {name: getattr(recipe, name, None) for name in (*RECIPE, "n_train", "n_val")}
    facts |= {"seed": run.seed, "data": run.fingerprint}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    return project_root() / "data" / "models" / f"{recipe.model}-{digest}.pt"


def get_or_train(run: Run) -> store.Stored:
    """The network that `03_pretrained_zoo` fine-tunes in this profile, from disk or trained now.

    `run`, whose profile and seed choose it, has loaded CIFAR-10 (or its stand-in).

    Raises:
        cvlab.lessons.pretrained.zoo.WeightsError: there are no pretrained weights to begin with.
        cvlab.train.CheckpointError: a file is damaged; the message names it.
    """
    knobs = profiles()[NOTEBOOK][run.profile]
    recipe = SimpleNamespace(**knobs)
    path = model_file(recipe, run)
    if not path.is_file():
        print(f"{NOTEBOOK} has not been run with this profile and seed: {path.name} is trained")
        print("now. The bar shows the time left; a stopped training goes on where it was.")
        n_train, n_val = knobs.get("n_train"), knobs.get("n_val")
        data = load("cifar10", run.data, n_train=n_train, n_val=n_val)
        data = zoo.as_seen_by(zoo.card(recipe.model), data, recipe.size)
        net = with_new_head(data, recipe, run)
        train(net, data, recipe, run, checkpoint=path.with_suffix(".checkpoint"))
        store.save(net, path, data)
    return store.load(path)
