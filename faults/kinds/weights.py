"""Bad weights and masks: safetensors files of a finished run."""

import json
import random
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from faults.case import Case, fill
from faults.kinds.mutations import changed, damaged
from faults.world import DIGITS

Header = dict[str, Any]
WEIGHTS, MASKS = "run/weights.safetensors", "run/masks.safetensors"
RESUME = ["train", "--resume", "run", "--nepochs", "2", "--quiet"]
COMMANDS = (
    ["evaluate", "run", "--json"],
    ["evaluate", "run", "--audit"],
    ["attack", "run", "--attacks", "uniform", "--eps", "0.1", "--subset", "597", "--no-checks", "--quiet", "--json"],
)


def split(content: bytes) -> tuple[Header, bytes]:
    """Header and data of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: Header, data: bytes, length: int | None = None) -> bytes:
    """The file again, with any length in front."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _first(header: Header) -> Header:
    found: Header = next(value for name, value in header.items() if name != "__metadata__")
    return found


def _renamed(header: Header) -> None:
    name = next(name for name in header if name != "__metadata__")
    header["\x1b[31mred/../../x"] = header.pop(name)


def _enormous(header: Header) -> None:
    _first(header)["shape"] = [10**6, 10**6]
    _first(header)["data_offsets"] = [0, 4 * 10**12]


def _overlapping(header: Header) -> None:
    names = [name for name in header if name != "__metadata__"]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]


AUTOATTACK = ["attack", "run", "--attacks", "autoattack", "--eps", "0.1", "--subset", "2", "--no-checks", "--quiet"]


HEADERS: dict[str, Callable[[Header], Any]] = {
    "claims 10^12 values": _enormous,
    "a shape of 10^12": lambda h: _first(h).update(shape=[10**12]),
    "a shape beyond 64 bits": lambda h: _first(h).update(shape=[2**63, 2**63]),
    "a negative shape": lambda h: _first(h).update(shape=[-1]),
    "no shape": lambda h: _first(h).pop("shape"),
    "a shape of nothing": lambda h: _first(h).update(shape=[0]),
    "offsets beyond the end": lambda h: _first(h).update(data_offsets=[0, 10**12]),
    "offsets backwards": lambda h: _first(h).update(data_offsets=[100, 0]),
    "offsets on each other": _overlapping,
    "another type": lambda h: _first(h).update(dtype="I32"),
    "a wider type": lambda h: _first(h).update(dtype="F64"),
    "a type that is none": lambda h: _first(h).update(dtype="F31"),
    "a name that steers a terminal": _renamed,
    "a name more": lambda h: h.update(more={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
    "nothing": lambda h: h.clear(),
    "metadata of numbers": lambda h: h.update(__metadata__={"a": 1}),
    "metadata of lists": lambda h: h.update(__metadata__=[1]),
}
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "three bytes": b"abc",
    "a header of 10^12 bytes": struct.pack("<Q", 10**12) + b"{}",
    "a header of 2^64 bytes": b"\xff" * 8 + b"{}",
    "no header": struct.pack("<Q", 0),
    "a header that is a list": struct.pack("<Q", 2) + b"[]",
    "a header that is no JSON": struct.pack("<Q", 4) + b"{\xff\xfe}",
    "deep brackets": struct.pack("<Q", 90000) + b"[" * 90000,
    "a text": b"these are no weights, only a text of some length\n",
    "a pickle": b"\x80\x02cos\nmkdir\nq\x00X\x05\x00\x00\x00pwnedq\x01\x85q\x02Rq\x03.",
}


def _header(change: Callable[[Header], Any], file: str, folder: Path) -> None:
    header, data = split((folder / file).read_bytes())
    change(header)
    (folder / file).write_bytes(joined(header, data))


def _content(content: bytes, file: str, folder: Path) -> None:
    (folder / file).write_bytes(content)


def _values(value: float, file: str, folder: Path) -> None:
    """Every number is the same one."""
    header, data = split((folder / file).read_bytes())
    (folder / file).write_bytes(joined(header, struct.pack("<f", value) * (len(data) // 4)))


def _of_another_net(folder: Path) -> None:
    (folder / "colour/weights.safetensors").replace(folder / WEIGHTS)


def _gone(file: str, folder: Path) -> None:
    (folder / file).unlink()


def _folder(file: str, folder: Path) -> None:
    _gone(file, folder)
    (folder / file).mkdir()


def _pipe(file: str, folder: Path) -> None:
    import os

    _gone(file, folder)
    os.mkfifo(folder / file)


def _linked(target: str, file: str, folder: Path) -> None:
    _gone(file, folder)
    (folder / file).symlink_to(target)


def cases(count: int, seed: int) -> list[Case]:
    """Bad weights for ``evaluate`` and ``attack``, bad masks for ``train --resume``."""
    fixed = [_case(name, change, COMMANDS[0], WEIGHTS, may) for name, (change, may) in _changes().items()]
    fixed.append(Case("of another net", COMMANDS[0], ("run", "colour"), _of_another_net, may_succeed=False))
    fixed += [
        Case(f"{case.name}, attacked", COMMANDS[2], case.needs, case.prepare, DIGITS, may_succeed=case.may_succeed)
        for case in fixed[::3]
    ]
    # A file that holds the very masks is as good as any: with a name more, or the run's weights.
    harmless = ("a name more", "a link to weights.safetensors")
    fixed += [
        _case(f"masks: {name}", change, RESUME, MASKS, name in harmless) for name, (change, _) in _changes().items()
    ]
    nan = partial(_values, float("nan"))
    fixed.append(_case("all nan, autoattack", nan, AUTOATTACK, WEIGHTS, False))
    return fill(fixed, _drawn, count, seed)


def _changes() -> dict[str, tuple[Callable[[str, Path], None], bool]]:
    """What is done to a file, by name, and whether a net may still work with it."""
    done: dict[str, tuple[Callable[[str, Path], None], bool]] = {
        name: (partial(_header, change), True) for name, change in HEADERS.items()
    }
    done |= {name: (partial(_content, content), False) for name, content in CONTENTS.items()}
    done |= {f"all {value}": (partial(_values, value), True) for value in (float("nan"), float("inf"), 1e38, 0.0)}
    done |= {"gone": (_gone, False), "a folder": (_folder, False), "a pipe": (_pipe, False)}
    return done | {f"a link to {to}": (partial(_linked, to), False) for to in ("weights.safetensors", "/dev/zero")}


def _case(name: str, change: Callable[[str, Path], None], argv: Sequence[str], file: str, may: bool) -> Case:
    return Case(name, argv, (file.split("/")[0],), partial(change, file), DIGITS, may_succeed=may)


def _drawn(k: int, chance: random.Random) -> Case:
    change = partial(_damaged if k % 2 else _odd_header, chance)
    name = "damaged bytes" if k % 2 else "an odd header"
    argv = (*COMMANDS, RESUME)[(k // 2) % 4]
    return _case(f"{k}: {name}", change, argv, MASKS if argv is RESUME else WEIGHTS, True)


def _damaged(chance: random.Random, file: str, folder: Path) -> None:
    content = (folder / file).read_bytes()
    start = chance.choice([0, 8, 200, len(content) // 2])
    (folder / file).write_bytes(content[:start] + damaged(content[start:], chance))


def _odd_header(chance: random.Random, file: str, folder: Path) -> None:
    header, data = split((folder / file).read_bytes())
    odd, _ = changed(header, chance)
    try:
        (folder / file).write_bytes(joined(odd, data, chance.choice([None, None, None, 7, 10**9])))
    except (ValueError, UnicodeEncodeError):  # a number of more digits than Python writes
        (folder / file).write_bytes(joined({}, data))
