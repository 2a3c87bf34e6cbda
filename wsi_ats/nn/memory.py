"""Count the memory that a network needs before it runs."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wsi_ats.errors import ModelError


def peak_bytes(network: nn.Module, shape: Sequence[int], *, training: bool) -> int:
    """Return the largest number of bytes that tensors take at once while a network processes one input.

    The network runs on the device `meta`, whose tensors have shapes but no contents, so this takes neither
    memory nor much time. The count includes the input, the outputs of layers as far as they are kept, and the
    gradients. It excludes the weights, which exist already, and the scratch space of a device's kernels.

    Parameters
    ----------
    network
        Network from the input to logits.
    shape
        Shape of the input, which is uint8.
    training
        Whether to include the backward pass.

    Raises
    ------
    ModelError
        When the network cannot take an input of that shape.

    Examples
    --------
    >>> layer = nn.Linear(1000, 10)
    >>> class Network(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = layer
    ...     def forward(self, x):
    ...         return self.layer(x.float())
    >>> peak_bytes(Network(), [1000], training=False)  # as bytes, as floats, and ten logits
    5040
    """
    state: dict[int, Any] = {
        id(value): torch.empty_like(value, device="meta").requires_grad_(value.requires_grad)
        for value in (*network.parameters(), *network.buffers())
    }
    known = list(state.values())
    # A copy of all but the weights, because other threads may be using the network.
    empty = copy.deepcopy(network, state)
    with torch.set_grad_enabled(training), _Ledger(known) as ledger:
        try:
            logits = empty(torch.empty(*shape, dtype=torch.uint8, device="meta"))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ModelError(
                f"the network cannot take an input of {tuple(shape)}: {error}; choose another backbone"
            ) from error
        if training:
            logits.logsumexp(-1).sum().backward()
    peak: int = ledger.peak
    return peak


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the memory of all tensors created while it is active, except some known ones."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet(each.untyped_storage() for each in known)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:  # views and operations in place take no memory
            self._known.add(storage)
            self._alive += storage.nbytes()
            self.peak = max(self.peak, self._alive)
            weakref.finalize(storage, self._drop, storage.nbytes())

    def _drop(self, size: int) -> None:
        self._alive -= size


def free_bytes(device: torch.device) -> int:
    """Return the number of bytes that a device has free for tensors."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)
