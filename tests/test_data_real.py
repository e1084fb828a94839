"""`perturblab.data` on the real data in ../shared/data: what the small made-up sets cannot show."""

import hashlib
import struct
from pathlib import Path

import pytest
import torch

from perturblab import data
from perturblab.data import pictures

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
pytestmark = [
    pytest.mark.shared_data,
    pytest.mark.skipif(not SHARED.is_dir(), reason="NOT TESTED ON REAL DATA: ../shared/data is missing"),
]


def load(name, made_once):
    """Decode a set in one process; the others find it in the cache, which they have in common."""
    made_once(f"real-{name}", lambda folder: data.load(name, dataroot=SHARED))
    return data.load(name, dataroot=SHARED)


@pytest.fixture(scope="module")
def cifar(made_once):
    return load("CIFAR10", made_once)


@pytest.fixture(scope="module")
def mnist(made_once):
    return load("MNIST", made_once)


def test_cifar10(cifar):
    assert (cifar.name, cifar.display, cifar.image_size) == ("CIFAR10", "CIFAR-10 (JPEG copy)", (3, 32, 32))
    assert (len(cifar.train), len(cifar.test)) == (50_000, 10_000)
    names = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"
    assert cifar.classes == tuple(names.split(","))
    assert torch.bincount(cifar.train.labels).tolist() == [5000] * 10
    assert torch.bincount(cifar.test.labels).tolist() == [1000] * 10


@pytest.mark.parametrize("name", ["cifar10", str(SHARED / "cifar10-jpeg")])
def test_name_and_path_are_one_data_set_read_from_the_cache(cifar, monkeypatch, name):
    def never(*_args):
        raise AssertionError("decoded again")

    monkeypatch.setattr(pictures, "decode", never)
    again = data.load(name, dataroot=SHARED)
    assert (again.name, again.display, again.classes) == (cifar.name, cifar.display, cifar.classes)
    assert again.hashes == cifar.hashes
    for one, two in ((again.train, cifar.train), (again.test, cifar.test)):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)


def test_cifar10_is_close_to_its_published_mean(cifar):
    # Every ninth image: the rows go round the ten classes in turn, so every tenth would be airplanes only.
    mean = cifar.train.images[::9].float().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx(data.preparation(cifar).mean, abs=5e-3)


def test_cifar3(cifar):
    three = data.select_classes(cifar, ["airplane", "automobile", "bird"])
    assert (three.name, len(three.train), len(three.test)) == ("CIFAR10", 15_000, 3_000)
    assert data.preparation(three) == data.preparation(cifar)


def test_mnist(mnist):
    assert (mnist.name, mnist.display, mnist.image_size) == ("MNIST", "MNIST", (1, 28, 28))
    assert (len(mnist.train), len(mnist.test)) == (60_000, 10_000)
    assert mnist.classes == tuple("0123456789")
    assert data.load(str(SHARED / "mnist")).display == "MNIST"


def test_mnist_is_the_original_bit_for_bit(mnist):
    images = struct.pack(">4I", 2051, 60_000, 28, 28) + mnist.train.images.numpy().tobytes()
    labels = struct.pack(">2I", 2049, 60_000) + mnist.train.labels.to(torch.uint8).numpy().tobytes()
    assert hashlib.md5(images).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"
    assert hashlib.md5(labels).hexdigest() == "a25bea736e30d166cdddb491f175f624"


def test_mnist_as_idx_files_is_recognised_too(mnist, tmp_path):
    for part, split in (("train", mnist.train), ("t10k", mnist.test)):
        header = struct.pack(">4I", 2051, len(split), 28, 28), struct.pack(">2I", 2049, len(split))
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(header[0] + split.images.numpy().tobytes())
        labels = split.labels.to(torch.uint8).numpy().tobytes()
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(header[1] + labels)
    copy = data.load(str(tmp_path))
    assert (copy.name, copy.display, copy.hashes) == ("MNIST", "MNIST", mnist.hashes)
