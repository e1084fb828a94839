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
NAMES = ["bad.yaml", "no net is called", "data set", "no folder", "class"]
COMMAND = ["train", "--config", "bad.yaml", "--out", "new"]


def with_filters(value: bytes) -> bytes:
    return GOOD.replace(b"nfilters: 2", b"nfilters: " + value)


# Name -> content, and a pattern for the error; "" where the file may be as good as any.
TEXTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is not a mapping"),
    "a comment": (b"# nothing here\n", "is not a mapping"),
    "a number": (b"3\n", "is not a mapping"),
    "a list": (b"- nepochs\n- 3\n", "is not a mapping"),
    "an unknown flag": (GOOD + b"colour: red\n", "line 15: no flag is called 'colour'"),
    "a flag nearly right": (GOOD + b"nepoch: 3\n", "line 15: .*'nepoch'; did you mean nepochs"),
    "a flag twice": (GOOD + b"nepochs: 2\n", "line 15: .*nepochs.* twice; drop one"),
    "a flag twice in two spellings": (GOOD + b"batch_size: 4\n", "line 15: .*twice; drop one"),
    "an alias and its flag": (GOOD + b"learning_rate: 0.1\n", "line 15: .*twice; drop one"),
    "with dashes": (b"--nepochs: 3\n", "line 1: .*'--nepochs'"),
    "a mapping inside": (GOOD + b"level: {a: 1}\n", "line 15: got a mapping inside"),
    "a list inside a list": (GOOD + b"classes: [[0, 1]]\n", "line 15: got a .*inside"),
    "an empty list": (GOOD + b"classes: []\n", "has no class ''"),
    "an empty text": (GOOD + b'out: ""\n', ""),
    "a list for a number": (with_filters(b"[2, 3]"), "nfilters"),
    "a text for a number": (with_filters(b"two"), "--nfilters got 'two'"),
    "a hexadecimal number": (with_filters(b"0x2"), "--nfilters got '0x2'"),
    "a number in base 60": (with_filters(b"1:30"), "--nfilters got '1:30'"),
    "a date for a number": (with_filters(b"2001-01-01"), "--nfilters got '2001-01-01'"),
    "a huge number": (with_filters(b"9" * 5000), "--nfilters got '9999"),
    "not a number": (GOOD.replace(b"1e-3", b".nan"), "--learning-rate got '.nan'"),
    "infinity": (GOOD.replace(b"1e-3", b".inf"), "--learning-rate got '.inf'"),
    "a complex key": (b"? [a, b]\n: 3\n", "line 1"),
    "a mapping as a key": (b"? {a: b}\n: 3\n", "line 1"),
    "a number as a key": (b"3: 3\n", "'3'"),
    "null as a key": (b"null: 3\n", "line 1"),
    "a merge": (b"base: &b {nepochs: 3}\n<<: *b\n", "line 1"),
    "an alias": (GOOD + b"momentum: &m 0.5\nadam_beta1: *m\n", ""),
    "an alias of nothing": (GOOD + b"momentum: *m\n", "line 15"),
    "itself": (b"&a nepochs: *a\n", "--nepochs got 'nepochs'"),
    "a list that holds itself": (b"classes: &a [*a]\n", "bad.yaml"),
    "a billion laughs": (LAUGHS, "line 1"),
    "a billion laughs in a flag": (b"classes: &a0 [x, x]\n" + LAUGHS.replace(b"&a0", b"&b0"), "bad.yaml"),
    "two documents": (GOOD + b"---\n" + GOOD, "is not YAML"),
    "a tab": (b"nepochs:\t3\n\tnfilters: 2\n", "is not YAML.*line 1"),
    "a bad indent": (b"nepochs: 3\n  nfilters: 2\n", "is not YAML.*line 2"),
    "an open quote": (b'net_type: "lenet\n', "is not YAML"),
    "an open bracket": (b"classes: [0, 1\n", "is not YAML"),
    "deep brackets": (b"classes: " + b"[" * 30000, "is not YAML"),
    "deep mappings": (b"{a: " * 15000, "is not YAML"),
    "bytes": (bytes(range(256)), "is not YAML"),
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD, ""),
    "UTF-16": (GOOD.decode().encode("utf-16"), ""),
    "UTF-32": (GOOD.decode().encode("utf-32"), "is not YAML"),
    "Latin-1": (GOOD + "net_type: Zürich\n".encode("latin-1"), "is not YAML"),
    "NUL": (b"nepochs: 3\0\n", "is not YAML"),
    "control characters": (GOOD.replace(b"lenet", b'"\\x1b[31mred\\a"'), "no net is called"),
    "a control character as a key": (b'"\\x1b[31mred": 1\n', "line 1: no flag is called"),
    "emoji": ("\U0001f600: 1\n".encode(), "line 1: no flag is called"),
    "a JSON file": (b'{"net_type": "lenet", "nepochs": "x"}', "--nepochs got 'x'"),
    "too much": (b"# comment\n" * 10000, "has more than 65536 bytes"),
    "Windows lines": (GOOD.replace(b"\n", b"\r\n") + b"nepoch: 2\r\n", "line 15: .*did you mean nepochs"),
    "python tag": (GOOD + b'save: !!python/object/apply:os.mkdir ["pwned"]\n', "line 15: got the tag"),
    "python name": (GOOD + b"save: !!python/name:os.mkdir\n", "line 15: got the tag"),
    "python new": (b'!!python/object/new:os.mkdir ["pwned"]\n', "got the tag|is not a mapping"),
    "python key": (b'? !!python/object/apply:os.mkdir ["pwned"]\n: 3\n', "line 1"),
    "python module": (GOOD + b"save: !!python/module:this\n", "line 15: got the tag"),
    "a tag of its own": (GOOD + b"save: !mine 3\n", "line 15: got the tag"),
    "a binary tag": (GOOD + b"save: !!binary aGVsbG8=\n", "line 15: got the tag"),
    "a set": (GOOD + b"classes: !!set {0, 1}\n", "line 15"),
    "a directive": (b"%YAML 3.0\n---\n" + GOOD, "is not YAML"),
    "a tag directive": (
        b"%TAG ! tag:yaml.org,2002:python/\n---\nsave: !object/apply:os.mkdir [pwned]\n",
        "line 3: got the tag",
    ),
    "resume of nothing": (b"resume: nowhere\n", "--resume|--out|nowhere"),
    "out that is there": (GOOD + b"out: bad.yaml\n", ""),
}


def write(content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / "bad.yaml").write_bytes(content)


@pytest.mark.parametrize("name", TEXTS)
def test_bad_yaml(name: str, good: Path) -> None:
    content, pattern = TEXTS[name]
    ended = judge(good, COMMAND, write(content), total=DIGITS, may_succeed=not pattern, names=NAMES)
    assert re.search(pattern, ended.err), ended.err


@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_file_in_place_of_yaml(name: str, good: Path) -> None:
    judge(good, COMMAND, lambda folder: replace(folder / "bad.yaml", name), names=["bad.yaml"])


VALUES = [*"-*&!%@`'#>~", '"', "|-", "''", "0", "-1", "1.5", "1e400", ".nan", ".inf", "yes", "off", "lenet", "é", "x"]
VALUES += ["digits", "[]", "[1]", "{}", "99999999999"]


@search(40)
@given(mistaken_yaml(GOOD, VALUES))
def test_mistaken_yaml(good: Path, content: bytes) -> None:
    judge(good, COMMAND, write(content), total=DIGITS, may_succeed=True, names=NAMES)
