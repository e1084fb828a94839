"""`perturblab.runs`: what a run leaves in its folder; stopping, auditing and test labels change nothing in it."""

import base64
import io
import json
import math
import re
import socket
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from perturblab import checkpoint, data, evaluate, execution, files, records, runs
from perturblab.config import TrainConfig
from perturblab.errors import NonFiniteError, UserError
from perturblab.layers import Masks
from perturblab.models import Task, build
from perturblab.progress import Show
from perturblab.records import Record
from perturblab.runs import Run
from perturblab.seeding import stream

QUIET = Show(quiet=True)
FILES = {
    *("record.json", "metrics.jsonl", "weights.safetensors", "masks.safetensors", "checkpoint.pt", "progress.svg"),
}
TEST = 597  # test images of the bundled digits
NET: dict[str, Any] = {"net_type": "lenet", "nfilters": 4, "act": "rrelu"}
SMALL: dict[str, Any] = {"train_size": 60, "batch_size": 16, "nepochs": 3, "learning_rate": 0.02}


@pytest.fixture(autouse=True, scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No network, and a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("PERTURBLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def config(**given: Any) -> TrainConfig:
    return TrainConfig(**{"dataset_train": "digits", **NET, **SMALL, **given})


def opened(folder: Path, **given: Any) -> Run:
    return runs.open_run(config(**given), folder, QUIET)


def executed(folder: Path, **given: Any) -> Run:
    run = opened(folder, **given)
    assert execution.execute(run, QUIET) is not None
    return run


def weights(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "weights.safetensors")


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows, read as strict JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no number of JSON")

    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def record_of(folder: Path) -> Record:
    return records.load(folder / "record.json")


def results(folder: Path) -> Any:
    """All of a record but how long it took, and that it was made longer."""
    return record_of(folder).model_copy(update={"seconds": 0.0, "parts": []})


@dataclass
class Finished:
    """A run to look at: its folder and what was in memory at its end."""

    folder: Path
    run: Run
    record: Record


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """With everything: validation, audit, and enough epochs for the published rule; 597 = 9 * 64 + 21 test images."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    learning = {"optim_method": "Adam", "dropout": 0.1, "nfilters": 8, "first_filter_size": 3}
    run = opened(folder, train_size=200, val_size=50, batch_size=64, nepochs=13, audit=True, **learning)
    record = execution.execute(run, QUIET)
    assert record is not None
    return Finished(folder, run, record)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures that is recognised as some classes of CIFAR-10, and so is augmented."""
    root, generator = tmp_path_factory.mktemp("data") / "pets", np.random.default_rng(0)
    for split, count in (("train", 9), ("test", 5)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{k}.png")
    return root


# --- the folder -----------------------------------------------------------------------------------------------------


def test_the_folder_holds_what_the_contract_says_and_no_more(finished: Finished) -> None:
    assert {path.name for path in finished.folder.iterdir()} == FILES


def test_nothing_is_written_before_the_run_is_executed(tmp_path: Path) -> None:
    opened(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_record_is_valid_and_is_what_execute_returns(finished: Finished) -> None:
    assert record_of(finished.folder) == finished.record
    assert records.load_all(finished.folder) == [finished.record]
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
    places = {"dataroot": str(tmp_path / "here"), "out": str(tmp_path / "run"), "save": "/a/b", "logs": "~/logs"}
    executed(tmp_path / "run", dataset_train=dataset, train_size=None, nepochs=1, nthreads=1, **places)
    content = json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))
    for mask in content["masks"]:
        del mask["png"]  # base64 may hold any run of letters and slashes by chance
    texts = list(leaves(content))
    secrets = [str(tmp_path), str(pictures.parent), str(Path.home()), str(Path.cwd()), socket.gethostname()]
    for text in texts:
        assert not any(secret in text for secret in secrets if len(secret) > 1), text
        assert not re.search(r"(^|[\s'\"=:])(/\w|~|[A-Za-z]:\\)", text), text
    assert not {"dataroot", "out", "resume", "save", "logs"} & set(texts)


# --- the counts -----------------------------------------------------------------------------------------------------


def counted(folder: Path) -> tuple[int, Tensor]:
    """Right answers of the saved weights, in a net of another seed and with the pixels normalised by hand."""
    options = {"nfilters": 8, "act": "rrelu", "level": 0.5, "first_filter_size": 3}
    model = build("lenet", task=Task(10, 1, (8, 8)), seed=77, **options).eval()
    model.load_state_dict(weights(folder))
    source = data.load("digits")
    pixels = source.train.images.double() / 255
    mean, std = pixels.mean(), pixels.std(correction=0)
    right = []
    with torch.no_grad():
        for image, label in zip(source.test.images, source.test.labels, strict=True):
            logits = model(((image.double() / 255 - mean) / std).float().unsqueeze(0))
            right.append(int(logits.argmax()) == int(label))
    return sum(right), torch.tensor(right)


def test_the_last_count_equals_an_independent_evaluation(finished: Finished) -> None:
    last = finished.record.counts.last
    correct, right = counted(finished.folder)
    assert (last.epoch, last.correct, last.total) == (12, correct, TEST)
    assert 2 * TEST / 10 < correct < TEST, "the net has learnt something, and not everything"
    assert torch.equal(finished.run.correct[-1], right)
    assert len(finished.run.correct) == 13


def test_the_audit_in_the_record_is_computed_from_the_stored_answers(finished: Finished) -> None:
    rows, value = metrics(finished.folder), 0.0
    for row, correct in zip(rows, finished.run.correct, strict=True):
        want = evaluate.audit(correct, 64, start=value)
        value = float(want["smoothed"])
        assert {name: row[name] for name in want} == want
        assert row["exact"] == 100 * row["correct"] / TEST
    audit = finished.record.audit
    assert audit is not None
    for have, best in (
        (audit.last, rows[-1]),
        (audit.best_smoothed, max(rows, key=lambda row: row["smoothed"])),
        (audit.best_exact, max(rows, key=lambda row: row["correct"])),
    ):
        assert have.model_dump() == {name: best[name] for name in have.model_dump()}


def test_best_test_says_how_it_was_chosen(finished: Finished) -> None:
    best, rows = finished.record.counts.best_test, metrics(finished.folder)
    assert best is not None
    assert best.selection == "selected on the test set"
    assert best.correct == max(row["correct"] for row in rows)
    assert best.published_rule is not None
    assert best.published_rule.epoch in (11, 12)
    assert best.published_rule.batch_mean == max(row["batch_mean"] for row in rows[11:])
    content = (finished.folder / "record.json").read_text(encoding="utf-8")
    assert "selected on the test set" in content
    assert "epoch index > 10" in content


def test_best_val_is_the_test_count_of_that_epoch(finished: Finished) -> None:
    rows, best = metrics(finished.folder), finished.record.counts.best_val
    highest = max(row["val_accuracy"] for row in rows)
    first = next(row for row in rows if row["val_accuracy"] == highest)
    assert best is not None
    assert (best.epoch, best.correct, best.total) == (first["epoch"], first["correct"], TEST)


@pytest.mark.parametrize(
    ("audit", "val", "test", "best_val", "best_test"),
    [
        (True, [5, 8, 8, 7], [10, 20, 30, 30], (1, 20), (2, 30)),
        (False, [5, 8, 8, 7], [10, 20, 30, 30], (1, 20), None),
        (False, [8, 8, 8, 8], [10, 20, 30, 40], (0, 10), None),
        (False, [0, 0, 0, 0], [10, 20, 30, 40], (0, 10), None),
        (True, [1, 2, 3, 4], [40, 40, 20, 10], (3, 10), (0, 40)),
        (False, None, [10, 20, 30, 5], None, None),
        (True, None, [10, 20, 30, 5], None, (2, 30)),
    ],
)
def test_which_epoch_is_best_on_scripted_answers(
    audit: bool,
    val: list[int] | None,
    test: list[int],
    best_val: tuple[int, int] | None,
    best_test: tuple[int, int] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The earliest on ties; best_val is counted on test images, and best_test exists with the audit only."""

    def scripted(run: Run, split: data.Split) -> evaluate.Answers:
        right = (test if split is run.images.test else val or [])[run.state.epoch - 1]
        return evaluate.Answers(torch.arange(len(split)) < right, 1.0)

    monkeypatch.setattr(Run, "answers", scripted)
    executed(tmp_path / "run", audit=audit, val_size=10 if val else 0, nepochs=4, train_size=40)
    counts = record_of(tmp_path / "run").counts
    assert (counts.last.epoch, counts.last.correct, counts.last.total) == (3, test[3], TEST)
    assert (counts.best_val and (counts.best_val.epoch, counts.best_val.correct)) == best_val
    assert (counts.best_test and (counts.best_test.epoch, counts.best_test.correct)) == best_test
    assert counts.best_test is None or counts.best_test.published_rule is None, "no epoch has an index above 10"
    assert (record_of(tmp_path / "run").audit is not None) == audit


# --- evaluating a run again -----------------------------------------------------------------------------------------


def test_evaluate_run_gives_the_last_row_of_the_metrics(finished: Finished) -> None:
    row = metrics(finished.folder)[-1]
    result = execution.evaluate_run(finished.folder, QUIET, audited=True)
    assert result.keys() == {"exact", "wilson", "batch_mean", "batch_mean_truncated", "smoothed", "n_batches"}
    assert result["exact"] == {"correct": row["correct"], "total": TEST}
    for name in ("batch_mean", "batch_mean_truncated", "smoothed", "n_batches"):
        assert result[name] == row[name], name
    p, n, z2 = row["correct"] / TEST, TEST, 1.959963984540054**2
    middle, half = p + z2 / (2 * n), math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    want = [100 * (middle - half) / (1 + z2 / n), 100 * (middle + half) / (1 + z2 / n)]
    assert result["wilson"] == pytest.approx(want)
    json.dumps(result, allow_nan=False)


def test_evaluate_run_with_another_batch_and_without_the_audit(finished: Finished) -> None:
    plain = execution.evaluate_run(finished.folder, QUIET)
    assert plain.keys() == {"exact", "wilson"}
    result = execution.evaluate_run(finished.folder, QUIET, audited=True, batch_size=10)
    rows, right = metrics(finished.folder), finished.run.correct[-1]
    assert result["exact"] == plain["exact"]
    assert result["n_batches"] == 60
    assert result["batch_mean"] == evaluate.batch_mean(right, 10)
    assert result["smoothed"] == evaluate.smoothed(right, 10, start=rows[-2]["smoothed"])


def test_evaluate_run_leaves_the_folder_as_it_is(finished: Finished) -> None:
    before = {path.name: path.read_bytes() for path in finished.folder.iterdir()}
    execution.evaluate_run(finished.folder, QUIET, audited=True)
    assert {path.name: path.read_bytes() for path in finished.folder.iterdir()} == before


@pytest.mark.parametrize("redraw", ["never", "train", "always"])
def test_evaluate_run_of_a_run_without_validation_and_audit(redraw: str, tmp_path: Path) -> None:
    """Also where every forward draws its masks: the weights must say which ones the count was made with."""
    executed(tmp_path / "run", redraw_masks=redraw)
    row = metrics(tmp_path / "run")[-1]
    result = execution.evaluate_run(tmp_path / "run", QUIET, audited=True)
    assert result["exact"] == {"correct": row["correct"], "total": TEST}
    assert result["n_batches"] == 38


@pytest.mark.parametrize(
    "open_again",
    [lambda folder: runs.resume_run(folder, {}, QUIET), lambda folder: execution.evaluate_run(folder, QUIET)],
)
def test_a_folder_that_is_no_run_is_refused(open_again: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no checkpoint\.pt; give the folder of a run"):
        open_again(tmp_path)


# --- splits and streams ---------------------------------------------------------------------------------------------


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


def test_a_net_without_norms_cannot_train_them_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--train-only norms given, but batchout_mnist has no batch norm; drop it or"):
        opened(tmp_path / "run", train_only="norms", **{**dict.fromkeys(NET), "net_type": "batchout_mnist"})


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
    run = runs.open_run(TrainConfig(**finished.record.config, manual_seed=finished.record.seed), tmp_path, QUIET)
    assert execution.execute(run, QUIET) is not None
    assert same(weights(tmp_path), weights(finished.folder))
    assert results(tmp_path) == results(finished.folder)


def test_training_images_are_augmented_and_test_images_are_not(pictures: Path, tmp_path: Path) -> None:
    run = opened(tmp_path / "run", **settings("augmented", pictures), audit=True)
    inputs: dict[bool, list[Tensor]] = {True: [], False: []}
    run.model.register_forward_pre_hook(lambda model, args: inputs[model.training].append(args[0].clone()))
    assert execution.execute(run, QUIET) is not None
    assert run.preparation == data.preparation(replace(run.images, name="CIFAR10"))
    order, augmentation = stream(1, "order"), stream(1, "augmentation")
    for epoch in range(3):
        rows = torch.randperm(18, generator=order).split(5)
        images = [data.augment(run.training.images[part], run.preparation, augmentation) for part in rows]
        want = torch.cat([data.normalise(part, run.preparation) for part in images])
        assert torch.equal(torch.cat(inputs[True][4 * epoch : 4 * epoch + 4]), want)
        # The last forward in eval mode is the one that counts a net for its record; it comes after all epochs.
        assert torch.equal(inputs[False][epoch], data.normalise(run.images.test.images, run.preparation))


# --- what training never sees ---------------------------------------------------------------------------------------


def test_test_labels_and_images_never_reach_training(finished: Finished, tmp_path: Path) -> None:
    run = runs.open_run(finished.run.config, tmp_path / "run", QUIET)
    garbage = torch.full_like(run.images.test.labels, 3), torch.zeros_like(run.images.test.images)
    run.images = replace(run.images, test=data.Split(garbage[1], garbage[0]))
    assert execution.execute(run, QUIET) is not None
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
        assert execution.execute(run, QUIET) is not None
    one, two = weights(tmp_path / "measured"), weights(tmp_path / "plain")
    counters = {name for name in one if name.endswith("draws")}  # how often masks were drawn is no weight
    assert all(torch.equal(one[name], two[name]) for name in one.keys() - counters)


# --- stopping and going on ------------------------------------------------------------------------------------------

# 60 images at 16 are 4 steps an epoch, the last one ragged, and 3 under code or, which drops it.
KINDS: dict[str, dict[str, Any]] = {
    "SGD, dropout, audit": {"audit": True, "val_size": 10, "train_size": 70},
    "Adam, code or": {"net_type": "noiseresnet18", "code": "or", "act": None, "nfilters": 3, "audit": True},
    "augmented": {"train_size": None, "batch_size": 5, "nfilters": 3, "optim_method": "RMSprop"},
    "redrawn, one-cycle": {"redraw_masks": "train", "optimizer_schedule": "onecycle"},
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Callable[[str], Path]:
    """The folder of the uninterrupted run of a kind; made when it is first asked for."""
    root, made = tmp_path_factory.mktemp("straight"), {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = executed(root / str(len(made)), **settings(kind, pictures)).folder
        return made[kind]

    return folder


def settings(kind: str, pictures: Path) -> dict[str, Any]:
    return KINDS[kind] | ({"dataset_train": str(pictures)} if kind == "augmented" else {})


def after(steps: int) -> Callable[[], bool]:
    """A stop that is asked for after so many steps."""
    made = iter(range(1, steps))
    return lambda: next(made, None) is None


def assert_same_run(folder: Path, want: Path) -> None:
    assert {path.name for path in folder.iterdir()} - {checkpoint.PREVIOUS} == FILES
    assert same(weights(folder), weights(want))
    assert untimed(metrics(folder)) == untimed(metrics(want))
    assert results(folder) == results(want)
    answers, wanted = (torch.load(path / "checkpoint.pt", weights_only=True)["correct"] for path in (folder, want))
    assert len(answers) == len(wanted)
    assert all(map(torch.equal, answers, wanted)), "the audited answers of the epochs before the stop"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 4, 6], ids="after {}".format)
def test_interrupted_and_resumed_equals_uninterrupted(
    kind: str, steps: int, straight: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    run = opened(tmp_path / "run", **settings(kind, pictures))
    assert execution.execute(run, QUIET, after(steps)) is None
    assert not (tmp_path / "run" / "record.json").exists()
    resumed = runs.resume_run(tmp_path / "run", {}, QUIET)
    assert resumed.state.epoch * resumed.steps + resumed.state.step == steps
    assert execution.execute(resumed, QUIET) is not None
    assert_same_run(tmp_path / "run", straight(kind))


def test_stopped_at_every_step(straight: Callable[[str], Path], tmp_path: Path) -> None:
    kind = next(iter(KINDS))
    run = opened(tmp_path / "run", **KINDS[kind])
    for _ in range(11):
        assert execution.execute(run, QUIET, after(1)) is None
        run = runs.resume_run(tmp_path / "run", {}, QUIET)
    assert execution.execute(run, QUIET, after(1)) is None, "the last step is done, the last epoch not yet counted"
    assert execution.execute(runs.resume_run(tmp_path / "run", {}, QUIET), QUIET) is not None
    assert_same_run(tmp_path / "run", straight(kind))


@pytest.mark.parametrize("steps", [3, 4, 7])
def test_a_crash_loses_only_what_came_after_the_last_checkpoint(
    steps: int, straight: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SAVE_EVERY", -1.0)  # a checkpoint after every step
    kind, asked = next(iter(KINDS)), after(steps)

    def crash() -> bool:
        if asked():
            raise ZeroDivisionError("crash")
        return False

    with pytest.raises(ZeroDivisionError, match="crash"):
        execution.execute(opened(tmp_path / "run", **KINDS[kind]), QUIET, crash)
    run = runs.resume_run(tmp_path / "run", {}, QUIET)
    assert run.state.epoch * run.steps + run.state.step == steps
    assert execution.execute(run, QUIET) is not None
    assert_same_run(tmp_path / "run", straight(kind))


def test_a_finished_run_goes_on_to_more_epochs(straight: Callable[[str], Path], tmp_path: Path) -> None:
    kind = next(iter(KINDS))
    executed(tmp_path / "run", **KINDS[kind], nepochs=1)
    run = runs.resume_run(tmp_path / "run", {"nepochs": 3}, QUIET)
    assert execution.execute(run, QUIET) is not None
    assert_same_run(tmp_path / "run", straight(kind))


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    executed(tmp_path / "run", audit=True)
    want, rows = weights(tmp_path / "run"), metrics(tmp_path / "run")
    record = record_of(tmp_path / "run")
    assert execution.execute(runs.resume_run(tmp_path / "run", {}, QUIET), QUIET) is not None
    assert same(weights(tmp_path / "run"), want)
    assert metrics(tmp_path / "run") == rows
    assert record_of(tmp_path / "run") == record


@pytest.mark.parametrize("audit", [False, True], ids=["plain", "audit"])
def test_fewer_epochs_than_begun_are_refused(audit: bool, tmp_path: Path) -> None:
    """The weights have had a step of the second epoch: they are no result of a run of one epoch."""
    execution.execute(opened(tmp_path / "run", audit=audit), QUIET, after(5))
    with pytest.raises(UserError, match="nepochs"):
        execution.execute(runs.resume_run(tmp_path / "run", {"nepochs": 1}, QUIET), QUIET)
    assert not (tmp_path / "run" / "record.json").exists()


def test_fewer_epochs_are_taken_where_they_are_just_done(tmp_path: Path) -> None:
    execution.execute(opened(tmp_path / "run"), QUIET, after(4))
    assert execution.execute(runs.resume_run(tmp_path / "run", {"nepochs": 1}, QUIET), QUIET) is not None
    assert_same_run(tmp_path / "run", executed(tmp_path / "one", nepochs=1).folder)


def test_weights_and_metrics_are_not_mixed_when_a_longer_run_is_stopped(tmp_path: Path) -> None:
    """Whichever epoch the weights are of, every metric of `evaluate --audit` is that epoch's."""
    folder = tmp_path / "run"
    executed(folder, audit=True, nepochs=2, batch_size=60, train_size=120)  # 9 full test batches: the start still shows
    execution.execute(runs.resume_run(folder, {"nepochs": 5}, QUIET), QUIET, after(5))
    rows = metrics(folder)
    assert len(rows) == 4
    result = execution.evaluate_run(folder, QUIET, audited=True)
    names = ("batch_mean", "batch_mean_truncated", "smoothed", "n_batches")
    have = (result["exact"]["correct"], *(result[name] for name in names))
    assert have in [(row["correct"], *(row[name] for name in names)) for row in rows]


def test_other_images_than_the_run_was_started_with_are_refused(tmp_path: Path, pictures: Path) -> None:
    executed(tmp_path / "run", dataset_train=str(pictures), train_size=None, nepochs=1)
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    saved["hashes"]["test"] = "0" * 64
    del saved["digest"]
    torch.save({**saved, "digest": checkpoint.digest(saved)}, tmp_path / "run" / "checkpoint.pt")
    for again in (
        lambda: runs.resume_run(tmp_path / "run", {}, QUIET),
        lambda: execution.evaluate_run(tmp_path / "run", QUIET),
    ):
        with pytest.raises(UserError, match=r"the test images of pets.* are not those of .*; give --dataroot"):
            again()


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [16, 60], ids=["in a step", "in the evaluation after the only step"])
@pytest.mark.parametrize("measured", [{}, {"audit": True}], ids=["plain", "audit"])
def test_nothing_is_recorded_after_a_loss_that_is_not_finite(
    batch: int, measured: dict[str, Any], tmp_path: Path
) -> None:
    run = opened(tmp_path / "run", learning_rate=1e30, nepochs=1, batch_size=batch, **measured)
    with pytest.raises(NonFiniteError, match=r"not finite|the loss is"):
        execution.execute(run, QUIET)
    assert not {path.name for path in tmp_path.glob("run/*")} & {"record.json", "weights.safetensors"}


def test_a_last_batch_of_one_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--batch-size 59 leaves a batch of 1 of 60 training images"):
        opened(tmp_path / "run", batch_size=59)
    opened(tmp_path / "run", batch_size=59, code="or")  # drops it


# --- progress -------------------------------------------------------------------------------------------------------


def test_progress_off_a_terminal_is_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show = Show()
    execution.execute(runs.open_run(config(val_size=10, audit=True), tmp_path / "run", show), show)
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("epoch")]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    for line in lines:
        assert re.search(r"loss \d+\.\d+ .*train \d+\.\d+ %.* [\d,]+ images/s .*validation .*exact .*smoothed ", line)
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", err), "no control characters"


def test_quiet_is_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    executed(tmp_path / "run", nepochs=1)
    assert capsys.readouterr() == ("", "")
