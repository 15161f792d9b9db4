"""What is on this machine, what is missing, and what to do about it."""

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from cvlab import sources
from cvlab.lessons.engines.calls import no_compiler
from cvlab.machine import FEATURES, hardware, import_torchvision
from cvlab.paths import data_folder, wants_stand_in


def report() -> Iterator[str]:
    """The doctor's findings, line by line: `ok`, `--` (optional or replaceable) or `!!`."""
    yield "Hardware"
    machine = hardware()
    yield f"  ok  {machine.cpu}"
    yield f"  ok  {machine.cores} logical cores to use, {machine.memory_gb:.0f} GB"
    for feature, use in FEATURES.items():
        yield f"  {'ok' if machine.has(feature) else '--'}  {feature}: {use}"
    gpu = f"ok  GPU: {machine.gpu}" if machine.gpu else "--  no GPU; the full profile needs one"
    yield f"  {gpu}"
    why = no_compiler()
    without = f"--  no row of torch.compile in 05, it has no C++ compiler: {why}"
    yield f"  {without if why else 'ok  a C++ compiler, for torch.compile in 05'}"
    yield "Packages"
    yield from _packages()
    yield "Data"
    yield from _data()


def _packages() -> Iterator[str]:
    for requirement in requires("cvlab") or []:
        name = re.match(r"[\w.-]+", requirement).group()
        extra = re.search(r"extra == ['\"](\w+)", requirement)
        if extra and extra[1] == "dev":
            continue  # for those who change the workbook
        if found := _version(name):
            yield f"  ok  {name} {found}"
        elif extra:
            yield f"  --  {name} missing (optional): pip install 'cvlab[{extra[1]}]'"
        else:
            yield f"  !!  {name} missing: pip install {name}"
    try:
        import_torchvision()
        yield "  ok  torchvision imports beside this torch"
    except Exception as error:  # the doctor reports whatever it is
        yield f"  !!  torchvision does not import: {error}. Reinstall torch and torchvision."


def _data() -> Iterator[str]:
    if wants_stand_in("auto"):
        yield "  --  CVLAB_DATA=synthetic: the stand-in is asked for; unset it for real data"
        return
    try:
        folder = data_folder()
    except FileNotFoundError as error:
        yield f"  !!  {error}"
        return
    for name, title in sources.TITLES.items():
        found = sources.find(name, folder)
        caches = [path for path in sources.cache_files(name, folder, found) if path.exists()]
        if found or caches:
            state = "decoded images cached" if caches else "decoded at first use"
            yield f"  ok  {title}: {(found or caches[0]).name}, {state}"
        else:
            yield f"  --  {title}: not in {folder}; python -m cvlab data fetch {name}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
