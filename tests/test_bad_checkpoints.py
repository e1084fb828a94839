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
from strategies import ODD, ODD_FILES, Calls, changed, damaged, replace, search
from told import in_order

FILE = "run/checkpoint.pt"
EVALUATE, RESUME = ["evaluate", "run", "--audit", "--json"], ["train", "--resume", "run", "--nepochs", "2", "--quiet"]
NAMES = ("checkpoint.pt", "masks.safetensors", "run", "no net is called", "data set")


def refuse(good: Path, argv: list[str], prepare: Callable[[Path], Any], tokens: str) -> None:
    """Expect a refusal that tells these tokens, and never PyTorch's own advice, to load the file all the same."""
    ended = judge(good, argv, prepare, names=NAMES)
    assert re.search(in_order(tokens), ended.err), ended.err
    assert "weights_only" not in ended.err


# --- intact and senseless


def weight(value: Any) -> Callable[[Content], Any]:
    return lambda c: c["model"].update({next(iter(c["model"])): value})


def state(**values: Any) -> Callable[[Content], Any]:
    return lambda c: c["state"].update(values)


def config(**values: Any) -> Callable[[Content], Any]:
    return lambda c: c["config"].update(values)


def deep(levels: int) -> Any:
    inner: Any = 1
    for _ in range(levels):
        inner = [inner]
    return inner


# Each change, and what its error tells; what is not here, the search below draws.
CHANGES: dict[str, tuple[Callable[[Content], Any], str]] = {
    "empty": (lambda c: c.clear(), "checkpoint.pt restore"),
    "no hashes": (lambda c: c.pop("hashes"), "checkpoint.pt hashes restore"),
    "version 99": (lambda c: c.update(version=99), "checkpoint.pt version 99 restore perturblab that wrote it"),
    "an option more": (config(colour=1), "checkpoint.pt --colour restore"),
    "another width": (config(nfilters=5), "checkpoint.pt another net restore"),
    "a net that steers a terminal": (config(net_type="\x1b[31m red"), "red choose"),
    "a data set beyond the folder": (config(dataset_train="../../../../etc"), "etc expected"),
    "a batch of one": (config(batch_size=1), "--batch-size 1 batch of 1"),
    "other training images": (lambda c: c["hashes"].update(train="0" * 64), "train images digits run --dataroot"),
    "other test images": (lambda c: c["hashes"].update(test="0" * 64), "test images digits run --dataroot"),
    "fixed masks as a list": (lambda c: c.update(fixed=[1]), "checkpoint.pt fixed restore"),
    "fixed masks of another name": (lambda c: c["fixed"].update(more="0" * 64), "masks.safetensors more restore"),
    "10^9 epochs": (state(epoch=10**9), "checkpoint.pt restore"),
    "a step beyond the epoch": (state(step=10**6), "checkpoint.pt step 1000000 restore"),
    "an optimiser of nothing": (lambda c: c["state"]["optimizer"].update(state={}, param_groups=[]), "restore"),
    "another optimiser": (config(optim_method="SGD"), "checkpoint.pt momentum restore"),
    "moments of another shape": (
        lambda c: c["state"]["optimizer"]["state"][0].update(exp_avg=torch.zeros(7)),
        "checkpoint.pt exp_avg restore",
    ),
    "random state too short": (state(order=torch.zeros(3, dtype=torch.uint8)), "checkpoint.pt restore"),
    "an order beyond the images": (
        state(epoch=0, permutation=torch.arange(15) + 900),
        "checkpoint.pt order 15 restore",
    ),
    "an order twice the same": (state(epoch=0, permutation=torch.zeros(15, dtype=torch.int64)), "order 15 restore"),
    "sums of text": (state(reached={"loss": "x", "correct": 1, "images": 1, "seconds": 1}), "checkpoint.pt restore"),
    "a row more": (lambda c: c["rows"].append(dict(c["rows"][0])), "checkpoint.pt row 1 epoch 0 restore"),
    "rows of nothing": (lambda c: c.update(rows=[{}]), "checkpoint.pt row 0 epoch restore"),
    "a row of other images": (lambda c: c["rows"][-1].update(total=598), "row 0 598 images expected 597 restore"),
    "answers of another set": (lambda c: c.update(correct=[torch.ones(3, dtype=torch.bool)]), "1 597 restore"),
    "a weight less": (lambda c: c["model"].pop(next(iter(c["model"]))), "checkpoint.pt 0.0.weight restore"),
    "a weight of another shape": (weight(torch.zeros(1, 2)), "checkpoint.pt 0.0.weight restore"),
    "a weight of whole numbers": (weight(torch.zeros(2, 1, 3, 3, dtype=torch.int8)), "checkpoint.pt restore"),
    "a weight that is sparse": (weight(torch.eye(3).to_sparse()), "checkpoint.pt sparse_coo restore"),
    "a weight without memory": (weight(torch.empty(3, device="meta")), "checkpoint.pt meta restore"),
    "a weight of 10^12 values": (weight(torch.zeros(1).expand(10**6, 10**6)), "checkpoint.pt 4000000000000 restore"),
    "10^12 answers": (
        lambda c: c.update(correct=[torch.ones(1).expand(10**12)]),
        "checkpoint.pt 4000000000000 restore",
    ),
    "deep lists": (config(colour=deep(150)), "checkpoint.pt restore"),
    "a number of 3,000 digits": (config(nfilters=10**3000), "checkpoint.pt restore"),
}
EVALUATED = (
    *("empty", "no hashes", "an option more", "version 99", "other test images", "rows of nothing", "a row more"),
    *("a row of other images", "a weight that is sparse", "10^12 answers"),
)


@pytest.mark.parametrize(
    ("name", "argv"), [*((name, RESUME) for name in CHANGES), *((name, EVALUATE) for name in EVALUATED)]
)
def test_senseless_checkpoint(name: str, argv: list[str], good: Path) -> None:
    refuse(good, argv, lambda folder: change_checkpoint(folder / FILE, CHANGES[name][0]), CHANGES[name][1])


@search(20)
@given(st.data(), st.sampled_from([EVALUATE, RESUME]))
def test_odd_value_in_a_checkpoint(good: Path, data: st.DataObject, argv: list[str]) -> None:
    """An odd value, or none, anywhere but in the weights: refused, or everything is counted all the same."""
    odd = (*(value for value in ODD if value != 10**400), torch.zeros(3), torch.zeros(0))

    def prepare(folder: Path) -> None:
        content = torch.load(folder / FILE, weights_only=True)
        parts = data.draw(st.sampled_from([["config"], ["state"], ["rows", "hashes"], ["version", "fixed", "correct"]]))
        value = data.draw(changed({part: content.pop(part) for part in parts}, odd))
        content |= value
        torch.save(seal(content), folder / FILE)

    judge(good, argv, prepare, total=DIGITS, may_succeed=True, names=NAMES)


# --- not what torch.save has written


HOSTILE: dict[str, Any] = {
    "os.mkdir": Calls(os.mkdir, "pwned"),
    "os.system": Calls(os.system, "mkdir pwned"),
    "eval": Calls(eval, "__import__('os').mkdir('pwned')"),
    "getattr": Calls(getattr, "text", "upper"),
    "shutil": Calls(shutil.copytree, "run", "pwned"),
    "torch.load": Calls(torch.load, "run/weights.safetensors"),
    "in a dictionary": {"version": 2, "config": Calls(os.mkdir, "pwned")},
    "in an ordered dictionary": OrderedDict(config=Calls(os.mkdir, "pwned")),
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


def test_a_hostile_pickle_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(HOSTILE["in a dictionary"]))
    assert Path("pwned").is_dir()


UNREADABLE = "run/checkpoint.pt as a checkpoint restore"


@pytest.mark.parametrize("protocol", [*range(pickle.HIGHEST_PROTOCOL + 1), "archive"])
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
    """Also if the previous checkpoint is damaged too."""

    def prepare(folder: Path) -> None:
        for file in (FILE, "run/checkpoint.previous.pt"):
            (folder / file).write_bytes(BYTES[name])

    refuse(good, argv, prepare, "checkpoint.pt list restore" if name == "a list" else "checkpoint.pt restore")


@pytest.mark.parametrize("argv", [EVALUATE, RESUME], ids=["evaluate", "resume"])
def test_half_a_checkpoint(argv: list[str], good: Path) -> None:
    refuse(good, argv, lambda f: write((f / FILE).read_bytes()[:30_000])(f), UNREADABLE)


@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_file_in_place_of_a_checkpoint(name: str, good: Path) -> None:
    refuse(good, EVALUATE, lambda folder: replace(folder / FILE, name), "checkpoint.pt")


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
    refuse(good, EVALUATE, rezip(more_values), "checkpoint.pt restore")
    bomb = rezip(lambda name, content: content + bytes(1 << 26) * name.endswith("data/0"), zipfile.ZIP_DEFLATED)
    refuse(good, EVALUATE, bomb, "checkpoint.pt restore")


@search(10)
@given(st.data(), st.sampled_from([EVALUATE, RESUME]))
def test_damaged_checkpoint(good: Path, data: st.DataObject, argv: list[str]) -> None:
    content = data.draw(damaged((good / FILE).read_bytes()))
    judge(good, argv, write(content), total=DIGITS, may_succeed=True, names=NAMES)
