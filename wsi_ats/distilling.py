"""Where to look: survey the slides once, let attention learn from that, and find out how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from wsi_ats.batches import Example, Reader, ahead
from wsi_ats.errors import SlideError
from wsi_ats.methods.base import draw_seed
from wsi_ats.methods.sampling import AttentionSampling, Evidence
from wsi_ats.nn.distillation import distillation
from wsi_ats.nn.model import AttentionSampler

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Scales of attention's logits that are tried; 0 is uniform."""

# More than chance: so many standard errors of the mean over slides. Attention that knows nothing gets past
# this in about one run of a hundred.
_STANDARD_ERRORS = 2.5

# Simulated draws of each slide.
_SIMULATED = 32

# Fewer slides tell nothing.
_FEWEST = 4


@dataclass(frozen=True)
class Trust:
    """How far attention is trusted, and why.

    Parameters
    ----------
    scale
        What attention's logits are multiplied by; 0 for uniform draws.
    foresight
        How much more attention's logits are where tiles of other slides are worth reading than on average,
        in nats, mean over slides; ``None`` where there were no slides to judge by.
    error
        Standard error of that.
    slides
        How many slides there were.
    """

    scale: float
    foresight: float | None
    error: float | None
    slides: int


def survey(
    method: AttentionSampling,
    examples: Mapping[int, Example],
    reader: Reader,
    seed: int,
    *,
    read_ahead: int,
    on_bad: Callable[[str, str], None],
) -> dict[int, Tensor]:
    """Draw tiles of slides uniformly, and ask the classifier what each tells.

    Parameters
    ----------
    method
        Its network's attention is uniform, and in evaluation mode.
    examples
        The slides, by number.
    reader
        Reads their tiles.
    seed
        Of the run.
    read_ahead
        Slides whose tiles are being read while those of another are encoded.
    on_bad
        Told the id of each slide that cannot be read, and why; it is left out.

    Returns
    -------
    dict of Tensor, shape (m, 1 + O)
        What the classifier says of each tile; see :class:`wsi_ats.methods.sampling.Evidence`, by number of
        the slide.
    """

    def begin(number: int) -> Callable[[], Evidence] | None:
        example = examples[number]
        try:
            return method.begin_survey(example, reader, survey_seed(seed, example))
        except SlideError as error:
            on_bad(example.ref.id, str(error))
            return None

    found: dict[int, Tensor] = {}
    for number, finish in ahead(examples, begin, read_ahead):
        try:
            if finish:
                found[number] = finish().said.cpu()
        except SlideError as error:
            on_bad(examples[number].ref.id, str(error))
    return found


def recall(
    method: AttentionSampling,
    examples: Mapping[int, Example],
    reader: Reader,
    seed: int,
    found: Mapping[int, Tensor],
    *,
    on_bad: Callable[[str, str], None],
) -> dict[int, Evidence]:
    """Return the evidence of surveyed slides, by number; see :func:`survey` for the arguments."""
    evidence: dict[int, Evidence] = {}
    for number, said in found.items():
        example = examples[number]
        try:
            evidence[number] = method.recall(example, reader, survey_seed(seed, example), said)
        except SlideError as error:
            on_bad(example.ref.id, str(error))
    return evidence


def survey_seed(seed: int, example: Example) -> int:
    """Seed of the draw of a slide's survey, apart from those of training and scoring."""
    return draw_seed(seed, example.ref.id, -3)


def loss(evidence: Evidence) -> tuple[Tensor, Tensor, float]:
    """Loss of attention to one slide, its entropy in nats, and the share of its hundredth with most of it."""
    chosen = evidence.weigh()
    return distillation(evidence.target, chosen.tiles.attention), chosen.entropy.detach(), chosen.top_share


def trust(
    model: AttentionSampler,
    judges: Sequence[Evidence],
    figure: Callable[[Tensor], float | None],
    *,
    tiles: int,
    exploration: float,
    seed: int,
) -> Trust:
    """Choose the scale of attention's logits on slides that neither it nor the classifier learned from.

    Two questions are asked, of the tiles of the survey alone. Does attention foretell which tiles are worth
    reading, by more than chance? That takes no labels; if not, tiles are drawn uniformly. If it does, the
    scale is the one whose draws give the best figure. Where there is nothing to judge by, attention is
    trusted as it was learned.

    Parameters
    ----------
    model
        Its scale is set.
    judges
        Evidence of the slides.
    figure
        From outputs (N, O) of the slides to the task's main figure, the larger the better.
    tiles, exploration
        Of the draws.
    seed
        Of the simulation.
    """
    if len(judges) < _FEWEST:
        model.attention_scale.fill_(1.0)
        return Trust(1.0, None, None, len(judges))
    model.attention_scale.fill_(1.0)
    foresight = torch.stack([each.foresight() for each in judges])
    mean, error = foresight.mean().item(), (foresight.std() / math.sqrt(len(judges))).item()
    best, scale = -math.inf, 0.0
    for candidate in SCALES if mean > _STANDARD_ERRORS * error else ():
        model.attention_scale.fill_(candidate)
        outputs = [
            each.simulate(
                tiles,
                exploration=exploration,
                draws=_SIMULATED,
                generator=torch.Generator().manual_seed(draw_seed(seed, "trust", number)),
            )
            for number, each in enumerate(judges)
        ]
        known = [value for each in torch.stack(outputs, 1) if (value := figure(each)) is not None]
        found = fmean(known) if known else candidate
        if found >= best:  # of equal figures the last: attention as it was learned
            best, scale = found, candidate
    model.attention_scale.fill_(scale)
    return Trust(scale, mean, error, len(judges))
