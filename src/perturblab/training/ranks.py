"""One run on several processes: the rows of each rank, and the values that all ranks share.

A rank is one of the processes that `torchrun` starts for a run. All hold the same weights, masks, optimiser and random
streams, bit for bit, between any two steps; so the files that rank 0 writes are those of the run. Of every batch of
one process, rank r of W takes rows r, r + W, r + 2 W, ...: nothing is padded, and no image is left out.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _NormBase

from perturblab.errors import NonFiniteError, RankLostError, UserError
from perturblab.seeding import stream
from perturblab.system.processes import world_size

Value = TypeVar("Value")
Mix = Callable[[Tensor], Tensor]
# Gloo raises a plain RuntimeError when the other end is gone; what names no connection is another mistake.
_GONE = re.compile("gloo/transport|connection|timed out|timeout", re.IGNORECASE)


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run; with one, every method gives back what it is given.

    Args:
        rank: number of this process, from 0.
        world: how many there are, W.
    """

    rank: int = 0
    world: int = 1

    @property
    def alone(self) -> bool:
        """There is no other."""
        return self.world == 1

    @property
    def first(self) -> bool:
        """This is the one that writes and tells."""
        return self.rank == 0

    @property
    def rows(self) -> slice:
        """The rows of a batch that this rank has."""
        return slice(self.rank, None, self.world)

    def count(self, total: int) -> int:
        """Count this rank's rows among the first ``total``."""
        return len(range(total)[self.rows])

    def share(self, batch: Tensor) -> Tensor:
        """This rank's rows of a batch, (N, ...) to (n, ...); an index, which keeps the memory format."""
        return batch if self.alone else batch[torch.arange(len(batch), device=batch.device)[self.rows]]

    def own(self, common: torch.Generator) -> torch.Generator:
        """Return a stream for this rank's rows only, so that two ranks do not draw the same.

        Args:
            common: a stream that stands at the same place on all ranks, also afterwards.
        """
        if self.alone:
            return common
        return stream(int(torch.randint(2**62, (), generator=common)), f"rank {self.rank}")

    def sum(self, values: Tensor) -> Tensor:
        """Sum a contiguous tensor of any shape over all ranks, in place.

        Raises:
            RankLostError: another rank has ended.
        """
        if not self.alone:
            with _lost():
                dist.all_reduce(values)
        return values

    def total(self, count: int) -> int:
        """Sum an integer over all ranks."""
        return count if self.alone else int(self.sum(torch.tensor(count)))

    def any(self, flag: bool) -> bool:
        """Return True if a flag is set on some rank."""
        return self.total(int(flag)) > 0

    def every(self, value: Value) -> list[Value]:
        """Collect a plain value of every rank, in their order."""
        found: list[Any] = [value] * self.world
        if not self.alone:
            with _lost():
                dist.all_gather_object(found, value)
        return found

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """End all ranks with the error of the one that fails inside.

        Raises:
            UserError: of the first rank that met one, or NonFiniteError.
        """
        met: UserError | NonFiniteError | None = None
        try:
            yield
        except (UserError, NonFiniteError) as error:
            met = error
        for other in self.every(met):
            if other is not None:
                raise other

    def same(self, values: Mapping[str, str]) -> None:
        """Refuse to begin where the ranks differ.

        Args:
            values: what it is -> a text that must be the same everywhere, such as a hash.

        Raises:
            UserError: it is not, on some rank.
        """
        for rank, others in enumerate(self.every(dict(values))):
            if other := [name for name in values if others[name] != values[name]]:
                raise UserError(
                    f"the {other[0]} of ranks {self.rank} and {rank} differ, expected the same on all; give every rank "
                    "the same command, data, perturblab and PyTorch"
                )

    def merge(self, model: nn.Module, weight: float) -> None:
        """Make the gradients those of the whole batch, and the running statistics of batch norm the ranks' mean.

        Args:
            model: after its backward pass; the loss of each rank was its part of the batch's mean loss.
            weight: share of the batch's rows that this rank had: the weight of its statistics.
        """
        if self.alone:
            return
        norms = [module for module in model.modules() if isinstance(module, _NormBase)]
        kept = [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
        parts = [p.grad for p in model.parameters() if p.grad is not None]
        flat = self.sum(torch.cat([part.flatten() for part in parts] + [weight * value.flatten() for value in kept]))
        for part, found in zip([*parts, *kept], flat.split([part.numel() for part in [*parts, *kept]]), strict=True):
            part.copy_(found.view(part.shape))

    def batch(self, labels: Tensor) -> tuple[Tensor, Callable[[Mix, Tensor, bool], Tensor] | None]:
        """Prepare what a layer that looks at other rows of its batch needs (`perturblab.layers.batch_step`).

        Args:
            labels: of this rank's rows, int64 (n,).

        Returns:
            The labels of the whole batch, (N,), and ``across(mix, x, constant)``: what ``mix`` makes of the whole
            batch (N, ...), of which this rank has ``x`` (n, ...), in this rank's rows. With ``constant``, other ranks'
            rows are constants in the backward pass. None with one process.
        """
        if self.alone:
            return labels, None
        total = self.total(len(labels))

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def across(mix: Mix, x: Tensor, constant: bool) -> Tensor:
            whole: Tensor = _Whole.apply(x, self, total, constant)  # type: ignore[no-untyped-call]
            return self.share(mix(whole))

        return self._whole(labels, total), across

    def _whole(self, x: Tensor, total: int) -> Tensor:
        """(n, ...) of every rank to (N, ...), in the order of the batch: a sum with zeros, which changes no bit."""
        whole = x.new_zeros(total, *x.shape[1:])
        whole[self.rows] = x
        return self.sum(whole)


class _Whole(torch.autograd.Function):
    """`Ranks._whole`, and back: the gradient of a row is the sum over the ranks that have used it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, total: int, constant: bool) -> Tensor:
        ctx.ranks, ctx.constant = ranks, constant
        return ranks._whole(x, total)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = grads[0] if ctx.constant else ctx.ranks.sum(grads[0].clone(memory_format=torch.contiguous_format))
        return ctx.ranks.share(grad), None, None, None


ALONE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that `torchrun` has started for this run.

    Args:
        device: as given on the command line; "cuda" and "auto" give every process of a machine a GPU of its own.

    Yields:
        This process among them; `ALONE` without `torchrun`.

    Raises:
        UserError: no GPU of its own, or the others cannot be found.
    """
    if (world := world_size()) == 1:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if _takes_gpu(device) else "gloo"
    try:
        dist.init_process_group(backend)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"WORLD_SIZE is {world} and the other ranks are not to be found ({str(error).splitlines()[0]}); start with "
            "torchrun --nproc-per-node N -m perturblab train ..."
        ) from error
    try:
        yield Ranks(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()


def _takes_gpu(device: str) -> bool:
    """Make the GPU of this process's number on its machine the current one."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return False
    number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device not in ("auto", "cuda") or number >= there:
        raise UserError(
            f"--device got {device!r} for process {number} of this machine, which has {there} GPUs; give auto or cuda "
            "and at most one process a GPU, or cpu"
        )
    torch.cuda.set_device(number)
    return True


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or _GONE.search(str(error)):
            raise RankLostError("another rank has ended, or cannot be reached") from error
        raise
