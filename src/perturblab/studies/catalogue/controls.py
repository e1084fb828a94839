"""Runs that nobody published and that the dispute needs: controls, one factor at a time, noise in every manner."""

from perturblab.studies.catalogue import pnn
from perturblab.studies.catalogue.types import Flags, variant

_BY_ID = {setup.id: setup for setup in pnn.SETUPS}
_K1, _K3, _K4, _K5, _H2, _H5, _A1, _A2 = (_BY_ID[name] for name in ("K1", "K3", "K4", "K5", "H2", "H5", "A1", "A2"))
_INERT = "On H5 the scale does nothing, since its first layer is a convolution; this net has noise there too."
_A1_RECIPE: Flags = {key: _A1.flags[key] for key in ("code", "batch_size", "learning_rate", "optim_method", "nepochs")}

# From experiment 3 to the reply's recipe, one factor at a time, then three together.
_FROM_K3 = (
    variant(_K3, "K3-adam", "experiment 3 with Adam", {"optim_method": "Adam"}),
    variant(_K3, "K3-rmsprop", "experiment 3 with RMSprop", {"optim_method": "RMSprop"}),
    variant(_K3, "K3-level-0.1", "experiment 3 at noise level 0.1", {"level": 0.1}),
    variant(_K3, "K3-level-0", "experiment 3 without noise: its masks at level 0", {"level": 0.0}),
    variant(
        _K3,
        "K3-lr-1e-3",
        "experiment 3 at the rate that the reply blames",
        {"learning_rate": 1e-3},
        doubts=("Experiment 3 has the reply's 1e-4 already; only 4 to 8 have 1e-3.",),
    ),
    variant(_K3, "K3-schedule", "experiment 3 with the reply's schedule", {"optimizer_schedule": "up"}),
    variant(
        _K3,
        "K3-epochs",
        "experiment 3 for 450 epochs",
        {"nepochs": 450},
        doubts=("Its schedule makes a fourth step at epoch index 159, which 150 epochs never reach.",),
    ),
    variant(
        _K3,
        "K3-frozen",
        "experiment 3 with its first convolution frozen at random",
        {"code": "up", "optimizer_schedule": "kl"},
        counts=(5_621_258, 1_097_728),
    ),
    variant(
        _K3,
        "K3-order",
        "experiment 3 in the reproduction's order: convolution, batch norm, ReLU, and a branch that is never negative",
        {"net_type": "perturb_resnet18", "filter_size": 0, "nmasks": 1},
        counts=(5_611_146, 1_097_728),
        doubts=("Experiment 3 has the authors' order already; the reply's complaint is about experiments 4 to 8.",),
    ),
    variant(
        _K3,
        "K3-dropout",
        "experiment 3 with --dropout 0",
        {"dropout": 0.0},
        doubts=("No ResNet of the three codes reads dropout: this run is experiment 3 again.",),
    ),
    variant(_K3, "K3-adam-level", "experiment 3 with Adam at level 0.1", {"optim_method": "Adam", "level": 0.1}),
    variant(
        _K3,
        "K3-adam-level-schedule",
        "experiment 3 with Adam, level 0.1 and the reply's schedule",
        {"optim_method": "Adam", "level": 0.1, "optimizer_schedule": "up"},
    ),
)

# From experiment 5 to the reply's net with noise in all layers, one factor at a time, then recipe and width.
_FROM_K5 = (
    variant(_K5, "K5-adam", "experiment 5 with Adam", {"optim_method": "Adam"}),
    variant(_K5, "K5-level-0.1", "experiment 5 at noise level 0.1", {"level": 0.1}),
    variant(_K5, "K5-lr-1e-4", "experiment 5 at learning rate 1e-4", {"learning_rate": 1e-4}),
    variant(_K5, "K5-schedule", "experiment 5 with the reply's schedule", {"optimizer_schedule": "up"}),
    variant(_K5, "K5-epochs", "experiment 5 for 450 epochs", {"nepochs": 450}),
    variant(_K5, "K5-batch-20", "experiment 5 with batches of 20", {"batch_size": 20}),
    variant(_K5, "K5-nf256", "experiment 5 at twice the width", {"nfilters": 256}, counts=(22_357_514, 2_198_528)),
    variant(
        _K5,
        "K5-first-20",
        "experiment 5 with 20 times the level in its first layer",
        {"scale_noise": 20.0},
        doubts=("At the reproduction's level that is 10 in the first layer; the reply has 2.",),
    ),
    variant(
        _K5,
        "K5-reply-first",
        "experiment 5 with the reply's first layer: five times as many masks, 20 times the level, BN, sigmoid, 1x1",
        {"code": "up", "optimizer_schedule": "kl"},
        counts=(5_907_594, 3_063_808),
    ),
    variant(
        _K5,
        "K5-reply-first-1",
        "the same first layer without the 20 times higher level",
        {"code": "up", "optimizer_schedule": "kl", "scale_noise": 0.05},
        counts=(5_907_594, 3_063_808),
    ),
    variant(
        _K5,
        "K5-masks",
        "experiment 5 with five times nfilters masks a colour channel in its first layer",
        {"first_masks": 5},
        counts=(5_853_578, 3_063_808),
        doubts=(
            "The 1x1 convolution behind them sees all colours, as experiment 5's: the reply's is grouped by colour, "
            "which a second 1x1 makes good.",
        ),
    ),
    variant(
        _K5,
        "K5-sigmoid",
        "experiment 5 with batch norm and sigmoid around its first layer",
        {"first_sigmoid": True},
        counts=(5_608_208, 1_100_800),
    ),
    variant(
        _K5,
        "K5-extra-1x1",
        "experiment 5 with a second 1x1 convolution after its first layer, which is three times as wide for it",
        {"first_mix": True},
        counts=(5_659_146, 1_100_800),
    ),
    variant(
        _K5,
        "K5-recipe",
        "experiment 5's net under the reply's recipe",
        {**_A1_RECIPE, "code": None, "optimizer_schedule": "up", "level": 0.1, "batch_size": 20},
    ),
    variant(
        _K5,
        "K5-recipe-nf256",
        "experiment 5's net at twice the width under the reply's recipe",
        {**_A1_RECIPE, "code": None, "optimizer_schedule": "up", "level": 0.1, "batch_size": 20, "nfilters": 256},
        counts=(22_357_514, 2_198_528),
    ),
    variant(
        _A2,
        "A2-nf128",
        "the reply's net for all layers at half the width",
        {"nfilters": 128},
        counts=(5_907_594, 3_063_808),
    ),
    variant(_A2, "A2-first-1", "the same without the 20 times higher level in the first layer", {"scale_noise": 0.05}),
    variant(_A2, "A2-level-0", "the same without noise: its masks at level 0", {"level": 0.0}),
)

_UNDER_A1 = (
    *(
        variant(_A1, f"A1-level-{level:g}", f"the reply's recipe at noise level {level:g}", {"level": level})
        for level in (0.0, 0.02, 0.5, 1.0, 2.0)
    ),
    variant(_A1, "A1-sgd", "the reply's recipe with SGD", {"optim_method": "SGD"}),
    variant(_A1, "A1-rmsprop", "the reply's recipe with RMSprop", {"optim_method": "RMSprop"}),
    variant(_A1, "A1-lr-1e-3", "the reply's recipe at learning rate 1e-3", {"learning_rate": 1e-3}),
    variant(_A1, "A1-schedule", "the reply's recipe with the reproduction's schedule", {"optimizer_schedule": "kl"}),
    variant(_A1, "A1-epochs", "the reply's recipe for 150 epochs", {"nepochs": 150}),
    variant(
        _A1,
        "A1-learned",
        "the reply's recipe with its first convolution learned",
        {"code": None, "optimizer_schedule": "up"},
        counts=(5_624_714, 1_097_728),
        doubts=("The same as the authors' own repair of their first code, but for 450 epochs instead of 500.",),
    ),
    variant(_A1, "A1-untied", "the masks outside the ReLU: an untied bias, fixed", {"untied_bias": True}),
    variant(
        _A1,
        "A1-constant",
        "masks of one value a channel: random thresholds that know no place",
        {"constant_masks": True},
        counts=(5_621_258, 6_784),
    ),
    variant(
        _A1, "A1-redraw-train", "new masks at every training step, fixed ones in evaluation", {"redraw_masks": "train"}
    ),
    variant(_A1, "A1-redraw-always", "new masks at every forward pass", {"redraw_masks": "always"}),
    variant(
        _A1,
        "OR-fix",
        "the authors' first code after their own repair: 3x3 first layer, no max-pool, five steps of the rate",
        {"code": "or", "optimizer_schedule": "up", "level": None, "optim_method": None, "nepochs": None},
        counts=(5_624_714, 1_097_728),
        doubts=(
            "In its README: smoothing off, rate times 0.2 at 150, 250, 300, 350 and 400, a learned 3x3 first "
            "convolution of stride 1, no max-pool. No figure was given for it.",
        ),
    ),
    *(
        variant(
            base,
            name,
            f"{about} under the reply's recipe",
            {**_A1_RECIPE, "code": None, "optimizer_schedule": "up", **more},
        )
        for base, name, about, more in (
            (_K1, "A1-cnn", "ResNet18 of 3x3 convolutions at the PNN's parameters", {}),
            (_H2, "A1-cnn-nf128", "ResNet18 of 3x3 convolutions at the PNN's width", {}),
            (_K4, "A1-1x1", "experiment 4's net, 1x1 without noise,", {}),
            (_H5, "A1-order", "the direct partner of experiment 4, noise in the reproduction's order,", {"level": 0.1}),
        )
    ),
    variant(
        _K1,
        "A1-cnn-nf64",
        "ResNet18 of 3x3 convolutions, 64 filters, under the reply's recipe",
        {**_A1_RECIPE, "code": None, "optimizer_schedule": "up", "nfilters": 64},
        counts=(11_173_962, 0),
    ),
    variant(_K1, "K1-nf64", "experiment 1 with 64 filters", {"nfilters": 64}, counts=(11_173_962, 0)),
)


_NO_MASKS: Flags = {"level": None}
_FILTERS = "A filter multiplies by -1, 0 and 1 only, which counts as multiplications here."
_WIDTH = "Its own nine multiplications a value are {} of all at the published width and {} at an eighth of it."
# What stands in the place of the masks in the same net, so that nothing else differs at any width.
_OTHER_OPERATORS = (
    variant(
        _A1,
        "A1-frozen-3x3",
        "the ResNet of the reply with frozen random 3x3 filters in place of the masks, parameters alike",
        {**_NO_MASKS, "operator": "anchors"},
        counts=(5_621_258, 0),
        doubts=("It has 8.0 times the multiplications of the reply's net.", _FILTERS),
    ),
    variant(
        _A1,
        "A1-frozen-depthwise",
        "the same with one frozen random 3x3 filter a channel, parameters and multiplications alike",
        {**_NO_MASKS, "operator": "anchors-depthwise"},
        counts=(5_621_258, 0),
        doubts=(
            _WIDTH.format("2.8 %", "17.5 %"),
            _FILTERS,
            "The filters are drawn as in local binary convolution, all values at once: about 1 % of them are empty.",
        ),
    ),
    variant(
        _A1,
        "A1-shift",
        "shift and 1x1: every channel moved by a pixel in one of nine directions in place of the masks",
        {**_NO_MASKS, "operator": "shift"},
        counts=(5_621_258, 0),
        doubts=(
            "ShiftResNet20 has 85.78 to 91.79 % on CIFAR-10 with 0.03 to 0.28 million parameters "
            "(https://arxiv.org/abs/1711.08141 and its repository).",
        ),
    ),
    variant(
        _A1,
        "A1-depthwise",
        "learned depthwise 3x3 convolutions in place of the masks",
        {**_NO_MASKS, "operator": "depthwise"},
        counts=(5_682_314, 0),
        doubts=(
            _WIDTH.format("2.8 %", "17.5 %"),
            "It has 1.1 % more parameters at the published width, 8.2 % more at an eighth of it.",
        ),
    ),
    variant(
        _K1,
        "A1-norms",
        "ResNet18 of frozen random 3x3 convolutions, only its batch norms trained, under the reply's recipe",
        {**_A1_RECIPE, "code": None, "optimizer_schedule": "up", "train_only": "norms"},
        doubts=(
            "The parameters are those of the net; 6,600 of them are trained.",
            "82 % on CIFAR-10 was reported for a much deeper ResNet (https://arxiv.org/abs/2003.00152).",
        ),
    ),
)

_ACTS = ("lrelu", "prelu", "rrelu", "elu", "selu", "tanh", "sigmoid")
_LEARNED_SLOPES = {"H5-prelu": 33, "K4-prelu": 17}  # one for each activation
_OF_H5 = (
    *(
        variant(_H5, f"H5-level-{level:g}", f"H5 at noise level {level:g}", {"level": level})
        for level in (0.02, 0.1, 1.0, 2.0)
    ),
    variant(_H5, "H5-untied", "H5 with its masks outside the ReLU: an untied bias, fixed", {"untied_bias": True}),
    variant(
        _H5,
        "H5-untied-trained",
        "H5 with a learned untied bias, one value a channel and pixel",
        {"untied_bias": True, "train_masks": True},
        counts=(6_708_874, 1_097_728),
    ),
    variant(_H5, "H5-trained", "H5 with trained masks", {"train_masks": True}, counts=(6_708_874, 1_097_728)),
    variant(
        _H5, "H5-constant", "H5 with masks of one value a channel", {"constant_masks": True}, counts=(5_611_146, 6_784)
    ),
    variant(_H5, "H5-redraw-train", "H5 with new masks at every training step", {"redraw_masks": "train"}),
    variant(_H5, "H5-redraw-always", "H5 with new masks at every forward pass", {"redraw_masks": "always"}),
    variant(_H5, "H5-normal", "H5 with normal instead of uniform noise", {"noise_type": "normal"}),
    variant(_H5, "H5-avg", "H5 with average pooling", {"pool_type": "avg"}),
    variant(_H5, "H5-strided", "H5 with every other pixel kept in place of a max-pool", {"pool_type": "stride"}),
    variant(_H5, "H5-overlap", "H5 with max-pools over 3x3, which overlap", {"pool_type": "overlap"}),
    variant(_H5, "H5-first-1", "H5 with a 1x1 first layer", {"first_filter_size": 1}, counts=(5_608_202, 1_097_728)),
    variant(_H5, "H5-first-5", "H5 with a 5x5 first layer", {"first_filter_size": 5}, counts=(5_617_290, 1_097_728)),
    variant(_H5, "H5-first-7", "H5 with a 7x7 first layer", {"first_filter_size": 7}, counts=(5_626_506, 68_608)),
    variant(
        _H5,
        "H5-filter-3",
        "H5 with 3x3 convolutions for noise",
        {"filter_size": 3, "nmasks": None},
        counts=(44_662_922, 0),
    ),
    variant(
        _H5,
        "H5-filter-5",
        "H5 with 5x5 convolutions for noise",
        {"filter_size": 5, "nmasks": None},
        counts=(122_781_834, 0),
    ),
    variant(
        _H5,
        "H5-filter-7",
        "H5 with 7x7 convolutions for noise",
        {"filter_size": 7, "nmasks": None},
        counts=(239_960_202, 0),
    ),
    variant(_K4, "K4-avg", "experiment 4 with average pooling", {"pool_type": "avg"}),
    variant(_K4, "K4-first-5", "experiment 4 with a 5x5 first layer", {"first_filter_size": 5}, counts=(5_617_290, 0)),
    variant(_K4, "K4-first-7", "experiment 4 with a 7x7 first layer", {"first_filter_size": 7}, counts=(5_626_506, 0)),
    *(
        variant(
            base,
            f"{base.id}-{act}",
            f"{about} with {act} for ReLU",
            {"act": act},
            counts=((base.parameters or 0) + _LEARNED_SLOPES.get(f"{base.id}-{act}", 0), base.masks or 0),
        )
        for act in _ACTS
        for base, about in ((_H5, "H5"), (_K4, "experiment 4"))
    ),
    *(
        variant(
            _K5,
            f"K5-scale-{scale:g}",
            f"experiment 5 with {scale:g} times the level in its first layer",
            {"scale_noise": scale},
            doubts=(_INERT,),
        )
        for scale in (0.1, 2.0)
    ),
    variant(_K5, "K5-use-act", "experiment 5 with an activation after the first mask", {"use_act": True}),
)

SETUPS = (*_FROM_K3, *_FROM_K5, *_UNDER_A1, *_OTHER_OPERATORS, *_OF_H5)
