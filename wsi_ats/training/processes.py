"""Processes that train one model together, started by ``torchrun``; or a single process.

Every process holds the whole model, works on its own share of each step's slides, and adds its gradients to
those of the others before all take the same step, as in ``DistributedDataParallel``. That class cannot be
used, because a step is not one call of one module: tiles are read between attention and encoder, and a step
may have several passes. Gradients are summed once a step, and every slide's loss is divided by the number of
slides of all processes, so two processes end with the same weights, up to rounding, as one with twice the
slides in a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from wsi_ats.errors import ModelError

T = TypeVar("T")

# The first may prepare slides for hours while the others wait; `torchrun` notices at once if one dies.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Processes:
    """Processes that train together, from the view of one of them.

    Parameters
    ----------
    rank
        Number of this process, from 0.
    count
        Number of processes.

    Examples
    --------
    >>> alone = Processes()
    >>> alone.share("abc"), alone.gather(5)
    ('abc', [5])
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """True in the process that writes the files."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's share of some items."""
        return items[self.rank :: self.count]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in order; all processes must call it."""
        if self.count == 1:
            return [value]
        found: list[T | None] = [None] * self.count
        with _answering():
            dist.all_gather_object(found, value)
        return found  # type: ignore[return-value]  # all of them are filled

    def add_gradients(self, model: nn.Module, count: int) -> int:
        """Replace gradients by their sums over all processes; all processes must call it.

        Parameters
        ----------
        model
            The network; a gradient that some processes lack counts as zero there.
        count
            A number to sum as well.

        Returns
        -------
        int
            The sum of the counts.
        """
        if self.count == 1:
            return count
        weights = [each for each in model.parameters() if each.requires_grad]
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in weights]
        # Weights without a gradient anywhere, such as frozen attention, must not decay as with a zero
        # gradient.
        present = [each.grad is not None for each in weights]
        flat = torch.cat([*(each.flatten() for each in gradients), weights[0].new_tensor([*present, count])])
        with _answering():
            dist.all_reduce(flat)
        *parts, found = torch.split(flat, [*(each.numel() for each in weights), len(weights) + 1])
        *owners, total = found.tolist()
        for weight, part, owned in zip(weights, parts, owners, strict=True):
            weight.grad = part.view_as(weight) if owned else None
        return int(total)

    def share_weights(self, model: nn.Module) -> None:
        """Give all processes the weights and constants of the first; all processes must call it."""
        if self.count > 1:
            for each in model.state_dict().values():
                contents = each.contiguous()
                with _answering():
                    dist.broadcast(contents, 0)
                each.copy_(contents)


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ModelError(
            f"another training process has ended ({error}); see its own message, and run the same command "
            "again to resume"
        ) from error


@contextmanager
def started_by_torchrun(environment: dict[str, str], device: torch.device) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, if it did.

    Parameters
    ----------
    environment
        Environment variables, such as ``os.environ``.
    device
        Device of the model, which decides between NCCL and Gloo.
    """
    if "WORLD_SIZE" not in environment or "RANK" not in environment:
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
