"""Files of a run's folder."""

import hashlib
from pathlib import Path

from perturblab.records.attack_names import WORST, is_capped

CHECKS = "checks.json"  # beside the curves: what the masking checks found


def file_of(folder: Path, attack: str, norm: str) -> Path:
    """The file of a curve.

    Args:
        folder: of the run.
        attack: its name.
        norm: "linf" or "l2".
    """
    usual = "l2" if is_capped(attack) else "linf"
    return folder / "attacks" / f"{attack.replace(' ', '-')}{'' if norm == usual else '-' + norm}.json"


def point_files(folder: Path) -> list[Path]:
    """The files of a run's curves, without the worst cases, which are made of them."""
    worst = file_of(folder, WORST, "linf").stem
    files = sorted(folder.glob("attacks/*.json"))
    return [file for file in files if file.name != CHECKS and not file.name.startswith(worst)]


def hash_of_weights(folder: Path) -> str:
    file = folder / "weights.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else ""


FAILED_FILE = "failed.json"  # written by a study beside where the record would be
