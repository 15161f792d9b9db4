"""`run --scheduler`: a real Dask scheduler and workers, which get lost; nothing else does."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import nbformat
import psutil
import pytest
from test_runner import as_process, command

from cvlab.tools import cluster, runner
from cvlab.tools.cluster import crew as crew_of

pytest.importorskip("distributed")

PLAN = runner.Plan(["10_good", "11_bad", "12_last"])
NOTE_PIDS = (
    "import os; open(os.environ['RAN'] + '.pids', 'w').write(f'{os.getpid()} {os.getppid()} ')"
)
FIRST_TIME_HANGS = f"""
import pathlib, time
first = not pathlib.Path(os.environ['RAN'] + '.pids').exists()
{NOTE_PIDS}
time.sleep(600 if first else 0)
"""


def wait_for(condition, seconds=60):
    """What `condition()` gives as soon as it is true; fails after so many seconds."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"not so within {seconds} s"
        time.sleep(0.05)
    return found


class Cluster:
    """A scheduler and workers on the loopback address; all end with the test, whatever happens."""

    def __init__(self, folder):
        self.folder, self.processes = folder, []
        self.log = folder / "ran"  # what the notebooks say, wherever they run
        self.log.write_text("")
        self.address = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")

    def worker(self, threads=1):
        """Start one; it has no nanny, so killed it is really lost."""
        scratch = ("--local-directory", self.folder / "scratch")
        self._start(
            *("worker", self.address, "--no-nanny", "--nthreads", threads, *scratch),
            *("--host", "127.0.0.1"),
        )

    def _start(self, kind, *arguments):
        said = self.folder / f"{kind}{len(self.processes)}.log"
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--no-dashboard"]
        environment = {**os.environ, "RAN": str(self.log)}
        with said.open("w") as file:
            process = subprocess.Popen(
                [*command, *map(str, arguments)],
                stdout=file,
                stderr=file,
                env=environment,
                cwd=self.folder,
            )
        self.processes.append(process)
        ready = rf"{'Scheduler at' if kind == 'scheduler' else 'Registered to'}: +(tcp://\S+)"
        return wait_for(lambda: re.search(ready, said.read_text(encoding="utf-8"))).group(1)

    def workers(self):
        return [one for one in self.processes[1:] if one.poll() is None]

    def stop(self):
        for process in self.processes:
            if process.poll() is None:
                kernels = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                process.wait()
                for kernel in kernels:
                    kernel.kill()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture
def two_workers(shared, workbook, monkeypatch):
    """(cluster with two workers, root of the workbook, log of cells run here and there)."""
    while len(shared.workers()) < 2:
        shared.worker()
    monkeypatch.setenv("RAN", str(shared.log))
    monkeypatch.setattr("cvlab.tools.cluster.LOOK_EVERY", 0.1)
    shared.log.write_text("")
    shared.log.with_name("ran.pids").unlink(missing_ok=True)
    return shared, workbook[0], shared.log


@pytest.fixture
def lonely(tmp_path):
    """A cluster of its own, without workers."""
    folder = tmp_path / "lonely"
    folder.mkdir()
    cluster = Cluster(folder)
    yield cluster
    cluster.stop()


def rewrite(root, name, old, new):
    path = root / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert any(cell.source == old for cell in notebook.cells)
    for cell in notebook.cells:
        cell.source = new if cell.source == old else cell.source
    nbformat.write(notebook, path)


def pids(log):
    """(kernel, its worker) as a notebook has noted them; nothing before that."""
    file = log.with_name("ran.pids")
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return tuple(map(int, text.split())) if text.endswith(" ") else ()


def is_gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def printed(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.get("text", "") for cell in cells for o in cell.get("outputs", []))


def test_the_cluster_gives_the_same_as_this_machine(two_workers, capsys, monkeypatch):
    """Table, notebooks, figures and other files; a failure with its error and what ran before."""
    cluster, root, _ = two_workers
    released = []  # before they are deleted: a Ctrl-C in a `__del__` is lost
    monkeypatch.setattr("distributed.client.Future.__del__", lambda f: released.append(f._cleared))
    draw = (
        "import os; from cvlab.paths import output_folder\n"
        "for name in ('figures/10_what.png', 'models/10_net.pt'):\n"
        "    (output_folder() / name).parent.mkdir(exist_ok=True)\n"
        "    (output_folder() / name).write_text(name)\n"
        "print(N, os.environ['CVLAB_PROFILE'], os.environ['CVLAB_DATA'])"
    )
    rewrite(root, "10_good", "print(N)", draw)
    rewrite(root, "11_bad", "1 / 0", "print('so far'); 1 / 0")
    plan = runner.Plan(PLAN.notebooks, data="synthetic", parameters={"N": 3})
    tables = []
    for out, crew in ((root / "here", None), (root / "there", crew_of(cluster.address, plan))):
        results = runner.execute(plan, out, crew=crew)
        tables.append([(r.name, r.status, r.held, r.claims, r.error) for r in results])
        for name in ("figures/10_what.png", "models/10_net.pt"):
            assert (out / name).read_text(encoding="utf-8") == name
        assert printed(out / "10_good.ipynb") == "3 smoke synthetic\n"
        assert printed(out / "11_bad.failed.ipynb") == "so far\n"
        files = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
        assert len(files) == 6
    assert tables[0] == tables[1]
    assert released == [True] * 3
    assert tables[0][1] == ("11_bad", "failed", 0, {}, "ZeroDivisionError: division by zero")
    said = capsys.readouterr().out
    assert "10_good: sent to tcp://" in said
    assert len(re.findall("10_good: passed, .* s, 1 of 1 claims hold", said)) == 2


def test_a_lost_workers_notebook_runs_again_elsewhere(two_workers, capsys):
    """SIGKILL in mid-notebook; the orphaned kernel ends too, and the others notice nothing."""
    cluster, root, log = two_workers
    rewrite(root, "11_bad", "1 / 0", FIRST_TIME_HANGS)
    killed = []

    def kill():
        killed.extend(wait_for(lambda: pids(log)))
        psutil.Process(killed[1]).kill()

    killer = threading.Thread(target=kill)
    killer.start()
    results = runner.execute(PLAN, root / "out", crew=crew_of(cluster.address, PLAN))
    killer.join()
    assert [r.status for r in results] == ["passed"] * 3
    assert "11_bad: worker tcp://127.0.0.1" in capsys.readouterr().out
    assert pids(log)[1] in [worker.pid for worker in cluster.workers()]
    assert sorted(log.read_text(encoding="utf-8").split()) == ["bad", "bad", "good", "last"]
    wait_for(lambda: is_gone(killed[0]), 20)


def test_a_notebook_that_kills_its_workers_fails_alone(two_workers, monkeypatch):
    cluster, root, _ = two_workers
    monkeypatch.setattr("cvlab.tools.cluster.MAX_LOSSES", 1)
    rewrite(root, "11_bad", "1 / 0", "os.kill(os.getppid(), 9)")
    results = runner.execute(PLAN, root / "out", crew=crew_of(cluster.address, PLAN))
    assert [r.status for r in results] == ["passed", "failed", "passed"]
    assert "workers were lost while they ran it" in results[1].error


def test_resume_repeats_nothing_that_finished_here_or_there(two_workers, capsys):
    cluster, root, log = two_workers
    there = ("--scheduler", cluster.address, "--out", root / "out")
    assert command("run", "10", "11", *there) == 1
    assert sorted(log.read_text(encoding="utf-8").split()) == ["bad", "good"]
    log.write_text("")
    assert command("run", "--resume", "--out", root / "out") == 1
    assert log.read_text(encoding="utf-8") == "bad "
    rewrite(root, "11_bad", "1 / 0", "")
    log.write_text("")
    capsys.readouterr()
    assert command("run", "--resume", *there) == 0
    assert log.read_text(encoding="utf-8") == "bad "
    assert "10_good: finished earlier" in capsys.readouterr().out
    assert not (root / "out" / "11_bad.failed.ipynb").exists()
    assert command("run", "11", "--scheduler", cluster.address, "--out", root / "anew") == 0
    assert log.read_text(encoding="utf-8") == "bad bad "  # not served from the cluster's memory


def test_ctrl_c_keeps_what_finished_and_stops_the_rest_on_the_cluster(two_workers):
    cluster, root, log = two_workers
    rewrite(root, "11_bad", "1 / 0", FIRST_TIME_HANGS)
    out = root / "out"
    process = as_process(root, "run", "--scheduler", cluster.address, "--out", out)
    kernel, _ = wait_for(lambda: pids(log))
    wait_for((out / "12_last.ipynb").exists)  # a finished one is there long before the end
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Stopped: interrupted. What has finished is kept; use --resume." in output
    assert "11_bad               not run" in output
    wait_for(lambda: is_gone(kernel), 20)
    assert len(cluster.workers()) == 2
    assert command("run", "--resume", "--scheduler", cluster.address, "--out", out) == 0
    assert sorted(log.read_text(encoding="utf-8").split()) == ["bad", "bad", "good", "last"]


def test_data_missing_on_a_worker_is_that_notebooks_failure(two_workers):
    """The folder is one of the workers; whether this machine has it too does not matter."""
    cluster, root, _ = two_workers
    plan = runner.Plan(["10_good"], data="/not/there")
    (result,) = runner.execute(plan, root / "out", crew=crew_of(cluster.address, plan))
    assert result.status == "failed"
    assert "on worker tcp://" in result.error
    assert "The data folder '/not/there' was given" in result.error


def test_without_workers_it_waits_until_one_comes_that_fits(lonely, workbook, capsys):
    """One with two threads would mix two notebooks' environments; it is refused, then left out."""
    root, _ = workbook
    run = ("run", "10", "--scheduler", lonely.address, "--out", root / "out")
    process = as_process(root, *run)
    assert "Waiting for workers" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert "10_good              not run" in process.communicate(timeout=60)[0]
    lonely.worker(threads=2)
    assert command(*run) == 2
    assert "start it with --nthreads 1" in capsys.readouterr().err
    lonely.worker()
    assert command(*run) == 0


def test_why_a_worker_is_refused():
    assert "start it with --nthreads 1" in cluster._problem(2, "0.1.0")
    assert "install the same" in cluster._problem(1, "0.0.1")
    assert "has no cvlab" in cluster._problem(1, ModuleNotFoundError("cvlab"))
    assert not cluster._problem(1, "0.1.0")


def test_a_scheduler_that_dies_costs_nothing_that_finished(lonely, workbook, monkeypatch, capsys):
    root, _ = workbook
    monkeypatch.setenv("RAN", str(lonely.log))
    monkeypatch.setattr("cvlab.tools.cluster.CONNECT_SECONDS", 3)  # so long it is looked for again
    rewrite(root, "11_bad", "1 / 0", FIRST_TIME_HANGS)
    lonely.worker()

    def kill():
        wait_for(lambda: pids(lonely.log))
        lonely.processes[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    results = runner.execute(PLAN, root / "out", crew=crew_of(lonely.address, PLAN))
    killer.join()
    assert [r.status for r in results] == ["passed", "not run", "not run"]
    assert "Stopped: the scheduler has gone. What has finished is kept" in capsys.readouterr().out
    wait_for(lambda: is_gone(pids(lonely.log)[0]), 60)


def test_without_dask_it_says_what_to_install(workbook, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    root, _ = workbook
    run = ("run", "--scheduler", "tcp://127.0.0.1:1", "--out", root / "out")
    assert command(*run) == 2
    assert "Dask is not installed here: pip install" in capsys.readouterr().err


@pytest.mark.parametrize("listens", [False, True])
def test_a_scheduler_that_does_not_answer_costs_seconds(workbook, capsys, monkeypatch, listens):
    """Nobody is there, or something else, which takes the call and says nothing."""
    monkeypatch.setattr("cvlab.tools.cluster.CONNECT_SECONDS", 1)
    root, _ = workbook
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if listens:
            other.listen()
        address = "tcp://127.0.0.1:{1}".format(*other.getsockname())
        assert command("run", "--scheduler", address, "--out", root / "out") == 2
    assert f"No Dask scheduler answers at {address}" in capsys.readouterr().err
    assert not (root / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--jobs", "2", "--scheduler", "tcp://127.0.0.1:1"], "give one of them"),
        (["--scheduler", "localhost"], "tcp://HOST:PORT"),
    ],
)
def test_what_makes_no_sense_is_refused(workbook, capsys, arguments, hint):
    root, _ = workbook
    assert command("run", *arguments, "--out", root / "out") == 2
    assert hint in capsys.readouterr().err
    assert not (root / "out").exists()
