"""Pages to look at: runs that fill every section, a reader of the HTML, and the parts below a chart."""

import re
from functools import cache
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

from markupsafe import escape

from builders import BATCHOUT, PLAIN, epochs, make, run
from perturblab.records import results
from perturblab.records.record import Mask
from perturblab.records.results import Result
from perturblab.report import page

RESULTS = Path(__file__).parents[1] / "results"
AUDITED = epochs([40.0, 50.0, 55.0], batch_mean=49.0, batch_mean_truncated=48.5, smoothed=48.0)
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
DRAWN = Result(make(7, label="drawn").model_copy(update={"masks": [Mask(layer="conv1", shape=[1, 1], png=PNG)]}))
SOME = [
    DRAWN,
    *(run("H5", s, 5000 + 40 * s, metrics=AUDITED) for s in (1, 2, 3)),
    *(run("K4", s, 5000 + 10 * s, metrics=AUDITED) for s in (1, 2, 3)),
    *PLAIN,
    *BATCHOUT,
]


class Reader(HTMLParser):
    """A reader that collects what a browser would: nested tags, ids, and every address."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.addresses += [value or "" for key, value in attrs if key in ("href", "src", "xlink:href")]
        assert not any(key.startswith("on") for key in given), "no script"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


@cache
def some_page() -> str:
    """Build the page of these runs, once for all tests that read it."""
    return page.page(SOME)


@cache
def committed() -> tuple[Result, ...]:
    """Load the committed records, once for all tests that read them."""
    return tuple(results.load_results(RESULTS))


def captions(text: str) -> list[str]:
    """Read the captions below the charts."""
    return [unescape(caption) for caption in re.findall(r"</svg>(?:</div>\s*)?<figcaption>([^<]*)</figcaption>", text)]


def table_below(text: str, title: str) -> list[list[str]]:
    """Read the table of the chart with this title, the header first."""
    body = text.split(f"<caption>{escape(title)}</caption>")[1].split("</table>")[0]
    return [re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", line) for line in body.split("<tr>")[1:]]
