"""The part of the neighbours is not noise.

Section 3.4 of the paper writes a 3x3 convolution as y = w_c x_c + n_c: the part of the centre pixel plus the part of
its neighbours. It says that n_c behaves like additive noise, so noise can replace it. A reader objected that n_c
depends on the neighbours, while a mask depends on nothing. This page extracts n_c from every 3x3 convolution of a
trained net and asks three questions. How is n_c distributed? How much of it can be predicted without the neighbours:
from the place, like a fixed mask, or from the centre pixel, like a 1x1 convolution? How accurate is the net if
something else replaces n_c? The layers after it are not trained again. So these results concern n_c, and not a net
that is trained with masks; the catalogue has those.

The part of the neighbours is not random. With the n_c of another image the accuracy falls below chance, because the
net then answers for the other image. A fixed mask predicts almost nothing of n_c. The centre pixel predicts most of
it in the deeper layers. This is why nets of 1x1 convolutions do so well, with masks or without.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from perturblab.cli import main
from perturblab.errors import UserError
from perturblab.records.markdown import markdown_table
from perturblab.runs.open import open_trained
from perturblab.seeding import stream
from perturblab.stats import wilson
from perturblab.system.terminal import Show
from perturblab.training import evaluate

FULL = {"run": Path("runs/robust/BO-cifar-none/seed-1"), "looked": 2000, "asked": 2000}
SMALL = {"run": None, "looked": 100, "asked": 100}
_TABLE = 4096  # values kept per channel, to draw noise of its distribution
Replace = Callable[[Tensor, Tensor], Tensor]  # centre pixels (N, C, H, W), n_c (N, O, H, W) -> the replacement of n_c


class Seen:
    """Sums over images about the n_c of one convolution.

    Args:
        conv: 3x3, stride 1, padding 1.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        inputs, outputs = conv.in_channels, conv.out_channels
        self.count = 0
        self.xx, self.xn, self.nn = torch.zeros(inputs, inputs), torch.zeros(inputs, outputs), torch.zeros(outputs)
        self.x, self.n = torch.zeros(()), torch.zeros(())  # sums at every place
        self.table = torch.zeros(outputs, 0)

    def add(self, x: Tensor, n: Tensor) -> None:
        """Add a batch: centre pixels (N, C, H, W) and n_c (N, O, H, W)."""
        self.count += len(x)
        flat, part = (values.movedim(1, 0).flatten(1) for values in (x, n))
        self.xx, self.xn, self.nn = self.xx + flat @ flat.T, self.xn + flat @ part.T, self.nn + part.square().sum(1)
        self.x, self.n = self.x + x.sum(0), self.n + n.sum(0)
        if not self.table.shape[1]:
            chosen = torch.randint(part.shape[1], (_TABLE,), generator=stream(1, "table"))
            self.table = part[:, chosen]

    def best(self, *, mask: bool) -> tuple[Tensor, Tensor, float]:
        """Fit the affine map from the centre to n_c: weights (C, O), an offset per channel or place, and its R²."""
        places = self.x[0].numel()
        x, n = (total.flatten(1).double() / self.count for total in (self.x, self.n))  # means at every place
        whole = self.nn.double() - self.count * places * n.mean(1).square()
        if not mask:
            x, n = x.mean(1, keepdim=True).expand_as(x), n.mean(1, keepdim=True).expand_as(n)
        xx, xn = self.xx.double() - self.count * x @ x.T, self.xn.double() - self.count * x @ n.T
        nn_ = self.nn.double() - self.count * n.square().sum(1)
        weights = torch.linalg.pinv(xx, hermitian=True) @ xn
        left = nn_ - (weights * xn).sum(0)
        offset = (n - weights.T @ x).reshape(-1, *self.x.shape[1:])
        return weights.float(), offset.float(), 1 - float(left.sum() / whole.sum())

    def by_place(self) -> tuple[Tensor, float]:
        """Give the mean of n_c at every place (O, H, W), which is the best fixed mask, and its R²."""
        n = self.n.flatten(1).double() / self.count
        whole = (self.nn.double() - self.count * n.shape[1] * n.mean(1).square()).sum()
        among = self.count * (n - n.mean(1, keepdim=True)).square().sum()
        return (self.n / self.count), float(among / whole)


def draw(dataroot: str, run: Path | None, looked: int, asked: int) -> Figure:
    """Measure n_c of every 3x3 convolution on training images; test the net with n_c replaced."""
    net, x, labels, test = _trained(run, dataroot)
    convs = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)}
    seen = {name: Seen(conv) for name, conv in convs.items()}

    def look(name: str) -> Replace:
        return lambda x, n: (seen[name].add(x, n), n)[1]

    with replace_neighbours(convs, look), torch.no_grad():
        for batch in x[:looked].split(100):
            net(batch)
    shares = ["R² of the place (a mask)", "of the centre (1x1)", "of both", "of the neighbours"]
    rows = []
    for name, own in seen.items():
        place, centre, both = own.by_place()[1], own.best(mask=False)[2], own.best(mask=True)[2]
        found_shares = (f"{share:.3f}" for share in (place, centre, both, 1 - both))
        rows.append([name, f"{_kurtosis(own.table):.1f}", *found_shares])
    print(markdown_table(["layer", "kurtosis of n_c", *shares], rows))
    ways = _ways(seen)
    layers = [*((name,) for name in convs), tuple(convs)]
    images, labels = test[:asked], labels[:asked]
    found = {
        text: [_correct(net, {name: convs[name] for name in names}, way, images, labels) for names in layers]
        for text, way in ways.items()
    }
    right = [[text, *(f"{100 * count / len(labels):.1f}" for count in counts)] for text, counts in found.items()]
    print(f"\n{markdown_table(['in place of n_c', *convs, 'all of them'], right)}")
    margin = max(high - low for low, high in (wilson(c, len(labels)) for row in found.values() for c in row)) / 2
    print(f"\nPercent of {len(labels):,} test images (95 % Wilson intervals of at most +- {margin:.1f}). Kurtosis is 3")
    print("for a normal and 1.8 for a uniform distribution. R² is the share of the variance of n_c that the place,")
    print(f"the centre or both predict; the last column is the rest. Maps are learned from {looked:,} training images.")
    return _figure(seen, [*convs, "all"], {text: [100 * c / len(labels) for c in row] for text, row in found.items()})


@contextmanager
def replace_neighbours(convs: dict[str, nn.Conv2d], way: Callable[[str], Replace]) -> Iterator[None]:
    """Replace n_c in 3x3 convolutions (stride 1, padding 1) inside the block."""

    def hook(name: str) -> Callable[..., Tensor]:
        do = way(name)

        def after(conv: nn.Conv2d, args: tuple[Tensor], y: Tensor) -> Tensor:
            centre = F.conv2d(args[0], conv.weight[:, :, 1:2, 1:2], conv.bias)
            return centre + do(args[0], y - centre)

        return after

    handles = [conv.register_forward_hook(hook(name)) for name, conv in convs.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _ways(seen: dict[str, Seen]) -> dict[str, Callable[[str], Replace]]:
    """Give the replacements of n_c by their names in the table."""

    def drawn(name: str, shape: tuple[int, ...], draws: torch.Generator) -> Tensor:
        table = seen[name].table
        return (
            table.gather(1, torch.randint(_TABLE, (len(table), shape[0] * shape[2] * shape[3]), generator=draws))
            .reshape(len(table), shape[0], *shape[2:])
            .movedim(0, 1)
        )

    def fixed(name: str) -> Replace:
        shape = (1, *seen[name].n.shape)
        mask = drawn(name, shape, stream(1, name))
        return lambda x, n: mask

    def redrawn(name: str) -> Replace:
        draws = stream(2, name)
        return lambda x, n: drawn(name, tuple(n.shape), draws)

    def centre(name: str, mask: bool) -> Replace:
        weights, offset, _ = seen[name].best(mask=mask)
        return lambda x, n: F.conv2d(x, weights.T[:, :, None, None]) + offset

    return {
        "n_c itself": lambda name: lambda x, n: n,
        "nothing but its mean": lambda name: lambda x, n: (seen[name].n / seen[name].count).mean((1, 2))[:, None, None],
        "its mean at every place: the best fixed mask": lambda name: lambda x, n: seen[name].by_place()[0],
        "noise of its distribution, fixed": fixed,
        "noise of its distribution, drawn anew": redrawn,
        "the n_c of another image": lambda name: lambda x, n: n.roll(1, 0),
        "what the centre tells: the best 1x1 convolution": lambda name: centre(name, False),
        "... and the best mask": lambda name: centre(name, True),
    }


def _correct(
    net: nn.Module, convs: dict[str, nn.Conv2d], way: Callable[[str], Replace], images: Tensor, labels: Tensor
) -> int:
    with replace_neighbours(convs, way):
        return evaluate.answers(net, images, labels).counts.correct


def _kurtosis(table: Tensor) -> float:
    """Compute the median over channels of the kurtosis of values (C, S)."""
    centred = table.double() - table.double().mean(1, keepdim=True)
    return float((centred.pow(4).mean(1) / centred.square().mean(1).square()).median())


def _trained(run: Path | None, dataroot: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Give a trained net in eval mode, its training images, the labels of its test images, and these (N, C, H, W)."""
    if run is None:
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder, "run")
            words = "train --net-type batchout_cifar --nfilters 4 --dataset-train digits --optim-method Adam"
            with redirect_stdout(sys.stderr):
                if main.main(
                    [*words.split(), "--learning-rate", "0.01", "--nepochs", "3", "--quiet", "--out", str(own)]
                ):
                    raise RuntimeError("the small net could not be trained")
            return _opened(own, dataroot)
    if not (run / "record.json").is_file():
        study = f"{run.parts[-2]} --preset {run.parts[-3]} --seed {run.name.removeprefix('seed-')}"
        raise UserError(f"{run} is not a trained run; make it with: perturblab run {study} --dataroot {dataroot}")
    return _opened(run, dataroot)


def _opened(folder: Path, dataroot: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    run = open_trained(folder, Show(quiet=True), {"dataroot": dataroot, "precision": "fp32"})
    images = run.images
    return run.model, run.normalised(images.train.images[:5000]), images.test.labels, run.normalised(images.test.images)


def _figure(seen: dict[str, Seen], places: list[str], found: dict[str, list[float]]) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.4), width_ratios=(2, 3))
    edges = torch.linspace(-5, 5, 81)
    middles = (edges[1:] + edges[:-1]) / 2
    for name, own in seen.items():
        z = (own.table - own.table.mean(1, keepdim=True)) / own.table.std(1, keepdim=True).clamp(min=1e-12)
        density = torch.histogram(z.flatten(), edges, density=True).hist
        left.plot(middles, density, label=name)
    left.plot(middles, torch.exp(-middles.square() / 2) / (2 * torch.pi) ** 0.5, "k:", label="normal")
    left.set(yscale="log", ylim=(1e-4, 3), xlabel="n_c, in standard deviations of its channel", ylabel="density")
    left.yaxis.set_major_formatter("{x:g}")
    left.legend(frameon=False, fontsize=9)
    for rank, (text, values) in enumerate(found.items()):
        right.plot(places, values, marker="osD^vPX*"[rank], linestyle=("-", "--")[rank % 2], label=text)
    right.set(ylabel="test accuracy, %", ylim=(0, 100), xlabel="the layer whose n_c is replaced")
    right.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    return figure
