"""Adversarial images of an unfinished point, kept on disk so that a stop costs one batch, not the hour before it."""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from perturblab.system import files

UNFINISHED = ".unfinished"  # in place of the .json of the points
_FORMAT = "1"


class Unfinished:
    """Batches that one attack has made at one radius, kept on disk until the point is measured.

    They are written every `files.SAVE_EVERY` seconds. A file of the very same point is taken over; any other file is
    ignored.

    Args:
        path: the file; None to keep nothing.
        key: all that the images depend on, as plain data.
    """

    def __init__(self, path: Path | None = None, key: Sequence[Any] = ()) -> None:
        self.path = path
        self.key = json.dumps([_FORMAT, *key])
        self.made: list[Tensor] = []
        self.parts = Counter[str]()
        self.before = 0.0
        self._began = self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent on all batches, including the calls that were stopped."""
        return self.before + time.monotonic() - self._began

    def resume(self, like: Tensor, generator: torch.Generator) -> int:
        """Take over the batches of a stopped call, and restore the state of the generator.

        Args:
            like: (N, C, H, W), the clean images; adversarial ones get their type, device and order in memory.
            generator: of the attack.

        Returns:
            Images done.
        """
        if self.path is None or not self.path.is_file():
            return 0
        # Batches that cannot be read, or are of another point, are made anew.
        with contextlib.suppress(safetensors.SafetensorError, OSError, KeyError, ValueError):
            with safetensors.safe_open(self.path, "pt") as file:
                labels = file.metadata() or {}
                if labels.get("key") != self.key:
                    return 0
                images, state = file.get_tensor("images"), file.get_tensor("generator")
            self.parts, self.before = Counter(json.loads(labels["parts"])), float(labels["seconds"])
            generator.set_state(state)
            self.made = [torch.empty_like(like[: len(images)]).copy_(images)]
            return len(images)
        return 0

    def add(self, batch: Tensor, parts: Mapping[str, int], generator: torch.Generator) -> None:
        """Add a batch, and write all of them if the last write is long enough ago.

        Args:
            batch: adversarial images, (N, C, H, W).
            parts: part of AutoAttack -> how many of these images it left right; 0 for a part without images.
            generator: in the state in which the next batch begins.

        Raises:
            UserError: the file cannot be written.
        """
        self.made.append(batch)
        self.parts.update(parts)  # adds
        if self.path is None or time.monotonic() - self._saved < files.SAVE_EVERY:
            return
        tensors = {"images": torch.cat(self.made).cpu().contiguous(), "generator": generator.get_state()}
        labels = {"key": self.key, "parts": json.dumps(self.parts), "seconds": str(self.seconds)}
        files.write_atomically(self.path, safetensors.torch.save(tensors, labels))
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Delete the file: the point is measured."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
