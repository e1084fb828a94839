"""Bad YAML files of flags: nothing in them is constructed, and the line of the mistake is named."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from good_files import DIGITS
from oracle import judge
from strategies import ODD_FILES, mistaken_yaml, replace, search
from told import in_order

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
MAPPING, NOT_YAML = "bad.yaml mapping expected nepochs", "bad.yaml not YAML"
NAMES = ["bad.yaml", "no net is called", "data set", "no folder", "class"]
COMMAND = ["train", "--config", "bad.yaml", "--out", "new"]


def with_filters(value: bytes) -> bytes:
    return GOOD.replace(b"nfilters: 2", b"nfilters: " + value)


# Name -> content, and tokens of the error; "" where the file may be as good as any.
TEXTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", MAPPING),
    "a comment": (b"# nothing here\n", MAPPING),
    "a number": (b"3\n", MAPPING),
    "a list": (b"- nepochs\n- 3\n", MAPPING),
    "an unknown flag": (GOOD + b"colour: red\n", "line 15 'colour' train --help"),
    "a flag nearly right": (GOOD + b"nepoch: 3\n", "line 15 'nepoch' mean nepochs"),
    "a flag twice": (GOOD + b"nepochs: 2\n", "line 15 nepochs twice drop"),
    "a flag twice in two spellings": (GOOD + b"batch_size: 4\n", "line 15 batch_size twice drop"),
    "an alias and its flag": (GOOD + b"learning_rate: 0.1\n", "line 15 learning_rate twice drop"),
    "with dashes": (b"--nepochs: 3\n", "line 1 '--nepochs'"),
    "a mapping inside": (GOOD + b"level: {a: 1}\n", "line 15 mapping expected plain flat lists"),
    "a list inside a list": (GOOD + b"classes: [[0, 1]]\n", "line 15 sequence expected plain flat lists"),
    "an empty list": (GOOD + b"classes: []\n", "class '' classes"),
    "an empty text": (GOOD + b'out: ""\n', ""),
    "a list for a number": (with_filters(b"[2, 3]"), "nfilters"),
    "a text for a number": (with_filters(b"two"), "--nfilters 'two'"),
    "a hexadecimal number": (with_filters(b"0x2"), "--nfilters '0x2'"),
    "a number in base 60": (with_filters(b"1:30"), "--nfilters '1:30'"),
    "a date for a number": (with_filters(b"2001-01-01"), "--nfilters '2001-01-01'"),
    "a huge number": (with_filters(b"9" * 5000), f"--nfilters '{'9' * 5000}'"),
    "not a number": (GOOD.replace(b"1e-3", b".nan"), "--learning-rate '.nan'"),
    "infinity": (GOOD.replace(b"1e-3", b".inf"), "--learning-rate '.inf'"),
    "a complex key": (b"? [a, b]\n: 3\n", "line 1"),
    "a mapping as a key": (b"? {a: b}\n: 3\n", "line 1"),
    "a number as a key": (b"3: 3\n", "'3'"),
    "null as a key": (b"null: 3\n", "line 1"),
    "a merge": (b"base: &b {nepochs: 3}\n<<: *b\n", "line 1"),
    "an alias": (GOOD + b"momentum: &m 0.5\nadam_beta1: *m\n", ""),
    "an alias of nothing": (GOOD + b"momentum: *m\n", "line 15"),
    "itself": (b"&a nepochs: *a\n", "--nepochs 'nepochs'"),
    "a list that holds itself": (b"classes: &a [*a]\n", "bad.yaml"),
    "a billion laughs": (LAUGHS, "line 1"),
    "a billion laughs in a flag": (b"classes: &a0 [x, x]\n" + LAUGHS.replace(b"&a0", b"&b0"), "bad.yaml"),
    "two documents": (GOOD + b"---\n" + GOOD, f"{NOT_YAML} correct"),
    "a tab": (b"nepochs:\t3\n\tnfilters: 2\n", f"{NOT_YAML} line 1"),
    "a bad indent": (b"nepochs: 3\n  nfilters: 2\n", f"{NOT_YAML} line 2"),
    "an open quote": (b'net_type: "lenet\n', f"{NOT_YAML} correct"),
    "an open bracket": (b"classes: [0, 1\n", f"{NOT_YAML} correct"),
    "deep brackets": (b"classes: " + b"[" * 30000, f"{NOT_YAML} correct"),
    "deep mappings": (b"{a: " * 15000, f"{NOT_YAML} correct"),
    "bytes": (bytes(range(256)), f"{NOT_YAML} correct"),
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD, ""),
    "UTF-16": (GOOD.decode().encode("utf-16"), ""),
    "UTF-32": (GOOD.decode().encode("utf-32"), f"{NOT_YAML} correct"),
    "Latin-1": (GOOD + "net_type: Zürich\n".encode("latin-1"), f"{NOT_YAML} correct"),
    "NUL": (b"nepochs: 3\0\n", f"{NOT_YAML} correct"),
    "control characters": (GOOD.replace(b"lenet", b'"\\x1b[31mred\\a"'), r"net '\x1b[31mred\x07' choose"),
    "a control character as a key": (b'"\\x1b[31mred": 1\n', r"line 1 '\x1b[31mred'"),
    "emoji": ("\U0001f600: 1\n".encode(), "line 1 flag"),
    "a JSON file": (b'{"net_type": "lenet", "nepochs": "x"}', "--nepochs 'x'"),
    "too much": (b"# comment\n" * 10000, "65536 bytes give YAML"),
    "Windows lines": (GOOD.replace(b"\n", b"\r\n") + b"nepoch: 2\r\n", "line 15 'nepoch' mean nepochs"),
    "python tag": (
        GOOD + b'save: !!python/object/apply:os.mkdir ["pwned"]\n',
        "line 15 python/object/apply:os.mkdir expected",
    ),
    "python name": (GOOD + b"save: !!python/name:os.mkdir\n", "line 15 python/name:os.mkdir expected"),
    "python new": (b'!!python/object/new:os.mkdir ["pwned"]\n', MAPPING),
    "python key": (b'? !!python/object/apply:os.mkdir ["pwned"]\n: 3\n', "line 1"),
    "python module": (GOOD + b"save: !!python/module:this\n", "line 15 python/module:this expected"),
    "a tag of its own": (GOOD + b"save: !mine 3\n", "line 15 '!mine' expected"),
    "a binary tag": (GOOD + b"save: !!binary aGVsbG8=\n", "line 15 binary expected"),
    "a set": (GOOD + b"classes: !!set {0, 1}\n", "line 15"),
    "a directive": (b"%YAML 3.0\n---\n" + GOOD, f"{NOT_YAML} correct"),
    "a tag directive": (
        b"%TAG ! tag:yaml.org,2002:python/\n---\nsave: !object/apply:os.mkdir [pwned]\n",
        "line 3 python/object/apply:os.mkdir expected",
    ),
    "resume of nothing": (b"resume: nowhere\n", "--resume drop --out"),
    "out that is there": (GOOD + b"out: bad.yaml\n", ""),
}


def write(content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / "bad.yaml").write_bytes(content)


@pytest.mark.parametrize("name", TEXTS)
def test_bad_yaml(name: str, good: Path) -> None:
    content, tokens = TEXTS[name]
    ended = judge(good, COMMAND, write(content), total=DIGITS, may_succeed=not tokens, names=NAMES)
    assert re.search(in_order(tokens), ended.err), ended.err


@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_file_in_place_of_yaml(name: str, good: Path) -> None:
    judge(good, COMMAND, lambda folder: replace(folder / "bad.yaml", name), names=["bad.yaml"])


VALUES = [*"-*&!%@`'#>~", '"', "|-", "''", "0", "-1", "1.5", "1e400", ".nan", ".inf", "yes", "off", "lenet", "é", "x"]
VALUES += ["digits", "[]", "[1]", "{}", "99999999999"]


@search(40)
@given(mistaken_yaml(GOOD, VALUES))
def test_mistaken_yaml(good: Path, content: bytes) -> None:
    judge(good, COMMAND, write(content), total=DIGITS, may_succeed=True, names=NAMES)
