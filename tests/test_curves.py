"""Tables and pictures of robustness curves."""

import warnings
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from builders import curve, point
from perturblab.cli.attack_table import points_table
from perturblab.records.attack_names import ATTACK_KINDS, WORST, AttackName
from perturblab.records.flags import NOT_MONOTONE, PGD_WEAKER, UPPER_BOUND, Raised, flag_note, flag_points
from perturblab.records.pictures import curves, examples
from perturblab.records.points import Point
from perturblab.records.radius import radius
from perturblab.records.worst_case import NO_WORST, with_worst
from perturblab.stats import wilson


@pytest.mark.parametrize(
    ("eps", "text"),
    [
        (0.0, "0"),
        (1 / 255, "1/255"),
        (8 / 255, "8/255"),
        (25 / 255, "25/255"),
        (0.1, "0.1"),
        (0.3, "0.3"),
        (0.05, "0.05"),
        (0.5, "0.5"),
        (1.0, "1"),
        (5.0, "5"),
        (16.0, "16"),
    ],
)
def test_a_radius_is_written_as_people_do(eps: float, text: str) -> None:
    assert radius(eps) == text


def test_a_table_has_a_row_an_attack_a_column_a_radius_and_its_flags_below() -> None:
    checks = [Raised(("w", ""), "linf", ["softmax outputs", "zero gradients"])]
    points = flag_points([*curve("fgsm", 900, 500), *curve("pgd", 900, 400, 100)], checks)
    lines = points_table(points).splitlines()
    assert lines[0].split() == ["linf,", "eps", "0", "0.1", "0.2"]
    assert lines[1].split() == ["fgsm", "90.00", "50.00*"]
    assert lines[3].split() == ["pgd", "90.00", "40.00*", "10.00*"]
    for row, counts in ((2, (900, 500)), (4, (900, 400, 100))):
        want = ["[{:.1f}, {:.1f}]".format(*wilson(count, 1000)) for count in counts]
        assert lines[row].split() == " ".join(want).split()
    assert "1000 test images" in lines[5]
    assert "never a guarantee" in lines[5]
    assert lines[6:] == [f"* {flag_note(('zero gradients', 'softmax outputs'))}"]
    assert len({len(line) for line in lines[:5]}) <= 2, "columns are aligned"
    assert "*" not in points_table(curve("fgsm", 900, 500))


def test_the_worst_case_is_bold_in_a_terminal_and_marked_elsewhere() -> None:
    points = with_worst([*curve("fgsm", 900, 500), *curve("pgd", 900, 400)])
    plain, bold = (points_table(points, terminal=terminal).splitlines() for terminal in (False, True))
    assert plain[5].split() == ["**worst", "case**", "90.00", "40.00"]
    assert "\x1b" not in "".join(plain)
    for row, begin, end in ((5, "worst case ", "40.00"), (6, "   ", "]")):
        assert bold[row].startswith(f"\x1b[1m{begin}"), "with its interval"
        assert bold[row].endswith(f"{end}\x1b[0m")
    assert ["\x1b" in line for line in bold].count(True) == 2
    assert [line.rpartition(": ")[2] for line in plain if "attacks" in line] == ["fgsm, pgd"]
    random = [point(name, settings={"verdicts": 3}) for name in ("fgsm", "pgd")]
    assert points_table(random).splitlines()[-1] == NO_WORST
    assert NO_WORST not in points_table(points)


def test_what_the_parts_of_autoattack_left_is_below_the_table() -> None:
    told = point("autoattack", 8 / 255, 3, parts=(("apgd-ce", 5), ("square", 3)))
    (parts,) = [line for line in points_table([told]).splitlines() if "square" in line]
    assert parts.startswith("autoattack at 8/255, ")
    assert parts.endswith(": apgd-ce 5, square 3")
    assert "square" not in points_table([point("autoattack")])


def test_deepfool_has_a_table_of_its_own_by_iterations() -> None:
    names = ("deepfool", "deepfool frozen", "transfer-deepfool")
    capped = [point(name, float(cap), 9 - cap, norm="l2") for name in names for cap in (1, 2)]
    lines = points_table([point("fgsm", 8 / 255, 5), *capped]).splitlines()
    assert lines[0].split() == ["linf,", "eps", "8/255"]
    assert lines[1].split() == ["fgsm", f"{500 / 13:.2f}"]
    assert lines[3].split() == ["iterations", "1", "2"]
    assert [line.split()[-2:] for line in lines[4:10:2]] == [[f"{800 / 13:.2f}", f"{700 / 13:.2f}"]] * 3
    by_iterations = [AttackName.parse(name).kind.by_iterations for name in (*names, "fgsm", "transfer-pgd", WORST)]
    assert by_iterations == [True] * 3 + [False] * 3


def words(path: Path) -> list[str]:
    nodes = ET.parse(path).iter("{http://www.w3.org/2000/svg}text")
    return [" ".join("".join(node.itertext()).split()) for node in nodes]


def draw(points: list[Point], path: Path, title: str = "a net") -> list[str]:
    curves.curves_svg(points, path, title=title, chance=10.0)
    return words(path)


def test_the_curves_name_every_attack_the_radii_and_chance(tmp_path: Path) -> None:
    points = [p for name, kind in ATTACK_KINDS.items() if not kind.by_iterations for p in curve(name, 900, 500, 100)]
    points += curve(WORST, 900, 400, 50)
    shown = draw(points, tmp_path / "c.svg")
    assert {*(name for name, kind in ATTACK_KINDS.items() if not kind.by_iterations), WORST, "chance", "a net"} <= set(
        shown
    )
    assert {"0", "0.1", "0.2"} <= set(shown)
    assert "accuracy, % (95 % Wilson interval)" in shown
    assert any("l-inf" in text and "[0, 1]" in text for text in shown)
    assert not any(UPPER_BOUND in text for text in shown)
    small = [point("fgsm", n / 255, 9 - n) for n in range(5)]
    assert any("l-inf" in text and "/255" in text for text in draw(small, tmp_path / "s.svg"))
    l2 = [point("fgsm", eps, 5, norm="l2") for eps in (0.0, 0.5)]
    assert any("l2" in text and "[0, 1]" in text for text in draw(l2, tmp_path / "l.svg"))


def test_a_flagged_curve_says_so_in_the_picture(tmp_path: Path) -> None:
    checks = [Raised(("w", ""), "linf", ["zero gradients"])]
    points = flag_points([*curve("fgsm", 900, 100), *curve("pgd", 900, 950)], checks)
    shown = " ".join(draw(points, tmp_path / "c.svg"))
    assert flag_note((PGD_WEAKER, "zero gradients", NOT_MONOTONE)) in shown
    assert "fgsm *" in shown
    assert "pgd *" in shown


def test_an_attack_that_was_made_in_several_ways_has_several_curves_that_say_which(tmp_path: Path) -> None:
    ways = [
        {"seed": 1, "steps": 50, "early_stop": True},
        {"seed": 1, "steps": 3},
        {"seed": 1, "steps": 50, "mode": "m, n"},
    ]
    points = [p for n, way in enumerate(ways) for p in curve("pgd", 900, 100 * n, settings=way)]
    shown = draw([*points, *curve("fgsm", 900, 500)], tmp_path / "c.svg")
    assert {"pgd (early stop True, steps 50)", "pgd (steps 3)", "pgd (m, steps 50)", "fgsm"} <= set(shown)
    met = [point(WORST, eps, 5, settings={"attacks": ["a"] * n}) for n, eps in ((1, 0.1), (2, 0.2))]
    assert draw(met, tmp_path / "w.svg").count(WORST) == 1, "one line, whatever was met at each radius"


def test_a_random_net_says_in_the_picture_that_it_has_no_worst_case(tmp_path: Path) -> None:
    random = [p for name in ("fgsm", "pgd") for p in curve(name, 900, 500, settings={"verdicts": 3})]
    assert NO_WORST in " ".join(draw(random, tmp_path / "c.svg"))


def test_the_worst_case_is_drawn_bold_and_deepfool_in_a_panel_of_its_own(tmp_path: Path) -> None:
    capped = [point(name, float(k), 9 - k, norm="l2") for k in (1, 2) for name in ("deepfool", "transfer-deepfool")]
    shown = draw([*curve("fgsm", 900, 500), *curve(WORST, 900, 400), *capped], tmp_path / "c.svg")
    assert any("DeepFool" in text and "iterations" in text for text in shown)
    assert {"deepfool", "transfer-deepfool", "fgsm", WORST} <= set(shown)
    assert shown.count("chance") == 2
    svg = (tmp_path / "c.svg").read_text()
    assert svg.count("stroke: #000000; stroke-width: 3.2") >= 1
    without = tmp_path / "d.svg"
    draw([*curve("fgsm", 900, 500), *capped], without)
    assert "stroke-width: 3.2" not in without.read_text()


def test_the_same_points_give_the_same_bytes_whatever_the_reader_has_set(tmp_path: Path) -> None:
    import matplotlib

    points = [*curve("fgsm", 900, 500, 100), *curve("pgd", 900, 400, 50)]
    draw(points, tmp_path / "a.svg")
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "other", "lines.linewidth": 9}):
        draw(points, tmp_path / "b.svg")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    draw([*curve("fgsm", 900, 500, 101), *curve("pgd", 900, 400, 50)], tmp_path / "c.svg")
    assert (tmp_path / "a.svg").read_bytes() != (tmp_path / "c.svg").read_bytes()


@pytest.mark.parametrize("names", [3, 9, 24])
@pytest.mark.parametrize(
    "way", ["", " (BatchOut at inference, draws 20, verdicts 10, source another-run-of-long-name)"]
)
def test_every_name_of_a_curve_lies_in_the_picture(
    names: int, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [{"way": f"{n}{way}"} for n in range(names)]
    points = [p for kind in ("fgsm", "deepfool") for s in settings for p in curve(kind, 900, 500, settings=s)]
    figures = []
    real = curves.svg
    monkeypatch.setattr(curves, "svg", lambda draw: real(lambda: figures.append(draw()) or figures[-1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curves.curves_svg(points, tmp_path / "a.svg", title="a net", chance=10)
        (figure,) = figures
        figure.draw_without_rendering()
    assert len(figure.axes) == 2
    for axes in figure.axes:
        legend = axes.get_legend()
        assert len(legend.texts) == names
        place = legend.get_window_extent()
        assert place.x0 >= 0, "within the picture"
        assert place.x1 <= figure.bbox.x1
        assert place.y0 >= 0
        assert place.y1 <= axes.get_window_extent().y0, "below the panel"
        assert axes.get_window_extent().height > 200
    left, right = (axes.get_legend().get_window_extent() for axes in figure.axes)
    assert left.x1 <= right.x0, "beside each other"


def test_a_hostile_title_is_text_only(tmp_path: Path) -> None:
    shown = draw(curve("fgsm", 900, 500), tmp_path / "t.svg", "<script>$\\frac$\n--> & x")
    assert "<script>$\\frac$ --> & x" in shown
    assert "<script" not in (tmp_path / "t.svg").read_text()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_images_have_two_rows_a_radius_and_name_what_the_net_sees(tmp_path: Path, channels: int) -> None:
    generator = np.random.default_rng(1)
    clean = generator.random((3, channels, 6, 5), dtype=np.float32)
    attacked = {eps: np.clip(clean + eps * generator.choice([-1, 1], clean.shape), 0, 1) for eps in (0.1, 0.5)}
    answers = {0.0: ["cat", "dog", "cow"], 0.1: ["dog", "dog", "cow"], 0.5: ["elk", "elk", "elk"]}
    paths = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for path in paths:
        examples.examples_svg(clean, attacked, answers, path, title="a net: pgd")
    shown = words(paths[0])
    assert {"clean", "change / 0.1", "0.1", "change / 0.5", "0.5", "a net: pgd"} <= set(shown)
    assert [shown.count(name) for name in ("cat", "dog", "cow", "elk")] == [1, 3, 2, 3]
    svg = paths[0].read_text()
    assert svg.count("<image") == 3 * (1 + 2 * 2), "five rows of three"
    assert 'href="data:image/png;base64,' in svg, "the pixels are in the file"
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_colours_and_markers_tell_more_curves_apart_than_there_are_attacks_and_their_frozen_twins() -> None:
    colours, markers = curves._COLOURS, curves._MARKERS
    looks = [(colours[rank % len(colours)], markers[rank % len(markers)]) for rank in range(3 * len(ATTACK_KINDS))]
    assert len(set(looks)) == len(looks)
    assert all(one[0] != two[0] for one, two in pairwise(looks))
