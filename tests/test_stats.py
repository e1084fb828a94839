"""Every number against scipy, a closed form, a plain loop or a simulation."""

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from perturblab import stats
from told import in_order

POINTS = st.floats(-100, 100).map(lambda x: round(x, 3))
PERCENT = st.floats(0, 100).map(lambda x: round(x, 2))
PAIRS = st.lists(st.tuples(PERCENT, PERCENT), min_size=1, max_size=9)


def brute_force_flip(d):
    seen = abs(sum(d))
    sums = [
        abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product((1, -1), repeat=len(d))
    ]
    return sum(s >= seen - 1e-9 * sum(map(abs, d)) for s in sums) / len(sums)


@given(
    st.integers(1, 20000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.sampled_from([0.8, 0.95, 0.99]),
)
def test_wilson_agrees_with_scipy(counts, confidence):
    correct, total = counts
    want = scipy_stats.binomtest(correct, total).proportion_ci(confidence, method="wilson")
    assert stats.wilson(correct, total, confidence) == pytest.approx((100 * want.low, 100 * want.high), abs=1e-9)


def test_wilson_in_closed_form_and_in_range():
    assert stats.wilson(0, 10)[0] == 0.0
    assert stats.wilson(10, 10)[1] == 100.0
    z2 = 1.959963984540054**2
    assert stats.wilson(0, 10)[1] == pytest.approx(100 * z2 / (10 + z2))
    low, high = stats.wilson(9500, 10000)
    assert (high - low) / (2 * 1.96) == pytest.approx(0.22, abs=0.005)  # sd of 10 000 images at 95 %


@pytest.mark.parametrize(("correct", "total"), [(-1, 10), (11, 10), (0, 0), (1, -1)])
def test_wilson_refuses_what_is_no_count(correct, total):
    with pytest.raises(ValueError, match=in_order(f"{correct} {total} 0 <= correct <= total")):
        stats.wilson(correct, total)


@pytest.mark.parametrize("confidence", [0, 1, 95, -0.1, math.nan])
def test_a_confidence_is_a_fraction(confidence):
    for call in (lambda: stats.wilson(1, 2, confidence), lambda: stats.t_interval([1.0, 2.0], confidence)):
        with pytest.raises(ValueError, match=in_order(f"confidence {confidence} (0, 1)")):
            call()


@given(st.lists(POINTS, min_size=2, max_size=12, unique=True), st.sampled_from([0.9, 0.95]))
def test_t_interval_agrees_with_scipy(values, confidence):
    got = stats.t_interval(values, confidence)
    want = scipy_stats.t.interval(confidence, len(values) - 1, np.mean(values), scipy_stats.sem(values))
    assert (got.low, got.high) == pytest.approx(want, abs=1e-9)
    assert (got.mean, got.sd, got.n) == (
        pytest.approx(np.mean(values)),
        pytest.approx(np.std(values, ddof=1)),
        len(values),
    )


@pytest.mark.parametrize(("n", "ratio"), [(2, 8.98), (3, 2.48), (5, 1.24), (10, 0.72)])
def test_half_width_of_the_t_interval_in_sd(n, ratio):
    interval = stats.t_interval([float(i) for i in range(n)])
    assert (interval.high - interval.mean) / interval.sd == pytest.approx(ratio, abs=0.006)


def test_t_interval_of_one_value_has_no_ends_and_of_equal_values_no_width():
    assert stats.t_interval([85.0]) == stats.Interval(85.0, None, None, 1, None)
    equal = stats.t_interval([0.1] * 3)
    assert (equal.sd, equal.low, equal.high) == (0.0, equal.mean, equal.mean)


@pytest.mark.parametrize("values", [[], [[1.0]], 3.0])
def test_values_are_a_flat_list(values):
    with pytest.raises(ValueError, match=r"values has shape .*flat list"):
        stats.t_interval(values)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_are_finite(bad):
    with pytest.raises(ValueError, match=r"a has (nan|inf), .*finite"):
        stats.paired([1.0, bad], [1.0, 2.0])


def test_coverage_of_the_t_interval_and_of_the_verdict():
    rng = np.random.default_rng(0)
    draws = rng.normal(0, 0.4, (2000, 3)).round(6)
    intervals = [stats.t_interval(row) for row in draws]
    assert np.mean([i.low <= 0 <= i.high for i in intervals]) == pytest.approx(0.95, abs=0.015)
    verdicts = [stats.paired(row, np.zeros(3)).verdict for row in draws[:500]]
    assert np.mean([v == "not distinguishable" for v in verdicts]) == pytest.approx(0.95, abs=0.03)


@given(PAIRS)
@settings(deadline=None)
def test_paired_agrees_with_second_implementations(pairs):
    a, b = (list(values) for values in zip(*pairs, strict=True))
    d = [round(x - y, 9) for x, y in pairs]
    got = stats.paired(a, b)
    assert got.n == len(d)
    assert got.difference == pytest.approx(sum(d) / len(d), abs=1e-9)
    assert got.superiority == sum(1.0 if x > 0 else 0.5 if x == 0 else 0.0 for x in d) / len(d)
    assert got.sign_flip_p == pytest.approx(brute_force_flip(d))
    assert got.sign_flip_p >= got.sign_flip_smallest == min(1.0, 2 / 2 ** len(d))
    if len(set(d)) > 1:
        assert got.t_p == pytest.approx(scipy_stats.ttest_1samp(d, 0).pvalue, abs=1e-9)


def test_paired_agrees_with_scipy():
    a, b = [85.1, 84.9, 85.6, 85.3, 85.2], [84.8, 84.7, 85.5, 84.6, 85.25]
    got = stats.paired(a, b)
    want = scipy_stats.ttest_rel(a, b)
    assert got.t_p == pytest.approx(want.pvalue)
    assert (got.interval.low, got.interval.high) == pytest.approx(tuple(want.confidence_interval()))
    flips = scipy_stats.permutation_test((np.subtract(a, b),), np.sum, permutation_type="samples", n_resamples=math.inf)
    assert got.sign_flip_p == pytest.approx(flips.pvalue)
    assert got.superiority == 0.8


@given(PAIRS)
@settings(deadline=None)
def test_swapping_a_and_b_mirrors_the_comparison(pairs):
    a, b = (list(values) for values in zip(*pairs, strict=True))
    ours, theirs = stats.paired(a, b), stats.paired(b, a)
    mirrored = {"better": "worse", "worse": "better"}
    assert theirs.verdict == mirrored.get(ours.verdict, ours.verdict)
    assert theirs.difference == -ours.difference
    assert theirs.superiority == pytest.approx(1 - ours.superiority)
    assert (theirs.sign_flip_p, theirs.t_p) == (pytest.approx(ours.sign_flip_p), ours.t_p)


@given(st.lists(st.tuples(PERCENT, PERCENT), min_size=3, max_size=9))
@settings(deadline=None)
def test_the_verdict_is_the_t_test_at_five_percent(pairs):
    got = stats.paired(*zip(*pairs, strict=True))
    expected = "not distinguishable" if got.t_p >= 0.05 else "better" if got.difference > 0 else "worse"
    assert got.verdict == expected or got.t_p == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([90.0, 91.0, 92.0], [85.0, 86.1, 86.9], "better"),
        ([85.0, 86.1, 86.9], [90.0, 91.0, 92.0], "worse"),
        ([85.0, 86.0, 87.0], [85.3, 85.7, 87.1], "not distinguishable"),
        ([90.0, 91.0], [10.0, 11.1], "too few seeds"),
        ([90.0], [10.0], "too few seeds"),
        ([85.2, 84.3, 80.1], [85.1, 84.2, 80.0], "better"),  # equal up to float noise
        ([85.0, 84.0, 80.0], [85.0, 84.0, 80.0], "not distinguishable"),
    ],
)
def test_verdicts(a, b, verdict):
    assert stats.paired(a, b).verdict == verdict


def test_equal_differences_have_no_spread():
    same, none = stats.paired([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]), stats.paired([1.0] * 3, [1.0] * 3)
    assert (same.t_p, same.detectable, same.sign_flip_p) == (0.0, 0.0, 0.25)
    assert (none.t_p, none.sign_flip_p, none.superiority) == (1.0, 1.0, 0.5)


def test_paired_wants_pairs():
    with pytest.raises(ValueError, match=in_order("a 2 b 1 ; keep common")):
        stats.paired([1.0, 2.0], [1.0])


def test_sign_flip_of_many_seeds_meets_the_closed_form():
    for n in (12, 25, 40):  # all differences 1: a sum of at least n in size needs all signs equal
        assert stats.sign_flip([1.0] * n) == pytest.approx(2 / 2**n)
    d = [1.0] * 24 + [-1.0] * 6
    tail = sum(math.comb(30, k) for k in range(7)) / 2**30
    assert stats.sign_flip(d) == pytest.approx(2 * tail)


def test_sign_flip_beyond_its_reach():
    with pytest.raises(ValueError, match=in_order("differences 41 40 ; use")):
        stats.sign_flip([1.0] * 41)
    assert stats.paired(np.arange(41.0), np.zeros(41)).sign_flip_p is None


@pytest.mark.parametrize(("n", "ratio"), [(3, 3.26), (5, 1.68), (10, 1.00), (20, 0.66), (29, 0.54)])
def test_detectable_ratio(n, ratio):
    assert stats.detectable_ratio(n) == pytest.approx(ratio, abs=0.006)


def test_detectable_difference_is_detected_four_times_in_five():
    rng = np.random.default_rng(1)
    draws = rng.normal(stats.detectable_ratio(5), 1.0, (20000, 5))
    p = scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.01)
    one = stats.paired([0.0, 1.0, 3.0], [0.0] * 3)
    assert one.detectable == pytest.approx(3.2633 * np.std([0, 1, 3], ddof=1), rel=1e-3)


def test_one_seed_detects_nothing():
    assert stats.paired([1.0], [0.0]).detectable is None
    with pytest.raises(ValueError, match=r"n is 1, .* 2"):
        stats.detectable_ratio(1)


def test_sentences():
    unclear = stats.paired([85.0, 86.0, 87.0], [85.3, 85.7, 87.1])
    low, high = unclear.interval.low, unclear.interval.high
    better = stats.paired([90.0, 91.0, 92.0], [85.0, 86.1, 86.9])
    one, two = stats.paired([90.0], [89.0]), stats.paired([90.0, 91.0], [89.0, 89.5])
    same = stats.paired([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    for pairs, tokens in (
        (unclear, f"-0.03 95 % [{low:+.2f}, {high:+.2f}] 3 seeds ; {unclear.detectable:.2f} 80 %"),
        (better, "+5.00 95 % [+4.75, +5.25] 3 seeds"),
        (one, "+1.00 1 seed ; 3"),
        (two, "+1.25 2 seeds ; 3"),
        (same, "+1.00 3 seeds"),
    ):
        assert re.match(in_order(f"{pairs.verdict} {tokens}"), stats.sentence(pairs))
    assert not re.search(r"interval|\[|;", stats.sentence(same))


@given(PAIRS)
@settings(deadline=None)
def test_a_sentence_starts_with_its_verdict_and_never_says_plus_minus(pairs):
    got = stats.paired(*zip(*pairs, strict=True))
    text = stats.sentence(got)
    assert text.startswith(f"{got.verdict} (")
    assert not {"±", "+/-", "-0.00", "None", "nan"} & set(re.findall(r"±|\+/-|-0\.00|None|nan", text))


def test_holm_agrees_with_its_definition():
    assert stats.holm([]) == []
    assert stats.holm([0.03]) == [0.03]
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.6, 0.7]) == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"pvalues has 1.2, .*\[0, 1\]"):
        stats.holm([0.1, 1.2])


@given(st.lists(st.floats(0, 1), max_size=7), st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_the_step_down_loop_rejects(pvalues, alpha):
    rejected = set()
    for rank, index in enumerate(sorted(range(len(pvalues)), key=pvalues.__getitem__)):
        if (len(pvalues) - rank) * pvalues[index] > alpha:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(stats.holm(pvalues)) if p <= alpha} == rejected


@pytest.mark.parametrize(
    ("points", "text"),
    [
        *((0.214, "+0.21"), (-0.4, "-0.40"), (-0.001, "+0.00"), (0.0, "+0.00")),
        *((sum([0.01] * 59) / 2 - 0.59, "-0.30"), (0.285, "+0.28"), (math.inf, "+inf")),
    ],
)
def test_signed(points, text):
    assert stats.signed(points) == text


def test_the_text_of_an_interval():
    accuracies = stats.Interval(99.5, 98.9, 100.1, 3, 0.2)
    assert accuracies.ends == (98.9, 100.1)
    assert accuracies.text() == "99.50 [98.90, 100.00]"
    assert stats.Interval(-0.001, -0.2, 0.2, 3, 0.1).text(stats.signed, " points") == "+0.00 points [-0.20, +0.20]"
    two = stats.Interval(50.0, 10.0, 90.0, 2, 4.4)
    assert (two.ends, two.text()) == (None, "50.00")
    assert stats.brackets((-1.0, 2.345)) == "[0.00, 2.35]"
