"""Claims and published figures as lines of tables, for the page and as Markdown."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from perturblab import stats
from perturblab.errors import UserError
from perturblab.records.flags import flag_note
from perturblab.records.markdown import markdown_table
from perturblab.records.results import Result
from perturblab.report import groups_table
from perturblab.report.by_setup import by_place
from perturblab.report.charts import dots_svg
from perturblab.report.claims import ClaimFinding, Compared, claim_findings
from perturblab.report.figures import FigureFinding, Measured, figure_findings
from perturblab.report.volatility_table import fine
from perturblab.studies.catalogue import SETUPS, Claim, find

SECTIONS = {
    "pnn": "Perturbative neural networks, the reproduction, the authors' reply",
    "lbcnn": "Local binary convolution",
    "batchout": "BatchOut: the paper, its re-implementations, trials on ResNets",
}


@dataclass(frozen=True)
class FindingRow:
    """A row of a table of the page, for one finding: its cells and its id in the page."""

    id: str
    cells: tuple[str, ...]
    verdict: str = ""
    picture: str = ""
    details: tuple[str, ...] = ()
    measured: bool = False


def claims_markdown(runs: Sequence[Result], tag: str | None = None) -> str:
    """Write the measured claims and figures as Markdown tables.

    Args:
        runs: in any order; the same runs give the same bytes.
        tag: selects the claims and figures with this tag, such as "dispute".

    Returns:
        Two tables, or a sentence if nothing was measured; ends in a newline.

    Raises:
        UserError: no figure and no claim carries the tag.
    """
    if tag is not None:
        try:
            find(tag)
        except ValueError as error:
            raise UserError(f"--tag got {tag!r}: {error}") from error
    places = by_place(runs)
    claims = [f for f in claim_findings(places) if tag is None or tag in f.claim.tags]
    figures = [f for f in figure_findings(places) if tag is None or tag in f.published.tags]
    blocks = []
    for header, rows in (
        (("Claim", "Claimed", "Preset", "Measured", "Verdict"), [claim_row(f, c) for f in claims for c in f.measured]),
        (
            ("Figure", "Published", "Preset", "Measured", "Verdict"),
            [figure_row(f, m) for f in figures for m in f.measured],
        ),
    ):
        if rows:
            blocks.append(markdown_table(header, [(*row.cells, row.verdict) for row in rows], "l" * len(header)))
    nothing = (
        groups_table.NOTHING if tag is None or not runs else f"Nothing that carries the tag {tag} was measured yet."
    )
    return "\n\n".join(blocks or [nothing]) + "\n"


@dataclass(frozen=True)
class _Unit:
    """The unit of a difference: points, or nameless the unit of a loss, whose spreads need more decimals."""

    name: str

    def plain(self, value: float) -> str:
        return f"{value:.2f}{self.name}" if self.name else fine(value)

    def signed(self, value: float) -> str:
        return stats.signed(value) if self.name else fine(value, "+")


def _unit(claim: Claim) -> _Unit:
    return _Unit("" if claim.measure.metric == "volatility" else " points")


def claim_row(finding: ClaimFinding, compared: Compared) -> FindingRow:
    """Lay out a claim and its measurement at a preset."""
    claim, interval = finding.claim, compared.paired.interval
    claimed = None
    if claim.low is not None or claim.high is not None:
        claimed = (
            -math.inf if claim.low is None else claim.low,
            math.inf if claim.high is None else claim.high,
        )
    unit = _unit(claim)
    means = [unit.plain(value).removesuffix(unit.name) for value in (compared.left, compared.right)]
    by_seed = ", ".join(f"{seed}: {unit.signed(value)}" for seed, value in compared.differences.items())
    left, right = compared.sides
    measures = claim.measure, claim.right_measure or claim.measure
    if left == right:  # two metrics of the same runs
        left, right = (f"{side}, {measure.metric}," for side, measure in zip(compared.sides, measures, strict=True))
    on = f" On {', '.join(filter(None, (compared.part, *compared.data)))}." if compared.data else ""
    more = [f"{left} {means[0]}, {right} {means[1]}; by seed {by_seed}.{on}"]
    more += [f"At this preset they differ in {', '.join(compared.differing)}."] if compared.differing else []
    more += [*_sizes(compared), *_tests(compared.paired, unit), *([f"{compared.note}."] if compared.note else [])]
    return FindingRow(
        claim.id,
        (claim.text, claim.claimed, compared.preset, _difference(compared, unit)),
        verdict=claim_words(claim, compared),
        picture=dots_svg(list(compared.differences.values()), interval.ends, claimed),
        details=(*more, f"Claimed by: {claim.source}.", *claim.doubts, *([claim.how] if claim.how else [])),
        measured=True,
    )


def _sizes(compared: Compared) -> Iterable[str]:
    """Write the parameters and multiplications of both sides: a preset's width may have changed which are equal."""
    if len(set(compared.sides)) > 1 and compared.sizes:
        sides = zip(compared.sides, compared.sizes, strict=True)
        words = [f"{side} {size.trainable:,} and {size.macs / 1e6:.2f} million" for side, size in sides]
        yield f"Trainable parameters and multiplications an image: {', '.join(words)}."


def _tests(paired: stats.Paired, unit: _Unit) -> Iterable[str]:
    """Write the tests beside the interval, and the smallest difference that these seeds could have detected."""
    if paired.n < stats.MIN_SEEDS or paired.t_p is None or paired.detectable is None:
        return
    yield f"Against no difference: paired t p = {paired.t_p:.3g}; P(left > right) = {paired.superiority:.2f}."
    if paired.sign_flip_p is not None:
        least = f"the smallest that {paired.n} seeds can give is {paired.sign_flip_smallest:.3g}"
        yield f"Sign-flip p = {paired.sign_flip_p:.3g}; {least}."
    yield f"{unit.plain(paired.detectable)} would have been detected with 80 % power."


def _difference(compared: Compared, unit: _Unit) -> str:
    text = compared.paired.interval.text(unit.signed, unit.name)
    sides = f", {compared.left:.2f} against {compared.right:.2f}" if unit.name else ""
    return f"{text}{sides}, n = {compared.paired.n}"


def claim_words(claim: Claim, compared: Compared) -> str:
    """Write the verdict on a claim with its limits: no evidence, the detectable difference, flags.

    Args:
        claim: of the catalogue.
        compared: its measurement at a preset.
    """
    unit, is_number = _unit(claim), claim.low is not None and claim.low == claim.high
    if compared.weak:
        return f"no evidence: at this preset {compared.weak}"
    words: list[str] = [compared.verdict or compared.comparison.verdict]
    if not compared.is_shown(words[0], claim.low, claim.high):
        words = ["not shown by an upper bound"]
    # The wider an interval around a claimed number, the less it says.
    detectable = compared.paired.detectable
    if (words[0] == "not distinguishable" or (words[0] == "agrees" and is_number)) and detectable is not None:
        words.append(f"{unit.plain(detectable).removesuffix(unit.name)} would have been detected with 80 % power")
    words += [compared.flagged] if compared.flagged else []
    return "; ".join(words)


def open_claim(finding: ClaimFinding) -> FindingRow:
    """Lay out a claim without a measurement, and say why."""
    claim, state = finding.claim, "not yet measured"
    if finding.removed:
        removed = finding.removed
        presets = {reason: [p for p, other in removed.items() if other == reason] for reason in removed.values()}
        state = "; ".join(f"not comparable at preset {', '.join(p)}, which {reason}" for reason, p in presets.items())
    elif not claim.left:
        state = f"Settled otherwise: {claim.how}."
    return FindingRow(claim.id, (claim.text, claim.claimed, state), details=claim.doubts)


def sections(figures: Sequence[FigureFinding]) -> dict[str, list[FindingRow]]:
    """Lay out all figures by section, measured or not."""
    sections: dict[str, list[FindingRow]] = {title: [] for title in SECTIONS.values()}
    for finding in figures:
        title = next(title for tag, title in SECTIONS.items() if tag in finding.published.tags)
        sections[title] += [figure_row(finding, m) for m in finding.measured] or [figure_row(finding, None)]
    return sections


def figure_row(finding: FigureFinding, measured: Measured | None) -> FindingRow:
    """Lay out a figure, and its measurement at a preset if there is one."""
    published = finding.published
    setup, figure = SETUPS.get(published.setup), published.figure
    number = f"{figure.wording or '-'} ({figure.kind})"
    about = f"{published.id}: {published.about}"
    doubts = (f"Published in: {published.source}.", *published.doubts, *(setup.doubts if setup else ()))
    missing = setup.missing if setup else "no run stands behind it"
    if measured is None:
        verdict = f"cannot be run here: {missing}" if missing else "not yet measured"
        return FindingRow(published.id, (about, number, "", ""), verdict, details=doubts)
    words: list[str] = [measured.verdict or "no published number"]
    words += [flag_note(measured.flags)] if measured.flags else []
    return FindingRow(
        published.id,
        (about, number, measured.preset, _measured(measured)),
        verdict="; ".join(words),
        details=(
            *_seeds(measured),
            *([f"Not comparable: {measured.unlike}."] if measured.unlike else []),
            *([f"{measured.note[0].upper()}{measured.note[1:]}."] if measured.note else []),
            *doubts,
        ),
        measured=True,
    )


def _measured(measured: Measured) -> str:
    text = f"{measured.interval.text()}, n = {measured.interval.n}"
    if measured.last is not None:
        text += f"; selected on the test set, as published; exact, after the last epoch, {measured.last.text()}"
    if measured.optimism is not None:
        text += f", and {stats.signed(measured.optimism)} at the best one on test"
    return text


def _seeds(measured: Measured) -> Iterable[str]:
    yield "Each seed: " + ", ".join(f"{seed}: {value:.2f}" for seed, value in measured.values.items())
    if measured.images:
        yield f"On {measured.images:,} test images."
    if measured.interval.n == 1 and measured.images:
        ends = stats.wilson(round(measured.interval.mean * measured.images / 100), measured.images)
        yield f"A single run: Wilson interval of the test images {stats.brackets(ends)}, none over seeds."
