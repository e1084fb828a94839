"""Bad data sets: pictures in class folders, parquet files, and the files of CIFAR and MNIST that other tools leave."""

import gzip
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from good_files import SMALL, batch, columns, encoded, parquet, picture, table
from oracle import judge
from strategies import damaged, search

TEST = {"pictures": 4, "parquet": 6, "cifar": 4, "idx": 4, "packed": 4}  # test images of each set
Prepare = Callable[[Path], Any]


def judged(good: Path, of: str, prepare: Prepare, *, total: int | None = None, refused: bool = False) -> None:
    """Train on a copy of a set after something was done to it."""
    argv = f"train --dataset-train {of} {SMALL} --train-size 4 --out new".split()
    expected = {"total": total or TEST[of], "may_succeed": not refused, "names": [of, "image", "class", "path"]}
    judge(good, argv, lambda folder: prepare(folder / of), **expected)


ODD_FILES: dict[str, Callable[[Path], Any]] = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to a system file": lambda path: path.symlink_to("/etc/passwd"),
}
FILES = {
    "pictures": "train/cat/1.png",
    "parquet": "train-00000-of-00001.parquet",
    "cifar": "test_batch",
    "idx": "t10k-images-idx3-ubyte",
    "packed": "t10k-images-idx3-ubyte.gz",
}


@pytest.mark.parametrize("of", FILES)
@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_file_in_a_data_set(name: str, of: str, good: Path) -> None:
    def prepare(folder: Path) -> None:
        (folder / FILES[of]).unlink()
        ODD_FILES[name](folder / FILES[of])

    # A folder or a dead link of a picture's name is passed over; the other pictures make a set.
    judged(good, of, prepare, refused=of != "pictures" or name in ("a pipe", "a device"))


@search(30)
@given(st.data(), st.sampled_from(sorted(FILES)), st.booleans())
def test_damaged_file_in_a_data_set(good: Path, data: st.DataObject, of: str, whole: bool) -> None:
    def prepare(folder: Path) -> None:
        path = folder / FILES[of]
        content = path.read_bytes()
        path.write_bytes(data.draw(damaged(content, 0 if whole else len(content) // 2)))

    judged(good, of, prepare)


# --- pictures


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, rows: int = 0) -> bytes:
    """Make a PNG whose header claims a size, with the data of some of its rows."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + 3 * width) * rows), 1) if rows else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@cache
def text_bomb() -> bytes:
    """Put a compressed text of 100 MB into a good PNG."""
    made = encoded(picture(1))
    return made[:33] + chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(100 << 20), 1)) + made[33:]


def animated() -> bytes:
    frames = [picture(k) for k in range(3)]
    return encoded(frames[0], save_all=True, append_images=frames[1:])


BMP = encoded(picture(1), "BMP")
PICTURES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "a text": lambda: b"no picture at all",
    "only a signature": lambda: b"\x89PNG\r\n\x1a\n",
    "a header of 100,000 by 100,000": lambda: png(100_000, 100_000),
    "a header of 2^31 by 2^31": lambda: png(2**31 - 1, 2**31 - 1),
    "a bomb of 9,000 by 9,000": lambda: png(9_000, 9_000, 1),
    "a header of nothing": lambda: png(0, 0),
    "a bomb in a text": text_bomb,
    "of 9 by 9": lambda: encoded(picture(1, 9)),
    **{f"of mode {m}": lambda m=m: encoded(picture(1).convert(m)) for m in ("L", "P", "RGBA", "1", "LA")},
    "of 16 bits": lambda: encoded(Image.fromarray(np.zeros((8, 8), np.uint16))),
    "of four inks": lambda: encoded(picture(1).convert("CMYK"), "JPEG"),
    "animated": animated,
    **{f"a {k}": lambda k=k: encoded(picture(1), k) for k in ("GIF", "ICO", "PDF", "EPS", "JPEG", "TIFF", "WEBP")},
    "a TIFF of decimals": lambda: encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"),
    "half a PNG": lambda: encoded(picture(1))[:60],
    "half a JPEG": lambda: encoded(picture(1, 64), "JPEG")[:700],
    "a BMP": lambda: BMP,
    "a BMP of 10^9 rows": lambda: BMP[:22] + struct.pack("<i", 10**9) + BMP[26:],
    "a PPM of 10^12 pixels": lambda: b"P6 1000000 1000000 255\n" + bytes(99),
    "a PPM of a negative size": lambda: b"P6 -8 -8 255\n" + bytes(192),
    "an SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>',
    "a pickle": lambda: b"\x80\x02cos\nmkdir\nq\x00X\x05\x00\x00\x00pwnedq\x01\x85q\x02Rq\x03.",
}


@pytest.mark.parametrize("name", PICTURES)
def test_bad_picture(name: str, good: Path) -> None:
    """In a class folder and in a parquet file."""
    content = PICTURES[name]()
    judged(good, "pictures", lambda folder: (folder / FILES["pictures"]).write_bytes(content))

    def prepare(folder: Path) -> None:
        of = columns(8)
        of["img"][3] = {"bytes": content, "path": "3.png"}
        parquet(folder, table(of))

    judged(good, "parquet", prepare)


@search(12)
@given(st.data(), st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"]), st.sampled_from(["train", "test"]))
def test_damaged_picture(good: Path, data: st.DataObject, kind: str, split: str) -> None:
    content = data.draw(damaged(encoded(picture(1), kind)))
    judged(good, "pictures", lambda folder: (folder / split / "cat/1.png").write_bytes(content))


NAMES: list[str | bytes] = [
    "a\nb",
    "\x1b[31mred\x07",
    "x..",
    " ",
    "$\\frac{",
    "<b>|x|",
    "x" * 200,
    "\u202egnp",
    b"\xff\xfe",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_odd_names_of_classes_and_pictures(name: str | bytes, good: Path) -> None:
    """A class whose name is not text is refused: no record could hold it."""

    def more(folder: Path) -> None:
        for split in (b"train", b"test"):
            target = os.path.join(os.fsencode(folder), split, os.fsencode(name))
            shutil.copytree(os.path.join(os.fsencode(folder), split, b"cat"), target)

    def damaged(folder: Path) -> None:
        with open(os.path.join(os.fsencode(folder), b"train/cat", os.fsencode(name) + b".png"), "wb") as file:
            file.write(b"no picture")

    judged(good, "pictures", more, total=6, refused=isinstance(name, bytes))
    judged(good, "pictures", damaged, refused=True)


@pytest.mark.parametrize("path", ["train", "test", "test/dog", "train/cat"])
def test_folder_that_is_missing(path: str, good: Path) -> None:
    judged(good, "pictures", lambda folder: shutil.rmtree(folder / path), refused=True)


def test_class_without_pictures_or_in_one_split(good: Path) -> None:
    judged(good, "pictures", lambda folder: (folder / "train/cow").mkdir(), refused=True)
    judged(good, "pictures", lambda folder: shutil.copytree(folder / "train/cat", folder / "train/cow"), refused=True)


def test_a_thousand_times_the_memory(good: Path) -> None:
    """Four thousand names of one picture of 64 megapixels: 768 GB, once decoded."""

    def prepare(folder: Path) -> None:
        first = folder / "train/cat/0.png"
        first.write_bytes(png(8000, 8000, 8000))
        for k in range(4000):
            os.link(first, first.with_name(f"more-{k}.png"))

    judged(good, "pictures", prepare, refused=True)


# --- parquet


def png_row(**changes: Any) -> dict[str, Any]:
    return {"bytes": encoded(picture(1)), "path": "a", **changes}


LABELS: dict[str, Any] = {
    "left out": None,
    "decimals": [0.0, 1.0] * 4,
    "of nothing": [None] * 8,
    "with one of nothing": [0, 1, None, 1, 0, 1, 0, 1],
    "below 0": [-1, 0] * 4,
    "10^9": [0, 10**9] * 4,
    "2^63 - 1": [0, 2**63 - 1] * 4,
    "beyond the names": [0, 1, 2, 0, 1, 2, 0, 1],
    "one": [0] * 8,
    "text": ["cat", "dog"] * 4,
    "control characters": ["\x1b[31mred", "b\na"] * 4,
    "lists": [[0], [1]] * 4,
    "dates": pa.array([0, 1] * 4, pa.timestamp("s")),
    "yes and no": [True, False] * 4,
    "bytes": [b"cat", b"dog"] * 4,
    "unsigned bytes": pa.array([0, 1] * 4, pa.uint8()),
    "2^64 - 1": pa.array([0, 2**64 - 1] * 4, pa.uint64()),
    "in a dictionary": pa.array(["cat", "dog"] * 4).dictionary_encode(),
    "small decimals": pa.array([0, 1] * 4, pa.int64()).cast(pa.decimal128(25)),
}
IMAGES: dict[str, Any] = {
    "left out": None,
    "numbers": [1] * 8,
    "text": ["x"] * 8,
    "bytes alone": [encoded(picture(1))] * 8,
    "of nothing": [None] * 8,
    "without bytes": [{"path": "a"}] * 8,
    "texts in bytes": [png_row(bytes="x")] * 8,
    "numbers in bytes": [png_row(bytes=3)] * 8,
    "lists": [[1, 2]] * 8,
    "elsewhere": [png_row(bytes=None, path="/etc/passwd")] * 8,
    "with more beside": [png_row(more=1)] * 8,
    "empty": [png_row(bytes=b"")] * 8,
    "of a megapixel": [png_row(bytes=png(1000, 1000, 1000))] * 8,
}
COLUMNS = [("label", name) for name in LABELS] + [("img", name) for name in IMAGES]


@pytest.mark.parametrize(("column", "name"), COLUMNS)
def test_bad_column_in_parquet(column: str, name: str, good: Path) -> None:
    """In both splits where it can be cut to the length of the other one."""
    values = (LABELS if column == "label" else IMAGES)[name]
    for split in ("train", "test") if values is None or isinstance(values, list) else ("train",):
        of = columns(8 if split == "train" else 6)
        of[column] = values[: len(of["label"])] if isinstance(values, list) else values
        made = pa.table({key: value for key, value in of.items() if value is not None})
        made = made.replace_schema_metadata(table(columns(1)).schema.metadata)
        judged(good, "parquet", lambda folder, split=split, made=made: parquet(folder, **{split: made}))


CLASSES: dict[str, Any] = {
    "none": None,
    "empty": [],
    "one": ["cat"],
    "twice": ["cat", "cat"],
    "control characters": ["\x1b[31mred", "a\nb\u202e"],
    "nothing": ["", " "],
    "Markdown": ["| x |", "<script>"],
    "paths": ["/root/.ssh", "../../x"],
    "a million letters": ["x" * 10**6, "y"],
    "half letters": ["\ud800", "b"],
    "more than labels": [str(k) for k in range(5000)],
    "TeX": ["$\\frac{", "$_$"],
}


@pytest.mark.parametrize("name", CLASSES)
def test_odd_class_names_in_parquet(name: str, good: Path) -> None:
    def prepare(folder: Path) -> None:
        parquet(folder, table(columns(8), CLASSES[name]), table(columns(6), CLASSES[name]))

    judged(good, "parquet", prepare, refused=name in ("one", "paths", "half letters"))


METADATA: list[bytes] = [
    b"{",
    b"[]",
    b'{"info": 3}',
    b'{"info": {"features": []}}',
    b'{"info": {"features": {"label": {"names": "cat"}}}}',
    b'{"info": {"features": {"label": {"names": [["a"], {"b": 1}]}}}}',
    b"[" * 50_000,
    bytes(range(256)),
]


@pytest.mark.parametrize("text", METADATA, ids=lambda text: ascii(text[:40]))
def test_bad_metadata_in_parquet(text: bytes, good: Path) -> None:
    made = table(columns(8), None).replace_schema_metadata({"huggingface": text})
    judged(good, "parquet", lambda folder: parquet(folder, made))


def many_rows(rows: int) -> Prepare:
    """Name one picture again and again: as many rows as one likes in a few kilobytes."""

    def prepare(folder: Path) -> None:
        image = pa.StructArray.from_arrays([pa.array([encoded(picture(3))]), pa.array(["a"])], ["bytes", "path"])
        images = pa.chunked_array([image.take(pa.array([0] * 1000))] * (rows // 1000))
        parquet(folder, table({"img": images, "label": pa.array([0, 1] * (rows // 2))}))

    return prepare


def zeros(folder: Path) -> None:
    """Write 128 MB of zeros, which compress to almost nothing."""
    parquet(folder, table({"img": [png_row(bytes=bytes(1 << 24))] * 8, "label": [0, 1] * 4}), compression="zstd")


def train_file(change: Callable[[bytes], bytes]) -> Prepare:
    return lambda folder: (folder / FILES["parquet"]).write_bytes(change((folder / FILES["parquet"]).read_bytes()))


def shard(folder: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), folder / "train-00001-of-00002.parquet")


BROKEN_PARQUET: dict[str, Prepare] = {
    "no rows": lambda folder: parquet(folder, table(columns(8)).slice(0, 0)),
    "no columns": lambda folder: parquet(folder, pa.table({})),
    "300,000 rows in a few kilobytes": many_rows(300_000),
    "zeros": zeros,
    **{f"a file of {text!r}": train_file(lambda _, text=text: text) for text in (b"", b"text", b"PAR1", b"PAR1PAR1")},
    **{
        f"a footer of {n} bytes": train_file(lambda old, n=n: old[:-8] + struct.pack("<I", n) + b"PAR1")
        for n in (0, 1, 2**31, 2**32 - 1)
    },
    "no training split": lambda folder: (folder / FILES["parquet"]).unlink(),
    "no test split": lambda folder: (folder / "test-00000-of-00001.parquet").unlink(),
    "a shard of other columns": shard,
    "a picture of nothing": lambda folder: parquet(
        folder, table({"img": [png_row(bytes=None)] * 8, "label": [0, 1] * 4})
    ),
}


@pytest.mark.parametrize("name", BROKEN_PARQUET)
def test_broken_parquet(name: str, good: Path) -> None:
    judged(good, "parquet", BROKEN_PARQUET[name], refused=True)


def test_many_rows_of_one_picture_are_read(good: Path) -> None:
    judged(good, "parquet", many_rows(4_000))


@pytest.mark.parametrize(
    ("old", "new"), [("img", "image"), ("img", "picture"), ("label", "fine_label"), ("label", "y")]
)
def test_column_of_another_name(old: str, new: str, good: Path) -> None:
    of = {new if key == old else key: value for key, value in columns(8).items()}
    judged(good, "parquet", lambda folder: parquet(folder, table(of)))


# --- CIFAR


class Calls:
    """A pickle that calls something."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


def laughs() -> Any:
    inner: Any = ["ha"]
    for _ in range(60):
        inner = [inner, inner]
    return inner


BATCHES: dict[str, Any] = {
    "hostile": Calls(os.mkdir, "pwned"),
    "hostile inside": batch(more=Calls(os.mkdir, "pwned")),
    "a list": [1, 2],
    "nothing": {},
    "no labels": {"data": batch()["data"]},
    "labels of text": batch(labels=["a", "b", "c", "d"]),
    "labels of decimals": batch(labels=[0.0, 1.0, 0.0, 1.0]),
    "labels beyond": batch(labels=[0, 1, 99, 0]),
    "labels below 0": batch(labels=[0, 1, -1, 0]),
    "labels of 10^30": batch(labels=[0, 1, 10**30, 0]),
    "labels too few": batch(labels=[0, 1]),
    "labels that laugh": batch(labels=laughs()),
    "pixels of decimals": batch(data=np.zeros((4, 3072))),
    "pixels of another shape": batch(data=np.zeros((4, 3, 32, 32), np.uint8)),
    "pixels of objects": batch(data=np.array([[None] * 3072] * 4, dtype=object)),
    "pixels of lists": batch(data=[[0] * 3072] * 4),
    "pixels of 10^12": batch(data=Calls(np.ndarray, (10**12,), "u1")),
    "pixels of 10^10": batch(data=Calls(np.ndarray, (10**10,), "u1")),
    "no image": batch(0),
    "a key of numbers": {3: 4, b"data": 1},
    "a type of nonsense": batch(data=Calls(np.dtype, "nonsense")),
}
METAS: dict[str, Any] = {
    "hostile": Calls(os.mkdir, "pwned"),
    "names that laugh": {"label_names": laughs()},
    "names of numbers": {"label_names": [1, 2]},
    "names of control characters": {"label_names": ["\x1b[31mred", b"\xff\xfe"] * 5},
    "one name": {"label_names": ["a"]},
    "no names": {"label_names": []},
    "names of text": {"label_names": "airplane"},
    "nothing": {},
}
RAW: dict[str, bytes] = {
    "10^15 bytes claimed": b"\x80\x04\x8e" + struct.pack("<Q", 10**15) + b".",
    "a frame of 10^15 bytes": b"\x80\x04\x95" + struct.pack("<Q", 10**15) + b".",
    "a long of 2^31 bytes": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "lists too deep": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "a stack of marks": b"\x80\x02" + b"(" * 10_000 + b".",
    "a memo of 2^31": b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".",
    "builtins": b"cbuiltins\neval\n(S'1'\ntR.",
    "numpy of another name": b"cnumpy.testing\nrun_module_suite\n)R.",
}
PICKLED = {
    **{f"batch: {name}": ("test_batch", pickle.dumps(value)) for name, value in BATCHES.items()},
    **{f"names: {name}": ("batches.meta", pickle.dumps(value)) for name, value in METAS.items()},
    **{f"bytes: {name}": ("test_batch", content) for name, content in RAW.items()},
}


@pytest.mark.parametrize("name", PICKLED)
def test_bad_cifar(name: str, good: Path) -> None:
    file, content = PICKLED[name]
    judged(
        good, "cifar", lambda folder: (folder / file).write_bytes(content), refused="bytes" in name or "hostile" in name
    )


# --- MNIST


def images(count: int, height: int = 8, width: int = 8, data: bytes = b"", magic: int = 2051) -> bytes:
    return struct.pack(">IIII", magic, count, height, width) + data


LABELS_FILE = "t10k-labels-idx1-ubyte"
GOOD_IMAGES = gzip.compress(images(4, data=bytes(256)))
IDX: dict[str, tuple[str, str, bytes]] = {
    "a header alone": ("idx", FILES["idx"], images(4)),
    "10^12 images claimed": ("idx", FILES["idx"], images(10**9, 1000, 1000)),
    "2^96 images claimed": ("idx", FILES["idx"], images(2**32 - 1, 2**32 - 1, 2**32 - 1)),
    "no image": ("idx", FILES["idx"], images(0)),
    "images of nothing": ("idx", FILES["idx"], images(4, 0, 0)),
    "images of 4 bytes": ("idx", FILES["idx"], images(4, data=bytes(1024), magic=0x0D03)),
    "more than claimed": ("idx", FILES["idx"], images(4, data=bytes(999))),
    "other sizes": ("idx", FILES["idx"], images(4, 9, 9, bytes(324))),
    "labels too few": ("idx", LABELS_FILE, struct.pack(">II", 2049, 2) + bytes(2)),
    "labels of 255": ("idx", LABELS_FILE, struct.pack(">II", 2049, 4) + b"\xff" * 4),
    "labels empty": ("idx", LABELS_FILE, b""),
    "not packed": ("packed", FILES["packed"], b"no gzip at all, only a text of some length"),
    "half a gzip": ("packed", FILES["packed"], GOOD_IMAGES[:20]),
    "a bomb": ("packed", FILES["packed"], gzip.compress(images(4, data=bytes(1 << 26)))),
    "a bomb that says so": ("packed", FILES["packed"], gzip.compress(images(1 << 20, data=bytes(1 << 26)))),
    "a wrong length": ("packed", FILES["packed"], GOOD_IMAGES[:-4] + b"\xff" * 4),
    "a claim of 3 GB": (
        "packed",
        FILES["packed"],
        gzip.compress(images(50_000_000))[:-4] + struct.pack("<I", 3_200_000_016),
    ),
}


@pytest.mark.parametrize("name", IDX)
def test_bad_idx(name: str, good: Path) -> None:
    of, file, content = IDX[name]
    judged(good, of, lambda folder: (folder / file).write_bytes(content), refused=name != "labels of 255")


def test_gzip_in_two_parts(good: Path) -> None:
    parts = gzip.compress(images(4, data=bytes(100))) + gzip.compress(bytes(156))
    judged(good, "packed", lambda folder: (folder / FILES["packed"]).write_bytes(parts))
