"""The encoder of a worker, which all slides on it share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipelines._records import own_cores

if TYPE_CHECKING:  # torch takes seconds to import, and a worker needs it, not a command line
    import torch

    from wsi_ats.models.encoding import TileBatches


def tile_batches(
    embed: Callable[[torch.Tensor], torch.Tensor], device: torch.device, precision: str
) -> TileBatches:
    """Return batches that use the worker's cores, or its GPU.

    On a CPU each batch has one thread, because sums that are split among threads depend on the number of
    threads, which differs between workers. The cores encode several batches at a time.

    Parameters
    ----------
    embed, device, precision
        See :class:`wsi_ats.models.encoding.TileBatches`.
    """
    from wsi_ats.models.encoding import TileBatches

    lanes = own_cores() if device.type == "cpu" else 1
    return TileBatches(embed, device=device, precision=precision, lanes=lanes, threads=1)
