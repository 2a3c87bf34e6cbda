"""Training and scoring for all experiments on learning, with the library's own code, on bags or canvases."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsi_ats.models.batches import Example, Reader
from wsi_ats.models.outputs import outputs_of
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.overview.overview import read_overview
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import Slide, SlideRef
from wsi_ats.tasks.targets import Target
from wsi_ats.training.fit import Trained, fit
from wsi_ats.training.restarts import Outcome, repeat

TARGET = Target("classification", ("negative", "positive"))
CPU = torch.device("cpu")


def train(
    training: Sequence[Example],
    validation: Sequence[Example],
    settings: Settings,
    reader: Reader,
    *,
    target: Target = TARGET,
    retries: int = 0,
    on_epoch: Callable[[Any], None] = lambda row: None,  # noqa: ARG005
    network: Callable[[], SlideNetwork] | None = None,
) -> tuple[Trained, list[Outcome]]:
    """Train with ``training.fit``, as the command ``train`` does, in a temporary folder.

    Parameters
    ----------
    training, validation, settings, reader, target, on_epoch, network
        See :func:`wsi_ats.training.fit.fit`.
    retries
        Further runs, with other seeds, as long as attention has found nothing.
    """
    learning = settings.training
    with tempfile.TemporaryDirectory() as folder:

        def fit_once(number: int) -> Trained:
            return fit(
                training,
                validation,
                replace(settings, training=replace(learning, seed=learning.seed + number)),
                target=target,
                folder=Path(folder) / str(number),
                features=Path(folder) / "features",
                device=CPU,
                on_epoch=on_epoch,
                reader=reader,
                network=network,
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


def outputs(
    model: SlideNetwork, settings: Settings, examples: Sequence[Example], reader: Reader, *, draw: int
) -> Tensor:
    """Return the logits of slides by one draw each, shape (N, classes)."""
    found, _ = outputs_of(model, settings, examples, reader, draw=draw)
    return torch.stack([found[each.ref.id] for each in examples])
