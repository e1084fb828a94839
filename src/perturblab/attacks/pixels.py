"""A model seen from outside: pixels in, logits out; and attacked without a trace."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_SMALL = 2**16  # values; what a forward pass moves (batch statistics, counts of draws) is small, noise masks are not


class PixelModel(nn.Module):
    """A net with its normalisation inside, so that attacks work in pixel units.

    Args:
        net: from normalised images to logits (N, classes).
        mean: per channel, for pixels in [0, 1].
        std: per channel, for pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        device = next((p.device for p in net.parameters()), torch.device("cpu"))
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, device=device).view(1, -1, 1, 1), persistent=False)
        self.training = net.training  # not train(), which would put every part of the net in one mode

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (N, C, H, W) in [0, 1] to logits (N, classes)."""
        logits: Tensor = self.net((x - self.mean) / self.std)
        return logits


def to_pixels(images: Tensor) -> Tensor:
    """Convert stored images to pixels.

    Args:
        images: uint8, (N, C, H, W).

    Returns:
        float32 in [0, 1], (N, C, H, W).
    """
    return images.float().div_(255)


@contextmanager
def untouched(model: nn.Module, *, training: bool | None = None, seed: int | None = None) -> Iterator[None]:
    """Leave a model and the global random state as they were.

    Args:
        model: its modes, buffers and counts of draws are put back; parameters and their gradients are not touched by
            any attack.
        training: put it in this mode inside.
        seed: of the global random state inside (dropout takes no generator).
    """
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.numel() <= _SMALL}
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if seed is not None:
            torch.manual_seed(seed)
        if training is not None:
            model.train(training)
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    # What did not change is left alone: a graph that holds it could not be gone through any more.
                    if name in buffers and not torch.equal(buffer, buffers[name]):
                        buffer.copy_(buffers[name])


@contextmanager
def traceless(model: nn.Module) -> Iterator[None]:
    """Leave a model and the global random state as they were where the model, or a part of it, is in training mode.

    There every forward pass moves batch statistics and draws dropout. A model in eval mode costs nothing and is not put
    back: what one that is random even then draws moves its state on, so that a verdict repeats no draw of the attack.

    Args:
        model: its modes stay as they are inside, too.
    """
    if any(module.training for module in model.modules()):
        with untouched(model):
            yield
    else:
        yield


class Frozen(nn.Module):
    """A random net with its randomness fixed: every forward pass draws the same.

    What a net draws for all images together, such as masks, is then the same for an image in any batch. What it draws
    row by row, such as partners within the batch, is so in the same batch alone: there the net has to draw one for all
    rows, as `perturblab.layers.inference.InferenceBatchOut` does in place of BatchOut that is active in evaluation.

    Args:
        net: from images to logits.
        seed: of the global random state in every forward pass.
    """

    def __init__(self, net: nn.Module, seed: int = 0) -> None:
        super().__init__()
        self.net = net
        self.seed = seed
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        with untouched(self.net, seed=self.seed):
            logits: Tensor = self.net(x)
        return logits
