"""A trained net as one ONNX file, written only if it answers as the net does."""

import copy
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perturblab.attacks.pixels import to_pixels
from perturblab.errors import UserError
from perturblab.layers.kernels import published
from perturblab.layers.masks import Masks, store_masks
from perturblab.runs.open import open_trained
from perturblab.system.extras import require
from perturblab.system.files import write_atomically
from perturblab.system.terminal import Show

TOLERANCE = 1e-4  # of a logit, relative to the largest one where that is above 1
_IMAGES = 1000  # real test images that are compared
_BATCHES = (1, 7, 64)  # the batch is dynamic, so several sizes are tried


class MismatchError(AssertionError):
    """The exported file does not answer as the net does; nothing was written."""


@dataclass(frozen=True)
class Exported:
    """The result of comparing a net with its ONNX file.

    Args:
        images: real test images that were compared.
        largest: largest absolute difference of a logit.
        scale: largest absolute logit of the net.
        agreeing: images that get the same answer from both.
    """

    images: int
    largest: float
    scale: float
    agreeing: int

    @property
    def holds(self) -> bool:
        """Say whether the file answers as the net does, up to rounding."""
        return self.largest <= TOLERANCE * max(1.0, self.scale) and self.agreeing == self.images


def export_onnx(folder: Path, path: Path, show: Show, *, dataroot: str | None = None) -> Exported:
    """Export a run's net, after comparing the export with the net on real test images.

    The graph goes from ``pixels``, float32 (N, C, H, W) in [0, 1] for any N, to ``logits``, (N, classes); its
    normalisation is inside.

    Args:
        folder: the run's folder.
        path: a new file, ``NAME.onnx``; missing folders are made, and all weights and masks are in it.
        show: where progress goes.
        dataroot: where the data set is looked for first; the run's by default.

    Returns:
        The comparison.

    Raises:
        UserError: a missing package, another name or one that is taken, no such run, a net whose forward pass is
            random.
        MismatchError: the file answers otherwise; nothing was written.
    """
    require("onnx", "onnx", "onnxscript", "onnxruntime", feature="export --onnx")
    _check_name(path)
    run = open_trained(folder, show, {"device": "cpu"} | ({} if dataroot is None else {"dataroot": dataroot}))
    _refuse_random(run.model)
    show.say(f"exporting {run.config.net}")
    content = onnx_bytes(run.in_pixels, run.images.image_size)
    pixels = to_pixels(run.images.test.images[:_IMAGES])
    show.say(f"comparing the answers on {len(pixels)} test images")
    comparison = compare_answers(run.in_pixels, content, pixels)
    if not comparison.holds:
        raise MismatchError(
            f"the exported net differs from the run on {comparison.images} test images: by {comparison.largest:.3g} in "
            f"a logit (largest logit {comparison.scale:.3g}), {comparison.agreeing} same answers; nothing was written"
        )
    write_atomically(path, content)
    return comparison


def _check_name(path: Path) -> None:
    """Refuse a name without .onnx, and one that exists: a run's record or weights could not be restored."""
    if path.suffix != ".onnx":
        near = path / "net.onnx" if path.is_dir() else path.with_name(f"{path.stem or 'net'}.onnx")
        raise UserError(f"--onnx got {path}; expected a name that ends in .onnx, such as {near}")
    if os.path.lexists(path):
        raise UserError(f"{path} exists and is never overwritten; choose another name")


def _refuse_random(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, Masks) and module.noise.redraw_masks == "always":
            raise UserError(f"{name} draws new masks at every forward pass, which no graph can; train with fixed masks")


def onnx_bytes(model: nn.Module, image_size: tuple[int, int, int]) -> bytes:
    """Export a net to ONNX, for batches of any size, with everything in one file.

    Args:
        model: from images (N, C, H, W) to logits (N, classes), in eval mode on the CPU.
        image_size: (C, H, W).
    """
    example = torch.zeros(2, *image_size)
    with _quietly(), published(), torch.no_grad():  # as published: with operations that ONNX knows
        program: Any = torch.onnx.export(
            store_masks(copy.deepcopy(model)),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    content: bytes = program.model_proto.SerializeToString()
    return content


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the exporter's remarks about torchvision and about its own future."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.setLevel(before)


@torch.no_grad()
def compare_answers(model: nn.Module, content: bytes, pixels: Tensor) -> Exported:
    """Compare the answers of a net and of its export on the same images, in batches of several sizes.

    Args:
        model: from pixels to logits (N, classes), in eval mode on the CPU.
        content: the ONNX file.
        pixels: float32 in [0, 1], (N, C, H, W).
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    largest, scale, agreeing = 0.0, 0.0, 0
    for batch in _batches(pixels):
        want = model(batch)
        got = torch.from_numpy(session.run(["logits"], {"pixels": batch.numpy()})[0])
        largest = max(largest, float((got - want).abs().max()))
        scale = max(scale, float(want.abs().max()))
        agreeing += int((got.argmax(1) == want.argmax(1)).sum())
    return Exported(len(pixels), largest, scale, agreeing)


def _batches(pixels: Tensor) -> Iterator[Tensor]:
    """Yield every image once: one alone, then a few, then the rest in equal parts."""
    start, sizes = 0, iter(_BATCHES)
    size = 0
    while start < len(pixels):
        size = next(sizes, size)
        yield pixels[start : start + size].contiguous()
        start += size
