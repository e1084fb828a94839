"""`perturblab.runs.open`: what a run leaves in its folder; auditing and test labels change nothing in it."""

import base64
import io
import json
import math
import re
import socket
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from attack_runs import TEST
from perturblab import data
from perturblab.errors import NonFiniteError, UserError
from perturblab.layers import Masks
from perturblab.records import store
from perturblab.records.config import TrainConfig
from perturblab.runs import checkpoint, open, train
from perturblab.seeding import stream
from perturblab.system.terminal import Show
from run_folders import (
    AUGMENTED,
    FILES,
    QUIET,
    Finished,
    config,
    executed,
    metrics,
    opened,
    record_of,
    results,
    same,
    untimed,
    weights,
)
from told import in_order

# --- the folder ------------------------------------------------------------------------------------------------------


def test_the_folder_holds_what_the_contract_says_and_no_more(finished: Finished) -> None:
    assert {path.name for path in finished.folder.iterdir()} == FILES


def test_nothing_is_written_before_the_run_is_executed(tmp_path: Path) -> None:
    opened(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_record_is_valid_and_is_what_execute_returns(finished: Finished) -> None:
    assert record_of(finished.folder) == finished.record
    assert store.load_all(finished.folder) == [finished.record]
    assert finished.record.status == "finished"
    assert finished.record.seed == 1
    assert finished.record.seconds > 0


def test_weights_are_those_of_the_last_epoch_masks_included(finished: Finished) -> None:
    have = weights(finished.folder)
    assert same(have, finished.run.model.state_dict())
    masks = [name for name, part in finished.run.model.named_modules() if isinstance(part, Masks)]
    assert len(masks) == 2
    assert {f"{name}.stored" for name in masks} <= have.keys()


def test_metrics_have_one_line_an_epoch_with_finite_numbers(finished: Finished) -> None:
    rows = metrics(finished.folder)
    assert [row["epoch"] for row in rows] == list(range(13))
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    for row in rows:
        assert all(math.isfinite(value) for value in row.values())
        assert row["lr"] == 0.02  # digits have no published schedule
        assert all(0 <= row[name] <= 100 for name in ("train_accuracy", "val_accuracy", "exact", "batch_mean"))
        assert row["total"] == TEST
        assert row["images_per_second"] == pytest.approx(150 / row["seconds"])
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_metrics_without_validation_and_audit(tmp_path: Path) -> None:
    executed(tmp_path / "run")
    rows = metrics(tmp_path / "run")
    assert [(row["val_loss"], row["val_accuracy"]) for row in rows] == [(None, None)] * 3
    assert not any("smoothed" in row for row in rows)
    assert [("exact" in row) for row in rows] == [False, False, True], "test images are counted after the last epoch"


def test_progress_is_a_picture_of_every_curve(finished: Finished) -> None:
    root = ET.parse(finished.folder / "progress.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = {" ".join("".join(node.itertext()).split()) for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"loss", "train", "validation", "test, exact", "test, smoothed", "test, batch mean"} <= words


def test_the_checkpoint_opens_without_executing_anything(finished: Finished) -> None:
    saved = checkpoint.load_checkpoint(finished.folder / "checkpoint.pt")
    assert same(saved["model"], weights(finished.folder))
    assert saved["rows"] == metrics(finished.folder)
    assert saved["state"]["epoch"] == 13


def test_pictures_of_the_masks(finished: Finished) -> None:
    """Black is the lowest value of the first mask and white the highest."""
    layers = {name: part for name, part in finished.run.model.named_modules() if isinstance(part, Masks)}
    assert [mask.layer for mask in finished.record.masks] == list(layers)
    for mask in finished.record.masks:
        value = layers[mask.layer].value
        picture = Image.open(io.BytesIO(base64.b64decode(mask.png)))
        first = value[0, 0].numpy()
        assert mask.shape == list(value.shape)
        assert picture.mode == "L"
        gray = np.asarray(picture)
        assert gray.shape == first.shape
        assert (gray.min(), gray.max()) == (0, 255)
        np.testing.assert_allclose(gray, 255 * (first - first.min()) / (first.max() - first.min()), atol=0.501)


def test_parameters_and_data_in_the_record(finished: Finished) -> None:
    record, model = finished.record, finished.run.model
    assert record.parameters.trainable == sum(p.numel() for p in model.parameters())
    assert record.parameters.frozen == 0
    assert record.parameters.masks == sum(m.value.numel() for m in model.modules() if isinstance(m, Masks))
    assert record.data.sizes == {"train": 150, "val": 50, "test": TEST}
    assert record.data.classes == [str(k) for k in range(10)]
    assert record.data.train == record.data.test == record.data.recognised == "digits"
    assert record.data.hashes == dict(data.load("digits").hashes)


def leaves(value: Any) -> Iterator[str]:
    """Every text in nested plain data, keys included."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from (name, *leaves(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("form", ["a name", "a folder"])
def test_no_place_of_the_machine_is_in_a_record(form: str, tmp_path: Path, pictures: Path) -> None:
    dataset = {"a name": "digits", "a folder": str(pictures)}[form]
    places = {"dataroot": str(tmp_path / "here"), "out": str(tmp_path / "run")}
    executed(tmp_path / "run", dataset_train=dataset, train_size=None, nepochs=1, nthreads=1, **places)
    content = json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))
    for mask in content["masks"]:
        del mask["png"]  # base64 may hold any run of letters and slashes by chance
    texts = list(leaves(content))
    secrets = [str(tmp_path), str(pictures.parent), str(Path.home()), str(Path.cwd()), socket.gethostname()]
    for text in texts:
        assert not any(secret in text for secret in secrets if len(secret) > 1), text
        assert not re.search(r"(^|[\s'\"=:])(/\w|~|[A-Za-z]:\\)", text), text
    assert not {"dataroot", "out", "resume"} & set(texts)


# --- splits and streams ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train_size", "val_size", "want"),
    [(None, 0, (1200, 0)), (200, 0, (200, 0)), (None, 100, (1100, 100)), (200, 50, (150, 50))],
)
def test_sizes_of_the_splits(train_size: int | None, val_size: int, want: tuple[int, int], tmp_path: Path) -> None:
    run = opened(tmp_path / "run", train_size=train_size, val_size=val_size)
    assert (len(run.training), len(run.validation or ())) == want
    assert len(run.images.test) == TEST
    known = {image.tobytes() for image in run.images.train.images.numpy()}
    parts = [{image.tobytes() for image in part.images.numpy()} for part in (run.training, run.validation) if part]
    assert all(part <= known for part in parts)
    if val_size:
        assert parts[0].isdisjoint(parts[1])


def test_the_same_initial_net_whatever_it_is_trained_on(tmp_path: Path) -> None:
    """Init and masks have their own streams: neither subset, validation nor batches move them."""
    want = opened(tmp_path).model.state_dict()
    for given in ({"train_size": 100}, {"val_size": 20}, {"batch_size": 7}, {"audit": True}, {"optim_method": "Adam"}):
        assert same(opened(tmp_path, **given).model.state_dict(), want), given
    other = opened(tmp_path, manual_seed=2).model.state_dict()
    assert not any(torch.equal(want[name], other[name]) for name in want if "stored" in name or name == "8.weight")


def test_only_the_norms_are_trained_where_that_is_asked_for(tmp_path: Path) -> None:
    """Everything else ends as it was drawn, bit for bit."""
    before = {name: value.clone() for name, value in opened(tmp_path / "drawn").model.state_dict().items()}
    run = executed(tmp_path / "run", train_only="norms", learning_rate=0.05, weight_decay=0.1, momentum=0.5)
    norms = {name for name, part in run.model.named_modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)}
    trained = {f"{name}.{kind}" for name in norms for kind in ("weight", "bias")}
    parameters = dict(run.model.named_parameters())
    assert trained
    assert trained < parameters.keys()
    moved = {name for name, value in parameters.items() if not torch.equal(value, before[name])}
    assert moved == trained
    counted = record_of(tmp_path / "run").parameters
    assert counted.trainable == sum(parameters[name].numel() for name in trained)
    assert counted.trainable + counted.frozen >= sum(p.numel() for p in parameters.values())


def test_the_same_subset_whatever_else_is_asked_for(tmp_path: Path) -> None:
    want = opened(tmp_path).training.images
    assert torch.equal(opened(tmp_path, net_type="cifarnet", batch_size=7).training.images, want)
    assert not torch.equal(opened(tmp_path, manual_seed=2).training.images, want)


def test_same_seed_same_bits_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        torch.manual_seed(len(name))  # the global seed must not matter
        executed(tmp_path / name, manual_seed=seed, audit=True)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "again"))
    assert untimed(metrics(tmp_path / "one")) == untimed(metrics(tmp_path / "again"))
    assert results(tmp_path / "one") == results(tmp_path / "again")
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "other"))


def test_a_record_says_everything_needed_to_repeat_the_run(finished: Finished, tmp_path: Path) -> None:
    run = open.open_run(TrainConfig(**finished.record.config, manual_seed=finished.record.seed), tmp_path, QUIET)
    assert train.execute(run, QUIET) is not None
    assert same(weights(tmp_path), weights(finished.folder))
    assert results(tmp_path) == results(finished.folder)


def test_training_images_are_augmented_and_test_images_are_not(pictures: Path, tmp_path: Path) -> None:
    run = opened(tmp_path / "run", **AUGMENTED, dataset_train=str(pictures), audit=True)
    inputs: dict[bool, list[Tensor]] = {True: [], False: []}
    run.model.register_forward_pre_hook(lambda model, args: inputs[model.training].append(args[0].clone()))
    assert train.execute(run, QUIET) is not None
    assert run.built.preparation == data.preparation(replace(run.images, name="CIFAR10"))
    order, augmentation = stream(1, "order"), stream(1, "augmentation")
    for epoch in range(3):
        rows = torch.randperm(18, generator=order).split(5)
        images = [data.augment(run.training.images[part], run.built.preparation, augmentation) for part in rows]
        want = torch.cat([data.normalise(part, run.built.preparation) for part in images])
        assert torch.equal(torch.cat(inputs[True][4 * epoch : 4 * epoch + 4]), want)
        # The last forward in eval mode is the one that counts a net for its record; it comes after all epochs.
        assert torch.equal(inputs[False][epoch], data.normalise(run.images.test.images, run.built.preparation))


# --- what training never sees ----------------------------------------------------------------------------------------


def test_test_labels_and_images_never_reach_training(finished: Finished, tmp_path: Path) -> None:
    run = open.open_run(finished.run.config, tmp_path / "run", QUIET)
    garbage = torch.full_like(run.images.test.labels, 3), torch.zeros_like(run.images.test.images)
    run.images = replace(run.images, test=data.Split(garbage[1], garbage[0]))
    assert train.execute(run, QUIET) is not None
    assert same(weights(tmp_path / "run"), weights(finished.folder))
    rows, want = metrics(tmp_path / "run"), metrics(finished.folder)
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"):
        assert [row[name] for row in rows] == [row[name] for row in want]
    assert [row["correct"] for row in rows] != [row["correct"] for row in want]


@pytest.mark.parametrize("redraw", ["never", "train", "always"])
@pytest.mark.parametrize("measured", [{"audit": True}, {"val_size": 20, "train_size": 80}], ids=["audit", "validation"])
def test_measuring_changes_nothing_in_the_training(redraw: str, measured: dict[str, Any], tmp_path: Path) -> None:
    """The same training images, measured after every epoch or not."""
    with_measure = opened(tmp_path / "measured", redraw_masks=redraw, **measured)
    without = opened(tmp_path / "plain", redraw_masks=redraw)
    without.training = with_measure.training
    for run in (with_measure, without):
        assert train.execute(run, QUIET) is not None
    one, two = weights(tmp_path / "measured"), weights(tmp_path / "plain")
    counters = {name for name in one if name.endswith("draws")}  # how often masks were drawn is no weight
    assert all(torch.equal(one[name], two[name]) for name in one.keys() - counters)


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [16, 60], ids=["in a step", "in the evaluation after the only step"])
@pytest.mark.parametrize("measured", [{}, {"audit": True}], ids=["plain", "audit"])
def test_nothing_is_recorded_after_a_loss_that_is_not_finite(
    batch: int, measured: dict[str, Any], tmp_path: Path
) -> None:
    run = opened(tmp_path / "run", learning_rate=1e30, nepochs=1, batch_size=batch, **measured)
    with pytest.raises(NonFiniteError, match=r"not finite|the loss is"):
        train.execute(run, QUIET)
    assert not {path.name for path in tmp_path.glob("run/*")} & {"record.json", "weights.safetensors"}


def test_a_last_batch_of_one_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=in_order("--batch-size 59 1 60")):
        opened(tmp_path / "run", batch_size=59)
    opened(tmp_path / "run", batch_size=59, code="or")  # drops it


# --- progress --------------------------------------------------------------------------------------------------------


def test_progress_off_a_terminal_is_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show = Show()
    train.execute(open.open_run(config(val_size=10, audit=True), tmp_path / "run", show), show)
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("epoch")]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    for line in lines:
        assert re.search(r"loss \d+\.\d+ .*train \d+\.\d+ %.* [\d,]+ images/s .*validation .*exact .*smoothed ", line)
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", err), "no control characters"
