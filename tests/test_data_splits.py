"""Classes, subsets, hold-out, normalisation and augmentation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_folders import CIFAR, image_data, pixels, random_split
from nets import seeded
from perturblab import data
from perturblab.data import sets, subsets
from perturblab.data.batches import draw
from perturblab.errors import DataError
from told import in_order

pytestmark = pytest.mark.usefixtures("own_cache")


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
        (["a", "x"], "class x a b c"),
        (["a"], "2 different"),
        (["a", "a"], "2 different"),
        (["a", "b", "a"], "2 different"),
        ([], "2 different"),
    ],
)
def test_select_classes_refuses(names, message):
    with pytest.raises(DataError, match=in_order(message)):
        data.select_classes(image_data(), names)


def test_classes_without_images_are_refused():
    whole = image_data(classes=("a", "b", "c", "d", "e", "f", "g", "h"))
    with pytest.raises(DataError, match=in_order("train split g h empty")):
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
    with pytest.raises(DataError, match=in_order("c train d test")):
        data.combine(image_data(), image_data(classes=("a", "b", "d")))
    with pytest.raises(DataError, match=in_order("images 3x5x4 3x4x4")):
        data.combine(image_data(), image_data(size=(3, 5, 4)))


COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any)


@given(COUNTS, st.data())
def test_subsets_are_stratified(counts, draws):
    size = draws.draw(st.integers(1, sum(counts)))
    whole = random_split(counts)
    part = data.stratified_subset(whole, size, seeded(1))
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
    rest, held = data.hold_out(whole, size, seeded(2))
    assert (len(rest), len(held)) == (len(whole) - size, size)
    positions = torch.cat([part.images.flatten().view(torch.int32) for part in (rest, held)])
    assert sorted(positions.tolist()) == list(range(len(whole)))
    assert torch.equal(torch.cat((rest.labels, held.labels)), whole.labels[positions.long()])
    expected = data.stratified_subset(whole, size, seeded(2))
    assert torch.equal(held.images, expected.images)


@given(COUNTS, st.data())
def test_shares_are_the_largest_remainders(counts, draws):
    from fractions import Fraction

    size = draws.draw(st.integers(0, sum(counts)))
    exact = [Fraction(size * count, sum(counts)) for count in counts]
    got = subsets.shares(counts, size)
    assert sum(got) == size
    raised = [share - int(share) for share, have in zip(exact, got, strict=True) if have > int(share)]
    kept = [share - int(share) for share, have in zip(exact, got, strict=True) if have == int(share)]
    assert min(raised, default=1) >= max(kept, default=0)


def test_splits_follow_the_seed():
    whole = random_split([40, 40])
    one, again, other = (data.stratified_subset(whole, 20, seeded(seed)).images for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("size", [0, -1, 11])
def test_impossible_subsets_are_refused(size):
    with pytest.raises(DataError, match=in_order(f"subset {size} images 1 10")):
        data.stratified_subset(random_split([5, 5]), size, seeded())


@pytest.mark.parametrize("size", [0, 10])
def test_impossible_hold_outs_are_refused(size):
    with pytest.raises(DataError, match=in_order(f"{size} of 10 1 9")):
        data.hold_out(random_split([5, 5]), size, seeded())


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
    got = data.augment(images, prep, seeded(3))
    offsets, flips = draw(count, prep, seeded(3))
    assert got.dtype == torch.uint8
    assert got.shape == images.shape
    _, height, width = size
    for n, c, y, x in np.ndindex(*images.shape):
        column = width - 1 - x if flips[n] else x
        row, column = y + int(offsets[0, n]) - padding, column + int(offsets[1, n]) - padding
        inside = 0 <= row < height and 0 <= column < width
        assert got[n, c, y, x] == (images[n, c, row, column] if inside else 0)


def test_augment_without_anything_to_do_draws_nothing():
    images, source = torch.from_numpy(pixels(2, 1, 4, 4)), seeded()
    before = source.get_state()
    assert data.augment(images, data.Preparation((0.1,), (0.3,)), source) is images
    assert torch.equal(before, source.get_state())


def test_augment_follows_the_seed_and_keeps_its_input():
    images = torch.from_numpy(pixels(8, 3, 8, 8))
    before = images.clone()
    one, again, other = (data.augment(images, CIFAR, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(images, before)


def test_crops_are_uniform_and_half_are_flipped():
    count = 81 * 200
    offsets, flips = draw(count, CIFAR, seeded())
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
    moved = data.augment(images, CIFAR, seeded())
    for k in range(5):
        assert set(moved[k].unique().tolist()) <= {0, k + 1}
