"""BatchOut at inference: every image is moved towards reference images, and the answers are averaged."""

import torch
from torch import Tensor, nn

from perturblab.layers.batchout import batch_step


@torch.no_grad()
def inference_batchout(model: nn.Module, x: Tensor, references: Tensor, *, vote: bool = False) -> Tensor:
    """Ask a net about every image once for each reference, with the image's features moved towards the reference's.

    Args:
        model: from images to logits, in eval mode, with BatchOut in it; every site moves all rows by its own magnitude.
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
    if not len(references):
        raise ValueError("references holds no image; give at least one")
    count, answers = len(x), []
    partners = torch.full((count + 1,), count, device=x.device)  # the reference comes last, and stays as it is
    for reference in references.split(1):
        with batch_step(active=True, partners=partners):
            logits = model(torch.cat([x, reference])).float()[:count]
        chosen = nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()
        answers.append(chosen if vote else logits.softmax(1))
    return torch.stack(answers).mean(0)
