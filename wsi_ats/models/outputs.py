"""Outputs of a network for many slides at once, for comparisons; :mod:`wsi_ats.models.scoring` scores one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wsi_ats.models.base import Finish, draw_seed
from wsi_ats.models.batches import Example, Reader, ahead
from wsi_ats.models.kinds import method_for
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.settings import Settings

# Slides whose tiles are read while those of the slides before them are encoded.
_AT_ONCE = 8


@torch.inference_mode()
def outputs_of(
    model: SlideNetwork,
    settings: Settings,
    examples: Sequence[Example],
    reader: Reader,
    *,
    draw: int,
    device: torch.device | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Compute the outputs of slides from one draw of tiles each.

    Parameters
    ----------
    model
        The network; it is switched to evaluation mode.
    settings
        Settings with the draws to make; ``training.seed`` decides them.
    examples
        The slides.
    reader
        Reader of their tiles, or of the features of these.
    draw
        Number of the draw, from 0.
    device
        Device of the network; the CPU by default.

    Returns
    -------
    dict
        Outputs of the network by slide id, one for each column of scores, float64, shape (C,), on the CPU.
    dict
        Reasons why slides could not be read, by slide id.
    """
    method = method_for(model.eval(), settings, device)
    parts = [examples[first : first + _AT_ONCE] for first in range(0, len(examples), _AT_ONCE)]
    found: dict[str, Tensor] = {}
    failed: dict[str, str] = {}

    def begin(part: Sequence[Example]) -> Finish:
        seeds = [draw_seed(settings.training.seed, each.ref.id, draw) for each in part]
        return method.begin(part, reader, seeds)

    for part, finish in ahead(parts, begin, 1):
        estimates = finish()
        failed |= estimates.failed
        names = [part[place].ref.id for place in estimates.places]
        found |= zip(names, estimates.outputs.double().cpu(), strict=True)
    return found, failed
