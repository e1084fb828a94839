"""`perturblab attack` on random nets, through another net, by AutoAttack and with published mistakes."""

import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attack_runs import LITTLE, TEST, attack, by_key, counted, decoded, kept, measured, opened_in_pixels
from builders import Tell
from perturblab.attacks import ATTACKS, Effort, Ensemble, Threat, attack_in_turn, deepfool, fgsm, pgd, still_right
from perturblab.records.attack_names import WORST
from perturblab.runs import open
from perturblab.seeding import stream
from perturblab.system.terminal import Show
from told import in_order

pytestmark = pytest.mark.usefixtures("undrawn", "short_autoattack")


# --- transfer --------------------------------------------------------------------------------------------------------


def test_a_transfer_is_made_on_the_source_and_judged_on_the_run(here: Path, tell: Tell) -> None:
    flags = "--attacks transfer-fgsm,fgsm --eps 0,0.2 --source other --subset 600 --no-checks"
    points = by_key(attack(tell, "plain", flags))
    model, x, y = opened_in_pixels(here / "plain")
    source, _, _ = opened_in_pixels(here / "other")
    moved = fgsm(source, x, y, Threat("linf", 0.2))
    right = still_right(model, moved, y)
    (saved,) = [p for p in kept(here / "plain", "transfer-fgsm") if p["eps"] == 0.2]
    assert decoded(saved) == right.tolist()
    assert points["transfer-fgsm", 0.2]["correct"] == int(right.sum())
    assert points["fgsm", 0.2]["correct"] < points["transfer-fgsm", 0.2]["correct"] < points["fgsm", 0]["correct"]
    assert points[WORST, 0.2]["settings"]["attacks"] == ["fgsm", "transfer-fgsm"]
    assert points["transfer-fgsm", 0.2]["settings"]["source"] == "other"


def test_pgd_stops_early_on_the_net_itself_and_goes_all_the_way_for_a_transfer(here: Path, tell: Tell) -> None:
    flags = "--attacks pgd,transfer-pgd --eps 0.2 --source other --subset 600 --batch-size 600 --no-checks"
    points = by_key(attack(tell, "plain", flags))
    assert points["pgd", 0.2]["settings"]["early_stop"] is True
    assert points["transfer-pgd", 0.2]["settings"]["early_stop"] is False
    model, x, y = opened_in_pixels(here / "plain")
    source, _, _ = opened_in_pixels(here / "other")
    generator = stream(1, "transfer-pgd 0.2")
    moved = pgd(source, x, y, Threat("linf", 0.2), Effort(steps=3, restarts=1), generator=generator)
    (saved,) = kept(here / "plain", "transfer-pgd")
    assert decoded(saved) == still_right(model, moved, y).tolist()


def test_another_source_of_the_same_name_is_measured_anew(here: Path, tell: Tell) -> None:
    flags = "--attacks transfer-fgsm --eps 0.2 --no-checks"
    first = attack(tell, "plain", f"{flags} --source other")[0]
    (here / "elsewhere").mkdir()
    shutil.copytree(here / "mixed", here / "elsewhere" / "other")
    with counted() as made:
        second = attack(tell, "plain", f"{flags} --source elsewhere/other")[0]
    assert measured(made) == [("fgsm", 0.2)]
    assert first["settings"] != second["settings"]
    assert len(kept(here / "plain", "transfer-fgsm")) == 2


def test_a_transferred_deepfool_keeps_its_axis_of_iterations(here: Path, tell: Tell) -> None:
    flags = "--attacks fgsm,uniform,transfer-deepfool,deepfool --eps 0.1 --iterations 1,3 --source other"
    points = by_key(attack(tell, "plain", f"{flags} --norm l2"))
    assert ("transfer-deepfool", 1.0) in points
    assert [key for key in points if key[0] == WORST] == [(WORST, 0.1)]
    assert points[WORST, 0.1]["settings"]["attacks"] == ["fgsm", "uniform"]
    assert len(kept(here / "plain", "transfer-deepfool")) == 2
    table = tell(f"attack plain {LITTLE} {flags} --norm l2").out.splitlines()
    (at,) = [n for n, line in enumerate(table) if line.startswith("iterations")]
    assert [line.split()[0] for line in table[at + 1 : at + 5 : 2]] == ["transfer-deepfool", "deepfool"]


def test_a_random_source_is_frozen_so_that_every_attack_can_be_made_on_it(here: Path, tell: Tell) -> None:
    flags = "--attacks transfer-square,transfer-pgd,transfer-deepfool --eps 0.1 --source random --no-checks"
    points = attack(tell, "plain", flags)
    assert {p["attack"] for p in points} == {"transfer-square", "transfer-pgd", "transfer-deepfool", WORST}
    assert all(p["draws"] == [] for p in points), "the run itself has one answer"


# --- published mistakes ----------------------------------------------------------------------------------------------


def test_the_published_mistakes_are_named_and_stay_out_of_the_worst_case(here: Path, tell: Tell) -> None:
    """The run normalises: one deviation for all pixels."""
    flags = "--attacks fgsm,uniform,fgsm-unclipped,fgsm-normalised --eps 0,0.3 --subset 200 --no-checks"
    points = by_key(attack(tell, "three", flags))
    run = open.open_trained(here / "three", Show(quiet=True), {})
    (deviation,) = run.built.preparation.std
    assert 0.2 < deviation < 0.5
    wrong = points["fgsm-normalised", 0.3]
    assert wrong["distance"] == pytest.approx(0.3 * deviation, rel=1e-4), "in pixels, a third of what was said"
    assert "published mistake" in wrong["settings"]["mistake"]
    assert wrong["correct"] > points["fgsm", 0.3]["correct"]
    assert "mistake" in points["fgsm-unclipped", 0.3]["settings"]
    assert points[WORST, 0.3]["settings"]["attacks"] == ["fgsm", "uniform"]


def test_batchout_in_evaluation_is_a_mode_of_its_own_and_random(here: Path, tell: Tell) -> None:
    flags = "--attacks fgsm,deepfool,square --eps 0,0.1"
    honest = by_key(attack(tell, "mixed", flags))
    assert not any("frozen" in name for name, _ in honest)
    assert all("mode" not in p["settings"] and p["draws"] == [] for p in honest.values())
    active = by_key(attack(tell, "mixed", f"{flags} --batchout-in-eval"))
    names = {name for name, _ in active}
    assert names == {"fgsm", "fgsm frozen", "deepfool frozen", "square frozen"}
    for (name, eps), point in active.items():
        assert "published mistake" in point["settings"]["mode"]
        assert len(point["draws"]) == (0 if "frozen" in name else 3)
        assert ("random forward" in point["flags"]) == (eps > 0)
    assert len(set(active["fgsm", 0.1]["draws"])) > 1 or len(set(active["fgsm", 0.0]["draws"])) > 1
    assert len([p for p in kept(here / "mixed", "fgsm") if p["eps"] == 0.1]) == 2, "both modes are kept"
    assert by_key(attack(tell, "mixed", flags)) == honest


def test_batchout_in_evaluation_is_random_even_where_an_image_has_no_partner_but_itself(here: Path, tell: Tell) -> None:
    flags = "--attacks square --eps 0.1 --batchout-in-eval --subset 1 --no-checks"
    assert {p["attack"] for p in attack(tell, "mixed", flags)} == {"square frozen"}


@pytest.mark.parametrize("mode", ["--batchout-in-eval", "--inference-batchout 2"])
def test_the_frozen_twin_is_the_same_net_in_batches_of_any_size(mode: str, here: Path, tell: Tell) -> None:
    shutil.copytree(here / "mixed", here / "again")
    flags = f"--attacks fgsm --eps 0,0.1,0.2 --subset 30 --no-checks {mode}"
    whole = by_key(attack(tell, "mixed", f"{flags} --batch-size 30"))
    parts = by_key(attack(tell, "again", f"{flags} --batch-size 7"))
    for eps in (0, 0.1, 0.2):
        assert whole["fgsm frozen", eps]["correct"] == parts["fgsm frozen", eps]["correct"]


def test_batchout_at_inference_is_a_random_net_whose_draws_are_training_images(here: Path, tell: Tell) -> None:
    flags = "--attacks fgsm,autoattack --eps 0.1 --subset 12 --check-subset 10 --inference-batchout"
    few, many = (by_key(attack(tell, "mixed", f"{flags} {count}")) for count in (1, 5))
    for count, points in ((1, few), (5, many)):
        assert points.keys() == {("fgsm", 0.1), ("fgsm frozen", 0.1), ("autoattack frozen", 0.1)}, "no headline of it"
        assert {p["settings"]["mode"] for p in points.values()} == {
            f"BatchOut at inference, beside {count} training images"
        }
        assert all("random forward" in p["flags"] for p in points.values())
        assert (len(points["fgsm", 0.1]["draws"]), points["fgsm", 0.1]["settings"]["draws"]) == (3, 2)
    assert len(kept(here / "mixed", "fgsm")) == 2, "both numbers of images are kept"
    mixed = [
        *(point["settings"]["mode"].split(",")[0] for point in kept(here / "mixed", "fgsm")),
        *(p["settings"].get("mode", "") for p in attack(tell, "mixed", "--attacks fgsm --eps 0.1 --subset 12")),
    ]
    assert mixed == ["BatchOut at inference", "BatchOut at inference", ""]
    assert (
        "random forward"
        not in by_key(attack(tell, "mixed", "--attacks fgsm --eps 0.1 --subset 12"))["fgsm", 0.1]["flags"]
    )


def test_batchout_at_inference_needs_no_labels(here: Path, tell: Tell) -> None:
    assert len(attack(tell, "guarded", "--attacks fgsm --eps 0.1 --no-checks --inference-batchout 2")) == 2


def test_the_worst_case_is_never_overwritten_by_a_weaker_one_or_by_a_mistake(here: Path, tell: Tell) -> None:
    def bits(point: dict[str, Any]) -> int:
        return int(point["answers"], 16)

    steps = [
        "--attacks fgsm,uniform --eps 0,0.2",
        "--attacks pgd,uniform --eps 0.2",
        "--attacks gaussian,uniform --eps 0.2",
    ]
    seen = []
    for flags in steps:
        attack(tell, "mixed", f"{flags} --no-checks --subset 100")
        (worst,) = [p for p in kept(here / "mixed", "worst-case") if p["eps"] == 0.2]
        seen.append(bits(worst))
    assert seen[1] & seen[0] == seen[1] == seen[2] & seen[1]
    assert seen[1].bit_count() < seen[0].bit_count()
    points = [p for name in ("fgsm", "pgd", "uniform", "gaussian") for p in kept(here / "mixed", name)]
    right = [all(each) for each in zip(*(decoded(p) for p in points), strict=True)]
    assert decoded(worst) == right, "also right without an attack"
    assert worst["settings"]["attacks"] == ["fgsm", "gaussian", "pgd", "uniform"]
    before = (here / "mixed" / "attacks" / "worst-case.json").read_bytes()
    mistakes = "--attacks fgsm,uniform --eps 0,0.2 --batchout-in-eval --no-checks --subset 100"
    assert WORST not in {p["attack"] for p in attack(tell, "mixed", mistakes)}
    assert (here / "mixed" / "attacks" / "worst-case.json").read_bytes() == before


def test_an_image_that_was_wrong_counts_as_wrong_where_all_attacks_set_it_right_and_radius_0_was_not_asked_for(
    here: Path, tell: Tell
) -> None:
    """Attacks on the whole of [0, 1] that put an image that the net knows in the place of every other."""
    model, x, y = opened_in_pixels(here / "plain")
    right = still_right(model, x, y)
    known = {int(label): x[right & (y == label)][0] for label in y.unique()}

    def run(model: nn.Module, x: Tensor, y: Tensor, *rest: Any) -> Tensor:
        return torch.stack([known[int(label)] for label in y])

    with pytest.MonkeyPatch.context() as patch:
        for name in ("uniform", "gaussian"):
            patch.setitem(ATTACKS, name, run)
        points = attack(tell, "plain", "--attacks uniform,gaussian --eps 1 --subset 600 --no-checks")
    assert [p["correct"] for p in points] == [TEST, TEST, int(right.sum())]
    assert int(right.sum()) < TEST


def test_deepfool_without_a_clip_leaves_the_bounds_and_is_a_mistake(here: Path, tell: Tell) -> None:
    points = by_key(attack(tell, "plain", "--attacks deepfool,deepfool-unclipped --iterations 1,3 --no-checks"))
    model, x, y = opened_in_pixels(here / "plain")
    rows = torch.randperm(len(x), generator=stream(0, "attacked images"))[:30].sort().values
    moved = deepfool(model, x[rows], y[rows], Threat("l2", math.inf).without_bounds(), iterations=3)
    assert points["deepfool-unclipped", 3]["correct"] == int(still_right(model, moved, y[rows]).sum())
    assert points["deepfool-unclipped", 3]["distance"] == pytest.approx(
        float((moved - x[rows]).flatten(1).norm(dim=1).max())
    )
    assert points["deepfool-unclipped", 3]["correct"] < points["deepfool", 3]["correct"]
    assert "mistake" in points["deepfool-unclipped", 3]["settings"]


# --- random nets -----------------------------------------------------------------------------------------------------


def test_a_random_net_gets_frozen_twins_several_verdicts_and_never_a_plain_autoattack(here: Path, tell: Tell) -> None:
    names = "fgsm,pgd,deepfool,autoattack,square,uniform,universal,fgsm-normalised"
    flags = f"--attacks {names} --eps 0,0.5 --iterations 1 --subset 12"
    points = attack(tell, "random", flags)
    twins = ("fgsm", "pgd", "universal", "fgsm-normalised")
    want = {*twins, *(f"{name} frozen" for name in twins), "uniform"}
    want |= {"deepfool frozen", "autoattack frozen", "square frozen"}
    assert {p["attack"] for p in points} == want
    for point in points:
        assert len(point["draws"]) == (0 if point["attack"].endswith("frozen") else 3), point["attack"]
        if point["draws"]:
            assert point["correct"] == sum(point["draws"]) // 3
            assert point["settings"]["verdicts"] == 3
        if point["attack"] in ("fgsm", "pgd"):
            assert point["settings"]["draws"] == 2, "expectation over transformation"
            assert not point["settings"].get("early_stop"), "no net is judged by its worst draw"
        if point["eps"]:
            assert "random forward" in point["flags"]
    assert max(len(set(p["draws"])) for p in points) > 1, "the draws differ"


def test_a_random_net_has_no_worst_case_and_says_so(here: Path, tell: Tell) -> None:
    """Every attack is judged by draws of its own; what all of them left right in some draw or other says nothing."""
    flags = "--attacks fgsm,uniform --eps 0.1 --no-checks"
    stale = {"version": 1, "points": []}
    (here / "random" / "attacks").mkdir()
    (here / "random" / "attacks" / "worst-case.json").write_text(json.dumps(stale))
    told = tell(f"attack random {LITTLE} {flags}")
    assert re.search(in_order(f"no {WORST} random net"), told.out)
    assert WORST not in {p["attack"] for p in attack(tell, "random", flags)}
    assert kept(here / "random", "worst-case") == []
    assert "no worst case" not in tell(f"attack plain {LITTLE} {flags}").out


def test_every_verdict_is_a_fresh_draw_that_the_attack_has_not_seen(
    here: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perturblab.training import evaluate

    counters: list[tuple[str, int]] = []

    def position(model: nn.Module) -> int:
        return max(int(value.flatten()[-1]) for name, value in model.named_buffers() if name.endswith("draws"))

    known, judge = ATTACKS["fgsm"], evaluate.answers

    def run(model: nn.Module, *rest: Any) -> Tensor:
        made = known(model, *rest)
        counters.append(("attack ended at", position(model)))
        return made

    def answers(model: nn.Module, *rest: Any, **given: Any) -> evaluate.Answers:
        counters.append(("verdict begins at", position(model)))
        return judge(model, *rest, **given)

    monkeypatch.setitem(ATTACKS, "fgsm", run)
    monkeypatch.setattr(evaluate, "answers", answers)
    attack(tell, "random", "--attacks fgsm --eps 0.1 --no-checks")
    kinds = [kind for kind, _ in counters[:4]]
    assert kinds == ["attack ended at", *["verdict begins at"] * 3]
    places = [place for _, place in counters[:4]]
    assert places[1] >= places[0]
    assert places[1] < places[2] < places[3]


def test_more_verdicts_of_a_random_net_are_measured_anew(here: Path, tell: Tell) -> None:
    attack(tell, "random", "--attacks uniform --eps 0.1 --no-checks")
    (point,) = attack(tell, "random", "--attacks uniform --eps 0.1 --no-checks --verdicts 5")
    assert len(point["draws"]) == 5
    assert attack(tell, "plain", "--attacks uniform --eps 0.1 --no-checks")
    with counted() as made:
        attack(tell, "plain", "--attacks uniform --eps 0.1 --no-checks --verdicts 5")
    assert measured(made) == [], "a fixed net has one verdict anyway"


def test_a_random_net_is_the_same_for_the_same_seed_whatever_was_measured_before(here: Path, tell: Tell) -> None:
    shutil.copytree(here / "random", here / "again")
    flags = "--attacks uniform,fgsm --eps 0.1,0.3 --no-checks"
    first = by_key(attack(tell, "random", flags))
    attack(tell, "again", "--attacks fgsm --eps 0.3 --no-checks")
    torch.manual_seed(123)
    assert by_key(attack(tell, "again", flags)) == first


# --- autoattack ------------------------------------------------------------------------------------------------------


def test_autoattack_on_a_run_is_no_weaker_than_its_parts(here: Path, tell: Tell) -> None:
    flags = "--attacks pgd,autoattack,square --eps 0,0.25 --subset 16 --no-checks"
    points = by_key(attack(tell, "three", flags))
    assert points["autoattack", 0.25]["correct"] <= points["pgd", 0.25]["correct"]
    assert points["autoattack", 0.25]["correct"] <= points["square", 0.25]["correct"]
    assert points["autoattack", 0.25]["settings"] == {"queries": 15, "seed": 1}
    few = by_key(attack(tell, "three", "--attacks autoattack --eps 0.1 --subset 16 --no-checks"))["autoattack", 0.1]
    parts = dict(few["parts"])
    assert list(parts) == ["apgd-ce", "apgd-dlr", "fab-t", "square"], "three classes"
    assert list(parts.values()) == sorted(parts.values(), reverse=True)
    assert parts["square"] == few["correct"] > 0
    assert points["autoattack", 0]["parts"] == points["pgd", 0.25]["parts"] == []
    assert points["autoattack", 0.25]["distance"] <= 0.25 + 1e-6


def test_the_parts_of_autoattack_are_added_over_batches_and_printed(here: Path, tell: Tell) -> None:
    flags = "--attacks autoattack --eps 0.1 --subset 16 --no-checks"
    model, x, y = opened_in_pixels(here / "three")
    rows = torch.randperm(len(x), generator=stream(0, "attacked images"))[:16].sort().values
    generator, want = stream(1, "autoattack 0.1"), Counter[str]()
    for part in rows.split(5):
        table: dict[str, int] = {}
        _, table = attack_in_turn(
            model, x[part], y[part], Threat("linf", 0.1), Ensemble(queries=15), generator=generator
        )
        want.update(table)
    told = tell(f"attack three {LITTLE} {flags} --batch-size 5")
    assert ", ".join(f"{name} {left}" for name, left in want.items()) in told.out
    assert [tuple(pair) for pair in kept(here / "three", "autoattack")[0]["parts"]] == list(want.items())


def test_a_transferred_autoattack_tells_no_parts_which_would_be_those_of_the_source(here: Path, tell: Tell) -> None:
    flags = "--attacks transfer-autoattack --eps 0.1 --subset 12 --source other --no-checks"
    assert attack(tell, "plain", flags)[0]["parts"] == []
