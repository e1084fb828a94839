"""The options of an attack on a run, validated."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from perturblab.records.attack_names import ACTIVE, AT_INFERENCE, ATTACK_KINDS, AttackName, Effort, Mode
from perturblab.records.choices import Norm
from perturblab.records.config import Text, Threads
from perturblab.records.fields import Positive, Seed
from perturblab.records.radius import check_linf, parse_eps


class AttackConfig(BaseModel):
    """Settings of `perturblab attack`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    attacks: tuple[str, ...] = Field(
        ("fgsm", "pgd"),
        description=f"names a,b among {', '.join(ATTACK_KINDS)}; transfer-NAME makes the images on --source",
    )
    eps: tuple[float, ...] | None = Field(
        None, description="radii a,b in pixels, such as 0,1/255,8/255; by default 0 to 0.5 in grey, to 8/255 in colour"
    )
    norm: Norm = Field("linf", description="norm of the radii")
    iterations: tuple[int, ...] = Field(
        (1, 2, 3, 4, 5), description="caps a,b on the iterations of DeepFool, which has no radius"
    )
    subset: Positive | None = Field(None, description="attack this many test images, the same ones for every run")
    steps: Positive = Field(50, description="steps of PGD")
    step_size: Annotated[float, Field(gt=0)] | None = Field(None, description="of PGD; 2.5 eps / steps by default")
    restarts: Positive = Field(5, description="restarts of PGD, per-image worst")
    queries: Positive = Field(5000, description="queries of Square")
    draws: Positive = Field(20, description="forward passes per gradient, for a net whose forward is random")
    verdicts: Positive = Field(10, description="fresh draws by which such a net is judged")
    source: Text | None = Field(None, description="another run; transfers are made on its net")
    checks: bool = Field(True, description="look for signs of a masked gradient")
    check_subset: Positive = Field(200, description="images that the checks look at")
    batchout_in_eval: bool = Field(False, description="a published mistake: BatchOut active in evaluation")
    inference_batchout: Positive | None = Field(
        None, description="BatchOut at inference: every pass averages over this many training images, drawn anew"
    )
    manual_seed: Seed = Field(1, description="seed of random starts and draws")
    batch_size: Positive = Field(100, description="images attacked at once; a GPU is faster with more")
    dataroot: str | None = Field(None, description="where the data set is looked for first; the run's by default")
    nthreads: Threads | None = Field(None, description="compute threads; all cores by default")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    quiet: bool = Field(False, description="no progress bar")

    @property
    def names(self) -> list[AttackName]:
        """The attacks asked for, each once."""
        return [AttackName.parse(name) for name in dict.fromkeys(self.attacks)]

    @property
    def effort(self) -> Effort:
        """How hard the attacks try on a net that is not random."""
        return Effort(self.steps, self.step_size, self.restarts, self.queries, early_stop=True)

    @property
    def mode(self) -> Mode:
        """How BatchOut takes part in evaluation."""
        if self.batchout_in_eval:
            return Mode(ACTIVE)
        return Mode(AT_INFERENCE, self.inference_batchout) if self.inference_batchout else Mode()

    @field_validator("attacks", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("eps", mode="before")
    @classmethod
    def _radii(cls, value: Any) -> Any:
        return tuple(parse_eps(part) for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("iterations", mode="before")
    @classmethod
    def _caps(cls, value: Any) -> Any:
        parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else [str(v) for v in value]
        if not parts or not all(part.isdecimal() and 0 < int(part) < 2**31 for part in parts):
            raise ValueError(f"--iterations got {value!r}; expected integers of at least 1, such as 1,2,3")
        return tuple(map(int, parts))

    @model_validator(mode="after")
    def _radii_of_pixels(self) -> "AttackConfig":
        if self.norm == "linf" and self.eps:
            check_linf(max(self.eps), "--eps")
        return self
