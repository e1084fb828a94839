"""Who can learn an arrangement.

Each image has two dots, one bright and one dark, in one row at a distance d, on faint noise. In one class the bright
dot is d to the left of the dark one; in the other class it is d to the right, round the edge. At every pixel both
classes have the same distribution, so only the arrangement tells them apart. A net of 1x1 convolutions sees other
pixels only through its first 3x3 convolution and its poolings: 10x10 pixels in all, with masks or without. It cannot
compare dots that are farther apart. Masks make places differ. A net that knows the places can use the rule "bright
dots are on the left". The rule is right for 1 - d / 32 of the images, those that do not go round the edge; the dotted
line shows it.

Well within the receptive field every net learns the task. Near its edge, 1x1 convolutions are right only for images
whose dots lie in one window of the poolings. Beyond it, only the 3x3 net learns. Masks add nothing to 1x1
convolutions: neither a comparison nor, in this short training, the places.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from perturblab.models import Task, build, describe
from perturblab.records.markdown import markdown_table
from perturblab.seeding import stream
from perturblab.stats import t_interval
from perturblab.training import evaluate

FULL = {"distances": (2, 5, 8, 11, 14), "seeds": (1, 2, 3), "steps": 250, "asked": 4000}
SMALL = {"distances": (2,), "seeds": (1,), "steps": 2, "asked": 50}
SIZE, BATCH = 32, 64
TASK = Task(nclasses=2, channels=1, size=(SIZE, SIZE))
NETS = {
    "3x3 convolutions": ("resnet18", {"nfilters": 4}),
    "1x1 convolutions": ("perturb_resnet18", {"nfilters": 8, "first_filter_size": 3, "filter_size": 1}),
    "masks, level 0.1": ("perturb_resnet18", {"nfilters": 8, "first_filter_size": 3, "filter_size": 0}),
    "masks, level 1": ("perturb_resnet18", {"nfilters": 8, "first_filter_size": 3, "filter_size": 0, "level": 1.0}),
}


def draw(dataroot: str, distances: tuple[int, ...], seeds: tuple[int, ...], steps: int, asked: int) -> Figure:
    """Train every net on every distance, and test it on new images."""
    del dataroot  # the images are synthetic
    field = describe(build("perturb_resnet18", task=TASK, **NETS["masks, level 1"][1]), TASK)["receptive_field"]
    figure, axes = plt.subplots(figsize=(7, 4.4))
    rows = []
    for (text, (name, options)), marker in zip(NETS.items(), "osD^", strict=True):
        intervals = [t_interval([_accuracy(name, options, d, seed, steps, asked) for seed in seeds]) for d in distances]
        means = [interval.mean for interval in intervals]
        ends = [(i.mean - (i.low or i.mean), (i.high or i.mean) - i.mean) for i in intervals]
        axes.errorbar(distances, means, yerr=torch.tensor(ends).T.clamp(min=0), marker=marker, capsize=3, label=text)
        cells = [f"{i.mean:.1f}" + (f" ± {i.mean - i.low:.1f}" if i.low is not None else "") for i in intervals]
        rows.append([text, *cells])
    rows.append(["by places alone", *(f"{100 * (1 - d / SIZE):.1f}" for d in distances)])
    print(markdown_table(["test accuracy, %", *(f"d = {d}" for d in distances)], rows))
    print(f"\nMeans over {len(seeds)} seeds with 95 % t-intervals; {steps} steps of {BATCH} new images, Adam;", end=" ")
    print(f"{asked:,} test images.")
    axes.plot(distances, [100 * (1 - d / SIZE) for d in distances], "k:", label="by places alone")
    axes.axvline(field, color="#808080", linewidth=1)
    axes.text(field, 102, f"receptive field, {field} pixels", fontsize=9, ha="center")
    axes.set(xlabel="distance of the dots, pixels", ylabel="test accuracy, %", ylim=(45, 105))
    axes.legend(frameon=False, fontsize=9)
    return figure


def make_images(labels: Tensor, distance: int, draws: torch.Generator) -> Tensor:
    """Make images (N, 1, 32, 32) of classes (N,): the dark dot is right (0) or left (1) of the bright one."""
    count = len(labels)
    x = 0.1 * torch.randn(count, SIZE, SIZE, generator=draws)
    row, column = torch.randint(SIZE, (2, count), generator=draws)
    every = torch.arange(count)
    x[every, row, column] += 3
    x[every, row, (column + torch.where(labels == 0, distance, -distance)) % SIZE] -= 3
    return x[:, None]


def _accuracy(name: str, options: dict[str, object], distance: int, seed: int, steps: int, asked: int) -> float:
    net, draws = build(name, task=TASK, seed=seed, **options), stream(seed, "images")
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    anneal = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for _ in range(steps):
        labels = torch.randint(2, (BATCH,), generator=draws)
        optimizer.zero_grad()
        F.cross_entropy(net(make_images(labels, distance, draws)), labels).backward()
        optimizer.step()
        anneal.step()
    draws = stream(0, "test images")
    labels = torch.randint(2, (asked,), generator=draws)
    return evaluate.answers(net.eval(), make_images(labels, distance, draws), labels).counts.percent
