"""The magnitudes of BatchOut: their distributions, their text, their settings."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixing import etas_in, layer, often, units
from nets import seeded
from perturblab.layers import Magnitude, Mixing, parse_magnitude
from told import in_order

# --- magnitudes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.1, -0.3, 0, 2.5])
def test_a_constant_is_the_same_everywhere_and_takes_nothing(value: float) -> None:
    source = seeded()
    assert Magnitude((value,)).draw(4, source).tolist() == [value] * 4
    assert torch.equal(source.get_state(), seeded().get_state())


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.15), (-0.2, 0.1), (0.1, 0.1)])
def test_a_uniform_magnitude_fills_its_interval(low: float, high: float) -> None:
    values = Magnitude((low, high), uniform=True).draw(20_000, seeded()).tolist()
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
    values = Magnitude(tuple(shares), tuple(shares.values())).draw(20_000, seeded()).tolist()
    counted = Counter(values)
    assert set(counted) == {value for value, share in shares.items() if share}
    for value, share in shares.items():
        assert abs(counted[value] / len(values) - share) <= 5 * math.sqrt(share * (1 - share) / len(values))


def test_values_without_probabilities_are_equally_likely() -> None:
    counted = Counter(Magnitude((1.0, 2.0, 3.0)).draw(9000, seeded()).tolist())
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
        ({"k": -1}, "k -1 count fraction [0 1]"),
        ({"k": -0.5}, "k -0.5"),
        ({"k": 1.5}, "k 1.5"),
        ({"k": math.nan}, "k nan"),
        ({"k": math.inf}, "k inf"),
        ({"rows": "last"}, "rows last first random"),
        ({"partners": "other"}, "partners other replacement different-class noise"),
        ({"eta_per": "row"}, "eta_per row call image"),
        ({"shared": "all"}, "shared all partners eta both"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=in_order(text)) as caught:
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
