"""BatchOut at inference, against a plain loop; and attacked."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nets import seeded
from perturblab.attacks import (
    Effort,
    Ensemble,
    Frozen,
    Threat,
    autoattack,
    fgsm,
    input_gradient,
    pgd,
    still_right,
    violations,
)
from perturblab.layers import BatchOut, Mixing, batch_step, inference_batchout
from perturblab.layers.inference import ActiveBatchOut, InferenceBatchOut, inference_logits
from told import in_order


def net(**mixing: Any) -> nn.Sequential:
    torch.manual_seed(0)
    site = BatchOut(Mixing(**{"eta": 0.3, "k": 0.5} | mixing), generator=seeded())
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), site, nn.ReLU(), nn.Linear(6, 3)).eval()


def deep(seed: int = 0, **mixing: Any) -> nn.Sequential:
    """Two sites, and images of 64 pixels."""
    torch.manual_seed(seed)
    sites = [BatchOut(Mixing(**mixing), generator=seeded(seed + n)) for n in range(2)]
    first, second, last = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)
    return nn.Sequential(nn.Flatten(), first, sites[0], nn.ReLU(), second, sites[1], nn.ReLU(), last).eval()


def images(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=seeded(seed))


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
    inference_logits(model, x, x[:1])
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("ask", [inference_batchout, inference_logits, InferenceBatchOut])
def test_no_reference_is_refused(ask: Callable[..., Any]) -> None:
    given = (net(), torch.empty(0, 1, 2, 2))
    with pytest.raises(ValueError, match=in_order("references image")):
        ask(*given) if ask is InferenceBatchOut else ask(given[0], torch.randn(4, 1, 2, 2), given[1])


@pytest.mark.parametrize("given", [{"draws": 0, "generator": seeded()}, {"draws": 2}])
def test_draws_need_a_generator(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=in_order(f"draws {given['draws']} generator 1")):
        InferenceBatchOut(net(), torch.randn(2, 1, 2, 2), **given)


# --- one draw for all rows ------------------------------------------------------------------------------------------

KINDS = [
    {"eta": 0.5},
    {"eta": 0.5, "k": 0.0},
    {"eta": "U[0.2,0.9]", "eta_per": "image"},
    {"eta": "U[0.2,0.9]", "eta_per": "image", "shared": "both"},
    {"eta": 0.5, "partners": "noise"},
    {"eta": "0.3:0.5,0.8:0.5", "eta_per": "image", "rows": "random", "partners": "different-class"},
]


@torch.no_grad()
@pytest.mark.parametrize("mixing", KINDS, ids=str)
def test_what_one_row_meets_depends_on_no_row_beside_it(mixing: dict[str, Any]) -> None:
    x, reference = images(9), images(1, 2)
    answers = []
    for rows in ([*range(9)], [4], [8, 4, 1]):
        with batch_step(active=True, towards=-1):
            answers.append(deep(**mixing)(torch.cat([x[rows], reference]))[rows.index(4)])
    plain = deep(**mixing)(x)[4]
    for answer in answers:
        torch.testing.assert_close(answer, answers[0], rtol=0, atol=1e-5)
        assert (answer - plain).abs().max() > 1e-3, "every row is moved"


def test_a_row_that_is_not_there_is_refused() -> None:
    for row in (3, -4):
        said = in_order(f"towards {row} expected 3 rows")
        with batch_step(active=True, towards=row), pytest.raises(ValueError, match=said):
            deep()(images(3))


@pytest.mark.parametrize("mixing", KINDS, ids=str)
def test_a_frozen_draw_is_the_same_in_a_batch_of_any_size(mixing: dict[str, Any]) -> None:
    """Partners within the batch are others in another batch, which was called frozen all the same."""
    x = images(500)
    model = InferenceBatchOut(deep(**mixing), images(50, 3), draws=1, generator=seeded())
    frozen = Frozen(model)
    with torch.no_grad():
        together = frozen(x)
        for rows in (slice(100), slice(250, 251), torch.randperm(500, generator=seeded())[:77]):
            torch.testing.assert_close(frozen(x[rows]), together[rows], rtol=0, atol=1e-5)
        assert (model(x) - together).abs().max() < 1e-5, "the draw that comes next"
        assert (model(x) - together).abs().max() > 1e-3, "and another one"
        within = Frozen(ActiveBatchOut(deep(eta=0.5)))
        assert (within(x)[:100] - within(x[:100])).abs().max() > 1e-2, "so it was"


# --- attacked -------------------------------------------------------------------------------------------------------


def test_log_probabilities_are_those_of_the_answers() -> None:
    model, x, references = deep(eta=0.4), images(7), images(5, 2)
    want = inference_batchout(model, x, references)
    torch.testing.assert_close(inference_logits(model, x, references).exp(), want)
    torch.testing.assert_close(InferenceBatchOut(model, references)(x).softmax(1), want)


def test_the_gradient_is_the_true_one_though_the_sites_detach() -> None:
    """Against finite differences, and against a net written out; the detached one is larger at every site."""
    model, x, references = deep(eta=0.4).double(), images(3).double(), images(4, 2).double()

    def written(x: Tensor) -> Tensor:
        answers = []
        for reference in references.split(1):
            own, other = model[1](x.flatten(1)), model[1](reference.flatten(1))
            own, other = model[4]((0.6 * own + 0.4 * other).relu()), model[4](other.relu())
            answers.append(model[7]((0.6 * own + 0.4 * other).relu()).softmax(1))
        return torch.stack(answers).mean(0).log()

    leaf, y = x.clone().requires_grad_(), torch.tensor([0, 3, 5])
    (want,) = torch.autograd.grad(nn.functional.cross_entropy(written(leaf), y, reduction="sum"), leaf)
    got, _ = input_gradient(InferenceBatchOut(model, references), x, y)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)
    published = [nn.functional.softmax(logits, 1) for logits in _detached(model, leaf, references)]
    loss = -torch.stack(published).mean(0).log().gather(1, y[:, None]).sum()
    (masked,) = torch.autograd.grad(loss, leaf)
    assert (masked - want).abs().max() > 0.2 * want.abs().max()


def _detached(model: nn.Module, x: Tensor, references: Tensor) -> list[Tensor]:
    found = []
    for reference in references.split(1):
        with batch_step(active=True, towards=-1):
            found.append(model(torch.cat([x, reference]))[: len(x)])
    return found


def test_a_site_alone_may_be_told_not_to_detach() -> None:
    site = BatchOut(Mixing(eta=0.25, k=1.0, partners="mutual"), generator=seeded())
    x = torch.rand(2, 3, generator=seeded(), dtype=torch.float64, requires_grad=True)
    for detach, want in ((None, torch.eye(2)), (True, torch.eye(2)), (False, 0.5 * torch.eye(2) + 0.25)):
        with batch_step(detach=detach):
            out = site(x)
        rows = torch.stack([torch.autograd.grad(out[i, 0], x, retain_graph=True)[0][:, 0] for i in range(2)])
        torch.testing.assert_close(rows, want.double())


def test_a_net_of_all_references_meets_every_attack_and_falls() -> None:
    model = InferenceBatchOut(deep(eta=0.4), images(6, 2))
    x = images(40)
    y = model(x).argmax(1)
    threat = Threat("linf", 0.2)
    found = {
        "fgsm": fgsm(model, x, y, threat),
        "pgd": pgd(model, x, y, threat, Effort(steps=10, restarts=1), generator=seeded()),
        "autoattack": autoattack(model, x, y, threat, Ensemble(attacks=("apgd-ce",)), generator=seeded()),
    }
    left = {name: int(still_right(model, x_adv, y).sum()) for name, x_adv in found.items()}
    assert left["pgd"] <= left["fgsm"] < 20
    assert left["autoattack"] <= left["fgsm"]
    assert not any(violations(x_adv, x, threat).any() for x_adv in found.values())


def test_a_net_that_draws_references_is_attacked_through_the_expectation() -> None:
    """Its mean over many passes is the net of all references, and the gradient follows that one's."""
    plain, x = deep(eta=0.4), images(40)
    references = images(6, 2)
    whole = InferenceBatchOut(plain, references)
    y = whole(x).argmax(1)
    model = InferenceBatchOut(plain, references, draws=1, generator=seeded(7))
    with torch.no_grad():
        passes = torch.stack([model(x).softmax(1) for _ in range(600)])
    assert not torch.equal(passes[0], passes[1])
    assert len({tuple(p[0].tolist()) for p in passes}) == 6
    torch.testing.assert_close(passes.mean(0), whole(x).softmax(1), rtol=0, atol=0.03)
    (many, _), (one, _) = (input_gradient(model, x, y, draws=n) for n in (60, 1))
    want, _ = input_gradient(whole, x, y)
    agree = [nn.functional.cosine_similarity(g.flatten(), want.flatten(), dim=0) for g in (many, one)]
    assert agree[0] > 0.98
    threat = Threat("linf", 0.2)
    found = pgd(model, x, y, threat, Effort(steps=10, restarts=2, draws=10), generator=seeded())
    assert still_right(whole, found, y).sum() <= still_right(whole, fgsm(whole, x, y, threat), y).sum() + 2 < 20
    assert not violations(found, x, threat).any()
