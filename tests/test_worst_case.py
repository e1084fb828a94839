"""The worst case of every image over several attacks: against a plain loop."""

import numpy as np

from builders import TOTAL, as_hex, point
from perturblab.records.attack_names import ACTIVE, WORST
from perturblab.records.flags import BLACK_BOX
from perturblab.records.worst_case import lacks_worst, with_worst, worst_cases
from perturblab.stats import wilson

EPS = (0.0, 0.1, 0.2)


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
