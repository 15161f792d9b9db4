"""What this machine is, as far as it decides speed, and torchvision made to work on it."""

import os
import platform
import sys
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import psutil
import torch

FEATURES = {  # what the workbook's speed depends on, and why
    "avx512_vnni": "INT8 dot products: what makes quantised models fast on x86",
    "avx_vnni": "the same in 256-bit registers",
    "avx512_bf16": "bfloat16 dot products: faster training and inference",
    "amx_bf16": "bfloat16 matrix tiles: much faster still",
    "amx_int8": "INT8 matrix tiles",
    "avx512_f": "512-bit vectors",
    "avx2": "256-bit vectors",
}


@dataclass(frozen=True)
class Hardware:
    """The machine at hand; `memory_gb` in 10^9 bytes, `features` a subset of `FEATURES`."""

    system: str
    cpu: str
    cores: int
    threads: int
    memory_gb: float
    features: tuple[str, ...]
    gpu: str | None

    @property
    def device(self) -> torch.device:
        """The device to compute on: the GPU where CUDA works, else the CPU."""
        return torch.device("cuda" if self.gpu else "cpu")

    def has(self, feature: str) -> bool:
        """Does the CPU have `feature`, a key of `FEATURES`?"""
        return feature in self.features


@cache
def hardware() -> Hardware:
    """Look at the machine once; the answer is the same for the life of the process."""
    flags = _cpu_flags()
    return Hardware(
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        cpu=_cpuinfo("model name") or platform.processor() or platform.machine(),
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_gb=psutil.virtual_memory().total / 1e9,
        features=tuple(name for name in FEATURES if flags.get(name)),
        gpu=torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    )


def _cpu_flags() -> dict:
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    words = _cpuinfo("flags").split()  # older torch: Linux tells; elsewhere nothing is claimed
    return dict.fromkeys(words, True) | {"avx512_f": "avx512f" in words}


def _cpuinfo(field: str) -> str:
    """What Linux says of the first core; nothing on other systems."""
    try:
        with open("/proc/cpuinfo") as file:
            line = next((line for line in file if line.startswith(field)), "")
    except OSError:
        line = ""
    return line.partition(":")[2].strip()


def versions(packages: tuple[str, ...] = ("torch", "torchvision", "onnxruntime", "optuna")) -> str:
    """Installed versions on one line, in the order asked for."""
    from importlib.metadata import PackageNotFoundError, version

    def one(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"{name} missing"

    return " · ".join(one(name) for name in packages)


# --- torchvision beside a CPU-only torch ----------------------------------------------------------

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[torch.library.Library] = []  # a Library undoes its definitions when collected


def import_torchvision() -> ModuleType:
    """`import torchvision`, repaired when its compiled operators are missing.

    PyPI's torchvision for Linux is built against CUDA. Beside a CPU build of torch its C++ library
    cannot be loaded, its operators are never declared, and the import stops with "operator
    torchvision::nms does not exist". They serve detection only; models, transforms and datasets
    are Python. So the two missing names are declared, without a body.

    Raises:
        ImportError, RuntimeError: torchvision is missing or fails for any other reason.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # the half-imported modules of the failed attempt
        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _libraries.append(library)
        import torchvision
    return torchvision
