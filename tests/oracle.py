"""The oracle of bad input: runs a command in this process, under limits, and judges how it ended."""

import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perturblab.cli import main
from perturblab.records import store
from perturblab.system import exit_codes

ROOM = 3 << 30  # bytes of address space beyond what the process has when a command begins
MEMORY = 700 << 20  # bytes that no bad input may take
SECONDS = 60
PROGRESS = re.compile(
    r"(data|classes in order|net|run|quick|its last bits depend on): |fetching |reading |decoding |warning: "
)
ERROR = re.compile(r"perturblab: error: .+\n")
REMEDY = re.compile(r"; \S|did you mean|expected|choose|see perturblab|: (give|use|add|fill) ")


@dataclass(frozen=True)
class Ended:
    """The end of a command.

    Args:
        argv: the command line.
        code: exit code; None where the time was over.
        out: stdout.
        err: stderr, warnings included.
        changed: paths that were made, changed or removed.
        grown: bytes of memory that it took at most.
        counted: numbers of images that a success names.
    """

    argv: Sequence[str]
    code: int | None
    out: str = ""
    err: str = ""
    changed: Sequence[str] = ()
    grown: int = 0
    counted: Collection[int] = ()


class OutOfTimeError(BaseException):
    """The command ran too long; no handler of the command may catch it."""


def run(argv: Sequence[str], folder: Path) -> Ended:
    """Run a command line in a folder, within limits on time and memory."""
    before, resident, code = _snapshot(folder), _reset_peak(), None
    with warnings.catch_warnings(record=True) as warned, _captured() as (out, err):
        warnings.simplefilter("always")
        try:
            with chdir(folder), _limits():
                code = main.main(list(argv), stop=lambda: False)
        except SystemExit as error:  # argparse after --help and --version
            code = error.code if isinstance(error.code, int) else 70
        except OutOfTimeError:
            pass
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        texts = [Path(f"/proc/self/fd/{file}").read_bytes().decode(errors="replace") for file in (out, err)]
    texts[1] += "".join(f"{warning.message}\n" for warning in warned)
    after = _snapshot(folder)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    counted = _counted(argv, folder, texts[0]) if code == 0 else ()
    return Ended(argv, code, *texts, changed, _peak() - resident, counted)


def fault(ended: Ended, *, total: int | None = None, may_succeed: bool = False, names: Sequence[str] = ()) -> str:
    """Say what is wrong about the end of a command.

    Args:
        ended: the end.
        total: images that a success has to count; None where the command counts none.
        may_succeed: True where the input may be as good as any.
        names: words, one of which the error must contain unless it names a flag; none where a test looks itself.

    Returns:
        The fault in a few words; "" without one.
    """
    if ended.code is None:
        return "hang"
    if "Traceback" in ended.err:
        return f"traceback: {ended.err.strip().splitlines()[-1][:200]}"
    if any(name.endswith("pwned") for name in ended.changed):
        return "code from a file was run"
    if ended.grown > MEMORY:
        return f"took {ended.grown >> 20} MB"
    if ended.code == exit_codes.MISTAKE:
        return _wrong_refusal(ended, names)
    if ended.code != exit_codes.DONE:
        return f"exit code {ended.code}"
    return _wrong_success(ended, total) if may_succeed else "accepted"


def _wrong_refusal(ended: Ended, names: Sequence[str]) -> str:
    lines = ended.err.splitlines(keepends=True)
    while "--quiet" not in ended.argv and len(lines) > 1 and PROGRESS.match(lines[0]):
        del lines[0]
    if not ERROR.fullmatch("".join(lines)):
        return f"{len(lines)} lines on stderr: {ended.err[:200]!r}"
    if not lines[0][:-1].isprintable():
        return f"control characters on stderr: {ended.err[:200]!r}"
    if ended.out:
        return f"partial output: {ended.out[:100]!r}"
    if ended.changed:
        return f"files were changed: {', '.join(ended.changed[:4])}"
    if names and "--" not in lines[0] and not any(_plain(name) in _plain(lines[0]) for name in names if _plain(name)):
        return f"names no flag and no file: {lines[0][:200]!r}"
    return "" if REMEDY.search(lines[0]) else f"no remedy: {lines[0][:200]!r}"


def _plain(word: str) -> str:
    """Drop what spellings of a flag and of a text differ in."""
    return re.sub(r"[^\w.]", "", word.split("=")[0].replace("_", "").lower())


def _wrong_success(ended: Ended, total: int | None) -> str:
    if left := [name for name in ended.changed if name.endswith(".part")]:
        return f"left behind: {left[0]}"
    if re.search(r"[^\S\n ]|[\x00-\x09\x0b-\x1f\x7f-\x9f]", ended.out + ended.err):
        return f"control characters in the output: {(ended.out + ended.err)[:200]!r}"
    if not ended.out.strip():
        return "success without a word"
    wrong = total is not None and set(ended.counted) != {total}
    return f"counted {sorted(ended.counted)} images, expected {total}" if wrong else ""


def _counted(argv: Sequence[str], folder: Path, out: str) -> set[int]:
    match argv:
        case ["train", *_]:
            place = argv[argv.index("--out" if "--out" in argv else "--resume") + 1]
            return {store.load_record(folder / place / "record.json").counts.last.total}
        case ["evaluate", *_] if "--json" in argv:
            return {json.loads(out)["exact"]["total"]}
        case ["attack", *_] if "--json" in argv:
            return {point["total"] for point in json.loads(out)}
    return set()


# --- the limits


@contextmanager
def _captured() -> Iterator[tuple[int, int]]:
    """Send stdout and stderr to files, also what C libraries write; gives the descriptors of the files."""
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            with (
                open(1, "w", encoding="utf-8", closefd=False) as stdout,
                open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as stderr,
                redirect_stdout(stdout),
                redirect_stderr(stderr),
            ):
                yield out.fileno(), err.fileno()
        finally:
            for number, old in enumerate(saved, 1):
                os.dup2(old, number)
                os.close(old)


@contextmanager
def _limits() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise OutOfTimeError

    old, (soft, hard) = signal.signal(signal.SIGALRM, ring), resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def _peak() -> int:
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _snapshot(folder: Path) -> dict[str, object]:
    """List every path below a folder, with what tells that it has changed."""
    found: dict[str, object] = {}
    for base, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(base, name)
            status = os.lstat(path)
            whole = name in folders or (status.st_size, status.st_mtime_ns, status.st_ino)
            found[os.path.relpath(path, folder)] = whole
    return found


# --- a case from its files to the verdict


def judge(
    world: Path,
    argv: Sequence[str],
    prepare: Callable[[Path], Any] = lambda folder: None,
    *,
    needs: Sequence[str] = (),
    **expected: Any,
) -> Ended:
    """Run a command on copies of good files after something was done to them; a fault is an AssertionError.

    Args:
        world: the folder of good files; what the command line names is copied, "." means the run.
        argv: the command line.
        prepare: changes the copies.
        needs: further files to copy.
        expected: of `fault`.
    """
    named = {"run" if word == "." else word.split("/")[0] for word in argv} | {*needs}
    with tempfile.TemporaryDirectory(prefix="bad-") as folder:
        for source in world.iterdir():
            if source.name in named:
                (shutil.copytree if source.is_dir() else shutil.copy)(source, Path(folder, source.name))
        prepare(Path(folder))
        ended = run(argv, Path(folder))
    assert not (wrong := fault(ended, **expected)), f"{argv}: {wrong}"
    return ended
