"""Claims and published figures as lines of tables, for the page and as Markdown."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from perturblab import stats
from perturblab.catalogue import SETUPS, find
from perturblab.errors import UserError
from perturblab.points import said
from perturblab.report import findings, tables
from perturblab.report.charts import dots_svg
from perturblab.report.findings import ClaimFinding, Compared, FigureFinding, Measured
from perturblab.report.measured import Run

SECTIONS = {
    "pnn": "Perturbative neural networks, the reproduction, the authors' reply",
    "lbcnn": "Local binary convolution",
    "batchout": "BatchOut: the paper, its re-implementations, trials on ResNets",
}


@dataclass(frozen=True)
class Row:
    """A line of a table of the page: its cells, and what it is called in the page."""

    id: str
    cells: tuple[str, ...]
    verdict: str = ""
    picture: str = ""
    details: tuple[str, ...] = ()
    measured: bool = False


def markdown(runs: Sequence[Run], tag: str | None = None) -> str:
    """Write the claims and figures that were measured as Markdown tables.

    Args:
        runs: in any order; the same runs give the same bytes.
        tag: only what carries it, such as "dispute".

    Returns:
        Two tables, or a sentence where nothing was measured; ends in a newline.

    Raises:
        UserError: no entry and no relation carries the tag.
    """
    if tag is not None:
        try:
            find(tag)
        except ValueError as error:
            raise UserError(f"--tag got {tag!r}: {error}") from error
    places = findings.by_place(runs)
    claims = [f for f in findings.claims(places) if tag is None or tag in f.relation.tags]
    figures = [f for f in findings.figures(places) if tag is None or tag in f.entry.tags]
    blocks = []
    for header, rows in (
        (("Claim", "Claimed", "Preset", "Measured", "Verdict"), [claim_row(f, c) for f in claims for c in f.measured]),
        (
            ("Figure", "Published", "Preset", "Measured", "Verdict"),
            [figure_row(f, m) for f in figures for m in f.measured],
        ),
    ):
        if rows:
            cells = [tables.escaped((*row.cells, row.verdict)) for row in rows]
            lines = [header, ("---",) * len(header), *cells]
            blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(blocks or [tables.NOTHING]) + "\n"


def claim_row(finding: ClaimFinding, compared: Compared) -> Row:
    relation, interval = finding.relation, compared.paired.interval
    ends = None
    if interval.low is not None and interval.high is not None and interval.n >= stats.MIN_SEEDS:
        ends = (interval.low, interval.high)
    claimed = None
    if relation.low is not None or relation.high is not None:
        claimed = (
            -math.inf if relation.low is None else relation.low,
            math.inf if relation.high is None else relation.high,
        )
    unit = "" if relation.measure.metric == "volatility" else " points"
    seeds = ", ".join(f"{seed}: {stats.signed(value)}" for seed, value in compared.differences.items())
    more = [f"{relation.left} {compared.left:.2f}, {relation.right} {compared.right:.2f}; by seed {seeds}"]
    more += [compared.note] if compared.note else []
    return Row(
        relation.id,
        (relation.text, _claimed(relation.low, relation.high), compared.preset, _difference(compared, unit)),
        verdict=_claim_words(compared),
        picture=dots_svg(list(compared.differences.values()), ends, claimed),
        details=(*more, f"Claimed by: {relation.source}.", *relation.doubts, *([relation.how] if relation.how else [])),
        measured=True,
    )


def _claimed(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return "-"
    if low is None:
        return f"below {high:+g}" if high else "below 0"
    if high is None:
        return f"above {low:+g}" if low else "above 0"
    return f"{low:+g}" if low == high else f"{low:+g} to {high:+g}"


def _difference(compared: Compared, unit: str) -> str:
    interval = compared.paired.interval
    text = f"{stats.signed(interval.mean)}{unit}"
    if interval.low is not None and interval.high is not None and interval.n >= stats.MIN_SEEDS:
        text += f" [{stats.signed(interval.low)}, {stats.signed(interval.high)}]"
    return f"{text}, n = {interval.n}"


def _claim_words(compared: Compared) -> str:
    words: list[str] = [compared.paired.verdict if compared.verdict is None else compared.verdict]
    if words[0] == "not distinguishable" and compared.paired.detectable is not None:
        words.append(f"{compared.paired.detectable:.2f} would have been detected with 80 % power")
    words += [said(compared.flags)] if compared.flags else []
    return "; ".join(words)


def open_claim(finding: ClaimFinding) -> Row:
    relation = finding.relation
    how = f"Settled otherwise: {relation.how}." if relation.how else "not yet measured"
    return Row(relation.id, (relation.text, _claimed(relation.low, relation.high), how), details=relation.doubts)


def sections(figures: Sequence[FigureFinding]) -> dict[str, list[Row]]:
    sections: dict[str, list[Row]] = {title: [] for title in SECTIONS.values()}
    for finding in figures:
        title = next(title for tag, title in SECTIONS.items() if tag in finding.entry.tags)
        sections[title] += [figure_row(finding, m) for m in finding.measured] or [figure_row(finding, None)]
    return sections


def figure_row(finding: FigureFinding, measured: Measured | None) -> Row:
    entry = finding.entry
    setup = SETUPS.get(entry.setup)
    published = entry.figure.text or ("-" if entry.figure.value is None else f"{entry.figure.value:g}")
    about = f"{entry.id}: {entry.about}"
    doubts = (f"Published in: {entry.source}.", *entry.doubts, *(setup.doubts if setup else ()))
    missing = setup.missing if setup else "no run stands behind it"
    if measured is None:
        verdict = f"cannot be run here: {missing}" if missing else "not yet measured"
        return Row(entry.id, (about, f"{published} ({entry.figure.kind})", "", ""), verdict, details=doubts)
    words: list[str] = [measured.against.verdict if measured.against else "no published number"]
    words += [said(measured.flags)] if measured.flags else []
    return Row(
        entry.id,
        (about, f"{published} ({entry.figure.kind})", measured.preset, _measured(measured)),
        verdict="; ".join(words),
        details=(*_seeds(measured), *doubts),
        measured=True,
    )


def _measured(measured: Measured) -> str:
    interval = measured.interval
    text = f"{interval.mean:.2f}"
    if interval.low is not None and interval.high is not None and interval.n >= stats.MIN_SEEDS:
        text += f" [{max(interval.low, 0):.2f}, {min(interval.high, 100):.2f}]"
    return f"{text}, n = {interval.n}"


def _seeds(measured: Measured) -> Iterable[str]:
    yield "Each seed: " + ", ".join(f"{seed}: {value:.2f}" for seed, value in measured.values.items())
    if measured.images:
        yield f"On {measured.images:,} test images."
    if measured.interval.n == 1 and measured.images:
        low, high = stats.wilson(round(measured.interval.mean * measured.images / 100), measured.images)
        yield f"A single run: Wilson interval of the test images [{low:.2f}, {high:.2f}], none over seeds."
