"""Studies outlive processes: journals, a real PostgreSQL server, workers that are killed."""

import errno
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from cvlab.lessons.search import studies, tune
from cvlab.lessons.search.studies import StudyError, new_study
from cvlab.profiles import ParameterError
from cvlab.tools import cli, runner, workers

SMOKE = {"profile": "smoke", "data": "synthetic"}


def draw(trial):
    return trial.suggest_float("x", 0, 1)


# --- storage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["", 3, "mysql://host/name", "http://host"])
def test_a_storage_that_cannot_be_is_refused_before_the_run(where):
    with pytest.raises(ValueError, match="journal"):
        studies.check_storage(where)
    with pytest.raises(ParameterError, match="STORAGE"):
        runner.check(runner.Plan(["04_optuna"], parameters={"STORAGE": where}))


def test_a_stopped_search_goes_on_with_other_draws(tmp_path):
    """A sampler that started again with its seed would draw the first trials a second time."""
    path = tmp_path / "new" / "s.journal"
    tune.search(new_study("s", path, sampler="random"), draw, trials=4, what=None)
    again = new_study("s", path, sampler="random")
    assert len(again.trials) == 4
    tune.search(again, draw, trials=8, what=None)
    assert len({trial.params["x"] for trial in new_study("s", path).trials}) == 8


def test_a_search_repeats_with_its_seed():
    one, same, other = (new_study("s", sampler="TPE", seed=seed) for seed in (0, 0, 1))
    for study in (one, same, other):
        tune.search(study, draw, trials=12, what=None)
    assert [t.params for t in one.trials] == [t.params for t in same.trials]
    assert [t.params for t in one.trials] != [t.params for t in other.trials]


def test_half_a_line_at_the_end_of_a_journal_costs_nothing(tmp_path):
    """A full disk or a kill leaves it; Optuna would glue its next entry to it."""
    path = tmp_path / "s.journal"
    tune.search(new_study("s", path), draw, trials=2, what=None)
    with open(path, "a") as file:
        file.write('{"op_code": 4, "worker')
    study = new_study("s", path)
    tune.search(study, draw, trials=3, what=None)
    assert len(new_study("s", path).trials) == 3


def test_a_journal_needs_no_symbolic_link(tmp_path, monkeypatch):
    """Optuna's usual lock is one, which Windows forbids (WinError 1314, optuna 6277)."""
    monkeypatch.setattr(os, "symlink", lambda *given, **how: 1 / 0)
    tune.search(new_study("s", tmp_path / "s.journal"), draw, trials=2, what=None)
    assert len(new_study("s", tmp_path / "s.journal").trials) == 2


def test_a_full_disk_stops_the_search_with_one_message_and_keeps_its_trials(tmp_path, monkeypatch):
    path = tmp_path / "s.journal"
    study = new_study("s", path)
    tune.search(study, draw, trials=2, what=None)

    def full(self, logs):
        with open(path, "ab") as file:
            file.write(b'{"op_code"')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(optuna.storages.journal.JournalFileBackend, "append_logs", full)
        with pytest.raises(StudyError, match=r"No space left on device.*2 finished trials"):
            tune.search(study, draw, trials=3, what=None)
    again = new_study("s", path)
    tune.search(again, draw, trials=3, what=None)
    assert len(tune.finished(again)) == 3


def test_a_file_that_is_no_journal_is_named(tmp_path):
    path = tmp_path / "s.journal"
    path.write_text("this is\nnot a journal\n")
    with pytest.raises(StudyError, match=r"s\.journal"):
        new_study("s", path)
    assert path.read_text(encoding="utf-8").startswith("this is")


def test_a_database_that_does_not_answer_is_one_message():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(StudyError, match="does not answer"):
        new_study("s", f"postgresql://me@127.0.0.1:{port}/none")


# --- trials whose process died -------------------------------------------------------------------


def begun(study, process):
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("process", process)
    return trial


def test_a_dead_process_trial_is_failed_and_queued_again(tmp_path):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    path = tmp_path / "s.journal"
    dead = begun(new_study("s", path), f"{platform.node()}:{done.pid}")
    study = new_study("s", path)
    tune.search(study, draw, trials=1, what=None)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[1].params == dead.params


def test_living_processes_and_other_machines_are_left_alone():
    study = new_study("s")
    begun(study, f"{platform.node()}:{os.getppid()}")
    begun(study, "another-machine:1")
    assert studies.requeue_dead(study) == 0
    assert [t.state for t in study.trials] == [TrialState.RUNNING] * 2


# --- workers -------------------------------------------------------------------------------------


def test_sqlite_is_not_for_several_workers(tmp_path):
    with pytest.raises(StudyError, match="journal file"):
        workers.add("s", f"sqlite:///{tmp_path}/s.db", workers=2, trials=2, **SMOKE)


@pytest.mark.parametrize(("trials", "workers_", "shares"), [(5, 2, [3, 2]), (1, 3, [1])])
def test_trials_are_shared_out_exactly(trials, workers_, shares):
    assert workers._shares(trials, workers_) == shares


def kill_the_first(study_name, path, killed):
    """Wait until a worker is in its second trial, then kill it as the kernel would."""
    study = optuna.load_study(study_name=study_name, storage=studies.open_storage(path))
    end = time.monotonic() + 120
    while time.monotonic() < end and not killed:
        experienced = {t.user_attrs["process"] for t in tune.finished(study)}
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            trains = "MACs" in trial.user_attrs  # its network is made
            if trains and trial.user_attrs["process"] in experienced:
                os.kill(int(trial.user_attrs["process"].partition(":")[2]), signal.SIGKILL)
                killed.append(trial)
                return
        time.sleep(0.01)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_worker_costs_no_trial(tmp_path, capfd):
    """Two workers on a journal, one killed in mid-trial: the count is exact, nothing is lost."""
    path, killed = tmp_path / "s.journal", []
    new_study("04_optuna", path)
    killer = threading.Thread(target=kill_the_first, args=("04_optuna", path, killed))
    killer.start()
    workers.add("04_optuna", path, workers=2, trials=4, **SMOKE)
    killer.join()
    study = new_study("04_optuna", path)
    states = [t.state for t in study.trials]
    assert len(tune.finished(study)) == 4
    assert states.count(TrialState.FAIL) == len(killed) == 1
    assert not {TrialState.RUNNING, TrialState.WAITING} & set(states)
    params = [t.params for t in tune.finished(study)]
    assert killed[0].params in params
    assert len({str(p) for p in params}) == 4  # workers draw differently
    assert len({t.user_attrs["process"] for t in tune.finished(study)}) >= 2
    assert "queued again" in capfd.readouterr().err


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    assert cli.main(["tune", "--storage", "mysql://x", "--trials", "1"]) == 2
    assert "postgresql" in capsys.readouterr().err
    assert cli.main(["tune", "--storage", str(tmp_path / "s.journal")]) == 2
    assert "--trials" in capsys.readouterr().err


# --- PostgreSQL ----------------------------------------------------------------------------------


def programs() -> Path:
    """The folder of initdb and pg_ctl, of Debian's package, which is installed if that can be."""
    for attempt in (1, 2):
        for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
            if (folder / "initdb").exists():
                return folder
        if attempt == 2 or not shutil.which("apt-get") or os.geteuid() != 0:
            break
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(["apt-get", "update"], **quiet)
        what = ["apt-get", "install", "-y", "--no-install-recommends", "postgresql"]
        subprocess.run(what, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, **quiet)
    pytest.skip("PostgreSQL is not installed, and Debian's package cannot be (no apt-get or root)")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URL of a fresh PostgreSQL server on this machine, for this module's tests only."""
    folder, binaries = tmp_path_factory.mktemp("postgresql"), programs()
    import pwd  # not on Windows

    user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None  # it refuses to run as root
    if user:
        os.chown(folder, user.pw_uid, user.pw_gid)
        for parent in folder.parents[:3]:
            parent.chmod(parent.stat().st_mode | 0o011)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(program, *arguments):
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
        command = [str(binaries / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, **who)

    call("initdb", "-U", "student", "--auth=trust")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    call("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
    yield f"postgresql://student@127.0.0.1:{port}/postgres"
    call("pg_ctl", "-w", "-m", "immediate", "stop")


def test_two_workers_on_a_real_postgresql_server(server, capsys):
    """The way to many machines: the command line, a server, an exact count of trials."""
    command = ["tune", "--storage", server, "--workers", "2", "--trials", "4"]
    command += ["--profile", "smoke", "--data", "synthetic"]
    assert cli.main(command) == 0
    study = new_study("04_optuna", server)
    assert len(study.trials) == len(tune.finished(study)) == 4
    assert len({t.user_attrs["process"] for t in study.trials}) == 2
    assert "4 trials" in capsys.readouterr().out
