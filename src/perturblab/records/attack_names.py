"""Attacks by name: what each one is, how hard it tries, how records spell it, and in which mode BatchOut was."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Self

WORST = "worst case"  # of points: over all attacks that an image has met
_TRANSFER, _FROZEN = "transfer-", " frozen"
ACTIVE, AT_INFERENCE = "BatchOut active in evaluation", "BatchOut at inference"


@dataclass(frozen=True)
class Effort:
    """How hard the attacks try.

    Args:
        steps: of PGD.
        step_size: of PGD, in pixels; 2.5 eps / steps by default.
        restarts: of PGD.
        queries: of Square.
        draws: forward passes per gradient; more than 1 for a net whose forward is random.
        early_stop: PGD leaves an image alone as soon as it fools the net; not for transfers and random nets.
    """

    steps: int = 50
    step_size: float | None = None
    restarts: int = 5
    queries: int = 5000
    draws: int = 1
    early_stop: bool = False


@dataclass(frozen=True)
class AttackKind:
    """Properties of an attack that need no torch; `perturblab.attacks.ATTACKS` has the function of the same name.

    Args:
        about: one line.
        norms: the norms that it knows.
        reads: the fields of `Effort` that it reads.
        is_blind: follows no gradient of a net.
        is_mistake: a published mistake; its images may leave the ball or the bounds.
        by_iterations: its axis is a cap on iterations instead of a radius.
        needs_one_answer: does not work on a net whose answers are random.
    """

    about: str
    norms: tuple[str, ...] = ("linf", "l2")
    reads: tuple[str, ...] = ()
    is_blind: bool = False
    is_mistake: bool = False
    by_iterations: bool = False
    needs_one_answer: bool = False


ATTACK_KINDS: Mapping[str, AttackKind] = {
    "fgsm": AttackKind("one step along the gradient (l2: the fast gradient method)", reads=("draws",)),
    "pgd": AttackKind(
        "projected gradient ascent with restarts", reads=("steps", "step_size", "restarts", "draws", "early_stop")
    ),
    "deepfool": AttackKind(
        "nearest boundary, l2, by the cap on its iterations", norms=("l2",), by_iterations=True, needs_one_answer=True
    ),
    "autoattack": AttackKind(
        "AutoAttack, standard: APGD-CE, APGD-T, FAB-T, Square", reads=("queries",), needs_one_answer=True
    ),
    "square": AttackKind("random search without gradients", reads=("queries",), is_blind=True, needs_one_answer=True),
    "uniform": AttackKind("uniform noise", is_blind=True),
    "gaussian": AttackKind("Gaussian noise", is_blind=True),
    "universal": AttackKind("one perturbation for all images"),
    "fgsm-unclipped": AttackKind("as the paper writes it: pixels may leave [0, 1]", is_mistake=True),
    "deepfool-unclipped": AttackKind(
        "as DeepFool's authors write it: pixels may leave [0, 1]",
        norms=("l2",),
        is_mistake=True,
        by_iterations=True,
        needs_one_answer=True,
    ),
    "fgsm-normalised": AttackKind(
        "a published mistake: the step added after the normalisation, unclipped", norms=("linf",), is_mistake=True
    ),
}
_OTHER = AttackKind("an attack of another version, or the worst case")


@dataclass(frozen=True)
class AttackName:
    """The name of an attack as a record spells it, such as "transfer-pgd frozen".

    Args:
        plain: a key of `ATTACK_KINDS`; in points also `WORST`, or the attack of another version.
        is_transfer: the images are made on another net.
        is_frozen: the randomness of the net is frozen.
    """

    plain: str
    is_transfer: bool = False
    is_frozen: bool = False

    @classmethod
    @cache
    def parse(cls, text: str) -> Self:
        """Read a name; every text is one, and `str` gives it back.

        Args:
            text: such as "pgd", "transfer-pgd" or "pgd frozen".
        """
        plain = text.removeprefix(_TRANSFER).removesuffix(_FROZEN)
        return cls(plain, text.startswith(_TRANSFER), text.endswith(_FROZEN))

    def __str__(self) -> str:
        return f"{_TRANSFER if self.is_transfer else ''}{self.plain}{_FROZEN if self.is_frozen else ''}"

    @property
    def kind(self) -> AttackKind:
        """Properties of the plain attack."""
        return ATTACK_KINDS.get(self.plain, _OTHER)

    @property
    def is_worst(self) -> bool:
        """True for the worst case over all attacks."""
        return self.plain == WORST

    @property
    def is_blind(self) -> bool:
        """True if the attack follows no gradient of the net that its images are meant for."""
        return self.is_transfer or self.kind.is_blind

    @property
    def usual_norm(self) -> str:
        """The norm that the name alone stands for."""
        return "l2" if self.kind.by_iterations else "linf"

    def on_random_net(self) -> tuple["AttackName", ...]:
        """List the names under which it meets a random net: itself, its frozen twin, or both."""
        twin = AttackName(self.plain, self.is_transfer, is_frozen=True)
        if self.kind.needs_one_answer and not self.is_transfer:
            return (twin,)
        return (self,) if self.kind.is_blind else (self, twin)


@dataclass(frozen=True)
class Mode:
    """How BatchOut takes part in evaluation; the default is the right way, in which it is the identity.

    Args:
        kind: "", `ACTIVE` or `AT_INFERENCE`.
        images: training images over which a pass of BatchOut at inference averages.
    """

    kind: str = ""
    images: int = 0

    @classmethod
    @cache
    def parse(cls, text: str) -> Self:
        """Read a mode as points and checks spell it.

        Args:
            text: from `str`; also without what follows the kind.
        """
        kind, _, rest = text.partition(", ")
        count = re.fullmatch(r"beside (\d{1,9}) training images", rest)
        return cls(kind, int(count[1]) if count else 0)

    def __str__(self) -> str:
        if self.kind == AT_INFERENCE:
            return f"{self.kind}, beside {self.images} training images"
        return f"{self.kind}, a published mistake" if self.kind == ACTIVE else self.kind

    @property
    def flags(self) -> dict[str, bool | int]:
        """Settings of `perturblab attack` that ask for this mode."""
        if self.kind == ACTIVE:
            return {"batchout_in_eval": True}
        return {"inference_batchout": self.images} if self.kind == AT_INFERENCE else {}
