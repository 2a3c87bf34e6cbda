"""Ways to score the slides of a fold: by few tiles, drawn by attention or uniformly, or by all tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines._fitting import Fitting, device
from wsi_ats.errors import ArtifactError
from wsi_ats.files import read_json, write_json
from wsi_ats.settings import SamplingSettings, Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.tasks.base import Floats
from wsi_ats.tasks.targets import Target

if TYPE_CHECKING:  # torch takes seconds to import
    from wsi_ats.nn.network import SlideNetwork

ATTENTION = "attention sampling"
UNIFORM = "uniform sampling"
ALL = "attention MIL"

# Random subsets, because multiple-instance learning memorises all tiles of few slides
# (docs/explanation/training.md), and so that an epoch takes the same time for slides of any size.
_MIL = ("model.kind=mil", "model.mil_tiles=64", "training.joint_epochs=0", "training.supervision=0")


@dataclass(frozen=True)
class Way:
    """A way to score slides.

    Parameters
    ----------
    method
        :data:`ATTENTION`, :data:`UNIFORM` or :data:`ALL`.
    tiles
        Tiles drawn from each slide; 0 for all.
    """

    method: str
    tiles: int = 0


@dataclass(frozen=True)
class FoldScores:
    """Scores of the test slides of one fold.

    Parameters
    ----------
    ids
        The N slides that could be scored.
    scores
        Their scores from D independent draws of each way, shape (D, N, C).
    failed
        Reasons why slides could not be read in training or scoring, by slide.
    """

    ids: Sequence[str]
    scores: Mapping[Way, Floats]
    failed: Mapping[str, str]

    def save(self, path: Path) -> None:
        """Write a file, atomically."""
        scores = [[way.method, way.tiles, each.tolist()] for way, each in self.scores.items()]
        write_json(path, {"ids": list(self.ids), "failed": dict(self.failed), "scores": scores})

    @classmethod
    def load(cls, path: Path) -> FoldScores:
        """Read a file that :meth:`save` wrote.

        Raises
        ------
        ArtifactError
            When it is damaged.
        """
        record = read_json(path)
        try:
            scores = {Way(method, tiles): np.array(each) for method, tiles, each in record["scores"]}
            return cls(record["ids"], scores, record["failed"])
        except (KeyError, ValueError, TypeError) as error:
            raise ArtifactError(
                f"{path} is damaged: {error!r}; delete it, and run the command again"
            ) from error


def ways(budgets: Sequence[int]) -> list[Way]:
    """Return all ways; the last, attention MIL on all tiles, is the reference."""
    return [*(Way(method, n) for method in (ATTENTION, UNIFORM) for n in budgets), Way(ALL)]


def score_fold(
    fitting: Fitting, fold: Sequence[SlideRef], target: Target, *, budgets: Sequence[int], draws: int
) -> FoldScores:
    """Train on the slides of a fold, and score its test slides in all :func:`ways`.

    Parameters
    ----------
    fitting
        Folder and settings of the fold; the slides are prepared.
    fold
        The slides with their splits.
    target
        Target of the labels.
    budgets
        Numbers of tiles to draw.
    draws
        Independent draws of each number of tiles.

    Raises
    ------
    ManifestError, ModelError
        When there is too little to learn from.
    """
    learned = [ref for ref in fold if ref.split != "test"]
    tested = [ref for ref in fold if ref.split == "test"]
    found: dict[Way, list[dict[str, Floats]]] = {}
    failed: dict[str, str] = {}
    # To validate on all tiles of a slide takes many times as long as a step on a few.
    mil = replace(fitting, out=fitting.out / "mil", settings=_mil(fitting.settings), every_epoch=False)
    for part in (replace(fitting, out=fitting.out / "attention"), mil):
        fitted = part.fit(learned, target)
        failed |= fitted.unreadable
        for way in ways(budgets):
            if (way.method == ALL) == (part.settings.model.kind == "mil"):
                number = draws if way.tiles else 1
                found[way], bad = _score(part, fitted.trained.model, fitted.target, tested, way, number)
                failed |= bad
    ids = [ref.id for ref in tested if all(ref.id in draw for each in found.values() for draw in each)]
    scores = {
        way: np.array([[draw[name] for name in ids] for draw in each]).reshape(
            len(each), len(ids), len(target.columns)
        )
        for way, each in found.items()
    }
    return FoldScores(ids, scores, failed)


def _mil(settings: Settings) -> Settings:
    """Return the same settings for multiple-instance learning, with as many epochs in one phase."""
    rates = settings.training
    epochs = rates.epochs + rates.attention_epochs + rates.joint_epochs
    return replace(settings, sampling=SamplingSettings()).with_values([*_MIL, f"training.epochs={epochs}"])


def _score(
    fitting: Fitting, model: SlideNetwork, target: Target, tested: Sequence[SlideRef], way: Way, draws: int
) -> tuple[list[dict[str, Floats]], dict[str, str]]:
    """Score slides in one way; return the scores (C,) by slide of each draw, and why slides failed."""
    from wsi_ats.models.outputs import outputs_of
    from wsi_ats.nn.model import AttentionSampler
    from wsi_ats.training.validation import drawing_uniformly

    settings = fitting.settings
    found: list[dict[str, Floats]] = []
    failed: dict[str, str] = {}
    if way.tiles:
        settings = replace(settings, sampling=replace(settings.sampling, tiles=way.tiles, max_tiles=0))
    as_asked: AbstractContextManager[None] = nullcontext()
    if way.method == UNIFORM and isinstance(model, AttentionSampler):
        as_asked = drawing_uniformly(model)
    with fitting.reading(tested) as reader, as_asked:
        examples = fitting.examples(tested, target)
        for draw in range(draws):
            outputs, bad = outputs_of(model, settings, examples, reader, draw=draw, device=device())
            failed |= bad
            activate = target.definition.activate
            found.append({n: target.restore(activate(each)).numpy() for n, each in outputs.items()})
    return found, failed
