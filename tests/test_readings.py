"""Figures read from runs and compared with the published ones: against numbers worked out by hand."""

import re
from dataclasses import replace
from typing import Any

import pytest

from builders import epochs, finding_of, make, metrics_row, point, run
from perturblab.records.results import Result
from perturblab.report import claims_table, readings
from perturblab.report.by_setup import by_place
from perturblab.report.claims import claim_findings
from perturblab.report.figures import figure_findings
from perturblab.report.verdicts import against_published
from perturblab.studies import presets, setups
from perturblab.studies.catalogue import CLAIMS, FIGURES, SETUPS, Measure
from perturblab.studies.presets import PRESETS


def test_the_last_epoch_is_the_headline_and_the_published_metrics_are_of_the_best_one() -> None:
    rows = [metrics_row(epoch=i, train_accuracy=50.0 + i, batch_mean=90.0 - i, total=10) for i in range(14)]
    found = run("K4", 1, 8123, metrics=rows)
    assert readings.value(found, Measure("exact")) == readings.Value(81.23, (), 10_000)
    assert readings.value(found, Measure("train")) == readings.Value(63.0)
    best = readings.value(found, Measure("batch mean"))
    assert best is not None
    assert best.number == 79.0, "the published rule: the best epoch with an index above 10, so 11"
    of_all = readings.value(found, Measure("best epoch"))
    assert of_all is None, "these epochs were not counted"
    counted = readings.value(run("K4", 1, metrics=epochs([50.0, 90.0, *[60.0] * 12])), Measure("best epoch"))
    assert counted == readings.Value(90.0, (), 10_000), "what flatters is the best of all epochs"
    short = readings.value(run("K4", 1, metrics=rows[:4]), Measure("batch mean"))
    assert short is not None
    assert short.number == 90.0, "a run that is shorter has no such epoch: the best of all"
    assert readings.value(found, Measure("smoothed")) is None
    assert readings.value(found, Measure("none")) is None


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
        read = readings.value(found, Measure(*measure, **given))
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
    assert readings.value(found, Measure("attack", "deepfool", 3.0, "l2")) == readings.Value(
        50.0, ("zero gradients",), 4
    )


def test_seeds_and_sides_are_of_the_same_images_where_they_can_be() -> None:
    few, many, others = (point("fgsm", 5 / 255, right) for right in ([1, 0], [1, 1, 1, 0], [1, 1, 0]))
    both, one = run("BO-cifar-batchout", 1, points=[few, many]), run("BO-cifar-batchout", 2, points=[few])
    measure = Measure("attack", "fgsm", 5 / 255)
    assert readings.images_of_all(([both], measure)) == 4, "the most"
    assert readings.images_of_all(([both], replace(measure, subset=2))) == 2, "what the measure names"
    assert readings.images_of_all(([both, one, run("BO-cifar-batchout", 3)], measure)) == 2, (
        "what all have that have any"
    )
    assert readings.images_of_all(([both], measure), ([one], measure)) == 2, "of both sides"
    assert readings.images_of_all(([both], measure), ([one], Measure("exact"))) == 4, (
        "clean accuracy has no such number"
    )
    assert readings.images_of_all(([one, run("BO-cifar-batchout", 3, points=[others])], measure)) == 0
    rivals = [run("BO-cifar-none", seed, preset="robust", points=[few]) for seed in (1, 2, 3)]
    left = [run("BO-cifar-batchout", seed, preset="robust", points=[few, many]) for seed in (1, 2, 3)]
    found = finding_of(claim_findings(by_place([*left, *rivals])), "R-batchout-plain")
    assert [set(compared.differences.values()) for compared in found.measured] == [{0.0}], (
        "of the two, not 75 % of four"
    )


def test_only_finished_runs_of_studies_are_placed() -> None:
    unfinished = run("K4", 2)
    unfinished = Result(unfinished.record.model_copy(update={"status": "interrupted"}))
    placed = by_place([run("K4", 3), run("K4", 1), unfinished, Result(make(5)), run("nowhere", 1)])
    assert {place: list(seeds) for place, seeds in placed.items()} == {("cpu", "K4"): [1, 3]}


# --- figures ----------------------------------------------------------------------------------------------------------


def test_a_figure_is_only_judged_under_the_published_protocol() -> None:
    counts = [8540, 8560, 8580]
    for preset, verdict in (("cpu", "not comparable at this preset"), ("full", "agrees")):
        metrics = [[metrics_row(epoch=11, total=10_000, batch_mean_truncated=c / 100)] for c in counts]
        of = [run("K4", s, c, preset=preset, metrics=m) for s, (c, m) in enumerate(zip(counts, metrics, strict=True))]
        (measured,) = next(f.measured for f in figure_findings(by_place(of)) if f.published.id == "K4")
        assert measured.preset == preset
        assert measured.verdict == verdict
        assert measured.interval.mean == pytest.approx(85.6)


def test_a_figure_is_only_judged_on_the_published_images() -> None:
    row = metrics_row(epoch=11, total=10_000, batch_mean_truncated=85.5)
    for part, name in (("train", "CIFAR-10"), ("train", "CIFAR-10 (JPEG copy)"), ("test", "CIFAR-10 (JPEG copy)")):
        of = [run("K4", seed, preset="full", metrics=[row]) for seed in (1, 2, 3)]
        new = {"data": of[0].record.data.model_copy(update={part: name})}
        of[0] = replace(of[0], record=of[0].record.model_copy(update=new))
        finding = next(f for f in figure_findings(by_place(of)) if f.published.id == "K4")
        (measured,) = finding.measured
        assert measured.unlike == ("the images are those of CIFAR-10 (JPEG copy)" if "copy" in name else "")
        assert ("not comparable" in claims_table.figure_row(finding, measured).verdict) == ("copy" in name)


def test_a_figure_without_a_published_recipe_is_never_judged() -> None:
    of = [run("BO-mnist-none", seed, preset="robust") for seed in (1, 2, 3)]
    judged = {f.published.id: f.measured[0].verdict for f in figure_findings(by_place(of)) if f.measured}
    assert {name: verdict for name, verdict in judged.items() if verdict and name.startswith("BO")} == {
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
    judged = [f.measured[0].verdict for f in figure_findings(by_place(unknown)) if f.measured]
    assert {*judged} == {"not comparable at this preset"}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([91.0, 91.1, 91.2], "lower"), ([92.0, 92.3, 92.5], "agrees"), ([95.5, 95.4, 95.6], "higher")],
)
def test_a_published_range_agrees_with_all_that_touches_it(values: list[float], verdict: str) -> None:
    assert against_published(values, 93.5, comparable=True, within=1.5) == verdict
    assert against_published(values, 93.5, comparable=True) == ("lower" if verdict != "higher" else verdict)
    assert FIGURES["R2-comment"].figure.within == 1.5
    comment = [run("BO-mnist-batchout", seed, round(100 * v), preset="robust") for seed, v in enumerate(values, 1)]
    found = next(f for f in figure_findings(by_place(comment)) if f.published.id == "R2-comment")
    assert found.measured[0].verdict == verdict


def test_every_entry_and_relation_has_its_finding_even_without_a_run() -> None:
    assert [f.published.id for f in figure_findings({})] == list(FIGURES)
    assert [f.claim.id for f in claim_findings({})] == list(CLAIMS)
    assert not any(f.measured for f in figure_findings({}))


def test_the_preset_nearest_to_the_published_protocol_comes_first() -> None:
    of = [
        run(setup, seed, preset=preset)
        for setup in ("K4", "H5")
        for seed in (1, 2)
        for preset in ("quick", "full", "cpu")
    ]
    found = finding_of(claim_findings(by_place(of)), "R-noise")
    assert [compared.preset for compared in found.measured] == ["full", "cpu", "quick"]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_comparable_means_that_no_flag_differs(preset: presets.Preset) -> None:
    for setup in setups.choose_setups((), preset):
        flags = {**setups.flags_of(setup, preset, 1), "audit": True}
        full = {**setups.flags_of(setup, PRESETS["full"], 1), "audit": True}
        assert setups.is_comparable(setup, preset) == (flags == full)
