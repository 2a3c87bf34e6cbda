"""Undisturbed runs, to compare others with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from training.phase_runs import PHASES
from training.runs import run, trained, trusting
from wsi_ats.models.drawing import CellDraws
from wsi_ats.training import attention as attention_phase


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """Model and folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return run(folder), folder


@contextmanager
def _trusted() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_phase, "trust", trusting(attention_phase.trust))
        yield


@pytest.fixture(scope="module")
def trusted() -> Iterator[None]:
    """Attention is trusted, whatever the result on the few validation slides."""
    with _trusted():
        yield


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """An undisturbed run of all phases, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    with _trusted():
        return trained(folder, *PHASES), folder


@pytest.fixture
def begun(monkeypatch) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Slides and cells of each pass that is begun in training, in order."""
    passes: list = []
    real_plan = CellDraws.plan

    def plan(self, examples, reader, seeds):
        plans, failed = real_plan(self, examples, reader, seeds)
        if self.attention.model.training:
            passes.append([(e.ref.id, tuple(p.cells.tolist())) for e, p in zip(examples, plans, strict=True)])
        return plans, failed

    monkeypatch.setattr(CellDraws, "plan", plan)
    return passes
