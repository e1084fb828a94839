"""A command line run in a forked process of its own, with limits on time and memory, and what it left behind."""

import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from faults.case import Case

ROOM = 3 << 30  # bytes of address space beyond what the process has when it starts
Site = tuple[str, int]  # file and line of a raise statement


@dataclass(frozen=True)
class Ended:
    """How a case ended.

    Args:
        code: exit code; None where a signal ended it.
        signal: its number, 0 without one.
        out: what it printed.
        err: what it complained about.
        raised: where the exceptions behind its message were raised, the outermost first.
        grown: bytes of memory that it took beyond what it began with.
        before: the files it met, path -> content.
        after: the files it left.
    """

    code: int | None
    signal: int
    out: str
    err: str
    raised: list[Site]
    grown: int
    before: dict[str, object]
    after: dict[str, object]
    folder: Path = field(default=Path())


def snapshot(folder: Path) -> dict[str, object]:
    """Every path below a folder, with what tells whether it has changed."""
    found: dict[str, object] = {}
    for base, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(base, name)
            status = os.lstat(path)
            is_folder = name in folders
            found[os.path.relpath(path, folder)] = is_folder or (status.st_size, status.st_mtime_ns, status.st_ino)
    return found


@dataclass
class Started:
    """A case that is running."""

    case: Case
    folder: Path
    pid: int
    before: dict[str, object]
    resident: int

    def ended(self) -> Ended:
        """Wait for it."""
        _, status, usage = os.wait4(self.pid, 0)
        told = self.folder.with_suffix(".told")
        raised = json.loads(told.read_text()) if told.is_file() else []
        texts = [self.folder.with_suffix(s).read_bytes().decode(errors="replace") for s in (".out", ".err")]
        return Ended(
            code=os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            out=texts[0],
            err=texts[1],
            raised=[(file, line) for file, line in raised],
            grown=usage.ru_maxrss * 1024 - self.resident,
            before=self.before,
            after=snapshot(self.folder),
            folder=self.folder,
        )


def start(case: Case, world: Path) -> Started:
    """Prepare the files of a case and run it in a forked process."""
    folder = Path(tempfile.mkdtemp(prefix="case-", dir=world / "cases"))
    for name in case.needs:
        source = world / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    try:
        case.prepare(folder)
    except Exception as error:
        raise RuntimeError(f"{case.name!r} cannot be prepared") from error
    before = snapshot(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pid = os.fork()
    if not pid:
        _run(case, folder)
    return Started(case, folder, pid, before, resident)


def _run(case: Case, folder: Path) -> None:
    """In the child: never returns."""
    code = 70
    try:
        _limit(case.seconds)
        os.chdir(folder)
        for number, suffix in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(folder.with_suffix(suffix), os.O_WRONLY | os.O_CREAT), number)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), encoding="utf-8", write_through=True)
        sys.stderr = io.TextIOWrapper(
            os.fdopen(2, "wb", closefd=False), encoding="utf-8", errors="backslashreplace", write_through=True
        )
        code = _main(case, folder)
    except SystemExit as error:  # argparse after --help and --version
        code = error.code if isinstance(error.code, int) else 70
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _limit(seconds: int) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # it ends the process even inside a library
    signal.alarm(seconds)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _main(case: Case, folder: Path) -> int:
    from perturblab import cli

    run = cli._run

    def watched(argv: list[str], *rest: object) -> int:
        try:
            return run(argv, *rest)  # type: ignore[arg-type]
        except Exception as error:
            sites = list(dict.fromkeys(_sites(error)))
            folder.with_suffix(".told").write_text(json.dumps(sites))
            raise

    cli._run = watched  # type: ignore[assignment]
    return cli.main(list(case.argv))


def _sites(error: BaseException | None) -> Iterator[Site]:
    """Where an exception and those behind it were raised."""
    while error is not None:
        if error.__traceback__ is not None:
            last = _last(error.__traceback__)
            yield last.tb_frame.f_code.co_filename, last.tb_lineno
        if isinstance(error, ValidationError):
            for each in error.errors(include_url=False):
                yield from _sites(each.get("ctx", {}).get("error"))
        error = error.__cause__ or error.__context__


def _last(trace: TracebackType) -> TracebackType:
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def clear(ended: Ended) -> None:
    """Remove what a case left."""
    shutil.rmtree(ended.folder, ignore_errors=True)
    for suffix in (".out", ".err", ".told"):
        ended.folder.with_suffix(suffix).unlink(missing_ok=True)
