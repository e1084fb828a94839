"""The options of a training run on the command line: one validated, frozen model.

Field names are the published flags with underscores. A default of None means: the published code's, or the net's own.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from perturblab.errors import UserError
from perturblab.records import choices
from perturblab.records.fields import Natural, Positive, Seed
from perturblab.records.radius import check_linf, parse_eps
from perturblab.system.files import expand_home

Config = TypeVar("Config", bound=BaseModel)
Blocks = Annotated[int, Field(ge=1, le=1000)]
Threads = Annotated[int, Field(ge=1, le=4096)]
Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _integer(value: Any) -> Any:
    """Convert the text of the command line, which a choice of integers would not take."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _rows(value: Any) -> Any:
    """Read a count, or a fraction of the batch: "1" is one row, "1.0" all of them."""
    text, number = str(value), math.nan
    with suppress(ValueError):
        number = int(text) if text.isdecimal() else float(text)
    if not number >= 0 or (isinstance(number, float) and not number <= 1):
        raise ValueError(f"--batchout-k got {text!r}; expected a count such as 64, or a fraction in [0, 1] such as 0.5")
    return number


def _radius(value: Any) -> str:
    """Check the radius of adversarial training (L-infinity); return it as it was typed, such as 8/255."""
    check_linf(parse_eps(str(value), "--defence-eps"), "--defence-eps")
    return str(value)


RowCount = Annotated[int | float, BeforeValidator(_rows)]
Radius = Annotated[str, BeforeValidator(_radius)]
FilterSize = Annotated[choices.FilterSize, BeforeValidator(_integer)]

# What the three published codes mean where a flag is not given (KL and UP: main.py; OR: config.py).
_KL = {"net_type": "resnet18", "optim_method": "SGD", "learning_rate": 1e-3, "level": 0.5, "nepochs": 150}
PUBLISHED: dict[str, dict[str, Any]] = {
    "kl": _KL,
    "up": _KL,
    "or": {"net_type": "noiseresnet18", "optim_method": "Adam", "learning_rate": 1e-3, "level": 0.1, "nepochs": 500},
}


class NetConfig(BaseModel):
    """The net; every option beside ``code`` and ``net_type`` is read by some nets only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    code: choices.Code = Field("kl", description="whose code a name, a default or a schedule means")
    net_type: Text | None = Field(None, description="the net; see perturblab models")
    nfilters: Positive | None = Field(None, description="filters of the first stage")
    nmasks: Positive | None = Field(None, description="noise masks for each input channel (fan-out)")
    unique_masks: bool | None = Field(None, description="own masks for every input channel")
    train_masks: bool | None = Field(None, description="train the masks like weights")
    mix_maps: bool | None = Field(None, description="a second 1x1 convolution in every perturbation layer")
    level: float | None = Field(None, description="noise level")
    scale_noise: float | None = Field(None, description="factor on the level of the first layer")
    first_masks: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="masks a channel in the first layer of a perturb_resnet, as a multiple of nfilters"
    )
    first_sigmoid: bool | None = Field(None, description="batch norm and sigmoid around that first layer")
    first_mix: bool | None = Field(None, description="a second 1x1 convolution after that first layer")
    noise_type: choices.NoiseType | None = Field(None, description="distribution of the masks")
    filter_size: FilterSize | None = Field(None, description="0: perturbation; else a convolution")
    first_filter_size: FilterSize | None = Field(None, description="the same for the first layer")
    act: choices.Act | None = Field(None, description="activation function")
    use_act: bool | None = Field(None, description="activation after the mask of the first layer too")
    pool_type: choices.PoolType | None = Field(
        None, description="pooling; controls: stride keeps one pixel of a window, overlap is a max over 3x3"
    )
    dropout: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="dropout; the ResNets never read it")
    constant_masks: bool | None = Field(None, description="control: one value a mask, the same at every pixel")
    redraw_masks: choices.RedrawMasks | None = Field(None, description="control: new masks a forward")
    untied_bias: bool | None = Field(None, description="control: the mask outside the activation")
    mask_memory: choices.MaskMemory | None = Field(None, description="how the masks are kept")
    operator: choices.Operator | None = Field(
        None, description="control: what stands in the place of the masks in a noise ResNet"
    )
    nweights: Positive | None = Field(None, description="anchors in each block of lbcnet")
    depth: Blocks | None = Field(None, description="blocks of lbcnet")
    full: Positive | None = Field(None, description="hidden linear layer of lbcnet")
    anchors: choices.Anchors | None = Field(None, description="filters of lbcnet")
    sparsity: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="draws over values of the anchors")
    padding: Annotated[int, Field(ge=0, le=2)] | None = Field(None, description="around the maps of the BatchOut nets")
    reading: choices.Reading | None = Field(None, description="which net the notes on bottleneck_resnet mean")
    blocks: Blocks | None = Field(None, description="blocks in each stage of bottleneck_resnet")
    norm_order: choices.NormOrder | None = Field(None, description="what follows a convolution of vgg19")

    @property
    def net(self) -> str:
        """The net's name, with the published default."""
        return self.net_type or str(PUBLISHED[self.code]["net_type"])


_NOT_OPTIONS = {"code", "net_type"}
NET_OPTIONS = tuple(name for name in NetConfig.model_fields if name not in _NOT_OPTIONS)


class TrainConfig(NetConfig):
    """A training run, as given."""

    dataset_train: Text = Field("CIFAR10", description="name or folder of the training set")
    dataset_test: Text | None = Field(None, description="name or folder of the test set; the training set's by default")
    dataroot: str = Field("data", validate_default=True, description="where a name is looked for first")
    classes: tuple[str, ...] | None = Field(None, description="only these classes, in this order: a,b,c")
    train_size: Positive | None = Field(None, description="train on so many images (stratified, seeded)")
    val_size: Natural = Field(0, description="hold out so many of them (stratified, seeded)")

    batch_size: Positive = Field(64, description="images a step")
    nepochs: Positive | None = Field(None, description="epochs of the whole run")
    manual_seed: Seed = Field(1, description="decides init, masks, order and augmentation")
    optim_method: choices.OptimMethod | None = Field(None, description="optimiser")
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(None, description="base learning rate")
    optimizer_schedule: choices.Schedule | None = Field(
        None, description="learning-rate schedule; that of the code by default"
    )
    momentum: Share = Field(0.9, description="momentum of SGD (Nesterov) and RMSprop")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-4, description="weight decay on every trained tensor")
    adam_beta1: Share = Field(0.9, description="first beta of Adam")
    adam_beta2: Share = Field(0.999, description="second beta of Adam")
    train_only: choices.TrainOnly | None = Field(
        None, description="control: train the affine parameters of the batch norms, leave all else as it was drawn"
    )

    normalise: bool | None = Field(None, description="subtract mean, divide by deviation; off: pixels in [0, 1]")
    augment: bool | None = Field(None, description="random crop and flip; on where the data set has them")

    defence: choices.Defence = Field("none", description="what training adds")
    batchout_at: Text | None = Field(
        None, description="where: module names or patterns a,b; all, last, alternate, all-after:NAME"
    )
    batchout_eta: Text | None = Field(
        None, description="magnitude: 0.1, U[0,0.1] or 0.3:0.6,-0.2:0.4; with ; one a place"
    )
    batchout_k: RowCount | None = Field(None, description="rows moved: 64 a count, 0.5 a fraction")
    batchout_partners: choices.MixedIn | None = Field(None, description="who is mixed in; noise: the paper's baseline")
    batchout_rows: choices.Rows | None = Field(None, description="which rows are moved")
    batchout_eta_per: choices.EtaPer | None = Field(None, description="one magnitude for each of these")
    batchout_shared: choices.Shared | None = Field(None, description="what the places share within a step")
    batchout_detach: bool | None = Field(None, description="the added part is constant in the backward pass")
    defence_eps: Radius | None = Field(None, description="radius of adversarial training, in pixels: 0.3 or 8/255")
    defence_steps: Positive | None = Field(None, description="steps of PGD training")
    defence_mode: choices.DefenceMode | None = Field(None, description="mode of the net during that attack")

    precision: choices.Precision = Field("fp32", description="of the training steps; evaluation is fp32")
    compile: choices.Compile = Field("auto", description="torch.compile; auto: where it earns it back")
    deterministic: bool = Field(False, description="only algorithms that give the same bits every time")

    audit: bool = Field(False, description="test set every epoch, with the published metrics beside the exact one")
    out: Text | None = Field(None, description="the run's folder; new")
    resume: Text | None = Field(None, description="go on with this run")
    log: tuple[choices.Log, ...] | None = Field(None, description="logs to write too, a,b; tb is TensorBoard")
    nthreads: Threads | None = Field(None, description="compute threads; all cores by default")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    quiet: bool = Field(False, description="no progress bar")
    debug: bool = Field(False, description="print input, mask and output of every perturbation at every step")

    @field_validator("dataroot", "dataset_train", "dataset_test")
    @classmethod
    def _found_from_anywhere(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Make the path of a folder absolute, so that a run can be resumed from another folder."""
        is_folder = value is not None and (info.field_name == "dataroot" or expand_home(value).is_dir())
        return str(expand_home(value).absolute()) if value is not None and is_folder else value

    @field_validator("classes", "log", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _refuse(self) -> "TrainConfig":
        if self.resume is not None and self.out is not None:
            raise ValueError("--resume goes on in the run's own folder; drop --out")
        return self


DEFENCE_OPTIONS = tuple(name for name in TrainConfig.model_fields if name.startswith(("batchout_", "defence_")))


def validated(model: type[Config], given: Mapping[str, object]) -> Config:
    """Validate what was given.

    Raises:
        UserError: the first mistake, in one sentence: flag, got, expected.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "value_error":
            raise UserError(str(first["ctx"]["error"])) from error
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise UserError(f"{flag} got {first['input']!r}: {_lowered(first['msg'])}; see --help") from error


def _lowered(message: str) -> str:
    return message[0].lower() + message[1:]
