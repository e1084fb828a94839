"""Bad weights and masks: the safetensors files of a finished run."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from good_files import DIGITS
from oracle import judge
from strategies import ODD_FILES, as_json, changed, damaged, replace, search
from told import in_order

Header = dict[str, Any]
Change = Callable[[Path], Any]
WEIGHTS, MASKS = "run/weights.safetensors", "run/masks.safetensors"
ATTACK = "attack run --eps 0.1 --no-checks --quiet --json --subset"
COMMANDS = {
    "evaluate": (WEIGHTS, ["evaluate", "run", "--json"]),
    "attack": (WEIGHTS, f"{ATTACK} 20 --attacks uniform".split()),
    "resume": (MASKS, ["train", "--resume", "run", "--nepochs", "2", "--quiet"]),
}


def split(content: bytes) -> tuple[Header, bytes]:
    """Read the header and the data of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: Header, data: bytes) -> bytes:
    """Write the file again."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def names(header: Header) -> list[str]:
    return [name for name in header if name != "__metadata__"]


def header(change: Callable[[Header], Any]) -> Change:
    def apply(path: Path) -> None:
        found, data = split(path.read_bytes())
        change(found)
        path.write_bytes(joined(found, data))

    return apply


def first(**values: Any) -> Change:
    return header(lambda h: h[names(h)[0]].update(values))


def content(made: bytes) -> Change:
    return lambda path: path.write_bytes(made)


def every(value: float) -> Change:
    """Put one number in every place."""

    def apply(path: Path) -> None:
        found, data = split(path.read_bytes())
        path.write_bytes(joined(found, struct.pack("<f", value) * (len(data) // 4)))

    return apply


CHANGES: dict[str, Change] = {
    "10^12 values": first(shape=[10**6, 10**6], data_offsets=[0, 4 * 10**12]),
    "a shape beyond 64 bits": first(shape=[2**63, 2**63]),
    "no shape": header(lambda h: h[names(h)[0]].pop("shape")),
    "offsets beyond the end": first(data_offsets=[0, 10**12]),
    "offsets on each other": header(lambda h: h[names(h)[-1]].update(data_offsets=h[names(h)[0]]["data_offsets"])),
    "a wider type": first(dtype="F64"),
    "a name that steers a terminal": header(lambda h: h.update({"\x1b[31mred/../../x": h.pop(names(h)[0])})),
    "nothing": header(lambda h: h.clear()),
    "metadata of lists": header(lambda h: h.update(__metadata__=[1])),
    "empty": content(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "a header of 10^12 bytes": content(struct.pack("<Q", 10**12) + b"{}"),
    "a header of 2^64 bytes": content(b"\xff" * 8 + b"{}"),
    "a header that is a list": content(struct.pack("<Q", 2) + b"[]"),
    "a header that is not JSON": content(struct.pack("<Q", 4) + b"{\xff\xfe}"),
    "deep brackets": content(struct.pack("<Q", 90000) + b"[" * 90000),
    "a pickle": content(b"\x80\x02cos\nmkdir\nq\x00X\x05\x00\x00\x00pwnedq\x01\x85q\x02Rq\x03."),
    **{name: lambda path, name=name: replace(path, name) for name in ODD_FILES},
}


def judged(good: Path, command: str, change: Change, pattern: str = "", **expected: Any) -> None:
    file, argv = COMMANDS[command]
    ended = judge(
        good, argv, lambda folder: change(folder / file), names=[Path(file).name, "run", "logits"], **expected
    )
    assert re.search(pattern, ended.err), ended.err


@pytest.mark.parametrize("command", ["evaluate", "resume"])
@pytest.mark.parametrize("name", CHANGES)
def test_bad_weights_and_masks(name: str, command: str, good: Path) -> None:
    judged(good, command, CHANGES[name], r"(weights|masks)\.safetensors.*restore")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38, 0.0])
def test_weights_of_one_number_are_counted_or_refused(value: float, good: Path) -> None:
    judged(good, "evaluate", every(value), total=DIGITS, may_succeed=True)


def test_autoattack_refuses_logits_that_are_not_finite(good: Path) -> None:
    argv = f"{ATTACK} 2 --attacks autoattack".split()
    ended = judge(good, argv, lambda folder: every(float("nan"))(folder / WEIGHTS))
    assert re.search(in_order("logits not finite ;"), ended.err)


def test_weights_of_another_net(good: Path) -> None:
    def prepare(folder: Path) -> None:
        (folder / "colour/weights.safetensors").replace(folder / WEIGHTS)

    ended = judge(good, COMMANDS["evaluate"][1], prepare, needs=["colour"])
    assert re.search(in_order("weights.safetensors another net restore"), ended.err)


@search(30)
@given(st.data(), st.sampled_from(sorted(COMMANDS)), st.booleans(), st.sampled_from([0, 8, 200]))
def test_broken_weights_and_masks(good: Path, data: st.DataObject, command: str, by_bytes: bool, start: int) -> None:
    """Break the bytes, or one value of the header; the length in front may be wrong too."""

    def change(path: Path) -> None:
        found, rest = split(path.read_bytes())
        if by_bytes:
            path.write_bytes(data.draw(damaged(path.read_bytes(), start)))
        else:
            text = as_json(data.draw(changed(found)))
            path.write_bytes(
                struct.pack("<Q", data.draw(st.sampled_from([len(text), len(text), 7, 10**9]))) + text + rest
            )

    judged(good, command, change, total=20 if command == "attack" else DIGITS, may_succeed=True)
