"""Runs handed to a Ray cluster, without one: what a machine does with a run, and what is told."""

import re
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perturblab.cli import main
from perturblab.errors import UserError
from perturblab.records import results
from perturblab.records.record import Record, Study
from perturblab.studies import failures, jobs, plan
from perturblab.studies import ray as ray_module
from perturblab.studies.catalogue import SETUPS
from perturblab.studies.job import Job
from perturblab.studies.presets import Preset
from perturblab.system.exit_codes import INTERRUPTED
from perturblab.system.files import locked
from perturblab.system.terminal import Show
from told import in_order

TINY = Preset(
    "tiny",
    "an epoch on forty digits",
    changes=("almost nothing is left of the protocol",),
    width=1 / 32,
    flags={"dataset_train": "digits", "train_size": 40, "batch_size": 20, "nepochs": 1},
)


def planned(folder: Path, flags: dict[str, Any] | None = None) -> Job:
    setups = [SETUPS["K4"], replace(SETUPS["K4"], id="K4-twin")]
    preset = replace(TINY, flags={**TINY.flags, **(flags or {})})
    (job,) = plan.plan(setups, preset, [1], results=folder / "results", work=folder / "runs")
    return job


@pytest.mark.usefixtures("in_process")
def test_a_machine_hands_back_what_would_be_kept_and_keeps_nothing(tmp_path: Path) -> None:
    job = planned(tmp_path)
    brought = ray_module._run(job, 1)
    assert brought.failures == ()
    assert [sorted(files) for files in brought.folders] == [["metrics.jsonl", "record.json"]] * 2
    for setup, files in zip(job.setups, brought.folders, strict=True):
        record = Record.model_validate_json(files["record.json"])
        assert record.study == Study(setup=setup, preset="tiny")
    assert not (tmp_path / "results").exists()
    assert (job.work / "checkpoint.pt").is_file()


@pytest.mark.usefixtures("in_process")
def test_a_run_that_fails_there_is_a_failure_here(tmp_path: Path) -> None:
    brought = ray_module._run(planned(tmp_path, {"depth": 3}), 1)
    (failure,) = brought.failures
    assert re.search(in_order("--depth perturb_resnet18"), failure.reason)
    assert [sorted(files) for files in brought.folders] == [["failed.json"], []]


def test_only_what_has_succeeded_is_no_longer_listed_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a run that was interrupted nor another job of the same folder takes a failure from the list."""
    job = planned(tmp_path)
    attack = replace(job, attack={"attacks": "fgsm"}, results=job.results[:1])
    errors = {name: type(name, (Exception,), {}) for name in ("RayError", "TaskCancelledError")}
    answers = [
        ray_module.Results(({"failed.json": b'{"name": "K4 seed 1", "reason": "no", "code": 1}'}, {}), ()),
        ray_module.Results(({"record.json": b"{}"}, {"record.json": b"{}"}), ()),
    ]
    ray = SimpleNamespace(get=lambda number: answers[number], exceptions=SimpleNamespace(**errors))
    monkeypatch.setitem(sys.modules, "ray", ray)
    failures.record_failure(attack, "out of memory", 1, Show(quiet=True))
    (failure,) = ray_module._collect(job, 0, Show(quiet=True))
    assert re.search(in_order("interrupted ; same command"), failure.reason)
    listed = [results.Failed(attack.name, "out of memory"), results.Failed(failure.name, failure.reason)]
    assert results.load_failed(tmp_path) == listed
    assert ray_module._collect(job, 1, Show(quiet=True)) == []
    assert results.load_failed(tmp_path) == listed[:1]


def test_a_run_that_is_called_off_while_it_is_started_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray interrupts wherever a task stands: here, when the process is there and the study does not yet know of it."""
    processes = []
    start = jobs._start

    def called_off(job: Job, threads: int) -> "subprocess.Popen[bytes]":
        processes.append(start(job, threads))
        signal.raise_signal(signal.SIGINT)
        return processes[0]

    monkeypatch.setattr(jobs, "_start", called_off)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        ray_module._run(planned(tmp_path, {"nepochs": 10_000}), 1)
    assert [process.returncode for process in processes] == [INTERRUPTED], "a clean stop"
    assert not (tmp_path / "results").exists(), "what was called off has not failed"
    assert signal.getsignal(signal.SIGINT) is before


def test_what_is_left_of_the_last_attempt_is_waited_for(tmp_path: Path) -> None:
    free = threading.Event()

    def hold() -> None:
        with locked(tmp_path, "busy"):
            held.set()
            free.wait()

    held = threading.Event()
    holder, waiter = threading.Thread(target=hold), threading.Thread(target=ray_module._wait_for, args=(tmp_path,))
    holder.start()
    held.wait()
    waiter.start()
    waiter.join(0.2)
    assert waiter.is_alive()
    free.set()
    waiter.join(10)
    assert not waiter.is_alive()
    holder.join()


@pytest.mark.parametrize(
    ("need", "enough"),
    [
        (ray_module.Need(cpus=4), True),
        (ray_module.Need(cpus=2, gpus=0.5), True),
        (ray_module.Need(cpus=5), False),
        (ray_module.Need(gpus=2), False),
        (ray_module.Need(cpus=4, gpus=1), False),  # no single machine has both
        (ray_module.Need(cpus=8), False),  # the one that had them is lost
    ],
)
def test_that_no_machine_suffices_is_told(
    need: ray_module.Need, enough: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machines = [({"CPU": 4.0}, True), ({"CPU": 2.0, "GPU": 1.0}, True), ({"CPU": 8.0}, False), ({}, True)]
    nodes = [{"NodeID": str(number), "Alive": alive, "Resources": has} for number, (has, alive) in enumerate(machines)]
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(nodes=lambda: nodes))
    assert ray_module._machines(need, Show(quiet=True)) == {"0", "1", "3"}
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 0 if enough else 1)
    assert enough or re.search(in_order(f"warning: no machine {need.cpus} cores {need.gpus:g} GPUs ; wait"), err)


@pytest.mark.parametrize("on", ["ray", "ray://"])
def test_no_cluster_is_told_in_one_line(
    on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = "127.0.0.1:1"  # where nothing listens
    monkeypatch.setenv("RAY_ADDRESS", address)
    where = on if on == "ray" else on + address
    code = main.main(shlex.split(f"run K4 --quiet --results {tmp_path}/results --on {where}"))
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"perturblab: error: --on {where}: no cluster answers (")
    assert address in err


@pytest.mark.parametrize("refusals", [2, 3])
def test_a_cluster_that_is_slow_to_serve_a_client_is_asked_again(
    refusals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a busy head does it: it answers, and gives up the server that it starts for the client."""
    calls = []

    def init(address: str, **_: object) -> None:
        calls.append(address)
        if len(calls) <= refusals:
            raise ConnectionAbortedError(
                "Initialization failure from server:\nTraceback\nRuntimeError: it took too long\n"
            )

    ray = SimpleNamespace(init=init, shutdown=lambda: calls.append("shutdown"))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(ray_module, "_knock", lambda on: None)
    if refusals < 3:
        with ray_module.connected("ray://head:10001", ray_module.Need()):
            pass
        assert calls == ["ray://head:10001"] * 3 + ["shutdown"]
    else:
        with pytest.raises(UserError, match=r"no cluster answers \(RuntimeError: it took too long\)"):
            ray_module.connected("ray://head:10001", ray_module.Need()).__enter__()
        assert calls == ["ray://head:10001"] * 3


def test_ray_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=in_order("Ray ; pip install 'perturblab[ray]'")):
        ray_module.connected("ray", ray_module.Need()).__enter__()
