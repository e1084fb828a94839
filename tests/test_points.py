"""Points of robustness curves: the worst case of every image, flags, tables, files, and the pictures of them."""

import json
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perturblab import robustness_figures
from perturblab.attacks import ATTACKS
from perturblab.errors import UserError
from perturblab.points import (
    NOT_MONOTONE,
    UPPER_BOUND,
    WORST,
    Point,
    file_of,
    flagged,
    is_capped,
    load_points,
    radius,
    rising,
    said,
    save_points,
    table,
    worst_cases,
)
from perturblab.stats import wilson

TOTAL = 13  # no multiple of 4: the first digit of the answers holds one image
EPS = (0.0, 0.1, 0.2)


def as_hex(right: list[bool]) -> str:
    bits = "".join("1" if value else "0" for value in right)
    return f"{int(bits, 2):0{-(-len(bits) // 4)}x}"


def point(attack: str = "fgsm", eps: float = 0.1, right: list[bool] | int = 7, **given: Any) -> Point:
    total = given.pop("total", TOTAL)
    right = right if isinstance(right, list) else [k < right for k in range(total)]
    correct = sum(right)
    fixed: dict[str, Any] = {
        "attack": attack,
        "eps": eps,
        "norm": "linf",
        "correct": correct,
        "total": len(right),
        "wilson": wilson(correct, len(right)),
        "answers": as_hex(right),
        "subset": "s",
        "weights": "w",
        "settings": {"seed": 1},
    }
    return Point(**fixed | given)


def curve(attack: str, *correct: int, total: int = 1000, **given: Any) -> list[Point]:
    return [point(attack, k / 10, count, total=total, **given) for k, count in enumerate(correct)]


# --- the worst case -------------------------------------------------------------------------------------------------


def test_the_worst_case_is_the_and_of_a_plain_loop_over_images() -> None:
    generator = np.random.default_rng(0)
    clean = [bool(v) for v in generator.random(TOTAL) < 0.8]
    answers = {(name, eps): [bool(v) for v in generator.random(TOTAL) < 0.6] for name in "abc" for eps in EPS[1:]}
    points = [point(name, eps, right) for (name, eps), right in answers.items()]
    points += [point(name, 0.0, clean) for name in "abc"]
    found = worst_cases(points, as_hex(clean))
    assert [p.eps for p in found] == list(EPS)
    for worst in found:
        want = []
        for image in range(TOTAL):
            right = clean[image]
            for name in "abc":
                if worst.eps and not answers[name, worst.eps][image]:
                    right = False
            want.append(right)
        decoded = [bit == "1" for bit in f"{int(worst.answers, 16):0{TOTAL}b}"]
        assert decoded == want
        assert (worst.correct, worst.total) == (sum(want), TOTAL)
        assert worst.wilson == wilson(sum(want), TOTAL)
        assert (worst.attack, worst.norm) == (WORST, "linf")
        assert worst.settings["attacks"] == ["a", "b", "c"]
        lowest = min(sum(answers[name, worst.eps]) if worst.eps else TOTAL for name in "abc")
        assert worst.correct <= lowest, "never better than the best attack"


def test_an_image_that_was_wrong_without_an_attack_does_not_count_where_an_attack_sets_it_right() -> None:
    """Also when radius 0 was not asked for: the image itself lies in every ball."""
    clean = [False, True, True, False]
    found = worst_cases([point("fgsm", 0.1, [True, True, False, True])], as_hex(clean))
    assert [(p.eps, p.correct, p.answers) for p in found] == [(0.1, 1, "4")]


def test_worst_cases_do_not_mix_norms_images_and_weights() -> None:
    others = ({}, {"norm": "l2"}, {"subset": "t"}, {"weights": "v"})
    points = [point("fgsm", 0.1, [k != n for k in range(4)], **given) for n, given in enumerate(others)]
    found = worst_cases(points, "f")
    assert sorted(p.answers for p in found) == ["7", "b", "d", "e"]
    assert worst_cases([], "f") == []


def test_worst_cases_of_an_iterator_are_those_of_the_list() -> None:
    points = [point("a", 0.1, 5), point("b", 0.1, 3), point("a", 0.0, 9)]
    clean = as_hex([k < 9 for k in range(TOTAL)])
    assert worst_cases(iter(points), clean) == worst_cases(points, clean)


# --- flags ----------------------------------------------------------------------------------------------------------


def test_an_accuracy_that_rises_with_the_radius_is_named() -> None:
    points = [*curve("falls", 900, 500, 100), *curve("rises", 900, 100, 106), *curve("within", 900, 100, 105)]
    assert rising(points) == {"rises"}
    assert rising(curve("late", 900, 100, 104, 106)) == {"late"}, "against the lowest before, not the last"
    assert rising(curve("once", 900)) == set()
    assert rising([*reversed(curve("any order", 900, 500, 100))]) == set()
    assert rising([]) == set()


def test_flags_go_to_every_point_of_the_net_and_not_monotone_to_its_own_curve_only() -> None:
    points = flagged([*curve("falls", 900, 100), *curve("rises", 500, 600)], ["softmax outputs"])
    flags = {(p.attack, p.eps): p.flags for p in points}
    assert flags == {
        ("falls", 0.0): (),
        ("falls", 0.1): ("softmax outputs",),
        ("rises", 0.0): (),
        ("rises", 0.1): ("softmax outputs", NOT_MONOTONE),
    }
    assert all(not p.flags for p in flagged(curve("falls", 900, 100), [])), "without flags, none"
    stale = [p.model_copy(update={"flags": ("old",)}) for p in curve("falls", 900, 100)]
    assert all(p.flags == () for p in flagged(stale, []))


def test_what_is_said_of_flags() -> None:
    assert said(()) == ""
    assert said(("a", "b")) == "empirical upper bound, flags: a, b"
    assert UPPER_BOUND == "empirical upper bound"


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eps", "text"),
    [
        (0.0, "0"),
        (1 / 255, "1/255"),
        (8 / 255, "8/255"),
        (25 / 255, "25/255"),
        (0.1, "0.1"),
        (0.3, "0.3"),
        (0.05, "0.05"),
        (0.5, "0.5"),
        (1.0, "1"),
        (5.0, "5"),
        (16.0, "16"),
    ],
)
def test_a_radius_is_written_as_people_do(eps: float, text: str) -> None:
    assert radius(eps) == text


def test_a_table_has_a_row_an_attack_a_column_a_radius_and_its_flags_below() -> None:
    points = flagged([*curve("fgsm", 900, 500), *curve("pgd", 900, 400, 100)], ["zero gradients", "softmax outputs"])
    lines = table(points).splitlines()
    assert lines[0].split() == ["linf,", "eps", "0", "0.1", "0.2"]
    assert lines[1].split() == ["fgsm", "90.00", "50.00*"]
    assert lines[2].split() == ["pgd", "90.00", "40.00*", "10.00*"]
    assert "of 1000 test images" in lines[3]
    assert "never a guarantee" in lines[3]
    assert lines[4:] == ["* empirical upper bound, flags: zero gradients, softmax outputs"]
    assert len({len(line) for line in lines[:3]}) <= 2, "columns are aligned"
    assert "*" not in table(curve("fgsm", 900, 500))


def test_deepfool_has_a_table_of_its_own_by_iterations() -> None:
    names = ("deepfool", "deepfool frozen", "transfer-deepfool")
    capped = [point(name, float(cap), 9 - cap, norm="l2") for name in names for cap in (1, 2)]
    lines = table([point("fgsm", 8 / 255, 5), *capped]).splitlines()
    assert lines[0].split() == ["linf,", "eps", "8/255"]
    assert lines[1].split() == ["fgsm", f"{500 / 13:.2f}"]
    assert lines[2].split() == ["iterations", "1", "2"]
    assert [line.split()[-2:] for line in lines[3:6]] == [[f"{800 / 13:.2f}", f"{700 / 13:.2f}"]] * 3
    assert [is_capped(name) for name in (*names, "fgsm", "transfer-pgd", WORST)] == [True] * 3 + [False] * 3
    by_iterations = {name for name, attack in ATTACKS.items() if attack.by_iterations}
    assert {name for name in ATTACKS if is_capped(name)} == by_iterations


# --- files ----------------------------------------------------------------------------------------------------------


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
    with pytest.raises(
        UserError, match=r"fgsm\.json cannot be read as attack points \(.+\); delete it to meas"
    ) as told:
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
    names = [*ATTACKS, "pgd frozen", "transfer-pgd", "transfer-deepfool", WORST]
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
    changed = ("attack", "x"), ("eps", 0.3), ("norm", "l2"), ("subset", "x"), ("weights", "x"), ("settings", {})
    assert len({same.model_copy(update={name: value}).key for name, value in changed} | {same.key}) == 7


def test_a_summary_has_what_the_contract_names() -> None:
    summary = point(eps=8 / 255).summary()
    assert {"attack", "eps", "norm", "correct", "total", "wilson", "flags"} <= summary.keys()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["eps"] == 8 / 255


# --- pictures -------------------------------------------------------------------------------------------------------


def words(path: Path) -> list[str]:
    nodes = ET.parse(path).iter("{http://www.w3.org/2000/svg}text")
    return [" ".join("".join(node.itertext()).split()) for node in nodes]


def draw(points: list[Point], path: Path, title: str = "a net") -> list[str]:
    robustness_figures.curves_svg(points, path, title=title, chance=10.0)
    return words(path)


def test_the_curves_name_every_attack_the_radii_and_chance(tmp_path: Path) -> None:
    points = [p for name in ATTACKS if not is_capped(name) for p in curve(name, 900, 500, 100)]
    points += curve(WORST, 900, 400, 50)
    shown = draw(points, tmp_path / "c.svg")
    assert {*(name for name in ATTACKS if not is_capped(name)), WORST, "chance", "a net"} <= set(shown)
    assert {"0", "0.1", "0.2"} <= set(shown)
    assert "accuracy, % (95 % Wilson interval)" in shown
    assert "radius of the l-inf ball, pixels in [0, 1]" in shown
    assert not any(UPPER_BOUND in text for text in shown)
    small = [point("fgsm", n / 255, 9 - n) for n in range(5)]
    assert "radius of the l-inf ball, /255" in draw(small, tmp_path / "s.svg")
    l2 = [point("fgsm", eps, 5, norm="l2") for eps in (0.0, 0.5)]
    assert "radius of the l2 ball, pixels in [0, 1]" in draw(l2, tmp_path / "l.svg")


def test_a_flagged_curve_says_so_in_the_picture(tmp_path: Path) -> None:
    points = flagged([*curve("fgsm", 900, 100), *curve("pgd", 900, 950)], ["zero gradients"])
    shown = " ".join(draw(points, tmp_path / "c.svg"))
    assert f"empirical upper bound, flags: zero gradients, {NOT_MONOTONE}" in shown
    assert "fgsm *" in shown
    assert "pgd *" in shown


def test_the_worst_case_is_drawn_bold_and_deepfool_in_a_panel_of_its_own(tmp_path: Path) -> None:
    capped = [point(name, float(k), 9 - k, norm="l2") for k in (1, 2) for name in ("deepfool", "transfer-deepfool")]
    shown = draw([*curve("fgsm", 900, 500), *curve(WORST, 900, 400), *capped], tmp_path / "c.svg")
    assert "DeepFool, at most so many iterations" in shown
    assert {"deepfool", "transfer-deepfool", "fgsm", WORST} <= set(shown)
    assert shown.count("chance") == 2
    svg = (tmp_path / "c.svg").read_text()
    assert svg.count("stroke: #000000; stroke-width: 3.2") >= 1
    without = tmp_path / "d.svg"
    draw([*curve("fgsm", 900, 500), *capped], without)
    assert "stroke-width: 3.2" not in without.read_text()


def test_the_same_points_give_the_same_bytes_whatever_the_reader_has_set(tmp_path: Path) -> None:
    import matplotlib

    points = [*curve("fgsm", 900, 500, 100), *curve("pgd", 900, 400, 50)]
    draw(points, tmp_path / "a.svg")
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "other", "lines.linewidth": 9}):
        draw(points, tmp_path / "b.svg")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    draw([*curve("fgsm", 900, 500, 101), *curve("pgd", 900, 400, 50)], tmp_path / "c.svg")
    assert (tmp_path / "a.svg").read_bytes() != (tmp_path / "c.svg").read_bytes()


def test_a_hostile_title_is_text_only(tmp_path: Path) -> None:
    shown = draw(curve("fgsm", 900, 500), tmp_path / "t.svg", "<script>$\\frac$\n--> & x")
    assert "<script>$\\frac$ --> & x" in shown
    assert "<script" not in (tmp_path / "t.svg").read_text()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_images_have_two_rows_a_radius_and_name_what_the_net_sees(tmp_path: Path, channels: int) -> None:
    generator = np.random.default_rng(1)
    clean = generator.random((3, channels, 6, 5), dtype=np.float32)
    attacked = {eps: np.clip(clean + eps * generator.choice([-1, 1], clean.shape), 0, 1) for eps in (0.1, 0.5)}
    answers = {0.0: ["cat", "dog", "cow"], 0.1: ["dog", "dog", "cow"], 0.5: ["elk", "elk", "elk"]}
    paths = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for path in paths:
        robustness_figures.examples_svg(clean, attacked, answers, path, title="a net: pgd")
    shown = words(paths[0])
    assert {"clean", "change / 0.1", "0.1", "change / 0.5", "0.5", "a net: pgd"} <= set(shown)
    assert [shown.count(name) for name in ("cat", "dog", "cow", "elk")] == [1, 3, 2, 3]
    svg = paths[0].read_text()
    assert svg.count("<image") == 3 * (1 + 2 * 2), "five rows of three"
    assert 'href="data:image/png;base64,' in svg, "the pixels are in the file"
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_colours_and_markers_tell_more_curves_apart_than_there_are_attacks_and_their_frozen_twins() -> None:
    colours, markers = robustness_figures._COLOURS, robustness_figures._MARKERS
    looks = [(colours[rank % len(colours)], markers[rank % len(markers)]) for rank in range(3 * len(ATTACKS))]
    assert len(set(looks)) == len(looks)
    assert all(one[0] != two[0] for one, two in pairwise(looks))
