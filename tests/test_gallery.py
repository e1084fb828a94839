"""The gallery: every script runs, its committed page is its own, and what it computes is right."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nets import seeded

FOLDER = Path(__file__).parents[1] / "docs" / "gallery"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "pages")
ON_CIFAR = ("masks", "one_mask_one_input")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """The scripts run from their folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(request.param)


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("script", [name], indirect=True)


@of("pages")
def test_the_gallery_is_complete(script: ModuleType) -> None:
    assert sorted(script.SCRIPTS) == NAMES
    for name in NAMES:
        page = (FOLDER / f"{name}.md").read_text()
        docstring = importlib.import_module(name).__doc__ or ""
        title, text = docstring.split("\n", 1)
        assert page.startswith(f"# {title.rstrip('.')}\n\n{text.strip()}\n\n![{title}]({name}.svg)\n")
        assert (FOLDER / f"{name}.svg").stat().st_size < 200_000


def rows(name: str) -> dict[str, list[float]]:
    """The tables of a page: first cell -> numbers of the others, without their intervals."""
    found = {}
    for line in (FOLDER / f"{name}.md").read_text().splitlines():
        first, *cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else [""]
        numbers = [float(cell.split(" ")[0]) for cell in cells if re.match(r"[\d.]+( ±|$)", cell)]
        found |= {first: numbers} if numbers else {}
    return found


def test_masks_for_many_images_are_no_better_than_none() -> None:
    """The words of the page agree with its table."""
    page = rows("one_mask_one_input")
    (floor,) = page["no masks, no activation: the best 1x1 convolution, for 1,000"]
    assert page["solved for one image"][0] < 1e-4 < 20 < page["solved for one image"][1]
    assert floor < page["... and 1x1 convolution, for 1,000"][1] < 1.1 * floor
    assert page["drawn masks, best 1x1 convolution, for 1,000"][1] > 2 * floor


def test_what_the_neighbours_add_is_not_known_from_the_place() -> None:
    page = rows("neighbours")
    layers = [page[f"conv{k}"] for k in range(1, 6)]
    assert all(place < 0.1 < 0.4 < centre < both for _, place, centre, both, _ in layers)
    assert max(page["the n_c of another image"]) < 10, "below chance: it answers for the other image"
    assert max(page["noise of its distribution, fixed"]) < 30 < 70 < page["n_c itself"][0]
    assert min(page["what the centre tells: the best 1x1 convolution"][1:5]) > 70


def test_only_3x3_convolutions_compare_beyond_the_receptive_field() -> None:
    page = rows("arrangement")
    assert min(page["3x3 convolutions"]) > 99
    for name in ("1x1 convolutions", "masks, level 0.1", "masks, level 1"):
        near, nearer, edge, *beyond = page[name]
        assert min(near, nearer) > 99
        assert 55 < edge < 65
        assert all(abs(value - 50) < 2 for value in beyond)


def _make(script: ModuleType, name: str, dataroot: Path, to: Path) -> None:
    script.make(name, small=True, dataroot=str(dataroot), to=to)
    page, picture = (to / f"{name}.md").read_text(), (to / f"{name}.svg").read_text()
    assert re.search(r"^\|[-:|]+\|$", page, re.MULTILINE), "a page has a table"
    assert "nan" not in page
    assert picture.startswith("<?xml")
    assert "mathdefault" not in picture, "formulas are not set in these pictures"


@of("pages")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ON_CIFAR])
def test_a_script_makes_its_page(script: ModuleType, name: str, tmp_path: Path) -> None:
    _make(script, name, tmp_path, tmp_path)


@pytest.mark.slow
@pytest.mark.shared_data
@of("pages")
@pytest.mark.parametrize("name", ON_CIFAR)
def test_a_script_on_real_images_makes_its_page(script: ModuleType, name: str, shared: Path, tmp_path: Path) -> None:
    _make(script, name, shared / "data", tmp_path)


# --- one mask fits one input -----------------------------------------------------------------------------------------


@of("one_mask_one_input")
def test_solved_masks_give_the_target(script: ModuleType) -> None:
    x, t = torch.randn(3, 5, 4, generator=seeded(1)), torch.randn(6, 5, 4, generator=seeded(2))
    weight = torch.randn(6, 3 * 12, 1, 1, generator=seeded(3))
    masks = script.solve(x, t, weight)
    assert masks.shape == (3, 12, 5, 4)
    maps = (x[:, None] + masks).clamp(min=0).flatten(0, 1)  # by the formula, not by the layer
    torch.testing.assert_close(torch.einsum("om,mhw->ohw", weight[..., 0, 0], maps), t, atol=1e-5, rtol=0)
    assert script.miss(x[None], t[None], masks, weight) < 1e-9
    assert script.miss(x[None].flip(-1), t[None].flip(-1), masks, weight) > 0.5


@of("one_mask_one_input")
def test_the_best_1x1_convolution_is_that_of_least_squares(script: ModuleType) -> None:
    x, t = torch.randn(7, 3, 5, 4, generator=seeded(1)), torch.randn(7, 2, 5, 4, generator=seeded(2))
    masks = torch.randn(3, 4, 5, 4, generator=seeded(3))
    maps = (x[:, :, None] + masks).clamp(min=0).flatten(1, 2).movedim(1, -1).reshape(-1, 12).double()
    other = torch.linalg.lstsq(maps, t.movedim(1, -1).reshape(-1, 2).double()).solution
    torch.testing.assert_close(script.best_weight(x, t, masks)[..., 0, 0], other.T.float(), atol=1e-4, rtol=1e-3)


@of("one_mask_one_input")
def test_fitted_masks_miss_less(script: ModuleType) -> None:
    x, t = torch.randn(3, 3, 5, 4, generator=seeded(1)), torch.randn(3, 2, 5, 4, generator=seeded(2))
    start, weight = torch.zeros(3, 4, 5, 4), torch.randn(2, 12, 1, 1, generator=seeded(3))
    ends = [script.fit(x, t, start, weight, 40, also_weight=both) for both in (False, True)]
    missed = [script.miss(x, t, *end) for end in ((start, weight), *ends)]
    assert missed[0] > missed[1] > missed[2]


# --- what the neighbours add -----------------------------------------------------------------------------------------


def _conv() -> nn.Conv2d:
    conv = nn.Conv2d(3, 4, 3, padding=1)
    nn.init.normal_(conv.weight, generator=seeded(1))
    return conv


@of("neighbours")
@torch.no_grad()
def test_n_c_is_what_the_other_eight_weights_add(script: ModuleType) -> None:
    conv, x = _conv(), torch.randn(2, 3, 6, 5, generator=seeded(2))
    around = conv.weight.clone()
    around[:, :, 1, 1] = 0
    found, plain = [], conv(x)

    def way(name: str) -> object:
        return lambda centre, n: (found.append((centre, n)), n)[1]

    with script.replace_neighbours({"conv": conv}, way):
        torch.testing.assert_close(conv(x), plain)
    ((centre, n),) = found
    assert centre is x
    torch.testing.assert_close(n, F.conv2d(x, around, padding=1))
    assert torch.equal(conv(x), plain), "and the hook is gone"


@of("neighbours")
@torch.no_grad()
def test_shares_are_those_of_plain_regressions(script: ModuleType) -> None:
    conv, x = _conv(), torch.randn(9, 3, 6, 5, generator=seeded(2)) + torch.randn(3, 6, 5, generator=seeded(3))
    n = F.conv2d(x, conv.weight, padding=1) - F.conv2d(x, conv.weight[:, :, 1:2, 1:2])
    seen = script.Seen(conv)
    for part in (slice(0, 4), slice(4, 9)):
        seen.add(x[part], n[part])

    def r2(columns: torch.Tensor) -> float:
        target = n.movedim(1, -1).reshape(-1, 4).double()
        left = target - columns @ torch.linalg.lstsq(columns, target, driver="gelsd").solution
        return 1 - float(left.square().sum() / (target - target.mean(0)).square().sum())

    centre = x.movedim(1, -1).reshape(-1, 3).double()
    places = torch.eye(30).double().repeat(9, 1)  # one column a place
    assert seen.by_place()[1] == pytest.approx(r2(places), abs=1e-5)
    assert seen.best(mask=False)[2] == pytest.approx(r2(torch.cat([centre, torch.ones(270, 1)], 1)), abs=1e-5)
    weights, offset, share = seen.best(mask=True)
    assert share == pytest.approx(r2(torch.cat([centre, places], 1)), abs=1e-5)
    left = n - F.conv2d(x, weights.T[:, :, None, None]) - offset
    assert 1 - float(left.square().sum() / (n - n.mean((0, 2, 3), keepdim=True)).square().sum()) == pytest.approx(
        share, abs=1e-5
    )
    assert torch.equal(offset, torch.as_tensor(offset).expand(4, 6, 5))


# --- arrangement -----------------------------------------------------------------------------------------------------


@of("arrangement")
def test_two_dots_at_a_distance_and_nothing_else(script: ModuleType) -> None:
    labels = torch.arange(200) % 2
    x = script.make_images(labels, 5, seeded(4))
    assert x.shape == (200, 1, 32, 32)
    bright, dark = x.flatten(1).argmax(1), x.flatten(1).argmin(1)
    assert torch.equal(bright // 32, dark // 32)
    assert torch.equal((dark - bright) % 32, torch.where(labels == 0, 5, 27))
    assert len(bright.unique()) > 150, "the dots are anywhere"
