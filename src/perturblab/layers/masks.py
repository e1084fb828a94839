"""Noise masks: how they are drawn, kept and handed to a layer."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from perturblab.layers.kernels.native import as_stored
from perturblab.layers.kernels.reference import scaled
from perturblab.records.choices import MaskMemory, NoiseType, RedrawMasks, check_choice

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class MaskOptions:
    """Options of masks that every net with masks has, named as on the command line.

    Args:
        level: factor on the drawn values; 0 makes the layer equal to its mask-free twin.
        constant_masks: one value a mask instead of one a pixel: a random threshold without a place (control).
        redraw_masks: "never"; "train": new masks at every training forward, the first ones in eval;
            "always": new masks at every forward (control).
        untied_bias: the mask is added after the activation, as an untied bias (control).
        mask_memory: how the masks are kept: "fp32"; "bf16", rounded, in half the memory; or "seed": not at all, they
            are drawn again whenever they are needed, with the values that "fp32" would keep.

    Raises:
        ValueError: a setting is out of range, or settings exclude each other.
    """

    level: float = 0.1
    constant_masks: bool = False
    redraw_masks: str = "never"
    untied_bias: bool = False
    mask_memory: str = "fp32"

    def __post_init__(self) -> None:
        if not math.isfinite(self.level):
            raise ValueError(f"level is {self.level}; choose a finite factor")
        check_choice("redraw_masks", self.redraw_masks, RedrawMasks)
        check_choice("mask_memory", self.mask_memory, MaskMemory)
        if self.mask_memory == "seed" and self.redraw_masks != "never":
            raise ValueError("masks that are redrawn have a seed of their own; drop mask_memory seed or redraw_masks")

    def noise(self) -> "Noise":
        """Select the options of masks from the options of a net."""
        return Noise(**{name: value for name in _NOISE if (value := getattr(self, name, None)) is not None})


@dataclass(frozen=True)
class Noise(MaskOptions):
    """How the masks of a layer are drawn and used: the options above, and these.

    Args:
        nmasks: masks for each input channel (the fan-out).
        unique_masks: every input channel has its own masks; else all channels share one set.
        train_masks: the masks are parameters instead of buffers.
        noise_type: "uniform", in [-1, 1), or "normal", with unit variance.

    Raises:
        ValueError: a setting is out of range, or settings exclude each other.
    """

    nmasks: int = 1
    unique_masks: bool = True
    train_masks: bool = False
    noise_type: str = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nmasks < 1:
            raise ValueError(f"nmasks is {self.nmasks}; a perturbation layer needs at least 1 mask for each channel")
        check_choice("noise_type", self.noise_type, NoiseType)
        if self.train_masks and self.mask_memory != "fp32":
            raise ValueError(f"trained masks are kept as fp32, and mask_memory is {self.mask_memory!r}; drop one")
        if self.train_masks and self.redraw_masks != "never":
            got = self.redraw_masks
            raise ValueError(f"masks cannot be both trained and redrawn (redraw_masks is {got!r}); drop one")


_NOISE = tuple(field.name for field in fields(Noise))


def draw_masks(shape: tuple[int, ...], kind: str, generator: torch.Generator) -> Tensor:
    """Draw mask values before the level is applied.

    Args:
        shape: (C or 1, M, H or 1, W or 1).
        kind: "uniform", in [-1, 1), or "normal".
        generator: the stream that decides the values.

    Returns:
        float32 values of that shape, on the default device (no values on the meta device).

    Reference:
        Juefei-Xu, Boddeti, Savvides, Perturbative Neural Networks, CVPR 2018, section 3.
    """
    values = torch.empty(shape)
    if values.is_meta:
        return values
    if kind == "normal":
        return values.normal_(generator=generator)
    return values.uniform_(-1.0, 1.0, generator=generator)


class Masks(nn.Module):
    """The masks of one layer; calling it gives level x mask, rounded once.

    They are a buffer (a parameter when trained), so that they are saved, loaded and moved with the model: the
    authors' code kept them in an ordinary tensor, lost them on save and drew others on resume. They are stored as
    (H, W, M, C), the order in which the fast path reads them.

    Args:
        channels: input channels C of the layer.
        size: (H, W) of its input.
        noise: how the masks are drawn and used.
        generator: the stream that decides their values.
    """

    fixed = ("stored",)

    stored: Tensor
    state: Tensor
    digest: Tensor
    draws: Tensor
    draw_seed: Tensor

    def __init__(self, channels: int, size: tuple[int, int], noise: Noise, *, generator: torch.Generator) -> None:
        super().__init__()
        self.channels = channels
        self.noise = noise
        place = (1, 1) if noise.constant_masks else size
        self.shape = (channels if noise.unique_masks else 1, noise.nmasks, *place)
        state = generator.get_state()
        value = draw_masks(self.shape, noise.noise_type, generator)
        if noise.mask_memory == "seed":
            self.register_buffer("state", state)
            self.register_buffer("digest", _digest(value))
        elif noise.train_masks:
            self.stored = nn.Parameter(as_stored(value))
        else:
            kept = value.bfloat16() if noise.mask_memory == "bf16" else value
            self.register_buffer("stored", as_stored(kept))
        if noise.redraw_masks != "never":
            # A counter and a seed instead of a generator: both are saved, copied and resumed like any tensor.
            self.register_buffer("draw_seed", torch.randint(2**62, (), generator=generator, device="cpu"))
            self.register_buffer("draws", torch.zeros((), dtype=torch.int64, device="cpu"))

    @property
    def maps(self) -> int:
        """How many perturbed maps they make of an input: C * M."""
        return self.channels * self.noise.nmasks

    @property
    def value(self) -> Tensor:
        """The masks before the level is applied, (C or 1, M, H or 1, W or 1): a view, or drawn again from the seed."""
        if self.noise.mask_memory != "seed":
            return self.stored.permute(3, 2, 0, 1)
        if self.digest.is_meta:
            return torch.empty(self.shape, device="meta")
        if torch.compiler.is_exporting():
            raise ValueError(
                "masks of mask_memory seed cannot be exported: a graph draws nothing; call store_masks(model)"
            )
        draw = _redrawn_in_graph if torch.compiler.is_compiling() else _redrawn
        return as_stored(draw(self.state, self.shape, self.noise.noise_type).to(self.digest.device)).permute(3, 2, 0, 1)

    def forward(self) -> Tensor:
        """Return level x mask, (C or 1, M, H or 1, W or 1)."""
        masks = scaled(self.drawn(), self.noise.level)
        return masks.to(self.stored.dtype) if self.noise.mask_memory == "fp32" else masks

    def store(self) -> None:
        """Keep masks that are drawn again from their seed as values, from now on; others are kept already."""
        if self.noise.mask_memory != "seed":
            return
        stored = as_stored(self.value)
        del self.state, self.digest
        self.noise = replace(self.noise, mask_memory="fp32")
        self.register_buffer("stored", stored)

    def drawn(self) -> Tensor:
        """Return the masks before the level is applied, new ones if redrawn: (C or 1, M, H or 1, W or 1)."""
        redraw = self.noise.redraw_masks == "always" or (self.noise.redraw_masks == "train" and self.training)
        return self._fresh() if redraw else self.value

    def _fresh(self) -> Tensor:
        if torch.compiler.is_exporting():
            raise ValueError("masks that are redrawn at every forward pass cannot be exported: a graph draws nothing")
        seed = (int(self.draw_seed) + int(self.draws)) % 2**63
        self.draws += 1
        values = draw_masks(self.shape, self.noise.noise_type, torch.Generator().manual_seed(seed))
        return values.to(self.stored)

    def extra_repr(self) -> str:
        return f"{self.shape}, {self.noise}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.noise.mask_memory == "seed" and not torch.equal(_digest(self.value), self.digest.cpu()):
            errors: list[str] = args[-1]
            errors.append(f"the masks of {prefix.rstrip('.')} drawn again are not those that were saved")


def _redrawn(state: Tensor, shape: Sequence[int], kind: str) -> Tensor:
    """Draw masks from a generator in this state, on the CPU."""
    generator = torch.Generator()
    generator.set_state(state.cpu())
    return draw_masks(tuple(shape), kind, generator)


# To a compiler a single operation: it cannot look into a generator, and need not.
_redrawn_in_graph = torch.library.custom_op(
    "perturblab::redrawn", mutates_args=(), schema="(Tensor state, SymInt[] shape, str kind) -> Tensor"
)(_redrawn)


@_redrawn_in_graph.register_fake
def _(state: Tensor, shape: Sequence[int], kind: str) -> Tensor:
    return torch.empty(tuple(shape), device="cpu")


def store_masks(model: Model) -> Model:
    """Keep masks that are drawn again from their seed (``mask_memory="seed"``) as values, in place, for an export.

    Args:
        model: any model; afterwards it answers the same, bit for bit, and its state is that of ``mask_memory="fp32"``.

    Returns:
        The model.
    """
    for module in model.modules():
        if isinstance(module, Masks):
            module.store()
    return model


def fixed_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Find the buffers that never change: masks that are not trained, and anchors; a module names them in ``fixed``.

    Args:
        model: any model.

    Returns:
        Name in the state dict -> value.
    """
    return {
        f"{name}.{key}" if name else key: module._buffers[key]
        for name, module in model.named_modules()
        for key in getattr(module, "fixed", ())
        if key in module._buffers
    }


def _digest(value: Tensor) -> Tensor:
    """Compute the sha256 of mask values, uint8 (32,); nothing on the meta device."""
    if value.is_meta:
        return torch.empty(32, dtype=torch.uint8)
    found = hashlib.sha256(b"mt19937" + value.cpu().contiguous().numpy().tobytes()).digest()
    return torch.tensor(list(found), dtype=torch.uint8, device="cpu")
