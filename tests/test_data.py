"""`perturblab.data`: readers, recognition, cache, splits and augmentation, all without a network."""

import gzip
import io
import json
import math
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from perturblab import data
from perturblab.data import binary, cache, hub, known, layouts, pictures, sets
from perturblab.data.batches import draw
from perturblab.errors import DataError
from perturblab.files import cache_folder

CIFAR = data.Preparation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), crop_padding=4, flip=True)
CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No network, and a cache of its own for every test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PERTURBLAB_CACHE", str(tmp_path / "cache"))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


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
    labels = labels[torch.randperm(len(labels), generator=generator(seed))]
    positions = torch.arange(len(labels), dtype=torch.int32).view(torch.uint8).view(-1, 1, 2, 2)
    return data.Split(positions, labels)


def image_data(name="", classes=("a", "b", "c"), size=(3, 4, 4), count=6, display="some"):
    splits = []
    for seed in (0, 1):
        images = torch.from_numpy(pixels(count, *size, seed=seed))
        splits.append(data.Split(images, torch.arange(count) % len(classes)))
    return data.ImageData(name, display, tuple(classes), *splits, sets.content_hashes(*splits))


# --- digits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "DIGITS", "Digits"])
def test_digits_are_bundled(name):
    digits = data.load(name)
    assert (digits.name, digits.display, digits.image_size) == ("digits", "digits", (1, 8, 8))
    assert (len(digits.train), len(digits.test)) == (1200, 597)
    assert digits.classes == tuple("0123456789")
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.labels.dtype == torch.int64
    assert not (Path(os.environ["PERTURBLAB_CACHE"])).exists()


def test_digits_are_those_of_scikit_learn():
    original = pytest.importorskip("sklearn.datasets", reason="scikit-learn is no dependency").load_digits()
    digits = data.load("digits")
    stored = torch.cat((digits.train.images, digits.test.images)).squeeze(1).long()
    assert torch.equal(-(-stored * 16 // 255), torch.from_numpy(original.images).long())
    assert torch.cat((digits.train.labels, digits.test.labels)).tolist() == original.target.tolist()


def test_digits_carry_their_licence():
    note = Path(data.__file__).with_name("digits-licence.txt").read_text()
    assert "CC BY 4.0" in note
    assert "Alpaydin" in note


# --- image folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5)])
def test_image_folder(tmp_path, shape):
    arrays = image_folder(tmp_path / "pets", shape=shape)
    pets = data.load(str(tmp_path / "pets"))
    assert (pets.name, pets.display, pets.classes) == ("", "pets", ("cat", "dog"))
    assert pets.image_size == (3 if len(shape) == 3 else 1, 6, 5)
    assert pets.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for k, name in enumerate(["cat/0", "cat/1", "cat/2", "dog/0", "dog/1", "dog/2"]):
        want = torch.from_numpy(arrays[f"test/{name}.png"]).view(6, 5, -1).permute(2, 0, 1)
        assert torch.equal(pets.test.images[k], want)


def test_numeric_class_names_sort_as_numbers(tmp_path):
    image_folder(tmp_path, classes=("10", "2", "1"), count=1)
    assert data.load(str(tmp_path)).classes == ("1", "2", "10")
    assert pictures.in_order(["10", "2", "cat"]) == ("10", "2", "cat")
    assert pictures.in_order(["02", "2", "1"]) == ("1", "02", "2")


def test_a_folder_may_be_the_current_one_and_classes_may_have_subfolders(tmp_path, monkeypatch):
    arrays = image_folder(tmp_path / "pets")
    (tmp_path / "pets/train/cat/0.png").rename(tmp_path / "pets/train/cat/3.PNG")
    (tmp_path / "pets/train/cat/more").mkdir()
    (tmp_path / "pets/train/cat/1.png").rename(tmp_path / "pets/train/cat/more/0.png")
    monkeypatch.chdir(tmp_path / "pets")
    here, there = data.load("."), data.load("../pets")
    assert (here.display, here.hashes) == ("pets", there.hashes)
    assert here.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    last = torch.from_numpy(arrays["train/cat/1.png"]).permute(2, 0, 1)
    assert torch.equal(here.train.images[2], last)


def test_other_files_are_no_images(tmp_path):
    image_folder(tmp_path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("none")
    (tmp_path / "train" / "cat" / ".hidden.png").write_text("none")
    (tmp_path / "train" / ".thumbnails").mkdir()
    assert len(data.load(str(tmp_path)).train) == 6


def broken(tmp_path, change):
    image_folder(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError) as caught:
        data.load(str(tmp_path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(path, array_or_bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(array_or_bytes if isinstance(array_or_bytes, bytes) else encoded(array_or_bytes))


FOLDER_FAULTS = {
    "corrupt": (lambda r: put(r / "train/cat/1.png", b"\x89PNG broken"), "train/cat/1.png is no readable image"),
    "truncated": (
        lambda r: put(r / "train/cat/1.png", encoded(pixels(6, 5, 3), "JPEG")[:-60]),
        "train/cat/1.png is no readable image",
    ),
    "empty file": (lambda r: put(r / "test/dog/0.png", b""), "test/dog/0.png is no readable image"),
    "size": (
        lambda r: put(r / "train/dog/0.png", pixels(7, 5, 3)),
        "train/dog/0.png is 5x7 RGB, expected 5x6 RGB as the first image",
    ),
    "mode": (
        lambda r: put(r / "train/dog/0.png", pixels(6, 5)),
        "train/dog/0.png is 5x6 grey, expected 5x6 RGB as the first image",
    ),
    "alpha": (lambda r: put(r / "train/dog/0.png", pixels(6, 5, 4)), "train/dog/0.png is of mode RGBA; expected L"),
    "class": (lambda r: put(r / "test/fish/0.png", pixels(6, 5, 3)), "other classes in test.*'fish' only in test"),
    "empty class": (lambda r: (r / "train/fish").mkdir(), "train/fish holds no image"),
    "test size": (
        lambda r: [put(path, pixels(9, 9, 3)) for path in sorted(r.glob("test/*/*.png"))],
        "test images of 3x9x9, expected 3x6x5",
    ),
    "no test": (lambda r: [path.unlink() for path in r.glob("test/*/*.png")], r"no test split \(found: train\)"),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_image_folder_faults(tmp_path, fault):
    change, message = FOLDER_FAULTS[fault]
    with pytest.raises(DataError, match=message):
        raise DataError(broken(tmp_path, change))


def test_one_class_is_refused(tmp_path):
    image_folder(tmp_path, classes=("cat",))
    with pytest.raises(DataError, match="has the one class 'cat'; expected at least 2"):
        data.load(str(tmp_path))


def test_a_picture_that_would_start_another_program_is_refused(tmp_path):
    message = broken(
        tmp_path, lambda r: put(r / "train/cat/0.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n")
    )
    assert "cannot identify image file" in message


@pytest.mark.parametrize("count", [10**6, 10**12])
def test_images_too_many_for_the_memory(count):
    with pytest.raises(DataError, match=f"{count} images of 1000000x1000000 grey do not fit into memory"):
        pictures._room(count, (10**6, 10**6))


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
    "truncated": (lambda r: spoil(r, 200), "train-00000-of-00001.parquet is no readable parquet file"),
    "empty file": (lambda r: spoil(r, 0), "is no readable parquet file"),
    "missing": (lambda r: (r / "test-00000-of-00001.parquet").unlink(), r"no test split \(found: train\)"),
    "row": (
        lambda r: replace_train(r, [], [0, 1], names=TWO, blobs=[encoded(pixels(6, 5, 3)), b"junk"]),
        "row 1 of .*train-00000-of-00001.parquet is no readable image",
    ),
    "no bytes": (
        lambda r: replace_train(r, [], [0, 1], names=TWO, blobs=[encoded(pixels(6, 5, 3)), None]),
        "row 1 of .* is no readable image",
    ),
    "label": (
        lambda r: replace_train(r, pixels(2, 6, 5, 3), [0, 2], names=TWO),
        "train split of .* has the label 2; expected 0 to 1",
    ),
    "negative": (
        lambda r: replace_train(r, pixels(2, 6, 5, 3), [0, -1], names=TWO),
        "train split of .* has the label -1; expected 0 to 1",
    ),
    "null": (lambda r: replace_train(r, pixels(2, 6, 5, 3), [0, None], names=TWO), "row 1 of .* has the label None"),
    "fraction": (lambda r: replace_train(r, pixels(2, 6, 5, 3), [0, 0.5], names=TWO), "row 0 of .* has the label 0.0"),
    "column": (
        lambda r: replace_train(r, pixels(2, 6, 5, 3), [0, 1], names=TWO, image="picture"),
        "has the columns picture, label; expected img or image",
    ),
    "no struct": (
        lambda r: pq.write_table(
            pa.table({"img": ["a", "b"], "label": [0, 1]}).replace_schema_metadata(
                table(pixels(1, 6, 5, 3), [0], names=TWO).schema.metadata
            ),
            r / "train-00000-of-00001.parquet",
        ),
        "has string in img; expected a struct of bytes and path",
    ),
    "classes": (
        lambda r: replace_train(r, pixels(2, 6, 5, 3), [0, 1], names=("cat", "cow")),
        "other classes in test than in train .'cow' only in train; 'dog' only in test",
    ),
    "order": (
        lambda r: replace_train(r, pixels(2, 6, 5, 3), [0, 1], names=("dog", "cat")),
        "other classes in test than in train .train in the order dog, cat",
    ),
    "empty": (
        lambda r: pq.write_table(
            table(pixels(2, 6, 5, 3), [0, 1], names=TWO).slice(0, 0), r / "train-00000-of-00001.parquet"
        ),
        "the train split of .* is empty",
    ),
    "metadata": (
        lambda r: pq.write_table(
            table(pixels(2, 6, 5, 3), [0, 1]).replace_schema_metadata({"huggingface": "{"}),
            r / "train-00000-of-00001.parquet",
        ),
        "has unreadable metadata",
    ),
}


@pytest.mark.parametrize("fault", PARQUET_FAULTS)
def test_parquet_faults(tmp_path, fault):
    change, message = PARQUET_FAULTS[fault]
    parquet_folder(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
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
    names = known.known_as("CIFAR100").classes
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
    with pytest.raises(DataError, match=r"data_batch_3 asks for posix.mkdir; expected numpy arrays"):
        data.load("CIFAR10", dataroot=tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", [("builtins", "eval"), ("numpy", "load"), ("numpy", "fromfile"), ("_codecs", "encode"), ("os", "system")]
)
def test_only_the_array_constructors_are_admitted(name):
    with pytest.raises(DataError, match=f"asks for {name[0]}.{name[1]}"):
        binary._ArrayUnpickler(io.BytesIO(b"")).find_class(*name)
    assert len(binary._ADMITTED) == 4


BATCH_FAULTS = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:500]), "data_batch_2 is no readable CIFAR batch"),
    "no dictionary": (lambda path: path.write_bytes(pickle.dumps([1])), "data_batch_2 is no readable CIFAR batch"),
    "no data": (lambda path: path.write_bytes(pickle.dumps({"labels": [1]})), "data_batch_2 has no entry 'data'"),
    "no labels": (
        lambda path: path.write_bytes(python2_pickle({b"data": pixels(1, 3072)})),
        "data_batch_2 has no entry 'labels'",
    ),
    "size": (
        lambda path: path.write_bytes(python2_pickle({b"data": pixels(1, 3000), b"labels": [1]})),
        "data_batch_2 does not hold N x 3072 bytes",
    ),
    "count": (
        lambda path: path.write_bytes(python2_pickle({b"data": pixels(1, 3072), b"labels": [1, 2]})),
        "data_batch_2 does not hold N x 3072 bytes",
    ),
    "text": (
        lambda path: path.write_bytes(python2_pickle({b"data": pixels(1, 3072), b"labels": [b"1"]})),
        "data_batch_2 does not hold N x 3072 bytes and N whole labels",
    ),
    "label": (
        lambda path: path.write_bytes(python2_pickle({b"data": pixels(1, 3072), b"labels": [10]})),
        "train split of .* has the label 10; expected 0 to 9",
    ),
    "missing": (lambda path: path.unlink(), "cifar-10-batches-py lacks data_batch_2"),
}


@pytest.mark.parametrize("fault", BATCH_FAULTS)
def test_cifar_faults(tmp_path, fault):
    change, message = BATCH_FAULTS[fault]
    root = tmp_path / "cifar-10-batches-py"
    cifar10_folder(root)
    change(root / "data_batch_2")
    with pytest.raises(DataError, match=message):
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
    "huge": (lambda path: claim(path, 2**32 - 1, 2**32 - 1, 2**32 - 1), "claims .* bytes in its header but has 4720"),
    "huge, gzipped": (lambda path: gz_claim(path, 2**31, 28, 28), "claims .* bytes in its header but has 4720"),
    "short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "claims 4720 bytes in its header but has 4719"),
    "long": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "claims 4720 bytes in its header but has 4721"),
    "magic": (lambda path: path.write_bytes(b"\0\0\x0d\3" + path.read_bytes()[4:]), "is no idx file of 3-dimensional"),
    "empty": (lambda path: path.write_bytes(b""), "is no idx file of 3-dimensional"),
    "count": (lambda path: path.write_bytes(idx_bytes(pixels(5, 28, 28))), "has 5 images, .* 6 labels"),
    "missing": (lambda path: path.unlink(), "lacks train-images-idx3-ubyte"),
}


@pytest.mark.parametrize("fault", IDX_FAULTS)
def test_idx_faults(tmp_path, fault):
    change, message = IDX_FAULTS[fault]
    idx_folder(tmp_path / "MNIST" / "raw")
    change(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte")
    with pytest.raises(DataError, match=message):
        data.load("MNIST", dataroot=tmp_path)


def test_a_damaged_gzip_file_is_named(tmp_path):
    idx_folder(tmp_path, pack=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz is not readable"):
        data.load("MNIST", dataroot=tmp_path)


def test_a_gzip_file_that_lies_about_its_length_is_refused(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    packed = gzip.compress(idx_bytes(pixels(6, 28, 28))[:4] + struct.pack(">3I", 7, 28, 28) + bytes(6 * 784))
    path.write_bytes(packed[:-4] + struct.pack("<I", 16 + 7 * 784))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is not readable|claims"):
        binary._idx(path, 3)


# --- names, and where they are looked for -------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "right"), [("CIFAR11", "CIFAR10"), ("mnits", "MNIST"), ("fashion", "FashionMNIST")])
def test_an_unknown_name_gets_the_nearest(wrong, right):
    with pytest.raises(DataError, match=f"'{wrong}' is neither a folder nor a data set; did you mean {right}?"):
        data.load(wrong)


@pytest.mark.parametrize("source", ["", "  "])
def test_an_empty_name_is_no_folder(source):
    with pytest.raises(DataError, match="is neither a folder nor a data set"):
        data.load(source)


def test_a_missing_folder_is_no_name(tmp_path):
    with pytest.raises(DataError, match=r"there is no folder .*/missing"):
        data.load(str(tmp_path / "missing"))


def test_a_folder_without_data_names_the_layouts(tmp_path):
    with pytest.raises(DataError, match=r"holds no data set; expected train-\*.parquet.*cifar-10-batches-py"):
        data.load(str(tmp_path))


def test_a_folder_with_several_sets_names_them(tmp_path):
    cifar10_folder(tmp_path / "cifar-10-batches-py")
    idx_folder(tmp_path / "MNIST" / "raw")
    with pytest.raises(DataError, match=r"holds several data sets \(MNIST, CIFAR10\)"):
        data.load(str(tmp_path))
    assert data.load("MNIST", dataroot=tmp_path).name == "MNIST"


@pytest.mark.parametrize("name", ["CIFAR10", "SVHN"])
def test_a_missing_set_offline_says_how_to_provide_it(tmp_path, name):
    with pytest.raises(DataError, match=f"{name} is neither under .* nor in the cache.*--dataroot.*parquet") as caught:
        data.load(name, dataroot=tmp_path)
    assert "\n" not in str(caught.value)
    assert ("cifar-10-batches-py" in str(caught.value)) == (name == "CIFAR10")


def colour_folder(root, names=CIFAR10_NAMES, **options):
    return parquet_folder(root, names=names, shape=(32, 32, 3), **options)


@pytest.mark.parametrize("child", ["cifar10", "CIFAR-10", "cifar10-jpeg", "cifar10_png/plain_text"])
def test_dataroot_is_searched_by_name(tmp_path, child):
    colour_folder(tmp_path / child)
    cifar = data.load("CIFAR10", dataroot=tmp_path)
    assert (cifar.name, cifar.display) == ("CIFAR10", child.split("/")[0])


def test_cifar10_is_never_cifar100(tmp_path):
    colour_folder(tmp_path / "cifar100-png", names=known.known_as("CIFAR100").classes)
    with pytest.raises(DataError, match="CIFAR10 is neither"):
        data.load("CIFAR10", dataroot=tmp_path)
    assert data.load("CIFAR100", dataroot=tmp_path).name == "CIFAR100"


def test_the_exact_name_comes_first(tmp_path):
    colour_folder(tmp_path / "cifar10")
    colour_folder(tmp_path / "cifar10-a", labels=(1, 0))
    assert data.load("CIFAR10", dataroot=tmp_path).display == "cifar10"


def test_the_files_other_tools_leave_come_before_copies(tmp_path):
    cifar10_folder(tmp_path / "cifar-10-batches-py")
    colour_folder(tmp_path / "cifar10-a")
    assert len(data.load("CIFAR10", dataroot=tmp_path).train) == 20


def test_several_copies_are_not_chosen_from(tmp_path):
    colour_folder(tmp_path / "cifar10-a")
    colour_folder(tmp_path / "cifar10-b" / "plain_text")
    with pytest.raises(DataError, match=r"several copies of CIFAR10 \(.*cifar10-a and .*cifar10-b/plain_text\)"):
        data.load("CIFAR10", dataroot=tmp_path)
    (tmp_path / "cifar10-b" / "plain_text").rename(tmp_path / "cifar10-a" / "other")
    with pytest.raises(DataError, match=r"cifar10-a holds several data sets"):
        data.load("CIFAR10", dataroot=tmp_path)


def test_other_sets_below_the_dataroot_are_not_decoded(tmp_path, monkeypatch):
    colour_folder(tmp_path / "faces")
    image_folder(tmp_path, splits=("train",))
    monkeypatch.setattr(pictures, "decode", never_read)
    with pytest.raises(DataError, match="CIFAR10 is neither"):
        data.load("CIFAR10", dataroot=tmp_path)


def test_what_cannot_be_listed_is_one_line(tmp_path, monkeypatch):
    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(layouts, "_folders", refuse)
    with pytest.raises(DataError, match=r"cannot be read .*Permission denied.*; check its permissions"):
        data.load(str(tmp_path))


def test_dataroot_may_be_the_set_itself(tmp_path):
    colour_folder(tmp_path / "some")
    assert data.load("CIFAR10", dataroot=tmp_path / "some").name == "CIFAR10"
    with pytest.raises(DataError, match="CIFAR100 is neither"):
        data.load("CIFAR100", dataroot=tmp_path / "some")
    with pytest.raises(DataError, match="MNIST is neither"):
        data.load("MNIST", dataroot=tmp_path / "some")


def test_a_folder_of_that_name_with_other_content_is_refused(tmp_path):
    parquet_folder(tmp_path / "cifar10")
    with pytest.raises(DataError, match="holds 2 classes of 3x6x5 images, CIFAR10 has 10 of 3x32x32"):
        data.load("CIFAR10", dataroot=tmp_path)


def test_a_known_copy_carries_its_display_name_however_it_is_called(tmp_path, monkeypatch):
    colour_folder(tmp_path / "cifar10-x")
    copy = ("CIFAR10", "CIFAR-10 (test copy)")
    for path in (tmp_path / "cifar10-x").iterdir():
        monkeypatch.setitem(known.COPIES, sets.hashlib.sha256(path.read_bytes()).hexdigest(), copy)
    by_path, by_name = data.load(str(tmp_path / "cifar10-x")), data.load("cifar10", dataroot=tmp_path)
    assert (by_path.name, by_path.display) == (by_name.name, by_name.display) == copy
    (tmp_path / "cifar10-x").rename(tmp_path / "mnist")
    with pytest.raises(DataError, match=r"mnist holds CIFAR-10 \(test copy\), not MNIST"):
        data.load("MNIST", dataroot=tmp_path)


def test_decoded_content_is_recognised_in_any_layout(tmp_path, monkeypatch):
    arrays = idx_folder(tmp_path / "files")
    for split, part in (("train", "train"), ("test", "t10k")):
        path = tmp_path / "hub" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table(arrays[part][0], arrays[part][1].tolist(), image="image"), path)
    one, two = (data.load(str(tmp_path / name)) for name in ("files", "hub"))
    assert one.hashes == two.hashes
    assert (one.name, one.display, two.display) == ("", "files", "hub")
    for value in one.hashes.values():
        monkeypatch.setitem(known.COPIES, value, ("MNIST", "MNIST"))
    for name in ("files", "hub"):
        assert data.load(str(tmp_path / name)).display == "MNIST"


def test_recognition_by_classes_and_size(tmp_path):
    image_folder(tmp_path / "a", classes=CIFAR10_NAMES, shape=(32, 32, 3), count=1)
    image_folder(tmp_path / "b", classes=("airplane", "automobile", "bird"), shape=(32, 32, 3), count=1)
    image_folder(tmp_path / "c", classes=CIFAR10_NAMES, shape=(31, 32, 3), count=1)
    image_folder(tmp_path / "d", classes=("airplane", "car"), shape=(32, 32, 3), count=1)
    found = {name: data.load(str(tmp_path / name)) for name in "abcd"}
    assert {name: each.name for name, each in found.items()} == {"a": "CIFAR10", "b": "CIFAR10", "c": "", "d": ""}
    assert data.preparation(found["b"]) == CIFAR
    assert found["a"].display == "a"


def test_the_hashes_are_those_of_the_decoded_images():
    split = data.Split(torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2), torch.tensor([1, 0]))
    text = b"(2, 3, 2, 2)" + bytes(range(24)) + struct.pack("<2q", 1, 0)
    assert sets.content_hash(split) == sets.hashlib.sha256(text).hexdigest()


# --- the hub ------------------------------------------------------------------------------------------------------


def test_a_fetched_set_is_kept(tmp_path, monkeypatch):
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=CIFAR10_NAMES)})
    rows = {"img": [{"bytes": encoded(each), "path": None} for each in pixels(4, 32, 32, 3)], "label": [0, 9, 3, 3]}
    asked = []

    def load_dataset(*args):
        asked.append((args, datasets.config.HF_HUB_OFFLINE))
        one = datasets.Dataset.from_dict(rows, features=features)
        return datasets.DatasetDict(train=one, test=one)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    reports = []
    first = data.load("cifar10", dataroot=tmp_path, progress=lambda *report: reports.append(report))
    again = data.load("cifar10", dataroot=tmp_path)
    assert asked == [(("uoft-cs/cifar10", "plain_text"), False)]
    assert ("fetching CIFAR-10 from the hub", 0, 1) in reports
    assert ("decoding train images", 4, 4) in reports
    for cifar in (first, again):
        assert (cifar.name, cifar.display, cifar.classes) == ("CIFAR10", "CIFAR-10", tuple(CIFAR10_NAMES))
        assert torch.equal(cifar.train.images, torch.from_numpy(pixels(4, 32, 32, 3)).permute(0, 3, 1, 2))
        assert cifar.train.labels.tolist() == [0, 9, 3, 3]


def test_the_settings_of_the_hub_come_back(monkeypatch):
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE, datasets.are_progress_bars_disabled()
    with hub._settings(False, False):
        assert constants.HF_HUB_OFFLINE
        assert datasets.are_progress_bars_disabled()
    assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE, datasets.are_progress_bars_disabled()) == before


@pytest.mark.parametrize(("answer", "want"), [(True, True), (False, False), (None, False)])
def test_waiting_for_the_hub_ends(monkeypatch, answer, want):
    import threading

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "WAIT", 0.05)
    never = threading.Event()
    monkeypatch.setattr(hub, "_answers", never.wait if answer is None else lambda: answer)
    assert hub.reachable() is want
    never.set()


def test_any_answer_of_the_hub_will_do(monkeypatch):
    import urllib.error

    def refuse(error):
        def urlopen(*_args, **_options):
            raise error

        return urlopen

    for error, want in ((urllib.error.HTTPError("", 403, "", {}, io.BytesIO()), True), (OSError("no route"), False)):
        monkeypatch.setattr(hub.urllib.request, "urlopen", refuse(error))
        assert hub._answers() is want


# --- the cache ----------------------------------------------------------------------------------------------------


def cache_file(tmp_path):
    (path,) = (tmp_path / "cache").iterdir()
    return path


def never_read(*_args):
    raise AssertionError("the cache was not used")


def same(one, two):
    return one.classes == two.classes and one.hashes == two.hashes and torch.equal(one.train.images, two.train.images)


def test_the_second_load_reads_the_cache(tmp_path, monkeypatch):
    image_folder(tmp_path / "pets")
    first = data.load(str(tmp_path / "pets"))
    monkeypatch.setattr(pictures, "decode", never_read)
    second = data.load(str(tmp_path / "pets"))
    assert same(first, second)
    assert torch.equal(first.test.labels, second.test.labels)
    assert first.hashes == sets.content_hashes(second.train, second.test)


@pytest.mark.parametrize("damage", ["truncated", "empty", "pixel", "classes", "junk"])
def test_a_damaged_cache_is_rebuilt(tmp_path, damage):
    image_folder(tmp_path / "pets")
    first = data.load(str(tmp_path / "pets"))
    path = cache_file(tmp_path)
    good = path.read_bytes()
    bad = {
        "truncated": good[:-7],
        "empty": b"",
        "pixel": good[:-100] + bytes([good[-100] ^ 1]) + good[-99:],
        "classes": good.replace(b"cat", b"cow"),
        "junk": b"junk" * 100,
    }[damage]
    assert bad != good
    path.write_bytes(bad)
    assert same(first, data.load(str(tmp_path / "pets")))
    assert path.read_bytes() == good


def test_a_cache_file_under_another_name_is_not_believed(tmp_path):
    image_folder(tmp_path / "pets")
    data.load(str(tmp_path / "pets"))
    path = cache_file(tmp_path)
    assert cache.read(path.stem) is not None
    path.rename(path.with_stem("hub-cifar10-v1"))
    assert cache.read("hub-cifar10-v1") is None


def test_other_content_is_decoded_anew(tmp_path):
    image_folder(tmp_path / "pets")
    first = data.load(str(tmp_path / "pets"))
    put(tmp_path / "pets/train/cat/0.png", pixels(6, 5, 3, seed=99))
    assert data.load(str(tmp_path / "pets")).hashes["train"] != first.hashes["train"]
    (tmp_path / "pets" / "train" / "cat").rename(tmp_path / "pets" / "train" / "eel")
    (tmp_path / "pets" / "test" / "cat").rename(tmp_path / "pets" / "test" / "eel")
    assert data.load(str(tmp_path / "pets")).classes == ("dog", "eel")


def test_a_moved_folder_is_not_decoded_again(tmp_path, monkeypatch):
    image_folder(tmp_path / "pets")
    first = data.load(str(tmp_path / "pets"))
    (tmp_path / "pets").rename(tmp_path / "animals")
    monkeypatch.setattr(pictures, "decode", never_read)
    moved = data.load(str(tmp_path / "animals"))
    assert same(first, moved)
    assert moved.display == "animals"


def test_another_format_version_is_another_key(monkeypatch):
    before = cache.key("idx", {"a": "b"})
    assert before == cache.key("idx", {"a": "b"})
    assert before != cache.key("cifar10", {"a": "b"})
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    assert before != cache.key("idx", {"a": "b"})


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    image_folder(tmp_path / "pets")

    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.load(str(tmp_path / "pets"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_warns(tmp_path, monkeypatch):
    image_folder(tmp_path / "pets")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PERTURBLAB_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="decoded images are not kept"):
        assert len(data.load(str(tmp_path / "pets")).train) == 6


def test_the_cache_lies_in_the_home_folder_by_default(monkeypatch):
    monkeypatch.delenv("PERTURBLAB_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "perturblab"


# --- choosing classes, subsets, hold-out --------------------------------------------------------------------------


def test_select_classes_renumbers_in_the_order_given():
    whole = image_data(name="CIFAR10", count=9)
    chosen = data.select_classes(whole, ["c", " a"])
    assert (chosen.classes, chosen.name, chosen.display) == (("c", "a"), "CIFAR10", "some, 2 classes")
    assert chosen.train.labels.tolist() == [1, 0, 1, 0, 1, 0]
    for new, old in ((0, 2), (1, 0)):
        got = chosen.test.images[chosen.test.labels == new]
        assert torch.equal(got, whole.test.images[whole.test.labels == old])
    assert chosen.hashes == sets.content_hashes(chosen.train, chosen.test)
    assert data.preparation(chosen) == CIFAR
    assert data.select_classes(whole, ["a", "b", "c"]) is whole


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "x"], "some has no class 'x'; its classes are a, b, c"),
        (["a"], "expected at least 2 different ones"),
        (["a", "a"], "expected at least 2 different ones"),
        (["a", "b", "a"], "expected at least 2 different ones"),
        ([], "expected at least 2 different ones"),
    ],
)
def test_select_classes_refuses(names, message):
    with pytest.raises(DataError, match=message):
        data.select_classes(image_data(), names)


def test_classes_without_images_are_refused():
    whole = image_data(classes=("a", "b", "c", "d", "e", "f", "g", "h"))
    with pytest.raises(DataError, match="the train split of some with the classes g, h is empty"):
        data.select_classes(whole, ["g", "h"])


def test_combine_takes_train_from_one_and_test_from_the_other():
    one, two = image_data(name="CIFAR10", display="one"), image_data(classes=("c", "a", "b"), display="two")
    both = data.combine(one, two)
    assert (both.name, both.display, both.classes) == ("CIFAR10", "one / two", ("a", "b", "c"))
    assert both.train is one.train
    assert torch.equal(both.test.images, two.test.images)
    assert [both.classes[k] for k in both.test.labels] == [two.classes[k] for k in two.test.labels]
    assert both.hashes == sets.content_hashes(both.train, both.test)
    assert data.combine(one, one).display == "one"


def test_combine_refuses_other_classes_and_sizes():
    with pytest.raises(DataError, match="'c' only in train; 'd' only in test"):
        data.combine(image_data(), image_data(classes=("a", "b", "d")))
    with pytest.raises(DataError, match="has test images of 3x5x4, expected 3x4x4"):
        data.combine(image_data(), image_data(size=(3, 5, 4)))


COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any)


@given(COUNTS, st.data())
def test_subsets_are_stratified(counts, draws):
    size = draws.draw(st.integers(1, sum(counts)))
    whole = random_split(counts)
    part = data.stratified_subset(whole, size, generator(1))
    assert len(part) == size
    got = torch.bincount(part.labels, minlength=len(counts)).tolist()
    for have, count in zip(got, counts, strict=True):
        exact = size * count / sum(counts)
        assert math.floor(exact) <= have <= math.ceil(exact)
    positions = part.images.flatten().view(torch.int32)
    assert positions.tolist() == sorted(set(positions.tolist()))
    assert torch.equal(part.labels, whole.labels[positions.long()])


@given(COUNTS.filter(lambda counts: sum(counts) > 1), st.data())
def test_held_out_and_rest_divide_the_whole(counts, draws):
    size = draws.draw(st.integers(1, sum(counts) - 1))
    whole = random_split(counts)
    rest, held = data.hold_out(whole, size, generator(2))
    assert (len(rest), len(held)) == (len(whole) - size, size)
    positions = torch.cat([part.images.flatten().view(torch.int32) for part in (rest, held)])
    assert sorted(positions.tolist()) == list(range(len(whole)))
    assert torch.equal(torch.cat((rest.labels, held.labels)), whole.labels[positions.long()])
    expected = data.stratified_subset(whole, size, generator(2))
    assert torch.equal(held.images, expected.images)


@given(COUNTS, st.data())
def test_shares_are_the_largest_remainders(counts, draws):
    from fractions import Fraction

    size = draws.draw(st.integers(0, sum(counts)))
    exact = [Fraction(size * count, sum(counts)) for count in counts]
    got = sets.shares(counts, size)
    assert sum(got) == size
    raised = [share - int(share) for share, have in zip(exact, got, strict=True) if have > int(share)]
    kept = [share - int(share) for share, have in zip(exact, got, strict=True) if have == int(share)]
    assert min(raised, default=1) >= max(kept, default=0)


def test_splits_follow_the_seed():
    whole = random_split([40, 40])
    one, again, other = (data.stratified_subset(whole, 20, generator(seed)).images for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("size", [0, -1, 11])
def test_impossible_subsets_are_refused(size):
    with pytest.raises(DataError, match=f"a subset of {size} images is asked for; expected 1 to 10"):
        data.stratified_subset(random_split([5, 5]), size, generator())


@pytest.mark.parametrize("size", [0, 10])
def test_impossible_hold_outs_are_refused(size):
    with pytest.raises(DataError, match=f"{size} images are to be held out; expected 1 to 9"):
        data.hold_out(random_split([5, 5]), size, generator())


# --- preparation, normalisation, augmentation ---------------------------------------------------------------------


def test_published_constants():
    assert data.preparation(image_data("CIFAR10")) == data.preparation(image_data("CIFAR100")) == CIFAR
    assert data.preparation(image_data("MNIST", size=(1, 4, 4))) == data.Preparation((0.1307,), (0.3081,))


@pytest.mark.parametrize("name", ["", "SVHN", "FashionMNIST", "digits"])
def test_other_sets_get_their_own_mean_and_std(name):
    some = image_data(name, count=7)
    prep = data.preparation(some)
    scaled = some.train.images.double() / 255
    assert prep.mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert prep.std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist(), rel=1e-12)
    assert (prep.crop_padding, prep.flip) == (0, False)


def test_a_constant_channel_is_divided_by_one():
    split = data.Split(torch.full((4, 1, 2, 2), 51, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    prep = data.preparation(data.ImageData("", "flat", ("a", "b"), split, split, {}))
    assert (prep.mean, prep.std) == ((0.2,), (1.0,))


def test_normalise_is_the_formula():
    images = torch.from_numpy(pixels(3, 3, 4, 5))
    got = data.normalise(images, CIFAR)
    assert got.dtype == torch.float32
    for n, c, y, x in np.ndindex(*images.shape):
        want = (int(images[n, c, y, x]) / 255 - CIFAR.mean[c]) / CIFAR.std[c]
        assert got[n, c, y, x].item() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize(("padding", "flip"), [(4, True), (4, False), (0, True), (1, True)])
@pytest.mark.parametrize("size", [(3, 8, 8), (1, 7, 10), (3, 5, 4)])
def test_augment_is_the_loop(count, padding, flip, size):
    prep = data.Preparation((0.5,), (0.5,), crop_padding=padding, flip=flip)
    images = torch.from_numpy(pixels(count, *size))
    got = data.augment(images, prep, generator(3))
    offsets, flips = draw(count, prep, generator(3))
    assert got.dtype == torch.uint8
    assert got.shape == images.shape
    _, height, width = size
    for n, c, y, x in np.ndindex(*images.shape):
        column = width - 1 - x if flips[n] else x
        row, column = y + int(offsets[0, n]) - padding, column + int(offsets[1, n]) - padding
        inside = 0 <= row < height and 0 <= column < width
        assert got[n, c, y, x] == (images[n, c, row, column] if inside else 0)


def test_augment_without_anything_to_do_draws_nothing():
    images, source = torch.from_numpy(pixels(2, 1, 4, 4)), generator()
    before = source.get_state()
    assert data.augment(images, data.Preparation((0.1,), (0.3,)), source) is images
    assert torch.equal(before, source.get_state())


def test_augment_follows_the_seed_and_keeps_its_input():
    images = torch.from_numpy(pixels(8, 3, 8, 8))
    before = images.clone()
    one, again, other = (data.augment(images, CIFAR, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(images, before)


def test_crops_are_uniform_and_half_are_flipped():
    count = 81 * 200
    offsets, flips = draw(count, CIFAR, generator())
    places = torch.bincount(offsets[0] * 9 + offsets[1], minlength=81)
    # 200 expected at each of 81 places; five standard deviations of a binomial count are 70.
    assert len(places) == 81
    assert 130 <= int(places.min()) <= int(places.max()) <= 270
    assert abs(int(flips.sum()) - count / 2) < 5 * math.sqrt(count) / 2
    # Offsets and flips are independent: the flips at each place are about half, too.
    share = torch.bincount(offsets[0], weights=flips.double(), minlength=9) / torch.bincount(offsets[0], minlength=9)
    assert share.sub(0.5).abs().max() < 0.06


def test_every_pixel_moves_with_its_image():
    images = torch.arange(1, 6, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 6, 6).contiguous()
    moved = data.augment(images, CIFAR, generator())
    for k in range(5):
        assert set(moved[k].unique().tolist()) <= {0, k + 1}


# --- checks and small parts ---------------------------------------------------------------------------------------


def test_split_and_image_data_describe_themselves():
    some = image_data(size=(3, 4, 5))
    assert len(some.train) == 6
    assert some.image_size == (3, 4, 5)


def test_progress_is_told(tmp_path):
    image_folder(tmp_path / "pets")
    reports = []
    data.load(str(tmp_path / "pets"), progress=lambda *report: reports.append(report))
    assert reports[0] == ("decoding train images", 0, 6)
    assert reports[-1] == ("decoding test images", 6, 6)


def test_the_public_names_are_there():
    assert sorted(data.__all__) == data.__all__
    assert all(hasattr(data, name) for name in data.__all__)


def test_every_kind_of_source_has_a_reader(tmp_path):
    from perturblab.data import loading

    parquet_folder(tmp_path / "a")
    image_folder(tmp_path / "b")
    idx_folder(tmp_path / "c")
    cifar10_folder(tmp_path / "d")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "train").write_bytes(b"")
    kinds = {source.kind for child in "abcde" for source in layouts.sources(tmp_path / child)}
    assert kinds == set(loading._READERS)
