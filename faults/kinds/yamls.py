"""Bad YAML files of flags."""

import random
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from faults.case import Case, fill
from faults.kinds.mutations import damaged
from faults.world import DIGITS

GOOD = b"""\
# a good file
net_type: lenet
dataset-train: digits
nfilters: 2
nepochs: 1
train_size: 20
batch-size: 10
lr: 1e-3
optim-method: "Adam"
compile: off
audit: yes
seed: null
quiet: true
nthreads: 1
"""
LAUGHS = b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (k, k, b", ".join([b"*a%d" % (k - 1)] * 9)) for k in range(1, 40)
)
TEXTS = {
    "nothing": b"",
    "a comment": b"# nothing here\n",
    "a number": b"3\n",
    "a text": b"hello\n",
    "a list": b"- nepochs\n- 3\n",
    "null": b"null\n",
    "an unknown flag": GOOD + b"colour: red\n",
    "a flag nearly right": GOOD + b"nepoch: 3\n",
    "a flag twice": GOOD + b"nepochs: 2\n",
    "a flag twice in two spellings": GOOD + b"batch_size: 4\n",
    "an alias and its flag": GOOD + b"learning_rate: 0.1\n",
    "with dashes": b"--nepochs: 3\n",
    "a mapping inside": GOOD + b"level: {a: 1}\n",
    "a list inside a list": GOOD + b"classes: [[0, 1]]\n",
    "an empty list": GOOD + b"classes: []\n",
    "an empty text": GOOD + b'out: ""\n',
    "a list for a number": GOOD.replace(b"nfilters: 2", b"nfilters: [2, 3]"),
    "a text for a number": GOOD.replace(b"nfilters: 2", b"nfilters: two"),
    "a hexadecimal number": GOOD.replace(b"nfilters: 2", b"nfilters: 0x2"),
    "a number in base 60": GOOD.replace(b"nfilters: 2", b"nfilters: 1:30"),
    "a date for a number": GOOD.replace(b"nfilters: 2", b"nfilters: 2001-01-01"),
    "not a number": GOOD.replace(b"1e-3", b".nan"),
    "infinity": GOOD.replace(b"1e-3", b".inf"),
    "a huge number": GOOD.replace(b"nfilters: 2", b"nfilters: " + b"9" * 5000),
    "a complex key": b"? [a, b]\n: 3\n",
    "a mapping as a key": b"? {a: b}\n: 3\n",
    "a number as a key": b"3: 3\n",
    "null as a key": b"null: 3\n",
    "a merge": b"base: &b {nepochs: 3}\n<<: *b\n",
    "an alias": GOOD + b"momentum: &m 0.5\nadam_beta1: *m\n",
    "an alias of nothing": GOOD + b"momentum: *m\n",
    "itself": b"&a nepochs: *a\n",
    "a list that holds itself": b"classes: &a [*a]\n",
    "a billion laughs": LAUGHS,
    "a billion laughs in a flag": b"classes: &a0 [x, x]\n" + LAUGHS.replace(b"&a0", b"&b0"),
    "two documents": GOOD + b"---\n" + GOOD,
    "a tab": b"nepochs:\t3\n\tnfilters: 2\n",
    "a bad indent": b"nepochs: 3\n  nfilters: 2\n",
    "an open quote": b'net_type: "lenet\n',
    "an open bracket": b"classes: [0, 1\n",
    "deep brackets": b"classes: " + b"[" * 30000,
    "deep mappings": b"{a: " * 15000,
    "bytes": bytes(range(256)),
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "UTF-32": GOOD.decode().encode("utf-32"),
    "Latin-1": GOOD + "net_type: Zürich\n".encode("latin-1"),
    "NUL": b"nepochs: 3\0\n",
    "control characters": GOOD.replace(b"lenet", b'"\\x1b[31mred\\a"'),
    "a control character as a key": b'"\\x1b[31mred": 1\n',
    "emoji": "\U0001f600: 1\n".encode(),
    "a JSON file": b'{"net_type": "lenet", "nepochs": "x"}',
    "too much": b"# comment\n" * 10000,
    "Windows lines": GOOD.replace(b"\n", b"\r\n") + b"nepoch: 2\r\n",
    "python tag": GOOD + b'save: !!python/object/apply:os.mkdir ["pwned"]\n',
    "python name": GOOD + b"save: !!python/name:os.mkdir\n",
    "python new": b'!!python/object/new:os.mkdir ["pwned"]\n',
    "python key": b'? !!python/object/apply:os.mkdir ["pwned"]\n: 3\n',
    "python module": GOOD + b"save: !!python/module:this\n",
    "a tag of its own": GOOD + b"save: !mine 3\n",
    "a binary tag": GOOD + b"save: !!binary aGVsbG8=\n",
    "a set": GOOD + b"classes: !!set {0, 1}\n",
    "a directive": b"%YAML 3.0\n---\n" + GOOD,
    "a tag directive": b"%TAG ! tag:yaml.org,2002:python/\n---\nsave: !object/apply:os.mkdir [pwned]\n",
    "resume of nothing": b"resume: nowhere\n",
    "out that is there": GOOD + b"out: bad.yaml\n",
}
COMMAND = shlex.split("train --config bad.yaml --out new")


def _written(content: bytes, folder: Path) -> None:
    (folder / "bad.yaml").write_bytes(content)


def _folder(folder: Path) -> None:
    (folder / "bad.yaml").mkdir()


def _pipe(folder: Path) -> None:
    import os

    os.mkfifo(folder / "bad.yaml")


def _device(folder: Path) -> None:
    (folder / "bad.yaml").symlink_to("/dev/zero")


def _loop(folder: Path) -> None:
    (folder / "bad.yaml").symlink_to("bad.yaml")


FILES: dict[str, Callable[[Path], None]] = {
    "a folder": _folder,
    "a pipe": _pipe,
    "a device": _device,
    "a link to itself": _loop,
}


def cases(count: int, seed: int) -> list[Case]:
    """Bad files for ``--config``."""
    fixed = [Case(name, COMMAND, prepare=partial(_written, text), total=DIGITS) for name, text in TEXTS.items()]
    fixed += [Case(name, COMMAND, prepare=prepare, may_succeed=False) for name, prepare in FILES.items()]
    fixed.append(Case("no file", COMMAND, may_succeed=False))
    fixed.append(Case("an empty name", ["train", "--config", ""], may_succeed=False))
    fixed.append(Case("a name with NUL", ["train", "--config", "a\0b"], may_succeed=False))
    return fill(fixed, _drawn, count, seed)


VALUES = [*"-*&!%@`'#>~", '"', "|-", "''", "0", "-1", "1.5", "1e400", ".nan", ".inf", "yes", "off", "lenet", "é", "x"]
VALUES += ["digits", "[]", "[1]", "{}", "99999999999"]


def _drawn(k: int, chance: random.Random) -> Case:
    lines = GOOD.splitlines(keepends=True)
    if k % 3 == 0:
        content, name = damaged(GOOD, chance), "damaged bytes"
    elif k % 3 == 1:
        spot = chance.randrange(1, len(lines))
        value = " ".join(chance.choices(VALUES, k=chance.randrange(1, 3)))
        key = lines[spot].split(b":")[0]
        lines[spot] = key + b": " + value.encode() + b"\n"
        content, name = b"".join(lines), f"{key.decode()}: {value}"
    else:
        chance.shuffle(lines)
        spot = chance.randrange(len(lines))
        before = chance.choice([b"  ", b"\t", b"- ", b"? ", b": ", b"&a ", b"*a ", b"!x ", b"%"])
        lines.insert(spot, before + lines[spot])
        content, name = b"".join(lines), "a line again, with something before it"
    return Case(f"{k}: {name}", COMMAND, prepare=partial(_written, content), total=DIGITS)
