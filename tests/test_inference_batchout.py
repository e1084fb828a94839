"""BatchOut at inference, against a plain loop."""

import pytest
import torch
from torch import nn

from perturblab.layers import BatchOut, Mixing, inference_batchout


def net() -> nn.Sequential:
    torch.manual_seed(0)
    site = BatchOut(Mixing(eta=0.3, k=0.5), generator=torch.Generator().manual_seed(0))
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), site, nn.ReLU(), nn.Linear(6, 3)).eval()


@torch.no_grad()
@pytest.mark.parametrize("vote", [False, True])
def test_every_image_meets_every_reference_at_every_site(vote: bool) -> None:
    model, x, references = net(), torch.randn(5, 1, 2, 2), torch.randn(3, 1, 2, 2)
    want = torch.zeros(5, 3)
    for row in range(5):
        for reference in references:
            own, other = (model[1](image.flatten()) for image in (x[row], reference))
            logits = model[4]((own + 0.3 * (other - own)).relu())
            want[row] += nn.functional.one_hot(logits.argmax(), 3) if vote else logits.softmax(0)
    torch.testing.assert_close(inference_batchout(model, x, references, vote=vote), want / 3)
    torch.testing.assert_close(want.sum(1), torch.full((5,), 3.0))


def test_the_net_is_the_identity_again_afterwards() -> None:
    model, x = net(), torch.randn(4, 1, 2, 2)
    before = model(x)
    inference_batchout(model, x, x[:1])
    assert torch.equal(model(x), before)


def test_no_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="references holds no image"):
        inference_batchout(net(), torch.randn(4, 1, 2, 2), torch.empty(0, 1, 2, 2))
