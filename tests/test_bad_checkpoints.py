"""Bad checkpoints: of another version, torn, enormous, hostile, or intact and senseless."""

import io
import os
import pickle
import re
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from good_files import DIGITS, Content, change_checkpoint, seal
from oracle import judge
from strategies import ODD, changed, damaged, search

FILE = "run/checkpoint.pt"
EVALUATE, RESUME = ["evaluate", "run", "--audit", "--json"], ["train", "--resume", "run", "--nepochs", "2", "--quiet"]
NAMES = ("checkpoint.pt", "masks.safetensors", "run", "no net is called", "data set")


def refuse(good: Path, argv: list[str], prepare: Callable[[Path], Any], pattern: str) -> None:
    """Expect a refusal; it never repeats PyTorch's own advice, to load the file all the same."""
    ended = judge(good, argv, prepare, names=NAMES)
    assert re.search(pattern, ended.err), ended.err
    assert "weights_only" not in ended.err


# --- intact and senseless


def weight(value: Any) -> Callable[[Content], Any]:
    return lambda c: c["model"].update({next(iter(c["model"])): value})


def moment(value: Any) -> Callable[[Content], Any]:
    return lambda c: c["state"]["optimizer"]["state"][0].update(exp_avg=value)


def last_row(**values: Any) -> Callable[[Content], Any]:
    return lambda c: c["rows"][-1].update(values)


def state(**values: Any) -> Callable[[Content], Any]:
    return lambda c: c["state"].update(values)


def config(**values: Any) -> Callable[[Content], Any]:
    return lambda c: c["config"].update(values)


def deep(levels: int) -> Any:
    inner: Any = 1
    for _ in range(levels):
        inner = [inner]
    return inner


CHANGES: dict[str, Callable[[Content], Any]] = {
    "empty": lambda c: c.clear(),
    **{f"no {key}": lambda c, key=key: c.pop(key) for key in ("config", "hashes", "model", "state", "rows", "version")},
    "version 99": lambda c: c.update(version=99),
    "version as text": lambda c: c.update(version="2"),
    "config is text": lambda c: c.update(config="text"),
    "an option more": config(colour=1),
    "an option less": lambda c: c["config"].pop("nfilters"),
    "another width": config(nfilters=5),
    "names that are numbers": lambda c: c["config"].update({3: 4}),
    "a resume of itself": config(resume="run"),
    "other training images": lambda c: c["hashes"].update(train="0" * 64),
    "other test images": lambda c: c["hashes"].update(test="0" * 64),
    "hashes of numbers": lambda c: c["hashes"].update(test=3),
    "fixed masks as a list": lambda c: c.update(fixed=[1]),
    "fixed masks of another name": lambda c: c["fixed"].update(more="0" * 64),
    "a net that steers a terminal": config(net_type="\x1b[31mred"),
    "a text of a million letters": config(net_type="x" * 10**6),
    "a data set of nobody": config(dataset_train="/nowhere/at/all"),
    "a data set beyond the folder": config(dataset_train="../../../../etc"),
    "a device that is not there": config(device="cuda:77"),
    "a batch of one": config(batch_size=1),
    "10^9 epochs": state(epoch=10**9),
    "an epoch below 0": state(epoch=-3),
    "a step beyond the epoch": state(step=10**6),
    "a step of half": state(epoch=0, step=0.5),
    "no optimiser": lambda c: c["state"].pop("optimizer"),
    "an optimiser of nothing": lambda c: c["state"]["optimizer"].update(state={}, param_groups=[]),
    "another optimiser": config(optim_method="SGD"),
    "moments of another shape": moment(torch.zeros(7)),
    "moments of no number": moment("x"),
    "random state too short": state(order=torch.zeros(3, dtype=torch.uint8)),
    "random state of floats": state(forward=torch.zeros(5056)),
    "an order too short": state(epoch=0, permutation=torch.arange(3)),
    "an order beyond the images": state(epoch=0, permutation=torch.arange(15) + 900),
    "an order of floats": state(epoch=0, permutation=torch.rand(15)),
    "an order twice the same": state(epoch=0, permutation=torch.zeros(15, dtype=torch.int64)),
    "sums of text": state(reached={"loss": "x", "correct": 1, "images": 1, "seconds": 1}),
    "a row more": lambda c: c["rows"].append(dict(c["rows"][0])),
    "rows of nothing": lambda c: c.update(rows=[{}]),
    "a row of not a number": last_row(val_accuracy=float("nan")),
    "a row with more right than there are": last_row(correct=10**6),
    "a row of other images": last_row(total=598),
    "a row of another epoch": last_row(epoch=70),
    "answers of text": lambda c: c.update(correct=["x"]),
    "answers of another set": lambda c: c.update(correct=[torch.ones(3, dtype=torch.bool)]),
    "a weight less": lambda c: c["model"].pop(next(iter(c["model"]))),
    "a weight more": lambda c: c["model"].update(more=torch.zeros(2)),
    "a weight of text": weight("x"),
    "a weight of another shape": weight(torch.zeros(1, 2)),
    "a weight of whole numbers": weight(torch.zeros(2, 1, 3, 3, dtype=torch.int8)),
    "a weight of complex numbers": weight(torch.zeros(2, 1, 3, 3, dtype=torch.complex64)),
    "a weight that is sparse": weight(torch.eye(3).to_sparse()),
    "a weight without memory": weight(torch.empty(3, device="meta")),
    "a weight of 10^12 values in 4 bytes": weight(torch.zeros(1).expand(10**6, 10**6)),
    "10^12 answers in 1 byte": lambda c: c.update(correct=[torch.ones(1, dtype=torch.bool).expand(10**12)]),
    "deep lists": config(colour=deep(150)),
    "a number of 3,000 digits": config(nfilters=10**3000),
}
# The error, where it is not that the file is to be restored.
SAID = {
    "version 99": r"version 99, expected .*; restore .* perturblab that wrote it",
    "an option more": r"checkpoint\.pt holds another version's configuration \(--colour",
    "another width": "another net",
    "fixed masks of another name": r"masks\.safetensors .*restore",
    "other training images": "train images of digits are not those of run; give --dataroot",
    "other test images": "test images of digits are not those of run; give --dataroot",
    "hashes of numbers": "--dataroot",
    "a net that steers a terminal": "no net is called .*red'; choose",
    "a text of a million letters": "no net is called 'xxx",
    "a data set of nobody": "there is no folder /nowhere/at/all; give",
    "a data set beyond the folder": "etc holds no data set; expected",
    "a device that is not there": "--device got 'cuda:77'",
    "a batch of one": "--batch-size 1 leaves a batch of 1",
    "rows of nothing": "metrics of another run.*restore",
    **{
        name: "another net.*restore"
        for name in CHANGES
        if name.startswith("a weight") and not name.endswith(("bytes", "sparse", "memory"))
    },
}
EVALUATED = (
    *("empty", "no config", "no hashes", "config is text", "an option more", "version 99", "other test images"),
    *("rows of nothing", "a row more", "a row of other images", "a weight that is sparse", "10^12 answers in 1 byte"),
)


def change(name: str) -> Callable[[Path], Any]:
    return lambda folder: change_checkpoint(folder / FILE, CHANGES[name])


@pytest.mark.parametrize("name", CHANGES)
def test_senseless_checkpoint_is_not_resumed(name: str, good: Path) -> None:
    refuse(good, RESUME, change(name), SAID.get(name, r"run/checkpoint\.pt .*restore"))


@pytest.mark.parametrize("name", EVALUATED)
def test_senseless_checkpoint_is_not_evaluated(name: str, good: Path) -> None:
    refuse(good, EVALUATE, change(name), SAID.get(name, r"run/checkpoint\.pt .*restore"))


@search(10)
@given(st.data(), st.sampled_from([EVALUATE, RESUME]))
def test_odd_value_in_a_checkpoint(good: Path, data: st.DataObject, argv: list[str]) -> None:
    """An odd value anywhere but in the weights: refused, or everything is counted all the same."""
    odd = (*(value for value in ODD if value != 10**400), torch.zeros(3), torch.zeros(0))

    def prepare(folder: Path) -> None:
        content = torch.load(folder / FILE, weights_only=True)
        part = data.draw(st.sampled_from(["config", "state", "rows", "hashes"]))
        content[part] = data.draw(changed(content[part], odd))
        torch.save(seal(content), folder / FILE)

    judge(good, argv, prepare, total=DIGITS, may_succeed=True, names=NAMES)


# --- not what torch.save has written


class Hostile:
    """A pickle that would call something."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


HOSTILE: dict[str, Any] = {
    "os.mkdir": Hostile(os.mkdir, "pwned"),
    "os.system": Hostile(os.system, "mkdir pwned"),
    "eval": Hostile(eval, "__import__('os').mkdir('pwned')"),
    "getattr": Hostile(getattr, "text", "upper"),
    "shutil": Hostile(shutil.copytree, "run", "pwned"),
    "torch.load": Hostile(torch.load, "run/weights.safetensors"),
    "in a dictionary": {"version": 2, "config": Hostile(os.mkdir, "pwned")},
    "in an ordered dictionary": OrderedDict(config=Hostile(os.mkdir, "pwned")),
}


def archive(content: bytes) -> bytes:
    """Wrap a pickle as torch.save does."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("archive/data.pkl", content)
        made.writestr("archive/version", b"3\n")
        made.writestr("archive/byteorder", b"little")
    return file.getvalue()


def deep_archive() -> bytes:
    """Put lists in lists, deeper than any recursion goes, where the configuration should be."""
    parts = {"version": b"K\x02", "hashes": b"}", "model": b"}", "state": b"}", "rows": b"]", "correct": b"]"}
    parts["config"] = b"}X\x01\x00\x00\x00x" + b"]" * 100_000 + b"a" * 99_999 + b"s"
    keys = {name: b"X" + struct.pack("<I", len(name)) + name.encode() for name in parts}
    return archive(b"\x80\x02}" + b"".join(keys[name] + part + b"s" for name, part in parts.items()) + b".")


def a_list() -> bytes:
    file = io.BytesIO()
    torch.save([1, 2], file)
    return file.getvalue()


def write(content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / FILE).write_bytes(content)


UNREADABLE = r"run/checkpoint\.pt cannot be read as a checkpoint.*restore"


@pytest.mark.parametrize("protocol", [0, 2, 4, "archive"])
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_in_a_checkpoint_is_executed(name: str, protocol: int | str, good: Path) -> None:
    content = (
        archive(pickle.dumps(HOSTILE[name], 2)) if protocol == "archive" else pickle.dumps(HOSTILE[name], protocol)
    )
    refuse(good, EVALUATE, write(content), UNREADABLE)


BYTES: dict[str, bytes] = {
    "empty": b"",
    "a text": b"not a checkpoint",
    "a zip of nothing": archive(b""),
    "zeros": bytes(9999),
    "a list": a_list(),
    "lists too deep": deep_archive(),
}


@pytest.mark.parametrize("argv", [EVALUATE, RESUME], ids=["evaluate", "resume"])
@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_not_a_checkpoint(name: str, argv: list[str], good: Path) -> None:
    """Also where the checkpoint before is no better."""

    def prepare(folder: Path) -> None:
        for file in (FILE, "run/checkpoint.previous.pt"):
            (folder / file).write_bytes(BYTES[name])

    refuse(good, argv, prepare, r"holds a list, not a checkpoint; restore" if name == "a list" else r"\.pt .*restore")


@pytest.mark.parametrize("argv", [EVALUATE, RESUME], ids=["evaluate", "resume"])
def test_half_a_checkpoint(argv: list[str], good: Path) -> None:
    refuse(good, argv, lambda f: write((f / FILE).read_bytes()[:30_000])(f), UNREADABLE)


ODD_FILES: dict[str, Callable[[Path], Any]] = {
    "gone": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to("checkpoint.pt"),
}


@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_file_in_place_of_a_checkpoint(name: str, good: Path) -> None:
    def prepare(folder: Path) -> None:
        (folder / FILE).unlink()
        ODD_FILES[name](folder / FILE)

    refuse(good, EVALUATE, prepare, r"checkpoint\.pt")


def rezip(change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Callable[[Path], Any]:
    """Write the archive anew with some entries changed."""

    def prepare(folder: Path) -> None:
        with zipfile.ZipFile(folder / FILE) as old:
            entries = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(folder / FILE, "w", compression) as new:
            for name, content in entries.items():
                new.writestr(name, change(name, content))

    return prepare


def more_values(name: str, content: bytes) -> bytes:
    """Let the pickle claim 2^31 - 1 values in its first storages, far more than the archive holds."""
    if not name.endswith("data.pkl"):
        return content
    claim = b"J" + struct.pack("<i", 2**31 - 1)
    return re.sub(rb"(cpu.{0,3}?)(K.|M..)", lambda found: found[1] + claim, content, count=20, flags=re.DOTALL)


def test_archive_that_claims_more_than_it_holds(good: Path) -> None:
    refuse(good, EVALUATE, rezip(more_values), r"checkpoint\.pt .*restore")
    bomb = rezip(lambda name, content: content + bytes(1 << 26) * name.endswith("data/0"), zipfile.ZIP_DEFLATED)
    refuse(good, EVALUATE, bomb, r"checkpoint\.pt .*restore")


@search(10)
@given(st.data(), st.sampled_from([EVALUATE, RESUME]))
def test_damaged_checkpoint(good: Path, data: st.DataObject, argv: list[str]) -> None:
    content = data.draw(damaged((good / FILE).read_bytes()))
    judge(good, argv, write(content), total=DIGITS, may_succeed=True, names=NAMES)
