"""Score one slide with a trained model, and return the records of the result."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wsi_ats.bags.matched import MatchedBag, match_features
from wsi_ats.errors import SettingsError
from wsi_ats.geometry import Grid, IntArray
from wsi_ats.models.base import DrawLogits, draw_seed
from wsi_ats.models.encoding import Embed, TileBatches, embed_features, embed_tiles
from wsi_ats.models.frozen import published_fingerprint
from wsi_ats.models.kinds import method_for
from wsi_ats.models.stopping import stop
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.overview.annotated import within_regions
from wsi_ats.overview.overview import count_tiles, explain_exclusion, read_overview
from wsi_ats.overview.records import Overview, TissueMask
from wsi_ats.overview.tiles import level_for
from wsi_ats.results.records import AttentionMap, FloatArray, Prediction, ReadTiles, Selection, Status, Stop
from wsi_ats.settings import SamplingSettings, Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import Pixels, Slide, SlideRef
from wsi_ats.slides.wrappers import CountingSlide
from wsi_ats.tasks.targets import Target


@dataclass(frozen=True)
class Scored:
    """Result of scoring a slide; a notebook shows its numbers, and pictures if tiles are kept.

    Parameters
    ----------
    prediction
        Scores, and the cost of computing them.
    target
        Target of the model.
    attention, selection
        Attention map and the tiles read; ``None`` without tissue, and for a model without attention or tiles.
    overview
        Thumbnail and tissue, if they are kept.
    tiles
        Pixels and features of the tiles in ``selection``, if they are kept.
    warning
        What was repaired or left out in the regions of the slide; empty if nothing was.
    """

    prediction: Prediction
    target: Target
    attention: AttentionMap | None = None
    selection: Selection | None = None
    overview: Overview | None = None
    tiles: ReadTiles | None = None
    warning: str = ""

    def _repr_html_(self) -> str:
        from wsi_ats.results.notebook import html_of
        from wsi_ats.results.shown import DrawnTiles, ShownSlide

        selection, tiles = self.selection, self.tiles
        if self.overview is None or selection is None or tiles is None:
            return html_of(self.prediction, None)
        shown = ShownSlide(
            row=self.prediction.row(self.target.columns),
            target=self.target,
            overview=self.overview,
            mpp=selection.mpp,
            bounds=selection.bounds,
            attention=self.attention,
            drawn=DrawnTiles.of(selection, tissue_tiles=self.prediction.tiles_total),
        )
        if tiles.pixels is not None:
            shown = shown.with_tiles(tiles.cells, tiles.pixels)
        return html_of(self.prediction, shown)


@dataclass(frozen=True)
class LoadedModel:
    """A trained model, ready to score slides.

    Parameters
    ----------
    model
        The network, in evaluation mode, on its device.
    settings
        Settings it was trained with.
    target
        Target of its predictions.
    digest
        Fingerprint of weights, settings and target; recorded in predictions.
    """

    model: SlideNetwork
    settings: Settings
    target: Target
    digest: str

    @cached_property
    def encoder_digest(self) -> str:
        """Fingerprint of the weights whose features it takes, as files of features name it; empty if unknown.

        A model that was trained on pixels takes features if its backbone is frozen.
        """
        if self.settings.model.takes_features or self.settings.training.fine_tuning != "frozen":
            return self.settings.model.encoder_digest
        return published_fingerprint(self.model.encoder)

    def score(
        self,
        slide: Slide | SlideRef | str | Path,
        *,
        ref: SlideRef | None = None,
        settings: Settings | None = None,
        seed: int = 0,
        encoder: TileBatches | None = None,
        keep_tiles: bool = False,
    ) -> Scored:
        """Score a slide.

        Attention sampling reads only its thumbnail and a few tiles, or, if the reference names files of
        features, the features of a few tiles. With several draws, the
        scores are those of all their tiles pooled into one estimate, and ``logit_se`` the standard error
        over the draws, in the units that :class:`~wsi_ats.results.records.Prediction` names.
        :func:`wsi_ats.models.stopping.stop` decides after each draw whether another follows. Other kinds of
        models read more; see :mod:`wsi_ats.models`.

        On the CPU the last digits depend on the number of torch threads; ``wsi-ats score`` uses one.

        Parameters
        ----------
        slide
            Path or URL of the slide, a reference to it, or an open slide, which stays open.
        ref
            Name of an open slide, with the colours that it was opened in; by default it is named after its
            path.
        settings
            Settings of the model by default. Sections ``tile``, ``thumbnail``, ``sampling`` and ``scoring``
            are used; see :meth:`wsi_ats.settings.Settings.check_scoring`.
        seed
            Seed of the draws; the tiles depend on it and on the slide's id.
        encoder
            Encoder of the model, which several threads may share; see
            :class:`wsi_ats.models.encoding.TileBatches`. By default a new one for this slide, with the same
            result.
        keep_tiles
            Whether the result has the overview, and pixels and features of the tiles drawn, for pictures and
            other programs. They take memory for as long as the result is in use.

        Raises
        ------
        SlideError
            When the slide cannot be opened, its resolution is unknown, a pixel that is needed cannot be
            read, or its features or regions cannot be used.
        SettingsError
            When the model is in training mode, where scores depend on dropout; when it cannot score with the
            settings; when an open slide has other colours or another channel than ``tile.colour`` and
            ``tile.channel``.
        ModelError
            When the slide would not fit into memory, which can happen with kind ``image``.
        """
        if self.model.training:
            raise SettingsError("scoring needs a model in evaluation mode; call model.eval() first")
        settings = settings or self.settings
        settings.check_scoring(self.settings)
        if isinstance(slide, SlideRef | str | Path):
            if ref is not None:
                raise SettingsError(f"ref {ref.id} is for a slide that is open, not for {slide}; omit ref")
            known = slide if isinstance(slide, SlideRef) else SlideRef.from_path(slide)
            known = replace(known, colour=settings.tile.colour, channel=settings.tile.channel)
            with open_slide(known) as opened:
                return self._score(opened, known, settings, seed, encoder, keep_tiles)
        known = ref or SlideRef.from_path(slide.path)
        known.check_pixels(colour=settings.tile.colour, channel=settings.tile.channel)
        return self._score(slide, known, settings, seed, encoder, keep_tiles)

    def _score(
        self,
        slide: Slide,
        ref: SlideRef,
        settings: Settings,
        seed: int,
        encoder: TileBatches | None,
        keep_tiles: bool,
    ) -> Scored:
        begin = time.perf_counter()
        counting = CountingSlide(slide)
        overview, bag = read_overview(counting, settings), None
        if ref.features:
            own = replace(settings.model, encoder_digest=self.encoder_digest)
            overview, bag = match_features(ref, slide, overview, own)
        overview = within_regions(overview, ref, slide, settings)
        tissue = overview.tissue
        draws: list[DrawLogits] = []
        stopped: Stop | None = None
        kept = _Kept() if keep_tiles and settings.model.draws else None
        if len(tissue.cells):
            seeds = (draw_seed(seed, ref.id, number) for number in count())
            draws, stopped = self._draw(counting, overview, bag, settings, seeds, encoder, kept)
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
        warning = overview.outside.warning if overview.outside else ""
        if not draws:
            return Scored(prediction, self.target, overview=overview if keep_tiles else None, warning=warning)
        return Scored(
            prediction,
            self.target,
            _attention_map(draws[0].attention, tissue),
            _selection(ref, counting, draws, scores, self.target),
            overview if keep_tiles else None,
            kept.tiles() if kept else None,
            warning,
        )

    def _draw(
        self,
        slide: Slide,
        overview: Overview,
        bag: MatchedBag | None,
        settings: Settings,
        seeds: Iterator[int],
        encoder: TileBatches | None,
        kept: _Kept | None,
    ) -> tuple[list[DrawLogits], Stop]:
        """Draw, read and classify tiles until the stopping rule ends it."""
        device = next(self.model.parameters()).device
        method = method_for(self.model, settings, device)
        keep = kept.add_pixels if kept else None
        source = (
            embed_tiles(self.model, slide, settings, device, shared=encoder, keep=keep)
            if bag is None
            else nullcontext(embed_features(self.model, bag, device))
        )
        with (
            source as embed,
            closing(
                method.score(slide, overview, seeds, kept.features_of(embed) if kept else embed)
            ) as scoring,
        ):
            return _enough(scoring, settings.sampling, self.target)


def _by_column(draws: Sequence[DrawLogits], target: Target) -> dict[str, float]:
    return dict(zip(target.columns, _scores(draws, target).tolist(), strict=True)) if draws else {}


def _enough(
    draws: Iterable[DrawLogits], sampling: SamplingSettings, target: Target
) -> tuple[list[DrawLogits], Stop]:
    """Take draws until the stopping rule ends them, and return the reason."""
    taken: list[DrawLogits] = []
    for each in draws:
        taken.append(each)
        read = sum(one.new_tiles for one in taken)
        stopped = stop(sampling, draws=len(taken), error=_sampling_error(taken, target), read=read)
        if stopped:
            return taken, stopped
    return taken, Stop.DRAWS  # a model that does not sample makes one draw


def _scores(draws: Sequence[DrawLogits], target: Target) -> Tensor:
    """Return the scores of all columns from the tiles of all draws."""
    last = draws[-1]
    logits = last.logits if last.pooled_logits is None else last.pooled_logits
    return target.restore(target.definition.activate(logits))


def _sampling_error(draws: Sequence[DrawLogits], target: Target) -> float | None:
    """Return the standard error over draws that ``Prediction.logit_se`` describes."""
    if len(draws) < 2:
        return None
    logits = target.definition.on_link_scale(torch.stack([each.logits for each in draws]))
    if target.definition.has_classes:  # only the predicted one
        logits = logits[:, _scores(draws, target).argmax(), None]
    # Relative to the first draw: the mean of equal draws may differ from them in the last bit.
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
    draws: Sequence[DrawLogits],
    scores: dict[str, float],
    target: Target,
) -> Selection | None:
    """Return the tiles of all draws as one record; ``None`` if there are none."""
    tiles = [each.tiles for each in draws if each.tiles]
    if not tiles:
        return None
    sizes = [len(each.cells) for each in tiles]
    grid, cells = tiles[0].grid, np.concatenate([each.cells for each in tiles])
    return Selection(
        slide_id=ref.id,
        path=ref.path,
        grid=grid,
        level=level_for(slide.levels, grid.cell / grid.tile_size),
        mpp=slide.mpp.value,
        bounds=slide.bounds,
        cells=cells,
        attention=torch.cat([each.attention for each in tiles]).double().cpu().numpy(),
        inclusion=torch.cat([each.inclusion for each in tiles]).cpu().numpy(),
        weight=torch.cat([each.weight for each in tiles]).double().cpu().numpy(),
        draw=np.repeat(np.arange(len(tiles)), sizes),
        order=np.concatenate([np.arange(size) for size in sizes]),
        scores=scores,
        evidence=_evidence(draws[-1], cells, target),
    )


def _evidence(last: DrawLogits, cells: IntArray, target: Target) -> dict[str, FloatArray]:
    """Return the evidence of the tile in each row; see :class:`wsi_ats.results.records.Selection`."""
    if last.logits_without is None or last.pooled_logits is None:
        return {}
    link = target.definition.on_link_scale
    evidence = link(last.pooled_logits[None].double()) - link(last.logits_without())
    place = np.unique(cells, return_inverse=True)[1]
    return dict(zip(target.names, (evidence.T * target.scale).numpy()[:, place], strict=True))


@dataclass(eq=False)
class _Kept:
    """Pixels and features of the tiles that were read, by cell."""

    pixels: dict[int, Pixels] = field(default_factory=dict)
    features: dict[int, Tensor] = field(default_factory=dict)

    def add_pixels(self, cells: IntArray, tiles: Pixels) -> None:
        self.pixels.update(zip(cells.tolist(), tiles, strict=True))

    def features_of(self, embed: Embed) -> Embed:
        """Return the same source of features, which keeps them."""

        def kept(grid: Grid, cells: IntArray) -> tuple[Tensor, int]:
            features, empty = embed(grid, cells)
            self.features.update(zip(cells.tolist(), features, strict=True))
            return features, empty

        return kept

    def tiles(self) -> ReadTiles:
        cells = sorted(self.features)
        return ReadTiles(
            np.array(cells, dtype=np.int64),
            np.stack([self.pixels[cell] for cell in cells]) if self.pixels else None,
            torch.stack([self.features[cell] for cell in cells]).float().cpu().numpy(),
        )
