"""Bad checkpoints: of another version, torn, enormous, hostile, or whole and senseless."""

import io
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from faults.case import Case, fill
from faults.kinds.mutations import ODD, changed, damaged
from faults.world import DIGITS
from perturblab.checkpoint import digest

Content = dict[str, Any]
FILE = "run/checkpoint.pt"
EVALUATE, RESUME = ["evaluate", "run", "--audit", "--json"], ["train", "--resume", "run", "--nepochs", "2", "--quiet"]
LONGER = ["train", "--resume", "run", "--quiet"]
SHOWN = (EVALUATE, RESUME, LONGER)


class Hostile:
    """A pickle that would make a folder."""

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


def _deep(levels: int) -> Any:
    inner: Any = 1
    for _ in range(levels):
        inner = [inner]
    return inner


def _laughs() -> Any:
    inner: Any = ["ha"] * 9
    for _ in range(40):
        inner = [inner] * 9
    return inner


def _itself() -> Any:
    own: list[Any] = []
    own.append(own)
    return own


def _last_row(content: Content, **values: Any) -> None:
    content["rows"][-1].update(values)


CHANGES: dict[str, Callable[[Content], Any]] = {
    "no config": lambda c: c.pop("config"),
    "fixed masks as a list": lambda c: c.update(fixed=[1]),
    "fixed masks of another name": lambda c: c["fixed"].update(more="0" * 64),
    "no rows": lambda c: c.pop("rows"),
    "version 99": lambda c: c.update(version=99),
    "version as text": lambda c: c.update(version="2"),
    "no version": lambda c: c.pop("version"),
    "config a list": lambda c: c.update(config=[1]),
    "an option more": lambda c: c["config"].update(colour=1),
    "an option less": lambda c: c["config"].pop("nfilters"),
    "another net": lambda c: c["config"].update(net_type="resnet18"),
    "a net that is none": lambda c: c["config"].update(net_type="\x1b[31mred"),
    "other images": lambda c: c["hashes"].update(train="0" * 64, test="0" * 64),
    "no test images": lambda c: c["hashes"].pop("test"),
    "no training images": lambda c: c["hashes"].pop("train"),
    "a data set of nobody": lambda c: c["config"].update(dataset_train="/nowhere/at/all"),
    "a data set beyond the folder": lambda c: c["config"].update(dataset_train="../../../../etc"),
    "an out elsewhere": lambda c: c["config"].update(out="../pwned"),
    "a save elsewhere": lambda c: c["config"].update(save="../pwned", logs="/pwned"),
    "a device that is none": lambda c: c["config"].update(device="cuda:77"),
    "a resume of itself": lambda c: c["config"].update(resume="run"),
    "a batch of one": lambda c: c["config"].update(batch_size=1),
    "no epochs": lambda c: c["config"].update(nepochs=0),
    "10^9 epochs fewer": lambda c: c["state"].update(epoch=10**9),
    "an epoch below 0": lambda c: c["state"].update(epoch=-3),
    "an epoch as text": lambda c: c["state"].update(epoch="1"),
    "a step beyond the epoch": lambda c: c["state"].update(step=10**6),
    "a step below 0": lambda c: c["state"].update(step=-1),
    "a step of half": lambda c: c["state"].update(epoch=0, step=0.5),
    "no optimiser": lambda c: c["state"].pop("optimizer"),
    "an empty optimiser": lambda c: c["state"].update(optimizer={}),
    "an optimiser of nothing": lambda c: c["state"]["optimizer"].update(state={}, param_groups=[]),
    "another optimiser": lambda c: c["config"].update(optim_method="SGD"),
    "moments of another shape": lambda c: c["state"]["optimizer"]["state"][0].update(exp_avg=torch.zeros(7)),
    "moments of no number": lambda c: c["state"]["optimizer"]["state"][0].update(exp_avg="x"),
    "random state too short": lambda c: c["state"].update(order=torch.zeros(3, dtype=torch.uint8)),
    "random state of floats": lambda c: c["state"].update(forward=torch.zeros(5056)),
    "random state missing": lambda c: c["state"].update(forward=None),
    "an order too short": lambda c: c["state"].update(epoch=0, permutation=torch.arange(3)),
    "an order beyond the images": lambda c: c["state"].update(epoch=0, permutation=torch.arange(15) + 900),
    "an order of floats": lambda c: c["state"].update(epoch=0, permutation=torch.rand(15)),
    "an order twice the same": lambda c: c["state"].update(epoch=0, permutation=torch.zeros(15, dtype=torch.int64)),
    "reached what is none": lambda c: c["state"].update(reached={"loss": "x", "correct": 1, "images": 1, "seconds": 1}),
    "reached something more": lambda c: c["state"]["reached"].update(more=1),
    "rows of nothing": lambda c: c.update(rows=[{}]),
    "rows of text": lambda c: c.update(rows=["x"]),
    "no row": lambda c: c.update(rows=[]),
    "a row more": lambda c: c["rows"].append(dict(c["rows"][0])),
    "a row of not a number": lambda c: _last_row(c, val_accuracy=float("nan")),
    "a row of texts": lambda c: _last_row(c, smoothed="x"),
    "a row with more right than there are": lambda c: _last_row(c, correct=10**6),
    "a row of other images": lambda c: _last_row(c, total=598),
    "a row of another epoch": lambda c: _last_row(c, epoch=70),
    "a row of endless loss": lambda c: _last_row(c, train_loss=float("inf")),
    "answers of text": lambda c: c.update(correct=["x"]),
    "answers of another set": lambda c: c.update(correct=[torch.ones(3, dtype=torch.bool)]),
    "a weight less": lambda c: c["model"].pop(next(iter(c["model"]))),
    "a weight more": lambda c: c["model"].update(more=torch.zeros(2)),
    "a weight of text": lambda c: c["model"].update({next(iter(c["model"])): "x"}),
    "a weight of another shape": lambda c: c["model"].update({next(iter(c["model"])): torch.zeros(1, 2)}),
    "a weight of another type": lambda c: c["model"].update(
        {name: value.to(torch.int8) for name, value in c["model"].items()}
    ),
    "a weight of complex numbers": lambda c: c["model"].update(
        {name: value.to(torch.complex64) for name, value in c["model"].items()}
    ),
    "a weight that is sparse": lambda c: c["model"].update({next(iter(c["model"])): torch.eye(3).to_sparse()}),
    "a weight without memory": lambda c: c["model"].update({next(iter(c["model"])): torch.empty(3, device="meta")}),
    "a weight of 10^12 values in 4 bytes": lambda c: c["model"].update(
        {next(iter(c["model"])): torch.zeros(1).expand(10**6, 10**6)}
    ),
    "weights that are not finite": lambda c: c["model"].update(
        {name: value * float("nan") for name, value in c["model"].items()}
    ),
    "10^12 answers in 1 byte": lambda c: c.update(correct=[torch.ones(1, dtype=torch.bool).expand(10**12)]),
    "deep lists": lambda c: c["config"].update(colour=_deep(150)),
    "a billion laughs": lambda c: c["config"].update(colour=_laughs()),
    "a list in itself": lambda c: c["config"].update(colour=_itself()),
    "a number of 3,000 digits": lambda c: c["config"].update(nfilters=10**3000),
    "a text of a million letters": lambda c: c["config"].update(net_type="x" * 10**6),
    "names that are numbers": lambda c: c["config"].update({3: 4}),
    "hashes of numbers": lambda c: c["hashes"].update(test=3),
}


def _saved(content: Any, path: Path, sealed: bool = True) -> None:
    if isinstance(content, dict) and sealed:
        content = {name: value for name, value in content.items() if name != "digest"}
        try:
            content["digest"] = digest(content)
        except (RecursionError, RuntimeError, MemoryError, NotImplementedError, TypeError):
            content["digest"] = "0" * 64  # beyond what can be sealed
    torch.save(content, path)


def _changed(change: Callable[[Content], Any], sealed: bool, folder: Path) -> None:
    """Change a whole checkpoint, and seal it anew: it is senseless, not damaged."""
    content = torch.load(folder / FILE, weights_only=True)
    change(content)
    laughs = change in (CHANGES["a billion laughs"], CHANGES["a list in itself"])
    _saved(content, folder / FILE, sealed and not laughs)


def _bytes(content: bytes, folder: Path) -> None:
    (folder / FILE).write_bytes(content)


def _zip(change: Callable[[str, bytes], bytes], compression: int, folder: Path) -> None:
    """The same archive with some entries changed."""
    with zipfile.ZipFile(folder / FILE) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(folder / FILE, "w", compression) as new:
        for name, content in entries.items():
            new.writestr(name, change(name, content))


def _more_values(name: str, content: bytes) -> bytes:
    """Let the pickle claim far more values than the archive holds: the count of the first storages becomes 2^31 - 1."""
    if not name.endswith("data.pkl"):
        return content
    spot, done = 0, content
    while (spot := done.find(b"cpu", spot + 1)) > 0 and spot < 4000:
        for at in range(spot, spot + 12):
            if done[at : at + 1] == b"K":
                done = done[:at] + b"J" + struct.pack("<i", 2**31 - 1) + done[at + 2 :]
                break
            if done[at : at + 1] == b"M":
                done = done[:at] + b"J" + struct.pack("<i", 2**31 - 1) + done[at + 3 :]
                break
    return done


def _bomb(name: str, content: bytes) -> bytes:
    return content + bytes(1 << 28) if name.endswith("data/0") else content


def _archive(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
    return file.getvalue()


def _a_list() -> bytes:
    """What PyTorch writes of a list."""
    file = io.BytesIO()
    torch.save([1, 2], file)
    return file.getvalue()


def _deep_archive() -> bytes:
    """Lists in lists, deeper than any recursion goes, where the configuration should be."""
    parts = {"version": b"K\x02", "hashes": b"}", "model": b"}", "state": b"}", "rows": b"]", "correct": b"]"}
    parts["config"] = b"}X\x01\x00\x00\x00x" + b"]" * 100_000 + b"a" * 99_999 + b"s"
    keys = {name: b"X" + struct.pack("<I", len(name)) + name.encode() for name in parts}
    return _archive(b"\x80\x02}" + b"".join(keys[name] + part + b"s" for name, part in parts.items()) + b".")


def _both(content: bytes, folder: Path) -> None:
    """The file and the one before are bad."""
    _bytes(content, folder)
    (folder / "run/checkpoint.previous.pt").write_bytes(content)


def _one_before(content: bytes, folder: Path) -> None:
    """The file is bad, and the one before is whole."""
    (folder / FILE).replace(folder / "run/checkpoint.previous.pt")
    _bytes(content, folder)


def _unlinked(make: Callable[[Path], Any], folder: Path) -> None:
    (folder / FILE).unlink()
    make(folder / FILE)


FILES: dict[str, Callable[[Path], Any]] = {
    "gone": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to("checkpoint.pt"),
}


def cases(count: int, seed: int) -> list[Case]:
    """Bad checkpoints for ``evaluate`` and ``train --resume``."""
    fixed = []
    for name, value in HOSTILE.items():
        pickled = {protocol: pickle.dumps(value, protocol=protocol) for protocol in (0, 2, 4)}
        fixed += [
            _case(f"hostile {name}, protocol {p}", partial(_bytes, b), EVALUATE, False) for p, b in pickled.items()
        ]
        archive = partial(_bytes, _archive(pickled[2]))
        fixed.append(_case(f"hostile {name}, in an archive", archive, RESUME, False))
    for k, (name, change) in enumerate(CHANGES.items()):
        for command in SHOWN if k % 4 == 0 else (SHOWN[k % 3], SHOWN[(k + 1) % 3]):
            fixed.append(_case(f"{name}, {command[0]} {len(command)}", partial(_changed, change, True), command))
    fixed += [
        _case(f"{name}, not sealed", partial(_changed, c, False), EVALUATE, False)
        for name, c in [*CHANGES.items()][:40:9]
    ]
    for name, content in {
        "empty": b"",
        "a text": b"text",
        "a zip of nothing": _archive(b""),
        "zeros": bytes(9999),
        "a list": _a_list(),
    }.items():
        fixed.append(_case(name, partial(_bytes, content), EVALUATE, False))
        fixed.append(_case(f"{name}, and the one before", partial(_both, content), RESUME, False))
        fixed.append(_case(f"{name}, the one before whole", partial(_one_before, content), LONGER))
    fixed += [_case(name, partial(_unlinked, make), EVALUATE, False) for name, make in FILES.items()]
    fixed.append(_case("lists too deep", partial(_bytes, _deep_archive()), EVALUATE, False))
    fixed.append(_case("2^31 values claimed", partial(_zip, _more_values, zipfile.ZIP_STORED), EVALUATE, False))
    fixed.append(_case("compressed", partial(_zip, lambda name, content: content, zipfile.ZIP_DEFLATED), EVALUATE))
    fixed.append(_case("a zip bomb", partial(_zip, _bomb, zipfile.ZIP_DEFLATED), EVALUATE, False))
    return fill(fixed, _drawn, count, seed)


def _case(name: str, prepare: Callable[[Path], None], argv: Sequence[str], may_succeed: bool = True) -> Case:
    return Case(name, argv, ("run",), prepare, DIGITS, may_succeed=may_succeed)


def _drawn(k: int, chance: random.Random) -> Case:
    if k % 2:
        return _case(f"{k}: damaged bytes", partial(_damaged, chance), SHOWN[k // 2 % 3])
    return _case(f"{k}: a senseless value", partial(_senseless, chance), SHOWN[k // 2 % 3])


def _damaged(chance: random.Random, folder: Path) -> None:
    content = (folder / FILE).read_bytes()
    _bytes(damaged(content, chance), folder)


def _senseless(chance: random.Random, folder: Path) -> None:
    content = torch.load(folder / FILE, weights_only=True)
    part = chance.choice(["config", "state", "rows", "hashes", "state", "rows"])
    odd = tuple(value for value in ODD if value != 10**400)
    content[part], _ = changed(content[part], chance, (*odd, torch.zeros(3), torch.zeros(0)))
    _saved(content, folder / FILE)
