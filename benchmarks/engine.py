"""Training for all experiments on learning, with the library's own code, on bags or slides."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.synthetic import TARGET
from wsi_ats.models.batches import Example, Reader
from wsi_ats.overview.overview import read_overview
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import Slide, SlideRef
from wsi_ats.training.fit import Trained, fit
from wsi_ats.training.restarts import Outcome, repeat

CPU = torch.device("cpu")


def train(
    training: Sequence[Example],
    validation: Sequence[Example],
    settings: Settings,
    reader: Reader,
    *,
    retries: int = 0,
) -> tuple[Trained, list[Outcome]]:
    """Train with ``training.fit``, as the command ``train`` does, in a temporary folder.

    ``retries`` is the number of further runs, with other seeds, as long as attention has found nothing.
    """
    learning = settings.training
    with tempfile.TemporaryDirectory() as folder:

        def fit_once(number: int) -> Trained:
            return fit(
                training,
                validation,
                replace(settings, training=replace(learning, seed=learning.seed + number)),
                target=TARGET,
                folder=Path(folder) / str(number),
                features=Path(folder) / "features",
                device=CPU,
                on_epoch=lambda row: None,  # noqa: ARG005
                reader=reader,
            )

        return repeat(fit_once, restarts=1, retries=retries)


def examples_of(
    refs: Iterable[SlideRef], settings: Settings, opened: Callable[[SlideRef], Slide] = open_slide
) -> list[Example]:
    """Return slides with their labels, and the thumbnail and tissue that are found in their files."""
    examples = []
    for ref in refs:
        with opened(ref) as slide:
            examples.append(Example(ref, read_overview(slide, settings), TARGET.encode(ref.label or "")))
    return examples


def ready(result: Any) -> Future[Any]:
    """Return a finished future, for readers that need not wait."""
    future: Future[Any] = Future()
    future.set_result(result)
    return future
