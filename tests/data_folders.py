"""Folders of images in every layout, and small sets in memory."""

import gzip
import io
import json
import pickle
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from nets import seeded
from perturblab import data
from perturblab.data import sets

CIFAR = data.Preparation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), crop_padding=4, flip=True)
CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(array, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(array).save(file, form)
    return file.getvalue()


def image_folder(root, classes=("cat", "dog"), shape=(6, 5, 3), count=3, splits=("train", "test")):
    """train/CLASS/k.png with random pixels; returns the arrays by relative path."""
    arrays = {}
    for split in splits:
        for name in classes:
            for k in range(count):
                path = root / split / name / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                arrays[f"{split}/{name}/{k}.png"] = array = pixels(*shape, seed=len(arrays))
                path.write_bytes(encoded(array))
    return arrays


def table(arrays, labels, image="img", label="label", names=None, blobs=None):
    blobs = blobs or [encoded(array) for array in arrays]
    rows = [{"bytes": blob, "path": f"{k}.png"} for k, blob in enumerate(blobs)]
    columns = pa.table({image: rows, label: labels})
    if names is None:
        return columns
    features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list(names)}}
    return columns.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def parquet_folder(root, names=("cat", "dog"), shape=(6, 5, 3), labels=(0, 1, 1, 0), **options):
    root.mkdir(parents=True, exist_ok=True)
    arrays = pixels(len(labels), *shape)
    for split in ("train", "test"):
        pq.write_table(table(arrays, list(labels), names=names, **options), root / f"{split}-00000-of-00001.parquet")
    return arrays


def idx_bytes(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def idx_folder(root, count=6, pack=False, size=28):
    root.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for part in ("train", "t10k"):
        images, labels = pixels(count, size, size), np.arange(count, dtype=np.uint8) % 3
        arrays[part] = images, labels
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            content = idx_bytes(array)
            (root / (name + ".gz" * pack)).write_bytes(gzip.compress(content) if pack else content)
    return arrays


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings: what the original CIFAR files contain."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_python2_string(self, value):
        self.write(b"T" + struct.pack("<i", len(value)) + value)

    dispatch[bytes] = save_python2_string


def python2_pickle(value):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def cifar10_folder(root, count=4, dump=python2_pickle):
    root.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for k, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
        arrays[name] = pixels(count, 3072, seed=k)
        (root / name).write_bytes(dump({b"data": arrays[name], b"labels": [(k + j) % 10 for j in range(count)]}))
    (root / "batches.meta").write_bytes(dump({b"label_names": [name.encode() for name in CIFAR10_NAMES]}))
    return arrays


def random_split(counts, seed=0):
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)], dtype=torch.int64)
    labels = labels[torch.randperm(len(labels), generator=seeded(seed))]
    positions = torch.arange(len(labels), dtype=torch.int32).view(torch.uint8).view(-1, 1, 2, 2)
    return data.Split(positions, labels)


def image_data(name="", classes=("a", "b", "c"), size=(3, 4, 4), count=6, display="some"):
    splits = []
    for seed in (0, 1):
        images = torch.from_numpy(pixels(count, *size, seed=seed))
        splits.append(data.Split(images, torch.arange(count) % len(classes)))
    return data.ImageData(name, display, tuple(classes), *splits, sets.content_hashes(*splits))


def put(path, array_or_bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(array_or_bytes if isinstance(array_or_bytes, bytes) else encoded(array_or_bytes))


def never_read(*_args):
    raise AssertionError("the cache was not used")
