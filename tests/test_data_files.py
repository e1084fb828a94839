"""Parquet, CIFAR batches and IDX files: what is read, and which damage is named."""

import gzip
import io
import os
import pickle
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_folders import (
    CIFAR,
    CIFAR10_NAMES,
    cifar10_folder,
    encoded,
    idx_bytes,
    idx_folder,
    parquet_folder,
    pixels,
    python2_pickle,
    table,
)
from perturblab import data
from perturblab.data import binary, known
from perturblab.errors import DataError
from told import in_order

pytestmark = pytest.mark.usefixtures("own_cache")


# --- parquet ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("image", "label"), ("img", "fine_label")])
@pytest.mark.parametrize("below", ["", "data", "plain_text"])
def test_parquet_folder(tmp_path, image, label, below):
    arrays = parquet_folder(tmp_path / "pets" / below, image=image, label=label)
    pets = data.load(str(tmp_path / "pets"))
    assert (pets.name, pets.display, pets.classes) == ("", "pets", ("cat", "dog"))
    assert torch.equal(pets.train.images, torch.from_numpy(arrays).permute(0, 3, 1, 2))
    assert pets.train.labels.tolist() == [0, 1, 1, 0]


def test_shards_are_read_in_order(tmp_path):
    arrays = parquet_folder(tmp_path)
    for k in (0, 1):
        shard = table(arrays[2 * k : 2 * k + 2], [k, 1 - k], names=("cat", "dog"))
        pq.write_table(shard, tmp_path / f"train-0000{k}-of-00002.parquet")
    (tmp_path / "train-00000-of-00001.parquet").unlink()
    pets = data.load(str(tmp_path))
    assert torch.equal(pets.train.images, pets.test.images)
    assert pets.train.labels.tolist() == [0, 1, 1, 0]


def test_labels_may_be_names_or_nameless(tmp_path):
    parquet_folder(tmp_path / "named", names=None, labels=("dog", "cat", "dog"))
    parquet_folder(tmp_path / "nameless", names=None, labels=(2, 0, 1))
    named, nameless = (data.load(str(tmp_path / name)) for name in ("named", "nameless"))
    assert (named.classes, named.train.labels.tolist()) == (("cat", "dog"), [1, 0, 1])
    assert (nameless.classes, nameless.train.labels.tolist()) == (("0", "1", "2"), [2, 0, 1])


def test_svhn_is_the_cropped_digits(tmp_path):
    for name in ("cropped_digits", "full_numbers"):
        parquet_folder(tmp_path / "svhn" / name, names="0123456789", shape=(32, 32, 3))
    by_path, by_name = data.load(str(tmp_path / "svhn")), data.load("svhn", dataroot=tmp_path)
    assert by_path.name == by_name.name == "SVHN"


def replace_train(root, *args, **options):
    pq.write_table(table(*args, **options), root / "train-00000-of-00001.parquet")


def spoil(root, position):
    path = root / "train-00000-of-00001.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:position])


TWO = ("cat", "dog")
PARQUET_FAULTS = {
    "truncated": (lambda r: spoil(r, 200), "train-00000-of-00001.parquet parquet"),
    "empty file": (lambda r: spoil(r, 0), "parquet file"),
    "missing": (lambda r: (r / "test-00000-of-00001.parquet").unlink(), "test split train"),
    "row": (
        lambda r: replace_train(r, [], [0, 1], names=TWO, blobs=[encoded(pixels(6, 5, 3)), b"junk"]),
        "row 1 train-00000-of-00001.parquet image",
    ),
    "no bytes": (
        lambda r: replace_train(r, [], [0, 1], names=TWO, blobs=[encoded(pixels(6, 5, 3)), None]),
        "row 1 image",
    ),
    "label": (
        lambda r: replace_train(r, pixels(2, 6, 5, 3), [0, 2], names=TWO),
        "train split label 2 0 1",
    ),
    "negative": (
        lambda r: replace_train(r, pixels(2, 6, 5, 3), [0, -1], names=TWO),
        "train split label -1 0 1",
    ),
    "null": (lambda r: replace_train(r, pixels(2, 6, 5, 3), [0, None], names=TWO), "row 1 label None"),
    "fraction": (lambda r: replace_train(r, pixels(2, 6, 5, 3), [0, 0.5], names=TWO), "row 0 label 0.0"),
    "column": (
        lambda r: replace_train(r, pixels(2, 6, 5, 3), [0, 1], names=TWO, image="picture"),
        "columns picture label img image",
    ),
    "no struct": (
        lambda r: pq.write_table(
            pa.table({"img": ["a", "b"], "label": [0, 1]}).replace_schema_metadata(
                table(pixels(1, 6, 5, 3), [0], names=TWO).schema.metadata
            ),
            r / "train-00000-of-00001.parquet",
        ),
        "string img struct bytes path",
    ),
    "classes": (
        lambda r: replace_train(r, pixels(2, 6, 5, 3), [0, 1], names=("cat", "cow")),
        "classes cow train dog test",
    ),
    "order": (
        lambda r: replace_train(r, pixels(2, 6, 5, 3), [0, 1], names=("dog", "cat")),
        "classes train order dog cat",
    ),
    "empty": (
        lambda r: pq.write_table(
            table(pixels(2, 6, 5, 3), [0, 1], names=TWO).slice(0, 0), r / "train-00000-of-00001.parquet"
        ),
        "train split empty",
    ),
    "metadata": (
        lambda r: pq.write_table(
            table(pixels(2, 6, 5, 3), [0, 1]).replace_schema_metadata({"huggingface": "{"}),
            r / "train-00000-of-00001.parquet",
        ),
        "metadata",
    ),
}


@pytest.mark.parametrize("fault", PARQUET_FAULTS)
def test_parquet_faults(tmp_path, fault):
    change, message = PARQUET_FAULTS[fault]
    parquet_folder(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=in_order(message)) as caught:
        data.load(str(tmp_path))
    assert "\n" not in str(caught.value)


# --- the files other tools leave ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dump", [python2_pickle, lambda value: pickle.dumps(value, protocol=4)])
@pytest.mark.parametrize("spelling", ["name", "dataroot as a path", "folder"])
def test_cifar10_batches(tmp_path, dump, spelling):
    arrays = cifar10_folder(tmp_path / "cifar-10-batches-py", dump=dump)
    if spelling == "name":
        cifar = data.load("cifar-10", dataroot=tmp_path)
    else:
        cifar = data.load(str(tmp_path / ("cifar-10-batches-py" if spelling == "folder" else "")))
    assert (cifar.name, cifar.classes) == ("CIFAR10", tuple(CIFAR10_NAMES))
    assert (len(cifar.train), len(cifar.test)) == (20, 4)
    assert torch.equal(cifar.train.images[4:8].flatten(1), torch.from_numpy(arrays["data_batch_2"]))
    assert cifar.train.labels[4:8].tolist() == [1, 2, 3, 4]
    assert data.preparation(cifar) == CIFAR


def test_cifar100_batches_by_fine_label(tmp_path):
    root = tmp_path / "cifar-100-python"
    root.mkdir()
    for split in ("train", "test"):
        content = {b"data": pixels(3, 3072), b"fine_labels": [99, 0, 5], b"coarse_labels": [1, 2, 3]}
        (root / split).write_bytes(python2_pickle(content))
    names = known.find_known("CIFAR100").classes
    assert len(set(names)) == 100
    assert list(names) == sorted(names)
    (root / "meta").write_bytes(python2_pickle({b"fine_label_names": [name.encode() for name in names]}))
    cifar = data.load("CIFAR100", dataroot=tmp_path)
    assert (cifar.name, cifar.classes) == ("CIFAR100", names)
    assert cifar.train.labels.tolist() == [99, 0, 5]
    assert data.preparation(cifar) == CIFAR


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_does_not_run(tmp_path):
    root = tmp_path / "cifar-10-batches-py"
    cifar10_folder(root)
    (root / "data_batch_3").write_bytes(pickle.dumps({b"data": Malicious(tmp_path / "ran"), b"labels": []}))
    with pytest.raises(DataError, match=in_order("data_batch_3 posix.mkdir")):
        data.load("CIFAR10", dataroot=tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", [("builtins", "eval"), ("numpy", "load"), ("numpy", "fromfile"), ("_codecs", "encode"), ("os", "system")]
)
def test_only_the_array_constructors_are_admitted(name):
    with pytest.raises(DataError, match=in_order(".".join(name))):
        binary._ArrayUnpickler(io.BytesIO(b"")).find_class(*name)
    assert len(binary._ADMITTED) == 4


BATCH_FAULTS = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:500]), "data_batch_2 CIFAR"),
    "no dictionary": (lambda path: path.write_bytes(pickle.dumps([1])), "data_batch_2 CIFAR"),
    "no data": (lambda path: path.write_bytes(pickle.dumps({"labels": [1]})), "data_batch_2 data"),
    "no labels": (
        lambda path: path.write_bytes(python2_pickle({b"data": pixels(1, 3072)})),
        "data_batch_2 labels",
    ),
    "size": (
        lambda path: path.write_bytes(python2_pickle({b"data": pixels(1, 3000), b"labels": [1]})),
        "data_batch_2 N 3072",
    ),
    "count": (
        lambda path: path.write_bytes(python2_pickle({b"data": pixels(1, 3072), b"labels": [1, 2]})),
        "data_batch_2 N 3072",
    ),
    "text": (
        lambda path: path.write_bytes(python2_pickle({b"data": pixels(1, 3072), b"labels": [b"1"]})),
        "data_batch_2 N 3072 N labels",
    ),
    "label": (
        lambda path: path.write_bytes(python2_pickle({b"data": pixels(1, 3072), b"labels": [10]})),
        "train split label 10 0 9",
    ),
    "missing": (lambda path: path.unlink(), "cifar-10-batches-py data_batch_2"),
}


@pytest.mark.parametrize("fault", BATCH_FAULTS)
def test_cifar_faults(tmp_path, fault):
    change, message = BATCH_FAULTS[fault]
    root = tmp_path / "cifar-10-batches-py"
    cifar10_folder(root)
    change(root / "data_batch_2")
    with pytest.raises(DataError, match=in_order(message)):
        data.load("CIFAR10", dataroot=tmp_path)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(
    ("below", "name"), [("MNIST/raw", "MNIST"), ("FashionMNIST/raw", "FashionMNIST"), ("", "MNIST")]
)
def test_idx_files(tmp_path, pack, below, name):
    arrays = idx_folder(tmp_path / below, pack=pack)
    found = data.load(name, dataroot=tmp_path)
    assert (found.name, found.image_size) == (name, (1, 28, 28))
    assert torch.equal(found.test.images.squeeze(1), torch.from_numpy(arrays["t10k"][0]))
    assert found.train.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_numbered_classes_get_the_known_names(tmp_path):
    root = tmp_path / "FashionMNIST" / "raw"
    idx_folder(root, count=20)
    for part in ("train", "t10k"):
        labels = np.arange(20, dtype=np.uint8) % 10
        (root / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    assert data.load("FashionMNIST", dataroot=tmp_path).classes[9] == "Ankle boot"


def claim(path, *shape):
    content = path.read_bytes()
    path.write_bytes(struct.pack(f">{len(shape)}I", *shape).join((content[:4], content[4 + 4 * len(shape) :])))


def gz_claim(path, *shape):
    """A gzipped file whose header claims more than it has."""
    claim(path, *shape)
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


IDX_FAULTS = {
    "huge": (lambda path: claim(path, 2**32 - 1, 2**32 - 1, 2**32 - 1), "bytes header 4720"),
    "huge, gzipped": (lambda path: gz_claim(path, 2**31, 28, 28), "bytes header 4720"),
    "short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "4720 header 4719"),
    "long": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "4720 header 4721"),
    "magic": (lambda path: path.write_bytes(b"\0\0\x0d\3" + path.read_bytes()[4:]), "idx 3-dimensional"),
    "empty": (lambda path: path.write_bytes(b""), "idx 3-dimensional"),
    "count": (lambda path: path.write_bytes(idx_bytes(pixels(5, 28, 28))), "5 images 6 labels"),
    "missing": (lambda path: path.unlink(), "train-images-idx3-ubyte"),
}


@pytest.mark.parametrize("fault", IDX_FAULTS)
def test_idx_faults(tmp_path, fault):
    change, message = IDX_FAULTS[fault]
    idx_folder(tmp_path / "MNIST" / "raw")
    change(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte")
    with pytest.raises(DataError, match=in_order(message)):
        data.load("MNIST", dataroot=tmp_path)


def test_a_damaged_gzip_file_is_named(tmp_path):
    idx_folder(tmp_path, pack=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(DataError, match=in_order("t10k-images-idx3-ubyte.gz")):
        data.load("MNIST", dataroot=tmp_path)


def test_a_gzip_file_that_lies_about_its_length_is_refused(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    packed = gzip.compress(idx_bytes(pixels(6, 28, 28))[:4] + struct.pack(">3I", 7, 28, 28) + bytes(6 * 784))
    path.write_bytes(packed[:-4] + struct.pack("<I", 16 + 7 * 784))
    with pytest.raises(DataError, match=in_order("train-images-idx3-ubyte.gz")):
        binary._idx(path, 3)
