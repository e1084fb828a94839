"""How a command ends: a stop, a bug, a reader that goes away, a full disk."""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders import LENET, ONE_EPOCH, Tell, content
from perturblab.cli import main
from perturblab.runs import checkpoint, train
from perturblab.system import exit_codes
from told import in_order


def process(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "perturblab", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def wait_for(path: Path, text: str, program: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Until the file holds the text; never longer than that."""
    end = time.monotonic() + seconds
    while text not in path.read_text():
        assert program.poll() is None, path.read_text()
        assert time.monotonic() < end, path.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_interrupted_run_goes_on_where_it_stopped(number: signal.Signals, tell: Tell, tmp_path: Path) -> None:
    flags = "--dataset-train digits --net-type lenet --nfilters 2 --batch-size 10 --nthreads 1"
    command = [sys.executable, "-m", "perturblab", *shlex.split(f"train {flags} --nepochs 1000000 --out run")]
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        program = subprocess.Popen(command, stdout=out, stderr=err, cwd=tmp_path, start_new_session=True)
        try:
            wait_for(tmp_path / "err", "epoch 2/", program)
            program.send_signal(number)
            assert program.wait(120) == 130
        finally:
            program.kill()
            program.wait()
    assert (tmp_path / "out").read_bytes() == b""
    last = (tmp_path / "err").read_text().splitlines()[-1]
    found = re.search(r"epoch (\d+) .*step (\d+)\D* 120\b.*perturblab train --resume run$", last)
    assert found, last
    epoch, step = map(int, found.groups())
    state = checkpoint.load_checkpoint(tmp_path / "run/checkpoint.pt")["state"]
    assert (state["epoch"] + 1, state["step"]) == (epoch, step)
    assert "record.json" not in content(tmp_path / "run")
    assert tell(f"train --resume run --nepochs {epoch} --quiet").code == 0
    assert tell(f"train {flags} --nepochs {epoch} --quiet --out straight").code == 0
    one, two = (tmp_path / name / "weights.safetensors" for name in ("run", "straight"))
    assert one.read_bytes() == two.read_bytes()


def test_second_interrupt_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a stop of its own, `main` hears the signals of this process."""

    def execute(run: Any, show: Any, stop: Callable[[], bool]) -> None:
        signal.raise_signal(signal.SIGINT)
        assert stop()
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on after the second interrupt")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(train, "execute", execute)
    monkeypatch.chdir(tmp_path)
    assert main.main(shlex.split(f"train {ONE_EPOCH} --quiet --out run")) == exit_codes.INTERRUPTED
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "perturblab: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stop_that_is_given_leaves_the_signals_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    asked = list[bool]()

    def stop() -> bool:
        assert all(signal.getsignal(number) == handler for number, handler in handlers)
        asked.append(len(asked) == 2)
        return asked[-1]

    line = f"train {LENET} --nepochs 9 --quiet --out {tmp_path / 'run'}"
    assert main.main(shlex.split(line), stop=stop) == exit_codes.INTERRUPTED
    assert asked == [False, False, True]
    assert f"--resume {tmp_path / 'run'}" in capsys.readouterr().err
    study = f"run K4 --seeds 1 --results {tmp_path}/r --work {tmp_path}/w"
    assert main.main(shlex.split(study), stop=lambda: True) == exit_codes.INTERRUPTED
    assert not list(tmp_path.glob("r/**/*.json"))


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1 and the traceback are what the interpreter makes of it."""

    def broken(_: argparse.Namespace) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(main, "list_nets", broken)
    with pytest.raises(ZeroDivisionError):
        main.main(["models"])


@pytest.mark.parametrize("command", ["list", "list --json", "report", "--help"])
@pytest.mark.parametrize("buffered", [True, False])
def test_reader_that_goes_away_is_no_error(command: str, buffered: bool, run: Path, tmp_path: Path) -> None:
    """As `| head` does, the other end of the pipe is closed before the first line comes."""
    read, write = os.pipe()
    os.close(read)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    argv = shlex.split(command) + ([str(run)] if command == "report" else [])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "perturblab", *argv],
            stdout=write,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env=environment | ({} if buffered else {"PYTHONUNBUFFERED": "1"}),
            timeout=300,
            check=False,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="NOT TESTED WITH A FULL DISK: no /dev/full here")
@pytest.mark.parametrize("command", ["list", "report"])
def test_output_that_cannot_be_written_is_told_in_one_line(command: str, run: Path, tmp_path: Path) -> None:
    argv = [command, str(run)] if command == "report" else [command]
    with Path("/dev/full").open("wb") as full:
        command_line = [sys.executable, "-m", "perturblab", *argv]
        done = subprocess.run(command_line, stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode not in (0, 120)
    assert re.fullmatch(rb"perturblab: error: [^\n]*No space left on device[^\n]*\n", done.stderr), done.stderr


def test_terminal_that_knows_ascii_only(tell: Tell, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = process("train", *shlex.split(ONE_EPOCH), "--out", "é", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.match(in_order("test accuracy epoch 1"), done.stdout)
    assert process("report", "é", cwd=tmp_path, env=environment).returncode == 0


def test_command_and_module_are_one_program() -> None:
    script = Path(sys.executable).with_name("perturblab")
    one = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=300, check=False)
    two = process("--help")
    assert (one.returncode, one.stdout, one.stderr) == (two.returncode, two.stdout, two.stderr)
    assert one.returncode == 0
    assert process("train", "--nepoch", "1").returncode == 2
