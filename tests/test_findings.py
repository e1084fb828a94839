"""Published figures and claims beside what was measured: against numbers worked out by hand."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from perturblab import presets, stats
from perturblab.catalogue import ENTRIES, RELATIONS, SETUPS, Measure
from perturblab.presets import PRESETS
from perturblab.records import Study
from perturblab.report import answers, findings
from perturblab.report.measured import Run
from test_attack_tables import point
from test_tables import make


def run(setup: str, seed: int, correct: int = 9000, *, preset: str = "cpu", **given: Any) -> Run:
    """A run of a study with so many of 10,000 test images right."""
    record = make(seed, correct).model_copy(update={"study": Study(setup=setup, preset=preset)})
    return Run(record, tuple(given.get("metrics", ())), tuple(given.get("points", ())))


def runs(setup: str, counts: Sequence[int], **given: Any) -> list[Run]:
    """One run a seed."""
    return [run(setup, seed, correct, **given) for seed, correct in enumerate(counts, 1)]


def claim(found: Sequence[findings.ClaimFinding], name: str) -> findings.ClaimFinding:
    """The finding of one relation."""
    return next(finding for finding in found if finding.relation.id == name)


def epochs(exact: Sequence[float], **more: float) -> list[Mapping[str, Any]]:
    """Audited epochs."""
    return [{"epoch": i, "train_loss": 1.0, "exact": value, "total": 10, **more} for i, value in enumerate(exact)]


# --- what is read from a run ------------------------------------------------------------------------------------------


def test_the_last_epoch_is_the_headline_and_the_published_metrics_are_of_the_best_one() -> None:
    rows = [
        {"epoch": i, "train_loss": 1.0, "train_accuracy": 50.0 + i, "batch_mean": 90.0 - i, "total": 10}
        for i in range(14)
    ]
    found = run("K4", 1, 8123, metrics=rows)
    assert findings.value(found, Measure("exact")) == findings.Value(81.23, (), 10_000)
    assert findings.value(found, Measure("train")) == findings.Value(63.0)
    best = findings.value(found, Measure("batch mean"))
    assert best is not None
    assert best.number == 79.0, "the published rule: the best epoch with an index above 10, so 11"
    short = findings.value(run("K4", 1, metrics=rows[:4]), Measure("batch mean"))
    assert short is not None
    assert short.number == 90.0, "a run that is shorter has no such epoch: the best of all"
    assert findings.value(found, Measure("smoothed")) is None
    assert findings.value(found, Measure("none")) is None


def test_a_point_is_found_by_attack_radius_norm_steps_and_mode() -> None:
    points = [
        point("fgsm", 0.1, [1, 1, 0, 0]),
        point("fgsm", 0.1, [1, 0], subset="few"),
        point("fgsm", 0.1, [1, 1, 1, 0], settings={"mode": "BatchOut active in evaluation"}),
        point("fgsm", 0.0, [1, 1, 1, 1], settings={"mode": "BatchOut active in evaluation"}),
        point("fgsm frozen", 0.1, [0, 0, 0, 0]),
        point("pgd", 0.1, [1, 0, 0, 0], settings={"steps": 50}),
        point("pgd", 0.3, [0, 1, 0, 0], settings={"steps": 10, "step_size": 0.01}),
        point("fgsm", 0.1, [0, 0, 0, 1], norm="l2"),
        point("deepfool", 3, [1, 0, 1, 0], norm="l2", flags=("zero gradients",)),
    ]
    found = run("BO-mnist-none", 1, points=points)

    def percent(*measure: Any, **given: Any) -> float | None:
        read = findings.value(found, Measure(*measure, **given))
        return None if read is None else read.number

    assert percent("attack", "fgsm", 0.1) == 50.0, "as many images as there are"
    assert percent("attack", "fgsm", 0.1, subset=2) == 50.0
    assert percent("attack", "fgsm", 0.1, mode="batchout-in-eval") == 75.0
    assert percent("exact", mode="batchout-in-eval") == 100.0
    assert percent("attack", "fgsm", 0.1, "l2") == 25.0
    assert percent("attack", "pgd", 0.1, steps=50) == 25.0
    assert percent("attack", "pgd", 0.1, steps=10) is None
    assert percent("attack", "pgd", 0.3, steps=10, mode="step eps/30") == 25.0
    assert percent("attack", "pgd", 0.3, steps=10) is None, "the library's step is another attack"
    assert percent("attack", "fgsm", 0.1, mode="inference-vote") is None
    assert percent("attack", "fgsm", 0.2) is None
    assert findings.value(found, Measure("attack", "deepfool", 3.0, "l2")) == findings.Value(
        50.0, ("zero gradients",), 4
    )


def test_only_finished_runs_of_studies_are_placed() -> None:
    unfinished = run("K4", 2)
    unfinished = Run(unfinished.record.model_copy(update={"status": "interrupted"}))
    placed = findings.by_place([run("K4", 3), run("K4", 1), unfinished, Run(make(5)), run("nowhere", 1)])
    assert {place: list(seeds) for place, seeds in placed.items()} == {("cpu", "K4"): [1, 3]}


# --- figures ----------------------------------------------------------------------------------------------------------


def test_a_figure_is_only_judged_under_the_published_protocol() -> None:
    counts, published = [8540, 8560, 8580], ENTRIES["K4"].figure.value
    for preset, verdict in (("cpu", "not comparable at this preset"), ("full", "agrees")):
        metrics = [[{"epoch": 11, "train_loss": 1.0, "total": 10_000, "batch_mean_truncated": c / 100}] for c in counts]
        of = [run("K4", s, c, preset=preset, metrics=m) for s, (c, m) in enumerate(zip(counts, metrics, strict=True))]
        (measured,) = next(f.measured for f in findings.figures(findings.by_place(of)) if f.entry.id == "K4")
        assert measured.preset == preset
        assert measured.against is not None
        assert measured.against.verdict == verdict
        assert measured.interval.mean == pytest.approx(85.6)
        assert measured.against.interval.mean == pytest.approx(85.6 - (published or 0))


def test_a_figure_without_a_published_recipe_is_never_judged() -> None:
    of = [run("BO-mnist-none", seed, preset="robust") for seed in (1, 2, 3)]
    judged = {f.entry.id: f.measured[0].against for f in findings.figures(findings.by_place(of)) if f.measured}
    assert {name: found.verdict for name, found in judged.items() if found and name.startswith("BO")} == {
        "BO-text-mnist-none": "not comparable at this preset"
    }


def test_every_entry_and_relation_has_its_finding_even_without_a_run() -> None:
    assert [f.entry.id for f in findings.figures({})] == list(ENTRIES)
    assert [f.relation.id for f in findings.claims({})] == list(RELATIONS)
    assert not any(f.measured for f in findings.figures({}))


def test_the_preset_nearest_to_the_published_protocol_comes_first() -> None:
    of = [
        run(setup, seed, preset=preset)
        for setup in ("K4", "H5")
        for seed in (1, 2)
        for preset in ("quick", "full", "cpu")
    ]
    found = claim(findings.claims(findings.by_place(of)), "R-noise")
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
    (compared,) = claim(findings.claims(findings.by_place(of)), "R-noise").measured
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


def test_throughout_training_means_every_epoch() -> None:
    def of(last: float) -> list[Run]:
        left = [run("K1", s, metrics=epochs([50.0 + s, 60.0, 65.0])) for s in (1, 2, 3)]
        return left + [run("K3", s, metrics=epochs([45.0 + s, 55.0, 65.0 - last])) for s in (1, 2, 3)]

    for last, verdict, note in (
        (5.0, "agrees", "agrees in 3 of 3 epochs"),
        (9.0, "higher", "agrees in 2 of 3 epochs, higher in 1 of 3 epochs"),
    ):
        (compared,) = claim(findings.claims(findings.by_place(of(last))), "R-gap-throughout").measured
        assert (compared.verdict, compared.note) == (verdict, note)


def test_volatility_compares_the_spread_of_the_training_loss() -> None:
    def losses(scale: float) -> list[Mapping[str, Any]]:
        return [{"epoch": i, "train_loss": scale * loss} for i, loss in enumerate([3.0, 2.0, 2.5])]

    of = [run(f"SEED-cifar3-{arm}", 1, metrics=losses(s)) for arm, s in (("none", 1.0), ("batchout", 2.0))]
    (compared,) = claim(findings.claims(findings.by_place(of)), "R-batchout-volatile").measured
    assert compared.differences[1] == pytest.approx(math.sqrt(2 * 0.75**2))


def test_two_metrics_of_the_same_runs_are_compared() -> None:
    rows = [{"epoch": 11, "train_loss": 1.0, "total": 10, "smoothed": 90.5, "batch_mean": 86.0}]
    of = [run("K2", seed, metrics=rows) for seed in (1, 2, 3)]
    (compared,) = claim(findings.claims(findings.by_place(of)), "R-smoothed").measured
    assert set(compared.differences.values()) == {4.5}
    assert compared.verdict == "lower", "4.62 were claimed, and every seed says 4.5"


def test_every_relation_between_runs_reads_a_metric_that_there_is() -> None:
    for relation in RELATIONS.values():
        if relation.left and relation.measure.metric != "attack":
            assert relation.measure.metric in findings._READERS
            assert {relation.left, relation.right} <= set(SETUPS)


# --- answers ----------------------------------------------------------------------------------------------------------


def test_the_answers_come_from_the_deciding_claims() -> None:
    noise, batchout = answers.answers(findings.claims({}))
    assert (noise.word, batchout.word, noise.sentences) == ("Not yet measured", "Not yet measured", ())
    of = [*runs("H5", [5300, 5410, 5505]), *runs("K4", [5000, 5100, 5200])]
    noise, _ = answers.answers(findings.claims(findings.by_place(of)))
    assert noise.word == "Yes"
    assert "54.05 % against 51.00 %, better (difference +3.05 points, 95 % t-interval [" in noise.sentences[0]
    assert noise.sentences[-1].startswith("Measured at cpu: ")
    noise, _ = answers.answers(findings.claims(findings.by_place(of[:2] + of[3:5])))
    assert noise.word == "Too few seeds to say"
    mixed = [*runs("H5", [5000, 5300, 5100]), *runs("K4", [5050, 5100, 5200])]
    noise, _ = answers.answers(findings.claims(findings.by_place(mixed)))
    assert noise.word.startswith("Not so that these seeds could tell; ")
    assert noise.word.endswith(" points would have shown")


def test_flags_are_said_with_the_number() -> None:
    of = [
        run(f"BO-mnist-{arm}", s, preset="robust", points=[point("fgsm", 0.3, right, flags=flags)])
        for arm, flags in (("batchout", ("not monotone",)), ("none", ()))
        for s, right in enumerate([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
    ]
    _, batchout = answers.answers(findings.claims(findings.by_place(of)))
    assert "empirical upper bound, flags: not monotone" in batchout.sentences[0]
