"""The choices of every option that has names: once, for the command line, the records and the library.

A `Literal` each; `check_choice` refuses any other value. The file imports nothing of ours, so that every room may read
it.
"""

from typing import Any, Literal, get_args

Code = Literal["or", "kl", "up"]

# Nets.
NoiseType = Literal["uniform", "normal"]
RedrawMasks = Literal["never", "train", "always"]
MaskMemory = Literal["fp32", "bf16", "seed"]
FilterSize = Literal[0, 1, 3, 5, 7]
Act = Literal["relu", "lrelu", "prelu", "rrelu", "elu", "selu", "tanh", "sigmoid"]
PoolType = Literal["max", "avg", "stride", "overlap"]
Operator = Literal["noise", "shift", "depthwise", "anchors", "anchors-depthwise"]
FixedAnchors = Literal["binary", "gaussian"]
Anchors = Literal[FixedAnchors, "dense"]
Reading = Literal["A", "B"]
NormOrder = Literal["relu-bn", "bn-relu"]

# Training.
OptimMethod = Literal["SGD", "Adam", "RMSprop", "AdamW"]
Schedule = Literal["or", "kl", "up", "batchout", "cosine", "onecycle", "constant"]
Precision = Literal["fp32", "bf16"]
Compile = Literal["on", "off", "auto"]
TrainOnly = Literal["norms"]
Log = Literal["csv", "tb"]

# Defences and attacks.
Defence = Literal["none", "batchout", "fgsm", "fgsm-half", "pgd"]
DefenceMode = Literal["eval", "train"]
Partners = Literal["replacement", "permutation", "mutual", "no-self", "different-class", "same-class"]
MixedIn = Literal[Partners, "noise"]
Rows = Literal["first", "random"]
EtaPer = Literal["call", "image"]
Shared = Literal["none", "partners", "eta", "both"]
Norm = Literal["linf", "l2"]


def check_choice(option: str, value: object, choices: Any) -> None:
    """Refuse a value that is not among an option's choices.

    Args:
        option: the name of the option, for the message.
        value: what it was set to.
        choices: one of the `Literal` types of this file.

    Raises:
        ValueError: the value is none of them.
    """
    names = get_args(choices)
    if value not in names:
        raise ValueError(f"{option} is {value!r}; choose one of {', '.join(names)}")
