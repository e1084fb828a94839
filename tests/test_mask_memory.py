"""Masks in less memory: rounded to bfloat16, or drawn again from the seed with the very same values."""

import copy

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nets import seeded
from perturblab.errors import UserError
from perturblab.layers import Masks, Noise, NoiseLayer, PerturbConv2d, PerturbLayerFirst
from perturblab.models import Task, build, describe
from perturblab.runs import checkpoint
from told import in_order

MEMORY = ("fp32", "bf16", "seed")
LAYERS = (PerturbConv2d, NoiseLayer, PerturbLayerFirst)


def layer(kind: type[nn.Module], memory: str, nmasks: int = 2, seed: int = 1) -> nn.Module:
    noise = Noise(nmasks=nmasks, level=0.7, mask_memory=memory)
    masks = seeded(seed)
    made = kind(Masks(3, (4, 5), noise, generator=masks), 6)
    generator = seeded(5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(generator=generator)
    return made


def outcome(module: nn.Module) -> list[Tensor]:
    x = torch.randn(4, 3, 4, 5, generator=seeded(2)).requires_grad_()
    y = module(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("nmasks", [1, 2])
def test_drawn_again_is_what_was_stored_bit_for_bit(kind: type[nn.Module], nmasks: int) -> None:
    stored, seeded = (outcome(layer(kind, memory, nmasks)) for memory in ("fp32", "seed"))
    assert all(map(torch.equal, stored, seeded))


@pytest.mark.parametrize("kind", LAYERS)
def test_bfloat16_is_the_layer_with_rounded_masks(kind: type[nn.Module]) -> None:
    rounded, half = layer(kind, "fp32"), layer(kind, "bf16")
    rounded.masks.stored.copy_(rounded.masks.stored.bfloat16())
    assert half.masks.stored.dtype == torch.bfloat16
    for expected, got in zip(outcome(rounded), outcome(half), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(outcome(half)[0], outcome(layer(kind, "fp32"))[0])


def test_layers_after_one_that_keeps_nothing_draw_the_same_masks() -> None:
    nets = [build("lenet", task=Task(3, 3, (8, 8)), nfilters=3, nmasks=2, mask_memory=memory) for memory in MEMORY]
    values = [[part.value for part in net.modules() if isinstance(part, Masks)] for net in nets]
    assert len(values[0]) == 3
    assert all(map(torch.equal, values[0], values[2]))
    assert all(torch.equal(full.bfloat16(), half) for full, half in zip(values[0], values[1], strict=True))


def test_bytes_that_are_kept() -> None:
    kept = {}
    for memory in MEMORY:
        masks = Masks(8, (16, 16), Noise(nmasks=4, mask_memory=memory), generator=seeded(1))
        kept[memory] = sum(value.nbytes for value in masks.state_dict().values())
        assert masks.shape == tuple(masks.value.shape) == (8, 4, 16, 16)
    values = 8 * 4 * 16 * 16
    assert (kept["fp32"], kept["bf16"]) == (4 * values, 2 * values)
    assert kept["seed"] < 6000  # the state of the generator and a hash, however many masks there are


@pytest.mark.parametrize("memory", MEMORY)
def test_saved_and_loaded_elsewhere(memory: str) -> None:
    first, second = layer(PerturbConv2d, memory, seed=1).eval(), layer(PerturbConv2d, memory, seed=2).eval()
    x = torch.randn(2, 3, 4, 5)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(safetensors.torch.load(safetensors.torch.save(first.state_dict())))
    assert torch.equal(first(x), second(x))
    assert torch.equal(first(x), copy.deepcopy(first)(x))


def test_masks_that_cannot_be_drawn_again_are_refused(tmp_path) -> None:
    module = layer(PerturbConv2d, "seed")
    checkpoint.save_weights(tmp_path / "weights.safetensors", module)
    state = module.state_dict()
    other = layer(PerturbConv2d, "seed", seed=9).state_dict()
    for changed in ("masks.digest", "masks.state"):
        damaged = {**state, changed: other[changed]}
        with pytest.raises(RuntimeError, match=in_order("masks saved")):
            layer(PerturbConv2d, "seed").load_state_dict(damaged)
    state["masks.digest"][0] += 1  # the buffer itself
    checkpoint.save_weights(tmp_path / "weights.safetensors", module)
    with pytest.raises(UserError, match=in_order("another net drawn")):
        checkpoint.load_weights(tmp_path / "weights.safetensors", layer(PerturbConv2d, "seed"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mask_memory": "fp16"}, "mask_memory fp16 fp32 bf16 seed"),
        ({"mask_memory": "bf16", "train_masks": True}, "trained masks fp32 mask_memory bf16 drop"),
        ({"mask_memory": "seed", "train_masks": True}, "trained masks fp32 mask_memory seed drop"),
        ({"mask_memory": "seed", "redraw_masks": "always"}, "drop mask_memory seed or redraw_masks"),
    ],
)
def test_what_excludes_each_other_is_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=in_order(text)):
        Noise(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_counts_do_not_depend_on_how_masks_are_kept(memory: str, device: str) -> None:
    task = Task(3, 3, (8, 8))
    with torch.device(device):
        net = build("lenet", task=task, nfilters=3, nmasks=2, mask_memory=memory)
    plain = build("lenet", task=task, nfilters=3, nmasks=2)
    assert describe(net, task) == describe(plain, task)


def test_a_seeded_net_trains_like_a_stored_one() -> None:
    x, y = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    weights = []
    for memory in ("fp32", "seed"):
        net = build("lenet", task=Task(3, 3, (8, 8)), nfilters=3, nmasks=2, mask_memory=memory, dropout=0.0)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()
        weights.append(list(net.parameters()))
    assert all(map(torch.equal, *weights))
