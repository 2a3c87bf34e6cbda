"""Score one slide: from the outputs of a trained model to the records that a user keeps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wsi_ats.errors import SettingsError
from wsi_ats.models.base import DrawLogits, WeightedTiles, draw_seed
from wsi_ats.models.encoding import TileBatches
from wsi_ats.models.kinds import method_for
from wsi_ats.models.stopping import stop
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.overview.masks import TissueMask
from wsi_ats.overview.overview import count_tiles, explain_exclusion, read_overview
from wsi_ats.overview.tiles import level_for
from wsi_ats.results.records import AttentionMap, Prediction, Selection, Status, Stop
from wsi_ats.settings import SamplingSettings, Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import Slide, SlideRef
from wsi_ats.slides.wrappers import CountingSlide
from wsi_ats.tasks.targets import Target


@dataclass(frozen=True)
class Scored:
    """All that scoring a slide gives.

    Parameters
    ----------
    prediction
        Scores, and what it took to get them.
    attention, selection
        Where the model looked and which tiles were read; ``None`` where there is no tissue, and for a model
        that has no attention and reads no tiles.
    """

    prediction: Prediction
    attention: AttentionMap | None = None
    selection: Selection | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A trained model, ready to score slides.

    Parameters
    ----------
    model
        In evaluation mode, on the device that computes.
    settings
        Those it was trained with.
    target
        What it predicts.
    digest
        Fingerprint of weights, settings and target; recorded in predictions.
    """

    model: SlideNetwork
    settings: Settings
    target: Target
    digest: str

    def score(
        self,
        slide: Slide | SlideRef | str | Path,
        *,
        ref: SlideRef | None = None,
        settings: Settings | None = None,
        seed: int = 0,
        encoder: TileBatches | None = None,
    ) -> Scored:
        """Score a slide.

        Attention sampling reads its thumbnail and a few tiles, and nothing else. With several draws, the
        scores are those of all their tiles pooled into one estimate, and ``logit_se`` the standard error
        over the draws, in the units that :class:`~wsi_ats.results.records.Prediction` names.
        :func:`wsi_ats.models.stopping.stop` decides after each draw whether another follows. Other kinds of
        models read more; see :mod:`wsi_ats.models`.

        On the CPU the last digits depend on how many threads torch computes with; ``wsi-ats score`` has one.

        Parameters
        ----------
        slide
            The slide: its path or URL, a reference, or one that is open, which stays open.
        ref
            Name of an open slide, with the colours that it was opened in; by default it is named after its
            path.
        settings
            Those of the model by default. Sections ``tile``, ``thumbnail``, ``sampling`` and ``scoring`` are
            used; see :meth:`wsi_ats.settings.Settings.check_scoring`.
        seed
            With the slide's id, decides which tiles are drawn.
        encoder
            The model's own, which slides that are scored by several threads may share; see
            :class:`wsi_ats.models.encoding.TileBatches`. One for this slide by default, with the same
            result.

        Raises
        ------
        SlideError
            When the slide cannot be opened, its resolution is unknown or a pixel that is needed cannot be
            read.
        SettingsError
            When the model is in training mode, for its scores would depend on dropout; when the model cannot
            be scored with the settings; when the colours or channel of a slide that is open are not those of
            ``tile.colour`` and ``tile.channel``.
        ModelError
            When the slide would not fit into memory, which can happen with kind ``image``.
        """
        if self.model.training:
            raise SettingsError("scoring needs a model in evaluation mode; call model.eval() first")
        settings = settings or self.settings
        settings.check_scoring(self.settings)
        if isinstance(slide, SlideRef | str | Path):
            if ref is not None:
                raise SettingsError(f"ref {ref.id} is for a slide that is open; {slide} names itself")
            known = slide if isinstance(slide, SlideRef) else SlideRef.from_path(slide)
            known = replace(known, colour=settings.tile.colour, channel=settings.tile.channel)
            with open_slide(known) as opened:
                return self._score(opened, known, settings, seed, encoder)
        known = ref or SlideRef.from_path(slide.path)
        known.check_pixels(colour=settings.tile.colour, channel=settings.tile.channel)
        return self._score(slide, known, settings, seed, encoder)

    def _score(
        self, slide: Slide, ref: SlideRef, settings: Settings, seed: int, encoder: TileBatches | None
    ) -> Scored:
        begin = time.perf_counter()
        counting = CountingSlide(slide)
        overview = read_overview(counting, settings)
        tissue = overview.tissue
        draws: list[DrawLogits] = []
        stopped: Stop | None = None
        if len(tissue.cells):
            seeds = (draw_seed(seed, ref.id, number) for number in count())
            method = method_for(self.model, settings, next(self.model.parameters()).device)
            with closing(method.score(counting, overview, seeds, encoder)) as scoring:
                draws, stopped = _enough(scoring, settings.sampling, self.target)
        read = sum(each.new_tiles for each in draws)
        scores = _by_column(draws, self.target)
        prediction = Prediction(
            slide_id=ref.id,
            case_id=ref.case,
            path=ref.path,
            status=Status.DONE if draws else Status.NO_TISSUE,
            scores=scores,
            predicted=self.target.decide(scores) if draws else None,
            logit_se=_sampling_error(draws, self.target),
            stopped_by=stopped,
            draws=len(draws),
            tiles_read=read,
            tiles_total=max(count_tiles(tissue, settings), read),
            tiles_empty=sum(each.empty_tiles for each in draws),
            bytes_read=counting.stored_bytes_read,
            seconds=time.perf_counter() - begin,
            model_digest=self.digest,
            seed=seed,
            error=explain_exclusion(overview, settings),
            log_weight=draws[-1].log_weight if draws else None,
        )
        if not draws:
            return Scored(prediction)
        return Scored(
            prediction,
            _attention_map(draws[0].attention, tissue),
            _selection(ref, counting, [each.tiles for each in draws if each.tiles], scores),
        )


def _by_column(draws: Sequence[DrawLogits], target: Target) -> dict[str, float]:
    return dict(zip(target.columns, _scores(draws, target).tolist(), strict=True)) if draws else {}


def _enough(
    draws: Iterable[DrawLogits], sampling: SamplingSettings, target: Target
) -> tuple[list[DrawLogits], Stop]:
    """Take as many draws as are needed, and say why no more."""
    taken: list[DrawLogits] = []
    for each in draws:
        taken.append(each)
        read = sum(one.new_tiles for one in taken)
        stopped = stop(sampling, draws=len(taken), error=_sampling_error(taken, target), read=read)
        if stopped:
            return taken, stopped
    return taken, Stop.DRAWS  # of a model that does not sample there is but one


def _scores(draws: Sequence[DrawLogits], target: Target) -> Tensor:
    """By column, from the tiles of all draws."""
    last = draws[-1]
    logits = last.logits if last.pooled_logits is None else last.pooled_logits
    return target.restore(target.definition.activate(logits))


def _sampling_error(draws: Sequence[DrawLogits], target: Target) -> float | None:
    """Return the standard error over draws; see :meth:`wsi_ats.tasks.base.Task.outputs_with_error`."""
    if len(draws) < 2:
        return None
    logits = torch.stack([each.logits for each in draws])
    logits = target.definition.outputs_with_error(logits, _scores(draws, target))
    # From the first: of draws that are the same, the mean need not be the same to the last bit.
    return ((logits - logits[0]).std(0).max() * target.scale / math.sqrt(len(logits))).item()


def _attention_map(attention: Tensor | None, tissue: TissueMask) -> AttentionMap | None:
    if attention is None:
        return None
    on_grid = np.zeros(tissue.grid.shape)
    on_grid.flat[tissue.cells] = attention.double().cpu().numpy()
    return AttentionMap(tissue.grid, on_grid, tissue.mask)


def _selection(
    ref: SlideRef,
    slide: Slide,
    tiles: Sequence[WeightedTiles],
    scores: dict[str, float],
) -> Selection | None:
    """The tiles of every draw as one record."""
    if not tiles:
        return None
    sizes = [len(each.cells) for each in tiles]
    grid = tiles[0].grid
    return Selection(
        slide_id=ref.id,
        path=ref.path,
        grid=grid,
        level=level_for(slide.levels, grid.cell / grid.tile_size),
        bounds=slide.bounds,
        cells=np.concatenate([each.cells for each in tiles]),
        attention=torch.cat([each.attention for each in tiles]).double().cpu().numpy(),
        inclusion=torch.cat([each.inclusion for each in tiles]).cpu().numpy(),
        weight=torch.cat([each.weight for each in tiles]).double().cpu().numpy(),
        draw=np.repeat(np.arange(len(tiles)), sizes),
        order=np.concatenate([np.arange(size) for size in sizes]),
        scores=scores,
    )
