"""Points of robustness curves: their files, keys and summaries."""

import json
from pathlib import Path
from typing import Any

import pytest

from builders import CHECK, TOTAL, point
from perturblab.errors import UserError
from perturblab.records.attack_names import ATTACK_KINDS, WORST
from perturblab.records.flags import SATURATED
from perturblab.records.paths import file_of
from perturblab.records.points import Point, load_points, save_points
from perturblab.records.run_points import RunPoints
from perturblab.records.worst_case import with_worst


def test_points_go_round_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "attacks" / "fgsm.json"
    points = [point(eps=0.1, draws=(1, 2), flags=("a",), median=0.05, distance=0.1), point(eps=8 / 255)]
    save_points(path, points)
    assert load_points(path) == points
    assert json.loads(path.read_text())["version"] == 1
    before = path.read_bytes()
    save_points(path, points)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["fgsm.json"], "no half of a file is left"
    assert load_points(tmp_path / "none.json") == []


def test_the_points_of_a_run_have_the_flags_of_its_checks_and_worst_cases_made_anew(tmp_path: Path) -> None:
    """As of a folder in which some were measured without checks, and the worst case by a version that mixed modes."""
    folder = tmp_path / "attacks"
    save_points(folder / "fgsm.json", [point("fgsm", 0.1, 9), point("fgsm", 0.1, 19, total=30, subset="all")])
    save_points(folder / "pgd.json", [point("pgd", 0.1, 5)])
    save_points(folder / "deepfool.json", [point("deepfool", 1.0, 5, norm="l2")])
    for name in ("worst-case", "worst-case-l2", "worst-case-old"):
        save_points(folder / f"{name}.json", [point(WORST, 0.1, 1, settings={"attacks": ["fgsm", "pgd"]})])
    (folder / "checks.json").write_text(json.dumps([CHECK]))
    points = with_worst(RunPoints(tmp_path).marked())
    assert [(p.attack, p.total) for p in points] == [
        *(("deepfool", TOTAL), ("fgsm", TOTAL), ("fgsm", 30), ("pgd", TOTAL), (WORST, TOTAL)),
    ]
    assert {p.flags for p in points} == {(SATURATED,)}, (
        "from the numbers, whatever flags they meant when they were kept"
    )
    assert points[-1].correct == 5
    (folder / "checks.json").unlink()
    assert {p.flags for p in with_worst(RunPoints(tmp_path).marked())} == {()}
    (folder / "checks.json").write_text(json.dumps([CHECK | {"key": [*CHECK["key"][:2], "v", *CHECK["key"][3:]]}]))
    assert {p.flags for p in with_worst(RunPoints(tmp_path).marked())} == {()}, "of other weights"


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "3", "[3]", "[{}]", '[{"key": []}]', "{}x"),
        json.dumps([CHECK | {"findings": {}}]),
        json.dumps([CHECK | {"findings": CHECK["findings"] | {"images": "a"}}]),
        json.dumps([CHECK | {"findings": CHECK["findings"] | {"classes": 0}}]),
        json.dumps([CHECK | {"findings": CHECK["findings"] | {"black_box": [1]}}]),
    ],
)
def test_checks_that_are_not_ours_are_one_sentence(tmp_path: Path, content: str) -> None:
    save_points(tmp_path / "attacks" / "fgsm.json", [point()])
    (tmp_path / "attacks" / "checks.json").write_text(content)
    with pytest.raises(UserError, match=r"checks\.json .*\(.+\); delete"):
        with_worst(RunPoints(tmp_path).marked())


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        '{"points": []}',
        '{"version": 2, "points": []}',
        '{"version": 1}',
        '{"version": 1, "points": [{}]}',
        '{"version": 1, "points": [3]}',
        '{"version": 1, "points": 3}',
        b"\xff\xfe\x00",
    ],
)
def test_a_file_that_is_not_ours_is_one_sentence(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "fgsm.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"fgsm\.json .*\(.+\); delete") as told:
        load_points(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"correct": -1},
        {"total": 0},
        {"eps": float("nan")},
        {"eps": float("inf")},
        {"correct": 1.5},
        {"more": 1},
    ],
)
def test_a_point_with_impossible_numbers_is_refused(wrong: dict[str, Any]) -> None:
    fixed = point().model_dump()
    Point(**fixed)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Point(**fixed | wrong)


def test_every_curve_has_a_file_of_its_own() -> None:
    names = [*ATTACK_KINDS, "pgd frozen", "transfer-pgd", "transfer-deepfool", WORST]
    files = {file_of(Path("run"), name, norm) for name in names for norm in ("linf", "l2")}
    assert len(files) == 2 * len(names)
    assert file_of(Path("run"), "pgd", "linf") == Path("run/attacks/pgd.json")
    assert file_of(Path("run"), "deepfool", "l2") == Path("run/attacks/deepfool.json")
    assert file_of(Path("run"), "transfer-deepfool", "l2") == Path("run/attacks/transfer-deepfool.json")
    assert file_of(Path("run"), "pgd", "l2") == Path("run/attacks/pgd-l2.json")
    assert all(" " not in path.name for path in files)


def test_the_key_of_a_point_is_what_it_measures_and_nothing_of_what_came_out() -> None:
    same = point()
    for name, value in (("correct", 1), ("flags", ("a",)), ("seconds", 9.0), ("answers", "0"), ("draws", (1,))):
        assert same.model_copy(update={name: value}).key == same.key, name
    assert same.model_copy(update={"parts": (("square", 1),)}).key == same.key
    changed = ("attack", "x"), ("eps", 0.3), ("norm", "l2"), ("subset", "x"), ("weights", "x"), ("settings", {})
    assert len({same.model_copy(update={name: value}).key for name, value in changed} | {same.key}) == 7


def test_a_summary_has_what_the_contract_names() -> None:
    summary = point(eps=8 / 255).summary()
    assert {"attack", "eps", "norm", "correct", "total", "wilson", "flags"} <= summary.keys()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["eps"] == 8 / 255
