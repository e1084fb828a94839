"""One self-contained HTML page: a pure function of the results of runs."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from perturblab.records.results import Failed, Result
from perturblab.report.answers import Answer, answer_questions
from perturblab.report.by_setup import by_place
from perturblab.report.claims import claim_findings
from perturblab.report.claims_table import claim_row, open_claim, sections
from perturblab.report.curves import attack_charts, audit_charts, learning_charts
from perturblab.report.evidence import EVIDENCE, LEARNED
from perturblab.report.figures import figure_findings
from perturblab.report.protocol import list_compute, list_groups, list_presets, list_repeats

_TEMPLATE = Path(__file__).with_name("page.html")
_NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # control characters that no HTML may hold
_MASKS = 8


def page(runs: Sequence[Result], failed: Sequence[Failed] = (), void: Sequence[str] = ()) -> str:
    """Write the page.

    Args:
        runs: in any order; the same runs give the same bytes.
        failed: runs that ended without a record.
        void: a line for each record that a known fault makes void.

    Returns:
        HTML that needs no other file and no network.
    """
    import jinja2

    runs = sorted(runs, key=lambda run: (run.record.model_dump_json(), len(run.points)))
    places = by_place(runs)
    claims, figures = claim_findings(places), figure_findings(places)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    html = template.render(
        runs=len(runs),
        evidence=f"{EVIDENCE:.0f}",
        learned=f"{LEARNED:.0f}",
        answers=answer_questions(claims),
        claims=[claim_row(finding, compared) for finding in claims for compared in finding.measured],
        open_claims=[open_claim(finding) for finding in claims if not finding.measured],
        sections=sections(figures),
        charts={
            "Curves under attack": attack_charts(runs),
            "Learning curves": learning_charts(places),
            "The metric audit": audit_charts(places),
        },
        masks=_masks(runs),
        presets=list_presets(places),
        groups=list_groups(runs),
        repeats=list_repeats(runs),
        compute=list_compute(runs),
        failed=failed,
        void=void,
    )
    return _NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", html)


def answers_of(runs: Sequence[Result]) -> tuple[Answer, Answer]:
    """Answer the two questions, for a terminal.

    Args:
        runs: in any order.
    """
    return answer_questions(claim_findings(by_place(runs)))


def _masks(runs: Iterable[Result]) -> list[dict[str, str]]:
    record = next((run.record for run in runs if run.record.masks), None)
    if record is None:
        return []
    net = record.study.setup if record.study else str(record.config.get("net_type", "net"))
    return [
        {"png": mask.png, "about": f"{net}, {mask.layer}, {' x '.join(map(str, mask.shape))}"}
        for mask in record.masks[:_MASKS]
    ]
