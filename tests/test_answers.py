"""Answers to the two questions, from the claims that decide them."""

import re
from dataclasses import replace
from typing import Any

from builders import epochs, finding_of, point, run, runs
from perturblab.records.flags import flag_note
from perturblab.records.results import Result
from perturblab.report import answers, claims_table
from perturblab.report.by_setup import by_place
from perturblab.report.claims import claim_findings
from perturblab.report.figures import figure_findings
from perturblab.studies.catalogue import CLAIMS
from told import in_order


def test_the_answers_come_from_the_deciding_claims() -> None:
    noise, batchout = answers.answer_questions(claim_findings({}))
    assert (noise.word, batchout.word, noise.sentences) == ("Not yet measured", "Not yet measured", ())
    k1 = runs("K1", [6000, 6100, 6200])
    of = [*runs("H5", [5300, 5410, 5505]), *runs("K4", [5000, 5100, 5200])]
    noise, _ = answers.answer_questions(claim_findings(by_place([*of, *k1])))
    yes = "yes 3.0 54.1 % 51.0 %"
    assert re.search(in_order(f"reproduction's SGD {yes}"), noise.word)
    assert "Adam" not in noise.word
    assert re.search(in_order("54.05 % 51.00 % better +3.05"), noise.sentences[0])
    assert noise.sentences[-1].startswith("Measured at cpu: ")
    noise, _ = answers.answer_questions(claim_findings(by_place(of[:2] + of[3:5] + k1)))
    assert "too few seeds" in noise.word
    mixed = [*runs("H5", [5000, 5300, 5100]), *runs("K4", [5050, 5100, 5200])]
    noise, _ = answers.answer_questions(claim_findings(by_place([*mixed, *k1])))
    assert re.search(in_order("not points 80 % power"), noise.word)
    both = [*of, *runs("A1", [5300, 5410, 5505]), *runs("A1-level-0", [5000, 5100, 5200])]
    every = [*both, *runs("A1-order", [5300, 5410, 5505]), *runs("A1-1x1", [5000, 5100, 5200])]
    noise, _ = answers.answer_questions(claim_findings(by_place([*every, *k1])))
    assert re.match(in_order(yes.capitalize()), noise.word), "one word for all settings"
    assert ";" not in noise.word
    noise, _ = answers.answer_questions(claim_findings(by_place([*every[6:], *k1])))
    settings = ("reproduction's Adam 0.1", "authors' Adam 0.1", "authors' 1x1 without noise Adam")
    for word, setting in zip(noise.word.split("; "), settings, strict=True):
        assert re.search(in_order(f"{setting} {yes}"), word)
    other = [*mixed, *both[6:]]
    noise, _ = answers.answer_questions(claim_findings(by_place([*other, *k1])))
    assert re.search(in_order(f"SGD not ; Adam 0.1 {yes}"), noise.word)


def test_a_larger_preset_with_too_few_seeds_does_not_take_the_answer_away() -> None:
    of = [*runs("K1", [6000, 6100, 6200]), *runs("H5", [5300, 5410, 5505]), *runs("K4", [5000, 5100, 5200])]
    begun = [run("H5", 1, 9000, preset="gpu"), run("K4", 1, 8000, preset="gpu"), run("K1", 1, 9500, preset="gpu")]
    noise, _ = answers.answer_questions(claim_findings(by_place([*of, *begun])))
    assert re.search(in_order("yes 3.0"), noise.word)
    noise, _ = answers.answer_questions(claim_findings(by_place(begun)))
    assert "too few seeds" in noise.word


def test_an_answer_has_the_verdict_of_its_row_after_the_correction() -> None:
    constant = [5301, 5380, 5550]
    a1 = [5200, 5300, 5400]
    of = [*runs("K1", [6000] * 3), *runs("A1", a1), *runs("A1-constant", constant)]
    of += runs("A1-untied", [5201, 5320, 5350])
    (compared,) = finding_of(claim_findings(by_place(of)), "R-A1-constant").measured
    assert compared.paired.verdict == "worse", "by itself"
    assert claims_table.claim_words(CLAIMS["R-A1-constant"], compared).startswith("not distinguishable; ")
    noise, _ = answers.answer_questions(claim_findings(by_place(of)))
    assert re.search(in_order("not distinguishable -1.10"), noise.sentences[0])


def test_what_has_not_the_same_numerics_or_images_is_said_where_it_is_taken_together() -> None:
    def changed(one: Result, **data: Any) -> Result:
        number = data.pop("numerics", 0)
        images = one.record.data.model_copy(update=data)
        return replace(one, record=one.record.model_copy(update={"numerics": number, "data": images}))

    rows_of = epochs([50.0], batch_mean_truncated=49.0)
    both = [*runs("H5", [5300, 5410, 5505], metrics=rows_of), *runs("K4", [5000, 5100, 5200], metrics=rows_of)]
    for update, tokens in (
        ({"hashes": {"train": "b", "test": "b"}}, "2 versions images"),
        ({"numerics": 1}, "numerics 0 1"),
        ({}, ""),
    ):
        of = by_place([changed(one, **(update if one.record.seed == 3 else {})) for one in both])
        (compared,) = finding_of(claim_findings(of), "R-noise").measured
        assert bool(compared.note) == bool(tokens)
        assert re.search(in_order(tokens), compared.note)
        figure = next(found for found in figure_findings(of) if found.published.setup == "K4" and found.measured)
        assert figure.measured[0].note == compared.note
        details = claims_table.figure_row(figure, figure.measured[0]).details
        assert any(re.search(in_order(tokens), line) for line in details)


def test_a_published_figure_of_all_images_is_not_compared_with_one_of_some() -> None:
    right, mode = [[1] * 60 + [0] * 40 for _ in range(3)], {"mode": "BatchOut active in evaluation"}
    for total, comparable in ((100, False), (10_000, True)):
        of = [
            run("BO-mnist-batchout", s, preset="robust", points=[point("fgsm-unclipped", 0.1, some, settings=mode)])
            for s, few in enumerate(right, 1)
            for some in [few * (total // 100)]
        ]
        figures = {found.published.id: found for found in figure_findings(by_place(of))}
        (measured,) = figures["R2-all-unclipped-0.1"].measured
        assert bool(re.search(in_order("100 test images"), measured.unlike)) is not comparable
        assert measured.verdict is not None
        assert (measured.verdict != "not comparable at this preset") is comparable


def test_an_answer_says_what_was_corrected_for() -> None:
    of = [*runs("K1", [6000, 6100, 6200]), *runs("A1", [5300, 5410, 5505])]
    of += [*runs("A1-constant", [5000, 5100, 5200]), *runs("A1-untied", [5200, 5310, 5400])]
    noise, _ = answers.answer_questions(claim_findings(by_place(of)))
    for sentence in noise.sentences[:2]:
        assert re.search(r"Holm p = \S+ .*" + in_order("2 A1"), sentence)


def attacked(data: str, attack: str, eps: float, more: int, flags: tuple[str, ...] = ()) -> list[Result]:
    """Three seeds each with and without BatchOut: so many more of 100 images right with it."""
    more_said = {"settings": {"seed": 1, "steps": 50}} if attack == "pgd" else {}
    return [
        run(f"BO-{data}-{arm}", s, preset="robust", points=[point(attack, eps, right, flags=of, **more_said)])
        for arm, gain, of in (("batchout", more, flags), ("none", 0, ()))
        for s in (1, 2, 3)
        for right in [[int(i < 20 + 3 * s + gain + (s == 2 and gain > 0)) for i in range(100)]]
    ]


def test_robustness_is_decided_by_the_strongest_attack_and_never_by_fgsm() -> None:
    def word(*of: list[Result]) -> str:
        merged: dict[tuple[str, int], Result] = {}
        for one in (one for some in of for one in some):
            assert one.record.study
            key = one.record.study.setup, one.record.seed
            merged[key] = replace(one, points=(*(merged[key].points if key in merged else ()), *one.points))
        _, batchout = answers.answer_questions(claim_findings(by_place(merged.values())))
        return batchout.word

    def told(*of: list[Result]) -> list[str]:
        return re.findall(r"MNIST|CIFAR-10|more|less|not shown|\d[\d.,]*", word(*of))

    fgsm = attacked("mnist", "fgsm", 0.3, 40)
    assert word(fgsm).startswith("Not yet measured")
    pgd, strong = attacked("mnist", "pgd", 0.1, 20), attacked("mnist", "autoattack", 0.1, -20)
    less = ["MNIST", "less", "20.0", "6.0", "26.0", "100", "10,000"]
    assert told(fgsm, pgd) == ["MNIST", "more", "20.3", "46.3", "26.0", "100", "10,000"]
    assert told(fgsm, pgd, strong) == less
    flagged = attacked("cifar", "pgd", 5 / 255, 20, ("saturated logits",))
    assert told(strong, flagged) == [*less, "CIFAR-10", "not shown"]
    assert "flagged" in word(strong, flagged)


def test_a_flag_bounds_the_side_that_carries_it() -> None:
    """A control that is an upper bound makes a difference larger, not smaller; AutoAttack answers saturated logits."""
    for attack, arm, flag, is_shown in (
        ("pgd", "batchout", "saturated logits", False),
        ("pgd", "none", "saturated logits", True),
        ("autoattack", "batchout", "saturated logits", True),
        ("autoattack", "batchout", "black box stronger", True),
        ("autoattack", "batchout", "zero gradients", False),
    ):
        of = [
            replace(one, points=tuple(p.model_copy(update={"flags": (flag,)}) for p in one.points))
            if one.record.study and one.record.study.setup.endswith(arm)
            else one
            for one in attacked("cifar", attack, 5 / 255, 20)
        ]
        found = claim_findings(by_place(of))
        _, batchout = answers.answer_questions(found)
        assert ("more robust" in batchout.word) == is_shown, (attack, arm, flag)
        (compared,) = finding_of(found, f"R-batchout-{attack}-cifar").measured
        assert compared.flagged == f"BO-cifar-{arm}: {flag_note((flag,))}"
        assert compared.flagged in batchout.sentences[0]
        assert ("not shown" in batchout.sentences[0]) is not is_shown
        words = claims_table.claim_words(CLAIMS[f"R-batchout-{attack}-cifar"], compared)
        assert words.startswith("agrees; " if is_shown else "not shown ")
        row = claims_table.claim_row(finding_of(found, f"R-batchout-{attack}-cifar"), compared)
        assert "100 of 10,000" in row.details[0]


def test_flags_are_said_with_the_number() -> None:
    of = [
        run(f"BO-mnist-{arm}", s, preset="robust", points=[point("fgsm", 0.3, right, flags=flags)])
        for arm, flags in (("batchout", ("not monotone",)), ("none", ()))
        for s, right in enumerate([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
    ]
    _, batchout = answers.answer_questions(claim_findings(by_place(of)))
    assert flag_note(("not monotone",)) in batchout.sentences[0]
