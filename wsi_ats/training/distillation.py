"""Survey slides for attention to learn from, and decide on validation slides how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from scipy.special import stdtrit
from torch import Tensor

from wsi_ats.errors import SlideError
from wsi_ats.models.base import draw_seed
from wsi_ats.models.batches import Example, Reader, ahead
from wsi_ats.models.evidence import Evidence
from wsi_ats.models.sampling import AttentionSampling
from wsi_ats.nn.distillation import distillation
from wsi_ats.nn.model import AttentionSampler

USUAL = 2.0
"""Default scale of the attention logits. Attention learns the draws with the least variance around *all*
tiles of a slide; sharper draws predict labels better (``benchmarks/learning.py``)."""

_SCALES = (0.0, 0.25, 0.5, 1.0)
"""Other scales that are tried; 0 is uniform."""

# Standard errors by which the metric of another scale must be better: validation slides are few, and the best
# of several metrics may be best by chance.
_BETTER = 2.0

_RESAMPLES = 200

# Share of uninformative attention that passes Student's t test over the cases. That does little harm: such
# attention is nearly flat, and the metric is checked too.
_ERROR_RATE = 0.05

# With less foresight, draws by attention are close to uniform, or differ from it on few slides: the metric
# decides.
_LEAST_FORESIGHT = 0.1

# Number of simulated draws of each slide.
_SIMULATED = 32

# Draws that the metric of a resample is averaged over where uniform draws are the default: a single uniform
# draw of rare tiles is so noisy that an AUC of 1.00 against 0.83 was not clear on 32 slides.
_AVERAGED = 8

FEWEST_TO_JUDGE = 4
"""Fewest cases on which attention is evaluated."""


@dataclass(frozen=True)
class Trust:
    """Trust in attention, and the evidence for it.

    Parameters
    ----------
    scale
        Factor of the attention logits; 0 for uniform draws.
    foretells
        Whether attention predicts which tiles of other slides are informative: by more than chance, and
        either by more than a little or with a clearly better metric; ``None`` with fewer than
        :data:`FEWEST_TO_JUDGE` cases, and attention is then used.
    foresight
        Difference of attention logits between informative tiles and the average tile, in nats, mean over
        cases; ``None`` if it was not evaluated.
    error
        Standard error of the foresight.
    cases
        Number of cases.
    """

    scale: float
    foretells: bool | None
    foresight: float | None
    error: float | None
    cases: int


@dataclass(frozen=True)
class HeldOut:
    """A held-out slide, or held-out slides that are scored together.

    Parameters
    ----------
    case
        Case of the slides.
    evidence
        Evidence of each slide, or of all together if their cells are pooled as those of one slide.
    """

    case: str
    evidence: Sequence[Evidence]

    def foresight(self) -> float:
        """Return the mean over the slides; see :meth:`wsi_ats.models.evidence.Evidence.foresight`."""
        return fmean(each.foresight().item() for each in self.evidence)

    def simulate(self, tiles: int, exploration: float, seed: int) -> Tensor:
        """Return the outputs (draws, O) of draws of ``tiles`` tiles, with ``exploration``, by a ``seed``.

        See :meth:`wsi_ats.models.evidence.Evidence.simulate`.
        """
        generator = torch.Generator().manual_seed(seed)
        outputs = [
            each.simulate(tiles, exploration=exploration, draws=_SIMULATED, generator=generator)
            for each in self.evidence
        ]
        return torch.stack(outputs).mean(0)


def survey(
    method: AttentionSampling,
    examples: Mapping[int, Example],
    reader: Reader,
    seed: int,
    *,
    read_ahead: int,
    on_bad: Callable[[str, str], None],
) -> dict[int, Evidence]:
    """Draw tiles of slides uniformly, and compute the classifier's outputs of each.

    Parameters
    ----------
    method
        Method whose network is in evaluation mode, with uniform attention.
    examples
        The slides, by number.
    reader
        Reader of their tiles.
    seed
        Seed of the run.
    read_ahead
        Number of slides whose tiles are read while those of another are encoded.
    on_bad
        Function called with id and error of each slide that cannot be read; such slides are left out.

    Returns
    -------
    dict of Evidence
        Evidence by number of the slide. Only :attr:`Evidence.tile_outputs` needs to be stored; see
        :func:`recall`.
    """

    def begin(number: int) -> Callable[[], Evidence] | None:
        example = examples[number]
        try:
            return method.begin_survey(example, reader, _survey_seed(seed, example))
        except SlideError as error:
            on_bad(example.ref.id, str(error))
            return None

    found: dict[int, Evidence] = {}
    for number, finish in ahead(examples, begin, read_ahead):
        try:
            if finish:
                found[number] = finish()
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
    """Return the evidence of slides that were surveyed elsewhere or earlier, without reading a tile.

    Parameters
    ----------
    method, examples, reader, seed, on_bad
        See :func:`survey`.
    found
        Gate and outputs of the tiles, shape (m, 1 + O), by number of the slide.
    """
    evidence: dict[int, Evidence] = {}
    for number, tile_outputs in found.items():
        example = examples[number]
        try:
            evidence[number] = method.recall(example, reader, _survey_seed(seed, example), tile_outputs)
        except SlideError as error:
            on_bad(example.ref.id, str(error))
    return evidence


def _survey_seed(seed: int, example: Example) -> int:
    """Return the seed of a slide's survey, which differs from those of training and scoring."""
    return draw_seed(seed, example.ref.id, -3)


def loss(evidence: Evidence) -> tuple[Tensor, Tensor, float]:
    """Return the loss of attention to a slide, its entropy in nats, and its sum over the top hundredth."""
    attended = evidence.attend()
    return (
        distillation(evidence.target, attended.log_attention),
        attended.entropy.detach(),
        attended.top_share,
    )


def trust(
    model: AttentionSampler,
    held_out: Sequence[HeldOut],
    metric: Callable[[Tensor, Sequence[int]], float | None],
    *,
    tiles: int,
    exploration: float,
    seed: int,
) -> Trust:
    """Choose the scale of the attention logits on slides that neither it nor the classifier learned from.

    The surveyed tiles first show whether attention predicts which tiles are informative, by more than
    chance; this needs no labels. If not, tiles are drawn uniformly. If it predicts more than a little, the
    usual scale is taken unless the metric of another one, such as 0 for uniform draws, is clearly better; if
    it predicts little, tiles are drawn uniformly unless the metric of a scale is clearly better. With too few
    cases, attention is used without these checks.

    Parameters
    ----------
    model
        The network whose scale is set.
    held_out
        The slides.
    metric
        Function from outputs (n, O), and the numbers of their n elements of ``held_out``, to the task's main
        metric; larger is better.
    tiles, exploration
        Number of tiles and exploration of the draws.
    seed
        Seed of the simulation.
    """
    model.attention_scale.fill_(1.0)
    of_case: dict[str, list[int]] = {}
    for number, slides in enumerate(held_out):
        of_case.setdefault(slides.case, []).append(number)
    cases = list(of_case.values())
    if len(cases) < FEWEST_TO_JUDGE:
        model.attention_scale.fill_(USUAL)
        return Trust(USUAL, None, None, None, len(cases))
    each = [slides.foresight() for slides in held_out]
    # Slides of a case are not independent.
    foresight = [fmean(each[number] for number in case) for case in cases]
    mean, error = fmean(foresight), stdev(foresight) / math.sqrt(len(cases))
    scale, foretells = 0.0, False
    if mean > float(stdtrit(len(cases) - 1, 1 - _ERROR_RATE)) * error:
        outputs = {}
        for candidate in (USUAL, *_SCALES):
            model.attention_scale.fill_(candidate)
            outputs[candidate] = torch.stack(
                [
                    slides.simulate(tiles, exploration, draw_seed(seed, "trust", number))
                    for number, slides in enumerate(held_out)
                ],
                1,
            )
        predicts = mean > _LEAST_FORESIGHT
        generator = torch.Generator().manual_seed(draw_seed(seed, "trust", -1))
        default, averaged = (USUAL, 1) if predicts else (0.0, _AVERAGED)
        scale = _best(outputs, cases, metric, default, averaged, generator)
        foretells = predicts or scale > 0
    model.attention_scale.fill_(scale)
    return Trust(scale, foretells, mean, error, len(cases))


def _best(
    outputs: Mapping[float, Tensor],
    cases: Sequence[Sequence[int]],
    metric: Callable[[Tensor, Sequence[int]], float | None],
    default: float,
    averaged: int,
    generator: torch.Generator,
) -> float:
    """Return the scale that is clearly better than the default on resampled cases, or the default.

    Parameters
    ----------
    outputs
        Outputs of all held-out slides by scale, shape (draws, N, O).
    cases
        Numbers of the held-out slides of each case.
    metric
        See :func:`trust`.
    default
        Scale with which the others are compared.
    averaged
        Number of draws that the metric of a resample is averaged over.
    generator
        Source of randomness.
    """
    better: dict[float, list[float]] = {scale: [] for scale in outputs if scale != default}
    for resample in range(_RESAMPLES):
        chosen = torch.randint(len(cases), (len(cases),), generator=generator).tolist()
        places = [number for case in chosen for number in cases[case]]
        draws = [(resample * averaged + number) % _SIMULATED for number in range(averaged)]
        usual = [metric(outputs[default][draw, places], places) for draw in draws]
        for scale, found in better.items():
            own = [metric(outputs[scale][draw, places], places) for draw in draws]
            gains = [a - b for a, b in zip(own, usual, strict=True) if a is not None and b is not None]
            if gains:
                found.append(fmean(gains))
    clear = {
        scale: fmean(each)
        for scale, each in better.items()
        if len(each) > 1 and fmean(each) > _BETTER * stdev(each)
    }
    return max(clear, key=lambda scale: clear[scale]) if clear else default
