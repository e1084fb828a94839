"""The two questions, answered in a paragraph each from the claims that were measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from perturblab import stats
from perturblab.points import said
from perturblab.presets import PRESETS
from perturblab.report.findings import ClaimFinding, Compared

# What is said of each claim, the deciding one first.
_NOISE = {
    "R-noise": "Against the same net of 1x1 convolutions without noise",
    "R-noise-A1": "Under the authors' own recipe, against its twin at noise level 0",
    "R-noise-K3": "In the authors' net under the reproduction's recipe, against its twin at noise level 0",
    "R-gap": "The 3x3 net against the authors' noise net",
    "R-cnn-recipe": "The 3x3 net under the authors' recipe against itself under the reproduction's",
}
_BATCHOUT = {
    "R-batchout-plain-mnist": "On MNIST under FGSM at 0.3, against the same net without it",
    "R-batchout-pgd-mnist": "Under PGD at 0.1",
    "R-batchout-autoattack-mnist": "Under AutoAttack at 0.1",
    "R-batchout-plain": "On CIFAR-10 under FGSM at 5/255",
    "R-batchout-pgd-cifar": "Under PGD at 5/255",
    "R-batchout-autoattack-cifar": "Under AutoAttack at 5/255",
    "R-batchout-clean": "On clean images of CIFAR-10",
}
_WORDS = {
    "better": "Yes",
    "worse": "No, it hurts",
    "not distinguishable": "Not so that these seeds could tell",
    "too few seeds": "Too few seeds to say",
}


@dataclass(frozen=True)
class Answer:
    """A question with its answer.

    Args:
        question: as a reader would ask it.
        word: the answer in a word, from the deciding claim.
        sentences: what it rests on.
    """

    question: str
    word: str
    sentences: tuple[str, ...]


def answers(claims: Sequence[ClaimFinding]) -> tuple[Answer, Answer]:
    """Answer whether noise helps a perturbative network, and whether BatchOut makes a net robust.

    Args:
        claims: from `perturblab.report.findings.claims`.

    Returns:
        The two answers, from the largest preset at which each claim was measured.
    """
    found = {finding.relation.id: finding.measured[0] for finding in claims if finding.measured}
    return (
        _answer("Does noise help a perturbative network?", _NOISE, found),
        _answer("Does BatchOut make a net robust?", _BATCHOUT, found),
    )


def _answer(question: str, leads: dict[str, str], found: dict[str, Compared]) -> Answer:
    measured = [(lead, found[name]) for name, lead in leads.items() if name in found]
    if not measured:
        return Answer(question, "Not yet measured", ())
    sizes = [f"{name}: {PRESETS[name].about}" for name in _presets(measured) if name in PRESETS]
    sentences = (*(_sentence(*pair) for pair in measured), f"Measured at {'; '.join(sizes)}.")
    return Answer(question, _word(measured[0][1].paired), sentences)


def _presets(measured: Sequence[tuple[str, Compared]]) -> list[str]:
    return list(dict.fromkeys(compared.preset for _, compared in measured))


def _word(paired: stats.Paired) -> str:
    if paired.verdict != "not distinguishable" or paired.detectable is None:
        return _WORDS[paired.verdict]
    return f"{_WORDS[paired.verdict]}; {paired.detectable:.1f} points would have shown"


def _sentence(lead: str, compared: Compared) -> str:
    flags = f"; {said(compared.flags)}" if compared.flags else ""
    sides = f"{compared.left:.2f} % against {compared.right:.2f} %"
    return f"{lead}: {sides}, {stats.sentence(compared.paired)}{flags}."
