"""Bad data sets: pictures in class folders, parquet files, and the files of CIFAR and MNIST that other tools leave."""

import gzip
import io
import json
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

from data_folders import pixels, table
from good_files import SMALL
from oracle import Ended, judge
from strategies import ODD, ODD_FILES, Calls, as_json, changed, damaged, replace, search

TEST = {"pictures": 6, "parquet": 4, "cifar": 4, "idx": 6, "packed": 6}  # test images of each set
PICTURE = Image.fromarray(pixels(8, 8, 3))
TABLE = table(pixels(8, 8, 8, 3), [0, 1] * 4, names=("cat", "dog"))
Prepare = Callable[[Path], Any]


def save(made: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    """Encode a picture."""
    file = io.BytesIO()
    made.save(file, kind, **settings)
    return file.getvalue()


def judged(good: Path, of: str, prepare: Prepare, *, total: int | None = None, refused: bool = False) -> Ended:
    """Train on a copy of a set after something was done to it."""
    argv = f"train --dataset-train {of} {SMALL} --train-size 4 --out new".split()
    expected = {"total": total or TEST[of], "may_succeed": not refused, "names": [of, "image", "class", "path"]}
    return judge(good, argv, lambda folder: prepare(folder / of), **expected)


KINDS = ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"]
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
    # Nothing, a folder or a dead link of a picture's name is passed over; the other pictures make a set.
    refused = of != "pictures" or name in ("a pipe", "a device")
    judged(good, of, lambda folder: replace(folder / FILES[of], name), refused=refused)


@search(40)
@given(st.data(), st.sampled_from(sorted(FILES)), st.booleans(), st.sampled_from(KINDS))
def test_damaged_file_in_a_data_set(good: Path, data: st.DataObject, of: str, whole: bool, kind: str) -> None:
    def prepare(folder: Path) -> None:
        path = folder / FILES[of]
        content = save(PICTURE, kind) if of == "pictures" else path.read_bytes()
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
    made = save(PICTURE)
    return made[:33] + chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(100 << 20), 1)) + made[33:]


def animated() -> bytes:
    frames = [Image.fromarray(pixels(8, 8, 3, seed=k)) for k in range(3)]
    return save(frames[0], save_all=True, append_images=frames[1:])


BMP = save(PICTURE, "BMP")
PICTURES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "a text": lambda: b"no picture at all",
    "only a signature": lambda: b"\x89PNG\r\n\x1a\n",
    "a header of 100,000 by 100,000": lambda: png(100_000, 100_000),
    "a header of 2^31 by 2^31": lambda: png(2**31 - 1, 2**31 - 1),
    "a bomb of 9,000 by 9,000": lambda: png(9_000, 9_000, 1),
    "a header of nothing": lambda: png(0, 0),
    "a bomb in a text": text_bomb,
    "of 9 by 9": lambda: save(Image.fromarray(pixels(9, 9, 3))),
    **{f"of mode {m}": lambda m=m: save(PICTURE.convert(m)) for m in ("L", "P", "RGBA", "1", "LA")},
    "of 16 bits": lambda: save(Image.fromarray(np.zeros((8, 8), np.uint16))),
    "of four inks": lambda: save(PICTURE.convert("CMYK"), "JPEG"),
    "animated": animated,
    **{f"a {k}": lambda k=k: save(PICTURE, k) for k in ("GIF", "ICO", "PDF", "EPS", "JPEG", "TIFF", "WEBP")},
    "a TIFF of decimals": lambda: save(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"),
    "half a PNG": lambda: save(PICTURE)[:60],
    "half a JPEG": lambda: save(Image.fromarray(pixels(64, 64, 3)), "JPEG")[:700],
    "a BMP": lambda: BMP,
    "a BMP of 10^9 rows": lambda: BMP[:22] + struct.pack("<i", 10**9) + BMP[26:],
    "a PPM of 10^12 pixels": lambda: b"P6 1000000 1000000 255\n" + bytes(99),
    "a PPM of a negative size": lambda: b"P6 -8 -8 255\n" + bytes(192),
    "an SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>',
    "a pickle": lambda: b"\x80\x02cos\nmkdir\nq\x00X\x05\x00\x00\x00pwnedq\x01\x85q\x02Rq\x03.",
}


@pytest.mark.parametrize("name", PICTURES)
def test_bad_picture(name: str, good: Path) -> None:
    """In a class folder, and every fourth in a parquet file too."""
    content = PICTURES[name]()
    judged(good, "pictures", lambda folder: (folder / FILES["pictures"]).write_bytes(content))
    if name in list(PICTURES)[::4]:
        rows = TABLE["img"].to_pylist()
        rows[3]["bytes"] = content
        judged(good, "parquet", lambda folder: write(folder, with_column("img", rows)))


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

    judged(good, "pictures", more, total=9, refused=isinstance(name, bytes))
    judged(good, "pictures", damaged, refused=True)


def test_a_thousand_times_the_memory(good: Path) -> None:
    """Eight thousand names of one grey picture of 64 megapixels: 512 GB, once decoded."""

    def prepare(folder: Path) -> None:
        first = folder / "train/cat/0.png"
        first.write_bytes(save(Image.new("L", (8000, 8000))))
        for k in range(8000):
            os.link(first, first.with_name(f"more-{k}.png"))

    assert "memory" in judged(good, "pictures", prepare, refused=True).err


# --- parquet


def write(folder: Path, made: Any, split: str = "train", **settings: Any) -> None:
    pq.write_table(made, folder / f"{split}-00000-of-00001.parquet", **settings)


def with_column(name: str, values: Any) -> Any:
    """Put other values into a column of a good table; None leaves it out."""
    rest = TABLE.drop_columns([name])
    return rest if values is None else rest.append_column(name, pa.array(values))


# What a column may hold instead: nothing at all, other values, other types.
LABELS = st.one_of(
    st.none(),
    *(
        st.lists(one, min_size=8, max_size=8)
        for one in (
            *(st.sampled_from([-1, 0, 1, 2, 10**9, 2**63 - 1]), st.none() | st.integers(0, 1), st.floats(width=32)),
            *(st.booleans(), st.binary(max_size=3), st.text(max_size=3), st.lists(st.integers(0, 1), max_size=2)),
        )
    ),
    st.sampled_from(
        [*(pa.uint8(), pa.uint64(), pa.float64(), pa.bool_(), pa.timestamp("s"), pa.decimal128(25), pa.string())]
    ).map(lambda kind: pa.array([0, 1] * 4).cast(kind)),
    st.just(pa.array(["cat", "dog"] * 4).dictionary_encode()),
)
ROWS = st.fixed_dictionaries(
    {"bytes": st.sampled_from([save(PICTURE), b"", b"x", None])},
    optional={"path": st.sampled_from(["a", "/etc/passwd", None]), "more": st.just(1)},
)
IMAGES = st.one_of(
    st.none(),
    *(
        st.lists(one, min_size=8, max_size=8)
        for one in (ROWS, st.none(), st.integers(0, 9), st.text(max_size=3), st.just(save(PICTURE)))
    ),
)


@search(30)
@given(st.tuples(st.just("label"), LABELS) | st.tuples(st.just("img"), IMAGES), st.sampled_from(["train", "test"]))
def test_odd_column_in_parquet(good: Path, column: tuple[str, Any], split: str) -> None:
    total = 8 if split == "test" else 4
    judged(good, "parquet", lambda folder: write(folder, with_column(*column), split), total=total)


ODD_NAMES = ("", "\x1b[31mred", "a\nb\u202e", "| x |", "<script>", "$\\frac{", "cat", "x" * 10**5, "\ud800", "/root/x")


@search(12)
@given(st.lists(st.sampled_from(ODD_NAMES), max_size=3))
def test_odd_class_names_in_parquet(good: Path, names: list[str]) -> None:
    named = table(pixels(8, 8, 8, 3), [0, 1] * 4, names=names)
    refused = len(names) == 1 or "\ud800" in names or "/root/x" in names
    judged(
        good,
        "parquet",
        lambda folder: [write(folder, named, split) for split in ("train", "test")],
        total=8,
        refused=refused,
    )


@search(12)
@given(st.data(), st.booleans())
def test_odd_metadata_in_parquet(good: Path, data: st.DataObject, by_bytes: bool) -> None:
    text = TABLE.schema.metadata[b"huggingface"]
    broken = damaged(text) if by_bytes else changed(json.loads(text)).map(as_json)
    made = TABLE.replace_schema_metadata({"huggingface": data.draw(broken)})
    judged(good, "parquet", lambda folder: write(folder, made))


def many_rows(rows: int) -> Prepare:
    """Name one picture again and again: as many rows as one likes in a few kilobytes."""

    def prepare(folder: Path) -> None:
        image = pa.StructArray.from_arrays([pa.array([save(PICTURE)]), pa.array(["a"])], ["bytes", "path"])
        images = pa.chunked_array([image.take(pa.array([0] * 1000))] * (rows // 1000))
        made = pa.table({"img": images, "label": pa.array([0, 1] * (rows // 2))})
        write(folder, made.replace_schema_metadata(TABLE.schema.metadata))

    return prepare


def zeros(folder: Path) -> None:
    """Write 128 MB of zeros, which compress to almost nothing."""
    rows = [{"bytes": bytes(1 << 24), "path": "a"}] * 8
    write(folder, with_column("img", rows), compression="zstd")


def footer(length: int) -> Prepare:
    """Claim another length of the footer."""

    def prepare(folder: Path) -> None:
        path = folder / FILES["parquet"]
        path.write_bytes(path.read_bytes()[:-8] + struct.pack("<I", length) + b"PAR1")

    return prepare


BROKEN_PARQUET: dict[str, Prepare] = {
    "no rows": lambda folder: write(folder, TABLE.slice(0, 0)),
    "no columns": lambda folder: write(folder, pa.table({})),
    "300,000 rows in a few kilobytes": many_rows(300_000),
    "zeros": zeros,
    "only its mark": lambda folder: (folder / FILES["parquet"]).write_bytes(b"PAR1PAR1"),
    **{f"a footer of {length} bytes": footer(length) for length in (0, 1, 2**31, 2**32 - 1)},
    "no test split": lambda folder: (folder / "test-00000-of-00001.parquet").unlink(),
    "a shard of other columns": lambda folder: pq.write_table(pa.table({"x": [1]}), folder / "train-1.parquet"),
}


@pytest.mark.parametrize("name", BROKEN_PARQUET)
def test_broken_parquet(name: str, good: Path) -> None:
    judged(good, "parquet", BROKEN_PARQUET[name], refused=True)


# --- CIFAR


def laughs() -> Any:
    inner: Any = ["ha"]
    for _ in range(60):
        inner = [inner, inner]
    return inner


def batch(**changes: Any) -> dict[str, Any]:
    return {"data": pixels(4, 3072), "labels": [0, 1, 2, 3], **changes}


HOSTILE = Calls(os.mkdir, "pwned")
PICKLED: dict[str, tuple[str, bytes]] = {
    **{
        f"batch: {name}": ("test_batch", pickle.dumps(value))
        for name, value in {
            "hostile": HOSTILE,
            "hostile inside": batch(more=HOSTILE),
            "labels that laugh": batch(labels=laughs()),
            "pixels of objects": batch(data=np.array([[None] * 3072] * 4, dtype=object)),
            "pixels of 10^12": batch(data=Calls(np.ndarray, (10**12,), "u1")),
            "pixels of 10^10": batch(data=Calls(np.ndarray, (10**10,), "u1")),
            "a type of nonsense": batch(data=Calls(np.dtype, "nonsense")),
            "no image": batch(data=pixels(0, 3072), labels=[]),
        }.items()
    },
    "names: hostile": ("batches.meta", pickle.dumps(HOSTILE)),
    "names that laugh": ("batches.meta", pickle.dumps({"label_names": laughs()})),
    "10^15 bytes claimed": ("test_batch", b"\x80\x04\x8e" + struct.pack("<Q", 10**15) + b"."),
    "a frame of 10^15 bytes": ("test_batch", b"\x80\x04\x95" + struct.pack("<Q", 10**15) + b"."),
    "a long of 2^31 bytes": ("test_batch", b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"."),
    "lists too deep": ("test_batch", b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
    "a stack of marks": ("test_batch", b"\x80\x02" + b"(" * 10_000 + b"."),
    "a memo of 2^31": ("test_batch", b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b"."),
    "builtins": ("test_batch", b"cbuiltins\neval\n(S'1'\ntR."),
    "numpy of another name": ("test_batch", b"cnumpy.testing\nrun_module_suite\n)R."),
}


@pytest.mark.parametrize("name", PICKLED)
def test_bad_cifar(name: str, good: Path) -> None:
    file, content = PICKLED[name]
    judged(good, "cifar", lambda folder: (folder / file).write_bytes(content), refused=True)


@search(30)
@given(st.data(), st.sampled_from(["test_batch", "batches.meta"]))
def test_odd_value_in_cifar(good: Path, data: st.DataObject, file: str) -> None:
    odd = (
        *ODD,
        b"\xff\xfe",
        10**30,
        [0.0, 1.0, 0.0, 1.0],
        [0, 1, 99, 0],
        np.zeros((4, 3072)),
        np.zeros((4, 3), np.uint8),
    )
    value = data.draw(changed(pickle.loads((good / "cifar" / file).read_bytes()), odd))
    judged(good, "cifar", lambda folder: (folder / file).write_bytes(pickle.dumps(value)))


# --- MNIST


def images(*sizes: int, data: bytes = b"", magic: int = 2051) -> bytes:
    return struct.pack(f">{1 + len(sizes)}I", magic, *sizes) + data


GOOD_IMAGES = gzip.compress(images(6, 8, 8, data=bytes(384)))
PACKED: dict[str, bytes] = {
    "half a gzip": GOOD_IMAGES[:20],
    "a bomb": gzip.compress(images(6, 8, 8, data=bytes(1 << 26))),
    "a bomb that says so": gzip.compress(images(1 << 20, 8, 8, data=bytes(1 << 26))),
    "a wrong length": GOOD_IMAGES[:-4] + b"\xff" * 4,
    "a claim of 3 GB": gzip.compress(images(50_000_000, 8, 8))[:-4] + struct.pack("<I", 3_200_000_016),
}


@pytest.mark.parametrize("name", PACKED)
def test_bad_gzip(name: str, good: Path) -> None:
    judged(good, "packed", lambda folder: (folder / FILES["packed"]).write_bytes(PACKED[name]), refused=True)


def test_gzip_in_two_parts(good: Path) -> None:
    parts = gzip.compress(images(6, 8, 8, data=bytes(100))) + gzip.compress(bytes(284))
    judged(good, "packed", lambda folder: (folder / FILES["packed"]).write_bytes(parts))


SIZES = st.sampled_from([0, 1, 6, 8, 9, 10**9, 2**32 - 1])


@search(30)
@given(
    st.sampled_from([2051, 2049, 0x0D03, 0]),
    SIZES,
    SIZES,
    SIZES,
    st.sampled_from([0, 383, 384, 486, 1536]),
    st.booleans(),
)
def test_header_that_claims_something_else(
    good: Path, magic: int, count: int, height: int, width: int, length: int, packed: bool
) -> None:
    content = images(count, height, width, data=bytes(length), magic=magic)
    of, name = ("packed", "t10k-images-idx3-ubyte.gz") if packed else ("idx", "t10k-images-idx3-ubyte")
    fits = magic == 2051 and count == 6 and count * height * width == length and (height, width) == (8, 8)
    judged(
        good,
        of,
        lambda folder: (folder / name).write_bytes(gzip.compress(content) if packed else content),
        refused=not fits,
    )


@search(15)
@given(st.sampled_from([2049, 2051]), st.integers(0, 7), st.binary(max_size=7))
def test_labels_that_do_not_fit(good: Path, magic: int, count: int, labels: bytes) -> None:
    content = images(count, data=labels, magic=magic)
    fits = (magic, count, len(labels)) == (2049, 6, 6)
    judged(good, "idx", lambda folder: (folder / "t10k-labels-idx1-ubyte").write_bytes(content), refused=not fits)
