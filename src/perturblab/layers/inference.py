"""BatchOut at inference: every image is moved towards reference images, and the answers are averaged."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from perturblab.layers.mixing import batch_step, new_counter, next_draw


@torch.no_grad()
def inference_batchout(model: nn.Module, x: Tensor, references: Tensor, *, vote: bool = False) -> Tensor:
    """Ask a net about every image once for each reference, with the image's features moved towards the reference's.

    Args:
        model: from images to logits, in eval mode, with BatchOut in it; every site moves all rows by one magnitude.
        x: (N, C, H, W).
        references: (R, C, H, W), such as training images.
        vote: count the answers instead of averaging the probabilities.

    Returns:
        Probabilities, or shares of the votes, (N, classes).

    Raises:
        ValueError: no reference.

    Reference:
        github.com/Hrushikesh-github/Batchout-Robustness-method, inference/.
    """
    answers = []
    for logits in _asked(model, x, references):
        chosen = nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()
        answers.append(chosen if vote else logits.softmax(1))
    return torch.stack(answers).mean(0)


def inference_logits(model: nn.Module, x: Tensor, references: Tensor) -> Tensor:
    """Compute the logarithm of `inference_batchout`'s probabilities, with the true derivative that an attack needs.

    Args:
        model: from images to logits, in eval mode, with BatchOut in it.
        x: (N, C, H, W).
        references: (R, C, H, W).

    Returns:
        (N, classes), differentiable with respect to ``x`` whatever the sites detach: their constants are made for
        training, and in an attack they would mask a part of the gradient.

    Raises:
        ValueError: no reference.
    """
    answers = [logits.log_softmax(1) for logits in _asked(model, x, references, detach=False)]
    return torch.stack(answers).logsumexp(0) - math.log(len(references))


def _asked(model: nn.Module, x: Tensor, references: Tensor, *, detach: bool | None = None) -> Iterator[Tensor]:
    """Logits (N, classes) beside each of the references (R, C, H, W)."""
    if not len(references):
        raise ValueError("references holds no image; give at least one")
    for reference in references.split(1):
        with batch_step(active=True, towards=-1, detach=detach):
            logits = model(torch.cat([x, reference])).float()[: len(x)]
        yield logits


class InferenceBatchOut(nn.Module):
    """A net with BatchOut at inference as one model, from images to logits, which can be attacked.

    What it says of an image depends on no other image of the batch: a draw is one reference and one magnitude a site,
    the same for all. So in `perturblab.attacks.Frozen` its draw is one and the same in batches of any size, where
    partners within the batch would be others in another one.

    Args:
        net: from images to logits, in eval mode, with BatchOut in it.
        references: (R, C, H, W), in the units that ``net`` takes.
        draws: references that every pass draws anew, with replacement; by default all are used, each once. A net that
            draws is random: attack it through the expectation over several passes.
        generator: decides the draws.

    Raises:
        ValueError: no reference, no draw, or draws without a generator.
    """

    references: Tensor
    drawn: Tensor

    def __init__(
        self,
        net: nn.Module,
        references: Tensor,
        *,
        draws: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not len(references):
            raise ValueError("references holds no image; give at least one")
        if draws is not None and (draws < 1 or generator is None):
            raise ValueError(f"draws is {draws} and generator {generator}; choose at least 1, with a torch.Generator")
        self.net = net
        self.draws = draws
        self.register_buffer("references", references, persistent=False)
        if generator is not None:
            self.register_buffer("drawn", new_counter(generator), persistent=False)
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to log-probabilities (N, classes), as `inference_logits`."""
        references = self.references
        if self.draws is not None:
            chosen = torch.randint(len(references), (self.draws,), generator=next_draw(self.drawn))
            references = references[chosen.to(references.device)]
        return inference_logits(self.net, x, references)


class ActiveBatchOut(nn.Module):
    """A published mistake: a net whose BatchOut mixes in evaluation too (github.com/Hrushikesh-github/BatchOut).

    Args:
        net: from images to logits.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        with batch_step(active=True):
            logits: Tensor = self.net(x)
        return logits
