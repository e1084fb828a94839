"""Bad parquet files in the hub's layout."""

import io
import json
import os
import random
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from faults.case import Case, fill
from faults.kinds.mutations import damaged
from faults.kinds.pictures import BAD as PICTURES
from faults.world import TINY, picture

TEST = 6  # images of the test split
COMMAND = ["train", "--dataset-train", "set", *TINY[2:], "--train-size", "6", "--batch-size", "3", "--out", "new"]
Columns = dict[str, Any]


def png(value: int, size: int = 8) -> bytes:
    """A small picture, encoded."""
    file = io.BytesIO()
    picture(value, size).save(file, "PNG")
    return file.getvalue()


def columns(count: int) -> Columns:
    """The two columns of a good split."""
    images = [{"bytes": png(17 * k), "path": f"{k}.png"} for k in range(count)]
    return {"img": images, "label": [k % 2 for k in range(count)]}


def table(of: Columns, names: Sequence[str] | None = ("cat", "dog")) -> Any:
    """An arrow table with the class names where `datasets` keeps them."""
    made = pa.table(of)
    if names is None:
        return made
    features = {"label": {"names": list(names), "_type": "ClassLabel"}}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write(folder: Path, train: Any = None, test: Any = None, **settings: Any) -> None:
    """Write both splits; what is not given is good."""
    (folder / "set").mkdir(exist_ok=True)
    for split, made, count in (("train", train, 8), ("test", test, TEST)):
        made = table(columns(count)) if made is None else made
        pyarrow.parquet.write_table(made, folder / f"set/{split}-00000-of-00001.parquet", **settings)


def _column(split: str, name: str, values: Any, folder: Path) -> None:
    """One column is something else; None leaves it out."""
    of = columns(8 if split == "train" else TEST)
    of[name] = values(of[name]) if callable(values) else values
    of = {key: value for key, value in of.items() if value is not None}
    write(folder, **{split: table(of)})


def _picture(content: bytes | None, folder: Path) -> None:
    of = columns(8)
    of["img"][3] = {"bytes": content, "path": "3.png"}
    write(folder, table(of))


def _names(names: Any, folder: Path) -> None:
    write(folder, table(columns(8), names), table(columns(TEST), names))


def _metadata(text: bytes, folder: Path) -> None:
    write(folder, table(columns(8), None).replace_schema_metadata({"huggingface": text}))


def _other_name(old: str, new: str, folder: Path) -> None:
    of = {new if key == old else key: value for key, value in columns(8).items()}
    write(folder, table(of))


def _many_rows(rows: int, folder: Path) -> None:
    """A few kilobytes that claim as many rows as one likes: one picture, named again and again."""
    image = pa.StructArray.from_arrays([pa.array([png(3)]), pa.array(["a"])], ["bytes", "path"])
    of = {
        "img": pa.chunked_array([image.take(pa.array([0] * 1000))] * (rows // 1000)),
        "label": pa.array([0, 1] * (rows // 2)),
    }
    write(folder, table(of))


def _zeros(size: int, folder: Path) -> None:
    """Pictures of nothing but zeros, which compress to almost nothing."""
    write(folder, table({"img": [{"bytes": bytes(size), "path": "a"}] * 8, "label": [0, 1] * 4}), compression="zstd")


def _large(side: int, folder: Path) -> None:
    write(folder, table({"img": [{"bytes": png(1, side), "path": "a"}] * 8, "label": [0, 1] * 4}))


def _bytes(content: bytes, folder: Path) -> None:
    write(folder)
    (folder / "set/train-00000-of-00001.parquet").write_bytes(content)


def _footer(length: int, folder: Path) -> None:
    """The length of the footer, which stands before the last four bytes, is another."""
    write(folder)
    path = folder / "set/train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-8] + struct.pack("<I", length) + b"PAR1")


def _odd_file(make: Callable[[Path], Any], folder: Path) -> None:
    write(folder)
    path = folder / "set/train-00000-of-00001.parquet"
    path.unlink()
    make(path)


def _only(split: str, folder: Path) -> None:
    write(folder)
    (folder / f"set/{split}-00000-of-00001.parquet").unlink()


def _shards(folder: Path) -> None:
    """A second shard with other columns."""
    write(folder)
    pyarrow.parquet.write_table(pa.table({"x": [1]}), folder / "set/train-00001-of-00002.parquet")


LABELS: dict[str, Any] = {
    "labels left out": None,
    "labels of decimals": [0.0, 1.0] * 4,
    "labels of nothing": [None] * 8,
    "a label of nothing": [0, 1, None, 1, 0, 1, 0, 1],
    "labels below 0": [-1, 0] * 4,
    "labels of 10^9": [0, 10**9] * 4,
    "labels of 2^63 - 1": [0, 2**63 - 1] * 4,
    "labels beyond the names": [0, 1, 2, 0, 1, 2, 0, 1],
    "one label": [0] * 8,
    "labels of text": ["cat", "dog"] * 4,
    "labels of control characters": ["\x1b[31mred", "b\na"] * 4,
    "labels of lists": [[0], [1]] * 4,
    "labels of dates": pa.array([0, 1] * 4, pa.timestamp("s")),
    "labels of yes and no": [True, False] * 4,
    "labels of bytes": [b"cat", b"dog"] * 4,
    "labels of unsigned bytes": pa.array([0, 1] * 4, pa.uint8()),
    "labels of 2^64 - 1": pa.array([0, 2**64 - 1] * 4, pa.uint64()),
    "labels of half precision": pa.array([0.0, 1.0] * 4, pa.float64()),
    "labels in a dictionary": pa.array(["cat", "dog"] * 4).dictionary_encode(),
    "labels of small decimals": pa.array([0, 1] * 4, pa.int64()).cast(pa.decimal128(25)),
}
IMAGES: dict[str, Any] = {
    "pictures left out": None,
    "pictures of numbers": [1] * 8,
    "pictures of text": ["x"] * 8,
    "pictures of bytes alone": [png(1)] * 8,
    "pictures of nothing": [None] * 8,
    "pictures without bytes": [{"path": "a"}] * 8,
    "pictures of texts in bytes": [{"bytes": "x", "path": "a"}] * 8,
    "pictures of numbers in bytes": [{"bytes": 3, "path": "a"}] * 8,
    "pictures of lists": [[1, 2]] * 8,
    "pictures elsewhere": [{"bytes": None, "path": "/etc/passwd"}] * 8,
    "pictures with more beside": [{"bytes": png(1), "path": "a", "more": 1}] * 8,
    "pictures empty": [{"bytes": b"", "path": "a"}] * 8,
}
NAMES: dict[str, Any] = {
    "no names": None,
    "names empty": [],
    "one name": ["cat"],
    "names twice": ["cat", "cat"],
    "names of control characters": ["\x1b[31mred", "a\nb\u202e"],
    "names of nothing": ["", " "],
    "names of Markdown": ["| x |", "<script>"],
    "names of paths": ["/root/.ssh", "../../x"],
    "names of a million letters": ["x" * 10**6, "y"],
    "names of half letters": ["\ud800", "b"],
    "names more than labels": [str(k) for k in range(5000)],
    "names of TeX": ["$\\frac{", "$_$"],
}
METADATA: dict[str, bytes] = {
    "metadata of no JSON": b"{",
    "metadata of a list": b"[]",
    "metadata of numbers": b'{"info": 3}',
    "metadata of lists": b'{"info": {"features": []}}',
    "metadata of a text": b'{"info": {"features": {"label": {"names": "cat"}}}}',
    "metadata of nested names": b'{"info": {"features": {"label": {"names": [["a"], {"b": 1}]}}}}',
    "metadata too deep": b"[" * 50_000,
    "metadata of bytes": bytes(range(256)),
}


def cases(count: int, seed: int) -> list[Case]:
    """Bad parquet files for ``train``."""
    fixed = []
    for name, values in (LABELS | IMAGES).items():
        column = "label" if name in LABELS else "img"
        fixed.append(_case(name, partial(_column, "train", column, values)))
        if values is None or isinstance(values, list):
            fixed.append(_case(f"{name}, in test", partial(_column, "test", column, values and values[:TEST])))
    fixed += [_case(name, partial(_names, names)) for name, names in NAMES.items()]
    fixed += [_case(name, partial(_metadata, text)) for name, text in METADATA.items()]
    fixed += [_case(f"a picture: {name}", partial(_picture, content)) for name, content in PICTURES.items()]
    fixed.append(_case("a picture of nothing", partial(_picture, None), False))
    for old, new in (("img", "image"), ("img", "picture"), ("label", "fine_label"), ("label", "y")):
        fixed.append(_case(f"{old} is called {new}", partial(_other_name, old, new)))
    fixed.append(_case("no rows", lambda folder: write(folder, table(columns(8)).slice(0, 0)), False))
    fixed.append(_case("no columns", lambda folder: write(folder, pa.table({})), False))
    fixed.append(_case("300,000 rows in a few kilobytes", partial(_many_rows, 300_000), False))
    fixed.append(_case("4,000 rows in a few kilobytes", partial(_many_rows, 4_000)))
    fixed.append(_case("a gigabyte of zeros", partial(_zeros, 1 << 27), False))
    fixed.append(_case("pictures of a megapixel", partial(_large, 1000)))
    for name, content in {"empty": b"", "a text": b"text", "PAR1": b"PAR1", "PAR1 twice": b"PAR1PAR1"}.items():
        fixed.append(_case(name, partial(_bytes, content), False))
    fixed += [_case(f"a footer of {n} bytes", partial(_footer, n), False) for n in (0, 1, 2**31, 2**32 - 1)]
    odd: dict[str, Callable[[Path], Any]] = {
        "a folder": lambda path: path.mkdir(),
        "a pipe": os.mkfifo,
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a link to nothing": lambda path: path.symlink_to("nothing"),
        "a device": lambda path: path.symlink_to("/dev/zero"),
    }
    fixed += [_case(name, partial(_odd_file, make), False) for name, make in odd.items()]
    fixed += [_case(f"only {split} is missing", partial(_only, split), False) for split in ("train", "test")]
    fixed.append(_case("a shard of other columns", _shards, False))
    return fill(fixed, _drawn, count, seed)


def _case(name: str, prepare: Callable[[Path], None], may_succeed: bool = True) -> Case:
    return Case(name, COMMAND, prepare=prepare, total=TEST, may_succeed=may_succeed)


def _drawn(k: int, chance: random.Random) -> Case:
    return _case(
        f"{k}: {('damaged bytes', 'a damaged footer', 'a damaged picture')[k % 3]}", partial(_damaged, k % 3, chance)
    )


def _damaged(what: int, chance: random.Random, folder: Path) -> None:
    if what == 2:
        _picture(damaged(png(5), chance), folder)
        return
    write(folder, compression=chance.choice(["none", "snappy", "zstd", "gzip"]))
    path = folder / f"set/{chance.choice(['train', 'test'])}-00000-of-00001.parquet"
    content = path.read_bytes()
    split = len(content) // 2 if what else 0
    path.write_bytes(content[:split] + damaged(content[split:], chance))
