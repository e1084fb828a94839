"""Names of attacks and modes of BatchOut, as records spell them; the keys and files of masking checks."""

import json
from pathlib import Path

import pytest

from builders import CHECK
from perturblab.attacks import ATTACKS, Effort
from perturblab.records.attack_config import AttackConfig
from perturblab.records.attack_names import ACTIVE, AT_INFERENCE, ATTACK_KINDS, WORST, AttackName, Mode
from perturblab.records.checks import load_checks, save_checks


def test_every_attack_has_a_function_and_a_kind() -> None:
    assert ATTACKS.keys() == ATTACK_KINDS.keys()
    assert len(ATTACKS) > 10


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("pgd", AttackName("pgd")),
        ("pgd frozen", AttackName("pgd", is_frozen=True)),
        ("transfer-pgd", AttackName("pgd", is_transfer=True)),
        ("transfer-deepfool-unclipped frozen", AttackName("deepfool-unclipped", is_transfer=True, is_frozen=True)),
        (WORST, AttackName(WORST)),
        ("of a later version", AttackName("of a later version")),
        ("", AttackName("")),
    ],
)
def test_a_name_is_read_in_parts_and_written_as_it_was(text: str, name: AttackName) -> None:
    assert AttackName.parse(text) == name
    assert str(name) == text


@pytest.mark.parametrize(
    ("name", "met"),
    [
        ("fgsm", ["fgsm", "fgsm frozen"]),
        ("uniform", ["uniform"]),
        ("square", ["square frozen"]),
        ("deepfool", ["deepfool frozen"]),
        ("transfer-pgd", ["transfer-pgd", "transfer-pgd frozen"]),
        ("transfer-square", ["transfer-square"]),
        ("transfer-deepfool", ["transfer-deepfool", "transfer-deepfool frozen"]),
    ],
)
def test_a_random_net_is_met_frozen_where_the_attack_follows_it_or_needs_one_answer(name: str, met: list[str]) -> None:
    assert [str(twin) for twin in AttackName.parse(name).on_random_net()] == met


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("", Mode()),
        ("BatchOut active in evaluation, a published mistake", Mode(ACTIVE)),
        ("BatchOut at inference, beside 30 training images", Mode(AT_INFERENCE, 30)),
        ("of a later version", Mode("of a later version")),
    ],
)
def test_a_mode_goes_round_through_its_text_and_through_flags(text: str, mode: Mode) -> None:
    assert Mode.parse(text) == mode
    assert str(mode) == text
    if mode.kind in ("", ACTIVE, AT_INFERENCE):
        assert AttackConfig(**mode.flags).mode == mode


def test_checks_with_keys_by_position_and_by_name_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "attacks" / "checks.json"
    path.parent.mkdir()
    path.write_text(json.dumps([CHECK]))
    (old,) = load_checks(path)
    assert old.key.effort == Effort(steps=50)
    assert (old.key.subset, old.key.images, old.key.weights, old.key.eps, old.key.seed) == ("s", 200, "w", 0.1, 1)
    save_checks(path, [old])
    assert load_checks(path) == [old]
    (written,) = json.loads(path.read_text())
    assert written["key"]["norm"] == "linf"
    assert written["flags"] == old.findings.flags()
