"""`perturblab.data`: the digits, image folders, names, recognition, small parts; all without a network."""

import os
import re
import struct
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from data_folders import (
    CIFAR,
    CIFAR10_NAMES,
    cifar10_folder,
    encoded,
    idx_folder,
    image_data,
    image_folder,
    never_read,
    parquet_folder,
    pixels,
    put,
    table,
)
from perturblab import data
from perturblab.data import known, layouts, pictures, sets
from perturblab.errors import DataError
from told import in_order

pytestmark = pytest.mark.usefixtures("own_cache")


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
    assert pictures.sort_classes(["10", "2", "cat"]) == ("10", "2", "cat")
    assert pictures.sort_classes(["02", "2", "1"]) == ("1", "02", "2")


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


FOLDER_FAULTS = {
    "corrupt": (lambda r: put(r / "train/cat/1.png", b"\x89PNG broken"), "train/cat/1.png image"),
    "truncated": (
        lambda r: put(r / "train/cat/1.png", encoded(pixels(6, 5, 3), "JPEG")[:-60]),
        "train/cat/1.png image",
    ),
    "empty file": (lambda r: put(r / "test/dog/0.png", b""), "test/dog/0.png image"),
    "size": (
        lambda r: put(r / "train/dog/0.png", pixels(7, 5, 3)),
        "train/dog/0.png 5x7 RGB 5x6 RGB first image",
    ),
    "mode": (
        lambda r: put(r / "train/dog/0.png", pixels(6, 5)),
        "train/dog/0.png 5x6 grey 5x6 RGB first image",
    ),
    "alpha": (lambda r: put(r / "train/dog/0.png", pixels(6, 5, 4)), "train/dog/0.png RGBA L"),
    "class": (lambda r: put(r / "test/fish/0.png", pixels(6, 5, 3)), "classes fish test"),
    "empty class": (lambda r: (r / "train/fish").mkdir(), "train/fish images"),
    "test size": (
        lambda r: [put(path, pixels(9, 9, 3)) for path in sorted(r.glob("test/*/*.png"))],
        "images 3x9x9 3x6x5",
    ),
    "no test": (lambda r: [path.unlink() for path in r.glob("test/*/*.png")], "test split train"),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_image_folder_faults(tmp_path, fault):
    change, message = FOLDER_FAULTS[fault]
    with pytest.raises(DataError, match=in_order(message)):
        raise DataError(broken(tmp_path, change))


def test_one_class_is_refused(tmp_path):
    image_folder(tmp_path, classes=("cat",))
    with pytest.raises(DataError, match=in_order("cat 2")):
        data.load(str(tmp_path))


def test_a_picture_that_would_start_another_program_is_refused(tmp_path):
    message = broken(
        tmp_path, lambda r: put(r / "train/cat/0.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n")
    )
    assert re.search(in_order("train/cat/0.png identify image"), message)


@pytest.mark.parametrize("count", [10**6, 10**12])
def test_images_too_many_for_the_memory(count):
    with pytest.raises(DataError, match=in_order(f"{count} images 1000000x1000000 grey memory")):
        pictures._allocate(count, (10**6, 10**6))


# --- names, and where they are looked for -------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "right"), [("CIFAR11", "CIFAR10"), ("mnits", "MNIST"), ("fashion", "FashionMNIST")])
def test_an_unknown_name_gets_the_nearest(wrong, right):
    with pytest.raises(DataError, match=in_order(f"{wrong} folder data set {right}")):
        data.load(wrong)


def test_a_folder_without_data_names_the_layouts(tmp_path):
    with pytest.raises(DataError, match=in_order("train-*.parquet cifar-10-batches-py")):
        data.load(str(tmp_path))


def test_a_folder_with_several_sets_names_them(tmp_path):
    cifar10_folder(tmp_path / "cifar-10-batches-py")
    idx_folder(tmp_path / "MNIST" / "raw")
    with pytest.raises(DataError, match=in_order("several (MNIST CIFAR10)")):
        data.load(str(tmp_path))
    assert data.load("MNIST", dataroot=tmp_path).name == "MNIST"


@pytest.mark.parametrize("name", ["CIFAR10", "SVHN"])
def test_a_missing_set_offline_says_how_to_provide_it(tmp_path, name):
    with pytest.raises(DataError, match=in_order(f"{name} cache --dataroot parquet")) as caught:
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
    colour_folder(tmp_path / "cifar100-png", names=known.find_known("CIFAR100").classes)
    with pytest.raises(DataError, match=in_order("CIFAR10 cache --dataroot")):
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
    with pytest.raises(DataError, match=in_order("copies CIFAR10 cifar10-a cifar10-b/plain_text")):
        data.load("CIFAR10", dataroot=tmp_path)
    (tmp_path / "cifar10-b" / "plain_text").rename(tmp_path / "cifar10-a" / "other")
    with pytest.raises(DataError, match=in_order("cifar10-a several sets")):
        data.load("CIFAR10", dataroot=tmp_path)


def test_other_sets_below_the_dataroot_are_not_decoded(tmp_path, monkeypatch):
    colour_folder(tmp_path / "faces")
    image_folder(tmp_path, splits=("train",))
    monkeypatch.setattr(pictures, "decode", never_read)
    with pytest.raises(DataError, match=in_order("CIFAR10 cache --dataroot")):
        data.load("CIFAR10", dataroot=tmp_path)


def test_what_cannot_be_listed_is_one_line(tmp_path, monkeypatch):
    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(layouts, "_folders", refuse)
    with pytest.raises(DataError, match=in_order("Permission denied permissions")):
        data.load(str(tmp_path))


def test_dataroot_may_be_the_set_itself(tmp_path):
    colour_folder(tmp_path / "some")
    assert data.load("CIFAR10", dataroot=tmp_path / "some").name == "CIFAR10"
    with pytest.raises(DataError, match=in_order("CIFAR100 cache --dataroot")):
        data.load("CIFAR100", dataroot=tmp_path / "some")
    with pytest.raises(DataError, match=in_order("MNIST cache --dataroot")):
        data.load("MNIST", dataroot=tmp_path / "some")


def test_a_folder_of_that_name_with_other_content_is_refused(tmp_path):
    parquet_folder(tmp_path / "cifar10")
    with pytest.raises(DataError, match=in_order("2 3x6x5 images CIFAR10 10 3x32x32")):
        data.load("CIFAR10", dataroot=tmp_path)


def test_a_known_copy_carries_its_display_name_however_it_is_called(tmp_path, monkeypatch):
    colour_folder(tmp_path / "cifar10-x")
    copy = ("CIFAR10", "CIFAR-10 (test copy)")
    for path in (tmp_path / "cifar10-x").iterdir():
        monkeypatch.setitem(known.COPIES, sets.hashlib.sha256(path.read_bytes()).hexdigest(), copy)
    by_path, by_name = data.load(str(tmp_path / "cifar10-x")), data.load("cifar10", dataroot=tmp_path)
    assert (by_path.name, by_path.display) == (by_name.name, by_name.display) == copy
    (tmp_path / "cifar10-x").rename(tmp_path / "mnist")
    with pytest.raises(DataError, match=in_order("CIFAR-10 (test copy) MNIST")):
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
    kinds = {source.kind for child in "abcde" for source in layouts.find_sources(tmp_path / child)}
    assert kinds == set(loading._READERS)
