"""Bad image files: pictures in class folders, and the files of CIFAR and MNIST that other tools leave."""

import gzip
import io
import os
import pickle
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from faults.case import Case, fill
from faults.kinds.mutations import damaged
from faults.world import TINY, picture

TEST = 4  # test images of the class folders
FLAGS = [*TINY[2:], "--batch-size", "2"]
COMMAND = ["train", "--dataset-train", "pictures", *FLAGS, "--train-size", "4", "--out", "new"]


def encoded(made: Image.Image, kind: str, **settings: Any) -> bytes:
    """The bytes of a picture."""
    file = io.BytesIO()
    made.save(file, kind, **settings)
    return file.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(width: int, height: int, rows: int = 0) -> bytes:
    """A PNG whose header claims a size, with the data of some of its rows."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes((1 + 3 * width) * rows), 9) if rows else b""
    parts = _chunk(b"IHDR", header), _chunk(b"IDAT", data), _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def text_bomb() -> bytes:
    """A good PNG with a compressed text of 200 MB in front."""
    good = encoded(picture(1), "PNG")
    text = _chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(200 << 20), 9))
    return good[:33] + text + good[33:]


def _animated() -> bytes:
    frames = [picture(k) for k in range(3)]
    return encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])


BAD: dict[str, bytes] = {
    "empty": b"",
    "a text": b"no picture at all",
    "only a signature": b"\x89PNG\r\n\x1a\n",
    "a header of 100,000 by 100,000": png_bomb(100_000, 100_000),
    "a header of 2^31 by 2^31": png_bomb(2**31 - 1, 2**31 - 1),
    "a bomb of 12,000 by 12,000": png_bomb(12_000, 12_000, 12_000),
    "a bomb of 9,000 by 9,000": png_bomb(9_000, 9_000, 9_000),
    "a header of nothing": png_bomb(0, 0),
    "a bomb in a text": text_bomb(),
    "of 9 by 9": encoded(picture(1, 9), "PNG"),
    "grey": encoded(picture(1).convert("L"), "PNG"),
    "with a palette": encoded(picture(1).convert("P"), "PNG"),
    "with alpha": encoded(picture(1).convert("RGBA"), "PNG"),
    "of one bit": encoded(picture(1).convert("1"), "PNG"),
    "of 16 bits": encoded(Image.fromarray(np.zeros((8, 8), np.uint16)), "PNG"),
    "of four inks": encoded(picture(1).convert("CMYK"), "JPEG"),
    "grey with alpha": encoded(picture(1).convert("LA"), "PNG"),
    "animated": _animated(),
    "a GIF": encoded(picture(1), "GIF"),
    "an ICO": encoded(picture(1), "ICO"),
    "a PDF": encoded(picture(1), "PDF"),
    "an EPS": encoded(picture(1), "EPS"),
    "a JPEG": encoded(picture(1), "JPEG"),
    "a BMP": encoded(picture(1), "BMP"),
    "a TIFF": encoded(picture(1), "TIFF"),
    "a TIFF of decimals": encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"),
    "a WEBP": encoded(picture(1), "WEBP"),
    "half a PNG": encoded(picture(1), "PNG")[:60],
    "half a JPEG": encoded(picture(1, 64), "JPEG")[:700],
    "a BMP of 10^9 rows": encoded(picture(1), "BMP")[:22] + struct.pack("<i", 10**9) + encoded(picture(1), "BMP")[26:],
    "a PPM of 10^12 pixels": b"P6 1000000 1000000 255\n" + bytes(99),
    "a PPM of a negative size": b"P6 -8 -8 255\n" + bytes(192),
    "an SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>',
    "a pickle": b"\x80\x02cos\nmkdir\nq\x00X\x05\x00\x00\x00pwnedq\x01\x85q\x02Rq\x03.",
}


def _written(path: str, content: bytes, folder: Path) -> None:
    (folder / "pictures" / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / "pictures" / path).write_bytes(content)


def _class_called(name: str | bytes, folder: Path) -> None:
    """A third class under a name."""
    for split in (b"train", b"test"):
        target = os.fsdecode(os.path.join(os.fsencode(folder), b"pictures", split, os.fsencode(name)))
        shutil.copytree(folder / "pictures" / split.decode() / "cat", target)


def _picture_called(name: str | bytes, folder: Path) -> None:
    target = os.path.join(os.fsencode(folder), b"pictures/train/cat", os.fsencode(name))
    with open(target, "wb") as file:
        file.write(b"no picture")


def _instead(make: Callable[[Path], Any], folder: Path) -> None:
    path = folder / "pictures/train/cat/1.png"
    path.unlink()
    make(path)


def _many(folder: Path) -> None:
    """Four thousand names of one picture of 64 megapixels: 768 GB, once decoded."""
    first = folder / "pictures/train/cat/0.png"
    first.write_bytes(png_bomb(8000, 8000, 8000))
    for k in range(4000):
        os.link(first, first.with_name(f"more-{k}.png"))


def _without(path: str, folder: Path) -> None:
    shutil.rmtree(folder / "pictures" / path)


ODD: dict[str, Callable[[Path], Any]] = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to a system file": lambda path: path.symlink_to("/etc/passwd"),
}
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


class Hostile:
    """A pickle that would make a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


class Reduced:
    """A pickle that calls something admitted with something enormous."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


def _batch(count: int = 4, **changes: Any) -> dict[str, Any]:
    pixels = np.arange(count * 3072, dtype=np.uint32).astype(np.uint8).reshape(count, 3072)
    return {"data": pixels, "labels": [k % 2 for k in range(count)], **changes}


def _laughs() -> Any:
    inner: Any = ["ha"]
    for _ in range(60):
        inner = [inner, inner]
    return inner


def cifar(folder: Path, batch: Any = None, meta: Any = None, raw: bytes | None = None) -> None:
    """CIFAR-10's files with two images in each training file and four in the test file."""
    (folder / "set").mkdir()
    for k in range(1, 6):
        (folder / f"set/data_batch_{k}").write_bytes(pickle.dumps(_batch(2)))
    names = [f"name {k}" for k in range(10)]
    (folder / "set/batches.meta").write_bytes(pickle.dumps({"label_names": names} if meta is None else meta))
    (folder / "set/test_batch").write_bytes(pickle.dumps(_batch() if batch is None else batch) if raw is None else raw)


BATCHES: dict[str, Any] = {
    "hostile": Hostile(),
    "hostile inside": _batch(more=Hostile()),
    "a list": [1, 2],
    "nothing": {},
    "no labels": {"data": _batch()["data"]},
    "labels of text": _batch(labels=["a", "b", "c", "d"]),
    "labels of decimals": _batch(labels=[0.0, 1.0, 0.0, 1.0]),
    "labels beyond": _batch(labels=[0, 1, 99, 0]),
    "labels below 0": _batch(labels=[0, 1, -1, 0]),
    "labels of 10^30": _batch(labels=[0, 1, 10**30, 0]),
    "labels too few": _batch(labels=[0, 1]),
    "labels that laugh": _batch(labels=_laughs()),
    "pixels of decimals": _batch(data=np.zeros((4, 3072))),
    "pixels of another shape": _batch(data=np.zeros((4, 3, 32, 32), np.uint8)),
    "pixels of objects": _batch(data=np.array([[None] * 3072] * 4, dtype=object)),
    "pixels of lists": _batch(data=[[0] * 3072] * 4),
    "pixels of 10^12": _batch(data=Reduced(np.ndarray, (10**12,), "u1")),
    "pixels of 10^10": _batch(data=Reduced(np.ndarray, (10**10,), "u1")),
    "no image": _batch(0),
    "a key of numbers": {3: 4, b"data": 1},
    "a type of nonsense": _batch(data=Reduced(np.dtype, "nonsense")),
}
METAS: dict[str, Any] = {
    "hostile": Hostile(),
    "names that laugh": {"label_names": _laughs()},
    "names of numbers": {"label_names": [1, 2]},
    "names of control characters": {"label_names": ["\x1b[31mred", b"\xff\xfe"] * 5},
    "one name": {"label_names": ["a"]},
    "no names": {"label_names": []},
    "names of text": {"label_names": "airplane"},
    "nothing": {},
}
RAW: dict[str, bytes] = {
    "empty": b"",
    "text": b"text",
    "10^15 bytes claimed": b"\x80\x04\x8e" + struct.pack("<Q", 10**15) + b".",
    "a frame of 10^15 bytes": b"\x80\x04\x95" + struct.pack("<Q", 10**15) + b".",
    "a long of 2^31 bytes": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "lists too deep": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "a stack of marks": b"\x80\x02" + b"(" * 10_000 + b".",
    "a memo of 2^31": b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".",
    "builtins": b"cbuiltins\neval\n(S'1'\ntR.",
    "numpy of another name": b"cnumpy.testing\nrun_module_suite\n)R.",
}


def idx(folder: Path, name: str = "", content: bytes | None = None, packed: bool = False) -> None:
    """MNIST's files: 6 training and 4 test images of 8x8, with one file replaced."""
    (folder / "set").mkdir()
    for split, count in (("train", 6), ("t10k", 4)):
        images = struct.pack(">IIII", 2051, count, 8, 8) + bytes(range(count * 64 % 251)) * 9
        images = images[: 16 + count * 64].ljust(16 + count * 64, b"\1")
        labels = struct.pack(">II", 2049, count) + bytes(k % 2 for k in range(count))
        for kind, made in (("images-idx3", images), ("labels-idx1", labels)):
            file = f"{split}-{kind}-ubyte"
            made = content if file == name and content is not None else made
            path = folder / "set" / (f"{file}.gz" if packed else file)
            path.write_bytes(made if not packed or file == name else gzip.compress(made))


IMAGES_FILE, LABELS_FILE = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
IDX: dict[str, tuple[str, bytes]] = {
    "empty": (IMAGES_FILE, b""),
    "a text": (IMAGES_FILE, b"this is no idx file at all"),
    "a header alone": (IMAGES_FILE, struct.pack(">IIII", 2051, 4, 8, 8)),
    "10^12 images claimed": (IMAGES_FILE, struct.pack(">IIII", 2051, 10**9, 1000, 1000)),
    "2^96 images claimed": (IMAGES_FILE, struct.pack(">IIII", 2051, 2**32 - 1, 2**32 - 1, 2**32 - 1)),
    "no image": (IMAGES_FILE, struct.pack(">IIII", 2051, 0, 8, 8)),
    "images of nothing": (IMAGES_FILE, struct.pack(">IIII", 2051, 4, 0, 0)),
    "images of 4 bytes": (IMAGES_FILE, struct.pack(">IIII", 0x0D03, 4, 8, 8) + bytes(1024)),
    "more than claimed": (IMAGES_FILE, struct.pack(">IIII", 2051, 4, 8, 8) + bytes(999)),
    "other sizes": (IMAGES_FILE, struct.pack(">IIII", 2051, 4, 9, 9) + bytes(324)),
    "labels too few": (LABELS_FILE, struct.pack(">II", 2049, 2) + bytes(2)),
    "labels of 255": (LABELS_FILE, struct.pack(">II", 2049, 4) + b"\xff" * 4),
    "labels empty": (LABELS_FILE, b""),
}
PACKED: dict[str, bytes] = {
    "no gzip": b"no gzip at all, only a text of some length",
    "empty": b"",
    "half a gzip": gzip.compress(struct.pack(">IIII", 2051, 4, 8, 8) + bytes(256))[:20],
    "a bomb": gzip.compress(struct.pack(">IIII", 2051, 4, 8, 8) + bytes(1 << 28)),
    "a bomb that says so": gzip.compress(struct.pack(">IIII", 2051, 1 << 22, 8, 8) + bytes(1 << 28)),
    "two parts": gzip.compress(struct.pack(">IIII", 2051, 4, 8, 8) + bytes(100)) + gzip.compress(bytes(272)),
    "a wrong length": gzip.compress(struct.pack(">IIII", 2051, 4, 8, 8) + bytes(256))[:-4] + b"\xff" * 4,
    "a claim of 3 GB": gzip.compress(struct.pack(">IIII", 2051, 50_000_000, 8, 8))[:-4]
    + struct.pack("<I", 3_200_000_016),
}


def cases(count: int, seed: int) -> list[Case]:
    """Bad image files for ``train``."""
    fixed = [_case(name, partial(_written, "train/cat/1.png", content)) for name, content in BAD.items()]
    fixed += [
        _case(f"{name}, in test", partial(_written, "test/dog/0.png", content))
        for name, content in list(BAD.items())[::2]
    ]
    fixed += [_case(f"first: {name}", partial(_written, "train/cat/0.png", BAD[name])) for name in list(BAD)[3:9]]
    fixed += [_case(f"instead of a picture {name}", partial(_instead, make)) for name, make in ODD.items()]
    fixed += [_case(f"a class called {name!a}", partial(_class_called, name)) for name in NAMES]
    fixed += [_case(f"a bad picture called {name!a}", partial(_picture_called, _png(name)), False) for name in NAMES]
    fixed += [
        _case(f"without {path}", partial(_without, path), False) for path in ("train", "test", "test/dog", "train/cat")
    ]
    fixed.append(_case("a thousand times the memory", _many, False))
    fixed.append(_case("an empty class", lambda folder: (folder / "pictures/train/cow").mkdir(), False))
    fixed.append(_case("a class of one split", partial(_written, "train/cow/0.png", BAD["a JPEG"]), False))
    fixed += [_set(f"CIFAR, test batch: {name}", partial(cifar, batch=batch)) for name, batch in BATCHES.items()]
    fixed += [_set(f"CIFAR, names: {name}", partial(cifar, meta=meta)) for name, meta in METAS.items()]
    fixed += [_set(f"CIFAR, test batch of bytes: {name}", partial(cifar, raw=raw), False) for name, raw in RAW.items()]
    fixed += [_set(f"MNIST: {name}", partial(idx, name=file, content=content)) for name, (file, content) in IDX.items()]
    fixed += [
        _set(f"MNIST, packed: {name}", partial(idx, name=IMAGES_FILE, content=content, packed=True))
        for name, content in PACKED.items()
    ]
    return fill(fixed, _drawn, count, seed)


def _png(name: str | bytes) -> bytes:
    return os.fsencode(name) + b".png"


def _case(name: str, prepare: Callable[[Path], None], may_succeed: bool = True) -> Case:
    total = 6 if name.startswith("a class called") else TEST
    return Case(name, COMMAND, ("pictures",), prepare, total, may_succeed=may_succeed)


def _set(name: str, prepare: Callable[[Path], None], may_succeed: bool = True) -> Case:
    command = ["train", "--dataset-train", "set", *FLAGS, "--train-size", "4", "--out", "new"]
    return Case(name, command, (), prepare, 4, may_succeed=may_succeed)


def _drawn(k: int, chance: random.Random) -> Case:
    kinds = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
    if k % 4 == 3:
        return _set(f"{k}: CIFAR damaged", partial(_damaged_set, chance))
    kind = chance.choice(kinds)
    content = damaged(encoded(picture(1), kind), chance)
    return _case(f"{k}: {kind} damaged", partial(_written, f"{chance.choice(['train', 'test'])}/cat/1.png", content))


def _damaged_set(chance: random.Random, folder: Path) -> None:
    (idx if chance.random() < 0.3 else cifar)(folder)
    path = chance.choice(sorted((folder / "set").iterdir()))
    path.write_bytes(damaged(path.read_bytes(), chance))
