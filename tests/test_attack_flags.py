"""Flags of `perturblab attack`: which nets it distrusts, and what clears a flag."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from attack_runs import LITTLE, WEAK, attack, by_key, counted, kept, measured
from builders import CLEAN, Tell
from perturblab.attacks import ATTACKS, Threat, masking
from perturblab.records.attack_names import WORST
from perturblab.records.checks import Findings
from perturblab.records.flags import flag_note
from told import in_order

pytestmark = pytest.mark.usefixtures("undrawn")
CHECKED, FLAGS = "--attacks fgsm,pgd --eps 0,0.1", ["not converged", "saturated logits"]


def test_the_flags_are_looked_for_anew_where_they_may_differ(
    here: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    examine = masking.examine

    def spy(*args: Any, **given: Any) -> Findings:
        looked.append(sorted(given["black_boxes"]))
        return examine(*args, **given)

    monkeypatch.setattr(masking, "examine", spy)
    flags = "--attacks fgsm --eps 0,0.1"
    for more, new in (
        ("", True),
        ("", False),
        ("--steps 4", True),
        ("--check-subset 12", True),
        ("--subset 20", True),
        ("--norm l2", True),
        ("--manual-seed 3", True),
        ("--source other", True),
        ("--source other", False),
        ("", False),
    ):
        before = len(looked)
        attack(tell, "plain", f"{flags} {more}")
        assert (len(looked) > before) == new, more
    assert looked[-1] == ["square", "transfer"], "with a source, its images are tried too"
    assert looked[0] == ["square"]


def test_without_checks_the_flags_that_are_known_stay(here: Path, tell: Tell) -> None:
    flags = "--attacks fgsm --eps 0,0.1"
    with_checks = attack(tell, "random", flags)
    assert "random forward" in with_checks[1]["flags"]
    without = attack(tell, "random", f"{flags} --no-checks")
    assert [p["flags"] for p in without] == [p["flags"] for p in with_checks]
    assert "random forward" in kept(here / "random", "fgsm")[1]["flags"]
    shutil.rmtree(here / "random" / "attacks")
    assert attack(tell, "random", f"{flags} --no-checks")[1]["flags"][0] == "random forward", "that needs no check"


def found(**given: Any) -> Callable[..., Findings]:
    """Checks that find this and nothing else."""
    numbers = CLEAN | {"images": 100, "fgsm": 50, "pgd": 40, "doubled": 40}
    return lambda *args, **_: Findings(**numbers | given)


@pytest.fixture
def deceiving(here: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that the checks have flagged; from now on they find nothing."""
    monkeypatch.setattr(masking, "examine", found(doubled=30, saturated=9))
    assert [p["flags"] for p in attack(tell, "plain", CHECKED)] == [[], FLAGS] * 3
    monkeypatch.setattr(masking, "examine", found())
    return here / "plain"


def test_the_flags_of_a_net_are_shown_with_every_later_attack_on_it_also_without_checks(
    deceiving: Path, tell: Tell
) -> None:
    later = "--attacks uniform,deepfool,square,fgsm --eps 0.1 --iterations 1 --no-checks"
    points = attack(tell, "plain", later)
    assert {p["attack"] for p in points} == {"uniform", "deepfool", "square", "fgsm", WORST}
    assert all(p["flags"] == FLAGS for p in points)
    for name in ("uniform", "deepfool", "square"):
        assert all(p["flags"] == FLAGS for p in kept(deceiving, name)), "in what is kept too"
    assert f"* {flag_note(FLAGS)}\n" in tell(f"attack plain {LITTLE} {later}").out
    assert all(p["flags"] == FLAGS for p in attack(tell, "plain", f"{later} --subset 50")), "of other images"
    for points in (attack(tell, "plain", f"--attacks fgsm --eps 0.1 --norm l2 {more}") for more in ("", "--no-checks")):
        assert points[0]["flags"] == FLAGS[1:], "what a norm has shown is not said of another"
    assert all(p["flags"] == [] for p in attack(tell, "other", later)), "nor of other weights"


def test_flags_are_not_washed_off_by_a_check_that_finds_nothing(deceiving: Path, tell: Tell) -> None:
    with counted() as made:
        points = attack(tell, "plain", f"{CHECKED} --check-subset 12")
    assert measured(made) == []
    checks = json.loads((deceiving / "attacks" / "checks.json").read_text())
    assert [check["flags"] for check in checks] == [FLAGS, []], "the second one was made"
    assert [p["flags"] for p in points] == [[], FLAGS] * 3
    for name in ("fgsm", "pgd", "worst-case"):
        assert [p["flags"] for p in kept(deceiving, name)] == [[], FLAGS]


def test_flags_that_were_kept_stay_where_the_checks_are_gone(deceiving: Path, tell: Tell) -> None:
    (deceiving / "attacks" / "checks.json").unlink()
    assert [p["flags"] for p in attack(tell, "plain", "--attacks uniform --eps 0.1 --no-checks")] == [FLAGS, FLAGS]


def test_what_the_curves_show_is_flagged_without_any_check(here: Path, tell: Tell) -> None:
    points = by_key(attack(tell, "plain", f"{WEAK} --no-checks"))
    assert points["pgd", 0.1]["correct"] > points["fgsm", 0.1]["correct"] + 5
    assert all(p["flags"] == (["PGD weaker than FGSM"] if eps else []) for (_, eps), p in points.items())


def test_a_curve_that_rises_is_flagged_in_what_is_kept_too(here: Path, tell: Tell) -> None:
    """A large step that turns every image grey, against a small one that breaks them."""
    known = ATTACKS["fgsm"]

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *rest: Any) -> Tensor:
        return x.clone() if threat.eps == 0.4 else known(model, x, y, threat, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, "fgsm", run)
        points = attack(tell, "plain", "--attacks fgsm,uniform --eps 0,0.2,0.4 --no-checks")
    flags = {(p["attack"], p["eps"]): p["flags"] for p in points}
    assert flags["fgsm", 0.2] == flags["fgsm", 0.4] == ["not monotone"]
    assert flags["uniform", 0.4] == []
    assert [p["flags"] for p in kept(here / "plain", "fgsm")] == [[], ["not monotone"], ["not monotone"]]


def test_noise_that_breaks_less_at_a_larger_radius_does_not_flag_the_worst_case(here: Path, tell: Tell) -> None:
    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *rest: Any) -> Tensor:
        return x.clone() if threat.eps == 0.4 else ATTACKS["fgsm"](model, x, y, threat, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, "uniform", run)
        points = attack(tell, "plain", "--attacks fgsm,uniform --eps 0,0.2,0.4 --no-checks")
    flags = {(p["attack"], p["eps"]): p["flags"] for p in points}
    assert flags["uniform", 0.4] == ["not monotone"]
    assert flags["worst case", 0.2] == flags["worst case", 0.4] == flags["fgsm", 0.4] == []


def test_a_net_that_was_not_checked_is_told_as_such(here: Path, tell: Tell) -> None:
    few = f"attack plain {LITTLE} --eps 0,0.1"
    said = in_order("not checked gradients --no-checks")
    assert re.search(said, tell(f"{few} --attacks fgsm --no-checks").out)
    assert not re.search(said, tell(f"{few} --attacks pgd").out)
    assert not re.search(said, tell(f"{few} --attacks fgsm --no-checks").out), "it was checked before"


def test_the_checks_of_a_plain_run_raise_nothing(here: Path, tell: Tell) -> None:
    little = "--subset 200 --queries 100 --check-subset 200 --nthreads 1"
    points = attack(tell, "plain", "--attacks fgsm --eps 0,0.05,0.3 --source other", little=little)
    assert {flag for p in points for flag in p["flags"]} == set()
    (checks,) = json.loads((here / "plain" / "attacks" / "checks.json").read_text())
    assert checks["flags"] == []
    assert len(checks["findings"]["trace"]) == 50, "loss against step is kept"
    assert set(checks["findings"]["black_box"]) == {"uniform", "gaussian", "square", "transfer"}
