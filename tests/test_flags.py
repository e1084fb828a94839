"""Flags of robustness curves: which net, norm and radius they belong to, and what raises them."""

import re

import numpy as np
import pytest

from builders import curve, point
from perturblab.records.attack_names import ACTIVE, ATTACK_KINDS
from perturblab.records.flags import (
    BLACK_BOX,
    NOT_MONOTONE,
    PGD_WEAKER,
    RANDOM,
    SATURATED,
    UPPER_BOUND,
    Raised,
    compare_attacks,
    flag_note,
    flag_points,
    rising_curves,
)
from perturblab.records.points import Point
from told import in_order


def names(curves: set[tuple[str, ...]]) -> set[str]:
    return {attack for attack, *_ in curves}


def test_an_accuracy_that_rises_with_the_radius_is_named() -> None:
    points = [*curve("falls", 900, 500, 100), *curve("rises", 900, 100, 106), *curve("within", 900, 100, 105)]
    assert names(rising_curves(points)) == {"rises"}
    assert names(rising_curves(curve("late", 900, 100, 104, 106))) == {"late"}, (
        "against the lowest before, not the last"
    )
    assert rising_curves(curve("once", 900)) == set()
    assert rising_curves([*reversed(curve("any order", 900, 500, 100))]) == set()
    assert rising_curves([]) == set()


def test_curves_of_other_images_or_another_effort_are_not_taken_for_one() -> None:
    """A weak PGD at a large radius after a strong one at a small radius is not a rise."""
    others = ({"subset": "t"}, {"settings": {"steps": 9}}, {"weights": "v"}, {"norm": "l2"})
    for other in others:
        assert rising_curves([point("pgd", 0.1, 3), point("pgd", 0.2, 9, **other)]) == set(), other
    assert names(rising_curves([point("pgd", 0.1, 3), point("pgd", 0.2, 9)])) == {"pgd"}


NET = ("w", "")


def flags_of(points: list[Point]) -> dict[tuple[str, float], tuple[str, ...]]:
    return {(p.attack, p.eps): p.flags for p in points}


def test_flags_go_to_every_point_of_the_net_and_not_monotone_to_its_own_curve_only() -> None:
    points = [*curve("falls", 900, 100), *curve("rises", 500, 600), *curve("uniform", 900, 800)]
    assert flags_of(flag_points(points, [Raised(NET, "linf", ["softmax outputs"])])) == {
        ("falls", 0.0): (),
        ("falls", 0.1): ("softmax outputs",),
        ("rises", 0.0): (),
        ("rises", 0.1): ("softmax outputs", NOT_MONOTONE),
        ("uniform", 0.0): (),
        ("uniform", 0.1): ("softmax outputs",),
    }
    assert all(not p.flags for p in flag_points(curve("falls", 900, 100))), "without flags, none"


def test_flags_of_several_checks_add_up_and_none_is_washed_off_by_a_check_that_finds_nothing() -> None:
    checks = [Raised(NET, "linf", [SATURATED]), Raised(NET, "linf", []), Raised(NET, "linf", [PGD_WEAKER, SATURATED])]
    for order in (checks, checks[::-1]):
        assert flag_points([point("fgsm")], order)[0].flags == (PGD_WEAKER, SATURATED)


def test_flags_stay_with_their_weights_mode_and_norm() -> None:
    mode = {"settings": {"mode": ACTIVE}}
    points = [
        *(point("fgsm"), point("fgsm", norm="l2"), point("fgsm", weights="v"), point("fgsm", **mode)),
        *(point("deepfool", 1.0, norm="l2"), point("fgsm", subset="t", total=20)),
    ]
    found = [p.flags for p in flag_points(points, [Raised(NET, "linf", [PGD_WEAKER, SATURATED])])]
    both = (PGD_WEAKER, SATURATED)
    assert found == [both, (SATURATED,), (), (), both, both], (
        "saturated logits are so in every norm; DeepFool has no radius"
    )
    assert flag_points([point("fgsm", **mode)], [Raised(("w", ACTIVE), "linf", [SATURATED])])[0].flags == (SATURATED,)


def test_a_random_net_says_so_without_any_check() -> None:
    points = [point("fgsm", settings={"verdicts": 3}), point("square"), point("fgsm", weights="v"), point("fgsm", 0.0)]
    assert [p.flags for p in flag_points(points)] == [(RANDOM,), (RANDOM,), (), ()]
    twin = [point("square frozen"), point("fgsm", 0.1, norm="l2")]
    assert [p.flags for p in flag_points(twin)] == [(RANDOM,), (RANDOM,)]


def test_flags_that_points_have_stay_until_their_net_is_checked() -> None:
    stale = [p.model_copy(update={"flags": ("old", SATURATED, NOT_MONOTONE)}) for p in curve("falls", 900, 100)]
    assert [p.flags for p in flag_points(stale)] == [(), (SATURATED, "old")], "the rise is looked for anew"
    assert [p.flags for p in flag_points(stale, [Raised(("v", ""), "linf", [])])][1] == (SATURATED, "old")
    assert [p.flags for p in flag_points(stale, [Raised(NET, "linf", [])])] == [(), ()]


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
    for name in (*(name for name, kind in ATTACK_KINDS.items() if kind.is_blind), "transfer-pgd"):
        points = [point(a, 0.3, n, total=1000) for a, n in (("fgsm", fgsm), ("pgd", pgd), (name, blind))]
        assert {p.flags for p in flag_points(points)} == {want}, name
        far = [*points, point("autoattack", 0.1, 300, total=1000), point("fgsm", 0.0, 900, total=1000)]
        assert [p.flags for p in flag_points(far)][3:] == [want, ()], "a flag is about the net, at every radius"
        twins = [p.model_copy(update={"attack": f"{p.attack} frozen"}) for p in points]
        assert {p.flags for p in flag_points(twins)} == {(*want, RANDOM)}, name


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
        assert {p.flags for p in flag_points(points) if p.attack == "square"} == {want}


def test_only_attacks_on_the_same_images_in_the_same_norm_mode_and_at_the_same_radius_are_compared() -> None:
    mode = {"settings": {"mode": "x", "seed": 1}}
    for other in ({"subset": "t"}, {"norm": "l2"}, {"weights": "v"}, mode, {"eps": 0.2}):
        points = [point("fgsm", right=2), point("pgd", **({"right": 9} | other))]
        assert not any(PGD_WEAKER in p.flags for p in flag_points(points)), other
    assert PGD_WEAKER in flag_points([point("fgsm", right=2), point("pgd", right=9)])[0].flags
    mistake = [point("fgsm", right=2, settings={"mistake": "m"}), point("pgd", right=9)]
    assert not any(p.flags for p in flag_points(mistake)), "FGSM that leaves the ball is none to compare with"
    random = [point("fgsm", right=2, settings={"verdicts": 3}), point("pgd", right=9, settings={"verdicts": 3})]
    assert {p.flags for p in flag_points(random)} == {(RANDOM,)}, "draws of their own"
    assert not any(p.flags for p in flag_points([point("fgsm", right=9), point("square", right=2)])), "FGSM is one step"


def test_a_weak_pgd_beside_a_strong_one_is_flagged_alone() -> None:
    weak, strong = (point("pgd", 0.1, n, settings={"steps": n}) for n in (9, 3))
    points = [point("fgsm", 0.1, 5), strong, weak, weak.model_copy(update={"eps": 0.2, "correct": 0, "answers": "0"})]
    assert [p.flags for p in flag_points(points)] == [(), (), (PGD_WEAKER,), (PGD_WEAKER,)]


def test_what_only_square_broke_within_autoattack_is_a_black_box_stronger() -> None:
    parts = (("apgd-ce", 500), ("apgd-t", 480), ("fab-t", 480))
    for left, want in ((478, ()), (477, (BLACK_BOX,))):
        told = point("autoattack", 0.1, left, total=1000, parts=(*parts, ("square", left)))
        assert flag_points([told])[0].flags == want
    raised, weak = compare_attacks([point("autoattack", 0.1, 500, total=1000, parts=parts[:1])])
    assert [list(r.flags) for r in raised] == [[]]
    assert weak == set()


def test_what_is_said_of_flags() -> None:
    assert flag_note(()) == ""
    assert re.fullmatch(in_order(f"{UPPER_BOUND} flags: a, b"), flag_note(("a", "b")))
    assert "upper bound" in UPPER_BOUND
