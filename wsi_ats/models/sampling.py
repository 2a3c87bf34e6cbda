"""Attention sampling: attend to the thumbnail, draw a few tiles, read and encode those, estimate all.

:func:`draw_cells` says which tiles are read and :func:`weigh` with which weights; what is then done with
their pixels is the same for training and scoring, and does not depend on how they were chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ats.errors import ModelError, SlideReadError
from wsi_ats.geometry import Grid, IntArray
from wsi_ats.models.base import DrawLogits, Estimates, Finish, SeenTiles, WeightedTiles
from wsi_ats.models.batches import Example, Reader, outcomes
from wsi_ats.models.calibration import calibrate, varied
from wsi_ats.models.encoding import TILES_AT_A_TIME, TileBatches, encode_cells, encoder_for, to_device
from wsi_ats.models.evidence import Attended, Evidence
from wsi_ats.models.features import Features
from wsi_ats.nn import expectation
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.precision import autocast
from wsi_ats.nn.sampling import Draw, draw, explore
from wsi_ats.overview.masks import TissueMask
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.settings import SamplingSettings, Settings
from wsi_ats.slides.base import Pixels, Slide
from wsi_ats.tasks.registry import task_named

# Tile pixels in one pass, forward and backward: 64 tiles of 256 pixels hold about 2.5 GB in a resnet18.
_PIXELS_AT_A_TIME = 64 * 256**2


class Looker(Protocol):
    """From a thumbnail, candidate cells and the grid's shape to the attention's logits of the cells."""

    def __call__(self, thumbnail: Tensor, cells: Tensor, shape: tuple[int, int], /, *, turn: int) -> Tensor:
        """See :meth:`wsi_ats.nn.model.AttentionSampler.score_cells`."""


@dataclass(frozen=True)
class AttentionSampling:
    """See :class:`wsi_ats.models.base.Method`.

    Parameters
    ----------
    model
        Its network.
    settings
        Sections ``model``, ``sampling``, ``training``, ``augmentation`` and ``scoring`` are used.
    device
        Where the network is; the CPU by default.
    turns
        While the network learns, its attention sees every slide turned and mirrored by chance, of which this
        is the source, on the CPU; ``None``: as it is.
    """

    model: AttentionSampler
    settings: Settings
    device: torch.device | None = None
    turns: torch.Generator | None = None

    def passes(self, slides: int) -> int:
        """Into how many passes a step is cut, so that its tiles fit into memory; gradients are summed."""
        tiles = self.settings.training.tiles_per_pass or _PIXELS_AT_A_TIME // self.settings.tile.size**2
        together = max(1, tiles // self.settings.sampling.tiles)
        return -(-slides // together)

    def check(self, training: Sequence[Example], validation: Sequence[Example]) -> None:
        """All slides will do: what is held in memory does not depend on their size."""

    def calibrate(self, examples: Sequence[Example], reader: Reader) -> None:
        """Measure the encoder's constants on tiles drawn uniformly from all slides."""
        calibrate(self.model.encoder, examples, reader, self.settings, device=self.device)

    def begin(self, examples: Sequence[Example], reader: Reader, seeds: Sequence[int]) -> Finish:
        """Draw the tiles of some slides, once each, and begin to read them.

        Gradients will flow into all of the model, but not into its attention if settings freeze that.

        Raises
        ------
        ModelError
            When attention is no longer a number.
        """
        with torch.no_grad():
            plans, unseen = self._plan(examples, reader, seeds)
        places = [place for place, plan in enumerate(plans) if plan is not None]
        planned = [plan for plan in plans if plan is not None]
        futures = reader.read(
            [
                (examples[place].ref, plan.grid, plan.cells)
                for place, plan in zip(places, planned, strict=True)
            ]
        )

        def finish() -> Estimates:
            tiles, unread = outcomes(futures, [examples[place] for place in places])
            kept = [
                (place, plan, pixels)
                for place, plan, pixels in zip(places, planned, tiles, strict=True)
                if pixels is not None
            ]
            return self._estimate(
                [place for place, _, _ in kept],
                [plan for _, plan, _ in kept],
                [pixels for _, _, pixels in kept],
                [seeds[place] for place, _, _ in kept],
                {**unseen, **unread},
            )

        return finish

    def _estimate(
        self,
        places: Sequence[int],
        plans: Sequence[Plan],
        tiles: Sequence[Pixels | Features],
        seeds: Sequence[int],
        failed: Mapping[str, str],
    ) -> Estimates:
        """Weigh the tiles of slides by attention as it is now, and encode and pool them."""
        if not plans:
            none = torch.zeros(0, device=self.device)
            outputs = torch.zeros(0, self.model.head.out_features, device=self.device)
            return Estimates(outputs, [], failed, none)
        chosen = [plan.weigh() for plan in plans]
        counts = [len(each) for each in tiles]
        features = torch.split(self._embed(np.concatenate(tiles), counts, seeds), counts)
        weights = [each.tiles.weight for each in chosen]
        pooled = [self.model.pool(*each) for each in zip(weights, features, strict=True)]
        log_weight = [
            self._log_weight(each, weight, part)
            for each, weight, part in zip(chosen, weights, features, strict=True)
        ]
        return Estimates(
            outputs=self.model.classify(torch.stack(pooled)),
            places=places,
            failed=failed,
            log_weight=torch.stack(log_weight),
            tiles=sum(counts),
            drawn=[
                SeenTiles(
                    weight=each.tiles.weight,
                    attention=each.tiles.attention,
                    gate=self.model.gate_logits(part),
                    features=part,
                    entropy=each.attended.entropy,
                    top_share=each.attended.top_share,
                )
                for each, part in zip(chosen, features, strict=True)
            ],
        )

    def begin_survey(self, example: Example, reader: Reader, seed: int) -> Callable[[], Evidence]:
        """Draw tiles of a slide by attention as it is, and begin to read them.

        Attention should be uniform, so that the tiles stand for the slide as it is.

        Parameters
        ----------
        example
            The slide.
        reader
            Reads its tiles.
        seed
            Of the draw.

        Returns
        -------
        function
            To be called once; asks the classifier what each tile tells, without gradient. It may raise
            :class:`~wsi_ats.errors.SlideError`.
        """
        plan = self._plan_one(example, reader, seed)
        [tiles] = reader.read([(example.ref, plan.grid, plan.cells)])

        @torch.no_grad()
        def finish() -> Evidence:
            parts = np.array_split(seen := tiles.result(), -(-len(seen) // TILES_AT_A_TIME))
            features = torch.cat([self._embed(part, [len(part)], [seed]) for part in parts])
            said = torch.cat([self.model.gate_logits(features)[:, None], self.model.classify(features)], 1)
            if not said.isfinite().all():
                raise ModelError(
                    f"what the classifier says of tiles of {example.ref.id} is no number; try lower "
                    "learning rates"
                )
            return self._evidence(plan, said.double())

        return finish

    def recall(self, example: Example, reader: Reader, seed: int, said: Tensor) -> Evidence:
        """Return the evidence of an earlier survey with the same seed, without reading its tiles again.

        Parameters
        ----------
        example, reader, seed
            See :meth:`begin_survey`.
        said
            What the classifier said of each tile then; see :class:`Evidence`.

        Raises
        ------
        SlideError
            When what decides on the tiles, a closer look at regions, cannot be read.
        """
        return self._evidence(self._plan_one(example, reader, seed), said)

    @torch.no_grad()
    def _evidence(self, plan: Plan, said: Tensor) -> Evidence:
        chosen = plan.weigh()
        weight = chosen.tiles.weight
        return Evidence(
            attend=lambda: plan.weigh().attended,
            weight=weight,
            uniform=chosen.attended,
            said=said.to(weight.device),
            nothing=None if self.model.gate is not None else self.model.head.bias.double(),
            classes=task_named(self.settings.model.task).has_classes,
        )

    @torch.no_grad()
    def _plan_one(self, example: Example, reader: Reader, seed: int) -> Plan:
        [plan], failed = self._plan([example], reader, [seed])
        if plan is None:
            raise SlideReadError(example.ref.path, failed[example.ref.id])
        return plan

    def _embed(self, seen: NDArray[Any], counts: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Features (N, D) of the tiles of several slides, all encoded at once."""
        tiles = to_device(seen, self.device)
        if self.model.training and tiles.ndim == 4:
            tiles = varied(tiles, counts, seeds, self.settings.augmentation)
        with autocast(self.settings.training.precision, tiles.device, self.settings.tile.size):
            return self.model.embed(tiles)

    def _log_weight(self, chosen: Chosen, weight: Tensor, features: Tensor) -> Tensor:
        """See :class:`wsi_ats.models.base.Estimates`."""
        if self.settings.model.cases != "union":
            return chosen.attended.log_mass.new_zeros(())
        return chosen.attended.log_mass + self.model.log_mass(weight, features)

    @torch.inference_mode()
    def score(
        self,
        slide: Slide,
        thumbnail: Pixels,
        tissue: TissueMask,
        seeds: Iterable[int],
        encoder: TileBatches | None = None,
    ) -> Generator[DrawLogits, None, None]:
        """Estimate the logits of one slide, draw by draw; a tile of several draws is read once."""
        features: dict[int, Tensor] = {}
        weights: list[Tensor] = []
        drawn: list[Tensor] = []
        with encoder_for(self.model, self.settings, self.device, encoder) as batches:
            for attention, chosen in self._draws(slide, thumbnail, tissue, seeds):
                tiles = chosen.tiles
                read = partial(read_tiles, slide, tiles.grid)
                new = np.array(sorted(set(tiles.cells.tolist()) - features.keys()), dtype=np.int64)
                empty = 0
                if len(new):
                    encoded, empty = encode_cells(batches, read, new)
                    features.update(zip(new.tolist(), encoded, strict=True))
                weights.append(tiles.weight)
                drawn.append(torch.stack([features[cell] for cell in tiles.cells.tolist()]))
                logits = self.model.classify(self.model.pool(weights[-1], drawn[-1]))
                weight, all_drawn = torch.cat(weights) / len(weights), torch.cat(drawn)
                together = self.model.classify(self.model.pool(weight, all_drawn)).float().cpu()
                log_weight = self._log_weight(chosen, weight, all_drawn).item()
                yield DrawLogits(
                    logits.float().cpu(),
                    tiles,
                    len(new),
                    empty,
                    attention=attention,
                    together=together,
                    log_weight=log_weight,
                )

    def _logits(self, network: Looker, thumbnail: Pixels, tissue: TissueMask, name: str) -> Tensor:
        """Attention's logits (K,) of the tissue cells by a network; the slide's name is for the error."""
        cells = torch.from_numpy(tissue.cells).to(self.device)
        varied = self.turns is not None and self.model.training
        turn = int(torch.randint(8, (), generator=self.turns)) if varied else 0
        logits = network(torch.from_numpy(thumbnail).to(self.device), cells, tissue.grid.shape, turn=turn)
        if not logits.isfinite().all():
            raise ModelError(f"the attention of {name} is no number; try lower learning rates")
        return logits

    def _plan(
        self, examples: Sequence[Example], reader: Reader, seeds: Sequence[int]
    ) -> tuple[list[Plan | None], Mapping[str, str]]:
        """Draw the tiles of some slides, with the messages of those that cannot be read."""
        del reader  # the thumbnail is all there is to see
        plans: list[Plan | None] = []
        for example, seed in zip(examples, seeds, strict=True):
            look = partial(
                self._logits, self.model.score_cells, example.thumbnail, example.tissue, example.ref.id
            )
            drawn = draw_cells(look(), example.tissue, self.settings.sampling, seed)
            cells = example.tissue.cells[drawn.indices.numpy()]
            plans.append(Plan(example.tissue.grid, cells, partial(_weigh_by, look, example.tissue, drawn)))
        return plans, {}

    def _draws(
        self, slide: Slide, thumbnail: Pixels, tissue: TissueMask, seeds: Iterable[int]
    ) -> Iterator[tuple[Tensor, Chosen]]:
        """Attention over the tissue mask, and the tiles of each draw."""
        logits = self._logits(self.model.score_cells, thumbnail, tissue, slide.path)
        for seed in seeds:
            drawn = draw_cells(logits, tissue, self.settings.sampling, seed)
            yield torch.softmax(logits, 0), weigh(logits, tissue, drawn)


@dataclass(frozen=True)
class Plan:
    """Tiles of a slide that are to be read.

    Parameters
    ----------
    grid
        The slide's grid of tiles.
    cells
        Flat numbers on it, shape (m,), distinct.
    weigh
        Weighs them by attention as it is when it is called.
    """

    grid: Grid
    cells: IntArray
    weigh: Callable[[], Chosen]


@dataclass(frozen=True)
class Chosen:
    """Tiles that were drawn, weighed.

    Parameters
    ----------
    tiles
        Those of one draw.
    attended
        What attention makes of them and of their slide.
    """

    tiles: WeightedTiles
    attended: Attended


def draw_cells(logits: Tensor, tissue: TissueMask, sampling: SamplingSettings, seed: int) -> Draw:
    """Draw the tiles of a slide once.

    Parameters
    ----------
    logits
        Of the attention to the tissue cells, shape (K,).
    tissue
        The cells that may be drawn; at least one.
    sampling
        How.
    seed
        Of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    return draw_by(torch.softmax(logits, 0), tissue, sampling, sampling.tiles, generator)


def weigh(logits: Tensor, tissue: TissueMask, drawn: Draw) -> Chosen:
    """Weigh drawn tiles by an attention, which need not be the one that they were drawn from.

    Parameters
    ----------
    logits
        Of the attention to the tissue cells, shape (K,), with gradient.
    tissue
        The cells.
    drawn
        The draw, of places among them.
    """
    attention, here = torch.softmax(logits, 0), drawn.to(logits.device)
    tiles = WeightedTiles(
        grid=tissue.grid,
        cells=tissue.cells[drawn.indices.numpy()],
        attention=attention[here.indices],
        inclusion=drawn.expected,
        weight=expectation.weights(attention, here),
    )
    attended = Attended(
        log_attention=torch.log_softmax(logits, 0)[here.indices],
        log_mass=torch.logsumexp(logits, 0),
        entropy=expectation.entropy(attention),
        top_share=top_share(attention),
    )
    return Chosen(tiles, attended)


def top_share(attention: Tensor) -> float:
    """Attention of the hundredth of the cells that have most of it, at least of one; attention (K,)."""
    largest = attention.detach().topk(-(-len(attention) // 100)).values
    return largest.sum().item()


def _weigh_by(look: Callable[[], Tensor], tissue: TissueMask, drawn: Draw) -> Chosen:
    return weigh(look(), tissue, drawn)


def draw_by(
    attention: Tensor, tissue: TissueMask, sampling: SamplingSettings, n: int, generator: torch.Generator
) -> Draw:
    """Draw ``n`` of the ``tissue`` cells by ``attention`` over them, shape (K,), as ``sampling`` says.

    On the CPU, wherever the attention is; see :func:`wsi_ats.nn.sampling.draw` for the ``generator``.
    """
    return draw(
        sampling.design,
        explore(attention.cpu(), sampling.exploration),
        cells=torch.from_numpy(tissue.cells),
        shape=tissue.grid.shape,
        n=n,
        generator=generator,
    )
