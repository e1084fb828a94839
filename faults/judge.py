"""Whether a case ended as promised: one line and exit code 2, or a success that counts every image."""

import json
import re
import signal
from pathlib import Path
from typing import Any

from faults.case import Case
from faults.forked import Ended

MEMORY = 700 << 20  # bytes that no bad input may take
PROGRESS = re.compile(
    r"(data|classes in order|net|run|quick|its last bits depend on): |fetching |reading |decoding |warning: "
)
ERROR = re.compile(r"perturblab: error: .+\n")


def fault(case: Case, ended: Ended) -> str:
    """Say what is wrong about the end of a case.

    Args:
        case: what was run.
        ended: how it ended.

    Returns:
        The fault in a few words; "" where there is none.
    """
    if ended.signal:
        return "hang" if ended.signal == signal.SIGALRM else f"killed by {signal.Signals(ended.signal).name}"
    if "Traceback" in ended.err:
        return f"traceback: {ended.err.strip().splitlines()[-1][:200]}"
    if [name for name in ended.after if name.split("/")[-1] == "pwned"]:
        return "code from a file was run"
    if ended.grown > MEMORY:
        return f"took {ended.grown >> 20} MB"
    if ended.code == 2:
        return _wrong_refusal(case, ended)
    if ended.code != 0:
        return f"exit code {ended.code}"
    if not case.may_succeed:
        return "accepted"
    return _wrong_success(case, ended)


def _wrong_refusal(case: Case, ended: Ended) -> str:
    err = ended.err if "--quiet" in case.argv else _without_progress(ended.err)
    if not ERROR.fullmatch(err):
        return f"{len(ended.err.splitlines())} lines on stderr: {ended.err[:200]!r}"
    if not err[:-1].isprintable():
        return f"control characters on stderr: {ended.err[:200]!r}"
    if ended.out:
        return f"partial output: {ended.out[:100]!r}"
    changed = sorted(name for name in {*ended.before, *ended.after} if ended.before.get(name) != ended.after.get(name))
    return f"files were changed: {', '.join(changed[:4])}" if changed else ""


def _without_progress(err: str) -> str:
    """What a command says of its progress may stand before its one line, where it was not told to be quiet."""
    lines = err.splitlines(keepends=True)
    while len(lines) > 1 and PROGRESS.match(lines[0]):
        del lines[0]
    return "".join(lines)


def _wrong_success(case: Case, ended: Ended) -> str:
    if left := [name for name in ended.after if name.endswith(".part")]:
        return f"left behind: {left[0]}"
    if re.search(r"[^\S\n ]|[\x00-\x09\x0b-\x1f\x7f-\x9f]", ended.out + ended.err):
        return f"control characters in the output: {(ended.out + ended.err)[:200]!r}"
    if not ended.out.strip():
        return "success without a word"
    if case.total is None:
        return ""
    counted = _counted(case, ended)
    return "" if counted == {case.total} else f"counted {sorted(counted)} images, expected {case.total}"


def _counted(case: Case, ended: Ended) -> set[int]:
    """The numbers of images that the results name."""
    argv = list(case.argv)
    if argv[0] == "train":
        folder = ended.folder / argv[argv.index("--out" if "--out" in argv else "--resume") + 1]
        return {_record(folder / "record.json").counts.last.total}
    if "--json" in argv:
        said: Any = json.loads(ended.out)
        return {point["total"] for point in said} if isinstance(said, list) else {said["exact"]["total"]}
    return {int(number) for number in re.findall(r"\d+/(\d+)|of (\d+) test images", ended.out)[0] if number}


def _record(path: Path) -> Any:
    from perturblab import records

    return records.load(path)
