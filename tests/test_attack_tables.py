"""Attacked runs over their seeds, and the spread of their losses: against statistics computed by hand."""

import json
import math
import statistics
from pathlib import Path

import pytest
from scipy import stats as scipy_stats

from builders import BATCHOUT, CHECK, CONTROL, PLAIN, columns, make, metrics_row, point
from perturblab.errors import UserError
from perturblab.records import results
from perturblab.records.attack_names import WORST
from perturblab.records.flags import flag_note
from perturblab.records.metrics import Row
from perturblab.records.points import save_points
from perturblab.records.results import Result
from perturblab.records.worst_case import NO_WORST
from perturblab.report import attacks_table, volatility_table
from told import in_order


def test_means_intervals_and_verdicts_are_those_of_the_seeds() -> None:
    text = attacks_table.attacks_markdown([*PLAIN, *BATCHOUT], CONTROL)
    rows = {row[""]: row for row in columns(text)}
    assert list(rows) == [CONTROL, f"{CONTROL}, BatchOut"]
    values = [87.5, 75.0, 100.0]
    half = scipy_stats.t.ppf(0.975, 2) * statistics.stdev(values) / math.sqrt(3)
    low, high = statistics.mean(values) - half, min(100, statistics.mean(values) + half)
    assert rows[f"{CONTROL}, BatchOut"]["0.1"] == f"87.50 [{low:.2f}, {high:.2f}] better"
    assert rows[CONTROL]["0.1"].startswith("12.50 [0.00, ")
    assert "CIFAR-10, 2 classes: fgsm, 8 test images" in text


def test_a_set_whose_classes_were_chosen_tells_their_number_once() -> None:
    (run, *_) = PLAIN
    test = f"CIFAR-10, {len(run.record.data.classes)} classes"
    chosen = run.record.model_copy(update={"data": run.record.data.model_copy(update={"test": test})})
    assert f"**{test}: fgsm, 8 test images**" in attacks_table.attacks_markdown(
        [Result(chosen, (), run.points)], CONTROL
    )


def test_a_flagged_curve_says_so_beside_its_numbers() -> None:
    rows = {row[""]: row for row in columns(attacks_table.attacks_markdown([*PLAIN, *BATCHOUT], CONTROL))}
    assert rows[f"{CONTROL}, BatchOut"]["flags"] == flag_note(("zero gradients",))
    assert rows[CONTROL]["flags"] == ""


def test_too_few_seeds_get_no_interval_and_no_verdict_but_that() -> None:
    rows = {row[""]: row for row in columns(attacks_table.attacks_markdown([*PLAIN[:2], *BATCHOUT[:2]], CONTROL))}
    assert rows[CONTROL]["0.1"] == "6.25"
    assert rows[f"{CONTROL}, BatchOut"]["0.1"] == "81.25 too few seeds"


def test_worst_case_is_over_all_attacks_that_keep_to_the_threat() -> None:
    record, (clean, fgsm) = make(0), [point("fgsm", 0.0, [1, 1, 1, 0]), point("fgsm", 0.1, [1, 1, 0, 1])]
    more = [
        point("pgd", 0.1, [0, 1, 1, 1]),
        point("fgsm-unclipped", 0.1, [0, 0, 0, 0], settings={"mistake": "unclipped"}),
        point("pgd frozen", 0.1, [0, 0, 0, 0]),
        point("deepfool", 1, [0, 0, 0, 0], norm="l2"),
    ]
    text = attacks_table.attacks_markdown([Result(record, (), (clean, fgsm, *more))])
    worst = text.split(f"{WORST} of fgsm, pgd, 4 test images")[1]
    assert columns(worst)[0]["0.1"] == "**25.00**"  # only the second image is right under both, and was to begin with


def test_only_seeds_that_met_the_same_attacks_share_a_worst_case() -> None:
    right = [1, 1, 0, 0]
    met = [point("fgsm", 0.0, [1] * 4), point("fgsm", 0.1, right), point("pgd", 0.1, [1, 0, 0, 0])]
    more = [*met, point("square", 0.1, [0, 0, 0, 0])]
    text = attacks_table.attacks_markdown([Result(make(0), (), tuple(met)), Result(make(1), (), tuple(more))])
    few, many = (
        columns(text.split(f"{WORST} of {names}, 4 test")[1])[0] for names in ("fgsm, pgd", "fgsm, pgd, square")
    )
    assert (few["0.1"], many["0.1"]) == ("**25.00**", "**0.00**")
    assert columns(text.split(": fgsm, 4 test")[1].split("\n\n**")[0])[0]["0.1"] == "50.00", "no other attack is marked"


def test_a_published_mode_of_a_random_net_is_no_part_of_the_worst_case() -> None:
    mode = {"mode": "BatchOut active in evaluation, a published mistake", "verdicts": 3}
    met = [point("fgsm", 0.1, [1, 1, 1, 0]), point("pgd", 0.1, [1, 1, 0, 0])]
    met += [point("uniform", 0.1, [0, 0, 0, 0], settings=mode), point("gaussian", 0.1, [0, 0, 0, 0], settings=mode)]
    text = attacks_table.attacks_markdown([Result(make(0), (), tuple(met))])
    assert columns(text.split(f"{WORST} of fgsm, pgd, 4 test images")[1])[0]["0.1"] == "**50.00**"
    assert NO_WORST not in text


def test_a_random_net_is_said_to_have_no_worst_case() -> None:
    drawn = {"settings": {"verdicts": 3}}
    random = Result(make(0), (), (point("fgsm", 0.1, [1, 0], **drawn), point("pgd", 0.1, [0, 1], **drawn)))
    other = Result(make(1, defence="batchout"), (), (point("fgsm", 0.1, [1, 0]), point("pgd", 0.1, [0, 1])))
    text = attacks_table.attacks_markdown([random, other])
    assert [line for line in text.splitlines() if NO_WORST in line] == [f"CIFAR-10, 2 classes, {CONTROL}: {NO_WORST}."]
    (row,) = columns(text.split(f"{WORST} of fgsm, pgd, 2 test images")[1])
    assert (row[""], row["0.1"]) == (f"{CONTROL}, BatchOut", "**0.00**")


def test_a_flag_of_the_checks_in_the_folder_is_shown_with_every_curve_of_the_same_weights(tmp_path: Path) -> None:
    """Also with those that were measured on other images, with --no-checks, as a preset does."""
    run = tmp_path / "run"
    few, many = point("fgsm", 0.1, [1, 0, 0, 0]), point("fgsm", 0.1, [1] * 8, subset="all")
    save_points(run / "attacks" / "fgsm.json", [few, many])
    save_points(run / "attacks" / "autoattack.json", [point("autoattack", 0.1, [0, 0, 0, 0])])
    save_points(run / "attacks" / "deepfool.json", [point("deepfool", 1, [0] * 8, subset="all", norm="l2")])
    (run / "attacks" / "checks.json").write_text(json.dumps([CHECK]))
    (run / "record.json").write_text(make(0).model_dump_json())
    rows = [
        row
        for block in attacks_table.attacks_markdown(results.load_results(tmp_path)).split("\n**")
        for row in columns(block)
    ]
    assert len(rows) == 5, "fgsm on few and many, autoattack, deepfool, the worst case"
    assert {row["flags"] for row in rows} == {flag_note(("saturated logits",))}


def test_an_unknown_control_is_told_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=in_order("--control 'x' expected 'resnet18, 64 filters'")):
        attacks_table.attacks_markdown(PLAIN, "x")


def test_runs_are_found_by_their_records_and_attacks(tmp_path: Path) -> None:
    assert results.load_results(tmp_path) == []
    with pytest.raises(UserError, match=in_order("attacked ; run perturblab attack")):
        attacks_table.attacks_markdown([Result(make(0))])
    with pytest.raises(UserError, match="nowhere"):
        results.load_results(tmp_path / "nowhere")
    record, points = PLAIN[0].record, PLAIN[0].points
    run = tmp_path / "deep" / "run"
    (run / "attacks").mkdir(parents=True)
    (run / "record.json").write_text(record.model_dump_json())
    saved = {"version": 1, "points": [p.model_dump(mode="json") for p in points]}
    (run / "attacks" / "fgsm.json").write_text(json.dumps(saved))
    (run / "attacks" / "checks.json").write_text("[]")
    assert results.load_results(tmp_path) == [Result(record, (), points)]


def test_failures_of_a_study_are_found(tmp_path: Path) -> None:
    (tmp_path / "K4").mkdir()
    (tmp_path / "K4" / "failed.json").write_text('{"name": "K4 seed 1", "reason": "out of memory", "code": 1}')
    assert results.load_failed(tmp_path) == [results.Failed("K4 seed 1", "out of memory")]
    (tmp_path / "K4" / "failed.json").write_text("[]")
    with pytest.raises(UserError, match=r"failed\.json"):
        results.load_failed(tmp_path)


# --- volatility -----------------------------------------------------------------------------------------------------


def test_spread_is_the_deviation_of_the_changes() -> None:
    losses = [2.0, 1.5, 1.2, 1.3, 1.1, 1.05]
    rows = [metrics_row(train_loss=loss, **({"test_loss": 1.0} if i < 3 else {})) for i, loss in enumerate(losses)]
    found = volatility_table.spreads(rows)
    assert set(found) == {"training loss", "its second half"}, "a test loss of some epochs only says nothing"
    assert found["training loss"] == pytest.approx(statistics.stdev([-0.5, -0.3, 0.1, -0.2, -0.05]))
    assert found["its second half"] == pytest.approx(statistics.stdev([-0.2, -0.05]))
    assert volatility_table.spreads(rows[:2]) == {}


def zigzag(spread: float) -> tuple[Row, ...]:
    """Epochs whose loss goes up and down so that its change has this deviation."""
    step = spread / math.sqrt(2)
    return tuple(metrics_row(epoch=i, train_loss=loss) for i, loss in enumerate([3 * step, 2 * step, 3 * step]))


def test_spreads_are_compared_by_ratio_and_by_seed() -> None:
    plain = [Result(make(seed), zigzag(value)) for seed, value in enumerate([1.0, 2.0, 4.0])]
    mixed = [Result(make(seed, defence="batchout"), zigzag(2 * v)) for seed, v in enumerate([1.1, 2.0, 3.9])]
    ratios = [math.log(2.2), math.log(2.0), math.log(1.95)]
    half = scipy_stats.t.ppf(0.975, 2) * statistics.stdev(ratios) / math.sqrt(3)
    low, high = math.exp(statistics.mean(ratios) - half), math.exp(statistics.mean(ratios) + half)
    row = columns(volatility_table.volatility_markdown([*plain, *mixed], CONTROL))[1]
    times = math.exp(statistics.mean(ratios))
    mean = statistics.mean([2.2, 4.0, 7.8])
    assert row["training loss"] == f"{mean:.4f} (times {times:.2f} [{low:.2f}, {high:.2f}]: larger)"
    assert columns(volatility_table.volatility_markdown([*plain, *mixed[:2]], CONTROL))[1]["training loss"].endswith(
        "too few seeds)"
    )


@pytest.mark.parametrize(
    ("value", "sign", "want"),
    [
        (0.15342, "", "0.1534"),
        (12.3, "", "12.3000"),
        (0.00003, "+", "+0.000030"),
        (-0.0041, "+", "-0.0041"),
        (0.0, "+", "+0.0000"),
        (-1e-15, "+", "+0.000000000"),
    ],
)
def test_a_spread_is_written_so_that_it_can_be_told_from_nothing(value: float, sign: str, want: str) -> None:
    assert volatility_table.fine(value, sign) == want


def test_the_flags_of_some_curves_are_told_by_seed() -> None:
    one = Result(
        PLAIN[0].record, (), (point("fgsm", 0.1, [1, 0], flags=("b", "a")), point("pgd", 0.1, [1, 0], flags=("c",)))
    )
    (group,) = attacks_table.attacked_groups([one, *PLAIN[1:]])
    kinds = {attacks_table.kind_of(p) for p in one.points if p.attack == "fgsm"}
    assert attacks_table.flagged_seeds(group, kinds) == {"b": (0,), "a": (0,)}
    assert attacks_table.flagged_seeds(group, []) == {}


def test_groups_on_other_images_are_not_compared() -> None:
    plain = [Result(make(seed), zigzag(1.0)) for seed in range(3)]
    other = [Result(make(seed, test="MNIST", defence="batchout"), zigzag(2.0)) for seed in range(3)]
    cells = [row["training loss"] for row in columns(volatility_table.volatility_markdown([*plain, *other], CONTROL))]
    assert sorted(cells) == ["1.0000", "2.0000"]


def test_broken_metrics_are_told_by_their_path(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(make(0).model_dump_json())
    assert results.load_results(tmp_path) == [Result(make(0))], "a record alone has no losses"
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        results.load_results(tmp_path)
