"""Hypothesis strategies that break good input: bytes, plain values, command lines, YAML."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

THOROUGH = int(os.environ.get("THOROUGH", "0"))  # so many times the examples, and other ones in every run


def search(examples: int) -> settings:
    """Give the settings of a search: few examples, the same in every run, unless THOROUGH asks for more."""
    return settings(
        max_examples=examples * max(THOROUGH, 1),
        derandomize=not THOROUGH,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Calls:
    """A pickle that calls something when it is loaded."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


# What may stand in place of a file.
ODD_FILES: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to a system file": lambda path: path.symlink_to("/etc/passwd"),
}


def replace(path: Path, name: str) -> None:
    """Put one of `ODD_FILES` in the place of a file."""
    path.unlink(missing_ok=True)
    ODD_FILES[name](path)


# Numbers, texts and containers that are easily taken for something else.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3.5, -0.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**30, 10**400),
    *("", " ", "nan", "0", "-1", "x" * 5000, "\x1b[31mred\x07", "a\nb", "<b>|x|</b>", "../../etc/passwd", "/root/.ssh"),
    *("\u202egnp.exe", "\ud800", "é", "0x10", "1e3", "yes", [], {}, [1, 2], {"a": 1}, [[[[[]]]]], [None], "null"),
)
WORDS = (
    *(
        "",
        " ",
        "-",
        "--",
        "-1",
        "0",
        "1.5",
        "1e3",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "99999999999999999999",
        "0x10",
        "1_0",
    ),
    *("true", "None", "''", "a,b", ",", "1,,2", "1,2,3", "8/0", "/", "8/255/2", "U[0", "U[1,0]", "0.3:0.1", ":", ";;"),
    *("²", "٣", "é", "\x1b[31mred", "a\nb", "\x07", "\u202e", "\ud800", "../..", ".", "~", "/dev/null", "/dev/zero"),
    *("/proc/self/mem", "x" * 3000, "{}", "$(id)", "%s%s", "run", "run/record.json", "pictures", "digits", "CIFAR11"),
    *("resnet", "Lenet", "all-after:nothing", "cuda:99", "mps", "-5", "2147483648", "9223372036854775808", "no\0ne"),
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes, start: int = 0) -> bytes:
    """Damage bytes as disks and editors do: cut, zeroed, repeated, overwritten, inserted, flipped.

    Args:
        draw: of hypothesis.
        content: good bytes.
        start: the first byte that may be damaged.
    """
    spot, length = draw(st.integers(start, len(content) - 1)), draw(st.integers(1, 40))
    noise = draw(st.binary(min_size=1, max_size=30))
    before, part, after = content[:spot], content[spot : spot + length], content[spot + length :]
    flipped = bytes(a ^ b for a, b in zip(part, noise * 40, strict=False))
    middles = (bytes(len(part)), part * 5, b"\xff" * len(part), noise + part, flipped, bytes([part[0] ^ 1]) + part[1:])
    return draw(st.sampled_from([before, content[:start] + after, *(before + middle + after for middle in middles)]))


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the path of everything inside plain values."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([above] if above else []), *(place for key, part in parts for place in places(part, (*above, key)))]


@st.composite
def changed(draw: st.DrawFn, value: Any, odd: tuple[Any, ...] = ODD) -> Any:
    """Change one place of plain values: leave it out, add something beside it, or put something odd there.

    Args:
        draw: of hypothesis.
        value: dictionaries and lists.
        odd: what may be put there.
    """
    value = copy.deepcopy(value)
    *path, last = draw(st.sampled_from(places(value)))
    inside = value
    for key in path:
        inside = inside[key]
    how = draw(st.sampled_from(["less", "more", "number", "odd", "odd"]))
    if how == "less":
        del inside[last]
    elif how == "more" and isinstance(inside, dict):
        inside[draw(st.sampled_from(["", "extra", "__class__", "a\nb", "\x1b[1m"]))] = draw(st.sampled_from(odd))
    elif how == "number" and isinstance(inside[last], int | float):
        inside[last] = draw(st.sampled_from([-1, 2, 10, 1000, 10**12, -(10**12)])) * (inside[last] or 1)
    else:
        inside[last] = draw(st.sampled_from(odd))
    return value


def as_json(value: Any) -> bytes:
    """Write JSON as a careless program does: NaN and half characters included."""
    try:
        return json.dumps(value).encode()
    except ValueError:  # a number of more digits than Python prints
        return b'{"version": 1, "counts": ' + b"9" * 5000 + b"}"


@st.composite
def garbled(draw: st.DrawFn, argv: list[str]) -> list[str]:
    """Garble one word of a command line: lost, doubled, shuffled, mistyped, or another one."""
    spot = draw(st.integers(0, len(argv) - 1))
    before, word, after = argv[:spot], argv[spot], argv[spot + 1 :]
    match draw(st.sampled_from(["lost", "doubled", "shuffled", "letter", "capitals", "value", "value"])):
        case "lost" if not word.startswith(("--nepochs", "--subset", "--no-checks", "--dry")):
            return [*before, *after]
        case "doubled":
            return [*before, word, word, *after]
        case "shuffled":
            return [*before, "".join(draw(st.permutations(word))), *after]
        case "letter":
            at = draw(st.integers(0, len(word)))
            return [*before, word[:at] + draw(st.sampled_from("-_=,.x0 \t\x1b")) + word[at:], *after]
        case "capitals":
            return [*before, word.swapcase(), *after]
    value = draw(st.sampled_from(WORDS))
    return [*before, word, value, *after[1:]] if word.startswith("--") else [*before, value, *after]


@st.composite
def mistaken_yaml(draw: st.DrawFn, good: bytes, values: list[str]) -> bytes:
    """Damage a YAML file of flags, put other values into it, or repeat a line with something before it."""
    lines = good.splitlines(keepends=True)
    spot = draw(st.integers(0, len(lines) - 1))
    how = draw(st.sampled_from(["damaged", "value", "line"]))
    if how == "damaged":
        return draw(damaged(good))
    if how == "value":
        value = " ".join(draw(st.lists(st.sampled_from(values), min_size=1, max_size=2)))
        lines[spot] = lines[spot].split(b":")[0] + b": " + value.encode() + b"\n"
    else:
        lines = draw(st.permutations(lines))
        before = draw(st.sampled_from([b"  ", b"\t", b"- ", b"? ", b": ", b"&a ", b"*a ", b"!x ", b"%"]))
        lines = [*lines[:spot], before + lines[spot], *lines[spot:]]
    return b"".join(lines)
