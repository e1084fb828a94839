"""Published claims judged on measured runs: against numbers worked out by hand."""

import math
import re
from dataclasses import replace

import pytest

from builders import epochs, finding_of, metrics_row, run, runs
from perturblab import stats
from perturblab.errors import UserError
from perturblab.records.metrics import Row
from perturblab.records.results import Result
from perturblab.report import answers, claims_table, readings
from perturblab.report.by_setup import by_place
from perturblab.report.claims import claim_findings
from perturblab.report.verdicts import against_claim
from perturblab.studies import setups
from perturblab.studies.catalogue import CLAIMS, SETUPS
from perturblab.studies.presets import PRESETS
from told import in_order


def test_a_claim_is_judged_on_differences_paired_by_seed() -> None:
    of = [*runs("H5", [5100, 5250, 5310, 5400]), *runs("K4", [5000, 5200, 5290])]
    (compared,) = finding_of(claim_findings(by_place(of)), "R-noise").measured
    assert compared.differences == pytest.approx({1: 1.0, 2: 0.5, 3: 0.2})
    assert (compared.left, compared.right) == pytest.approx((52.2, 51.633333))
    assert compared.paired == stats.paired([51.0, 52.5, 53.1], [50.0, 52.0, 52.9])
    assert compared.verdict == "not distinguishable", "the interval reaches over the claimed end of 1 point"


@pytest.mark.parametrize(
    ("low", "high", "interval", "want"),
    [
        (None, 1.0, (-0.5, 0.8), "agrees"),
        (None, 1.0, (0.5, 1.8), "not distinguishable"),
        (None, 1.0, (1.1, 1.8), "higher"),
        (0.0, None, (0.1, 1.8), "agrees"),
        (0.0, None, (-2.0, -0.1), "lower"),
        (4.0, 6.0, (3.9, 5.0), "not distinguishable"),
        (0.0, None, (0.0, 0.0), "lower"),
        (None, 0.0, (0.0, 0.0), "higher"),
        (0.0, 1.0, (0.0, 1.0), "agrees"),
        (3.5, 3.5, (3.0, 4.0), "agrees"),
        (3.5, 3.5, (3.6, 4.0), "higher"),
        (None, None, (3.6, 4.0), None),
    ],
)
def test_a_claimed_range_agrees_when_it_holds_the_interval(
    low: float | None, high: float | None, interval: tuple[float, float], want: str | None
) -> None:
    mean = sum(interval) / 2
    assert against_claim(stats.Interval(mean, *interval, 3, 1.0), low, high) == want
    few = against_claim(stats.Interval(mean, *interval, 2, 1.0), low, high)
    assert few == (None if want is None else "too few seeds")


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_no_claim_is_judged_by_one_run_against_itself(preset: str) -> None:
    """A preset that replaces the schedule leaves nothing of a claim about schedules."""
    real = [name for name, setup in SETUPS.items() if not setup.missing]
    of = [run(setup, s, 7000 + s, preset=preset, metrics=epochs([70.0])) for setup in real for s in (1, 2, 3)]
    for finding in claim_findings(by_place(of)):
        claim = finding.claim
        if not claim.right or claim.left == claim.right:
            continue
        sides = [setups.flags_of(SETUPS[side], PRESETS[preset], 1) for side in (claim.left, claim.right)]
        is_same = sides[0] == sides[1]
        if claim.measure.metric not in ("smoothed", "best epoch"):
            assert list(finding.removed) == [preset] * is_same
            assert all(re.search(in_order("same flags"), reason) for reason in finding.removed.values())
        assert not (is_same and finding.measured)
        for compared in finding.measured:
            assert compared.differing
            assert all(sides[0].get(name) != sides[1].get(name) for name in compared.differing)
    if preset == "cpu":
        row = claims_table.open_claim(finding_of(claim_findings(by_place(of)), "R-K3-schedule"))
        assert re.match(in_order("not comparable cpu"), row.cells[2])


@pytest.mark.parametrize("part", ["train", "test"])
def test_runs_are_compared_on_the_same_images(part: str) -> None:
    other = run("H5", 2, 9000)
    data = other.record.data.model_copy(update={"hashes": {**other.record.data.hashes, part: "another"}})
    other = replace(other, record=other.record.model_copy(update={"data": data}))
    of = [run("H5", 1, 5100), other, run("H5", 3, 5200), *runs("K4", [5000, 5000, 5000])]
    (compared,) = finding_of(claim_findings(by_place(of)), "R-noise").measured
    assert compared.differences == pytest.approx({1: 1.0, 3: 2.0})
    assert re.search(in_order("1 seeds images"), compared.note)


def test_runs_of_other_numerics_are_told_apart() -> None:
    def of(number: int) -> list[Result]:
        made = runs("H5", [5100, 5150, 5200])
        new = {"numerics": number, "environment": made[0].record.environment.model_copy(update={"code": "another"})}
        return [replace(made[0], record=made[0].record.model_copy(update=new)), *made[1:]]

    for number, tokens in ((0, ""), (1, "numerics 0 1")):
        placed = by_place([*of(number), *runs("K4", [5000, 5000, 5000])])
        finding = finding_of(claim_findings(placed), "R-noise")
        (compared,) = finding.measured
        assert bool(compared.note) == bool(tokens)
        details = claims_table.claim_row(finding, compared).details
        assert all(any(re.search(in_order(tokens), text) for text in texts) for texts in ([compared.note], details))


def test_two_records_of_one_run_that_differ_are_a_mistake() -> None:
    assert len(by_place([run("K4", 1, 5000), run("K4", 1, 5000)])["cpu", "K4"]) == 1
    with pytest.raises(UserError, match=in_order("K4 cpu seed 1 ; report")):
        by_place([run("K4", 1, 5000), run("K4", 1, 5001)])


def learned(percent: float) -> list[Row]:
    """One epoch with this accuracy on the training images."""
    return [metrics_row(train_accuracy=percent)]


@pytest.mark.parametrize(
    ("baseline", "trained", "weak"),
    [
        ([5000, 5100, 5200], 50.0, "3x3 51.00 %"),
        ([6000, 6100, 6200], 50.0, ""),
        ([6000, 6100, 6200], 39.0, "K4 39.0 % training 40 %"),
        ([], 50.0, "3x3 not measured"),
    ],
)
def test_a_study_that_learns_too_little_is_no_evidence(baseline: list[int], trained: float, weak: str) -> None:
    of = [*runs("K1", baseline), *runs("H5", [4300, 4410, 4505]), *runs("K4", [4000, 4100, 4200])]
    of = [replace(one, metrics=learned(trained)) if "K4" in str(one.record.study) else one for one in of]
    found = claim_findings(by_place(of))
    (compared,) = finding_of(found, "R-noise").measured
    assert bool(compared.weak) == bool(weak)
    assert re.search(in_order(weak), compared.weak)
    noise, _ = answers.answer_questions(found)
    verdict = claims_table.claim_row(finding_of(found, "R-noise"), compared).verdict
    if weak:
        for text in (noise.word, noise.sentences[0], verdict):
            assert re.search(in_order(f"no evidence {compared.weak}"), text)
    else:
        assert re.search(in_order("yes 3.0 44.1 % 41.0 %"), noise.word)
        assert verdict[:6] == "higher"
    on_digits = [run("K1", 1, 5000, preset="quick"), run("H5", 1, 4300, preset="quick")]
    digits = by_place([*on_digits, run("K4", 1, 4000, preset="quick", metrics=learned(20.0))])
    assert all(not c.weak for f in claim_findings(digits) for c in f.measured)


def test_without_a_3x3_net_the_better_side_must_be_as_good_as_one() -> None:
    for correct, weak in ((5400, "3x3 not measured"), (5600, "")):
        found = claim_findings(by_place([run("H5", 1, correct), run("K4", 1, 5000)]))
        (compared,) = finding_of(found, "R-noise").measured
        assert bool(compared.weak) == bool(weak)
        assert re.search(in_order(weak), compared.weak)


def test_an_answer_comes_from_a_preset_with_evidence() -> None:
    good = [*runs("K1", [6000] * 3), *runs("H5", [5300, 5410, 5505]), *runs("K4", [5000, 5100, 5200])]
    poor = [*runs("H5", [1000, 1100, 1200], preset="gpu"), *runs("K4", [1000, 1100, 1250], preset="gpu")]
    noise, _ = answers.answer_questions(claim_findings(by_place([*good, *poor])))
    assert noise.sentences[-1].startswith("Measured at cpu: ")


RIVALS = ("K5-masks", "K5-first-20", "K5-lr-1e-4", "K5-schedule")


@pytest.mark.parametrize(
    ("best", "verdict"),
    [
        ([8000, 8010, 8020], "agrees"),
        ([8490, 8520, 8512], "not distinguishable"),
        ([9000, 9010, 9020], "lower"),
    ],
)
def test_what_is_said_to_hurt_most_must_be_above_every_other_factor(best: list[int], verdict: str) -> None:
    assert CLAIMS["R-hurt-most-adam"].rivals == CLAIMS["R-hurt-most-level-0.1"].rivals == RIVALS
    of = [
        *runs("K5-adam", [8500, 8509, 8520], preset="full"),
        *runs("K5-masks", best, preset="full"),
        *(one for name in RIVALS[1:] for one in runs(name, [7900, 7912, 7921], preset="full")),
    ]
    (compared,) = finding_of(claim_findings(by_place(of)), "R-hurt-most-adam").measured
    assert compared.verdict == verdict
    assert compared.sides == ("K5-adam", "K5-masks"), "the closest"
    ps = [
        stats.paired([85.0, 85.09, 85.2], [v / 100 for v in other]).t_p for other in (best, *[[7900, 7912, 7921]] * 3)
    ]
    assert all(f"(p {p:.3g})" in compared.note for p in stats.holm([p for p in ps if p is not None]))
    assert not finding_of(claim_findings(by_place(of[:-3])), "R-hurt-most-adam").measured, "one is missing"


def test_a_rival_that_a_preset_makes_the_base_or_that_was_not_trained_is_left_out() -> None:
    of = [
        *runs("K1", [8900, 8900, 8900]),
        *runs("K5-adam", [8500, 8509, 8520]),
        *(one for name in RIVALS if name != "K5-lr-1e-4" for one in runs(name, [7900, 7912, 7921])),
        *runs("K5-lr-1e-4", [2000, 2010, 2022], metrics=learned(21.0)),
    ]
    (compared,) = finding_of(claim_findings(by_place(of)), "R-hurt-most-adam").measured
    beside, *left_out = compared.note.split("; left out: ")
    assert [name for name in RIVALS if name in beside] == ["K5-masks", "K5-first-20"]
    for text, tokens in zip(left_out, ("K5-schedule same K5", "K5-lr-1e-4 21.0 % training 40 %"), strict=True):
        assert re.match(in_order(tokens), text)


def test_differences_without_a_claim_are_corrected_for_all_with_the_same_net() -> None:
    """Two controls of A1: one p value of 0.03 alone is "better", and among two it is not."""
    a1, level = [8000, 8100, 8200], [8101, 8180, 8350]
    p = stats.paired([v / 100 for v in level], [v / 100 for v in a1]).t_p
    assert p is not None
    assert stats.ALPHA / 2 < p < stats.ALPHA
    alone = [*runs("K1", [8900] * 3), *runs("A1", a1), *runs("A1-level-1", level)]
    (compared,) = finding_of(claim_findings(by_place(alone)), "R-A1-level-1").measured
    assert (compared.verdict, compared.paired.verdict, compared.note) == (None, "better", "")
    two = [*alone, *runs("A1-level-2", [8001, 8120, 8150])]
    found = claim_findings(by_place(two))
    (compared,) = finding_of(found, "R-A1-level-1").measured
    assert compared.comparison.verdict == "not distinguishable"
    assert re.search(in_order(f"Holm p = {2 * p:.3g} 2 A1"), compared.note)
    row = claims_table.claim_row(finding_of(found, "R-A1-level-1"), compared)
    assert row.verdict.startswith("not distinguishable; ")
    strong = [*alone[:-3], *runs("A1-level-1", [8900, 9001, 9099]), *two[-3:]]
    (compared,) = finding_of(claim_findings(by_place(strong)), "R-A1-level-1").measured
    assert compared.comparison.verdict == "better", "after the correction too"


def test_throughout_training_means_every_epoch() -> None:
    def of(last: float) -> list[Result]:
        left = [run("K1", s, metrics=epochs([50.0 + s, 60.0, 65.0])) for s in (1, 2, 3)]
        return left + [run("K3", s, metrics=epochs([45.0 + s, 55.0, 65.0 - last])) for s in (1, 2, 3)]

    for last, verdict, tokens in (
        (5.0, "agrees", "agrees 3 of 3"),
        (9.0, "higher", "agrees 2 of 3 higher 1 of 3"),
    ):
        (compared,) = finding_of(claim_findings(by_place(of(last))), "R-gap-throughout").measured
        assert compared.verdict == verdict
        assert re.search(in_order(tokens), compared.note)


def test_volatility_compares_the_spread_of_the_training_loss() -> None:
    def losses(scale: float) -> list[Row]:
        return [metrics_row(epoch=i, train_loss=scale * loss) for i, loss in enumerate([3.0, 2.0, 2.5])]

    of = [run(f"SEED-cifar3-{arm}", 1, metrics=losses(s)) for arm, s in (("none", 1.0), ("batchout", 2.0))]
    (compared,) = finding_of(claim_findings(by_place(of)), "R-batchout-volatile").measured
    assert compared.differences[1] == pytest.approx(math.sqrt(2 * 0.75**2))


def test_two_metrics_of_the_same_runs_are_compared() -> None:
    found = [metrics_row(epoch=11, total=10, smoothed=90.5, batch_mean=86.0)]
    of = [run("K2", seed, metrics=found, preset="full") for seed in (1, 2, 3)]
    finding = finding_of(claim_findings(by_place(of)), "R-smoothed")
    (compared,) = finding.measured
    assert set(compared.differences.values()) == {4.5}
    assert compared.verdict == "lower", "4.62 were claimed, and every seed says 4.5"
    sides = in_order("K2 smoothed 90.50 K2 batch mean 86.00")
    assert re.match(sides, claims_table.claim_row(finding, compared).details[0])
    scaled = by_place([run("K2", seed, metrics=found, preset="cpu") for seed in (1, 2, 3)])
    row = claims_table.open_claim(finding_of(claim_findings(scaled), "R-smoothed"))
    assert re.match(in_order("not comparable cpu"), row.cells[2])


def test_the_best_epoch_flatters_only_where_the_rate_is_the_published_one() -> None:
    for preset, is_open in (("full", False), ("cpu", True)):
        of = [run("K4", seed, 5100, preset=preset, metrics=epochs([52.0, 51.0])) for seed in (1, 2, 3)]
        finding = finding_of(claim_findings(by_place(of)), "R-best-epoch")
        assert list(finding.removed) == [preset] * is_open
        assert all(re.search(in_order("rate last best"), reason) for reason in finding.removed.values())
        assert [compared.verdict for compared in finding.measured] == ([] if is_open else ["agrees"])


def test_every_claim_about_runs_reads_a_metric_that_there_is() -> None:
    for of_two in CLAIMS.values():
        if of_two.left and of_two.measure.metric != "attack":
            assert of_two.measure.metric in readings.READERS
            assert {of_two.left, *(of_two.rivals or (of_two.right,))} <= set(SETUPS)
