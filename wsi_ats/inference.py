"""Score one slide: the only place besides training that knows both slides and networks."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wsi_ats.config import Settings
from wsi_ats.errors import SettingsError
from wsi_ats.look import look
from wsi_ats.nn import expectation
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.sampling import Draw, draw
from wsi_ats.selection import AttentionMap, Prediction, Selection, Status, TissueMask
from wsi_ats.slides.base import Slide, SlideRef
from wsi_ats.slides.wrappers import CountingSlide
from wsi_ats.tiles import level_for, read_tiles

# Pixels and feature maps of more would cost memory and gain no speed.
_TILES_AT_A_TIME = 64


@dataclass(frozen=True)
class Scored:
    """All that scoring a slide gives.

    Parameters
    ----------
    prediction
        Probabilities, and what it took to get them.
    attention, selection
        Where the model looked and which tiles were read; ``None`` where there is no tissue.
    """

    prediction: Prediction
    attention: AttentionMap | None = None
    selection: Selection | None = None


def draw_seed(seed: int, slide_id: str, number: int) -> int:
    """Seed of one draw of one slide.

    A function of its arguments alone, so that a slide gets the same tiles on any machine, with any
    number of workers and in any order.

    Parameters
    ----------
    seed
        Of the run.
    slide_id
        The slide.
    number
        Of the draw, from 0.

    Examples
    --------
    >>> draw_seed(0, "case7", 0) == draw_seed(0, "case7", 0) != draw_seed(0, "case7", 1)
    True
    """
    key = f"{seed}\x00{slide_id}\x00{number}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")


def predict_slide(
    model: AttentionSampler,
    ref: SlideRef,
    slide: Slide,
    settings: Settings,
    *,
    classes: list[str],
    model_digest: str,
    seed: int,
    device: torch.device | None = None,
) -> Scored:
    """Score a slide from its thumbnail and a few tiles.

    Nothing else is read of the slide. With several draws, the probability is their mean and
    ``logit_se`` the standard error of the predicted class's log-odds over them.

    Parameters
    ----------
    model
        In evaluation mode.
    ref
        The slide's name.
    slide
        The open slide.
    settings
        Sections ``tile``, ``thumbnail`` and ``sampling`` are used.
    classes
        Names of the model's classes, in the order of its outputs.
    model_digest
        Recorded in the prediction.
    seed
        With the slide's id, decides which tiles are drawn.
    device
        Where the model is; the CPU by default.

    Raises
    ------
    SlideError
        When the slide's resolution is unknown or a pixel that is needed cannot be read.
    SettingsError
        When the model is in training mode: its scores would depend on dropout.
    """
    if model.training:
        raise SettingsError("scoring needs a model in evaluation mode; call model.eval() first")
    begin = time.perf_counter()
    counting = CountingSlide(slide)
    thumbnail, tissue = look(counting, settings)
    number_of_draws = settings.sampling.draws

    def prediction(
        status: Status, probabilities: dict[str, float], error: float | None, tiles: int
    ) -> Prediction:
        return Prediction(
            slide_id=ref.id,
            case_id=ref.case,
            path=ref.path,
            status=status,
            probabilities=probabilities,
            predicted=max(probabilities, key=probabilities.__getitem__) if probabilities else None,
            logit_se=error,
            draws=number_of_draws if probabilities else 0,
            tiles_read=tiles,
            tiles_total=len(tissue.cells),
            bytes_read=counting.stored_bytes_read,
            seconds=time.perf_counter() - begin,
            model_digest=model_digest,
            seed=seed,
        )

    if not len(tissue.cells):
        return Scored(prediction(Status.NO_TISSUE, {}, None, 0))
    with torch.inference_mode():
        candidates = torch.from_numpy(tissue.cells)
        attention = model.attend(
            torch.from_numpy(thumbnail).to(device), candidates.to(device), tissue.grid.shape
        ).cpu()
        draws = [
            draw(
                settings.sampling.design,
                attention,
                cells=candidates,
                shape=tissue.grid.shape,
                n=settings.sampling.tiles,
                generator=torch.Generator().manual_seed(draw_seed(seed, ref.id, number)),
            )
            for number in range(number_of_draws)
        ]
        logits, distinct = _score_draws(model, counting, tissue, attention, draws, device)
    probabilities = torch.softmax(logits, dim=1).mean(0).tolist()
    named = dict(zip(classes, probabilities, strict=True))
    return Scored(
        prediction(Status.DONE, named, _sampling_error(logits), distinct),
        AttentionMap(tissue.grid, _on_grid(attention, tissue), tissue.mask),
        _select(ref, counting, tissue, attention, draws, named),
    )


def _score_draws(
    model: AttentionSampler,
    slide: Slide,
    tissue: TissueMask,
    attention: Tensor,
    draws: list[Draw],
    device: torch.device | None,
) -> tuple[Tensor, int]:
    """Logits of every draw, shape (R, classes), and how many distinct tiles were read for them."""
    drawn, where = torch.unique(torch.cat([each.indices for each in draws]), return_inverse=True)
    parts = [
        model.embed(torch.from_numpy(read_tiles(slide, tissue.grid, cells)).to(device))
        for cells in np.array_split(tissue.cells[drawn.numpy()], -(-len(drawn) // _TILES_AT_A_TIME))
    ]
    features = torch.cat(parts)
    logits = [
        model.classify(model.pool(expectation.weights(attention, each).to(device), features[places]))
        for each, places in zip(draws, where.split([len(each.indices) for each in draws]), strict=True)
    ]
    return torch.stack(logits).float().cpu(), len(drawn)


def _sampling_error(logits: Tensor) -> float | None:
    """Standard error of the predicted class's log-odds over draws, logits (R, classes)."""
    if len(logits) < 2:
        return None
    best = torch.softmax(logits, dim=1).mean(0).argmax()
    others = torch.arange(logits.shape[1]) != best
    log_odds = logits[:, best] - logits[:, others].logsumexp(1)
    return (log_odds.std() / math.sqrt(len(logits))).item()


def _on_grid(attention: Tensor, tissue: TissueMask) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    on_grid = np.zeros(tissue.grid.shape)
    on_grid.flat[tissue.cells] = attention.double().numpy()
    return on_grid


def _select(
    ref: SlideRef,
    slide: Slide,
    tissue: TissueMask,
    attention: Tensor,
    draws: list[Draw],
    probabilities: dict[str, float],
) -> Selection:
    sizes = [len(each.indices) for each in draws]
    indices = torch.cat([each.indices for each in draws])
    return Selection(
        slide_id=ref.id,
        path=ref.path,
        grid=tissue.grid,
        level=level_for(slide.levels, tissue.grid.cell / tissue.grid.tile_size),
        bounds=slide.bounds,
        cells=tissue.cells[indices.numpy()],
        attention=attention[indices].double().numpy(),
        inclusion=torch.cat([each.expected for each in draws]).numpy(),
        weight=torch.cat([expectation.weights(attention, each) for each in draws]).double().numpy(),
        draw=np.repeat(np.arange(len(draws)), sizes),
        order=np.concatenate([np.arange(size) for size in sizes]),
        probabilities=probabilities,
    )
