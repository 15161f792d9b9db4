"""What this machine is, as far as it decides speed, and torchvision made to work on it."""

import platform
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
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

GENERATIONS = {  # family and models, as in Linux's intel-family.h and amd.c
    "Haswell": (6, {60, 63, 69, 70}),
    "Broadwell": (6, {61, 71, 79, 86}),
    "Skylake": (6, {78, 94}),
    "Skylake-SP, Cascade Lake or Cooper Lake": (6, {85}),
    "Kaby Lake or Coffee Lake": (6, {142, 158}),
    "Comet Lake": (6, {165, 166}),
    "Ice Lake": (6, {106, 108, 125, 126}),
    "Rocket Lake": (6, {167}),
    "Tiger Lake": (6, {140, 141}),
    "Alder Lake": (6, {151, 154, 190}),
    "Raptor Lake": (6, {183, 186, 191}),
    "Meteor Lake": (6, {170, 172}),
    "Arrow Lake": (6, {181, 197, 198}),
    "Lunar Lake": (6, {189}),
    "Sapphire Rapids": (6, {143}),
    "Emerald Rapids": (6, {207}),
    "Granite Rapids": (6, {173, 174}),
    "Zen": (23, {*range(0x30), *range(0x50, 0x60)}),
    "Zen 2": (23, {*range(0x30, 0x50), *range(0x60, 0x80), *range(0x90, 0xB0)}),
    "Zen 3": (25, {*range(0x10), *range(0x20, 0x60)}),
    "Zen 4": (25, {*range(0x10, 0x20), *range(0x60, 0xB0)}),
    "Zen 5": (26, {*range(0x30), *range(0x40, 0x50), *range(0x60, 0x80)}),
}

NUMBERS = ("cpu family", "model", "stepping")  # in /proc/cpuinfo, of x86; then those of Arm
NUMBERS += ("CPU implementer", "CPU part", "CPU variant", "CPU revision")

WITH_AMX = ("Sapphire Rapids", "Emerald Rapids", "Granite Rapids")


@dataclass(frozen=True)
class Hardware:
    """The machine at hand: `memory_gb` in 10^9 bytes, `features` a subset of `FEATURES`."""

    cpu: str  # as far as the system tells: brand, generation, model, clock, virtual or not
    cores: int  # logical ones, that this process may use
    memory_gb: float
    features: tuple[str, ...]
    gpu: str | None

    @property
    def name(self) -> str:
        """All that tells this CPU from others: numbers of two names are of two machines."""
        features = " ".join(self.features) or "no known vector features"
        return f"{self.cpu}, {self.cores} logical cores, {features}"

    @property
    def device(self) -> torch.device:
        """The device to compute on: the GPU where CUDA works, else the CPU."""
        return torch.device("cuda" if self.gpu else "cpu")

    def on(self, device: torch.device) -> str:
        """The name of what computes there: that of a GPU comes before the CPU's."""
        return f"{self.gpu}; {self.name}" if device.type == "cuda" else self.name

    def has(self, *features: str) -> bool:
        """Does the CPU have one of these, keys of `FEATURES`?"""
        return not set(self.features).isdisjoint(features)


@cache
def hardware() -> Hardware:
    """Look at the machine once; the answer is the same for the life of the process."""
    told = _cpuinfo()
    flags = _capabilities(told)
    brand = told.get("model name") or flags.get("cpu_name") or platform.machine()
    return Hardware(
        cpu=describe(brand, told, platform.processor()),
        cores=usable_cores(),
        memory_gb=psutil.virtual_memory().total / 1e9,
        features=tuple(name for name in FEATURES if flags.get(name)),
        gpu=torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    )


def usable_cores() -> int:
    """Logical cores that this process may use: its affinity and its container's quota count."""
    import joblib  # 20 ms that `import cvlab` need not wait for

    return joblib.cpu_count()


def limit_threads() -> None:
    """Lower torch's threads to the cores we may use: it sees an affinity, but no quota."""
    if torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


def describe(brand: str, told: Mapping[str, str], processor: str = "") -> str:
    """A processor in words: its brand and, as far as known, what tells it from its namesakes.

    Args:
        told: fields of its first core in Linux's /proc/cpuinfo; empty elsewhere.
        processor: `platform.processor()`, where Windows has family, model and stepping.
    """
    numbers = " ".join(f"{key.split()[-1]} {told[key]}" for key in NUMBERS if key in told)
    found = re.search(r"family (\d+) model (\d+) stepping \d+", numbers or processor.lower())
    generation = ""
    if found:
        numbers, family, model = found[0], int(found[1]), int(found[2])
        fits = (name for name, (of, models) in GENERATIONS.items() if of == family)
        generation = next((name for name in fits if model in GENERATIONS[name][1]), "")
        if "amx_tile" in told.get("flags", "").split() and generation not in WITH_AMX:
            generation = ""  # a virtual machine's numbers can be those of another CPU
    virtual = "" if "hypervisor" in told.get("flags", "").split() else "not "
    known = [generation, numbers, _clock(told), f"{virtual}virtual" if "flags" in told else ""]
    about = ", ".join(text for text in known if text)
    return f"{brand} ({about})" if about else brand


def _clock(told: Mapping[str, str]) -> str:
    """The highest clock, or the nominal one, that of the time-stamp counter: neither moves.

    To 50 MHz: the counter's is measured at each start of the system.
    """
    mhz = 0.0
    with suppress(AttributeError, OSError, RuntimeError):  # psutil, where a system does not tell
        mhz = psutil.cpu_freq().max
    mhz = mhz or float(told.get("bogomips", 0)) / 2  # so named on x86 only
    return f"{round(mhz / 50) / 20:g} GHz" if mhz else ""


def _capabilities(told: Mapping[str, str]) -> dict:
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    words = told.get("flags", "").split()  # older torch: Linux tells; elsewhere nothing is claimed
    return dict.fromkeys(words, True) | {"avx512_f": "avx512f" in words}


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first core; nothing on other systems."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            first = file.read().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


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
