"""Points of robustness curves: the worst case of every image, flags, tables, files, and the pictures of them."""

import json
import warnings
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders import CHECK
from perturblab import robustness_figures
from perturblab.attacks import ATTACKS
from perturblab.errors import UserError
from perturblab.points import (
    ACTIVE,
    BLACK_BOX,
    BLIND,
    NO_WORST,
    NOT_MONOTONE,
    PGD_WEAKER,
    RANDOM,
    SATURATED,
    UPPER_BOUND,
    WORST,
    Point,
    Raised,
    compared,
    file_of,
    flagged,
    is_capped,
    lacks_worst,
    load_points,
    load_run_points,
    radius,
    rising,
    said,
    save_points,
    with_worst,
    worst_cases,
)
from perturblab.robustness_figures import table
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
                for eps in EPS[1:]:  # every ball holds the smaller ones
                    if eps <= worst.eps and not answers[name, eps][image]:
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


def test_a_worst_case_never_rises_with_the_radius_and_names_what_it_has_met() -> None:
    """As where AutoAttack was made at one radius only, and a weaker attack at larger ones."""
    points = [point("autoattack", 0.0, [True] * 4), point("autoattack", 0.2, [True, False, False, False])]
    points += [point("pgd", eps, [eps < 0.3, True, True, True]) for eps in (0.1, 0.2, 0.3)]
    assert [(p.eps, p.correct, p.settings["attacks"]) for p in worst_cases(points, "f")] == [
        (0.0, 4, ["autoattack"]),
        (0.1, 4, ["pgd"]),
        (0.2, 1, ["autoattack", "pgd"]),
        (0.3, 0, ["autoattack", "pgd"]),
    ]


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


def test_worst_cases_are_over_honest_attacks_alone_whatever_call_made_them() -> None:
    right = {"fgsm": [True] * 9 + [False] * 4, "pgd": [False] * 2 + [True] * 11}
    honest = [point(name, 0.1, answers) for name, answers in right.items()]
    honest.append(point("pgd", 0.1, [True] * 12 + [False], settings={"seed": 2}))
    none = [False] * TOTAL
    others = [
        point("fgsm", 0.1, none, settings={"mode": "BatchOut active in evaluation, a published mistake"}),
        point("fgsm-unclipped", 0.1, none, settings={"mistake": "pixels may leave [0, 1]"}),
        point("uniform", 0.1, none, settings={"verdicts": 3}),
        point("pgd frozen", 0.1, none),
        point("deepfool", 1.0, none, norm="l2"),
        point("deepfool-unclipped", 1.0, none, norm="l2"),
    ]
    (worst,) = [p for p in with_worst([*others, *honest]) if p.attack == WORST]
    want = [a and b for a, b in zip(*right.values(), strict=True)]
    assert [bit == "1" for bit in f"{int(worst.answers, 16):0{TOTAL}b}"] == want
    assert worst.settings == {"attacks": ["fgsm", "pgd"]}
    assert with_worst([*others, honest[0]]) == [*others, honest[0]], "one honest attack has no worst case"
    assert with_worst(honest, {("w", "s"): "0"})[-1].correct == 0, (
        "answers without an attack count where they are known"
    )


def test_a_worst_case_has_the_flags_of_all_its_attacks_but_none_without_an_attack() -> None:
    points = [
        *(
            point(name, eps, 5, flags=flags)
            for name, flags in (("fgsm", ("softmax outputs",)), ("pgd", ()))
            for eps in EPS
        ),
        point("square", 0.2, 4, flags=(BLACK_BOX,)),
    ]
    flags = {p.eps: p.flags for p in with_worst(points) if p.attack == WORST}
    assert flags == {0.0: (), 0.1: (BLACK_BOX, "softmax outputs"), 0.2: (BLACK_BOX, "softmax outputs")}


def test_a_random_net_lacks_a_worst_case_where_there_would_be_one() -> None:
    random = {"settings": {"verdicts": 3}}
    assert lacks_worst([point("fgsm", **random), point("pgd", **random)])
    assert not lacks_worst([point("fgsm", **random), point("fgsm", 0.2, **random)]), "one attack"
    assert not lacks_worst([point("fgsm"), point("pgd")])
    named = (("mode", f"{ACTIVE}, a published mistake"), ("mistake", "a published one"))
    mistakes = [{"settings": {"verdicts": 3, name: text}} for name, text in named]
    assert not lacks_worst([point(name, **given) for name in ("fgsm", "pgd") for given in mistakes])


# --- flags ----------------------------------------------------------------------------------------------------------


def names(curves: set[tuple[str, ...]]) -> set[str]:
    return {attack for attack, *_ in curves}


def test_an_accuracy_that_rises_with_the_radius_is_named() -> None:
    points = [*curve("falls", 900, 500, 100), *curve("rises", 900, 100, 106), *curve("within", 900, 100, 105)]
    assert names(rising(points)) == {"rises"}
    assert names(rising(curve("late", 900, 100, 104, 106))) == {"late"}, "against the lowest before, not the last"
    assert rising(curve("once", 900)) == set()
    assert rising([*reversed(curve("any order", 900, 500, 100))]) == set()
    assert rising([]) == set()


def test_curves_of_other_images_or_another_effort_are_not_taken_for_one() -> None:
    """A weak PGD at a large radius after a strong one at a small radius is no rise."""
    others = ({"subset": "t"}, {"settings": {"steps": 9}}, {"weights": "v"}, {"norm": "l2"})
    for other in others:
        assert rising([point("pgd", 0.1, 3), point("pgd", 0.2, 9, **other)]) == set(), other
    assert names(rising([point("pgd", 0.1, 3), point("pgd", 0.2, 9)])) == {"pgd"}


NET = ("w", "")


def flags_of(points: list[Point]) -> dict[tuple[str, float], tuple[str, ...]]:
    return {(p.attack, p.eps): p.flags for p in points}


def test_flags_go_to_every_point_of_the_net_and_not_monotone_to_its_own_curve_only() -> None:
    points = [*curve("falls", 900, 100), *curve("rises", 500, 600), *curve("uniform", 900, 800)]
    assert flags_of(flagged(points, [Raised(NET, "linf", ["softmax outputs"])])) == {
        ("falls", 0.0): (),
        ("falls", 0.1): ("softmax outputs",),
        ("rises", 0.0): (),
        ("rises", 0.1): ("softmax outputs", NOT_MONOTONE),
        ("uniform", 0.0): (),
        ("uniform", 0.1): ("softmax outputs",),
    }
    assert all(not p.flags for p in flagged(curve("falls", 900, 100))), "without flags, none"


def test_flags_of_several_checks_add_up_and_none_is_washed_off_by_a_check_that_finds_nothing() -> None:
    checks = [Raised(NET, "linf", [SATURATED]), Raised(NET, "linf", []), Raised(NET, "linf", [PGD_WEAKER, SATURATED])]
    for order in (checks, checks[::-1]):
        assert flagged([point("fgsm")], order)[0].flags == (PGD_WEAKER, SATURATED)


def test_flags_stay_with_their_weights_mode_and_norm() -> None:
    mode = {"settings": {"mode": ACTIVE}}
    points = [
        *(point("fgsm"), point("fgsm", norm="l2"), point("fgsm", weights="v"), point("fgsm", **mode)),
        *(point("deepfool", 1.0, norm="l2"), point("fgsm", subset="t", total=20)),
    ]
    found = [p.flags for p in flagged(points, [Raised(NET, "linf", [PGD_WEAKER, SATURATED])])]
    both = (PGD_WEAKER, SATURATED)
    assert found == [both, (SATURATED,), (), (), both, both], (
        "saturated logits are so in every norm; DeepFool has no radius"
    )
    assert flagged([point("fgsm", **mode)], [Raised(("w", ACTIVE), "linf", [SATURATED])])[0].flags == (SATURATED,)


def test_a_random_net_says_so_without_any_check() -> None:
    points = [point("fgsm", settings={"verdicts": 3}), point("square"), point("fgsm", weights="v"), point("fgsm", 0.0)]
    assert [p.flags for p in flagged(points)] == [(RANDOM,), (RANDOM,), (), ()]
    twin = [point("square frozen"), point("fgsm", 0.1, norm="l2")]
    assert [p.flags for p in flagged(twin)] == [(RANDOM,), (RANDOM,)]


def test_flags_that_points_have_stay_until_their_net_is_checked() -> None:
    stale = [p.model_copy(update={"flags": ("old", SATURATED, NOT_MONOTONE)}) for p in curve("falls", 900, 100)]
    assert [p.flags for p in flagged(stale)] == [(), (SATURATED, "old")], "the rise is looked for anew"
    assert [p.flags for p in flagged(stale, [Raised(("v", ""), "linf", [])])][1] == (SATURATED, "old")
    assert [p.flags for p in flagged(stale, [Raised(NET, "linf", [])])] == [(), ()]


# Images right of 1,000: 3 more than FGSM left, or broken by a blind attack alone, are beyond 0.2 %.
@pytest.mark.parametrize(
    ("fgsm", "pgd", "blind", "want"),
    [
        (500, 400, 400, ()),
        (400, 402, 402, ()),
        (400, 403, 403, (PGD_WEAKER,)),
        (500, 400, 398, ()),
        (500, 400, 397, (BLACK_BOX,)),
        (397, 403, 380, (PGD_WEAKER, BLACK_BOX)),
    ],
)
def test_the_measured_curves_raise_flags_themselves_beyond_a_threshold(
    fgsm: int, pgd: int, blind: int, want: tuple[str, ...]
) -> None:
    for name in (*BLIND, "transfer-pgd"):
        points = [point(a, 0.3, n, total=1000) for a, n in (("fgsm", fgsm), ("pgd", pgd), (name, blind))]
        assert {p.flags for p in flagged(points)} == {want}, name
        far = [*points, point("autoattack", 0.1, 300, total=1000), point("fgsm", 0.0, 900, total=1000)]
        assert [p.flags for p in flagged(far)][3:] == [want, ()], "a flag is about the net, at every radius"
        twins = [p.model_copy(update={"attack": f"{p.attack} frozen"}) for p in points]
        assert {p.flags for p in flagged(twins)} == {(*want, RANDOM)}, name


def test_what_a_black_box_breaks_is_counted_image_by_image() -> None:
    generator = np.random.default_rng(3)
    answers = {name: [bool(v) for v in generator.random(600) < 0.9] for name in ("fgsm", "pgd", "square")}
    only = sum(f and p and not s for f, p, s in zip(*answers.values(), strict=True))
    assert sum(answers["square"]) > sum(answers["pgd"]) - 20, "the counts alone would hide it"
    for few, want in ((0, (BLACK_BOX,)), (only, ())):
        square = list(answers["square"])
        alone = [k for k in range(600) if answers["fgsm"][k] and answers["pgd"][k] and not square[k]]
        for k in alone[:few]:
            square[k] = True
        points = [point("fgsm", 0.1, answers["fgsm"]), point("pgd", 0.1, answers["pgd"]), point("square", 0.1, square)]
        assert {p.flags for p in flagged(points) if p.attack == "square"} == {want}


def test_only_attacks_on_the_same_images_in_the_same_norm_mode_and_at_the_same_radius_are_compared() -> None:
    mode = {"settings": {"mode": "x", "seed": 1}}
    for other in ({"subset": "t"}, {"norm": "l2"}, {"weights": "v"}, mode, {"eps": 0.2}):
        points = [point("fgsm", right=2), point("pgd", **({"right": 9} | other))]
        assert not any(PGD_WEAKER in p.flags for p in flagged(points)), other
    assert PGD_WEAKER in flagged([point("fgsm", right=2), point("pgd", right=9)])[0].flags
    mistake = [point("fgsm", right=2, settings={"mistake": "m"}), point("pgd", right=9)]
    assert not any(p.flags for p in flagged(mistake)), "FGSM that leaves the ball is none to compare with"
    random = [point("fgsm", right=2, settings={"verdicts": 3}), point("pgd", right=9, settings={"verdicts": 3})]
    assert {p.flags for p in flagged(random)} == {(RANDOM,)}, "draws of their own"
    assert not any(p.flags for p in flagged([point("fgsm", right=9), point("square", right=2)])), "FGSM is one step"


def test_a_weak_pgd_beside_a_strong_one_is_flagged_alone() -> None:
    weak, strong = (point("pgd", 0.1, n, settings={"steps": n}) for n in (9, 3))
    points = [point("fgsm", 0.1, 5), strong, weak, weak.model_copy(update={"eps": 0.2, "correct": 0, "answers": "0"})]
    assert [p.flags for p in flagged(points)] == [(), (), (PGD_WEAKER,), (PGD_WEAKER,)]


def test_what_only_square_broke_within_autoattack_is_a_black_box_stronger() -> None:
    parts = (("apgd-ce", 500), ("apgd-t", 480), ("fab-t", 480))
    for left, want in ((478, ()), (477, (BLACK_BOX,))):
        told = point("autoattack", 0.1, left, total=1000, parts=(*parts, ("square", left)))
        assert flagged([told])[0].flags == want
    raised, weak = compared([point("autoattack", 0.1, 500, total=1000, parts=parts[:1])])
    assert [list(r.flags) for r in raised] == [[]]
    assert weak == set()


def test_the_attacks_called_blind_are_those_that_look_at_no_gradient() -> None:
    assert set(BLIND) == {name for name, attack in ATTACKS.items() if not attack.looks}


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
    checks = [Raised(NET, "linf", ["softmax outputs", "zero gradients"])]
    points = flagged([*curve("fgsm", 900, 500), *curve("pgd", 900, 400, 100)], checks)
    lines = table(points).splitlines()
    assert lines[0].split() == ["linf,", "eps", "0", "0.1", "0.2"]
    assert lines[1].split() == ["fgsm", "90.00", "50.00*"]
    assert lines[3].split() == ["pgd", "90.00", "40.00*", "10.00*"]
    for row, counts in ((2, (900, 500)), (4, (900, 400, 100))):
        want = ["[{:.1f}, {:.1f}]".format(*wilson(count, 1000)) for count in counts]
        assert lines[row].split() == " ".join(want).split()
    assert "of 1000 test images and its 95 % Wilson interval" in lines[5]
    assert "never a guarantee" in lines[5]
    assert lines[6:] == ["* empirical upper bound, flags: zero gradients, softmax outputs"]
    assert len({len(line) for line in lines[:5]}) <= 2, "columns are aligned"
    assert "*" not in table(curve("fgsm", 900, 500))


def test_the_worst_case_is_bold_in_a_terminal_and_marked_elsewhere() -> None:
    points = with_worst([*curve("fgsm", 900, 500), *curve("pgd", 900, 400)])
    plain, bold = (table(points, terminal=terminal).splitlines() for terminal in (False, True))
    assert plain[5].split() == ["**worst", "case**", "90.00", "40.00"]
    assert "\x1b" not in "".join(plain)
    for row, begin, end in ((5, "worst case ", "40.00"), (6, "   ", "]")):
        assert bold[row].startswith(f"\x1b[1m{begin}"), "with its interval"
        assert bold[row].endswith(f"{end}\x1b[0m")
    assert ["\x1b" in line for line in bold].count(True) == 2
    assert "worst case over all attacks that these images have met: fgsm, pgd" in plain
    random = [point(name, settings={"verdicts": 3}) for name in ("fgsm", "pgd")]
    assert table(random).splitlines()[-1] == NO_WORST
    assert NO_WORST not in table(points)


def test_what_the_parts_of_autoattack_left_is_below_the_table() -> None:
    told = point("autoattack", 8 / 255, 3, parts=(("apgd-ce", 5), ("square", 3)))
    assert "autoattack at 8/255, images left right after each part: apgd-ce 5, square 3" in table([told]).splitlines()
    assert "after each part" not in table([point("autoattack")])


def test_deepfool_has_a_table_of_its_own_by_iterations() -> None:
    names = ("deepfool", "deepfool frozen", "transfer-deepfool")
    capped = [point(name, float(cap), 9 - cap, norm="l2") for name in names for cap in (1, 2)]
    lines = table([point("fgsm", 8 / 255, 5), *capped]).splitlines()
    assert lines[0].split() == ["linf,", "eps", "8/255"]
    assert lines[1].split() == ["fgsm", f"{500 / 13:.2f}"]
    assert lines[3].split() == ["iterations", "1", "2"]
    assert [line.split()[-2:] for line in lines[4:10:2]] == [[f"{800 / 13:.2f}", f"{700 / 13:.2f}"]] * 3
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


def test_the_points_of_a_run_have_the_flags_of_its_checks_and_worst_cases_made_anew(tmp_path: Path) -> None:
    """As of a folder in which some were measured without checks, and the worst case by a version that mixed modes."""
    folder = tmp_path / "attacks"
    save_points(folder / "fgsm.json", [point("fgsm", 0.1, 9), point("fgsm", 0.1, 19, total=30, subset="all")])
    save_points(folder / "pgd.json", [point("pgd", 0.1, 5)])
    save_points(folder / "deepfool.json", [point("deepfool", 1.0, 5, norm="l2")])
    for name in ("worst-case", "worst-case-l2", "worst-case-old"):
        save_points(folder / f"{name}.json", [point(WORST, 0.1, 1, settings={"attacks": ["fgsm", "pgd"]})])
    (folder / "checks.json").write_text(json.dumps([CHECK]))
    points = load_run_points(tmp_path)
    assert [(p.attack, p.total) for p in points] == [
        *(("deepfool", TOTAL), ("fgsm", TOTAL), ("fgsm", 30), ("pgd", TOTAL), (WORST, TOTAL)),
    ]
    assert {p.flags for p in points} == {(SATURATED,)}, (
        "from the numbers, whatever flags they meant when they were kept"
    )
    assert points[-1].correct == 5
    (folder / "checks.json").unlink()
    assert {p.flags for p in load_run_points(tmp_path)} == {()}
    (folder / "checks.json").write_text(json.dumps([CHECK | {"key": [*CHECK["key"][:2], "v", *CHECK["key"][3:]]}]))
    assert {p.flags for p in load_run_points(tmp_path)} == {()}, "of other weights"


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
    with pytest.raises(
        UserError, match=r"checks\.json cannot be read as masking checks \(.+\); delete it to check again"
    ):
        load_run_points(tmp_path)


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
    assert same.model_copy(update={"parts": (("square", 1),)}).key == same.key
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
    checks = [Raised(NET, "linf", ["zero gradients"])]
    points = flagged([*curve("fgsm", 900, 100), *curve("pgd", 900, 950)], checks)
    shown = " ".join(draw(points, tmp_path / "c.svg"))
    assert f"empirical upper bound, flags: {PGD_WEAKER}, zero gradients, {NOT_MONOTONE}" in shown
    assert "fgsm *" in shown
    assert "pgd *" in shown


def test_an_attack_that_was_made_in_several_ways_has_several_curves_that_say_which(tmp_path: Path) -> None:
    ways = [
        {"seed": 1, "steps": 50, "early_stop": True},
        {"seed": 1, "steps": 3},
        {"seed": 1, "steps": 50, "mode": "m, n"},
    ]
    points = [p for n, way in enumerate(ways) for p in curve("pgd", 900, 100 * n, settings=way)]
    shown = draw([*points, *curve("fgsm", 900, 500)], tmp_path / "c.svg")
    assert {"pgd (early stop True, steps 50)", "pgd (steps 3)", "pgd (m, steps 50)", "fgsm"} <= set(shown)
    met = [point(WORST, eps, 5, settings={"attacks": ["a"] * n}) for n, eps in ((1, 0.1), (2, 0.2))]
    assert draw(met, tmp_path / "w.svg").count(WORST) == 1, "one line, whatever was met at each radius"


def test_a_random_net_says_in_the_picture_that_it_has_no_worst_case(tmp_path: Path) -> None:
    random = [p for name in ("fgsm", "pgd") for p in curve(name, 900, 500, settings={"verdicts": 3})]
    assert NO_WORST in " ".join(draw(random, tmp_path / "c.svg"))


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


@pytest.mark.parametrize("names", [3, 9, 24])
@pytest.mark.parametrize(
    "way", ["", " (BatchOut at inference, draws 20, verdicts 10, source another-run-of-long-name)"]
)
def test_every_name_of_a_curve_lies_in_the_picture(
    names: int, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [p for n in range(names) for kind in ("fgsm", "deepfool") for p in curve(f"{kind}-{n}{way}", 900, 500)]
    figures = []
    monkeypatch.setattr(robustness_figures, "_write", lambda figure, path: figures.append(figure))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        robustness_figures.curves_svg(points, tmp_path / "a.svg", title="a net", chance=10)
        (figure,) = figures
        figure.draw_without_rendering()
    assert len(figure.axes) == 2
    for axes in figure.axes:
        legend = axes.get_legend()
        assert len(legend.texts) == names
        place = legend.get_window_extent()
        assert place.x0 >= 0, "within the picture"
        assert place.x1 <= figure.bbox.x1
        assert place.y0 >= 0
        assert place.y1 <= axes.get_window_extent().y0, "below the panel"
        assert axes.get_window_extent().height > 200
    left, right = (axes.get_legend().get_window_extent() for axes in figure.axes)
    assert left.x1 <= right.x0, "beside each other"


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
