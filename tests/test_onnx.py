"""Graphs of the nets for others: ONNX, torch.export and torch.compile answer as the nets do."""

import copy
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, NET_ROWS, Case
from perturblab.cli import main
from perturblab.errors import UserError
from perturblab.layers import (
    LocalBinaryConv2d,
    Masks,
    Noise,
    NoiseLayer,
    PerturbLayer,
    PerturbLayerFirst,
    perturbify,
    store_masks,
)
from perturblab.models import NETS, Task, build
from perturblab.runs.export import onnx as onnx_module
from perturblab.runs.export.onnx import onnx_bytes
from perturblab.system.extras import require
from perturblab.system.terminal import Show
from told import in_order

NO_ONNX = "onnx, onnxscript or onnxruntime is not installed (extra onnx): nothing is exported to it"
REDRAWN = [case for case in NET_ROWS if case.random == "always"]
STEADY = [case for case in NET_ROWS if case.random != "always"]
SMALL = ("perturb_resnet18-mixed", "lenet", "lbcnet", "batchout_mnist")
SMALLEST = [case for case in STEADY if case.name in SMALL]
# The operators of nets that take minutes.
OPERATORS = [case for case in CASES if case.name in ("Shift-9", "AnchorConv2d-depthwise")]
# What code is generated for: two nets, and the layers that they do not have.
CODED = ("lenet", "batchout_mnist", "NoiseLayer-one-mask", "PerturbLayerFirst-five-masks", "LocalBinaryConv2d-binary")
GENERATED = [case for case in CASES if case.name in CODED]
ONE_A_NET = list({case.covers: case for case in reversed(STEADY)}.values())
ids = {"ids": lambda case: case.name}


def onnx() -> Any:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=NO_ONNX)
    return sys.modules["onnx"]


# --- torch.export and torch.compile ----------------------------------------------------------------------------------


@torch.no_grad()
def answers_as_the_net(case: Case) -> None:
    net = case.new().eval()
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(net, case.inputs(3), dynamic_shapes=(batch,))
    assert "perturblab" not in str(program.graph), "it would need this package where it is loaded"
    for count in (1, 3, 6):
        torch.testing.assert_close(program.module()(*case.inputs(count)), net(*case.inputs(count)))


@pytest.mark.parametrize("case", [*SMALLEST, *OPERATORS], **ids)
def test_export_of_small_nets(case: Case) -> None:
    answers_as_the_net(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in STEADY if case not in SMALLEST], **ids)
def test_export_of_every_net(case: Case) -> None:
    answers_as_the_net(case)


def small_memory(memory: str, net: str = "perturb_resnet18", **options: Any) -> nn.Module:
    """Masks in less memory than the nets of the rows have."""
    return build(net, task=Task(10, 1, (8, 8)), nfilters=3, nmasks=2, mask_memory=memory, **options).eval()


@torch.no_grad()
@pytest.mark.parametrize("memory", ["bf16", "seed"])
def test_nets_whose_masks_take_less_memory_are_exported(memory: str) -> None:
    net, x = small_memory(memory), torch.rand(5, 1, 8, 8)
    given = (torch.rand(2, 1, 8, 8),)
    batch = ({0: torch.export.Dim("batch")},)
    if memory == "seed":
        with pytest.raises(ValueError, match=r"mask_memory seed .* store_masks\(model\)"):
            torch.export.export(net, given, dynamic_shapes=batch)
    want = net(x)
    program = torch.export.export(store_masks(net), given, dynamic_shapes=batch)
    assert torch.equal(net(x), want)
    assert "perturblab" not in str(program.graph), "it would need this package where it is loaded"
    torch.testing.assert_close(program.module()(x), want)


def test_stored_masks_are_those_of_a_net_that_keeps_them() -> None:
    stored, kept = store_masks(small_memory("seed")).state_dict(), small_memory("fp32").state_dict()
    assert list(stored) == list(kept)
    assert all(torch.equal(stored[name], kept[name]) for name in kept)
    before = small_memory("bf16").state_dict()
    assert all(map(torch.equal, store_masks(small_memory("bf16")).state_dict().values(), before.values()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it traces
@pytest.mark.parametrize("case", REDRAWN, **ids)
def test_a_net_whose_forward_is_random_says_that_it_cannot_be_exported(case: Case) -> None:
    assert any(isinstance(m, Masks) and m.noise.redraw_masks == "always" for m in case.new().modules())
    with pytest.raises(ValueError, match=r"redrawn .*exported"):
        torch.export.export(case.new().eval(), case.inputs(3))


def test_every_net_is_exported_or_says_why_not() -> None:
    assert SMALLEST
    assert REDRAWN
    assert len(SMALLEST) == len(SMALL)
    assert len(OPERATORS) == 2
    assert len(STEADY) + len(REDRAWN) == len(NET_ROWS)
    assert {case.covers for case in ONE_A_NET} == set(NETS)


def trained(net: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def compiled_as_the_net(case: Case, backend: str, *modes: bool, whole: bool = True) -> None:
    """In these modes, with gradients; in one graph, so that nothing falls back to Python."""
    torch.compiler.reset()
    plain = case.new()
    fast = copy.deepcopy(plain)
    graph = torch.compile(fast, backend=backend, fullgraph=whole, dynamic=False)
    (x,) = case.inputs(3)
    x.requires_grad_(not trained(plain))
    for training in modes:
        for net in (plain, fast):
            net.train(training)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            want = plain(x)
            torch.manual_seed(0)
            got = graph(x)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    wanted, found = (
        torch.autograd.grad(y.square().sum(), trained(net) or [x], allow_unused=True)
        for y, net in ((want, plain), (got, fast))
    )
    # A bias in front of a batch norm has a gradient of 0: what is left there is the rounding of the others.
    largest = max(float(gradient.abs().max()) for gradient in wanted if gradient is not None)
    for one, two in zip(wanted, found, strict=True):
        if one is not None:
            assert two is not None
            atol = 1e-3 * float(one.abs().max()) + 3e-6 * largest + 1e-5
            torch.testing.assert_close(two, one, rtol=1e-2, atol=atol)


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it traces
@pytest.mark.parametrize("case", [*(c for c in SMALLEST if c.name != "perturb_resnet18-mixed"), *OPERATORS], **ids)
def test_small_nets_are_one_graph_to_a_compiler(case: Case) -> None:
    compiled_as_the_net(case, "eager", False, True)


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it traces
@pytest.mark.parametrize("memory", ["bf16", "seed"])
def test_nets_whose_masks_take_less_memory_are_one_graph_to_a_compiler(memory: str) -> None:
    net, x = small_memory(memory, "lenet", dropout=0.0), torch.rand(3, 1, 8, 8)
    fast = copy.deepcopy(net)
    torch.compiler.reset()
    graph = torch.compile(fast, backend="eager", fullgraph=True, dynamic=False)
    for training in (False, True):
        torch.testing.assert_close(graph.train(training)(x), net.train(training)(x))
    for part in (graph, net):
        part(x).square().sum().backward()
    for one, two in zip(net.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it traces
@pytest.mark.parametrize("case", ONE_A_NET, **ids)
def test_every_net_is_compiled(case: Case) -> None:
    """In training; captured and run again without a code generator, which would take half an hour for all of them."""
    compiled_as_the_net(case, "eager", True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it traces
@pytest.mark.parametrize("case", [case for case in NET_ROWS if "redrawn" in case.name], **ids)
def test_nets_that_redraw_their_masks_are_compiled_in_several_graphs(case: Case) -> None:
    compiled_as_the_net(case, "eager", True, whole=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it generates code
@pytest.mark.parametrize("case", GENERATED, **ids)
def test_generated_code_answers_as_the_net(case: Case) -> None:
    with torch._inductor.config.patch(fallback_random=True):  # dropout draws as it does without a compiler
        compiled_as_the_net(case, "inductor", True)


def test_every_kind_of_layer_is_in_generated_code() -> None:
    kinds = {PerturbLayer, NoiseLayer, PerturbLayerFirst, LocalBinaryConv2d}
    assert len(GENERATED) == len(CODED)
    assert kinds <= {type(part) for case in GENERATED for part in case.new().modules()}


# --- ONNX -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    line = "--dataset-train digits --net-type lenet --nfilters 4 --nmasks 2 --train-size 64 --batch-size 16 --nepochs 1"
    assert main.main(["train", *line.split(), "--nthreads", "1", "--quiet", "--out", str(folder)]) == 0
    return folder


def test_a_run_as_one_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It holds everything, takes any batch, and what is printed is what someone else finds; folders are made."""
    library = onnx()
    path = tmp_path / "new" / "er" / "net.onnx"
    assert main.main(["export", str(run), "--onnx", str(path), "--quiet"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "597 same answers" in told.out
    assert [p.name for p in path.parent.iterdir()] == ["net.onnx"]
    graph = library.load(path).graph
    (pixels,), (logits,) = graph.input, graph.output
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (pixels, logits)]
    assert (pixels.name, logits.name) == ("pixels", "logits")
    assert shapes == [["batch", 1, 8, 8], ["batch", 10]]
    net, x = onnx_module.open_trained(run, Show(quiet=True), {}).in_pixels, torch.rand(5, 1, 8, 8)
    session = sys.modules["onnxruntime"].InferenceSession(str(path))
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(session.run(None, {"pixels": x.numpy()})[0]), net(x))


class Shifted(nn.Module):
    """Answers a little beside another net."""

    def __init__(self, net: nn.Module, by: float) -> None:
        super().__init__()
        self.net, self.by = net, by

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.by * torch.arange(10)


@pytest.mark.parametrize(("by", "holds"), [(0.0, True), (1e-3, False), (1.0, False)])
def test_the_comparison_finds_what_differs(by: float, holds: bool) -> None:
    onnx()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    x = torch.rand(30, 1, 8, 8)
    found = onnx_module.compare_answers(net, onnx_module.onnx_bytes(Shifted(net, by), (1, 8, 8)), x)
    assert found.images == 30
    assert found.holds is holds
    assert found.largest == pytest.approx(9 * by, abs=1e-5)
    with torch.no_grad():
        assert found.scale == pytest.approx(float(net(x).abs().max()))
        want = (net(x) + by * torch.arange(10)).argmax(1) == net(x).argmax(1)
    assert found.agreeing == int(want.sum())


def test_every_image_is_compared_once() -> None:
    for count in (1, 2, 8, 9, 72, 73, 200):
        x = torch.arange(float(count)).view(count, 1, 1, 1)
        parts = list(onnx_module._batches(x))
        assert torch.equal(torch.cat(parts), x)
        assert [len(part) for part in parts[:2]] == [min(1, count), min(7, count - 1)][: len(parts)]


def test_a_wrong_file_is_a_failed_check_and_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx()
    honest = onnx_bytes
    monkeypatch.setattr(onnx_module, "onnx_bytes", lambda net, size: honest(Shifted(net, 0.01), size))
    assert main.main(["export", str(run), "--onnx", str(tmp_path / "net.onnx"), "--quiet"]) == 1
    told = capsys.readouterr()
    assert told.err.startswith("perturblab: failed check: ")
    assert "597 test images: by 0.09" in told.err
    assert told.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_one_line_with_the_pip_command(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main.main(["export", str(run), "--onnx", str(tmp_path / "net.onnx")]) == 2
    err = capsys.readouterr().err
    assert re.search(in_order("--onnx onnx, onnxscript, onnxruntime"), err)
    assert err.endswith("pip install 'perturblab[onnx]'\n")
    assert err.count("\n") == 1


def test_what_is_there_is_not_missed() -> None:
    require("none", "json", "torch", feature="nothing")
    with pytest.raises(UserError, match=in_order("this no_such_package pip install 'perturblab[x")):
        require("x", "json", "no_such_package", feature="this")


@pytest.mark.parametrize("memory", ["bf16", "seed"])
def test_a_run_whose_masks_take_less_memory(memory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx()
    line = (
        f"--dataset-train digits --net-type lenet --nfilters 2 --mask-memory {memory} --train-size 20 --batch-size 10"
    )
    folder = tmp_path / "run"
    assert main.main(["train", *f"{line} --nepochs 1 --quiet --out {folder}".split()]) == 0
    assert main.main(["export", str(folder), "--onnx", str(tmp_path / "net.onnx"), "--quiet"]) == 0
    assert "597 same answers" in capsys.readouterr().out


@torch.no_grad()
@pytest.mark.parametrize("operator", ["shift", "anchors-depthwise"])
def test_another_operator_than_noise(operator: str) -> None:
    onnx()
    whole = build("noiseresnet18", task=Task(5, 3, (8, 8)), nfilters=5, first_filter_size=3, operator=operator)
    stages = (whole.get_submodule(name) for name in ("stem", "layer1.0", "layer2.0"))
    net = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    assert onnx_module.compare_answers(net, onnx_module.onnx_bytes(net, (3, 8, 8)), torch.rand(20, 3, 8, 8)).holds


@torch.no_grad()
def test_a_net_of_someone_else_after_surgery() -> None:
    library = onnx()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)).eval()
    perturbify(net, image_size=8, noise=Noise(nmasks=2))
    content = onnx_module.onnx_bytes(net, (3, 8, 8))
    library.checker.check_model(library.load_from_string(content))
    assert onnx_module.compare_answers(net, content, torch.rand(20, 3, 8, 8)).holds
