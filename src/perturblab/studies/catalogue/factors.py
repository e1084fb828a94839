"""Differences one factor at a time: the reply's recipe, noise in every manner, the controls that nobody published."""

from perturblab.studies.catalogue.sources import KL, PAPER, UP
from perturblab.studies.catalogue.types import Claim, tag_claims

_NOBODY = "Nobody published this control"
_WHY = KL.format("README, conclusion")
_BLAMED = UP.format("README, section 1")

_BLAMED_MOST = ("adam", "level-0.1")
_BLAMED_TOO = ("masks", "first-20", "lr-1e-4", "schedule")
_MOST = "Named as one of the two that hurt most."
_NO_DIRECTION = "No direction was claimed: each optimiser is said to take a path of its own."
_UNNAMED = "The reply does not name it."
# Set-up, what it changes, lowest claimed gain, doubts.
_STEPS_FROM_K3: tuple[tuple[str, str, float | None, tuple[str, ...]], ...] = (
    ("adam", "Adam instead of SGD", 0.0, (_MOST,)),
    ("rmsprop", "RMSprop instead of SGD", None, (_NO_DIRECTION,)),
    ("level-0.1", "a noise level of 0.1 instead of 0.5", 0.0, (_MOST,)),
    (
        "lr-1e-3",
        "a learning rate of 1e-3 instead of 1e-4",
        None,
        ("The reply blames 1e-3, which experiment 3 has not.",),
    ),
    ("schedule", "the reply's schedule", 0.0, ()),
    ("order", "the reproduction's order of convolution, batch norm and ReLU", None, ("The reply blames this order.",)),
    ("epochs", "450 epochs instead of 150", None, (_UNNAMED,)),
    ("frozen", "a first convolution frozen at random", None, (_UNNAMED,)),
)
_STEPS_FROM_K5: tuple[tuple[str, str, float | None, tuple[str, ...]], ...] = (
    ("masks", "five times nfilters masks a colour channel", 0.0, ()),
    ("first-20", "20 times the level in the first layer", 0.0, ("From 0.5 that is 10; the reply has 2.",)),
    ("sigmoid", "batch norm and sigmoid around the first layer", None, (_UNNAMED,)),
    ("extra-1x1", "a second 1x1 convolution after the first layer", None, (_UNNAMED,)),
    ("reply-first", "the reply's whole first layer", 0.0, ()),
    ("nf256", "twice the width", None, (_UNNAMED,)),
    ("adam", "Adam instead of SGD", 0.0, (_MOST,)),
    ("level-0.1", "a noise level of 0.1 instead of 0.5", 0.0, (_MOST,)),
    ("lr-1e-4", "a learning rate of 1e-4 instead of 1e-3", 0.0, ()),
    ("schedule", "the reply's schedule", 0.0, ()),
    ("epochs", "450 epochs instead of 150", None, (_UNNAMED,)),
    ("batch-20", "batches of 20 instead of 16", None, (_UNNAMED,)),
    ("recipe", "optimiser, level, rate, schedule, epochs and batch together", 0.0, ()),
)
# The same path with every step on top of the last one; the differences add up to R-recipe and R-first-layer.
_TOGETHER = (
    ("K3-adam-level", "K3-adam", "a noise level of 0.1 on top of Adam"),
    ("K3-adam-level-schedule", "K3-adam-level", "the reply's schedule on top of Adam and level"),
    ("A1-learned", "K3-adam-level-schedule", "450 epochs on top of Adam, level and schedule"),
    ("K5-recipe-nf256", "K5-recipe", "twice the width on top of the reply's recipe"),
    ("A2", "K5-recipe-nf256", "the reply's first layer on top of recipe and width"),
    (
        "K5-reply-first",
        "K5-reply-first-1",
        "20 times the level in the reply's first layer, under experiment 5's recipe,",
    ),
    ("A2", "A2-first-1", "20 times the level in the reply's first layer"),
    ("A2", "A2-nf128", "twice the width in the reply's net for all layers"),
)
# Back from the reply's recipe, one factor at a time.
_STEPS_FROM_A1 = (
    ("sgd", "SGD instead of Adam", (_MOST,)),
    ("rmsprop", "RMSprop instead of Adam", (_NO_DIRECTION,)),
    ("level-0.5", "a noise level of 0.5 instead of 0.1", (_MOST,)),
    ("lr-1e-3", "a learning rate of 1e-3 instead of 1e-4", ()),
    ("schedule", "the reproduction's schedule", ()),
    ("epochs", "150 epochs instead of 450", (_UNNAMED,)),
    ("order", "the reproduction's order of layers, and a learned first convolution", ()),
)
_LADDERS = (
    *(
        Claim(
            f"R-{base}-{step}",
            f"Experiment {base[1]} gains by {what}.",
            source,
            f"{base}-{step}",
            base,
            low,
            None,
            doubts=doubts,
        )
        if low is not None
        else Claim(
            f"R-{base}-{step}",
            f"What {what} does to experiment {base[1]}.",
            source,
            f"{base}-{step}",
            base,
            doubts=doubts,
        )
        for base, source, steps in (("K3", _BLAMED, _STEPS_FROM_K3), ("K5", f"{_BLAMED}; section 3", _STEPS_FROM_K5))
        for step, what, low, doubts in steps
    ),
    *(
        Claim(f"R-{right}-to-{left}", f"What {what} adds.", f"{_NOBODY}; factors as in {_BLAMED}", left, right)
        for left, right, what in _TOGETHER
    ),
    *(
        Claim(
            f"R-A1-{step}",
            f"What {what} takes from the reply's recipe.",
            f"{_NOBODY}; factors as in {_BLAMED}",
            f"A1-{step}",
            "A1",
            None,
            None if {_NO_DIRECTION, _UNNAMED} & {*doubts} else 0.0,
            doubts=doubts,
        )
        for step, what, doubts in _STEPS_FROM_A1
    ),
    Claim(
        "R-K3-dropout",
        "The reproduction's dropout of 0.5 costs accuracy.",
        _BLAMED,
        "K3",
        "K3-dropout",
        0.0,
        None,
        how="no ResNet of the three codes reads dropout, and both runs are the same bit for bit: the claim is false",
    ),
    *(
        Claim(
            f"R-hurt-most-{step}",
            f"Optimiser and noise level cost more than all the other differences: {what}.",
            _BLAMED,
            f"K5-{step}",
            low=0.0,
            rivals=tuple(f"K5-{other}" for other in _BLAMED_TOO),
            base="K5",
            doubts=(
                "From a limited number of attempts, by the author's word.",
                "Judged from experiment 5: experiment 3 has the reply's rate and order of layers already.",
            ),
        )
        for step, what, *_ in _STEPS_FROM_K5
        if step in _BLAMED_MOST
    ),
)

_WAYS = (
    ("H5-normal", "K4", "normal instead of uniform noise"),
    *(
        (f"H5-{act}", f"K4-{act}", f"{act} instead of ReLU")
        for act in ("lrelu", "prelu", "rrelu", "elu", "selu", "tanh", "sigmoid")
    ),
    ("H5-avg", "K4-avg", "average pooling"),
    *((f"K5-scale-{scale}", "H4", f"{scale} times the level in a noisy first layer") for scale in ("0.1", "2")),
    ("K5-first-20", "H4", "20 times the level in a noisy first layer"),
    ("H5-first-1", "H4", "a 1x1 first layer"),
    ("H5-first-5", "K4-first-5", "a 5x5 first layer"),
    ("H5-first-7", "K4-first-7", "a 7x7 first layer"),
    ("H6", "K4", "64 masks a channel"),
    ("H5-level-0.02", "K4", "a level of 0.02"),
    ("H5-level-0.1", "K4", "a level of 0.1"),
    ("H5-level-1", "K4", "a level of 1"),
    ("H5-level-2", "K4", "a level of 2"),
)
_NO_MATTER = (
    *(
        Claim(
            f"R-any-{left}",
            f"No matter how noise is applied, 1x1 filters cost about 5 points: {what}.",
            _WHY,
            "K1",
            left,
            4.0,
            None,
            doubts=("Which ways were tried is not recorded; about 5 is taken as 4 or more.",),
        )
        for left, _, what in _WAYS
    ),
    *(
        Claim(
            f"R-any-{left}-twin",
            f"No matter how noise is applied, 1x1 convolutions without it do about as well: {what}.",
            _WHY,
            left,
            right,
            None,
            1.0,
            doubts=("About as well is taken as less than 1 point, as said elsewhere on the page.",),
        )
        for left, right, what in _WAYS
    ),
    *(
        Claim(
            f"R-filter-{side}",
            f"What {side}x{side} convolutions in the place of noise gain.",
            _NOBODY,
            f"H5-filter-{side}",
            "H5",
        )
        for side in (3, 5, 7)
    ),
)

_CONTROLLED = (
    *(
        Claim(
            f"R-{base}-level-{level}",
            f"What a noise level of {level} does to {base} ({own}).",
            _NOBODY,
            f"{base}-level-{level}",
            base,
        )
        for base, own, levels in (("A1", "0.1", ("0.02", "1", "2")), ("H5", "0.5", ("0.02", "0.1", "1", "2")))
        for level in levels
    ),
    *(
        Claim(f"R-{base}-{name}", f"{text} ({base}).", _NOBODY, base, f"{base}-{name}")
        for base in ("A1", "H5")
        for name, text in (
            ("untied", "What a mask inside the activation has over an untied bias outside it"),
            ("constant", "What a mask that knows the place has over a random threshold of its channel"),
            ("redraw-train", "What fixed masks have over masks that are drawn anew in training"),
            ("redraw-always", "What fixed masks have over masks that are drawn anew always"),
        )
    ),
    Claim(
        "R-H5-untied-trained", "What a learned untied bias has over fixed masks.", _NOBODY, "H5-untied-trained", "H5"
    ),
    Claim("R-H5-trained", "What training gives to one mask a channel.", _NOBODY, "H5-trained", "H5"),
    Claim(
        "R-A1-cnn",
        "PNNs do about as well as CNNs: the reply's net against 3x3 filters of about as many weights, by its recipe.",
        PAPER.format("abstract"),
        "A1",
        "A1-cnn",
        doubts=("No margin was given.", "No CNN was ever published under this recipe."),
    ),
    *(
        Claim(
            f"R-A1-cnn-nf{width}",
            f"What a CNN of {width} filters has over the reply's net under its recipe.",
            _NOBODY,
            f"A1-cnn-nf{width}",
            "A1",
        )
        for width in (64, 128)
    ),
    Claim("R-K1-nf64", "What 64 instead of 44 filters give to experiment 1.", _NOBODY, "K1-nf64", "K1"),
    *(
        Claim(f"R-{name}-recipe", f"What the authors' recipe does to {about}.", _NOBODY, f"A1-{name}", base)
        for name, about, base in (("cnn", "a CNN", "K1"), ("1x1", "1x1 convolutions without noise", "K4"))
    ),
    Claim("R-A2-level-0", "What noise gives to the reply's net for all layers.", _NOBODY, "A2", "A2-level-0"),
    Claim(
        "R-OR-fix",
        "What the authors' repair changes in their first code.",
        _NOBODY,
        "OR-fix",
        "P3",
        doubts=("As published the repair has 500 epochs and their own command 80.",),
    ),
    *(
        Claim(f"R-{name}", f"What {what} have over noise masks, {matched}.", _NOBODY, name, "A1")
        for name, what, matched in (
            ("A1-frozen-3x3", "frozen random 3x3 filters", "parameters alike"),
            (
                "A1-frozen-depthwise",
                "frozen random 3x3 filters, one a channel,",
                "parameters and multiplications alike",
            ),
            ("A1-shift", "shifts by a pixel", "parameters and multiplications alike"),
            ("A1-depthwise", "learned depthwise 3x3 convolutions", "in the same ResNet"),
            ("A1-norms", "trained batch norms on random convolutions", "a floor for random features"),
        )
    ),
    Claim(
        "R-H5-strided",
        "What max-pooling gives to a net that mixes neighbours by nothing else.",
        _NOBODY,
        "H5",
        "H5-strided",
    ),
    Claim("R-H5-overlap", "What pools that overlap give to the same net.", _NOBODY, "H5-overlap", "H5"),
)

CLAIMS = (
    *tag_claims(_LADDERS, "pnn", "ladder"),
    *tag_claims(_NO_MATTER, "pnn", "manner"),
    *tag_claims(_CONTROLLED, "pnn", "control"),
)
