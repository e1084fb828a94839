"""The threat model, and the model that an attack sees from outside."""

import math
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nets import NORMS, Noisy, count, digits, seeded, trained, watched
from perturblab import attacks
from perturblab.attacks import Effort, Frozen, PixelModel, Threat, pgd, project, to_pixels, untouched, violations
from perturblab.errors import UserError
from perturblab.records.attack_config import AttackConfig
from perturblab.records.config import TrainConfig, validated
from perturblab.records.radius import parse_eps
from told import in_order

# --- the threat -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"norm": "l1"}, "norm l1 linf l2"),
        ({"eps": -0.1}, "eps -0.1 0 [0 1] 8/255"),
        ({"eps": math.nan}, "eps nan"),
        ({"bounds": (1.0, 0.0)}, "bounds (1.0 0.0)"),
    ],
)
def test_an_impossible_threat_is_one_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=in_order(said)):
        Threat(**given)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_the_nearest_point_of_the_ball_and_changes_nothing_inside(norm: str) -> None:
    generator = seeded()
    x = torch.rand(60, 1, 3, 3, generator=generator)
    far = x + torch.randn(x.shape, generator=generator)
    threat = Threat(norm, 0.3)
    back = project(far, x, threat)
    assert not violations(back, x, threat).any()
    torch.testing.assert_close(project(back, x, threat), back, rtol=0, atol=1e-6)
    near = x + 1e-3 * (0.5 - x)
    torch.testing.assert_close(project(near, x, threat), near, rtol=0, atol=1e-6)
    wide = Threat(norm, 0.3, (-9.0, 9.0))
    for i in range(len(x)):
        delta = (far - x)[i].double()
        length = delta.norm()
        want = delta.clamp(-0.3, 0.3) if norm == "linf" else delta * min(1.0, 0.3 / float(length))
        torch.testing.assert_close((project(far, x, wide) - x)[i].double(), want, rtol=0, atol=1e-6)
    assert torch.equal(project(far, x, Threat(norm, math.inf)), (x + (far - x)).clamp(0, 1))


def test_violations_are_told_image_by_image() -> None:
    x = torch.full((6, 1, 2, 2), 0.5)
    found = x.clone()
    found[1, 0, 0, 0] += 0.1 + 5e-7  # rounding is forgiven
    found[2, 0, 0, 0] += 0.1 + 1e-5
    found[3, 0, 0, 0] = torch.nan
    found[4] += 0.06  # of length 0.12 in l2
    assert violations(found, x, Threat("linf", 0.1)).tolist() == [False, False, True, True, False, False]
    assert violations(found, x, Threat("l2", 0.1)).tolist() == [False, False, True, True, True, False]
    assert violations(found, x, Threat("l2", math.inf)).tolist() == [False, False, False, True, False, False]
    edge = torch.zeros_like(x)
    edge[0, 0, 0, 0] = -1e-5
    edge[1, 0, 0, 0] = -1e-7
    edge[2, 0, 0, 0] = -math.inf
    wrong = violations(edge, torch.zeros_like(x), Threat("linf", math.inf)).tolist()
    assert wrong == [True, False, True, False, False, False]


# --- the model from outside -----------------------------------------------------------------------------------------


def test_the_model_in_pixels_is_the_net_on_normalised_images() -> None:
    from perturblab.data import Preparation, normalise
    from perturblab.data.digits import read_digits

    images = read_digits().test.images
    model = PixelModel(trained().net, [0.3], [0.35])
    prepared = normalise(images, Preparation(mean=(0.3,), std=(0.35,), crop_padding=0, flip=False))
    assert torch.equal(model(to_pixels(images)), model.net(prepared)), "the same bits, so that radius 0 is evaluation"
    assert to_pixels(images).amax() == 1
    assert images.dtype is torch.uint8


@pytest.mark.parametrize("wrap", [lambda net: PixelModel(net, [0.3], [0.35]), Frozen], ids=["pixels", "frozen"])
def test_wrapping_a_net_leaves_the_mode_of_every_part(wrap: Callable[[nn.Module], nn.Module]) -> None:
    for outer in (True, False):
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()).train(outer)
        net[1].train(not outer)
        wrapped = wrap(net)
        assert [net.training, *(part.training for part in net)] == [outer, outer, not outer, outer]
        assert wrapped.training == outer


def test_untouched_puts_back_modes_buffers_and_the_random_state_also_after_an_error() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()).train()
    net[2].eval()
    x = torch.rand(4, 1, 5, 5, generator=seeded())
    with watched(net):
        with untouched(net, training=True, seed=3):
            assert [part.training for part in net] == [True] * 3
            first = net(x)
        with untouched(net, training=True, seed=3):
            assert torch.equal(net(x), first)
        with untouched(net, training=True, seed=4):
            assert not torch.equal(net(x), first)
        with untouched(net, training=False):
            assert not any(part.training for part in net)
        with pytest.raises(ZeroDivisionError), untouched(net, seed=1):
            net(x) + torch.rand(1) + 1 / 0


def test_a_frozen_net_draws_the_same_at_every_pass_and_lets_gradients_through() -> None:
    """With batch norm too, whose statistics a graph holds."""
    net = nn.Sequential(Noisy(nn.Identity()), trained()).eval()
    x, y = digits()
    x, y = x[:30], y[:30]
    one, two = Frozen(net, 1), Frozen(net, 2)
    with watched(net):
        assert torch.equal(one(x), one(x))
        assert not torch.equal(one(x), two(x))
        found = pgd(one, x, y, Threat("linf", 0.1), Effort(steps=3, restarts=1), generator=seeded())
    assert count(one, found, y) < count(one, x, y)
    assert not torch.equal(net(x), net(x)), "the net itself stays random"


def test_the_package_of_attacks_says_what_it_exports() -> None:
    import perturblab.attacks

    public = {name for name, value in vars(perturblab.attacks).items() if not isinstance(value, types.ModuleType)}
    assert {name for name in public if not name.startswith("_")} == set(perturblab.attacks.__all__)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "uniform_noise", "gaussian_noise", "universal", "autoattack"])
def test_a_step_needs_a_finite_radius(name: str) -> None:
    x = torch.rand(2, 1, 8, 8)
    attack = getattr(attacks, name)
    with pytest.raises(ValueError, match=in_order("eps infinite")):
        attack(nn.Flatten(), x, torch.zeros(2).long(), Threat("linf", math.inf), generator=torch.Generator())


@pytest.mark.parametrize("text", ["1e400", "1e999999999", "1/1e-400", "1/2/3", "/255", "8/", "nan", "-1", "-1/255", ""])
def test_a_radius_that_is_none_is_refused_at_once(text: str) -> None:
    with pytest.raises(ValueError, match=in_order("--eps number fraction 8/255")):
        parse_eps(text)


@pytest.mark.parametrize("flags", ["--eps 8", "--eps 0,0.1,8/25,8", "--eps 1.001", "--eps 255/8 --attacks fgsm"])
def test_a_radius_of_whole_grey_levels_is_refused_in_linf(flags: str) -> None:
    given_ = dict(zip(*[iter(flags.replace("--", "").split())] * 2, strict=True))
    with pytest.raises(UserError, match=in_order("--eps 1 linf 8/255")):
        validated(AttackConfig, given_)
    assert validated(AttackConfig, given_ | {"norm": "l2"}).eps, "in l2 a radius may be any"


def test_a_radius_of_one_is_the_largest_in_linf() -> None:
    assert validated(AttackConfig, {"eps": "0,8/255,1"}).eps == (0.0, 8 / 255, 1.0)
    assert validated(AttackConfig, {}).eps is None
    assert validated(TrainConfig, {"defence_eps": "1"}).defence_eps == "1"
    with pytest.raises(UserError, match=in_order("--defence-eps 8 1 linf [0 1] 8/255")):
        validated(TrainConfig, {"defence_eps": "8", "defence": "pgd"})


def test_a_radius_is_a_number_or_a_fraction() -> None:
    assert [parse_eps(text) for text in ("0", "0.1", "8/255", " 1e-2 ", "1/4")] == [0.0, 0.1, 8 / 255, 0.01, 0.25]
