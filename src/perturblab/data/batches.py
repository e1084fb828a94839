"""Augmentation and normalisation of whole batches, as tensor operations."""

import torch
from torch import Tensor
from torch.nn import functional

from perturblab.data.known import Preparation


def normalise(images: Tensor, prep: Preparation) -> Tensor:
    """Turn pixels into network inputs: ``(x / 255 - mean) / std`` per channel.

    Args:
        images: uint8, (N, C, H, W).
        prep: mean and standard deviation, for pixels in [0, 1].

    Returns:
        float32, (N, C, H, W), on the device of ``images``.
    """
    mean, std = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (prep.mean, prep.std))
    return images.float().div_(255).sub_(mean).div_(std)


def augment(images: Tensor, prep: Preparation, generator: torch.Generator) -> Tensor:
    """Crop each image at random from its zero-padded self, then mirror half of the crops.

    Padding is black pixels (0 before normalisation), as in the published code.

    Args:
        images: uint8, (N, C, H, W).
        prep: ``crop_padding`` pixels on every side, ``flip`` left to right.
        generator: draws, in this order, N vertical and N horizontal offsets (one (2, N) tensor), then N flips.

    Returns:
        uint8, (N, C, H, W). Without cropping and flipping: ``images`` itself, and nothing is drawn.
    """
    if not prep.crop_padding and not prep.flip:
        return images
    offsets, flips = draw(len(images), prep, generator)
    return _crop_and_flip(images, offsets.to(images.device), flips.to(images.device), prep.crop_padding)


def draw(count: int, prep: Preparation, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the crops and flips of one batch for `augment`.

    Args:
        count: images in the batch, N.
        prep: the ranges of the draws.
        generator: source of the draws.

    Returns:
        Offsets (2, N), int64 in [0, 2 * crop_padding]: vertical, horizontal; flips (N,), bool.
    """
    device = generator.device
    places = 2 * prep.crop_padding + 1
    offsets = torch.randint(places, (2, count), generator=generator, device=device)
    flips = torch.randint(2 if prep.flip else 1, (count,), generator=generator, device=device)
    return offsets, flips.bool()


def _crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, padding: int) -> Tensor:
    count, channels, height, width = images.shape
    padded = functional.pad(images, (padding,) * 4)
    rows = offsets[0, :, None] + torch.arange(height, device=images.device)  # (N, H)
    columns = torch.arange(width, device=images.device)
    columns = offsets[1, :, None] + torch.where(flips[:, None], width - 1 - columns, columns)  # (N, W)
    # One gather crops and flips: an index into the flattened padded image, shared by the channels.
    index = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]  # (N, H, W)
    index = index.view(count, 1, -1).expand(-1, channels, -1)
    return padded.view(count, channels, -1).gather(2, index).view(images.shape)
