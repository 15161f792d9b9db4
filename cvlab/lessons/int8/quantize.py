"""INT8 with ONNX Runtime. A `Recipe` says what is quantised and how, `Source.make` writes the file.

Quantised numbers are integers q with a scale s and a zero point z: x = s (q - z).
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime import quantization as ort_quantization
from onnxruntime.quantization import CalibrationMethod, QuantType, quant_utils
from torch import Tensor

from cvlab import runtime
from cvlab.paths import replace_atomically
from cvlab.runtime import Model

ACTIVATIONS = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}

TARGETS = ("any", "vnni")  # CPUs that shall run a file: all, or only those with VNNI

RANGES = {  # what is taken for the range of an activation, from the calibration images
    "min-max": (CalibrationMethod.MinMax, {}),
    "percentile 99.99": (CalibrationMethod.Percentile, {"percentile": 99.99}),
    "percentile 99.9": (CalibrationMethod.Percentile, {"percentile": 99.9}),
    # with ONNX Runtime's own 128 bins the whole range is the only candidate
    "entropy": (CalibrationMethod.Entropy, {"num_bins": 512}),
}

WEIGHTED = ("Conv", "Gemm", "MatMul")

POINTWISE = ("Clip", "Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu")

ALREADY = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger")
ALREADY += ("MatMulInteger", "QLinearConv", "QLinearMatMul")


class QuantizeError(ValueError):
    """A model cannot be quantised as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Recipe:
    """How a network becomes INT8; the default is the best start on an x86 CPU.

    `kind` "weights" stores weights as INT8 and computes in float, "dynamic" measures the range
    of activations at every call, "static" has it fixed by calibration images.

    On x86 without VNNI static convolutions add pairs of products in 16 bits, where they always
    fit if weights have 7 bits. So for "any" they have 7, but 8 in depthwise ones, which add in 32
    bits everywhere, as "dynamic" does with its uint8 weights. ONNX Runtime rewrites int8
    activations as uint8 when it loads a model, so they change nothing of this.
    """

    kind: str = "static"
    per_channel: bool = True  # a scale for every output channel of a weight, or one for all
    activations: str = "uint8"  # a key of ACTIVATIONS
    ranges: str = "min-max"  # a key of RANGES; static only
    keep: tuple[str, ...] = ()  # layers left in float, each with its activation function
    target: str = "any"  # of TARGETS

    def __post_init__(self):
        choices = {"kind": ("weights", "dynamic", "static"), "activations": (*ACTIVATIONS,)}
        for name, known in (choices | {"ranges": (*RANGES,), "target": TARGETS}).items():
            if getattr(self, name) not in known:
                raise QuantizeError(f"{name}={getattr(self, name)!r} was given, choose of {known}.")

    def __str__(self) -> str:
        """As in `static, per channel, min-max, 2 layers in float`."""
        words = [self.kind, "per channel" if self.per_channel else "per tensor"]
        words += [self.ranges] if self.kind == "static" else []
        words += ["int8 activations"] if self.activations == "int8" else []
        words += ["for VNNI"] if self.needs_vnni else []
        many = "layers" if len(self.keep) > 1 else "layer"
        return ", ".join(words + ([f"{len(self.keep)} {many} in float"] if self.keep else []))

    @property
    def needs_vnni(self) -> bool:
        """May its sums saturate on x86 without VNNI?"""
        return self.kind == "static" and self.target == "vnni"

    @property
    def key(self) -> str:
        """All of it as JSON, for names of files and journals."""
        return json.dumps(vars(self))


LADDER = {
    "weights only, per tensor": Recipe("weights", per_channel=False),
    "weights only, per channel": Recipe("weights"),
    "dynamic, per tensor": Recipe("dynamic", per_channel=False),
    "static, per tensor": Recipe(per_channel=False),
    "static, per channel": Recipe(),
    "… percentile 99.99": Recipe(ranges="percentile 99.99"),
    "… percentile 99.9": Recipe(ranges="percentile 99.9"),
    "… entropy": Recipe(ranges="entropy"),
    "… int8 activations": Recipe(activations="int8"),
}


class Source:
    """A float model, ready to be quantised, with the images to calibrate it on.

    Ranges are found once for each of `RANGES` and kept in `folder`, as are the models made.
    """

    def __init__(self, model: Model, calibration: Tensor, folder: Path):
        """Check and prepare `model`.

        Args:
            model: in fp32 with one input, images.
            calibration: normalised float32 [N, 3, H, W]; take them from the training images.
            folder: where files are put.

        Raises:
            QuantizeError: the model cannot be quantised, or does not take these images.
        """
        _check(model)
        whole = len(calibration) - len(calibration) % model.batch_size(1)
        self.float_model, self.images = model, calibration[:whole].numpy()
        model.check(self.images[: model.batch_size(16)])
        digest = sha256(model.path.read_bytes() + self.images.tobytes()).hexdigest()[:12]
        self.folder = folder / f"int8-{digest}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prepared = self.folder / "prepared.onnx"
        replace_atomically(lambda path: _prepare(model.path, path), self.prepared)
        self.layers = layers(onnx.load(self.prepared))

    def feeds(self, size: int) -> list[dict[str, np.ndarray]]:
        """The calibration images as the model is fed, `size` at a time or as many as it takes."""
        step, name = self.float_model.batch_size(size), self.float_model.input.name
        return [{name: self.images[i : i + step]} for i in range(0, len(self.images), step)]

    def ranges(self, kind: str) -> Path:
        """The file with the range of every activation, made by running the images if need be."""
        path = self.folder / f"{kind.replace(' ', '_')}.json"
        if not path.is_file():
            found = calibrate(self.prepared, self.feeds(16), kind)
            replace_atomically(lambda file: ort_quantization.save_tensors_data(found, file), path)
        return path

    def make(self, recipe: Recipe, path: Path | None = None, *, pinned: bool = True) -> Model:
        """Write the INT8 model, by default to a name of its own in `folder`, and load it.

        Args:
            recipe: what to quantise and how.
            path: file to write.
            pinned: see `pin`; False leaves the file as ONNX Runtime's quantiser makes it.

        Raises:
            QuantizeError: the recipe keeps layers that the model does not have.
        """
        if unknown := set(recipe.keep) - set(self.layers):
            raise QuantizeError(
                f"There is no layer {', '.join(sorted(unknown))}; choose of {[*self.layers]}."
            )
        name = sha256(f"{recipe.key}{pinned}".encode()).hexdigest()[:12]
        path = path or self.folder / f"{name}.onnx"

        def write(file: Path) -> None:
            content = self._quantized(recipe)
            if pinned:
                pin(content, recipe.keep)
            about = {"int8": str(recipe), "int8_target": "vnni" if recipe.needs_vnni else "any"}
            helper.set_model_props(content, self.float_model.metadata | about)
            onnx.checker.check_model(content)
            onnx.save(content, file)

        return Model(replace_atomically(write, path))

    def _quantized(self, recipe: Recipe) -> onnx.ModelProto:
        if recipe.kind == "weights":
            return weights_only(onnx.load(self.prepared), recipe)
        exclude = [name for layer in recipe.keep for name in self.layers[layer]]
        with TemporaryDirectory() as folder, runtime.quiet():
            file = Path(folder) / "int8.onnx"
            if recipe.kind == "dynamic":
                ort_quantization.quantize_dynamic(
                    self.prepared,
                    file,
                    per_channel=recipe.per_channel,
                    nodes_to_exclude=exclude,
                    # its default, int8, has no zero point, loses more, and can saturate
                    weight_type=QuantType.QUInt8,
                )
            else:
                ort_quantization.quantize_static(
                    self.prepared,
                    file,
                    per_channel=recipe.per_channel,
                    reduce_range=recipe.target == "any",
                    nodes_to_exclude=exclude,
                    weight_type=QuantType.QInt8,
                    activation_type=ACTIVATIONS[recipe.activations],
                    extra_options={"TensorQuantOverrides": eight_bits(self.prepared, recipe)},
                    calibrate_method=RANGES[recipe.ranges][0],
                    calibration_cache_path=self.ranges(recipe.ranges),
                )
            return onnx.load(file)


def _check(model: Model) -> None:
    """Can it be quantised?"""
    content, inputs = onnx.load(model.path), model.session.get_inputs()
    kinds = {node.op_type for node in content.graph.node}
    if done := kinds & set(ALREADY):
        raise QuantizeError(
            f"{model.path} is quantised already: it holds {', '.join(sorted(done))}. Give the "
            "float model that it was made from."
        )
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        found = ", ".join(f"{one.name} {one.shape}" for one in inputs) or "none"
        raise QuantizeError(
            f"{model.path} has the inputs {found}: calibration needs exactly one, images "
            "[N, 3, H, W]."
        )
    if inputs[0].type != "tensor(float)":
        raise QuantizeError(
            f"{model.path} takes {inputs[0].type}, not float images. Quantise the network in fp32 "
            "first, then put pixels in front of it with cvlab.lessons.engines.deploy.with_pixels."
        )
    if not layers(content):
        raise QuantizeError(
            f"{model.path} has nothing to quantise: no Conv, Gemm or MatMul with float32 weights "
            f"among {', '.join(sorted(kinds))}."
        )


def _prepare(model: Path, path: Path) -> None:
    """Fold constants, infer shapes, give every node a name of its own."""
    with runtime.quiet():
        ort_quantization.quant_pre_process(model, path, skip_symbolic_shape=True)
    prepared, seen = onnx.load(path), set()
    for i, node in enumerate(prepared.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{i}"
        seen.add(node.name)
    onnx.save(prepared, path)


def weights(content: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Name of each Conv, Gemm and MatMul to its float32 weight, in the graph's order."""
    stored = {one.name: one for one in content.graph.initializer}
    found = {n.name: stored.get(n.input[1]) for n in content.graph.node if n.op_type in WEIGHTED}
    return {k: w for k, w in found.items() if w and w.data_type == onnx.TensorProto.FLOAT}


def layers(content: onnx.ModelProto) -> dict[str, list[str]]:
    """Name of each node with a weight to the nodes of its layer: itself and its activation.

    A node in float whose activation is quantised gains little: SiLU is x times sigmoid(x), and
    both are quantised on their own.
    """
    found = {}
    for name in weights(content):
        (start,) = (node for node in content.graph.node if node.name == name)
        inside, nodes = {start.output[0]}, [name]
        for node in content.graph.node:
            alone = node.op_type in POINTWISE and node.input[0] in inside
            if alone or (node.op_type == "Mul" and inside.issuperset(node.input)):
                inside.add(node.output[0])
                nodes.append(node.name)
        found[name] = nodes
    return found


def weights_only(content: onnx.ModelProto, recipe: Recipe) -> onnx.ModelProto:
    """Weights as INT8 with a DequantizeLinear behind each; everything is computed in float."""
    graph = content.graph
    for name, stored in weights(content).items():
        if name in recipe.keep:
            continue
        weight, (node,) = numpy_helper.to_array(stored), [n for n in graph.node if n.name == name]
        axis = output_axis(node)
        integers, scale = quantize_weight(weight, axis if recipe.per_channel else None)
        parts = {"int8": integers, "scale": scale}
        for what, array in parts.items():
            graph.initializer.append(numpy_helper.from_array(array, f"{stored.name}_{what}"))
        given, out = [f"{stored.name}_{what}" for what in parts], f"{stored.name}_float"
        where = {"axis": axis} if recipe.per_channel else {}
        graph.node.insert(0, helper.make_node("DequantizeLinear", given, [out], **where))
        node.input[1] = out
        graph.initializer.remove(stored)
    return content


def groups(node: onnx.NodeProto) -> int:
    """Of a convolution: as many as channels in a depthwise one, else mostly 1."""
    return next((a.i for a in node.attribute if a.name == "group"), 1)


def eight_bits(prepared: Path, recipe: Recipe) -> dict[str, list[dict]]:
    """The quantiser's orders for weights of depthwise convolutions: 8 bits for every target."""
    content = onnx.load(prepared)
    stored, order = weights(content), {"quant_type": QuantType.QInt8, "symmetric": True}
    order |= {"reduce_range": False} | ({"axis": 0} if recipe.per_channel else {})
    nodes = [node for node in content.graph.node if node.name in stored and groups(node) > 1]
    alone = [node for node in nodes if stored[node.name].dims[:2] == [groups(node), 1]]
    return {node.input[1]: [dict(order)] for node in alone}


def output_axis(node: onnx.NodeProto) -> int:
    """The axis of a node's weight that counts its outputs."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else 1


def ruler(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of uint8 for values from `low` to `high`, as ONNX Runtime takes them."""
    ends = np.uint8(0), np.uint8(255)
    zero, scale = quant_utils.compute_scale_zp(np.float32(low), np.float32(high), *ends)
    return float(scale), int(zero)


def to_uint8(x: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """Float numbers as integers of 8 bits; what lies outside of the ruler becomes its end."""
    return np.clip(np.round(x / scale) + zero_point, 0, 255).astype(np.uint8)


def quantize_weight(weight: np.ndarray, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
    """INT8 numbers and their scale, float32: one for each index of `axis`, for None one alone."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    integers = np.round(weight / scale).astype(np.int8)
    return integers, scale.reshape(-1) if axis is not None else scale.reshape(())


def calibrate(
    model: Path, feeds: list[dict[str, np.ndarray]], kind: str
) -> ort_quantization.TensorsData:
    """The range of every activation of a prepared model, by a method of `RANGES`.

    The `feeds` go through one by one, so that histograms are all that is kept of them.
    """
    method, options = RANGES[kind]
    with TemporaryDirectory() as folder, runtime.quiet():
        calibrator = ort_quantization.create_calibrator(
            model,
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=method,
            extra_options=options,
        )
        for feed in feeds:
            calibrator.collect_data(OneBatch(feed))
        return calibrator.compute_data()


class OneBatch(ort_quantization.CalibrationDataReader):
    """One batch, as ONNX Runtime's calibrators want it."""

    def __init__(self, feed: dict[str, np.ndarray]):
        self.left = [feed]

    def get_next(self) -> dict | None:
        """The batch, then None."""
        return self.left.pop() if self.left else None


def pin(content: onnx.ModelProto, kept: tuple[str, ...]) -> None:
    """Make nodes that were left in float stay in float when the model is loaded.

    ONNX Runtime quantises the weight of a float node between INT8 ones at loading, per tensor
    (its WeightBiasQuantization). It leaves alone what reads activations with a scale for each
    channel: so the kept nodes get a DequantizeLinear of their own, with equal scales.
    """
    graph, shapes = content.graph, weights(content)
    stored = {one.name: one for one in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    for i, node in [(i, n) for i, n in enumerate(graph.node) if n.name in kept][::-1]:
        reads = makers.get(node.input[0])
        if reads is None or reads.op_type != "DequantizeLinear" or node.op_type != "Conv":
            continue
        given = [reads.input[0]]
        for name in reads.input[1:]:
            value = numpy_helper.to_array(stored[name])
            repeated = np.repeat(value.reshape(1), shapes[node.name].dims[1] * groups(node))
            given.append(f"{node.name}_{name}")
            graph.initializer.append(numpy_helper.from_array(repeated, given[-1]))
        out = f"{node.name}_pinned"
        graph.node.insert(i, helper.make_node("DequantizeLinear", given, [out], axis=1))
        node.input[0] = out
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    for node in [n for n in graph.node if n.op_type == "DequantizeLinear"]:
        if node.output[0] not in used:
            graph.node.remove(node)
