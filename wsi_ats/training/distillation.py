"""Where to look: survey the slides once, let attention learn from that, and find out how far to trust it."""

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
"""Scale of attention's logits where nothing speaks against it. Attention is taught the draws that tell best
what *all* tiles of a slide say on average; sharper ones tell labels better (``benchmarks/learning.py``)."""

SCALES = (0.0, 0.25, 0.5, 1.0)
"""Scales that are tried beside it; 0 is uniform."""

# By how many standard errors the figure of another scale must be better: validation slides are few, and the
# best of several figures is best by luck.
_BETTER = 2.0

_RESAMPLES = 200

# How often attention that knows nothing may seem to foretell, by Student's t over the cases. That does little
# harm: such attention is nearly flat, and the figure has a say, too.
_ERROR_RATE = 0.05

# Less changes draws by so little that they are uniform to speak of.
_LEAST_FORESIGHT = 0.1

# Simulated draws of each slide.
_SIMULATED = 32

FEWEST_TO_JUDGE = 4
"""Cases that it takes to judge attention; fewer tell nothing."""


@dataclass(frozen=True)
class Trust:
    """How far attention is trusted, and why.

    Parameters
    ----------
    scale
        What attention's logits are multiplied by; 0 for uniform draws.
    foretells
        Whether attention foretells, by more than chance and more than a little, which tiles of other slides
        are worth reading; ``None`` where there were fewer than :data:`FEWEST_TO_JUDGE` cases, and it is used
        all the same.
    foresight
        How much more attention's logits are where tiles are worth reading than on average, in nats, mean over
        cases; ``None`` where it was not judged.
    error
        Standard error of that.
    cases
        How many cases there were to judge by.
    """

    scale: float
    foretells: bool | None
    foresight: float | None
    error: float | None
    cases: int


@dataclass(frozen=True)
class Judge:
    """Slides that are scored together and that attention did not learn from.

    Parameters
    ----------
    case
        The case that they are of.
    evidence
        What the survey of each found, or of all together where their cells are pooled as those of one slide.
    """

    case: str
    evidence: Sequence[Evidence]

    def foresight(self) -> float:
        """See :meth:`wsi_ats.models.evidence.Evidence.foresight`; the mean over the slides."""
        return fmean(each.foresight().item() for each in self.evidence)

    def simulate(self, tiles: int, exploration: float, seed: int) -> Tensor:
        """Outputs (draws, O) of simulated draws; see :meth:`wsi_ats.models.evidence.Evidence.simulate`.

        Parameters
        ----------
        tiles, exploration
            Of each draw.
        seed
            Of the simulation.
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
    dict of Evidence
        By number of the slide. What the classifier says is all that needs to be kept; see :func:`recall`.
    """

    def begin(number: int) -> Callable[[], Evidence] | None:
        example = examples[number]
        try:
            return method.begin_survey(example, reader, survey_seed(seed, example))
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
        What the classifier said of the tiles, shape (m, 1 + O), by number of the slide.
    """
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
    attended = evidence.attend()
    return (
        distillation(evidence.target, attended.log_attention),
        attended.entropy.detach(),
        attended.top_share,
    )


def trust(
    model: AttentionSampler,
    judges: Sequence[Judge],
    figure: Callable[[Tensor, Sequence[int]], float | None],
    *,
    tiles: int,
    exploration: float,
    seed: int,
) -> Trust:
    """Choose the scale of attention's logits on slides that neither it nor the classifier learned from.

    Two questions are asked, of the tiles of the survey alone. Does attention foretell which tiles are worth
    reading, by more than chance and more than a little? That takes no labels; if not, tiles are drawn
    uniformly. If it does, are draws by another scale than the usual one, uniform ones among them, clearly
    better by the labels? Where there are too few cases to judge by, attention is used all the same.

    Parameters
    ----------
    model
        Its scale is set.
    judges
        The slides.
    figure
        From outputs (n, O), and the numbers of the n judges that they are of, to the task's main figure, the
        larger the better.
    tiles, exploration
        Of the draws.
    seed
        Of the simulation.
    """
    model.attention_scale.fill_(1.0)
    of_case: dict[str, list[int]] = {}
    for number, judge in enumerate(judges):
        of_case.setdefault(judge.case, []).append(number)
    cases = list(of_case.values())
    if len(cases) < FEWEST_TO_JUDGE:
        model.attention_scale.fill_(USUAL)
        return Trust(USUAL, None, None, None, len(cases))
    each = [judge.foresight() for judge in judges]
    # Slides of a case are not independent.
    foresight = [fmean(each[number] for number in case) for case in cases]
    mean, error = fmean(foresight), stdev(foresight) / math.sqrt(len(cases))
    certain = mean > float(stdtrit(len(cases) - 1, 1 - _ERROR_RATE)) * error
    foretells = certain and mean > _LEAST_FORESIGHT
    scale = 0.0
    if foretells:
        outputs = {}
        for candidate in (USUAL, *SCALES):
            model.attention_scale.fill_(candidate)
            outputs[candidate] = torch.stack(
                [
                    judge.simulate(tiles, exploration, draw_seed(seed, "trust", number))
                    for number, judge in enumerate(judges)
                ],
                1,
            )
        scale = _best(outputs, cases, figure, torch.Generator().manual_seed(draw_seed(seed, "trust", -1)))
    model.attention_scale.fill_(scale)
    return Trust(scale, foretells, mean, error, len(cases))


def _best(
    outputs: Mapping[float, Tensor],
    cases: Sequence[Sequence[int]],
    figure: Callable[[Tensor, Sequence[int]], float | None],
    generator: torch.Generator,
) -> float:
    """Return the scale whose figure is best if it is clearly so, by resampled cases, and else the usual one.

    Parameters
    ----------
    outputs
        Of all judges by each scale, shape (draws, N, O).
    cases
        Numbers of the judges of each case.
    figure
        See :func:`trust`.
    generator
        Source of randomness.
    """
    better: dict[float, list[float]] = {scale: [] for scale in outputs}
    for resample in range(_RESAMPLES):
        chosen = torch.randint(len(cases), (len(cases),), generator=generator).tolist()
        places = [number for case in chosen for number in cases[case]]
        draw = resample % _SIMULATED
        figures = {scale: figure(each[draw, places], places) for scale, each in outputs.items()}
        usual = figures[USUAL]
        for scale, value in figures.items():
            if value is not None and usual is not None:
                better[scale].append(value - usual)
    clear = {
        scale: fmean(each)
        for scale, each in better.items()
        if len(each) > 1 and fmean(each) > _BETTER * stdev(each)
    }
    return max(clear, key=lambda scale: clear[scale]) if clear else USUAL
