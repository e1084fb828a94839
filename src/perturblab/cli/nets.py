"""The commands `models` and `describe`: the nets by name, and the counts of one."""

import argparse
from typing import Any

from perturblab.cli.arguments import integers
from perturblab.cli.config_file import training_config
from perturblab.cli.output import print_json
from perturblab.errors import UserError
from perturblab.system.exit_codes import DONE


def list_nets(args: argparse.Namespace) -> int:
    """List the nets by name."""
    from perturblab.models.build import NETS, options_read

    nets = [{"net": name, "about": net.about, "options": sorted(options_read(name))} for name, net in NETS.items()]
    if args.json:
        print_json(nets)
    else:
        print("\n".join(f"{net['net']:17} {net['about']}" for net in nets))
    return DONE


def describe_net(args: argparse.Namespace) -> int:
    """Count a net's parameters, masks and operations from its modules."""
    config = training_config(args)
    size = integers(args.image_size, "--image-size", (1, 2))
    channels, nclasses = (integers(args.channels, "--channels")[0], integers(args.nclasses, "--nclasses")[0])
    import torch

    from perturblab.models.describe import describe
    from perturblab.models.skeleton import Task
    from perturblab.runs.build import build_net
    from perturblab.system.terminal import Show

    task = Task(nclasses, channels, (size[0], size[-1]))
    with torch.device("meta"):
        net = build_net(config, task, seed=config.manual_seed, warn=Show().warn)
    try:
        described = describe(net, task, config.net)
    except RuntimeError as error:  # more values in a layer than 64 bits can count
        raise UserError(f"--image-size {args.image_size} is beyond what can be counted; use a smaller one") from error
    if args.json:
        print_json(described)
    else:
        print(_description(described))
    return DONE


def _description(described: dict[str, Any]) -> str:
    lines = [f"{'layer':40} {'type':18} {'output':>16} {'parameters':>12} {'masks':>12} {'MACs':>14}"]
    for row in described["layers"]:
        shape = "x".join(map(str, row["shape"]))
        numbers = f"{row['parameters']:>12,} {row['masks']:>12,} {row['macs']:>14,}"
        lines.append(f"{row['name']:40} {row['type']:18} {shape:>16} {numbers}")
    lines.append(
        f"{described['net']}: {described['trainable']:,} trainable, {described['frozen']:,} frozen, "
        f"{described['masks']:,} mask values, {described['macs']:,} MACs an image, "
        f"receptive field {described['receptive_field']} pixels"
    )
    return "\n".join(lines)
