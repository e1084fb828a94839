"""`perturblab attack` a second time: nothing is measured twice, nothing of different settings is mixed."""

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from attack_runs import LITTLE, TEST, attack, by_key, counted, kept, measured, opened_in_pixels
from builders import Tell, point
from perturblab.attacks import ATTACKS, Threat, attack_in_turn, masking
from perturblab.records.attack_names import WORST
from perturblab.records.run_points import RunPoints
from perturblab.runs.attack import images, partial
from perturblab.system import files

pytestmark = pytest.mark.usefixtures("undrawn", "short_autoattack")


def test_a_second_call_measures_nothing_and_says_the_same(
    here: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = "--attacks fgsm,pgd,deepfool --eps 0,0.1"
    with counted() as made:
        first = attack(tell, "plain", flags)
    assert measured(made) == [("fgsm", 0.0), ("fgsm", 0.1), ("pgd", 0.0), ("pgd", 0.1)]
    files = {path.name: path.read_bytes() for path in (here / "plain" / "attacks").iterdir()}
    monkeypatch.setattr(masking, "examine", None)  # a call would fail
    monkeypatch.setattr(images, "deepfool_path", None)
    with counted() as made:
        assert attack(tell, "plain", flags) == first
    assert measured(made) == []
    assert {path.name: path.read_bytes() for path in (here / "plain" / "attacks").iterdir()} == files


def test_only_what_is_missing_is_measured(here: Path, tell: Tell) -> None:
    attack(tell, "plain", "--attacks fgsm --eps 0,0.1")
    with counted() as made:
        points = attack(tell, "plain", "--attacks fgsm,uniform --eps 0,0.1,0.2")
    assert measured(made) == [("fgsm", 0.2), ("uniform", 0.0), ("uniform", 0.1), ("uniform", 0.2)]
    assert [(p["attack"], p["eps"]) for p in points][:3] == [("fgsm", 0.0), ("fgsm", 0.1), ("fgsm", 0.2)]


def test_a_call_reads_each_file_of_points_once(here: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that adds points and a check, changes flags, and makes the worst cases anew."""
    attack(tell, "plain", "--attacks fgsm,uniform --eps 0,0.1,0.2 --no-checks")
    reads = Counter[str]()
    real = Path.read_text

    def counting(path: Path, **given: Any) -> str:
        if path.parent.name == "attacks":
            reads[path.name] += 1
        return real(path, **given)

    monkeypatch.setattr(Path, "read_text", counting)
    attack(tell, "plain", "--attacks fgsm,pgd --eps 0,0.1,0.3")
    assert reads == {"fgsm.json": 1, "uniform.json": 1, "worst-case.json": 1}, "pgd.json and checks.json are new"
    reads.clear()
    attack(tell, "plain", "--attacks fgsm,pgd --eps 0,0.1,0.3")
    names = ["checks", "fgsm", "pgd", "uniform", "worst-case"]
    assert reads == {f"{name}.json": 1 for name in names}


def test_points_that_another_process_writes_meanwhile_are_kept(tmp_path: Path) -> None:
    ours, theirs = RunPoints(tmp_path), RunPoints(tmp_path)
    assert ours.find(point("fgsm", 0.1)) is None
    theirs.add(point("fgsm", 0.2, 5))
    ours.add(point("fgsm", 0.1, 9))
    theirs.add(point("pgd", 0.1, 3))
    assert [(p.attack, p.eps, p.correct) for p in ours.settle({})] == [
        *(("fgsm", 0.1, 9), ("fgsm", 0.2, 5), ("pgd", 0.1, 3)),
        *((WORST, 0.1, 3), (WORST, 0.2, 3)),
    ]


def test_a_call_that_was_interrupted_keeps_every_point_and_goes_on(here: Path, tell: Tell) -> None:
    flags = "--attacks fgsm,pgd --eps 0,0.1,0.2"
    straight = by_key(attack(tell, "plain", flags))
    shutil.rmtree(here / "plain" / "attacks")
    known = ATTACKS["pgd"]

    def stops(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *rest: Any) -> Tensor:
        if threat.eps == 0.2:
            raise KeyboardInterrupt
        return known(model, x, y, threat, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, "pgd", stops)
        told = tell(f"attack plain {LITTLE} --json {flags}")
    assert (told.code, told.out) == (130, "")
    assert "interrupted" in told.err
    assert [p["eps"] for p in kept(here / "plain", "fgsm")] == [0, 0.1, 0.2]
    assert [p["eps"] for p in kept(here / "plain", "pgd")] == [0, 0.1], "written after each point"
    with counted() as made:
        points = attack(tell, "plain", flags)
    assert measured(made) == [("pgd", 0.2)]
    assert by_key(points) == straight


@pytest.mark.parametrize("name", ["autoattack", "pgd", "transfer-square"])
def test_a_point_that_was_interrupted_goes_on_behind_its_last_batch(
    here: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    flags = f"--attacks {name} --eps 0.1 --subset 16 --batch-size 3 --no-checks --source other"
    straight = by_key(attack(tell, "plain", flags))
    shutil.rmtree(here / "plain" / "attacks")
    plain = name.removeprefix("transfer-")
    known = ATTACKS[plain] if plain != "autoattack" else attack_in_turn
    sizes: list[int] = []

    def spied(model: nn.Module, x: Tensor, *rest: Any, **given: Any) -> Tensor:
        sizes.append(len(x))
        if len(sizes) == 5:
            raise KeyboardInterrupt
        return known(model, x, *rest, **given)

    monkeypatch.setitem(ATTACKS, plain, spied)
    monkeypatch.setattr(images, "attack_in_turn", spied)
    monkeypatch.setattr(files, "SAVE_EVERY", -1.0)  # written after every batch
    assert tell(f"attack plain {LITTLE} {flags}").code == 130
    file = here / "plain" / "attacks" / f"{name}.unfinished"
    assert file.is_file()
    assert not file.with_suffix(".json").exists(), "no point before it is measured"
    sizes[:] = [0] * 10
    assert by_key(attack(tell, "plain", flags)) == straight
    assert sizes[10:12] == [3, 1], "12 of 16 images were done"
    assert not file.exists()


@pytest.mark.parametrize("left", ["broken", "other batches", "missing parts", "another seed"])
def test_what_was_left_of_another_point_is_not_taken_over(
    here: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    flags = "--attacks square --eps 0.1 --subset 16 --no-checks --batch-size 4"
    straight = by_key(attack(tell, "plain", flags))
    shutil.rmtree(here / "plain" / "attacks")
    monkeypatch.setattr(files, "SAVE_EVERY", -1.0)
    monkeypatch.setattr(partial.Unfinished, "remove", lambda self: None)
    changed = {"other batches": "--batch-size 8", "another seed": "--manual-seed 2"}.get(left, "")
    attack(tell, "plain", f"{flags} {changed}")
    file = here / "plain" / "attacks" / "square.unfinished"
    file.with_suffix(".json").unlink()
    if left == "broken":
        file.write_bytes(file.read_bytes()[:-100])
    if left == "missing parts":
        with safetensors.safe_open(file, "pt") as opened_file:
            key = opened_file.metadata()["key"]
        file.write_bytes(safetensors.torch.save(safetensors.torch.load_file(file), {"key": key}))
    with counted() as made:
        assert by_key(attack(tell, "plain", flags)) == straight
    assert measured(made).count(("square", 0.1)) == 4, "all four batches"


def test_a_random_net_leaves_no_batches_since_its_draws_cannot_go_on(
    here: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SAVE_EVERY", -1.0)
    monkeypatch.setattr(partial.Unfinished, "remove", lambda self: None)
    for run, count in (("random", 0), ("plain", 1)):
        attack(tell, run, "--attacks pgd --eps 0.1 --subset 8 --no-checks")
        assert len(list((here / run / "attacks").glob("*.unfinished"))) == count


def test_other_weights_are_measured_anew_and_never_mixed(here: Path, tell: Tell) -> None:
    flags = "--attacks fgsm,pgd --eps 0,0.1"
    first = attack(tell, "plain", flags)
    own = attack(tell, "other", flags)
    shutil.copy(here / "other" / "weights.safetensors", here / "plain" / "weights.safetensors")
    with counted() as made:
        second = attack(tell, "plain", flags)
    assert len(measured(made)) == 4
    assert by_key(second) == by_key(own)
    assert by_key(second) != by_key(first)
    assert len(kept(here / "plain")) == 4, "the old points stay, under their own weights"
    assert len({p["weights"] for p in kept(here / "plain")}) == 2


@pytest.mark.parametrize(
    "change",
    ["--subset 20", "--steps 4", "--restarts 2", "--step-size 0.01", "--manual-seed 2", "--norm l2"],
)
def test_another_subset_effort_seed_or_norm_is_measured_anew_and_never_mixed(
    here: Path, tell: Tell, change: str
) -> None:
    flags = "--attacks uniform,pgd --eps 0,0.1 --no-checks"
    first = attack(tell, "plain", flags)
    with counted() as made:
        second = attack(tell, "plain", f"{flags} {change}")
    names = {name for name, _ in measured(made)}
    assert "pgd" in names
    alone = by_key(attack(tell, "plain", f"{flags} {change}", little=LITTLE))
    assert by_key(second) == alone
    if change != "--norm l2" and "subset" not in change:  # the worst case is over the weaker calls too
        first = [p for p in first if p["attack"] != WORST]
    saved = [p for path in (here / "plain" / "attacks").glob("pgd*.json") for p in kept(here / "plain", path.stem)]
    assert len(saved) == 4
    with counted() as made:
        again = by_key(attack(tell, "plain", flags))
    assert {key: again[key] for key in by_key(first)} == by_key(first), "and the first is still there"
    assert measured(made) == []


def test_the_subset_is_the_same_for_every_run_and_seed(here: Path, tell: Tell) -> None:
    seen: list[Tensor] = []
    known = ATTACKS["uniform"]

    def spy(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        seen.append(x)
        return known(model, x, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, "uniform", spy)
        points = [
            attack(tell, run, f"--attacks uniform --eps 0.1 --no-checks {more}")[0]
            for run, more in (("plain", ""), ("other", ""), ("random", ""), ("plain", "--manual-seed 9"))
        ]
    assert len({p["subset"] for p in points}) == 1
    assert all(torch.equal(x, seen[0]) for x in seen)
    assert len(seen[0]) == 30
    _, x, _ = opened_in_pixels(here / "plain")
    assert not torch.equal(seen[0], x[:30]), "drawn, not the first ones"
    more = attack(tell, "plain", "--attacks uniform --eps 0.1 --no-checks --subset 600")[0]
    assert (more["total"], more["subset"]) != (30, points[0]["subset"])
    assert more["total"] == TEST


@pytest.mark.parametrize("name", ["fgsm", "checks"])
def test_a_file_that_is_not_ours_is_one_sentence(here: Path, tell: Tell, name: str) -> None:
    attack(tell, "plain", "--attacks fgsm --eps 0.1")
    (here / "plain" / "attacks" / f"{name}.json").write_text("{")
    told = tell(f"attack plain {LITTLE} --attacks fgsm --eps 0.1 --json")
    assert (told.code, told.out) == (2, "")
    assert re.fullmatch(rf"perturblab: error: \S*{name}\.json .*; delete .*\n", told.err)
