"""The draws of BatchOut: partners, rows, what sites share, and the random state."""

import copy
import io
import math
import random
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mixing import KINDS, SEEDS, etas_in, layer, often, partners_in, read, same, sequence, units
from nets import seeded
from perturblab.layers import PARTNERS, BatchOut, Mixing, batch_step, batchout_at, draw_partners
from told import in_order

# --- partners -------------------------------------------------------------------------------------------------------


def allowed(kind: str, labels: list[int], i: int) -> set[int]:
    """The rows that row i may be mixed with; itself where there is no other."""
    everyone = range(len(labels))
    found = {
        "replacement": set(everyone),
        "permutation": set(everyone),
        "mutual": {len(labels) - 1 - i},
        "no-self": {j for j in everyone if j != i},
        "different-class": {j for j in everyone if labels[j] != labels[i]},
        "same-class": {j for j in everyone if labels[j] == labels[i] and j != i},
    }[kind]
    return found or {i}


def test_every_kind_of_partner_is_described_here() -> None:
    assert all(allowed(kind, [0, 1, 0], 0) for kind in PARTNERS)


@pytest.mark.parametrize("kind", PARTNERS)
@often
@given(labels=st.lists(st.integers(-2, 5), max_size=30), seed=SEEDS)
def test_partners_are_as_their_kind_says(kind: str, labels: list[int], seed: int) -> None:
    chosen = draw_partners(kind, len(labels), torch.tensor(labels, dtype=torch.int64), generator=seeded(seed))
    assert chosen.dtype is torch.int64
    assert chosen.shape == (len(labels),)
    found = chosen.tolist()
    for i, partner in enumerate(found):
        assert partner in allowed(kind, labels, i)
    if kind in ("permutation", "mutual"):
        assert sorted(found) == list(range(len(labels))), "every row is taken once"
    if kind == "mutual":
        assert [found[partner] for partner in found] == list(range(len(labels))), "an involution"


@pytest.mark.parametrize("kind", [kind for kind in PARTNERS if kind != "mutual"])
@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 0, 7], [3, 3, 3, 1]], ids=str)
def test_every_allowed_partner_is_equally_likely(kind: str, labels: list[int]) -> None:
    """Each frequency within 5 standard errors of 1 over the number of allowed rows."""
    source, rounds, given = seeded(1), 3000, torch.tensor(labels)
    counted = [Counter[int]() for _ in labels]
    for _ in range(rounds):
        for i, partner in enumerate(draw_partners(kind, len(labels), given, generator=source).tolist()):
            counted[i][partner] += 1
    for i in range(len(labels)):
        share = 1 / len(allowed(kind, labels, i))
        assert counted[i].keys() == allowed(kind, labels, i)
        for count in counted[i].values():
            assert abs(count / rounds - share) <= 5 * math.sqrt(share * (1 - share) / rounds)


def test_rows_choose_their_partners_independently() -> None:
    """Two rows of a batch of 4 meet the same partner in a quarter of the draws, whatever the kind allows alike."""
    source, rounds = seeded(2), 4000
    labels = torch.tensor([0, 0, 1, 1, 1, 1])
    same = sum(
        len(set(draw_partners("different-class", 6, labels, generator=source)[:2].tolist())) == 1 for _ in range(rounds)
    )
    assert abs(same / rounds - 1 / 4) < 5 * math.sqrt(3 / 16 / rounds)


@pytest.mark.parametrize("kind", ["different-class", "same-class"])
@pytest.mark.parametrize("count", [0, 1, 2, 64])
def test_without_such_a_partner_a_row_stays_and_nothing_hangs(kind: str, count: int) -> None:
    """A batch of one class has no other class; a batch of as many classes as rows no other row of any."""
    labels = torch.full((count,), 3) if kind == "different-class" else torch.arange(count)
    own = list(range(count))
    assert draw_partners(kind, count, labels, generator=seeded()).tolist() == own
    x = units(count)
    with batch_step(labels):
        assert torch.equal(layer(eta=0.5, k=1.0, partners=kind)(x), x)


def test_labels_of_any_integer_type_and_in_any_order() -> None:
    for dtype in (torch.int32, torch.uint8, torch.bool):
        labels = torch.tensor([1, 0, 1, 0, 0]).to(dtype)
        chosen = draw_partners("different-class", 5, labels, generator=seeded())
        assert (labels[chosen] != labels).all()


@pytest.mark.parametrize("kind", ["different-class", "same-class"])
@pytest.mark.parametrize(
    ("labels", "got"), [(None, "none"), (torch.zeros(3), "(3,)"), (torch.zeros(4, 2), "(4, 2)")], ids=str
)
def test_partners_by_class_need_a_label_for_every_row(kind: str, labels: Tensor | None, got: str) -> None:
    text = in_order(f"partners '{kind}' labels 4 {got} `with batch_step(")
    with pytest.raises(ValueError, match=text) as caught:
        draw_partners(kind, 4, labels, generator=seeded())
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=text), batch_step(labels):
        layer(partners=kind)(units(4))


def test_partners_by_class_need_a_step() -> None:
    with pytest.raises(ValueError, match=in_order("labels 4 rows")):
        layer(partners="different-class")(units(4))


def test_an_unknown_kind_of_partner_is_refused() -> None:
    with pytest.raises(ValueError, match=in_order("partners others replacement permutation mutual")):
        draw_partners("others", 4, generator=seeded())


@pytest.mark.parametrize("kind", PARTNERS)
def test_the_layer_uses_partners_of_its_kind(kind: str) -> None:
    labels = [0, 1, 0, 2, 1, 0, 7, 7]
    module, seen = layer(eta=0.25, k=1.0, partners=kind), [set[int]() for _ in labels]
    for _ in range(60):
        with batch_step(torch.tensor(labels)):
            for i, partner in enumerate(partners_in(module(units(8)))):
                seen[i].add(partner)
    assert seen == [allowed(kind, labels, i) for i in range(8)]


# --- the guard of the published code (D1) ---------------------------------------------------------------------------


def published_draw(labels: list[int], source: random.Random, *, enters: bool = False) -> tuple[list[int], int]:
    """The published guard in our words: a partner and a label are compared, and the repair waits for its own end.

    ``enters`` repairs the second mistake, the condition of the loop, and not the first.
    """
    partners, changed = [source.randrange(len(labels)) for _ in labels], 0
    for row, label in enumerate(labels):
        if partners[row] == label:  # the index of a row against a class; labels[partners[row]] was meant
            while (partners[row] == label) == enters:  # without the repair: until they are equal, which they are
                partners[row] = source.randrange(len(labels))
                changed += 1
    return partners, changed


@pytest.mark.parametrize("classes", [3, 10])
def test_the_published_guard_never_changes_a_draw_and_ours_never_pairs_equal_classes(classes: int) -> None:
    count, rounds, source = 128, 250, random.Random(0)
    same, same_half_repaired, changes, changes_half_repaired, ours = 0, 0, 0, 0, 0
    likely = 0.0
    module = layer(eta=0.25, k=1.0, partners="different-class")
    for _ in range(rounds):
        labels = [source.randrange(classes) for _ in range(count)]
        likely += sum(n * n for n in Counter(labels).values()) / count**2 / rounds
        partners, changed = published_draw(labels, source)
        changes += changed
        same += sum(labels[partner] == label for partner, label in zip(partners, labels, strict=True))
        partners, changed = published_draw(labels, source, enters=True)
        changes_half_repaired += changed
        same_half_repaired += sum(labels[partner] == label for partner, label in zip(partners, labels, strict=True))
        with batch_step(torch.tensor(labels)):
            partners = partners_in(module(units(count)))
        ours += sum(labels[partner] == label for partner, label in zip(partners, labels, strict=True))
    total = count * rounds
    spread = 5 * math.sqrt(likely * (1 - likely) / total)
    assert changes == 0
    assert abs(same / total - likely) < spread, "as if there were no guard"
    assert abs(likely - 1 / classes) < 0.01
    assert changes_half_repaired > 0
    assert abs(same_half_repaired / total - likely) < 2 * spread, "an index is no label"
    assert ours == 0


# --- rows, sharing, several calls -----------------------------------------------------------------------------------


def test_random_rows_are_other_ones_at_each_call_and_partners_come_from_the_whole_batch() -> None:
    module, rounds = layer(eta=0.25, k=0.5, rows="random", partners="no-self"), 800
    moved, met = Counter[int](), Counter[int]()
    for _ in range(rounds):
        rows = {i: got[0] for i, got in enumerate(read(module(units(7)))) if got is not None}
        assert len(rows) == 3
        moved.update(rows.keys())
        met.update(rows.values())
    bound = 5 * math.sqrt(rounds * 3 / 7)
    for counted in (moved, met):
        assert counted.keys() == set(range(7))
        assert all(abs(count - rounds * 3 / 7) < bound for count in counted.values())


def test_the_first_rows_meet_partners_from_the_whole_batch() -> None:
    module = layer(eta=0.25, k=0.5)
    met = Counter(partner for _ in range(300) for partner in partners_in(module(units(6)))[:3])
    assert met.keys() == set(range(6))


def test_consecutive_calls_are_independent() -> None:
    """The draw of a call says nothing of the next: all 9 pairs of the partners of one row are equally likely."""
    module, rounds = layer(eta=0.25, k=1.0), 3600
    found = [partners_in(module(units(3)))[0] for _ in range(rounds)]
    counted = Counter(pairwise(found))
    assert all(abs(counted[a, b] - rounds / 9) < 5 * math.sqrt(rounds * 8 / 81) for a in range(3) for b in range(3))


RANDOM: dict[str, Any] = {"eta": "U[0.1,0.9]", "k": 0.5, "rows": "random", "partners": "no-self"}


def what(out: Tensor) -> tuple[list[tuple[int, int]], list[float]]:
    """Who was mixed with whom, and how far, in ascending order: random rows have none of their own."""
    rows = [(i, got[0]) for i, got in enumerate(read(out)) if got is not None]
    return rows, sorted(round(eta, 9) for eta in etas_in(out))


@pytest.mark.parametrize("shared", ["none", "partners", "eta", "both"])
@pytest.mark.parametrize("eta_per", ["call", "image"])
def test_sites_share_what_they_are_told_within_a_step(shared: str, eta_per: str) -> None:
    sites, x = [layer(seed, shared=shared, eta_per=eta_per, **RANDOM) for seed in (1, 2, 3)], units(16)
    steps = []
    for _ in range(2):
        with batch_step():
            steps.append([what(site(x)) for site in sites])
    for part, names in ((0, ("partners", "both")), (1, ("eta", "both"))):
        for step in steps:
            values = [str(site[part]) for site in step]
            assert len(set(values)) == (1 if shared in names else 3)
        assert str(steps[0][0][part]) != str(steps[1][0][part]), "another step draws anew"


@pytest.mark.parametrize("shared", ["eta", "both"])
@pytest.mark.parametrize("eta_per", ["call", "image"])
def test_sites_that_share_eta_keep_their_own_distributions(shared: str, eta_per: str) -> None:
    """The paper's nets have a magnitude a place; the first one's served all of them once."""
    given_ = (0.05, 0.1, "U[0.2,0.6]", "U[-0.4,-0.2]", "0.7:0.5,0.9:0.5")
    mixing: dict[str, Any] = {"k": 6, "partners": "no-self", "shared": shared, "eta_per": eta_per}
    sites, drawn_ = [layer(seed, eta=eta, **mixing) for seed, eta in enumerate(given_)], set()
    for _ in range(6):
        with batch_step():
            etas = [etas_in(site(units(12))) for site in sites]
        assert all(len(found) == 6 for found in etas)
        for one, two, wide, negative, either in zip(*etas, strict=True):
            assert (one, two) == pytest.approx((0.05, 0.1), abs=1e-12)
            share = (wide - 0.2) / 0.4
            assert negative == pytest.approx(-0.4 + 0.2 * share, abs=1e-9), "the same place in its own interval"
            assert either == pytest.approx(0.7 if share < 0.5 else 0.9, abs=1e-12)
            drawn_.add(round(share, 9))
    assert len(drawn_) == (36 if eta_per == "image" else 6)


def test_sites_that_share_eta_may_move_other_counts_of_rows() -> None:
    mixing: dict[str, Any] = {"eta": "U[0.1,0.9]", "partners": "no-self", "shared": "eta", "eta_per": "image"}
    sites = [layer(seed, k=k, **mixing) for seed, k in enumerate((2, 9, 5))]
    with batch_step():
        etas = [etas_in(site(units(12))) for site in sites]
    assert [len(found) for found in etas] == [2, 9, 5]
    assert etas[0] == pytest.approx(etas[1][:2])
    assert etas[2] == pytest.approx(etas[1][:5])


@pytest.mark.parametrize("kind", ["different-class", "same-class"])
def test_shared_partners_by_class(kind: str) -> None:
    labels = [0, 1, 2, 0, 1, 2, 0, 1]
    sites = [layer(seed, k=1.0, eta=0.25, partners=kind, shared="partners") for seed in (1, 2)]
    with batch_step(torch.tensor(labels)):
        one, two = (partners_in(site(units(8))) for site in sites)
    assert one == two
    assert all(partner in allowed(kind, labels, i) for i, partner in enumerate(one))


def test_a_site_that_shares_nothing_is_not_drawn_in() -> None:
    shared = [layer(seed, shared="both", **RANDOM) for seed in (1, 2)]
    alone = layer(3, **RANDOM)
    want = what(copy.deepcopy(alone)(units(16)))
    with batch_step():
        one, other, two = (what(site(units(16))) for site in (shared[0], alone, shared[1]))
    assert one == two
    assert other == want != one


@pytest.mark.parametrize("shared", ["partners", "eta", "both"])
def test_sharing_needs_a_step(shared: str) -> None:
    with pytest.raises(ValueError, match=in_order(f"shared {shared} step `with")) as e:
        layer(shared=shared)(units(4))
    assert "\n" not in str(e.value)


def test_steps_may_be_nested() -> None:
    module, x = layer(k=1.0, eta=0.5, partners="mutual").eval(), units(4)
    with batch_step(active=True):
        with batch_step(active=False):
            assert module(x) is x
        assert not torch.equal(module(x), x)


def test_several_calls_of_one_module_draw_anew() -> None:
    module, x = layer(**RANDOM), units(16)
    found = [str(what(module(x))) for _ in range(5)]
    assert len(set(found)) == 5
    assert int(module.draws[1]) == 5


# --- randomness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_generator_gives_the_same_draws_and_another_one_others(kind: str) -> None:
    options: dict[str, Any] = {"eta": "U[0.1,0.9]", "k": 1.0, "partners": kind}
    torch.manual_seed(1)
    one = sequence(layer(1, **options))
    torch.manual_seed(2)  # a global seed must not matter
    assert same(one, sequence(layer(1, **options)))
    assert not any(map(torch.equal, one, sequence(layer(2, **options))))
    assert not torch.equal(one[0], one[1])


def test_two_layers_of_one_generator_draw_differently() -> None:
    source = seeded()
    one, two = (BatchOut(Mixing(**RANDOM), generator=source) for _ in range(2))
    assert what(one(units(16))) != what(two(units(16)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_random_state_is_left_alone(kind: str) -> None:
    before = torch.get_rng_state()
    with batch_step(torch.arange(8) % 3):
        layer(eta="U[0,1]", eta_per="image", rows="random", partners=kind)(units(8))
        model = nn.Sequential(nn.Linear(8, 4))
        state = torch.get_rng_state()
        batchout_at(model, {"0": Mixing(partners=kind)}, generator=seeded())
        model(units(8).float())
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(before)
    layer(eta="0.1:0.5,0.2:0.5", partners="replacement")(units(8))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_carries_the_sequence_on(kind: str) -> None:
    module, other = (layer(seed, eta="U[0.1,0.9]", k=1.0, partners=kind) for seed in (1, 2))
    want = sequence(layer(1, eta="U[0.1,0.9]", k=1.0, partners=kind), 5)
    assert same(sequence(module, 2), want[:2])
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert same(sequence(other), want[2:])


def test_a_deepcopy_is_equal_and_independent() -> None:
    module = layer(**RANDOM)
    module(units(16))
    twin = copy.deepcopy(module)
    want = sequence(copy.deepcopy(module), 4)
    assert same(sequence(twin, 3), want[:3])
    assert same(sequence(module, 4), want), "the copy's calls have not moved the original on"
