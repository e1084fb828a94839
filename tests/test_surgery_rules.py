"""Surgery by any rule, BatchOut in nets of others, image models of other libraries."""

from typing import Any

import pytest
import torch
from torch import nn

from foreign import foreign, images, new
from nets import seeded
from perturblab.layers import (
    BatchOut,
    Mixing,
    Noise,
    PerturbConv2d,
    Substitution,
    batchout_at,
    find_sites,
    perturb_layers,
    perturbify,
    replace_layers,
    trace,
)
from told import in_order

# --- any rule -------------------------------------------------------------------------------------------------------


def test_any_layer_can_be_replaced() -> None:
    net = new("shared").double().eval()
    net.blocks[0][1].requires_grad_(False)
    done = replace_layers(net, lambda name, m: nn.GroupNorm(2, 4) if isinstance(m, nn.BatchNorm2d) else None)
    norm = net.blocks[0][1]
    assert isinstance(norm, nn.GroupNorm)
    assert set(done.replaced) == {"blocks.0.1"}, "inside a shared block there is one place"
    assert norm.weight.dtype is torch.float64
    assert not norm.weight.requires_grad
    assert not norm.training


def test_a_layer_can_be_wrapped_and_stays_itself() -> None:
    net = new("functional").train()
    conv = net.conv2.eval().requires_grad_(False)

    def behind(name: str, module: nn.Module) -> nn.Module | None:
        return nn.Sequential(module, BatchOut(generator=seeded())) if name == "conv2" else None

    replace_layers(net, behind)
    assert net.conv2[0] is conv
    assert not any(p.requires_grad for p in conv.parameters())
    assert not net.conv2[1].training, "as the layer whose place it takes"
    assert net(images("functional")).shape == (2, 5)


def test_the_inside_of_what_is_replaced_is_not_asked_about() -> None:
    asked: list[str] = []

    def rule(name: str, module: nn.Module) -> nn.Module | None:
        asked.append(name)
        return nn.Identity() if name == "0" else None

    replace_layers(nn.Sequential(nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU())), rule)
    assert asked == ["0", "1", "1.0"]


# --- BatchOut -------------------------------------------------------------------------------------------------------


@foreign
@pytest.mark.parametrize("rule", ["all", "last", nn.Conv2d], ids=str)
def test_batchout_in_a_net_of_any_style(style: str, rule: Any) -> None:
    """A rule is the same as the mapping of what it finds; in eval the net answers as before, in training it mixes."""
    nets = [new(style), new(style)]
    x, want = images(style, 6), new(style).eval()(images(style, 6))
    mixing = Mixing(eta=0.5, k=1.0, partners="mutual")
    placed = batchout_at(nets[0], rule, mixing, generator=seeded())
    batchout_at(nets[1], dict.fromkeys(find_sites(nets[1], rule), mixing), generator=seeded())
    assert placed.names == tuple(find_sites(new(style), rule))
    assert torch.equal(nets[0].eval()(x), want)
    for module in nets[0].modules():  # no dropout, no batch statistics: only what is mixed differs
        module.training = bool("batchout_draws" in module._buffers)
    assert not torch.allclose(nets[0](x), want)
    assert {k: v.tolist() for k, v in nets[1].state_dict().items()}.keys() == nets[0].state_dict().keys()
    placed.remove()
    assert torch.equal(nets[0].eval()(x), want)


def test_batchout_after_surgery() -> None:
    net = new("functional")
    perturbify(net, image_size=(15, 13))
    placed = batchout_at(net, ["conv1", "conv2"], generator=seeded())
    assert placed.names == ("conv1", "conv2")
    net.train()(images("functional"))
    assert [int(net.get_submodule(name).get_buffer("batchout_draws")[1]) for name in placed.names] == [1, 1]


def test_a_mapping_says_all_by_itself() -> None:
    with pytest.raises(ValueError, match=in_order("mapping place")):
        batchout_at(new("functional"), {"conv1": Mixing()}, Mixing(), generator=seeded())


# --- nets of others -------------------------------------------------------------------------------------------------

# Each as small as its library lets it be: (name in transformers, configuration, image size).
WIDTHS = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}
TRANSFORMERS: list[tuple[str, str, dict[str, Any], int]] = [
    ("ResNet", "ForImageClassification", {**WIDTHS, "layer_type": "basic"}, 32),
    ("RegNet", "ForImageClassification", {**WIDTHS, "groups_width": 4}, 32),
    ("Bit", "ForImageClassification", {**WIDTHS, "num_groups": 4, "global_padding": "same"}, 32),
    ("ConvNext", "ForImageClassification", STAGES, 32),
    ("MobileNetV1", "ForImageClassification", {"image_size": 32, "depth_multiplier": 0.25}, 32),
    ("MobileNetV2", "ForImageClassification", {"image_size": 32, "depth_multiplier": 0.35}, 32),
    ("ViT", "ForImageClassification", {**VIT, "image_size": 32}, 32),
    ("Segformer", "ForSemanticSegmentation", {**STAGES, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}, 64),
]
NO_TRANSFORMERS = "transformers is not installed (extra dev): its image models are not cut"
NO_DIFFUSERS = "diffusers is not installed (extra dev): its U-Net is not cut"


@pytest.mark.parametrize(("name", "task", "config", "size"), TRANSFORMERS, ids=lambda value: str(value)[:12])
def test_image_models_of_transformers(name: str, task: str, config: dict[str, Any], size: int) -> None:
    library = pytest.importorskip("transformers", reason=NO_TRANSFORMERS)
    torch.manual_seed(0)
    model = getattr(library, name + task)(getattr(library, f"{name}Config")(**config, num_labels=5)).eval()
    larger = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    others = {n: t.clone() for n, t in model.state_dict().items() if n.rpartition(".")[0] not in larger}
    x = torch.randn(2, 3, size, size, generator=seeded())
    want = model(x).logits
    standardised = [n for n, m in model.named_modules() if type(m).__name__ == "WeightStandardizedConv2d"]
    assert bool(standardised) == (name == "Bit")
    done = perturbify(model, image_size=size, noise=Noise(level=0.5), give_up=standardised)
    assert list(done.replaced) == larger
    assert {n for n in standardised if n in larger} == done.given_up.keys()
    after = model.state_dict()
    assert all(torch.equal(after[n], value) for n, value in others.items())
    out = model.train()(x).logits
    assert out.shape == want.shape
    out.float().square().mean().backward()
    new_weights = [module.weight for module in model.modules() if isinstance(module, PerturbConv2d)]
    assert len(new_weights) == len(larger)
    assert all(weight.grad is not None for weight in new_weights)
    done.undo()
    for n, value in others.items():  # the training pass has moved the batch statistics
        model.state_dict()[n].copy_(value)
    assert torch.equal(model.eval()(x).logits, want)


def test_the_u_net_of_diffusers() -> None:
    """Called with an image and a time, so it is traced with both."""
    library = pytest.importorskip("diffusers", reason=NO_DIFFUSERS)
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "norm_num_groups": 4}
    net = library.UNet2DModel(sample_size=16, block_out_channels=(8, 16), layers_per_block=1, **blocks)
    x = torch.randn(2, 3, 16, 16, generator=seeded())
    done = perturb_layers(
        net, trace(net, x, timestep=3), Substitution(Noise(noise_type="normal"), act="elu"), generator=seeded()
    )
    assert len(done.replaced) == 20
    assert all(why == "1x1" for why in done.left.values())
    assert net(x, timestep=3).sample.shape == x.shape
