"""What an ONNX classifier of unknown making is and wants: its form, how it is fed, its classes.

Nothing of it is believed that images can show: of the usual ways to feed a network the one is taken
with which it is right, and which output means which class is read from what it answers.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper, version_converter
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cvlab.data import Batches, ImageData, Split
from cvlab.lessons.int8.ladder import megabytes
from cvlab.lessons.int8.quantize import QuantizeError, weights
from cvlab.metrics import Score
from cvlab.paths import replace_atomically
from cvlab.runtime import Model
from cvlab.sources import meant

OPSET = 13  # the first that has a scale for each channel
BATCH = 25  # images, where the model takes any number
SHOWN = 400  # images that ways of feeding are tried on: half to find classes, half to judge
SURE = 1000  # images that the best way is tried on again
USUAL = {  # mean and standard deviation, in 0..1; "own" is the dataset's
    "own": None,
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "-1 to 1": ((0.5,) * 3, (0.5,) * 3),
    "0 to 1": ((0.0,) * 3, (1.0,) * 3),
    "0 to 255": ((0.0,) * 3, (1 / 255,) * 3),
}
FLOATS = (TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Feeding:
    """How a network is fed and what its outputs mean."""

    mean: tuple[float, ...]  # of the channels as they are fed, in 0..1
    std: tuple[float, ...]
    order: str  # of the channels: "rgb" or "bgr"
    classes: tuple[str, ...]  # in the order of the outputs

    def view(self, data: ImageData) -> ImageData:
        """`data` as this network takes it: channels turned round, labels numbered as its outputs.

        Its `size` stays.
        """
        labels = torch.tensor([self.classes.index(name) for name in data.classes])

        def fed(part: Split) -> Split:
            images = part.images.flip(1) if self.order == "bgr" else part.images
            return Split(images, labels[part.labels])

        parts = {name: fed(getattr(data, name)) for name in ("train", "val", "test")}
        return replace(data, **parts, classes=[*self.classes], mean=self.mean, std=self.std)

    def metadata(self) -> dict[str, str]:
        """What is stored in the file, as `cvlab.export.about` does."""
        facts = {"classes": self.classes, "mean": self.mean, "std": self.std}
        return {key: json.dumps(value) for key, value in facts.items()} | {"order": self.order}


@dataclass(frozen=True)
class Examined:
    """A classifier that was understood: ready to be run and quantised."""

    model: Model  # float32 in one file, with what was found in its metadata
    view: ImageData  # the images as it takes them
    about: dict[str, str]  # what it is, in words


def examine(
    file: Path, data: ImageData, folder: Path, stated: Mapping[str, object] | None = None
) -> Examined:
    """Find out what a file is and wants.

    Args:
        file: an ONNX classifier of this dataset's classes.
        data: some of its validation images are shown to the network.
        folder: gets a copy in the form that ONNX Runtime's quantiser can read.
        stated: "mean", "std", "order" or "classes" where the user knows better than the images.

    Raises:
        QuantizeError: it is no such classifier, or no way of feeding it makes it right.
        cvlab.runtime.ModelError: it is damaged or cannot be run.
        FileNotFoundError: there is no such file.
    """
    content, changed = conform(file)
    path = folder / f"{file.stem}-{sha256(content.SerializeToString()).hexdigest()[:12]}.onnx"
    model = Model(replace_atomically(lambda target: onnx.save(content, target), path))
    check_outputs(model, len(data.classes))
    told = _told(model) | dict(stated or {})
    sized = replace(data, size=_side(model, data), interpolation=told["interpolation"])
    feeding, seen = find_feeding(model, sized, told)
    model.metadata = model.metadata | feeding.metadata()
    inputs = (*model.session.get_inputs(), *model.session.get_outputs())
    operators = Counter(node.op_type for node in content.graph.node)
    about = {
        "inputs, outputs": ", ".join(f"{one.name} {one.type[7:-1]} {one.shape}" for one in inputs),
        "operators": ", ".join(f"{n} {kind}" for kind, n in operators.most_common(6)),
        "size": f"{megabytes(file) + _beside(file):.2f} MB",
        "zeros": f"{_zeros(content):.0%} of the weights",
        "made readable": "; ".join(changed) or "nothing to do",
        "fed": f"{feeding.order}, mean {_short(feeding.mean)}, std {_short(feeding.std)}",
        "classes": ", ".join(feeding.classes),
        "right": seen,
    }
    return Examined(model, feeding.view(sized), about)


def _zeros(content: onnx.ModelProto) -> float:
    """The share of zeros among the weights of convolutions and linear layers, see 08_smaller."""
    found = [numpy_helper.to_array(stored).ravel() for stored in weights(content).values()]
    return float(np.mean(np.concatenate(found) == 0)) if found else 0.0


def _short(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def _beside(file: Path) -> float:
    """Megabytes of the weights that lie in files of their own."""
    stored = onnx.load(file, load_external_data=False).graph.initializer
    names = {e.value for tensor in stored for e in tensor.external_data if e.key == "location"}
    return sum(megabytes(file.parent / name) for name in names)


def conform(file: Path) -> tuple[onnx.ModelProto, list[str]]:
    """The model in one piece, float32 and `OPSET` or later; and what had to be changed, in words.

    Raises:
        QuantizeError: it was exported in training mode, or its opset cannot be converted.
        cvlab.runtime.ModelError: it is damaged.
    """
    try:
        content, changed = onnx.load(file), []
    except Exception:  # protobuf's and onnx's own, which name no cure
        Model(file)
        raise
    if _beside(file):
        changed.append("weights of a file beside it taken in")
    graph = content.graph
    normalise = [node for node in graph.node if node.op_type == "BatchNormalization"]
    if any(a.i for node in normalise for a in node.attribute if a.name == "training_mode"):
        raise QuantizeError(
            f"{file} was exported in training mode: its normalisation depends on the batch. "
            "Call model.eval() and export it again."
        )
    stored = {one.name for one in graph.initializer}
    if spare := [one for one in graph.input if one.name in stored]:
        changed.append("weights are no inputs any more")
        for one in spare:
            graph.input.remove(one)
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        _store_constant(graph, node)
    if any(one.data_type in FLOATS for one in graph.initializer):
        _to_float32(content)
        changed.append("made float32")
    if off := _cut_front(graph, onnx.shape_inference.infer_shapes(content).graph):
        changed.append(f"{off} operators in front of the first convolution taken off")
    opset = next((o.version for o in content.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < OPSET:
        try:
            content = version_converter.convert_version(content, OPSET)
        except Exception as error:  # it has no class of its own
            raise QuantizeError(
                f"{file} has opset {opset}, INT8 needs {OPSET} and onnx cannot convert it: {error}."
                f" Export it with opset {OPSET} or later."
            ) from error
        changed.append(f"opset {opset} made {OPSET}")
    return content, changed


def _store_constant(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Make a Constant node a stored tensor, if it holds one."""
    values = [a.t for a in node.attribute if a.name == "value"]
    if values:
        tensor = TensorProto()
        tensor.CopyFrom(values[0])
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        graph.node.remove(node)


def _to_float32(content: onnx.ModelProto) -> None:
    """All numbers of 16 or 64 bits become float32, casts to them too."""
    graph = content.graph
    for tensor in graph.initializer:
        if tensor.data_type in FLOATS:
            value = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for one in (*graph.input, *graph.output):
        if one.type.tensor_type.elem_type in FLOATS:
            one.type.tensor_type.elem_type = TensorProto.FLOAT
    for attribute in (a for node in graph.node if node.op_type == "Cast" for a in node.attribute):
        if attribute.i in FLOATS:
            attribute.i = TensorProto.FLOAT
    del graph.value_info[:]


def _cut_front(graph: onnx.GraphProto, inferred: onnx.GraphProto) -> int:
    """Let images in float, channels first, be the input: preprocessing in the graph is taken off.

    Returns:
        how many operators those are; 0 where the input is so already.
    """
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    known = {one.name: one.type.tensor_type for one in (*inferred.value_info, *inferred.input)}
    name = convolutions[0].input[0] if convolutions else ""
    if name in {one.name for one in graph.input} or name not in known:
        return 0
    if [d.dim_value for d in known[name].shape.dim[1:2]] != [3]:
        return 0
    front, sought = [], {name}
    for node in reversed(graph.node):
        if sought.intersection(node.output):
            front.append(node)
            sought.update(node.input)
    dims = [d.dim_value or d.dim_param or None for d in known[name].shape.dim]
    for node in front:
        graph.node.remove(node)
    del graph.input[:]
    graph.input.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
    return len(front)


def check_outputs(model: Model, classes: int) -> None:
    """Is the first output a number for each class?

    Raises:
        QuantizeError: it is something else; says what there is.
    """
    outputs = model.session.get_outputs()
    shape, kind = outputs[0].shape, outputs[0].type
    known = [dim for dim in shape[1:] if isinstance(dim, int)]
    if ("float" in kind or "double" in kind) and len(shape) == 2 and known in ([], [classes]):
        return
    found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in outputs)
    raise QuantizeError(
        f"{model.path} gives {found}. The first output must be logits or probabilities, "
        f"[N, {classes}]: export the network without what comes after them, and with them first."
    )


def _side(model: Model, data: ImageData) -> int | None:
    """Pixels a side that images are resized to; None as they are."""
    fixed = (model.input.shape[3:] or [0])[0]
    size = int(model.metadata.get("size", fixed if isinstance(fixed, int) else 0))
    return None if size in (0, data.train.images.shape[-1]) else size


def _told(model: Model) -> dict[str, object]:
    """What the file's metadata says: as JSON, as ours does, or separated by commas."""
    known = {"interpolation": model.metadata.get("interpolation", "bilinear")}
    for key in ("mean", "std", "classes"):
        text = model.metadata.get(key)
        if text:
            known[key] = parse(text, float if key != "classes" else str)
    if "order" in model.metadata:
        known["order"] = model.metadata["order"].lower()
    return known


def parse(text: str, kind: type) -> tuple:
    """A list as JSON or separated by commas; one number stands for three.

    Raises:
        QuantizeError: an item is not of this kind, or there are neither one nor three numbers.
    """
    try:
        items = json.loads(text)
    except json.JSONDecodeError:
        items = [item.strip() for item in text.strip("[]() ").split(",")]
    items = items if isinstance(items, list) else [items]
    try:
        found = tuple(kind(item) for item in items)
        found = found * 3 if kind is float and len(found) == 1 else found
        if kind is float and len(found) != 3:
            raise ValueError("neither one nor three")
    except (TypeError, ValueError) as error:
        raise QuantizeError(f"{text!r} was given; one number or three are expected.") from error
    return found


def find_feeding(model: Model, data: ImageData, told: Mapping[str, object]) -> tuple[Feeding, str]:
    """The way of feeding with which a network is right most often, and how often that is.

    What is `told` is taken; the rest is tried on `SHOWN` images, the best on `SURE`. Another way
    than the first, with the dataset's own normalisation, is taken only if it is clearly better.

    Raises:
        QuantizeError: no way is clearly better than guessing; says what was tried.
    """
    some = data.val.take(max(SHOWN, model.batch_size(1)))
    named = _named(told["classes"], data.classes, model.path) if "classes" in told else None
    rows, best = {}, None
    for name, order, (mean, std) in _ways(data, told):
        feeding = Feeding(mean, std, order, tuple(data.classes))
        answer = predict_as(model, data, some, feeding)
        classes = named or assigned(*answer, data.classes)
        feeding = replace(feeding, classes=classes)
        rows[f"{name}, {order}"] = right = correct(*answer, data.classes, classes)
        if best is None or clearly_better(right, best[1]):
            best = feeding, right
    feeding, _ = best
    many = data.val.take(max(SURE, model.batch_size(1)))
    answer = predict_as(model, data, many, feeding)
    feeding = replace(feeding, classes=named or assigned(*answer, data.classes))
    right = correct(*answer, data.classes, feeding.classes)
    share = right.double().mean().item()
    if share < 2 / len(data.classes):
        tried = "; ".join(f"{name} {r.double().mean().item():.0%}" for name, r in rows.items())
        raise QuantizeError(
            f"{model.path} in float is near guessing on {len(right)} validation images, however it "
            f"is fed ({tried}): other classes, another size of image, or not trained? State what "
            "you know by --mean, --std, --order and --classes."
        )
    return feeding, str(Score(math.nan, int(right.sum()), len(right)))


def _ways(data: ImageData, told: Mapping[str, object]) -> list[tuple[str, str, tuple]]:
    """Name, order and (mean, std) of each way to try."""
    usual = {name: pair or (data.mean, data.std) for name, pair in USUAL.items()}
    if "mean" in told and "std" in told:
        usual = {"as stated": (told["mean"], told["std"])}
    orders = (told["order"],) if "order" in told else ("rgb", "bgr")
    ways = []
    for order in orders:
        turn = -1 if order == "bgr" else 1  # but for what is stated
        for name, (mean, std) in usual.items():
            pair = told.get("mean", mean[::turn]), told.get("std", std[::turn])
            ways.append((name, order, pair))
    return ways


def predict_as(
    model: Model, data: ImageData, part: Split, feeding: Feeding
) -> tuple[Tensor, Tensor]:
    """Logits of a part of `data`, float32 [N, classes], and the labels of these images."""
    images = part.images.flip(1) if feeding.order == "bgr" else part.images
    seen = replace(data, mean=feeding.mean, std=feeding.std)
    return model.predict(whole(model, seen, Split(images, part.labels)))


def whole(model: Model, view: ImageData, part: Split) -> Batches:
    """Batches of a part, without what a model of a fixed batch cannot take.

    Raises:
        QuantizeError: not one batch is left.
    """
    size = model.batch_size(BATCH)
    n = len(part) - len(part) % model.batch_size(1)  # 1 where it takes any number
    if n == 0:
        raise QuantizeError(
            f"The model takes {size} images at a time, and there are {len(part)}. Export it with a "
            "smaller batch, or one of any size."
        )
    return view.batches(part.take(n), size)


def assigned(logits: Tensor, labels: Tensor, classes: list[str]) -> tuple[str, ...]:
    """Which output means which class: the assignment with the most probability on the truth.

    As published, unless what the first half says is clearly better on the second.
    """
    half = len(logits) // 2
    tried = meanings(logits[:half], labels[:half], classes)
    published, as_tried = (
        correct(logits[half:], labels[half:], classes, names) for names in (tuple(classes), tried)
    )
    better = clearly_better(as_tried, published)
    return meanings(logits, labels, classes) if better else tuple(classes)


def meanings(logits: Tensor, labels: Tensor, classes: list[str]) -> tuple[str, ...]:
    """The class of each output, each taken once, by the Hungarian method."""
    truth = torch.nn.functional.one_hot(labels, len(classes)).double()
    outputs, found = linear_sum_assignment(logits.double().softmax(1).T @ truth, maximize=True)
    return tuple(classes[i] for i in found[np.argsort(outputs)])


def correct(logits: Tensor, labels: Tensor, classes: list[str], meaning: tuple[str, ...]) -> Tensor:
    """Is each answer right, if the outputs mean these classes? Boolean [N]."""
    label_of = torch.tensor([classes.index(name) for name in meaning])
    return label_of[logits.argmax(1)] == labels


def clearly_better(one: Tensor, other: Tensor) -> bool:
    """Is `one` right in more of the same images, by 3 standard errors of the difference?"""
    won, lost = (one & ~other).sum().item(), (other & ~one).sum().item()
    return won - lost > 3 * (won + lost) ** 0.5


def _named(given: object, classes: list[str], path: Path) -> tuple[str, ...]:
    """The dataset's names for those that a file gives, in the file's order.

    Raises:
        QuantizeError: they are others.
    """
    names = tuple(meant(str(name)) for name in given)
    if sorted(names) != sorted(classes):
        raise QuantizeError(
            f"{path} tells {len(names)} classes apart ({', '.join(map(str, given))}); the dataset "
            f"has {len(classes)}: {', '.join(classes)}. Name the dataset it was trained on, or "
            "state the names in the order of its outputs by --classes."
        )
    return names
