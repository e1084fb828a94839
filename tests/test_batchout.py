"""BatchOut against plain loops over the paper's algorithm 1: the layer, its partners, its magnitudes, its placement."""

import copy
import io
import math
import random
from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from perturblab.layers import (
    PARTNERS,
    BatchOut,
    Magnitude,
    Mixing,
    batch_step,
    batchout,
    batchout_at,
    draw_partners,
    equal_norm_noise,
    find_sites,
    parse_magnitude,
)
from perturblab.models import NETS, Task, build, published_sites

SEEDS = st.integers(0, 2**40)
often = settings(max_examples=60, deadline=None, derandomize=True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def units(count: int) -> Tensor:
    """Rows that tell what was done to them: mixed with another, row i holds 1 - eta at i and eta at its partner."""
    return torch.eye(count, dtype=torch.float64)


def layer(seed: int = 0, **mixing: Any) -> BatchOut:
    return BatchOut(Mixing(**mixing), generator=generator(seed))


def read(out: Tensor) -> list[tuple[int, float] | None]:
    """What happened to each of the rows of `units`: partner and eta; None where it is as it was."""
    found: list[tuple[int, float] | None] = []
    for i, row in enumerate(out.tolist()):
        others = [(j, value) for j, value in enumerate(row) if j != i and value != 0]
        assert len(others) <= 1, "a row is mixed with one other at most"
        assert row[i] == pytest.approx(1 - (others[0][1] if others else 0), abs=1e-15)
        found.append(others[0] if others else None)
    return found


def partners_in(out: Tensor) -> list[int]:
    return [i if got is None else got[0] for i, got in enumerate(read(out))]


def etas_in(out: Tensor) -> list[float]:
    return [got[1] for got in read(out) if got is not None]


def looped(x: Tensor, partners: list[int], etas: list[float], rows: list[int]) -> Tensor:
    """Algorithm 1, value by value: d = x_r - x of the batch as it came, then x + eta d for the rows that are moved."""
    flat = x.flatten(1).tolist()
    out = [list(row) for row in flat]
    for row, partner, eta in zip(rows, partners, etas, strict=True):
        for at, value in enumerate(flat[row]):
            out[row][at] = value + eta * (flat[partner][at] - value)
    return torch.tensor(out, dtype=x.dtype).reshape(x.shape)


# --- the algorithm --------------------------------------------------------------------------------------------------


def test_one_step_by_hand() -> None:
    x = torch.tensor([[0.0, 4.0], [8.0, 0.0], [1.0, 1.0]])
    out = batchout(x, torch.tensor([1, 2]), torch.tensor(0.25))
    assert out.tolist() == [[2.0, 3.0], [6.25, 0.25], [1.0, 1.0]]


@often
@given(data=st.data(), shape=st.lists(st.integers(1, 3), min_size=1, max_size=4), count=st.integers(1, 6))
def test_batchout_is_algorithm_1(data: st.DataObject, shape: list[int], count: int) -> None:
    moved = data.draw(st.integers(0, count))
    partners = data.draw(st.lists(st.integers(0, count - 1), min_size=moved, max_size=moved))
    eta = data.draw(st.floats(-1, 1))
    x = drawn(count, *shape)
    out = batchout(x, torch.tensor(partners, dtype=torch.int64), torch.tensor(eta, dtype=torch.float64))
    want = looped(x, partners, [eta] * moved, list(range(moved)))
    torch.testing.assert_close(out, want, rtol=1e-13, atol=1e-13)
    assert torch.equal(out[moved:], x[moved:]), "the others pass bit for bit"


@often
@given(data=st.data(), count=st.integers(1, 6))
def test_batchout_with_given_rows_and_a_magnitude_for_each(data: st.DataObject, count: int) -> None:
    rows = data.draw(st.lists(st.integers(0, count - 1), unique=True))
    partners = data.draw(st.lists(st.integers(0, count - 1), min_size=len(rows), max_size=len(rows)))
    etas = data.draw(st.lists(st.floats(-1, 1), min_size=len(rows), max_size=len(rows)))
    x = drawn(count, 2, 3)
    arguments = (torch.tensor(values, dtype=torch.int64) for values in (partners, rows))
    chosen, places = arguments
    out = batchout(x, chosen, torch.tensor(etas, dtype=torch.float64), places)
    torch.testing.assert_close(out, looped(x, partners, etas, rows), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("eta", [0.1, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_magnitude_may_be_a_number(eta: float, dtype: torch.dtype) -> None:
    x, noise, alike = drawn(4, 3).to(dtype), drawn(2, 3, seed=1), torch.tensor(eta, dtype=torch.float64)
    assert torch.equal(batchout(x, torch.tensor([3, 2]), eta), batchout(x, torch.tensor([3, 2]), alike))
    assert torch.equal(equal_norm_noise(x, noise, eta), equal_norm_noise(x, noise, alike))


def test_partners_are_taken_from_the_batch_as_it_came() -> None:
    """Row 0 moves, and row 1, whose partner it is, must not see that."""
    out = batchout(units(3), torch.tensor([1, 0]), torch.tensor(0.5))
    assert out.tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]


def test_a_row_that_is_its_own_partner_keeps_its_values() -> None:
    x = drawn(5, 7)
    partners = torch.tensor([3, 1, 2, 0, 4])
    out = batchout(x, partners, torch.tensor(0.3))
    assert [torch.equal(a, b) for a, b in zip(out, x, strict=True)] == [False, True, True, False, True]


@pytest.mark.parametrize(
    ("k", "count", "moved"),
    [
        (0.5, 8, 4),
        (0.5, 7, 3),
        (0.5, 9, 4),
        (0.5, 1, 0),
        (0.1, 19, 1),
        (0.29, 100, 29),
        (1.0, 7, 7),
        (0.0, 7, 0),
        (0, 7, 0),
        (1, 7, 1),
        (3, 7, 3),
        (12, 20, 12),  # the code of the reproduction takes 12 for a fraction: D18
        (7, 7, 7),
        (9, 7, 7),
    ],
)
def test_the_first_k_rows_are_moved(k: float, count: int, moved: int) -> None:
    """A fraction is rounded down, a count is never more than the batch; row 0 is among them (D3)."""
    out = layer(k=k, eta=0.25, partners="no-self")(units(count))
    assert [got is not None for got in read(out)] == [True] * moved + [False] * (count - moved)


@pytest.mark.parametrize("kind", [*PARTNERS, "noise"])
@pytest.mark.parametrize("k", [0, 0.0])
def test_no_rows_is_an_exact_no_op(k: float, kind: str) -> None:
    x = drawn(6, 2, 2)
    assert layer(k=k, partners=kind)(x) is x


@pytest.mark.parametrize("kind", [*PARTNERS, "noise"])
def test_a_magnitude_of_zero_is_an_exact_no_op(kind: str) -> None:
    x = drawn(6, 2, 2).requires_grad_()
    with batch_step(torch.tensor([0, 1, 2, 0, 1, 2])):
        out = layer(eta=0, k=1.0, partners=kind)(x)
    assert torch.equal(out, x)
    weights = drawn(6, 2, 2, seed=1)
    (out * weights).sum().backward()
    assert torch.equal(x.grad, weights)


@pytest.mark.parametrize("kind", [*PARTNERS, "noise"])
@pytest.mark.parametrize("k", [0.5, 1.0, 3])
def test_an_empty_batch_and_a_batch_of_one(kind: str, k: float) -> None:
    module = layer(eta=0.5, k=k, partners=kind)
    for count in (0, 1):
        x = drawn(count, 2, 3)
        with batch_step(torch.zeros(count, dtype=torch.int64)):
            out = module(x)
        assert out.shape == x.shape
        assert torch.equal(out, x) == (kind != "noise" or k == 0.5 or count == 0), "alone there is no other to mix with"


# --- modes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*PARTNERS, "noise"])
def test_eval_is_the_identity_and_draws_nothing(kind: str) -> None:
    """D2: the published layers went on mixing in evaluation. It asks for no labels and no step either."""
    module, x = layer(eta=0.5, k=1.0, partners=kind, shared="both").eval(), drawn(6, 2, 2)
    before = module.draws.clone()
    assert module(x) is x
    assert torch.equal(module.draws, before)


def test_inference_is_an_opt_in() -> None:
    module, x = layer(eta=0.5, k=1.0, partners="mutual", inference=True).eval(), units(4)
    want = looped(x, [3, 2, 1, 0], [0.5] * 4, [0, 1, 2, 3])
    assert torch.equal(module(x), want)
    assert torch.equal(module.train()(x), want)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("inference", [True, False])
def test_a_step_switches_the_sites_on_and_off(training: bool, inference: bool) -> None:
    module, x = layer(eta=0.5, k=1.0, partners="mutual", inference=inference).train(training), units(4)
    want = looped(x, [3, 2, 1, 0], [0.5] * 4, [0, 1, 2, 3])
    with batch_step(active=True):
        assert torch.equal(module(x), want)
    with batch_step(active=False):
        assert module(x) is x
    with batch_step():
        assert torch.equal(module(x), want) == (training or inference)
    assert torch.equal(module(x), want) == (training or inference), "the step has ended"


@pytest.mark.parametrize("k", [0, 1, 0.5])
def test_given_partners_are_used_for_all_rows(k: float) -> None:
    """Inference-time BatchOut of the reproduction: every row towards the first, with weight 1 - n."""
    module, x = layer(eta=0.3, k=k, partners="different-class").eval(), drawn(5, 4)
    with batch_step(active=True, partners=torch.zeros(5, dtype=torch.int64)):
        out = module(x)
    torch.testing.assert_close(out, looped(x, [0] * 5, [0.3] * 5, list(range(5))), rtol=1e-13, atol=1e-13)


def test_given_partners_do_not_switch_a_site_on() -> None:
    module, x = layer(k=1.0).eval(), drawn(5, 4)
    with batch_step(partners=torch.zeros(5, dtype=torch.int64)):
        assert module(x) is x


@pytest.mark.parametrize("count", [1, 4, 6])
def test_given_partners_that_do_not_fit_the_batch_are_refused(count: int) -> None:
    text = rf"^partners are \({count},\); expected \(5,\), one for each row of the batch$"
    with batch_step(partners=torch.zeros(count, dtype=torch.int64)), pytest.raises(ValueError, match=text):
        layer()(drawn(5, 4))


def test_noise_goes_on_where_partners_are_given() -> None:
    module, x = layer(eta=0.3, k=0.5, partners="noise"), drawn(4, 5)
    twin = copy.deepcopy(module)
    with batch_step(partners=torch.zeros(4, dtype=torch.int64)):
        assert torch.equal(module(x), twin(x))
    with batch_step(partners=torch.zeros(4, dtype=torch.int64)):
        assert layer(k=0, partners="noise")(x) is x


def test_a_step_ends_with_an_error_too() -> None:
    with pytest.raises(KeyError), batch_step(active=True):
        raise KeyError
    x = units(4)
    assert layer(k=1.0).eval()(x) is x


# --- gradients ------------------------------------------------------------------------------------------------------


def derivative(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """d out[i] / d x[j] for rows of one value each, (N, N)."""
    return jacobian(lambda flat: function(flat[:, None])[:, 0], x[:, 0])


def test_the_derivative_is_the_identity() -> None:
    """Section 6.1 of the paper: the added part is a constant, so nothing flows to the partner."""
    partners = torch.tensor([2, 0, 2])
    have = derivative(lambda x: batchout(x, partners, torch.tensor(0.3)), drawn(5, 1))
    assert torch.equal(have, units(5))


@pytest.mark.parametrize("kind", [*PARTNERS, "noise"])
def test_the_derivative_of_the_layer_is_the_identity(kind: str) -> None:
    def call(x: Tensor) -> Tensor:
        with batch_step(torch.tensor([0, 1, 0, 1])):
            return layer(eta=0.3, k=1.0, partners=kind)(x)

    x = drawn(4, 1)
    assert not torch.equal(call(x), x)
    assert torch.equal(derivative(call, x), units(4))


def test_undetached_the_derivative_is_shared_with_the_partner() -> None:
    partners, eta = torch.tensor([2, 0, 2]), 0.3
    have = derivative(
        lambda x: batchout(x, partners, torch.tensor(eta, dtype=torch.float64), detach=False), drawn(5, 1)
    )
    want = units(5)
    for row, partner in enumerate(partners.tolist()):
        want[row, row] -= eta
        want[row, partner] += eta
    torch.testing.assert_close(have, want, rtol=1e-14, atol=1e-14)
    assert want[2, 2] == 1, "a row that is its own partner"


@pytest.mark.parametrize("kind", [*PARTNERS, "noise"])
def test_undetached_gradcheck(kind: str) -> None:
    labels = torch.tensor([0, 1, 0, 1])

    def call(x: Tensor) -> Tensor:
        with batch_step(labels):
            return layer(eta=0.3, k=0.75, partners=kind, detach=False)(x)

    assert torch.autograd.gradcheck(call, (drawn(4, 2, 2).requires_grad_(),))


@pytest.mark.parametrize("before", [nn.Sigmoid(), nn.Tanh(), nn.ReLU(inplace=False), nn.Softplus(), nn.Identity()])
@pytest.mark.parametrize("options", [{}, {"detach": False}, {"partners": "noise"}, {"rows": "random"}], ids=str)
def test_it_never_works_in_place(before: nn.Module, options: dict[str, Any]) -> None:
    """D3: the published layer wrote into its input, and after a sigmoid the backward pass failed."""
    x = drawn(6, 3).requires_grad_()
    features = before(x)
    value, version = features.detach().clone(), features._version
    out = layer(eta=0.5, k=1.0, **options)(features)
    assert torch.equal(features, value)
    assert features._version == version
    assert out.data_ptr() != features.data_ptr()
    assert not torch.equal(out, features)
    out.sum().backward()
    if options.get("detach", True):
        other = x.detach().clone().requires_grad_()
        before(other).sum().backward()
        assert torch.equal(x.grad, other.grad)


def test_a_relu_in_place_may_follow() -> None:
    x = drawn(6, 3).requires_grad_()
    out = nn.Sequential(nn.Sigmoid(), layer(eta=-0.9, k=0.5), nn.ReLU(inplace=True))(x)
    out.square().sum().backward()
    assert torch.isfinite(x.grad).all()


# --- magnitudes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.1, -0.3, 0, 2.5])
def test_a_constant_is_the_same_everywhere_and_takes_nothing(value: float) -> None:
    source = generator()
    assert Magnitude((value,)).draw(4, source).tolist() == [value] * 4
    assert torch.equal(source.get_state(), generator().get_state())


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.15), (-0.2, 0.1), (0.1, 0.1)])
def test_a_uniform_magnitude_fills_its_interval(low: float, high: float) -> None:
    values = Magnitude((low, high), uniform=True).draw(20_000, generator()).tolist()
    width = high - low
    assert all(low - 1e-8 <= value <= high + 1e-8 for value in values)
    mean = sum(values) / len(values)
    assert abs(mean - (low + high) / 2) <= 5 * width / math.sqrt(12 * len(values)) + 1e-8
    for part in range(4):
        edge = low + width * part / 4
        share = sum(edge <= value < edge + width / 4 for value in values) / len(values)
        assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / len(values)) or not width


@pytest.mark.parametrize(
    "shares", [{0.3: 0.6, -0.2: 0.3, 0.0: 0.1}, {0.3: 0.6, -0.2: 0.4}, {0.5: 1.0, 0.1: 0.0}], ids=str
)
def test_discrete_magnitudes_come_with_their_probabilities(shares: dict[float, float]) -> None:
    """The reproduction's n from {.3, -.2, 0} with .6, .3, .1."""
    values = Magnitude(tuple(shares), tuple(shares.values())).draw(20_000, generator()).tolist()
    counted = Counter(values)
    assert set(counted) == {value for value, share in shares.items() if share}
    for value, share in shares.items():
        assert abs(counted[value] / len(values) - share) <= 5 * math.sqrt(share * (1 - share) / len(values))


def test_values_without_probabilities_are_equally_likely() -> None:
    counted = Counter(Magnitude((1.0, 2.0, 3.0)).draw(9000, generator()).tolist())
    assert all(abs(counted[value] - 3000) < 5 * math.sqrt(9000 * 2 / 9) for value in (1.0, 2.0, 3.0))


@often
@given(share=st.floats(0, 1, exclude_max=True), weights=st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_a_share_is_read_in_a_distribution_as_a_plain_loop_reads_it(share: float, weights: list[int]) -> None:
    """Of values by adding probabilities up until the share is passed."""
    given_ = torch.tensor([share], dtype=torch.float64)
    ends = Magnitude((-0.2, 0.6), uniform=True).at(given_)
    assert float(ends) == pytest.approx(-0.2 + 0.8 * share, abs=1e-15)
    assert Magnitude((0.3,)).at(given_).tolist() == [0.3]
    if not sum(weights):
        return
    values, chances = [float(n) for n in range(len(weights))], [weight / sum(weights) for weight in weights]
    gone, want = 0.0, None
    for value, chance in zip(values, chances, strict=True):
        gone += chance
        if share < gone and want is None:
            want = value
    if all(abs(share - sum(chances[:n])) > 1e-9 for n in range(1, len(chances) + 1)):  # else rounding decides
        assert Magnitude(tuple(values), tuple(chances)).at(given_).tolist() == [want]
    equal = Magnitude(tuple(values)).at(given_)
    assert equal.tolist() == [min(math.floor(share * len(values) + 1e-12), len(values) - 1)]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("0.1", Magnitude((0.1,))),
        (0.1, Magnitude((0.1,))),
        (0, Magnitude((0.0,))),
        ("-0.3", Magnitude((-0.3,))),
        ("1e-2", Magnitude((0.01,))),
        ("U[0,0.15]", Magnitude((0.0, 0.15), uniform=True)),
        ("u[ -0.1 , 0.2 ]", Magnitude((-0.1, 0.2), uniform=True)),
        ("0.3:0.6,-0.2:0.4", Magnitude((0.3, -0.2), (0.6, 0.4))),
        (" 0.3:0.6, -0.2:0.3, 0:0.1 ", Magnitude((0.3, -0.2, 0.0), (0.6, 0.3, 0.1))),
    ],
    ids=str,
)
def test_magnitudes_are_read_from_text(text: str | float, want: Magnitude) -> None:
    assert parse_magnitude(text) == want
    assert Mixing(eta=text).magnitude == Mixing(eta=want).magnitude == want


NUMBERS = st.floats(-1e3, 1e3)


@often
@given(
    made=st.one_of(
        st.builds(lambda value: Magnitude((value,)), NUMBERS),
        st.builds(lambda ends: Magnitude(tuple(sorted(ends)), uniform=True), st.tuples(NUMBERS, NUMBERS)),
        st.lists(NUMBERS, min_size=2, max_size=9).map(lambda values: Magnitude(tuple(values))),
        st.lists(st.tuples(NUMBERS, st.integers(1, 50)), min_size=2, max_size=5).map(
            lambda pairs: Magnitude(
                tuple(value for value, _ in pairs), tuple(n / sum(n for _, n in pairs) for _, n in pairs)
            )
        ),
    )
)
def test_what_is_written_reads_back_as_the_same(made: Magnitude) -> None:
    again = parse_magnitude(str(made))
    assert (again.values, again.uniform) == (made.values, made.uniform)
    equal = (1 / len(made.values),) * len(made.values)
    assert (again.probabilities or equal) == (made.probabilities or equal)
    assert str(again) == str(made)


@pytest.mark.parametrize("text", ["0.1", "-0.3", "0", "U[0,0.15]", "U[-0.2,1]", "0.3:0.6,-0.2:0.4"])
def test_what_is_written_is_what_was_typed(text: str) -> None:
    assert str(parse_magnitude(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "much", "0.1,0.2", "nan", "inf"),
        *("U[0]", "U[0,0.1", "U[0.2,0.1]", "U[0,inf]"),
        *("0.3:", ":1", "0.3:0.6,-0.2", "0.3:0.6:1"),
        *("0.3:0.6,-0.2:0.5", "0.3:1.5,-0.2:-0.5", "0.3:nan,0.1:1", "0.3:0,0.1:0"),
    ],
)
def test_magnitudes_that_make_no_sense_are_refused(text: str) -> None:
    for call in (parse_magnitude, lambda text: Mixing(eta=text)):
        with pytest.raises(ValueError, match=r"^eta .*expected ") as caught:
            call(text)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settled",
    [
        {"values": ()},
        {"values": (math.nan,)},
        {"values": (0.1,), "uniform": True},
        {"values": (0.1, 0.2), "probabilities": (1.0,)},
        {"values": (0.1, 0.2), "probabilities": (0.5, 0.5), "uniform": True},
    ],
    ids=str,
)
def test_distributions_that_make_no_sense_are_refused(settled: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^eta .*expected "):
        Magnitude(**settled)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"k": -1}, r"k is -1; choose a count of rows, or a fraction in \[0, 1\]"),
        ({"k": -0.5}, r"k is -0\.5; choose"),
        ({"k": 1.5}, r"k is 1\.5; choose"),
        ({"k": math.nan}, r"k is nan; choose"),
        ({"k": math.inf}, r"k is inf; choose"),
        ({"rows": "last"}, "rows is 'last'; choose one of first, random"),
        ({"partners": "other"}, "partners is 'other'; choose one of replacement, .*different-class, .*noise"),
        ({"eta_per": "row"}, "eta_per is 'row'; choose one of call, image"),
        ({"shared": "all"}, "shared is 'all'; choose one of none, partners, eta, both"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        Mixing(**given)
    assert "\n" not in str(caught.value)


def test_a_magnitude_is_drawn_once_a_call_or_for_every_image() -> None:
    once, each = (
        layer(eta="U[0.1,0.9]", k=1.0, partners="no-self", eta_per=per)(units(12)) for per in ("call", "image")
    )
    assert len(etas_in(once)) == len(etas_in(each)) == 12
    assert len({round(eta, 12) for eta in etas_in(once)}) == 1
    assert len({round(eta, 12) for eta in etas_in(each)}) == 12
    module = layer(eta="U[0.1,0.9]", k=1.0, partners="no-self")
    assert len({round(etas_in(module(units(3)))[0], 12) for _ in range(10)}) == 10, "every call draws another"


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
    chosen = draw_partners(kind, len(labels), torch.tensor(labels, dtype=torch.int64), generator=generator(seed))
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
    source, rounds, given = generator(1), 3000, torch.tensor(labels)
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
    source, rounds = generator(2), 4000
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
    assert draw_partners(kind, count, labels, generator=generator()).tolist() == own
    x = units(count)
    with batch_step(labels):
        assert torch.equal(layer(eta=0.5, k=1.0, partners=kind)(x), x)


def test_labels_of_any_integer_type_and_in_any_order() -> None:
    for dtype in (torch.int32, torch.uint8, torch.bool):
        labels = torch.tensor([1, 0, 1, 0, 0]).to(dtype)
        chosen = draw_partners("different-class", 5, labels, generator=generator())
        assert (labels[chosen] != labels).all()


@pytest.mark.parametrize("kind", ["different-class", "same-class"])
@pytest.mark.parametrize(
    ("labels", "got"), [(None, "none"), (torch.zeros(3), r"\(3,\)"), (torch.zeros(4, 2), r"\(4, 2\)")], ids=str
)
def test_partners_by_class_need_a_label_for_every_row(kind: str, labels: Tensor | None, got: str) -> None:
    text = rf"^partners '{kind}' needs the labels of the 4 rows, got {got}; call the model inside `with batch_step\("
    with pytest.raises(ValueError, match=text) as caught:
        draw_partners(kind, 4, labels, generator=generator())
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=text), batch_step(labels):
        layer(partners=kind)(units(4))


def test_partners_by_class_need_a_step() -> None:
    with pytest.raises(ValueError, match="needs the labels of the 4 rows, got none"):
        layer(partners="different-class")(units(4))


def test_an_unknown_kind_of_partner_is_refused() -> None:
    with pytest.raises(ValueError, match="partners is 'others'; choose one of replacement, permutation, mutual"):
        draw_partners("others", 4, generator=generator())


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
    with pytest.raises(ValueError, match=rf"^shared is '{shared}' and there is no step; call the model in `with ") as e:
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


# --- noise of equal norm (equation 5) -------------------------------------------------------------------------------


@often
@given(count=st.integers(1, 5), shape=st.lists(st.integers(1, 3), min_size=1, max_size=3), eta=st.floats(-1, 1))
def test_equal_norm_noise_is_equation_5(count: int, shape: list[int], eta: float) -> None:
    x, noise = drawn(count, *shape), drawn(max(count - 1, 1), *shape, seed=1)
    out = equal_norm_noise(x, noise, torch.tensor(eta, dtype=torch.float64))
    want = x.flatten(1).tolist()
    for row, direction in enumerate(noise.flatten(1).tolist()):
        length = math.sqrt(sum(value**2 for value in want[row])) / math.sqrt(sum(value**2 for value in direction))
        want[row] = [value + eta * length * n for value, n in zip(want[row], direction, strict=True)]
    torch.testing.assert_close(out, torch.tensor(want, dtype=x.dtype).reshape(x.shape), rtol=1e-12, atol=1e-12)


def test_noise_of_the_layer_has_the_length_eta_times_that_of_the_features() -> None:
    x, module = drawn(8, 3, 4, 5), layer(eta=0.3, k=0.5, partners="noise")
    first, second = (module(x) - x for _ in range(2))
    for delta in (first, second):
        want = 0.3 * x.flatten(1).norm(dim=1)
        torch.testing.assert_close(delta.flatten(1).norm(dim=1)[:4], want[:4])
        assert not delta[4:].any()
    cosine = nn.functional.cosine_similarity(first[:4].flatten(1), second[:4].flatten(1))
    assert cosine.abs().max() < 0.6, "every call has its own directions"
    rows = nn.functional.cosine_similarity(first[0].flatten(), first[1].flatten(), dim=0)
    assert rows.abs() < 0.6, "and so has every row"


def test_directions_of_the_noise_are_spread_evenly() -> None:
    """Rows of length 1 moved by 1: the mean of a coordinate is 0 and its mean square 1 over their number."""
    x = torch.zeros(4000, 5, dtype=torch.float64)
    x[:, 0] = 1
    delta = layer(eta=1, k=1.0, partners="noise")(x) - x
    torch.testing.assert_close(delta.norm(dim=1), torch.ones(4000, dtype=torch.float64))
    assert delta.mean(0).abs().max() < 5 / math.sqrt(5 * 4000)
    assert (delta.square().mean(0) - 1 / 5).abs().max() < 5 * math.sqrt(2 / 25 / 4000)


def test_noise_leaves_features_of_length_zero_alone() -> None:
    x = torch.zeros(4, 3, requires_grad=True)
    out = layer(eta=0.3, k=1.0, partners="noise", detach=False)(x)
    out.sum().backward()
    assert not out.any()
    assert torch.isfinite(x.grad).all()


# --- randomness -----------------------------------------------------------------------------------------------------

KINDS = [*PARTNERS, "noise"]


def sequence(module: nn.Module, calls: int = 3, count: int = 8) -> list[Tensor]:
    x = drawn(count, 4, seed=9)
    outputs = []
    for _ in range(calls):
        with batch_step(torch.arange(count) % 3):
            outputs.append(module(x))
    return outputs


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(map(torch.equal, one, two))


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
    source = generator()
    one, two = (BatchOut(Mixing(**RANDOM), generator=source) for _ in range(2))
    assert what(one(units(16))) != what(two(units(16)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_random_state_is_left_alone(kind: str) -> None:
    before = torch.get_rng_state()
    with batch_step(torch.arange(8) % 3):
        layer(eta="U[0,1]", eta_per="image", rows="random", partners=kind)(units(8))
        model = nn.Sequential(nn.Linear(8, 4))
        state = torch.get_rng_state()
        batchout_at(model, {"0": Mixing(partners=kind)}, generator=generator())
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


# --- types, layouts, compilation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_type_of_the_features_is_kept(kind: str, dtype: torch.dtype) -> None:
    x = drawn(8, 3, 2, 2).to(dtype).requires_grad_()
    with batch_step(torch.arange(8) % 3):
        out = layer(eta=0.5, k=1.0, partners=kind)(x)
    assert out.dtype is dtype
    assert not torch.equal(out, x)
    out.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("eta", ["0.3", "0.3:1,0.5:0"])
def test_doubles_are_mixed_with_the_magnitude_as_it_was_given(eta: str) -> None:
    x = drawn(6, 4)
    out = layer(eta=eta, k=1.0, partners="mutual")(x)
    torch.testing.assert_close(out, looped(x, [5, 4, 3, 2, 1, 0], [0.3] * 6, list(range(6))), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast(kind: str) -> None:
    """Behind a convolution the features are bfloat16, and stay so; what comes in float32 stays float32."""
    module = nn.Sequential(nn.Conv2d(2, 3, 3), layer(eta=0.5, k=0.5, partners=kind), nn.ReLU())
    x = drawn(8, 2, 6, 5).float().requires_grad_()
    with batch_step(torch.arange(8) % 3), torch.autocast("cpu", torch.bfloat16):
        plain = module[2](module[0](x))
        out = module(x)
        features = layer(eta=0.5, partners=kind)(x)
    assert out.dtype is torch.bfloat16
    assert features.dtype is torch.float32
    assert torch.equal(out[4:], plain[4:])
    assert not torch.equal(out[:4], plain[:4])
    out.float().square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_is_kept_and_changes_nothing(kind: str) -> None:
    x = drawn(8, 3, 4, 5)
    spread = x.contiguous(memory_format=torch.channels_last)
    with batch_step(torch.arange(8) % 3):
        want, out = (layer(eta=0.5, partners=kind)(features) for features in (x, spread))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert want.is_contiguous()
    torch.testing.assert_close(out, want, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3), (6, 4, 3, 2), (6, 2, 2, 2, 2)], ids=str)
def test_features_of_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    x = drawn(*shape)
    out = layer(eta=0.25, k=0.5, partners="mutual")(x)
    torch.testing.assert_close(out, looped(x, [5, 4, 3], [0.25] * 3, [0, 1, 2]), rtol=1e-14, atol=1e-14)


def small_net(seed: int = 0, **mixing: Any) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 6), layer(seed, **mixing), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(drawn(*value.shape, seed=value.numel()))
    return net


def test_in_a_sequential_labels_come_by_the_context() -> None:
    """Its forward takes features only; two batches, each with labels of its own."""
    net, x = small_net(eta=1.0, k=1.0, partners="different-class"), drawn(6, 4).float()
    plain = nn.Sequential(net[0], net[2], net[3])
    for labels in ([0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1]):
        with batch_step(torch.tensor(labels)):
            out = net(x)
        # At eta 1 a row becomes its partner, whose answer is then that of a row of another class.
        answers = plain(x)
        for i in range(6):
            found = [j for j in range(6) if torch.allclose(out[i], answers[j], rtol=1e-4, atol=1e-5)]
            assert len(found) == 1
            assert labels[found[0]] != labels[i]


def compiled_as_eager(backend: str) -> None:
    torch.compiler.reset()
    mixing: dict[str, Any] = {"eta": "U[0.1,0.9]", "k": 0.5, "partners": "different-class", "shared": "both"}
    eager, twin = small_net(1, **mixing), small_net(1, **mixing)
    fast = torch.compile(twin, backend=backend)
    x = drawn(8, 4).float()
    turns: list[dict[str, Any]] = [
        {},
        {"active": False},
        {"partners": torch.arange(8).flip(0)},
        {"labels": torch.arange(8) % 4},
        {},
    ]
    for training in (True, False):
        for net in (eager, twin):
            net.train(training)
        for turn in [*turns, {"active": True}]:
            results = []
            for net in (eager, fast):
                with batch_step(**{"labels": torch.arange(8) % 3} | turn):
                    out = net(x)
                eager.zero_grad()
                twin.zero_grad()
                out.square().sum().backward()
                results.append((out, [value.grad for value in (eager if net is eager else twin).parameters()]))
            torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
    assert torch.equal(eager[1].draws, twin[1].draws)
    assert int(eager[1].draws[1]) == 6  # five active turns in training, one in eval


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it traces
def test_compiled_it_follows_mode_and_step_as_eager_does() -> None:
    """Traced, not translated: nothing of the first step may be frozen into what is compiled."""
    compiled_as_eager("eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_it_equals_eager() -> None:
    compiled_as_eager("inductor")


# --- placement ------------------------------------------------------------------------------------------------------


def toy() -> nn.Sequential:
    """Two convolutions and two linear layers, each with a name of its own."""
    net = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 2, 3),
            relu1=nn.ReLU(),
            stage=nn.Sequential(OrderedDict(conv2=nn.Conv2d(2, 3, 3), relu2=nn.ReLU())),
            flatten=nn.Flatten(),
            fc1=nn.Linear(12, 4),
            relu3=nn.ReLU(),
            fc2=nn.Linear(4, 3),
        )
    ).double()
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(drawn(*value.shape, seed=value.numel()))
    return net


def pixels(count: int = 6) -> Tensor:
    return drawn(count, 1, 6, 6, seed=4)


MUTUAL = Mixing(eta=0.25, k=0.5, partners="mutual")


def mutual(x: Tensor) -> Tensor:
    half = len(x) // 2
    return looped(x, [len(x) - 1 - i for i in range(half)], [0.25] * half, list(range(half)))


def fingerprint(model: nn.Module) -> Any:
    """Everything that a placement could leave behind."""
    state = {name: value.tolist() for name, value in model.state_dict().items()}
    parts = {
        name: (sorted(vars(part)), len(part._forward_hooks), len(part._forward_pre_hooks), sorted(part._buffers))
        for name, part in model.named_modules()
    }
    return state, parts


@pytest.mark.parametrize(
    ("rule", "want"),
    [
        ("all", ["conv1", "stage.conv2", "fc1"]),
        ("last", ["fc1"]),
        ("alternate", ["conv1", "fc1"]),
        ("all-after:conv1", ["conv1", "stage.conv2", "fc1"]),
        ("all-after:stage.conv2", ["stage.conv2", "fc1"]),
        ("conv1", ["conv1"]),
        ("fc*", ["fc1", "fc2"]),
        ("*conv?", ["conv1", "stage.conv2"]),
        (["fc1", "conv1"], ["fc1", "conv1"]),
        (["conv*", "conv1", "stage"], ["conv1", "stage"]),
        (nn.Conv2d, ["conv1", "stage.conv2"]),
        (nn.ReLU, ["relu1", "stage.relu2", "relu3"]),
    ],
    ids=str,
)
def test_rules_find_modules(rule: Any, want: list[str]) -> None:
    """A keyword never means the classifier, which the paper leaves alone."""
    assert find_sites(toy(), rule) == want


@pytest.mark.parametrize(
    "rule", ["nope", "conv", "layer*", [], ["conv1", "nope"], nn.LSTM, "all-after:nope", "all-after:relu1", ""], ids=str
)
def test_a_rule_that_matches_nothing_is_an_error(rule: Any) -> None:
    with pytest.raises(ValueError, match=r"matches none of|no module is called") as caught:
        find_sites(toy(), rule)
    assert "\n" not in str(caught.value)
    assert "conv1" in str(caught.value), "it says what there is"


@pytest.mark.parametrize("rule", ["all", "last", "alternate"])
def test_a_net_of_one_layer_has_no_place_but_its_classifier(rule: str) -> None:
    with pytest.raises(ValueError, match="matches none of the 2 modules of Sequential"):
        find_sites(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), rule)


@torch.no_grad()
def test_placed_at_the_outputs_it_is_there() -> None:
    """Behind a layer, so before its ReLU, as in the paper; the same numbers as BatchOut as a layer of its own."""
    net, x = toy(), pixels()
    batchout_at(net, dict.fromkeys(("conv1", "stage.conv2", "fc1"), MUTUAL), generator=generator())
    features = net.relu1(mutual(nn.functional.conv2d(x, net.conv1.weight, net.conv1.bias)))
    conv2, fc1 = net.stage.conv2, net.fc1
    features = torch.relu(mutual(nn.functional.conv2d(features, conv2.weight, conv2.bias))).flatten(1)
    features = torch.relu(mutual(features @ fc1.weight.T + fc1.bias))
    want = features @ net.fc2.weight.T + net.fc2.bias
    torch.testing.assert_close(net(x), want, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_placed_before_a_module_its_input_is_mixed() -> None:
    net, x = toy(), pixels()
    batchout_at(net, {"fc1": MUTUAL}, generator=generator(), before=True)
    features = mutual(net.flatten(net.stage(net.relu1(net.conv1(x)))))
    want = net.fc2(torch.relu(features @ net.fc1.weight.T + net.fc1.bias))
    torch.testing.assert_close(net(x), want, rtol=1e-12, atol=1e-12)
    behind = toy()
    batchout_at(behind, {"relu1": MUTUAL}, generator=generator())
    before = toy()
    batchout_at(before, {"relu1": MUTUAL}, generator=generator(), before=True)
    assert not torch.allclose(behind(x), before(x))


def test_in_eval_a_placed_net_answers_as_before() -> None:
    net, x = toy().eval(), pixels()
    want = net(x)
    batchout_at(net, dict.fromkeys(find_sites(net, "all"), MUTUAL), generator=generator())
    assert torch.equal(net(x), want)
    with batch_step(active=True):
        assert not torch.equal(net(x), want)
    with batch_step(active=False):
        assert torch.equal(net.train()(x), want)


def test_a_part_in_eval_mode_is_left_alone() -> None:
    net, x = toy(), pixels()
    batchout_at(net, {"conv1": MUTUAL}, generator=generator())
    net.conv1.eval()
    assert torch.equal(net(x), toy()(x))


def test_every_placed_site_draws_for_itself() -> None:
    """Two sites on the same features; the second hook sees what the first has left."""
    net = nn.Sequential(nn.Identity(), nn.Identity())
    seen: list[Tensor] = []
    for part in net:
        part.register_forward_pre_hook(lambda part, args: seen.append(args[0]))
    mixing = Mixing(eta=1.0, k=1.0, partners="no-self")  # a row becomes its partner
    batchout_at(net, {"0": mixing, "1": mixing}, generator=generator())
    out = net(units(16))
    first, second = seen[1].argmax(1).tolist(), (out @ seen[1].T).argmax(1).tolist()
    assert first != second


@pytest.mark.parametrize("shared", ["none", "partners"])
def test_sites_of_one_net_share_their_draws_within_a_step(shared: str) -> None:
    net, inputs = nn.Sequential(nn.Identity(), nn.Identity()), list[Tensor]()
    net[1].register_forward_pre_hook(lambda part, args: inputs.append(args[0]))
    mixing = Mixing(eta=0.25, k=1.0, partners="no-self", shared=shared)
    batchout_at(net, {"0": mixing, "1": mixing}, generator=generator())
    for _ in range(2):
        with batch_step():
            out = net(units(8))
        assert (partners_in(inputs[-1]) == who(inputs[-1], out, 0.25)) == (shared == "partners")
    assert partners_in(inputs[0]) != partners_in(inputs[1])


class Twice(nn.Module):
    """One linear layer that is called twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(5, 5)
        self.two = self.one
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.two(torch.tanh(self.one(x)))))


def test_a_module_that_is_called_twice_is_mixed_twice_and_is_one_place() -> None:
    net, x = Twice().double(), drawn(6, 5)
    assert find_sites(net, "all") == find_sites(net, nn.Linear)[:1] == ["one"]
    batchout_at(net, {"one": MUTUAL}, generator=generator())
    want = net.head(torch.tanh(mutual(mutual_free(net, torch.tanh(mutual(mutual_free(net, x)))))))
    torch.testing.assert_close(net(x), want, rtol=1e-12, atol=1e-12)


def mutual_free(net: Twice, x: Tensor) -> Tensor:
    return nn.functional.linear(x, net.one.weight, net.one.bias)


def tied() -> nn.Module:
    return build("vgg19_tied", task=Task(4, 3, (8, 8)), nfilters=3)


@torch.no_grad()
def test_the_shared_block_of_the_tied_net_is_mixed_at_each_of_its_seven_calls() -> None:
    net, plain, mixed = tied(), list[Tensor](), list[Tensor]()
    host = net.get_submodule("shared.width8.conv")
    host.register_forward_hook(lambda part, args, out: plain.append(out))
    mixing = Mixing(eta=0.5, k=1.0, partners="no-self")
    batchout_at(net, {"shared.width8.conv": mixing}, generator=generator())
    host.register_forward_hook(lambda part, args, out: mixed.append(out))
    net(torch.randn(12, 3, 8, 8, generator=generator()))
    assert len(plain) == len(mixed) == 7
    draws = [who(before, after, 0.5) for before, after in zip(plain, mixed, strict=True)]
    assert len(set(map(tuple, draws))) == 7, "every call draws anew"
    assert int(host.get_buffer("batchout_draws")[1]) == 7


def who(x: Tensor, out: Tensor, eta: float) -> list[int]:
    """The partner of every row: the one that explains it best, of all of them."""
    misfit = torch.stack([(out - x - eta * (partner - x)).flatten(1).norm(dim=1) for partner in x], 1)
    assert misfit.amin(1).max() < 1e-5 < 0.1 < (out - x).flatten(1).norm(dim=1).median()
    return misfit.argmin(1).tolist()


@torch.no_grad()
def test_the_positions_of_the_tied_net_are_places_of_their_own() -> None:
    net, names = tied(), [name for name, _ in published_sites("vgg19_tied")]
    batchout_at(net, dict.fromkeys(names, Mixing(eta=0.5)), generator=generator())
    net(torch.randn(6, 3, 8, 8, generator=generator()))
    assert [int(net.get_submodule(name).get_buffer("batchout_draws")[1]) for name in names] == [1] * 5


@pytest.mark.parametrize(
    ("at", "text"),
    [
        ({}, "no place is given for BatchOut; name at least one module"),
        ({"nope": MUTUAL}, "no module is called 'nope'; there are .*conv1"),
        ({"conv1": MUTUAL, "fc1": MUTUAL, "nope": MUTUAL}, "no module is called 'nope'; there are .*conv1"),
        ({"fc1": MUTUAL, "relu3": MUTUAL}, "relu3 has a BatchOut already; remove it first"),
        ({"fc1": MUTUAL, "conv1": None}, r"^the mixing at conv1 is None; expected a Mixing, such as Mixing\(eta=0.1\)"),
    ],
    ids=str,
)
@pytest.mark.parametrize("before", [False, True])
def test_a_placement_that_fails_leaves_the_model_untouched(at: dict[str, Mixing], text: str, before: bool) -> None:
    net, source = toy(), generator()
    batchout_at(net, {"relu3": MUTUAL}, generator=source)
    want, state = fingerprint(net), source.get_state()
    with pytest.raises(ValueError, match=text) as caught:
        batchout_at(net, at, generator=source, before=before)
    assert "\n" not in str(caught.value)
    assert str(fingerprint(net)) == str(want)
    assert torch.equal(source.get_state(), state)


@pytest.mark.parametrize("mixing", ["x", 0, Mixing], ids=str)
def test_a_mixing_that_is_none_is_refused_at_once(mixing: Any) -> None:
    net = toy()
    want = str(fingerprint(net))
    with pytest.raises(ValueError, match=r"^the mixing at conv1 is .*; expected a Mixing"):
        batchout_at(net, "all", mixing, generator=generator())
    assert str(fingerprint(net)) == want


class Gives(nn.Module):
    """A block that gives whatever it is told to make of its features."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        return self.make(x * scale)


@pytest.mark.parametrize("more", [(), (None,), (torch.ones(2, 3),)], ids=["alone", "none", "tensor"])
def test_of_a_tuple_the_first_is_mixed(more: tuple[Any, ...]) -> None:
    block, x = Gives(lambda x: (x, *more)), drawn(6, 5)
    batchout_at(block, {"": MUTUAL}, generator=generator())
    out = block(x)
    assert isinstance(out, tuple)
    torch.testing.assert_close(out[0], mutual(x), rtol=1e-12, atol=1e-12)
    assert all(got is given for got, given in zip(out[1:], more, strict=True))
    assert int(block.get_buffer("batchout_draws")[1]) == 1


@pytest.mark.parametrize(
    ("make", "does"),
    [
        (lambda x: [x], "gives a list"),
        (lambda x: {"x": x}, "gives a dict"),
        (lambda x: None, "gives a NoneType"),
        (lambda x: (), "gives a tuple"),
        (lambda x: (None, x), "gives first a NoneType"),
        (lambda x: ((x,), x), "gives first a tuple"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_what_holds_no_tensor_is_refused_by_name(make: Callable[[Tensor], Any], does: str, training: bool) -> None:
    """In eval too, where nothing is mixed: it would be told too late."""
    net = nn.Sequential(OrderedDict(block=Gives(make)))
    batchout_at(net, "block", generator=generator())
    with pytest.raises(ValueError, match=rf"^block \(Gives\) {does}, and BatchOut mixes a tensor"):
        net.train(training)(drawn(6, 5))


def test_before_a_module_the_first_input_by_position_is_mixed() -> None:
    block, x = Gives(lambda x: x), drawn(6, 5)
    batchout_at(block, {"": MUTUAL}, generator=generator(), before=True)
    torch.testing.assert_close(block(x, scale=2.0), 2 * mutual(x), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"^the model \(Gives\) is given nothing by position, and BatchOut before it"):
        block(x=x)
    with pytest.raises(ValueError, match=r"^the model \(Gives\) takes a list, and BatchOut mixes a tensor"):
        block([x])


@pytest.mark.parametrize("before", [False, True])
def test_what_is_removed_leaves_no_trace(before: bool) -> None:
    net, x = toy(), pixels()
    want, value = str(fingerprint(net)), net(x)
    names = [name for name, _ in net.named_parameters()]
    placed = batchout_at(net, {"conv1": MUTUAL, "fc1": MUTUAL}, generator=generator(), before=before)
    assert placed.names == ("conv1", "fc1")
    assert [name for name, _ in net.named_parameters()] == names
    assert not torch.equal(net(x), value)
    for _ in range(2):
        placed.remove()
        assert str(fingerprint(net)) == want
        assert torch.equal(net(x), value)
    batchout_at(net, {"conv1": MUTUAL}, generator=generator())
    placed.remove()
    assert not torch.equal(net(x), value), "it takes out only what it has put in"


def test_hooks_of_others_stay() -> None:
    net, calls = toy(), list[str]()
    net.conv1.register_forward_hook(lambda part, args, out: calls.append("hook"))
    placed = batchout_at(net, {"conv1": MUTUAL}, generator=generator())
    placed.remove()
    net(pixels())
    assert calls == ["hook"]


ANY = Mixing(eta="U[0.1,0.9]", partners="different-class", rows="random")


def test_the_state_dict_of_a_placed_net_carries_the_sequence_on() -> None:
    nets = [toy(), toy()]
    for seed, net in enumerate(nets):
        batchout_at(net, dict.fromkeys(("conv1", "fc1"), ANY), generator=generator(seed))
    assert {name for name in nets[0].state_dict() if name not in toy().state_dict()} == {
        "conv1.batchout_draws",
        "fc1.batchout_draws",
    }

    def outputs(net: nn.Module, calls: int) -> list[Tensor]:
        with batch_step(torch.arange(6) % 3):
            return [net(pixels()) for _ in range(calls)]

    outputs(nets[0], 2)
    nets[1].load_state_dict(nets[0].state_dict())
    assert same(outputs(nets[0], 3), outputs(nets[1], 3))


def test_a_copy_of_a_placed_net_is_equal_and_independent() -> None:
    net = toy()
    placed = batchout_at(net, {"conv1": ANY, "fc1": ANY}, generator=generator())
    twin = copy.deepcopy(net)
    with batch_step(torch.arange(6) % 3):
        want = [twin(pixels()) for _ in range(3)]
        assert int(net.conv1.batchout_draws[1]) == 0
        assert same([net(pixels()) for _ in range(3)], want)
        assert not torch.equal(want[0], want[1])
        placed.remove()
        assert not torch.equal(twin(pixels()), net(pixels())), "the copy keeps its own"


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it traces
def test_a_placed_net_is_compiled_as_it_is() -> None:
    torch.compiler.reset()
    nets = [toy(), toy()]
    for net in nets:
        batchout_at(net, dict.fromkeys(("conv1", "fc1"), ANY), generator=generator())
    fast = torch.compile(nets[1], backend="eager")
    for _ in range(3):
        with batch_step(torch.arange(6) % 3):
            torch.testing.assert_close(fast(pixels()), nets[0](pixels()))
    assert torch.equal(nets[0].fc1.batchout_draws, nets[1].fc1.batchout_draws)


SMALL: dict[str, dict[str, Any]] = {"bottleneck_resnet": {"blocks": 1}, "batchout_mnist": {"padding": 2}}
WITH_SITES = [net for net in NETS if published_sites(net)]


def test_nets_with_published_places_are_the_five_of_the_sources() -> None:
    assert WITH_SITES == ["batchout_mnist", "batchout_cifar", "bottleneck_resnet", "vgg19", "vgg19_tied"]


@pytest.mark.parametrize("name", WITH_SITES)
@torch.no_grad()
def test_published_places_work_in_training_only(name: str) -> None:
    net = build(name, task=Task(4, 3, (8, 8)), nfilters=4, **SMALL.get(name, {}))
    x = torch.randn(8, 3, 8, 8, generator=generator())
    plain = net.eval()(x)
    sites = published_sites(name)
    placed = batchout_at(net, {site: Mixing(eta=eta) for site, eta in sites}, generator=generator())
    assert torch.equal(net(x), plain), "in eval mode"
    state = {key: value.clone() for key, value in net.state_dict().items()}
    outputs = []
    for active in (False, None):  # the same dropout and batch statistics
        net.load_state_dict(state)
        with torch.random.fork_rng(devices=[]), batch_step(active=active):
            torch.manual_seed(0)
            outputs.append(net.train()(x))
    assert not torch.allclose(*outputs, rtol=1e-3, atol=1e-5), "in training"
    assert [int(net.get_submodule(site).get_buffer("batchout_draws")[1]) for site, _ in sites] == [1] * len(sites)
    net.load_state_dict(state)
    placed.remove()
    assert torch.equal(net.eval()(x), plain)
