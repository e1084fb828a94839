"""The files of a run's folder, by their names."""

import hashlib
from pathlib import Path

from perturblab.records.attack_names import WORST, AttackName
from perturblab.system import files

CHECKPOINT, PREVIOUS, MASKS = "checkpoint.pt", "checkpoint.previous.pt", "masks.safetensors"
FAILED_FILE = "failed.json"


class RunFolder:
    """The files of a run's folder, or of the folder that keeps its results.

    Attributes:
        path: the folder.
        record: what was measured, once the run has finished.
        metrics: one line per epoch.
        weights: parameters and buffers, once the run has finished.
        checkpoint: what resumes the run; the checkpoint before it is `previous`.
        masks: the buffers that never change, which checkpoints leave out.
        progress: the picture of the metrics.
        attacks: the folder of everything measured under attack.
        checks: findings of the masking checks.
        failed: why a run of a study ended without a record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "record.json"
        self.metrics = path / "metrics.jsonl"
        self.weights = path / "weights.safetensors"
        self.checkpoint = path / CHECKPOINT
        self.previous = path / PREVIOUS
        self.masks = path / MASKS
        self.progress = path / "progress.svg"
        self.attacks = path / "attacks"
        self.checks = self.attacks / "checks.json"
        self.failed = path / FAILED_FILE

    def is_begun(self) -> bool:
        """Say whether the folder holds more than a process leaves that was killed before its first checkpoint."""
        return any(not (files.is_part(path) or path == self.masks) for path in self.path.iterdir())

    def weights_hash(self) -> str:
        """Hash the weights as the points of attacks on them do: 16 hexadecimal digits, "" without weights."""
        return hashlib.sha256(self.weights.read_bytes()).hexdigest()[:16] if self.weights.is_file() else ""


def file_of(folder: Path, attack: AttackName | str, norm: str) -> Path:
    """Name the file of a curve.

    Args:
        folder: of the run.
        attack: its name.
        norm: "linf" or "l2".
    """
    name = str(attack)
    ending = "" if norm == AttackName.parse(name).usual_norm else f"-{norm}"
    return RunFolder(folder).attacks / f"{name.replace(' ', '-')}{ending}.json"


def point_files(folder: Path) -> list[Path]:
    """List the files of a run's curves, without the worst cases, which are computed from them."""
    worst = file_of(folder, WORST, "linf").stem
    run = RunFolder(folder)
    return [
        file for file in sorted(run.attacks.glob("*.json")) if file != run.checks and not file.stem.startswith(worst)
    ]
