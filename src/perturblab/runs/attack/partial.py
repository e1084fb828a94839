"""Adversarial images of a point that is still being measured: a stop costs a batch, not the hour before it."""

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
    """The batches that one attack at one radius has made, on the disk until it is measured.

    They are written every `files.SAVE_EVERY` seconds. What is found there is taken over where it is of the very same
    point, and left alone otherwise.

    Args:
        path: the file; without one nothing is kept.
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
        """Spent on all batches, also by the calls that were stopped."""
        return self.before + time.monotonic() - self._began

    def resume(self, like: Tensor, generator: torch.Generator) -> int:
        """Take over what a call that was stopped has left, and put the generator where it stood.

        Args:
            like: (N, C, H, W), the clean images; adversarial ones get their type, device and order in memory.
            generator: of the attack.

        Returns:
            Images done.
        """
        if self.path is None or not self.path.is_file():
            return 0
        # What cannot be read, or is not ours, is made anew.
        with contextlib.suppress(safetensors.SafetensorError, OSError, KeyError, ValueError):
            with safetensors.safe_open(self.path, "pt") as file:
                said = file.metadata() or {}
                if said.get("key") != self.key:
                    return 0
                images, state = file.get_tensor("images"), file.get_tensor("generator")
            self.parts, self.before = Counter(json.loads(said["parts"])), float(said["seconds"])
            generator.set_state(state)
            self.made = [torch.empty_like(like[: len(images)]).copy_(images)]
            return len(images)
        return 0

    def add(self, batch: Tensor, parts: Mapping[str, int], generator: torch.Generator) -> None:
        """Take a batch that was made, and write all of them when the last writing is long enough ago.

        Args:
            batch: (n, C, H, W).
            parts: of AutoAttack, how many of these images each of its parts left right; one that had none to attack
                left none.
            generator: as the next batch will find it.

        Raises:
            UserError: the file cannot be written.
        """
        self.made.append(batch)
        self.parts.update(parts)  # adds
        if self.path is None or time.monotonic() - self._saved < files.SAVE_EVERY:
            return
        tensors = {"images": torch.cat(self.made).cpu().contiguous(), "generator": generator.get_state()}
        said = {"key": self.key, "parts": json.dumps(self.parts), "seconds": str(self.seconds)}
        files.write_atomically(self.path, safetensors.torch.save(tensors, said))
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Delete the file: the point is measured."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
