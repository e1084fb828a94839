"""The charts of the page: captions, tables below, colours, and what a real browser shows."""

import json
import re
from pathlib import Path

import pytest

from browser import needs_chromium, shown
from builders import BATCHOUT, PLAIN, point, run
from page_reader import AUDITED, SOME, captions, committed, some_page, table_below
from perturblab.records.results import Result
from perturblab.report import page
from perturblab.studies.presets import PRESETS
from told import in_order


def test_a_flag_is_said_of_its_own_net_alone() -> None:
    text = page.page([*PLAIN, *BATCHOUT])
    (caption,) = captions(text)
    assert re.search(in_order("hollow marks: resnet18, 64 filters, BatchOut upper bound zero gradients"), caption)
    assert "resnet18, 64 filters (" not in caption
    header, plain, mixed = table_below(text, "fgsm, 8 images: accuracy, % by radius, linf")
    assert header == ["Curve", "0", "0.1", "Seeds", "Flags"]
    assert (plain[0], plain[-1]) == ("resnet18, 64 filters", "none")
    assert (mixed[0], mixed[-1]) == ("resnet18, 64 filters, BatchOut", "zero gradients")
    assert re.search(r"hollow marks: [^<]*\bupper bound\b", text)
    unflagged = page.page(PLAIN)
    assert re.search(in_order("No curve flag"), captions(unflagged)[0])
    assert "hollow marks" not in unflagged


def test_a_flag_of_one_seed_or_of_one_panel_says_which() -> None:
    more = [point("pgd", eps, [1, 0], subset="few", flags=("not converged",)) for eps in (0.1, 0.2)]
    once = [Result(r.record, (), (*r.points, *(more if r.record.seed == 1 else ()))) for r in PLAIN]
    (caption,) = captions(page.page(once))
    assert re.search(in_order("upper bound not converged seed 1 (panel 1)"), caption)
    told = in_order("resnet18, 64 filters: n = 1 no interval (panel 1)")
    assert re.search(told, caption), "the other attack has three seeds"


@pytest.mark.parametrize(
    ("seeds", "want"),
    [
        ({"K4": 1}, "n = 1 no interval"),
        ({"K4": 2}, "n = 2 too few"),
        ({"K4": 3, "K1": 3}, "n = 3 95 % t-intervals"),
        ({"K4": 4, "K1": 1}, "n = 1 4 95 % t-intervals K1: n = 1 no interval"),
    ],
)
def test_an_interval_is_promised_only_where_there_is_one(seeds: dict[str, int], want: str) -> None:
    of = [run(name, s, metrics=AUDITED) for name, last in seeds.items() for s in range(1, last + 1)]
    learning, audit = captions(page.page(of))
    assert re.search(in_order(f"accuracy epoch, {want}"), learning)
    for words in ("t-interval", "no interval"):
        assert (words in learning) == (words in want)
    assert "t-interval" not in audit


def test_an_interval_is_missing_only_where_seeds_are() -> None:
    more = Result(PLAIN[0].record, (), (*PLAIN[0].points, point("fgsm", 0.2, [1, 0, 0, 0, 0, 0, 0, 0])))
    text = page.page([more, *PLAIN[1:]])
    (caption,) = captions(text)
    assert re.search(in_order("resnet18, 64 filters: n = 1 some no interval"), caption)
    (row,) = table_below(text, "fgsm, 8 images: accuracy, % by radius, linf")[1:]
    assert row == ["resnet18, 64 filters", "100.00 [100.00, 100.00]", "12.50 [0.00, 43.55]", "12.50", "1 to 3"]


def test_every_net_of_the_preset_has_its_learning_curve() -> None:
    setups = PRESETS["cpu"].setups
    text = page.page([run(name, s, metrics=AUDITED) for name in setups for s in (1, 2, 3)])
    section = text.split('<section id="learning-curves">')[1].split("</section>")[0]
    svgs = re.findall(r"<svg.*?</svg>", section, flags=re.DOTALL)
    assert len(svgs) == 2, "one a recipe"
    named = [re.findall(r"<text[^>]*>([KHA][^<]*)</text>", svg) for svg in svgs]
    assert sorted(named[0] + named[1]) == sorted(setups)
    assert all(name.startswith("A") for name in named[1])
    for svg, names in zip(svgs, named, strict=True):
        looks = re.findall(
            r'style="fill: none; (?:stroke-dasharray: ([^;]*); [^"]*)?stroke: (#\w+)[^"]*stroke-width: 1.5', svg
        )
        assert len({colour for _, colour in looks}) == len(names), "a colour each"
        papers = re.findall(r"--paper: (#\w+)", text)
        assert len(papers) == 2
        assert min(contrast(colour, paper) for _, colour in looks for paper in papers) >= 3, "WCAG 2.2, 1.4.11"


def contrast(one: str, other: str) -> float:
    """How far two colours are apart, from 1 to 21 (WCAG 2.2, contrast ratio)."""
    dark, light = sorted(luminance(colour) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_a_chart_is_there_for_those_who_cannot_see_it() -> None:
    text = some_page()
    figures = re.findall(r"<figure>.*?</figure>", text.split("<h2>Noise masks")[0], flags=re.DOTALL)
    assert len(figures) == 3
    for figure in figures:
        assert re.search(r'<svg class="chart" role="img" aria-label="[^"]+"', figure)
        assert '<details class="beside"><summary>numbers of this chart' in figure
    assert table_below(text, "H5: accuracy, % by epoch (the first is 0)")[1:] == [
        ["exact", "40.00", "50.00", "55.00", "3"],
        ["batch mean", *["49.00"] * 3, "3"],
        ["smoothed", *["48.00"] * 3, "3"],
    ]


# --- in a real browser ------------------------------------------------------------------------------------------------

# Asked of the page by the page itself: what is wider than the window, and which pictures are empty.
PROBE = """
<script>
addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body *")].filter(
    (e) => !e.closest("svg, pre, .scroll") && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.tagName);
  const empty = [...document.querySelectorAll("svg.chart, svg.dots, img")].filter(
    (e) => e.checkVisibility() && e.getBoundingClientRect().width * e.getBoundingClientRect().height === 0).length;
  const broken = [...document.images].filter((i) => !i.naturalWidth).length;
  document.title = JSON.stringify({wide, empty, broken, charts: document.querySelectorAll("svg.chart").length,
    bars: [...document.querySelectorAll("svg.chart text")].length});
});
</script>
"""


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [1280, 400], ids=["desktop", "phone"])
def test_a_browser_shows_all_of_it(width: int, tmp_path: Path) -> None:
    real = list(committed())
    studied = [one.record.study for one in real]
    text = page.page([*real, *(one for one in SOME if one.record.study not in studied)])
    # The probe is this test's own, so the page's rule against scripts is taken out for it.
    asked = re.sub(r"<meta http-equiv=[^>]*>", "", text).replace("</body>", f"{PROBE}</body>")
    for name, content in (("page", text), ("asked", asked)):
        (tmp_path / f"{name}.html").write_text(content)
    seen = shown((tmp_path / "asked.html").as_uri(), tmp_path, width=width)
    found = json.loads(next(iter(re.findall(r"<title>(.*?)</title>", seen.stdout))).replace("&quot;", '"'))
    assert found["wide"] == []
    assert (found["empty"], found["broken"]) == (0, 0)
    assert found["charts"] == text.count('<svg class="chart"') >= 3
    assert found["bars"] > 20, "text of a picture stays text"
    plain = shown((tmp_path / "page.html").as_uri(), tmp_path, width=width)
    assert "CONSOLE" not in plain.stderr, "no message of the browser"


# Asked of the page as it is on paper: what a closed fold still hides.
FOLDS = """
<script>
addEventListener("load", () => {
  const closed = "details:not([open]):not(.beside)";
  const folded = [...document.querySelectorAll(`${closed} li, ${closed} td`)];
  const seen = folded.filter((e) => e.checkVisibility({contentVisibilityAuto: true}));
  document.title = JSON.stringify({folded: folded.length, seen: seen.length});
});
</script>
"""


@pytest.mark.slow
@needs_chromium
def test_paper_hides_nothing(tmp_path: Path) -> None:
    text = re.sub(r"<meta http-equiv=[^>]*>", "", some_page()).replace("</body>", f"{FOLDS}</body>")
    for name, content in (("screen", text), ("paper", text.replace("@media print", "@media all"))):
        (tmp_path / f"{name}.html").write_text(content)
        seen = shown((tmp_path / f"{name}.html").as_uri(), tmp_path)
        found = json.loads(next(iter(re.findall(r"<title>(.*?)</title>", seen.stdout))).replace("&quot;", '"'))
        assert found["folded"] > 500
        assert found["seen"] == (found["folded"] if name == "paper" else 0)
