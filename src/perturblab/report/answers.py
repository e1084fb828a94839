"""The two questions, each answered in a paragraph from the measured claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perturblab import stats
from perturblab.report.claims import ClaimFinding, Compared
from perturblab.studies.presets import PRESETS

# The beginning of the sentence about each claim.
_NOISE = {
    "R-noise": "Against the same net of 1x1 convolutions without noise",
    "R-A1-1x1": "In the reproduction's net with Adam and level 0.1, against 1x1 convolutions without noise",
    "R-noise-A1": "With the authors' net, Adam and level 0.1, against its twin at noise level 0",
    "R-A1-over-1x1": "The same net against the reproduction's 1x1 convolutions without noise, with Adam too",
    "R-A1-constant": "The same net against one whose masks are one random threshold a channel, which know no place",
    "R-A1-untied": "Against one with its masks outside the ReLU, a fixed bias of every place",
    "R-A1-redraw-train": "Against one whose masks are drawn anew at every training step",
    "R-noise-K3": "In the authors' net with SGD, as in the reproduction, against its twin at noise level 0",
    "R-gap-H5": "The 3x3 net against the reproduction's noise net",
    "R-gap": "The 3x3 net against the authors' noise net",
    "R-cnn-recipe": "The 3x3 net with Adam, as the authors, against itself with SGD, as the reproduction",
    "R-1x1-recipe": "1x1 convolutions without noise with Adam, against themselves with SGD",
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
# The settings in which a question is decided, with the deciding claims: the first measured one counts. FGSM never
# decides.
_Deciding = Mapping[str, tuple[str, ...]]
_NOISE_DECIDED: _Deciding = {
    "with the reproduction's net and SGD": ("R-noise",),
    "with the reproduction's net, Adam and level 0.1": ("R-A1-1x1",),
    "with the authors' net, Adam and level 0.1": ("R-noise-A1",),
    "with the authors' net in place of 1x1 convolutions without noise, both with Adam": ("R-A1-over-1x1",),
}
_BATCHOUT_DECIDED: _Deciding = {
    "on MNIST": ("R-batchout-autoattack-mnist", "R-batchout-pgd-mnist"),
    "on CIFAR-10": ("R-batchout-autoattack-cifar", "R-batchout-pgd-cifar"),
}
_NOISE_WORDS = {
    "better": "yes, by {} points",
    "worse": "no, it costs {} points",
    "not distinguishable": "not so that these seeds could tell",
    "too few seeds": "too few seeds to say",
}
_BATCHOUT_WORDS = _NOISE_WORDS | {
    "better": "more robust than without it, by {} points",
    "worse": "less robust than without it, by {} points",
}


@dataclass(frozen=True)
class Answer:
    """A question with its answer.

    Args:
        question: as a reader would ask it.
        word: the answer in a word, from the deciding claims.
        sentences: its evidence, one claim each.
    """

    question: str
    word: str
    sentences: tuple[str, ...]


def answer_questions(claims: Sequence[ClaimFinding]) -> tuple[Answer, Answer]:
    """Answer whether noise helps a perturbative network, and whether BatchOut makes a net robust.

    Args:
        claims: from `perturblab.report.claims.claim_findings`.

    Returns:
        The two answers, from the largest preset at which each claim was measured with evidence.
    """
    known = {finding.claim.id: _best_known(finding) for finding in claims if finding.measured}
    return (
        _answer("Does noise help a perturbative network?", _NOISE, _NOISE_DECIDED, _NOISE_WORDS, known),
        _answer("Does BatchOut make a net robust?", _BATCHOUT, _BATCHOUT_DECIDED, _BATCHOUT_WORDS, known),
    )


def _best_known(finding: ClaimFinding) -> Compared:
    """Choose the largest preset with valid evidence and at least `MIN_SEEDS` seeds, if any."""
    return min(finding.measured, key=lambda compared: (bool(compared.weak), compared.paired.n < stats.MIN_SEEDS))


def _answer(
    question: str,
    leads: Mapping[str, str],
    decided: _Deciding,
    words: Mapping[str, str],
    known: Mapping[str, Compared],
) -> Answer:
    measured = [(lead, known[name]) for name, lead in leads.items() if name in known]
    if not measured:
        return Answer(question, "Not yet measured", ())
    sizes = [f"{name}: {PRESETS[name].about}" for name in _presets(measured) if name in PRESETS]
    images = dict.fromkeys(name for _, compared in measured for name in compared.data)
    on = f"; images of {', '.join(images)}" if images else ""
    sentences = (*(_sentence(*pair) for pair in measured), f"Measured at {'; '.join(sizes)}{on}.")
    return Answer(question, _verdict(decided, words, known), sentences)


def _presets(measured: Sequence[tuple[str, Compared]]) -> list[str]:
    return list(dict.fromkeys(compared.preset for _, compared in measured))


def _verdict(decided: _Deciding, words: Mapping[str, str], known: Mapping[str, Compared]) -> str:
    """Give one word if all deciding claims agree, else a word for each setting."""
    deciding = {place: next((known[name] for name in names if name in known), None) for place, names in decided.items()}
    verdicts = {place: _word(compared, words) for place, compared in deciding.items() if compared is not None}
    if not verdicts:
        return "Not yet measured by what decides it"
    same = len(set(verdicts.values())) == 1 and len(verdicts) == len(decided)
    text = next(iter(verdicts.values())) if same else "; ".join(f"{place} {word}" for place, word in verdicts.items())
    return text[0].upper() + text[1:]


def _word(compared: Compared, words: Mapping[str, str]) -> str:
    if compared.weak:
        return f"no evidence, since {compared.weak}"
    paired, part = compared.comparison, f" of {compared.part}" if compared.part else ""
    if not compared.is_shown(paired.verdict):
        return "not shown, since the gradients are flagged"
    word = words[paired.verdict].format(f"{abs(paired.difference):.1f}")
    if paired.verdict in ("better", "worse"):
        bound = f"; {compared.flagged}" if compared.flagged else ""
        return f"{word} ({compared.left:.1f} % against {compared.right:.1f} %{part}{bound})"
    if paired.verdict != "not distinguishable" or paired.detectable is None:
        return word
    return f"{word} ({paired.detectable:.1f} points would have been detected with 80 % power)"


def _sentence(lead: str, compared: Compared) -> str:
    if compared.weak:
        return f"{lead}: no evidence, since {compared.weak}."
    bound = "" if compared.is_shown(compared.comparison.verdict) else "not shown, since an upper bound is better"
    more = "".join(f"; {text}" for text in (bound, compared.flagged, compared.note) if text)
    sides = f"{compared.left:.2f} % against {compared.right:.2f} %{f' of {compared.part}' if compared.part else ''}"
    return f"{lead}: {sides}, {stats.sentence(compared.comparison)}{more}."
