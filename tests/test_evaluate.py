"""Exact answers: whole numbers, and every published metric against a plain loop over its definition."""

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nets import seeded
from perturblab.errors import NonFiniteError
from perturblab.models import Task, build
from perturblab.training.evaluate import Counts, answers, audit, batch_mean, published_best, smoothed
from told import in_order

FLAGS = st.lists(st.booleans(), min_size=1, max_size=60)
SIZES = st.integers(1, 25)
PERCENT = st.floats(0, 100)
relaxed = settings(deadline=None, max_examples=200)


def tensor(flags: list[bool]) -> Tensor:
    return torch.tensor(flags, dtype=torch.bool)


def right(correct: int, of: int) -> list[bool]:
    return [True] * correct + [False] * (of - correct)


# --- plain rewrites of the definitions ------------------------------------------------------------------------------


def plain_batch_mean(flags: list[bool], size: int, *, truncate: bool) -> Fraction:
    """Sum over batches of 100 * correct / nominal size, over the number of batches; exact arithmetic."""
    total, batches, at = Fraction(0), 0, 0
    while at < len(flags):
        correct = 0
        for k in range(at, min(at + size, len(flags))):
            correct += flags[k]
        value = Fraction(100 * correct, size)
        total += math.floor(value) if truncate else value
        batches, at = batches + 1, at + size
    return total / batches


def plain_smoothed(flags: list[bool], size: int, start: float) -> float:
    """0.7 * old + 0.3 * new after every full batch."""
    value, correct = start, 0
    for k, flag in enumerate(flags):
        correct += flag
        if (k + 1) % size == 0:
            value, correct = 0.7 * value + 0.3 * 100 * correct / size, 0
    return value


def plain_best(means: list[float]) -> int | None:
    best = None
    for epoch, mean in enumerate(means):
        if epoch > 10 and (best is None or mean > means[best]):
            best = epoch
    return best


# --- the metrics ----------------------------------------------------------------------------------------------------


@given(FLAGS, SIZES)
@relaxed
def test_batch_mean_is_its_definition(flags: list[bool], size: int) -> None:
    want = plain_batch_mean(flags, size, truncate=False)
    assert batch_mean(tensor(flags), size) == pytest.approx(float(want), rel=1e-12)


@given(FLAGS, SIZES)
@relaxed
def test_truncated_batch_mean_is_its_definition(flags: list[bool], size: int) -> None:
    want = plain_batch_mean(flags, size, truncate=True)
    assert batch_mean(tensor(flags), size, truncate=True) == float(want)


@given(FLAGS, SIZES, PERCENT)
@example([True] * 5 + [False] * 4, 5, 50.0)  # the wrong answers of the short batch are not seen
@example([True] * 3, 5, 37.5)  # nothing but a short batch: the value of the epoch before stays
@relaxed
def test_smoothed_is_its_definition(flags: list[bool], size: int, start: float) -> None:
    assert smoothed(tensor(flags), size, start=start) == pytest.approx(plain_smoothed(flags, size, start), rel=1e-12)


@given(FLAGS, SIZES, PERCENT)
@relaxed
def test_audit_is_all_of_them_from_the_same_answers(flags: list[bool], size: int, start: float) -> None:
    row = audit(tensor(flags), size, start=start)
    assert row == {
        "correct": sum(flags),
        "total": len(flags),
        "batch_mean": pytest.approx(float(plain_batch_mean(flags, size, truncate=False)), rel=1e-12),
        "batch_mean_truncated": float(plain_batch_mean(flags, size, truncate=True)),
        "smoothed": pytest.approx(plain_smoothed(flags, size, start), rel=1e-12),
        "n_batches": math.ceil(len(flags) / size),
    }
    assert {name: type(value) for name, value in row.items() if type(value) is not float} == {
        "correct": int,
        "total": int,
        "n_batches": int,
    }


@given(st.lists(FLAGS, min_size=1, max_size=4), SIZES)
@relaxed
def test_smoothing_carries_over_from_epoch_to_epoch(epochs: list[list[bool]], size: int) -> None:
    """As one long list of the full batches of every epoch, since nothing is reset between them."""
    value, seen = 0.0, []
    for flags in epochs:
        value = smoothed(tensor(flags), size, start=value)
        seen += flags[: len(flags) // size * size]
    assert value == pytest.approx(plain_smoothed(seen, size, 0.0), rel=1e-12)


def test_carry_over_in_numbers() -> None:
    """Two batches of 2: 0.7 * (0.7 * 80 + 30) + 15."""
    flags = [True, True, True, False]
    assert smoothed(tensor(flags), 2, start=80.0) == pytest.approx(75.2)
    assert smoothed(tensor(flags), 2) == pytest.approx(36.0)


@pytest.mark.parametrize(("last", "weight"), [(1, 30.0), (2, 51.0), (3, 65.7), (5, 83.2), (10, 97.2)])
def test_weight_of_the_last_batches_in_the_smoothed_number(last: int, weight: float) -> None:
    flags = [False] * (10_000 - 10 * last) + [True] * (10 * last)
    assert round(smoothed(tensor(flags), 10), 1) == weight


@pytest.mark.parametrize(("accuracy", "deficit"), [(100, 0.48), (86, 0.41)], ids=["all right", "as the published nets"])
def test_a_short_last_batch_lowers_the_batch_mean(accuracy: int, deficit: float) -> None:
    """10,000 images at batch 64: 16 are left, and right answers to all of them are 25 % of a nominal batch."""
    exact = Fraction(accuracy, 100)
    flags = [k * exact % 1 + exact >= 1 for k in range(10_000)]  # evenly spread right answers
    assert sum(flags) == 100 * accuracy
    row = audit(tensor(flags), 64)
    assert row["n_batches"] == 157
    assert accuracy - row["batch_mean"] == pytest.approx(deficit, abs=0.01)
    if accuracy == 100:
        assert row["batch_mean"] == pytest.approx((156 * 100 + 25) / 157)
        assert row["smoothed"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("size", "correct", "value"),
    [(16, 15, 93), (16, 1, 6), (16, 16, 100), (64, 63, 98), (64, 16, 25), (7, 6, 85), (3, 1, 33), (3, 2, 66)]
    + [(size, correct, 100 * correct // size) for size in (10, 20, 50, 100) for correct in (0, 1, size - 1)],
)
def test_truncation_floors_the_percentage_of_a_batch(size: int, correct: int, value: int) -> None:
    flags = tensor(right(correct, size))
    assert batch_mean(flags, size, truncate=True) == value
    if 100 % size == 0:
        assert batch_mean(flags, size) == value


@pytest.mark.parametrize(("accuracy", "cost"), [(72.6, 0.37), (82.5, 0.39), (85.5, 0.41), (85.9, 0.41)])
def test_what_truncation_costs_at_batch_16(accuracy: float, cost: float) -> None:
    """The binomial expectation, in points."""
    p, expected = accuracy / 100, 0.0
    for k in range(17):
        flags = tensor(right(k, 16))
        lost = batch_mean(flags, 16) - batch_mean(flags, 16, truncate=True)
        expected += math.comb(16, k) * p**k * (1 - p) ** (16 - k) * lost
    assert round(expected, 2) == cost


@given(st.integers(1, 12), SIZES, st.data())
@relaxed
def test_batch_mean_is_exact_where_the_batch_size_divides(batches: int, size: int, data: st.DataObject) -> None:
    flags = data.draw(st.lists(st.booleans(), min_size=batches * size, max_size=batches * size))
    assert batch_mean(tensor(flags), size) == pytest.approx(100 * sum(flags) / len(flags), rel=1e-12)


def test_shuffling_changes_the_smoothed_number_and_leaves_the_exact_one() -> None:
    flags = tensor(right(900, 1_000))
    order = torch.randperm(1_000, generator=seeded(0))
    straight, shuffled = audit(flags, 10), audit(flags[order], 10)
    for name in ("correct", "total", "n_batches"):
        assert straight[name] == shuffled[name]
    assert straight["batch_mean"] == pytest.approx(shuffled["batch_mean"])
    assert straight["smoothed"] < 10 < 70 < shuffled["smoothed"]


@pytest.mark.parametrize(
    ("means", "best"),
    [
        ([], None),
        ([90.0] * 11, None),
        ([90.0] * 11 + [10.0], 11),
        ([99.0] * 11 + [50.0, 70.0, 60.0], 12),
        ([0.0] * 11 + [50.0, 70.0, 70.0, 60.0, 70.0], 12),
        ([0.0] * 20, 11),
    ],
)
def test_the_published_rule_for_the_best_epoch(means: list[float], best: int | None) -> None:
    assert published_best(means) == best


@given(st.lists(st.sampled_from([80.0, 85.5, 90.25]), max_size=30))
@relaxed
def test_the_published_rule_is_its_definition(means: list[float]) -> None:
    assert published_best(means) == plain_best(means)


def test_percent() -> None:
    assert Counts(1, 3).percent == pytest.approx(33.333333333)
    assert Counts(597, 597).percent == 100.0


# --- asking a net ---------------------------------------------------------------------------------------------------

COUNT, CLASSES = 13, 4


class Recorder(nn.Module):
    """Logits from the number that an image carries; remembers which it was asked about."""

    def __init__(self, spoilt: dict[int, float] | None = None) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.spoilt = spoilt or {}
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        numbers = [int(value) for value in x[:, 0, 0, 0]]
        self.asked += numbers
        logits = torch.tensor([self.logits(number) for number in numbers]) * self.weight
        for row, number in enumerate(numbers):
            if number in self.spoilt:
                logits[row, -1] = self.spoilt[number]
        return logits

    @staticmethod
    def logits(number: int) -> list[float]:
        return [math.sin(1.7 * number + 2.3 * k) for k in range(CLASSES)]


def numbered(count: int = COUNT) -> tuple[Tensor, Tensor]:
    """Images that carry their number, and labels."""
    return torch.arange(count).view(-1, 1, 1, 1), torch.arange(count) * 5 % CLASSES


def test_answers_for_every_batch_size() -> None:
    images, labels = numbered()
    correct, loss = [], 0.0
    for number, label in enumerate(labels.tolist()):
        logits = Recorder.logits(number)
        correct.append(max(range(CLASSES), key=lambda k: logits[k]) == label)
        loss += math.log(sum(map(math.exp, logits))) - logits[label]
    assert 0 < sum(correct) < COUNT
    for size in range(1, COUNT + 3):
        model = Recorder().eval()
        found = answers(model, images, labels, batch_size=size)
        assert model.asked == list(range(COUNT)), "every image once, in the order of the set"
        assert found.correct.tolist() == correct
        assert found.correct.dtype is torch.bool
        assert found.counts == Counts(sum(correct), COUNT)
        assert found.loss == pytest.approx(loss / COUNT, rel=1e-6)


def test_a_chunk_of_the_default_size_loses_no_image() -> None:
    images, labels = numbered(1203)
    model = Recorder().eval()
    assert answers(model, images, labels).counts.total == 1203
    assert model.asked == list(range(1203))


@torch.no_grad()
def test_a_real_net_answers_the_same_for_every_batch_size() -> None:
    generator = seeded(0)
    model = build("lenet", task=Task(CLASSES, 1, (8, 8)), nfilters=4).eval()
    images, labels = torch.randn(30, 1, 8, 8, generator=generator), torch.randint(CLASSES, (30,), generator=generator)
    want = [int(model(images[k : k + 1])[0].argmax()) == int(labels[k]) for k in range(30)]
    for size in (1, 7, 29, 30, 31):
        assert answers(model, images, labels, batch_size=size).correct.tolist() == want


def test_images_are_prepared_batch_by_batch() -> None:
    images, labels = numbered()
    model, seen = Recorder().eval(), []

    def prepare(part: Tensor) -> Tensor:
        seen.append(len(part))
        return part + 100

    answers(model, images, labels, prepare=prepare, batch_size=5)
    assert seen == [5, 5, 3]
    assert model.asked == [number + 100 for number in range(COUNT)]


@pytest.mark.parametrize(
    ("choose", "name"),
    [
        (lambda net: net.train(), "Sequential"),
        (lambda net: net[1][0].train(), "1.0"),
        (lambda net: net[2].train(), "2"),
        (lambda net: setattr(net, "training", True), "Sequential"),
    ],
    ids=["all of it", "a submodule deep inside", "a module without parameters", "the root alone"],
)
def test_training_mode_is_refused_anywhere(choose: Callable[[nn.Sequential], None], name: str) -> None:
    recorder = Recorder()
    net = nn.Sequential(recorder, nn.Sequential(nn.BatchNorm1d(CLASSES)), nn.Dropout()).eval()
    assert answers(net, *numbered()).counts.total == COUNT
    recorder.asked.clear()
    choose(net)
    with pytest.raises(ValueError, match=in_order(f"{name} training mode model.eval()")):
        answers(net, *numbered())
    assert not recorder.asked


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("number", "size", "where"), [(0, 5, "0 to 4"), (7, 5, "5 to 9"), (12, 5, "10 to 12"), (12, 99, "0 to 12")]
)
def test_logits_that_are_not_finite_are_refused(value: float, number: int, size: int, where: str) -> None:
    """Argmax would count a row with NaN as whatever class holds it."""
    model = Recorder({number: value}).eval()
    with pytest.raises(NonFiniteError, match=in_order(f"logits {where} finite")):
        answers(model, *numbered(), batch_size=size)


@pytest.mark.parametrize(("images", "labels"), [(0, 0), (3, 4), (4, 3), (0, 1)])
def test_an_empty_or_mismatched_set_is_refused(images: int, labels: int) -> None:
    with pytest.raises(ValueError, match=in_order(f"{images} images {labels} labels least")):
        answers(Recorder().eval(), numbered(images)[0], numbered(labels)[1])


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_one_is_refused_and_never_counts_unasked_images(size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size.*{size}"):
        answers(Recorder().eval(), *numbered(), batch_size=size)


def test_a_net_is_left_as_it_was() -> None:
    model = build("lenet", task=Task(CLASSES, 1, (8, 8)), nfilters=4).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    answers(model, torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 2]))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
