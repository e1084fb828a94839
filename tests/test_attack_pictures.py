"""Pictures of `perturblab attack`: curves, and images beside what an attack changes in them."""

import re
import shutil
from pathlib import Path

import pytest

from attack_runs import LITTLE, WEAK, attack, kept
from builders import Tell
from perturblab.records.attack_names import WORST
from perturblab.records.flags import UPPER_BOUND, flag_note
from told import in_order


def test_only_pictures_that_were_made_are_named_and_all_curves_of_the_images_are_drawn(here: Path, tell: Tell) -> None:
    def shown() -> set[str]:
        svg = (here / "plain" / "attacks" / "curves.svg").read_text()
        return {re.sub(r" \*$", "", text) for text in re.findall(r"<text[^>]*>([^<]+)</text>", svg)}

    told = tell(f"attack plain {LITTLE} --attacks deepfool --no-checks")
    assert told.out.splitlines()[-1] == "pictures: plain/attacks/curves.svg"
    assert not (here / "plain" / "attacks" / "examples.svg").exists()
    assert attack(tell, "plain", f"{WEAK} --subset 30 --no-checks")[1]["flags"]
    attack(tell, "plain", "--attacks gaussian --eps 0.1 --no-checks --subset 29")
    attack(tell, "plain", "--attacks square --eps 0.1 --no-checks --norm l2")
    attack(tell, "plain", "--attacks uniform --eps 0.1 --no-checks")
    assert {"fgsm", "pgd", "uniform", "deepfool", WORST} <= shown()
    assert not {"gaussian", "square"} & shown(), "of other images, of another norm"
    assert flag_note(("PGD weaker than FGSM",)) in (here / "plain/attacks/curves.svg").read_text()


def test_pictures_have_the_same_bytes_every_time_and_show_the_images(here: Path, tell: Tell) -> None:
    shutil.copytree(here / "plain", here / "again")
    flags = "--attacks fgsm,pgd,deepfool --eps 0,0.1,0.3"
    for run in ("plain", "again"):
        attack(tell, run, flags)
    for name in ("curves.svg", "examples.svg"):
        one, two = ((here / run / "attacks" / name).read_bytes() for run in ("plain", "again"))
        assert one == two, name
    before = {name: (here / "plain" / "attacks" / name).read_bytes() for name in ("curves.svg", "examples.svg")}
    attack(tell, "plain", flags)  # everything is known now
    assert {name: (here / "plain" / "attacks" / name).read_bytes() for name in before} == before
    svg = before["examples.svg"].decode()
    assert svg.count("<image") == 5 * (1 + 2 * 2), "clean, change and result at two radii, of five images"
    assert all(f">{text}<" in svg for text in ("clean", "change / 0.1", "0.1", "change / 0.3", "0.3"))


def test_a_flagged_curve_says_so_in_the_table_the_json_the_file_and_the_picture(here: Path, tell: Tell) -> None:
    told = tell(f"attack random {LITTLE} --attacks fgsm --eps 0,0.3")
    assert re.search(r"(?m)^\* " + in_order(f"{UPPER_BOUND} flags: random forward"), told.out)
    assert re.search(r"(?m)^fgsm +\d+\.\d\d +\d+\.\d\d\*$", told.out)
    assert f"{UPPER_BOUND}, flags: " in (here / "random" / "attacks" / "curves.svg").read_text()
    points = attack(tell, "random", "--attacks fgsm --eps 0,0.3")
    assert all(("random forward" in p["flags"]) == (p["eps"] > 0) for p in points)
    assert all(("random forward" in p["flags"]) == (p["eps"] > 0) for p in kept(here / "random", "fgsm"))


@pytest.mark.parametrize(
    ("attacks", "title", "images"),
    [("square,uniform", "pgd", 3), ("fgsm,square", "fgsm", 3), ("deepfool", "", 0), ("fgsm-unclipped", "", 0)],
)
def test_the_picture_of_images_is_there_whatever_the_attacks_by_radius(
    attacks: str, title: str, images: int, here: Path, tell: Tell
) -> None:
    told = tell(f"attack plain {LITTLE} --attacks {attacks} --eps 0,0.2 --no-checks")
    path = here / "plain" / "attacks" / "examples.svg"
    assert path.exists() == ("examples.svg" in told.out) == bool(images)
    if images:
        assert path.read_text().count("<image") == 5 * images
        assert f": {title}<" in path.read_text()
