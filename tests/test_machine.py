"""The machine at hand: which one it is, and how much of it we may use."""

import builtins
import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from torch._inductor import cpp_builder

from cvlab import machine
from cvlab.lessons.engines import calls
from cvlab.tools.runner import Plan, environment

VIRTUAL, BARE = "fpu avx2 hypervisor", "fpu avx2"


def told(family, model, stepping, flags=BARE, bogomips="4491.53"):
    """What /proc/cpuinfo says of an x86 core."""
    names = ("cpu family", "model", "stepping", "flags", "bogomips")
    return dict(zip(names, map(str, (family, model, stepping, flags, bogomips)), strict=True))


@pytest.mark.parametrize(
    ("cpuinfo", "processor", "expected"),
    [
        (
            told(6, 207, 2, VIRTUAL, "4200.00"),
            "x86_64",
            "C (Emerald Rapids, family 6 model 207 stepping 2, 2.1 GHz, virtual)",
        ),
        (told(23, 49, 0), "", "C (Zen 2, family 23 model 49 stepping 0, 2.25 GHz, not virtual)"),
        (told(25, 17, 1), "", "C (Zen 4, family 25 model 17 stepping 1, 2.25 GHz, not virtual)"),
        (told(99, 1, 0), "", "C (family 99 model 1 stepping 0, 2.25 GHz, not virtual)"),
        (
            {},
            "Intel64 Family 6 Model 158 Stepping 10, GenuineIntel",
            "C (Kaby Lake or Coffee Lake, family 6 model 158 stepping 10)",
        ),
        (
            {"CPU implementer": "0x41", "CPU part": "0xd0c", "BogoMIPS": "50.00"},
            "aarch64",
            "C (implementer 0x41 part 0xd0c)",
        ),
        ({}, "arm", "C"),
    ],
)
def test_a_processor_is_told_from_its_namesakes(monkeypatch, cpuinfo, processor, expected):
    """On Linux, Windows, Arm and where nothing is known; every machine has called itself by C."""
    monkeypatch.setattr(psutil, "cpu_freq", lambda: SimpleNamespace(current=1234, max=0.0))
    assert machine.describe("C", cpuinfo, processor) == expected


@pytest.mark.parametrize(
    ("frequency", "expected"),
    [
        (SimpleNamespace(current=1234.5, max=3500.0), "3.5 GHz"),
        (SimpleNamespace(current=1234.5, max=0.0), "2.45 GHz"),
        (None, "2.45 GHz"),
    ],
)
@pytest.mark.parametrize("bogomips", ["4899.98", "4900.04"])
def test_the_clock_is_the_same_at_every_start(monkeypatch, frequency, expected, bogomips):
    """Else one machine would seem two: neither the momentary clock nor its last digits count."""
    monkeypatch.setattr(psutil, "cpu_freq", lambda: frequency)
    assert machine._clock({"bogomips": bogomips}) == expected


def test_two_models_of_one_generation_are_not_mixed_up():
    """A model number stands in one generation only."""
    every = [(of, model) for of, models in machine.GENERATIONS.values() for model in models]
    assert len(set(every)) == len(every)


def test_a_masked_model_number_is_not_believed():
    """A virtual machine with AMX called itself Rocket Lake, which has none."""
    told = {"cpu family": "6", "model": "167", "stepping": "1", "flags": "avx2 hypervisor"}
    assert "Rocket Lake" in machine.describe("Intel", told)
    told["flags"] += " amx_tile"
    assert "Rocket Lake" not in machine.describe("Intel", told)


def test_the_name_holds_all_that_decides_speed():
    """Two machines with one name would be averaged."""
    found = machine.hardware()
    for part in (found.cpu, f"{found.cores} logical cores", *found.features):
        assert part in found.name


def test_an_affinity_to_one_core_means_one_thread(tmp_path):
    """In a process of its own, as after `taskset -c 0`: torch, our count, a kernel's share."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
        "import torch; from cvlab.machine import hardware, usable_cores; "
        "print(usable_cores(), hardware().cores, torch.get_num_threads())"
    )
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    asked = {"env": own, "capture_output": True, "text": True, "check": True}
    done = subprocess.run([sys.executable, "-c", code], **asked)
    assert done.stdout.split() == ["1", "1", "1"]


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("/sys/fs/cgroup/cpu.max", "100000 100000", 1),  # version 2
        ("/sys/fs/cgroup/cpu.max", "250000 100000", 3),
        ("/sys/fs/cgroup/cpu.max", "max 100000", 8),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "150000", 2),  # version 1
    ],
)
def test_a_containers_quota_counts(monkeypatch, tmp_path, file, content, expected):
    """Of 8 cores, where the system lets us use all of them."""
    files = {file: content, "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}
    for i, (path, text) in enumerate(files.items()):
        (tmp_path / str(i)).write_text(text)
        files[path] = tmp_path / str(i)
    exists, opened = os.path.exists, builtins.open
    here = "/sys/fs/cgroup"
    monkeypatch.setattr(
        os.path, "exists", lambda p: p in files if str(p).startswith(here) else exists(p)
    )
    monkeypatch.setattr(builtins, "open", lambda p, *how, **more: opened(files.get(p, p), *how))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert machine.usable_cores() == expected


@pytest.mark.parametrize("there", [True, False])
def test_why_torch_compile_cannot_work_is_said(there, tmp_path, monkeypatch):
    """A row that is missing without a reason would be taken for a result."""

    def forget():  # what torch remembers
        for one in vars(cpp_builder).values():
            if hasattr(type(one), "cache_clear"):
                one.cache_clear()

    if not there:
        monkeypatch.setenv("PATH", str(tmp_path))
    forget()
    said = calls.no_compiler.__wrapped__()
    forget()
    assert ("compiler" in said.lower()) != there, said


def test_notebooks_side_by_side_share_what_we_may_use(monkeypatch, tmp_path):
    """Of 16 cores where 4 are ours, 2 notebooks get 2 threads each."""
    monkeypatch.setattr("cvlab.tools.runner.usable_cores", lambda: 4)
    with environment(Plan([]), tmp_path, share=2):
        assert os.environ["OMP_NUM_THREADS"] == "2"
