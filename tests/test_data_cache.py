"""Sets from the Hub and the cache of decoded images, without a network."""

import io
from pathlib import Path

import pytest
import torch

from data_folders import CIFAR10_NAMES, encoded, image_folder, never_read, pixels, put
from perturblab import data
from perturblab.data import cache, hub, pictures, sets
from perturblab.system.files import cache_folder
from told import in_order

pytestmark = pytest.mark.usefixtures("own_cache")


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
    with pytest.warns(UserWarning, match=in_order("cache images writable")):
        assert len(data.load(str(tmp_path / "pets")).train) == 6


def test_the_cache_lies_in_the_home_folder_by_default(monkeypatch):
    monkeypatch.delenv("PERTURBLAB_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "perturblab"
