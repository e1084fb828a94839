"""Studies that fail, are killed, stopped or kept out: nothing is lost, and the next call goes on."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from builders import Tell, held_elsewhere
from perturblab.records.paths import FAILED_FILE
from perturblab.studies import done, plan
from perturblab.studies.catalogue import SETUPS
from perturblab.studies.jobs import _log, argv
from perturblab.system.files import locked
from studies import TINY, planned, run_all
from told import in_order


@pytest.mark.usefixtures("in_process")
def test_a_run_that_fails_is_listed_and_tried_again(tmp_path: Path) -> None:
    bad = replace(SETUPS["K4"], id="bad", flags={**SETUPS["K4"].flags, "depth": 3})
    jobs = plan.plan([bad, SETUPS["H5"]], TINY, [1], results=tmp_path / "results", work=tmp_path / "runs")
    (failure,) = run_all(jobs)
    assert failure.name == "bad seed 1"
    assert re.search(in_order("--depth perturb_resnet18"), failure.reason)
    written = json.loads((tmp_path / "results/tiny/bad/seed-1/failed.json").read_text())
    assert written["reason"] == failure.reason
    assert [done.is_done(job) for job in jobs] == [False, True], "the other run went on"
    good = [replace(jobs[0], flags={k: v for k, v in jobs[0].flags.items() if k != "depth"})]
    assert run_all(good) == []
    assert not (tmp_path / "results/tiny/bad/seed-1/failed.json").exists()


def test_a_run_that_is_killed_is_told_as_killed_and_done_by_the_next_call(tmp_path: Path) -> None:
    """Not with what an earlier attempt has left in the log."""
    endless = replace(TINY, flags={**TINY.flags, "nepochs": 10**6})
    jobs = planned(tmp_path, "K4", preset=endless)
    jobs[0].work.parent.mkdir(parents=True)
    _log(jobs[0]).write_text("of another time\n")
    killed = list[int]()

    def kill() -> bool:
        for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            mine = str(jobs[0].work) in Path(f"/proc/{pid}/cmdline").read_text()
            if mine and jobs[0].work.is_dir() and not killed:
                assert os.getpgid(int(pid)) != os.getpgid(0), "the Ctrl-C of a terminal must not reach it twice"
                os.kill(int(pid), signal.SIGKILL)
                killed.append(int(pid))
        return False

    (failure,) = run_all(jobs, stop=kill)
    assert killed
    assert "SIGKILL" in failure.reason


@pytest.mark.usefixtures("in_process")
def test_what_a_killed_study_leaves_is_swept(tmp_path: Path) -> None:
    jobs = planned(tmp_path, "K4")
    jobs[0].results[0].mkdir(parents=True)
    (jobs[0].results[0] / ".record.json.1.part").write_text("half of")
    assert run_all(jobs) == []
    assert {path.name for path in jobs[0].results[0].iterdir()} == {"record.json", "metrics.jsonl"}


def test_a_stop_ends_cleanly_and_the_next_call_goes_on(tmp_path: Path) -> None:
    endless = replace(TINY, flags={**TINY.flags, "nepochs": 10**6})
    jobs = planned(tmp_path, "K4", preset=endless)
    checkpoint = tmp_path / "runs/tiny/K4/seed-1/checkpoint.pt"

    def stop() -> bool:
        """As soon as it trains; the stop itself writes the checkpoint."""
        return jobs[0].work.is_dir()

    assert run_all(jobs, stop=stop) == []
    assert not done.is_done(jobs[0])
    assert checkpoint.is_file()
    assert "--resume" in argv(jobs[0], 1)


@pytest.mark.parametrize("ignored", [True, False])
def test_a_run_that_is_only_just_starting_hears_the_stop(ignored: bool, tmp_path: Path) -> None:
    """Also where a shell has started the study in the background, with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        (job,) = planned(tmp_path, "K4")
        assert run_all([job], stop=job.work.with_name("seed-1.log").is_file) == []
    finally:
        signal.signal(signal.SIGINT, before)
    assert not done.is_done(job), "it went on to its end"
    assert not list(tmp_path.rglob(FAILED_FILE)), "it did not fail: the same command does it"


def test_a_second_study_is_kept_out(tmp_path: Path, tell: Tell) -> None:
    with held_elsewhere(tmp_path):
        line = f"run K4 --seeds 1 --results {tmp_path} --work {tmp_path}/runs"
        code, out, err = tell(line)
        assert (code, out, err.count("\n")) == (2, "", 2), "one line of the plan, one of the mistake"
        assert re.search(in_order(f"another study {tmp_path} ; --results"), err)
    with locked(tmp_path, "busy"):
        pass
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_runs_end_with_a_study_that_is_killed(tmp_path: Path) -> None:
    line = f"run K4 --preset quick --seeds 1 --results {tmp_path}/results --work {tmp_path}/runs --jobs 1"
    begun = subprocess.Popen(
        [sys.executable, "-m", "perturblab", *shlex.split(line)], stderr=subprocess.PIPE, env={**os.environ}
    )
    assert begun.stderr is not None
    while b"begun" not in (said := begun.stderr.readline()):
        assert said, "the study ended before it began a run"
    children = Path(f"/proc/{begun.pid}/task/{begun.pid}/children").read_text().split()
    assert len(children) == 1
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    begun.stderr.close()
    until = time.monotonic() + 60
    while Path(f"/proc/{children[0]}").exists() and not _is_zombie(children[0]):
        assert time.monotonic() < until, "the run outlived its study"
        time.sleep(0.2)


def _is_zombie(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True
