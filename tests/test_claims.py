"""Published figures and claims beside what was measured: against numbers worked out by hand."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from builders import epochs, make, point, run
from perturblab import presets, stats
from perturblab.catalogue import ENTRIES, RELATIONS, SETUPS, Measure
from perturblab.errors import UserError
from perturblab.presets import PRESETS
from perturblab.report import answers, rows, values
from perturblab.report.claims import ClaimFinding, claim_findings
from perturblab.report.measured import Run
from perturblab.report.places import by_place
from perturblab.report.published import figure_findings


def runs(setup: str, counts: Sequence[int], **given: Any) -> list[Run]:
    """One run a seed."""
    return [run(setup, seed, correct, **given) for seed, correct in enumerate(counts, 1)]


def claim(found: Sequence[ClaimFinding], name: str) -> ClaimFinding:
    """The finding of one relation."""
    return next(finding for finding in found if finding.relation.id == name)


# --- what is read from a run ------------------------------------------------------------------------------------------


def test_the_last_epoch_is_the_headline_and_the_published_metrics_are_of_the_best_one() -> None:
    rows = [
        {"epoch": i, "train_loss": 1.0, "train_accuracy": 50.0 + i, "batch_mean": 90.0 - i, "total": 10}
        for i in range(14)
    ]
    found = run("K4", 1, 8123, metrics=rows)
    assert values.value(found, Measure("exact")) == values.Value(81.23, (), 10_000)
    assert values.value(found, Measure("train")) == values.Value(63.0)
    best = values.value(found, Measure("batch mean"))
    assert best is not None
    assert best.number == 79.0, "the published rule: the best epoch with an index above 10, so 11"
    of_all = values.value(found, Measure("best epoch"))
    assert of_all is None, "these epochs were not counted"
    counted = values.value(run("K4", 1, metrics=epochs([50.0, 90.0, *[60.0] * 12])), Measure("best epoch"))
    assert counted == values.Value(90.0, (), 10_000), "what flatters is the best of all epochs"
    short = values.value(run("K4", 1, metrics=rows[:4]), Measure("batch mean"))
    assert short is not None
    assert short.number == 90.0, "a run that is shorter has no such epoch: the best of all"
    assert values.value(found, Measure("smoothed")) is None
    assert values.value(found, Measure("none")) is None


def test_a_point_is_found_by_attack_radius_norm_steps_and_mode() -> None:
    points = [
        point("fgsm", 0.1, [1, 1, 0, 0]),
        point("fgsm", 0.1, [1, 1], subset="few"),
        point("fgsm", 0.1, [1, 1, 1, 0], settings={"mode": "BatchOut active in evaluation"}),
        point("fgsm", 0.0, [1, 1, 1, 1], settings={"mode": "BatchOut active in evaluation, a published mistake"}),
        point("fgsm", 0.1, [0, 0, 0, 1], settings={"mode": "BatchOut at inference, beside 3 training images"}),
        point("fgsm", 0.1, [0, 0, 0, 0], settings={"mode": "BatchOut at inference, beside 30 training images"}),
        point("fgsm frozen", 0.1, [0, 0, 0, 0]),
        point("pgd", 0.1, [1, 0, 0, 0], settings={"steps": 50}),
        point("pgd", 0.3, [0, 1, 0, 0], settings={"steps": 10, "step_size": 0.01}),
        point("fgsm", 0.1, [0, 0, 0, 1], norm="l2"),
        point("deepfool", 3, [1, 0, 1, 0], norm="l2", flags=("zero gradients",)),
    ]
    found = run("BO-mnist-none", 1, points=points)

    def percent(*measure: Any, **given: Any) -> float | None:
        read = values.value(found, Measure(*measure, **given))
        return None if read is None else read.number

    assert percent("attack", "fgsm", 0.1) == 50.0, "as many images as there are"
    assert percent("attack", "fgsm", 0.1, subset=2) == 100.0
    assert percent("attack", "fgsm", 0.1, mode="batchout-in-eval") == 75.0
    assert percent("exact", mode="batchout-in-eval") == 100.0
    assert percent("attack", "fgsm", 0.1, "l2") == 25.0
    assert percent("attack", "pgd", 0.1, steps=50) == 25.0
    assert percent("attack", "pgd", 0.1, steps=10) is None
    assert percent("attack", "pgd", 0.3, steps=10, mode="step eps/30") == 25.0
    assert percent("attack", "pgd", 0.3, steps=10) is None, "the library's step is another attack"
    assert percent("attack", "fgsm", 0.1, mode="inference-mean") == 0.0
    assert percent("attack", "fgsm", 0.1, mode="inference-vote") is None
    assert percent("attack", "fgsm", 0.2) is None
    assert values.value(found, Measure("attack", "deepfool", 3.0, "l2")) == values.Value(50.0, ("zero gradients",), 4)


def test_seeds_and_sides_are_of_the_same_images_where_they_can_be() -> None:
    few, many, others = (point("fgsm", 5 / 255, right) for right in ([1, 0], [1, 1, 1, 0], [1, 1, 0]))
    both, one = run("BO-cifar-batchout", 1, points=[few, many]), run("BO-cifar-batchout", 2, points=[few])
    measure = Measure("attack", "fgsm", 5 / 255)
    assert values.images_of_all(([both], measure)) == 4, "the most"
    assert values.images_of_all(([both], replace(measure, subset=2))) == 2, "what the measure names"
    assert values.images_of_all(([both, one, run("BO-cifar-batchout", 3)], measure)) == 2, "what all have that have any"
    assert values.images_of_all(([both], measure), ([one], measure)) == 2, "of both sides"
    assert values.images_of_all(([both], measure), ([one], Measure("exact"))) == 4, "clean accuracy has no such number"
    assert values.images_of_all(([one, run("BO-cifar-batchout", 3, points=[others])], measure)) == 0
    rivals = [run("BO-cifar-none", seed, preset="robust", points=[few]) for seed in (1, 2, 3)]
    left = [run("BO-cifar-batchout", seed, preset="robust", points=[few, many]) for seed in (1, 2, 3)]
    found = claim(claim_findings(by_place([*left, *rivals])), "R-batchout-plain")
    assert [set(compared.differences.values()) for compared in found.measured] == [{0.0}], (
        "of the two, not 75 % of four"
    )


def test_only_finished_runs_of_studies_are_placed() -> None:
    unfinished = run("K4", 2)
    unfinished = Run(unfinished.record.model_copy(update={"status": "interrupted"}))
    placed = by_place([run("K4", 3), run("K4", 1), unfinished, Run(make(5)), run("nowhere", 1)])
    assert {place: list(seeds) for place, seeds in placed.items()} == {("cpu", "K4"): [1, 3]}


# --- figures ----------------------------------------------------------------------------------------------------------


def test_a_figure_is_only_judged_under_the_published_protocol() -> None:
    counts, published = [8540, 8560, 8580], ENTRIES["K4"].figure.value
    for preset, verdict in (("cpu", "not comparable at this preset"), ("full", "agrees")):
        metrics = [[{"epoch": 11, "train_loss": 1.0, "total": 10_000, "batch_mean_truncated": c / 100}] for c in counts]
        of = [run("K4", s, c, preset=preset, metrics=m) for s, (c, m) in enumerate(zip(counts, metrics, strict=True))]
        (measured,) = next(f.measured for f in figure_findings(by_place(of)) if f.entry.id == "K4")
        assert measured.preset == preset
        assert measured.against is not None
        assert measured.against.verdict == verdict
        assert measured.interval.mean == pytest.approx(85.6)
        assert measured.against.interval.mean == pytest.approx(85.6 - (published or 0))


def test_a_figure_is_only_judged_on_the_published_images() -> None:
    row = {"epoch": 11, "train_loss": 1.0, "total": 10_000, "batch_mean_truncated": 85.5}
    for part, name in (("train", "CIFAR-10"), ("train", "CIFAR-10 (JPEG copy)"), ("test", "CIFAR-10 (JPEG copy)")):
        of = [run("K4", seed, preset="full", metrics=[row]) for seed in (1, 2, 3)]
        new = {"data": of[0].record.data.model_copy(update={part: name})}
        of[0] = replace(of[0], record=of[0].record.model_copy(update=new))
        finding = next(f for f in figure_findings(by_place(of)) if f.entry.id == "K4")
        (measured,) = finding.measured
        assert measured.unlike == ("the images are those of CIFAR-10 (JPEG copy)" if "copy" in name else "")
        assert ("not comparable" in rows.figure_row(finding, measured).verdict) == ("copy" in name)


def test_a_figure_without_a_published_recipe_is_never_judged() -> None:
    of = [run("BO-mnist-none", seed, preset="robust") for seed in (1, 2, 3)]
    judged = {f.entry.id: f.measured[0].against for f in figure_findings(by_place(of)) if f.measured}
    assert {name: found.verdict for name, found in judged.items() if found and name.startswith("BO")} == {
        "BO-text-mnist-none": "not comparable at this preset"
    }


def test_a_set_up_whose_recipe_is_a_choice_says_so_and_no_other() -> None:
    admits = re.compile(
        r"recipe.*(not stated|choice)|not stated.*(stand in|recipe)|stated; those|^Only its |first rate is not"
        r"|[;.:,] here "
    )
    for setup in SETUPS.values():
        if setup.missing or setup.id.startswith("BO-mnist-fgsm-half"):  # the radius alone is not stated there
            continue
        doubtful = [doubt for doubt in setup.doubts if admits.search(doubt)]
        assert setup.recipe_stated == (not doubtful and setup.id != "U3"), setup.id
    unknown = [run("SEED-cifar10-none", seed, preset="full") for seed in (1, 2, 3)]
    judged = [f.measured[0].against for f in figure_findings(by_place(unknown)) if f.measured]
    assert judged
    assert all(against and against.verdict == "not comparable at this preset" for against in judged)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([91.0, 91.1, 91.2], "lower"), ([92.0, 92.3, 92.5], "agrees"), ([95.5, 95.4, 95.6], "higher")],
)
def test_a_published_range_agrees_with_all_that_touches_it(values: list[float], verdict: str) -> None:
    assert stats.against_published(values, 93.5, comparable=True, within=1.5).verdict == verdict
    assert stats.against_published(values, 93.5, comparable=True).verdict == (
        "lower" if verdict != "higher" else verdict
    )
    assert ENTRIES["R2-comment"].figure.within == 1.5
    comment = [run("BO-mnist-batchout", seed, round(100 * v), preset="robust") for seed, v in enumerate(values, 1)]
    found = next(f for f in figure_findings(by_place(comment)) if f.entry.id == "R2-comment")
    assert found.measured[0].against is not None
    assert found.measured[0].against.verdict == verdict


def test_every_entry_and_relation_has_its_finding_even_without_a_run() -> None:
    assert [f.entry.id for f in figure_findings({})] == list(ENTRIES)
    assert [f.relation.id for f in claim_findings({})] == list(RELATIONS)
    assert not any(f.measured for f in figure_findings({}))


def test_the_preset_nearest_to_the_published_protocol_comes_first() -> None:
    of = [
        run(setup, seed, preset=preset)
        for setup in ("K4", "H5")
        for seed in (1, 2)
        for preset in ("quick", "full", "cpu")
    ]
    found = claim(claim_findings(by_place(of)), "R-noise")
    assert [compared.preset for compared in found.measured] == ["full", "cpu", "quick"]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_comparable_means_that_no_flag_differs(preset: presets.Preset) -> None:
    for setup in presets.chosen((), preset):
        flags = {**presets.flags_of(setup, preset, 1), "audit": True}
        full = {**presets.flags_of(setup, PRESETS["full"], 1), "audit": True}
        assert presets.is_comparable(setup, preset) == (flags == full)


# --- claims -----------------------------------------------------------------------------------------------------------


def test_a_claim_is_judged_on_differences_paired_by_seed() -> None:
    of = [*runs("H5", [5100, 5250, 5310, 5400]), *runs("K4", [5000, 5200, 5290])]
    (compared,) = claim(claim_findings(by_place(of)), "R-noise").measured
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
    assert stats.against_claim(stats.Interval(mean, *interval, 3, 1.0), low, high) == want
    few = stats.against_claim(stats.Interval(mean, *interval, 2, 1.0), low, high)
    assert few == (None if want is None else "too few seeds")


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_no_claim_is_judged_by_one_run_against_itself(preset: str) -> None:
    """A preset that replaces the schedule leaves nothing of a claim about schedules."""
    real = [name for name, setup in SETUPS.items() if not setup.missing]
    of = [run(setup, s, 7000 + s, preset=preset, metrics=epochs([70.0])) for setup in real for s in (1, 2, 3)]
    for finding in claim_findings(by_place(of)):
        relation = finding.relation
        if not relation.right or relation.left == relation.right:
            continue
        sides = [presets.flags_of(SETUPS[side], PRESETS[preset], 1) for side in (relation.left, relation.right)]
        is_same = sides[0] == sides[1]
        assert relation.measure.metric in ("smoothed", "best epoch") or finding.removed == (
            {preset: "gives both sides the same flags"} if is_same else {}
        )
        assert not (is_same and finding.measured)
        for compared in finding.measured:
            assert compared.differing
            assert all(sides[0].get(name) != sides[1].get(name) for name in compared.differing)
    if preset == "cpu":
        row = rows.open_claim(claim(claim_findings(by_place(of)), "R-K3-schedule"))
        assert row.cells[2] == "not comparable at preset cpu, which gives both sides the same flags"


@pytest.mark.parametrize("part", ["train", "test"])
def test_runs_are_compared_on_the_same_images(part: str) -> None:
    other = run("H5", 2, 9000)
    data = other.record.data.model_copy(update={"hashes": {**other.record.data.hashes, part: "another"}})
    other = replace(other, record=other.record.model_copy(update={"data": data}))
    of = [run("H5", 1, 5100), other, run("H5", 3, 5200), *runs("K4", [5000, 5000, 5000])]
    (compared,) = claim(claim_findings(by_place(of)), "R-noise").measured
    assert compared.differences == pytest.approx({1: 1.0, 3: 2.0})
    assert compared.note == "1 seeds left out: their images differ"


def test_runs_of_other_code_are_told_apart() -> None:
    def of(code: str) -> list[Run]:
        made = runs("H5", [5100, 5150, 5200])
        new = {"environment": made[0].record.environment.model_copy(update={"code": code})}
        return [replace(made[0], record=made[0].record.model_copy(update=new)), *made[1:]]

    own = make(1).environment.code
    for code, note in ((own, ""), ("another", "made by 2 versions of the code")):
        placed = by_place([*of(code), *runs("K4", [5000, 5000, 5000])])
        finding = claim(claim_findings(placed), "R-noise")
        assert finding.measured[0].note == note
        assert any(note in line for line in rows.claim_row(finding, finding.measured[0]).details)


def test_two_records_of_one_run_that_differ_are_a_mistake() -> None:
    assert len(by_place([run("K4", 1, 5000), run("K4", 1, 5000)])["cpu", "K4"]) == 1
    with pytest.raises(UserError, match="two records of K4 at cpu, seed 1, differ"):
        by_place([run("K4", 1, 5000), run("K4", 1, 5001)])


def learned(percent: float) -> list[Mapping[str, Any]]:
    """One epoch with this accuracy on the training images."""
    return [{"epoch": 0, "train_loss": 1.0, "train_accuracy": percent}]


@pytest.mark.parametrize(
    ("baseline", "trained", "weak"),
    [
        ([5000, 5100, 5200], 50.0, "the 3x3 net itself has 51.00 %"),
        ([6000, 6100, 6200], 50.0, ""),
        ([6000, 6100, 6200], 39.0, "K4 has learned 39.0 % of its training images only, less than 40 %"),
        ([], 50.0, "the 3x3 net was not measured"),
    ],
)
def test_a_study_that_learns_too_little_is_no_evidence(baseline: list[int], trained: float, weak: str) -> None:
    of = [*runs("K1", baseline), *runs("H5", [4300, 4410, 4505]), *runs("K4", [4000, 4100, 4200])]
    of = [replace(one, metrics=learned(trained)) if "K4" in str(one.record.study) else one for one in of]
    found = claim_findings(by_place(of))
    (compared,) = claim(found, "R-noise").measured
    assert compared.weak == weak
    noise, _ = answers.answers(found)
    verdict = rows.claim_row(claim(found, "R-noise"), compared).verdict
    if weak:
        assert noise.word.endswith(f"no evidence, since {weak}")
        assert verdict == f"no evidence: at this preset {weak}"
        assert weak in noise.sentences[0]
    else:
        assert noise.word == "With the reproduction's net and SGD yes, by 3.0 points (44.1 % against 41.0 %)"
        assert verdict[:6] == "higher"
    on_digits = [run("K1", 1, 5000, preset="quick"), run("H5", 1, 4300, preset="quick")]
    digits = by_place([*on_digits, run("K4", 1, 4000, preset="quick", metrics=learned(20.0))])
    assert all(not c.weak for f in claim_findings(digits) for c in f.measured)


def test_without_a_3x3_net_the_better_side_must_be_as_good_as_one() -> None:
    for correct, weak in ((5400, "the 3x3 net was not measured"), (5600, "")):
        found = claim_findings(by_place([run("H5", 1, correct), run("K4", 1, 5000)]))
        assert claim(found, "R-noise").measured[0].weak == weak


def test_an_answer_comes_from_a_preset_with_evidence() -> None:
    good = [*runs("K1", [6000] * 3), *runs("H5", [5300, 5410, 5505]), *runs("K4", [5000, 5100, 5200])]
    poor = [*runs("H5", [1000, 1100, 1200], preset="gpu"), *runs("K4", [1000, 1100, 1250], preset="gpu")]
    noise, _ = answers.answers(claim_findings(by_place([*good, *poor])))
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
    assert RELATIONS["R-hurt-most-adam"].rivals == RELATIONS["R-hurt-most-level-0.1"].rivals == RIVALS
    of = [
        *runs("K5-adam", [8500, 8509, 8520], preset="full"),
        *runs("K5-masks", best, preset="full"),
        *(one for name in RIVALS[1:] for one in runs(name, [7900, 7912, 7921], preset="full")),
    ]
    (compared,) = claim(claim_findings(by_place(of)), "R-hurt-most-adam").measured
    assert compared.verdict == verdict
    assert compared.sides == ("K5-adam", "K5-masks"), "the closest"
    ps = [
        stats.paired([85.0, 85.09, 85.2], [v / 100 for v in other]).t_p for other in (best, *[[7900, 7912, 7921]] * 3)
    ]
    assert all(f"(p {p:.3g})" in compared.note for p in stats.holm([p for p in ps if p is not None]))
    assert not claim(claim_findings(by_place(of[:-3])), "R-hurt-most-adam").measured, "one is missing"


def test_a_rival_that_a_preset_makes_the_base_or_that_was_not_trained_is_left_out() -> None:
    of = [
        *runs("K1", [8900, 8900, 8900]),
        *runs("K5-adam", [8500, 8509, 8520]),
        *(one for name in RIVALS if name != "K5-lr-1e-4" for one in runs(name, [7900, 7912, 7921])),
        *runs("K5-lr-1e-4", [2000, 2010, 2022], metrics=learned(21.0)),
    ]
    (compared,) = claim(claim_findings(by_place(of)), "R-hurt-most-adam").measured
    beside, *left_out = compared.note.split("; left out: ")
    assert [name for name in RIVALS if name in beside] == ["K5-masks", "K5-first-20"]
    assert left_out == [
        "K5-schedule (at this preset the same as K5)",
        "K5-lr-1e-4 (K5-lr-1e-4 has learned 21.0 % of its training images only, less than 40 %)",
    ]


def test_differences_without_a_claim_are_corrected_for_all_with_the_same_net() -> None:
    """Two controls of A1: one p value of 0.03 alone is "better", and among two it is not."""
    a1, level = [8000, 8100, 8200], [8101, 8180, 8350]
    p = stats.paired([v / 100 for v in level], [v / 100 for v in a1]).t_p
    assert p is not None
    assert stats.ALPHA / 2 < p < stats.ALPHA
    alone = [*runs("K1", [8900] * 3), *runs("A1", a1), *runs("A1-level-1", level)]
    (compared,) = claim(claim_findings(by_place(alone)), "R-A1-level-1").measured
    assert (compared.verdict, compared.paired.verdict, compared.note) == (None, "better", "")
    two = [*alone, *runs("A1-level-2", [8001, 8120, 8150])]
    found = claim_findings(by_place(two))
    (compared,) = claim(found, "R-A1-level-1").measured
    assert compared.comparison.verdict == "not distinguishable"
    assert compared.note == f"Holm p = {2 * p:.3g} over 2 comparisons with A1"
    row = rows.claim_row(claim(found, "R-A1-level-1"), compared)
    assert row.verdict.startswith("not distinguishable; ")
    strong = [*alone[:-3], *runs("A1-level-1", [8900, 9001, 9099]), *two[-3:]]
    (compared,) = claim(claim_findings(by_place(strong)), "R-A1-level-1").measured
    assert compared.comparison.verdict == "better", "after the correction too"


def test_throughout_training_means_every_epoch() -> None:
    def of(last: float) -> list[Run]:
        left = [run("K1", s, metrics=epochs([50.0 + s, 60.0, 65.0])) for s in (1, 2, 3)]
        return left + [run("K3", s, metrics=epochs([45.0 + s, 55.0, 65.0 - last])) for s in (1, 2, 3)]

    for last, verdict, note in (
        (5.0, "agrees", "agrees in 3 of 3 epochs"),
        (9.0, "higher", "agrees in 2 of 3 epochs, higher in 1 of 3 epochs"),
    ):
        (compared,) = claim(claim_findings(by_place(of(last))), "R-gap-throughout").measured
        assert (compared.verdict, compared.note) == (verdict, note)


def test_volatility_compares_the_spread_of_the_training_loss() -> None:
    def losses(scale: float) -> list[Mapping[str, Any]]:
        return [{"epoch": i, "train_loss": scale * loss} for i, loss in enumerate([3.0, 2.0, 2.5])]

    of = [run(f"SEED-cifar3-{arm}", 1, metrics=losses(s)) for arm, s in (("none", 1.0), ("batchout", 2.0))]
    (compared,) = claim(claim_findings(by_place(of)), "R-batchout-volatile").measured
    assert compared.differences[1] == pytest.approx(math.sqrt(2 * 0.75**2))


def test_two_metrics_of_the_same_runs_are_compared() -> None:
    found = [{"epoch": 11, "train_loss": 1.0, "total": 10, "smoothed": 90.5, "batch_mean": 86.0}]
    of = [run("K2", seed, metrics=found, preset="full") for seed in (1, 2, 3)]
    finding = claim(claim_findings(by_place(of)), "R-smoothed")
    (compared,) = finding.measured
    assert set(compared.differences.values()) == {4.5}
    assert compared.verdict == "lower", "4.62 were claimed, and every seed says 4.5"
    assert rows.claim_row(finding, compared).details[0].startswith("K2, smoothed, 90.50, K2, batch mean, 86.00; by")
    scaled = by_place([run("K2", seed, metrics=found, preset="cpu") for seed in (1, 2, 3)])
    row = rows.open_claim(claim(claim_findings(scaled), "R-smoothed"))
    assert row.cells[2].startswith("not comparable at preset cpu, which has test batches of another size")


def test_the_best_epoch_flatters_only_where_the_rate_is_the_published_one() -> None:
    for preset, state in (("full", ""), ("cpu", "anneals the rate over few epochs, so that the last one is the best")):
        of = [run("K4", seed, 5100, preset=preset, metrics=epochs([52.0, 51.0])) for seed in (1, 2, 3)]
        finding = claim(claim_findings(by_place(of)), "R-best-epoch")
        assert finding.removed == ({preset: state} if state else {})
        assert [compared.verdict for compared in finding.measured] == ([] if state else ["agrees"])


def test_every_relation_between_runs_reads_a_metric_that_there_is() -> None:
    for relation in RELATIONS.values():
        if relation.left and relation.measure.metric != "attack":
            assert relation.measure.metric in values.READERS
            assert {relation.left, *(relation.rivals or (relation.right,))} <= set(SETUPS)


# --- answers ----------------------------------------------------------------------------------------------------------


def test_the_answers_come_from_the_deciding_claims() -> None:
    noise, batchout = answers.answers(claim_findings({}))
    assert (noise.word, batchout.word, noise.sentences) == ("Not yet measured", "Not yet measured", ())
    k1 = runs("K1", [6000, 6100, 6200])
    of = [*runs("H5", [5300, 5410, 5505]), *runs("K4", [5000, 5100, 5200])]
    noise, _ = answers.answers(claim_findings(by_place([*of, *k1])))
    yes = "yes, by 3.0 points (54.1 % against 51.0 %)"
    assert noise.word == f"With the reproduction's net and SGD {yes}"
    assert "54.05 % against 51.00 %, better (difference +3.05 points, 95 % t-interval [" in noise.sentences[0]
    assert noise.sentences[-1].startswith("Measured at cpu: ")
    noise, _ = answers.answers(claim_findings(by_place(of[:2] + of[3:5] + k1)))
    assert noise.word == "With the reproduction's net and SGD too few seeds to say"
    mixed = [*runs("H5", [5000, 5300, 5100]), *runs("K4", [5050, 5100, 5200])]
    noise, _ = answers.answers(claim_findings(by_place([*mixed, *k1])))
    assert noise.word.startswith("With the reproduction's net and SGD not so that these seeds could tell (")
    assert noise.word.endswith(" points would have been detected with 80 % power)")
    both = [*of, *runs("A1", [5300, 5410, 5505]), *runs("A1-level-0", [5000, 5100, 5200])]
    every = [*both, *runs("A1-order", [5300, 5410, 5505]), *runs("A1-1x1", [5000, 5100, 5200])]
    noise, _ = answers.answers(claim_findings(by_place([*every, *k1])))
    assert noise.word == yes.capitalize()
    noise, _ = answers.answers(claim_findings(by_place([*every[6:], *k1])))
    assert noise.word.split("; ") == [
        f"With the reproduction's net, Adam and level 0.1 {yes}",
        f"with the authors' net, Adam and level 0.1 {yes}",
        f"with the authors' net in place of 1x1 convolutions without noise, both with Adam {yes}",
    ]
    other = [*mixed, *both[6:]]
    noise, _ = answers.answers(claim_findings(by_place([*other, *k1])))
    assert noise.word.startswith("With the reproduction's net and SGD not so")
    assert noise.word.endswith(f"; with the authors' net, Adam and level 0.1 {yes}")


def test_a_larger_preset_with_too_few_seeds_does_not_take_the_answer_away() -> None:
    of = [*runs("K1", [6000, 6100, 6200]), *runs("H5", [5300, 5410, 5505]), *runs("K4", [5000, 5100, 5200])]
    begun = [run("H5", 1, 9000, preset="gpu"), run("K4", 1, 8000, preset="gpu"), run("K1", 1, 9500, preset="gpu")]
    noise, _ = answers.answers(claim_findings(by_place([*of, *begun])))
    assert "yes, by 3.0 points" in noise.word
    noise, _ = answers.answers(claim_findings(by_place(begun)))
    assert "too few seeds" in noise.word


def test_an_answer_has_the_verdict_of_its_row_after_the_correction() -> None:
    constant = [5301, 5380, 5550]
    a1 = [5200, 5300, 5400]
    of = [*runs("K1", [6000] * 3), *runs("A1", a1), *runs("A1-constant", constant)]
    of += runs("A1-untied", [5201, 5320, 5350])
    (compared,) = claim(claim_findings(by_place(of)), "R-A1-constant").measured
    assert compared.paired.verdict == "worse", "by itself"
    assert rows.claim_words(RELATIONS["R-A1-constant"], compared).startswith("not distinguishable; ")
    noise, _ = answers.answers(claim_findings(by_place(of)))
    assert ", not distinguishable (difference -1.10 points" in noise.sentences[0]


def test_what_has_not_the_same_code_or_images_is_said_where_it_is_taken_together() -> None:
    def changed(one: Run, **data: Any) -> Run:
        environment = one.record.environment.model_copy(update={"code": data.pop("code", "same")})
        images = one.record.data.model_copy(update=data)
        return replace(one, record=one.record.model_copy(update={"environment": environment, "data": images}))

    rows_of = epochs([50.0], batch_mean_truncated=49.0)
    both = [*runs("H5", [5300, 5410, 5505], metrics=rows_of), *runs("K4", [5000, 5100, 5200], metrics=rows_of)]
    for update, said in (
        ({"hashes": {"train": "b", "test": "b"}}, "made by 2 versions of the images"),
        ({"code": "another"}, "made by 2 versions of the code"),
        ({}, ""),
    ):
        of = by_place([changed(one, **(update if one.record.seed == 3 else {})) for one in both])
        (compared,) = claim(claim_findings(of), "R-noise").measured
        assert compared.note == said
        figure = next(found for found in figure_findings(of) if found.entry.setup == "K4" and found.measured)
        assert figure.measured[0].note == said
        assert any(said.capitalize() in line for line in rows.figure_row(figure, figure.measured[0]).details)


def test_a_published_figure_of_all_images_is_not_compared_with_one_of_some() -> None:
    right, mode = [[1] * 60 + [0] * 40 for _ in range(3)], {"mode": "BatchOut active in evaluation"}
    for total, comparable in ((100, False), (10_000, True)):
        of = [
            run("BO-mnist-batchout", s, preset="robust", points=[point("fgsm-unclipped", 0.1, some, settings=mode)])
            for s, few in enumerate(right, 1)
            for some in [few * (total // 100)]
        ]
        figures = {found.entry.id: found for found in figure_findings(by_place(of))}
        (measured,) = figures["R2-all-unclipped-0.1"].measured
        assert ("counted on 100 of the test images only" in measured.unlike) is not comparable
        assert measured.against is not None
        assert (measured.against.verdict != "not comparable at this preset") is comparable


def test_an_answer_says_what_was_corrected_for() -> None:
    of = [*runs("K1", [6000, 6100, 6200]), *runs("A1", [5300, 5410, 5505])]
    of += [*runs("A1-constant", [5000, 5100, 5200]), *runs("A1-untied", [5200, 5310, 5400])]
    noise, _ = answers.answers(claim_findings(by_place(of)))
    for sentence in noise.sentences[:2]:
        assert re.search(r"; Holm p = \S+ over 2 comparisons with A1\.$", sentence)


def attacked(data: str, attack: str, eps: float, more: int, flags: tuple[str, ...] = ()) -> list[Run]:
    """Three seeds each with and without BatchOut: so many more of 100 images right with it."""
    more_said = {"settings": {"seed": 1, "steps": 50}} if attack == "pgd" else {}
    return [
        run(f"BO-{data}-{arm}", s, preset="robust", points=[point(attack, eps, right, flags=of, **more_said)])
        for arm, gain, of in (("batchout", more, flags), ("none", 0, ()))
        for s in (1, 2, 3)
        for right in [[int(i < 20 + 3 * s + gain + (s == 2 and gain > 0)) for i in range(100)]]
    ]


def test_robustness_is_decided_by_the_strongest_attack_and_never_by_fgsm() -> None:
    def word(*of: list[Run]) -> str:
        merged: dict[tuple[str, int], Run] = {}
        for one in (one for some in of for one in some):
            assert one.record.study
            key = one.record.study.setup, one.record.seed
            merged[key] = replace(one, points=(*(merged[key].points if key in merged else ()), *one.points))
        _, batchout = answers.answers(claim_findings(by_place(merged.values())))
        return batchout.word

    fgsm = attacked("mnist", "fgsm", 0.3, 40)
    assert word(fgsm) == "Not yet measured by what decides it"
    assert word(fgsm, attacked("mnist", "pgd", 0.1, 20)) == (
        "On MNIST more robust than without it, by 20.3 points (46.3 % against 26.0 % of 100 of 10,000 test images)"
    )
    assert word(fgsm, attacked("mnist", "pgd", 0.1, 20), attacked("mnist", "autoattack", 0.1, -20)) == (
        "On MNIST less robust than without it, by 20.0 points (6.0 % against 26.0 % of 100 of 10,000 test images)"
    )
    flagged = attacked("cifar", "pgd", 5 / 255, 20, ("saturated logits",))
    assert word(attacked("mnist", "autoattack", 0.1, -20), flagged) == (
        "On MNIST less robust than without it, by 20.0 points (6.0 % against 26.0 % of 100 of 10,000 test images); "
        "on CIFAR-10 not shown, since the gradients are flagged"
    )


def test_a_flag_bounds_the_side_that_carries_it() -> None:
    """A control that is an upper bound makes a difference larger, not smaller; AutoAttack answers saturated logits."""
    for attack, arm, flag, is_shown in (
        ("pgd", "batchout", "saturated logits", False),
        ("pgd", "none", "saturated logits", True),
        ("autoattack", "batchout", "saturated logits", True),
        ("autoattack", "batchout", "black box stronger", True),
        ("autoattack", "batchout", "zero gradients", False),
    ):
        of = [
            replace(one, points=tuple(p.model_copy(update={"flags": (flag,)}) for p in one.points))
            if one.record.study and one.record.study.setup.endswith(arm)
            else one
            for one in attacked("cifar", attack, 5 / 255, 20)
        ]
        found = claim_findings(by_place(of))
        _, batchout = answers.answers(found)
        assert ("more robust" in batchout.word) == is_shown, (attack, arm, flag)
        (compared,) = claim(found, f"R-batchout-{attack}-cifar").measured
        assert compared.flagged == f"BO-cifar-{arm}: empirical upper bound, flags: {flag}"
        assert compared.flagged in batchout.sentences[0]
        assert ("not shown, since" in batchout.sentences[0]) is not is_shown
        words = rows.claim_words(RELATIONS[f"R-batchout-{attack}-cifar"], compared)
        assert words.startswith("agrees; " if is_shown else "not shown by an upper bound; ")
        row = rows.claim_row(claim(found, f"R-batchout-{attack}-cifar"), compared)
        assert "On 100 of 10,000 test images, " in row.details[0]


def test_flags_are_said_with_the_number() -> None:
    of = [
        run(f"BO-mnist-{arm}", s, preset="robust", points=[point("fgsm", 0.3, right, flags=flags)])
        for arm, flags in (("batchout", ("not monotone",)), ("none", ()))
        for s, right in enumerate([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
    ]
    _, batchout = answers.answers(claim_findings(by_place(of)))
    assert "empirical upper bound, flags: not monotone" in batchout.sentences[0]
