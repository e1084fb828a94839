"""BatchOut against plain loops over the paper's algorithm 1: the layer, its modes, gradients and types."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from mixing import KINDS, drawn, layer, looped, often, read, units
from perturblab.layers import PARTNERS, batch_step, batchout, equal_norm_noise
from told import in_order

# --- the algorithm --------------------------------------------------------------------------------------------------


def test_one_step_by_hand() -> None:
    x = torch.tensor([[0.0, 4.0], [8.0, 0.0], [1.0, 1.0]])
    out = batchout(x, torch.tensor([1, 2]), torch.tensor(0.25))
    assert out.tolist() == [[2.0, 3.0], [6.25, 0.25], [1.0, 1.0]]


@often
@given(data=st.data(), shape=st.lists(st.integers(1, 3), min_size=1, max_size=4), count=st.integers(1, 6))
def test_batchout_is_algorithm_1(data: st.DataObject, shape: list[int], count: int) -> None:
    moved = data.draw(st.integers(0, count))
    partners = data.draw(st.lists(st.integers(0, count - 1), min_size=moved, max_size=moved))
    eta = data.draw(st.floats(-1, 1))
    x = drawn(count, *shape)
    out = batchout(x, torch.tensor(partners, dtype=torch.int64), torch.tensor(eta, dtype=torch.float64))
    want = looped(x, partners, [eta] * moved, list(range(moved)))
    torch.testing.assert_close(out, want, rtol=1e-13, atol=1e-13)
    assert torch.equal(out[moved:], x[moved:]), "the others pass bit for bit"


@often
@given(data=st.data(), count=st.integers(1, 6))
def test_batchout_with_given_rows_and_a_magnitude_for_each(data: st.DataObject, count: int) -> None:
    rows = data.draw(st.lists(st.integers(0, count - 1), unique=True))
    partners = data.draw(st.lists(st.integers(0, count - 1), min_size=len(rows), max_size=len(rows)))
    etas = data.draw(st.lists(st.floats(-1, 1), min_size=len(rows), max_size=len(rows)))
    x = drawn(count, 2, 3)
    arguments = (torch.tensor(values, dtype=torch.int64) for values in (partners, rows))
    chosen, places = arguments
    out = batchout(x, chosen, torch.tensor(etas, dtype=torch.float64), places)
    torch.testing.assert_close(out, looped(x, partners, etas, rows), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("eta", [0.1, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_magnitude_may_be_a_number(eta: float, dtype: torch.dtype) -> None:
    x, noise, alike = drawn(4, 3).to(dtype), drawn(2, 3, seed=1), torch.tensor(eta, dtype=torch.float64)
    assert torch.equal(batchout(x, torch.tensor([3, 2]), eta), batchout(x, torch.tensor([3, 2]), alike))
    assert torch.equal(equal_norm_noise(x, noise, eta), equal_norm_noise(x, noise, alike))


def test_partners_are_taken_from_the_batch_as_it_came() -> None:
    """Row 0 moves, and row 1, whose partner it is, must not see that."""
    out = batchout(units(3), torch.tensor([1, 0]), torch.tensor(0.5))
    assert out.tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]


def test_a_row_that_is_its_own_partner_keeps_its_values() -> None:
    x = drawn(5, 7)
    partners = torch.tensor([3, 1, 2, 0, 4])
    out = batchout(x, partners, torch.tensor(0.3))
    assert [torch.equal(a, b) for a, b in zip(out, x, strict=True)] == [False, True, True, False, True]


@pytest.mark.parametrize(
    ("k", "count", "moved"),
    [
        (0.5, 8, 4),
        (0.5, 7, 3),
        (0.5, 9, 4),
        (0.5, 1, 0),
        (0.1, 19, 1),
        (0.29, 100, 29),
        (1.0, 7, 7),
        (0.0, 7, 0),
        (0, 7, 0),
        (1, 7, 1),
        (3, 7, 3),
        (12, 20, 12),  # the code of the reproduction takes 12 for a fraction: D18
        (7, 7, 7),
        (9, 7, 7),
    ],
)
def test_the_first_k_rows_are_moved(k: float, count: int, moved: int) -> None:
    """A fraction is rounded down, a count is never more than the batch; row 0 is among them (D3)."""
    out = layer(k=k, eta=0.25, partners="no-self")(units(count))
    assert [got is not None for got in read(out)] == [True] * moved + [False] * (count - moved)


@pytest.mark.parametrize("kind", [*PARTNERS, "noise"])
@pytest.mark.parametrize("k", [0, 0.0])
def test_no_rows_is_an_exact_no_op(k: float, kind: str) -> None:
    x = drawn(6, 2, 2)
    assert layer(k=k, partners=kind)(x) is x


@pytest.mark.parametrize("kind", [*PARTNERS, "noise"])
def test_a_magnitude_of_zero_is_an_exact_no_op(kind: str) -> None:
    x = drawn(6, 2, 2).requires_grad_()
    with batch_step(torch.tensor([0, 1, 2, 0, 1, 2])):
        out = layer(eta=0, k=1.0, partners=kind)(x)
    assert torch.equal(out, x)
    weights = drawn(6, 2, 2, seed=1)
    (out * weights).sum().backward()
    assert torch.equal(x.grad, weights)


@pytest.mark.parametrize("kind", [*PARTNERS, "noise"])
@pytest.mark.parametrize("k", [0.5, 1.0, 3])
def test_an_empty_batch_and_a_batch_of_one(kind: str, k: float) -> None:
    module = layer(eta=0.5, k=k, partners=kind)
    for count in (0, 1):
        x = drawn(count, 2, 3)
        with batch_step(torch.zeros(count, dtype=torch.int64)):
            out = module(x)
        assert out.shape == x.shape
        assert torch.equal(out, x) == (kind != "noise" or k == 0.5 or count == 0), "alone there is no other to mix with"


# --- modes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*PARTNERS, "noise"])
def test_eval_is_the_identity_and_draws_nothing(kind: str) -> None:
    """D2: the published layers went on mixing in evaluation. It asks for no labels and no step either."""
    module, x = layer(eta=0.5, k=1.0, partners=kind, shared="both").eval(), drawn(6, 2, 2)
    before = module.draws.clone()
    assert module(x) is x
    assert torch.equal(module.draws, before)


def test_inference_is_an_opt_in() -> None:
    module, x = layer(eta=0.5, k=1.0, partners="mutual", inference=True).eval(), units(4)
    want = looped(x, [3, 2, 1, 0], [0.5] * 4, [0, 1, 2, 3])
    assert torch.equal(module(x), want)
    assert torch.equal(module.train()(x), want)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("inference", [True, False])
def test_a_step_switches_the_sites_on_and_off(training: bool, inference: bool) -> None:
    module, x = layer(eta=0.5, k=1.0, partners="mutual", inference=inference).train(training), units(4)
    want = looped(x, [3, 2, 1, 0], [0.5] * 4, [0, 1, 2, 3])
    with batch_step(active=True):
        assert torch.equal(module(x), want)
    with batch_step(active=False):
        assert module(x) is x
    with batch_step():
        assert torch.equal(module(x), want) == (training or inference)
    assert torch.equal(module(x), want) == (training or inference), "the step has ended"


@pytest.mark.parametrize("k", [0, 1, 0.5])
def test_given_partners_are_used_for_all_rows(k: float) -> None:
    """Inference-time BatchOut of the reproduction: every row towards the first, with weight 1 - n."""
    module, x = layer(eta=0.3, k=k, partners="different-class").eval(), drawn(5, 4)
    with batch_step(active=True, partners=torch.zeros(5, dtype=torch.int64)):
        out = module(x)
    torch.testing.assert_close(out, looped(x, [0] * 5, [0.3] * 5, list(range(5))), rtol=1e-13, atol=1e-13)


def test_given_partners_do_not_switch_a_site_on() -> None:
    module, x = layer(k=1.0).eval(), drawn(5, 4)
    with batch_step(partners=torch.zeros(5, dtype=torch.int64)):
        assert module(x) is x


@pytest.mark.parametrize("count", [1, 4, 6])
def test_given_partners_that_do_not_fit_the_batch_are_refused(count: int) -> None:
    text = in_order(f"partners ({count},) expected (5,)")
    with batch_step(partners=torch.zeros(count, dtype=torch.int64)), pytest.raises(ValueError, match=text):
        layer()(drawn(5, 4))


def test_noise_goes_on_where_partners_are_given() -> None:
    module, x = layer(eta=0.3, k=0.5, partners="noise"), drawn(4, 5)
    twin = copy.deepcopy(module)
    with batch_step(partners=torch.zeros(4, dtype=torch.int64)):
        assert torch.equal(module(x), twin(x))
    with batch_step(partners=torch.zeros(4, dtype=torch.int64)):
        assert layer(k=0, partners="noise")(x) is x


def test_a_step_ends_with_an_error_too() -> None:
    with pytest.raises(KeyError), batch_step(active=True):
        raise KeyError
    x = units(4)
    assert layer(k=1.0).eval()(x) is x


# --- gradients ------------------------------------------------------------------------------------------------------


def derivative(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """d out[i] / d x[j] for rows of one value each, (N, N)."""
    return jacobian(lambda flat: function(flat[:, None])[:, 0], x[:, 0])


def test_the_derivative_is_the_identity() -> None:
    """Section 6.1 of the paper: the added part is a constant, so nothing flows to the partner."""
    partners = torch.tensor([2, 0, 2])
    have = derivative(lambda x: batchout(x, partners, torch.tensor(0.3)), drawn(5, 1))
    assert torch.equal(have, units(5))


@pytest.mark.parametrize("kind", [*PARTNERS, "noise"])
def test_the_derivative_of_the_layer_is_the_identity(kind: str) -> None:
    def call(x: Tensor) -> Tensor:
        with batch_step(torch.tensor([0, 1, 0, 1])):
            return layer(eta=0.3, k=1.0, partners=kind)(x)

    x = drawn(4, 1)
    assert not torch.equal(call(x), x)
    assert torch.equal(derivative(call, x), units(4))


def test_undetached_the_derivative_is_shared_with_the_partner() -> None:
    partners, eta = torch.tensor([2, 0, 2]), 0.3
    have = derivative(
        lambda x: batchout(x, partners, torch.tensor(eta, dtype=torch.float64), detach=False), drawn(5, 1)
    )
    want = units(5)
    for row, partner in enumerate(partners.tolist()):
        want[row, row] -= eta
        want[row, partner] += eta
    torch.testing.assert_close(have, want, rtol=1e-14, atol=1e-14)
    assert want[2, 2] == 1, "a row that is its own partner"


@pytest.mark.parametrize("kind", [*PARTNERS, "noise"])
def test_undetached_gradcheck(kind: str) -> None:
    labels = torch.tensor([0, 1, 0, 1])

    def call(x: Tensor) -> Tensor:
        with batch_step(labels):
            return layer(eta=0.3, k=0.75, partners=kind, detach=False)(x)

    assert torch.autograd.gradcheck(call, (drawn(4, 2, 2).requires_grad_(),))


@pytest.mark.parametrize("before", [nn.Sigmoid(), nn.Tanh(), nn.ReLU(inplace=False), nn.Softplus(), nn.Identity()])
@pytest.mark.parametrize("options", [{}, {"detach": False}, {"partners": "noise"}, {"rows": "random"}], ids=str)
def test_it_never_works_in_place(before: nn.Module, options: dict[str, Any]) -> None:
    """D3: the published layer wrote into its input, and after a sigmoid the backward pass failed."""
    x = drawn(6, 3).requires_grad_()
    features = before(x)
    value, version = features.detach().clone(), features._version
    out = layer(eta=0.5, k=1.0, **options)(features)
    assert torch.equal(features, value)
    assert features._version == version
    assert out.data_ptr() != features.data_ptr()
    assert not torch.equal(out, features)
    out.sum().backward()
    if options.get("detach", True):
        other = x.detach().clone().requires_grad_()
        before(other).sum().backward()
        assert torch.equal(x.grad, other.grad)


def test_a_relu_in_place_may_follow() -> None:
    x = drawn(6, 3).requires_grad_()
    out = nn.Sequential(nn.Sigmoid(), layer(eta=-0.9, k=0.5), nn.ReLU(inplace=True))(x)
    out.square().sum().backward()
    assert torch.isfinite(x.grad).all()


# --- noise of equal norm (equation 5) -------------------------------------------------------------------------------


@often
@given(count=st.integers(1, 5), shape=st.lists(st.integers(1, 3), min_size=1, max_size=3), eta=st.floats(-1, 1))
def test_equal_norm_noise_is_equation_5(count: int, shape: list[int], eta: float) -> None:
    x, noise = drawn(count, *shape), drawn(max(count - 1, 1), *shape, seed=1)
    out = equal_norm_noise(x, noise, torch.tensor(eta, dtype=torch.float64))
    want = x.flatten(1).tolist()
    for row, direction in enumerate(noise.flatten(1).tolist()):
        length = math.sqrt(sum(value**2 for value in want[row])) / math.sqrt(sum(value**2 for value in direction))
        want[row] = [value + eta * length * n for value, n in zip(want[row], direction, strict=True)]
    torch.testing.assert_close(out, torch.tensor(want, dtype=x.dtype).reshape(x.shape), rtol=1e-12, atol=1e-12)


def test_noise_of_the_layer_has_the_length_eta_times_that_of_the_features() -> None:
    x, module = drawn(8, 3, 4, 5), layer(eta=0.3, k=0.5, partners="noise")
    first, second = (module(x) - x for _ in range(2))
    for delta in (first, second):
        want = 0.3 * x.flatten(1).norm(dim=1)
        torch.testing.assert_close(delta.flatten(1).norm(dim=1)[:4], want[:4])
        assert not delta[4:].any()
    cosine = nn.functional.cosine_similarity(first[:4].flatten(1), second[:4].flatten(1))
    assert cosine.abs().max() < 0.6, "every call has its own directions"
    rows = nn.functional.cosine_similarity(first[0].flatten(), first[1].flatten(), dim=0)
    assert rows.abs() < 0.6, "and so has every row"


def test_directions_of_the_noise_are_spread_evenly() -> None:
    """Rows of length 1 moved by 1: the mean of a coordinate is 0 and its mean square 1 over their number."""
    x = torch.zeros(4000, 5, dtype=torch.float64)
    x[:, 0] = 1
    delta = layer(eta=1, k=1.0, partners="noise")(x) - x
    torch.testing.assert_close(delta.norm(dim=1), torch.ones(4000, dtype=torch.float64))
    assert delta.mean(0).abs().max() < 5 / math.sqrt(5 * 4000)
    assert (delta.square().mean(0) - 1 / 5).abs().max() < 5 * math.sqrt(2 / 25 / 4000)


def test_noise_leaves_features_of_length_zero_alone() -> None:
    x = torch.zeros(4, 3, requires_grad=True)
    out = layer(eta=0.3, k=1.0, partners="noise", detach=False)(x)
    out.sum().backward()
    assert not out.any()
    assert torch.isfinite(x.grad).all()


# --- types, layouts, compilation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_type_of_the_features_is_kept(kind: str, dtype: torch.dtype) -> None:
    x = drawn(8, 3, 2, 2).to(dtype).requires_grad_()
    with batch_step(torch.arange(8) % 3):
        out = layer(eta=0.5, k=1.0, partners=kind)(x)
    assert out.dtype is dtype
    assert not torch.equal(out, x)
    out.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("eta", ["0.3", "0.3:1,0.5:0"])
def test_doubles_are_mixed_with_the_magnitude_as_it_was_given(eta: str) -> None:
    x = drawn(6, 4)
    out = layer(eta=eta, k=1.0, partners="mutual")(x)
    torch.testing.assert_close(out, looped(x, [5, 4, 3, 2, 1, 0], [0.3] * 6, list(range(6))), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast(kind: str) -> None:
    """Behind a convolution the features are bfloat16, and stay so; what comes in float32 stays float32."""
    module = nn.Sequential(nn.Conv2d(2, 3, 3), layer(eta=0.5, k=0.5, partners=kind), nn.ReLU())
    x = drawn(8, 2, 6, 5).float().requires_grad_()
    with batch_step(torch.arange(8) % 3), torch.autocast("cpu", torch.bfloat16):
        plain = module[2](module[0](x))
        out = module(x)
        features = layer(eta=0.5, partners=kind)(x)
    assert out.dtype is torch.bfloat16
    assert features.dtype is torch.float32
    assert torch.equal(out[4:], plain[4:])
    assert not torch.equal(out[:4], plain[:4])
    out.float().square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_is_kept_and_changes_nothing(kind: str) -> None:
    x = drawn(8, 3, 4, 5)
    spread = x.contiguous(memory_format=torch.channels_last)
    with batch_step(torch.arange(8) % 3):
        want, out = (layer(eta=0.5, partners=kind)(features) for features in (x, spread))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert want.is_contiguous()
    torch.testing.assert_close(out, want, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3), (6, 4, 3, 2), (6, 2, 2, 2, 2)], ids=str)
def test_features_of_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    x = drawn(*shape)
    out = layer(eta=0.25, k=0.5, partners="mutual")(x)
    torch.testing.assert_close(out, looped(x, [5, 4, 3], [0.25] * 3, [0, 1, 2]), rtol=1e-14, atol=1e-14)


def small_net(seed: int = 0, **mixing: Any) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 6), layer(seed, **mixing), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(drawn(*value.shape, seed=value.numel()))
    return net


def test_in_a_sequential_labels_come_by_the_context() -> None:
    """Its forward takes features only; two batches, each with labels of its own."""
    net, x = small_net(eta=1.0, k=1.0, partners="different-class"), drawn(6, 4).float()
    plain = nn.Sequential(net[0], net[2], net[3])
    for labels in ([0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1]):
        with batch_step(torch.tensor(labels)):
            out = net(x)
        # At eta 1 a row becomes its partner, whose answer is then that of a row of another class.
        answers = plain(x)
        for i in range(6):
            found = [j for j in range(6) if torch.allclose(out[i], answers[j], rtol=1e-4, atol=1e-5)]
            assert len(found) == 1
            assert labels[found[0]] != labels[i]


def compiled_as_eager(backend: str) -> None:
    torch.compiler.reset()
    mixing: dict[str, Any] = {"eta": "U[0.1,0.9]", "k": 0.5, "partners": "different-class", "shared": "both"}
    eager, twin = small_net(1, **mixing), small_net(1, **mixing)
    fast = torch.compile(twin, backend=backend)
    x = drawn(8, 4).float()
    turns: list[dict[str, Any]] = [
        {},
        {"active": False},
        {"partners": torch.arange(8).flip(0)},
        {"labels": torch.arange(8) % 4},
        {},
    ]
    for training in (True, False):
        for net in (eager, twin):
            net.train(training)
        for turn in [*turns, {"active": True}]:
            results = []
            for net in (eager, fast):
                with batch_step(**{"labels": torch.arange(8) % 3} | turn):
                    out = net(x)
                eager.zero_grad()
                twin.zero_grad()
                out.square().sum().backward()
                results.append((out, [value.grad for value in (eager if net is eager else twin).parameters()]))
            torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
    assert torch.equal(eager[1].draws, twin[1].draws)
    assert int(eager[1].draws[1]) == 6  # five active turns in training, one in eval


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it traces
def test_compiled_it_follows_mode_and_step_as_eager_does() -> None:
    """Traced, not translated: nothing of the first step may be frozen into what is compiled."""
    compiled_as_eager("eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_it_equals_eager() -> None:
    compiled_as_eager("inductor")
