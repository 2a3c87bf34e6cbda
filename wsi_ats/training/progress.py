"""The progress of a training: counts, stored states, and the point from which to resume."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from wsi_ats.errors import ArtifactError, ModelError
from wsi_ats.files import atomic
from wsi_ats.models.checkpoints import StateFolder
from wsi_ats.tables.files import write_csv
from wsi_ats.training.learner import Learner
from wsi_ats.training.phases import Phase
from wsi_ats.training.setup import Batch, Setup

_LOG = logging.getLogger(__name__)


@dataclass
class Progress:
    """Contents of a stored state other than tensors.

    Parameters
    ----------
    phase
        Number of the current phase.
    step
        Number of steps taken so far, in all phases.
    start
        Number of steps taken before the current phase.
    rows
        Metrics of the complete epochs.
    sums
        Sums of the epoch in progress.
    bad
        Slides that could not be read, with reasons.
    best
        Best validation metric of the phase, if its best epoch is kept.
    trust
        Trust in attention, once it is known.
    """

    phase: int = 0
    step: int = 0
    start: int = 0
    rows: list[dict[str, float | str | None]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    best: float | None = None
    trust: dict[str, Any] | None = None


class Journal:
    """Record of a training's ``progress``, in memory and on disk, and its stored ``states``."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self.progress = Progress()
        self.states = StateFolder(
            setup.folder / "checkpoints", setup.identity, keep=setup.learning.keep_checkpoints
        )

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self._setup.phases[self.progress.phase]

    @property
    def phase_rows(self) -> list[dict[str, float | str | None]]:
        """Metrics of the current phase's epochs."""
        return [row for row in self.progress.rows if row["phase"] == self.phase.name]

    @property
    def keeps_best(self) -> bool:
        """True if the current phase ends with its best epoch by the validation slides, else with its last."""
        joint = self.phase.name == "joint" and self.progress.phase > 0
        return bool(self._setup.validation) and (joint or self._setup.learning.patience > 0)

    def add(self, **numbers: float) -> None:
        """Add to the sums of the epoch."""
        for name, number in numbers.items():
            self.progress.sums[name] = self.progress.sums.get(name, 0) + number

    def note_bad(self, slides: Mapping[str, str]) -> None:
        """Report slides that could not be read, each once.

        Raises
        ------
        ModelError
            When there are too many.
        """
        for slide_id, error in slides.items():
            if slide_id not in self.progress.bad:
                _LOG.warning("step %d continues without %s: %s", self.progress.step, slide_id, error)
                self.progress.bad[slide_id] = error
                self._setup.on_bad(slide_id, error)
        most = self._setup.max_bad
        if most is not None and len(self.progress.bad) > most:
            raise ModelError(
                f"{len(self.progress.bad)} slides could not be read, and --max-bad allows {most}: "
                + "; ".join(self.progress.bad.values())
            )

    def gather(self) -> Counter[str]:
        """Collect the epoch's sums and the unreadable slides of all processes; all processes must call it."""
        sums: Counter[str] = Counter()
        for own, bad in self._setup.processes.gather((self.progress.sums, self.progress.bad)):
            sums.update(own)
            self.note_bad(bad)
        return sums

    def resume(self) -> None:
        """Restore the progress of the latest stored state, if there is one.

        Raises
        ------
        ArtifactError
            When the state is damaged or of another run.
        """
        self.progress = Progress(**(self.states.record() or {}))

    def load(self, learner: Learner) -> bool:
        """Restore the weights of the latest state, if there is one; all processes must call it.

        Raises
        ------
        ArtifactError
            When processes find states of different steps.
        """
        stored = self.states.load(learner.model, learner.optimizer, learner.average)
        found = set(self._setup.processes.gather(self.progress.step if stored else None))
        if len(found) > 1:
            raise ArtifactError(
                f"processes found states of different steps ({found}) in {self._setup.folder}; choose an "
                "--out that all machines share"
            )
        if not self._setup.processes.first:
            self.progress.sums = {}  # the first process has those of all
        return stored

    def save(self, learner: Learner) -> None:
        """Store the state; all processes must call, and the first writes the sums of all."""
        self.add(tiles=learner.take_tile_count())
        sums, first = self.gather(), self._setup.processes.first
        self.progress.sums = dict(sums) if first else {}
        if first:
            self.states.save(
                self.progress.step, learner.model, learner.optimizer, learner.average, asdict(self.progress)
            )

    def write_metrics(self) -> None:
        """Write ``metrics.csv``; in the first process only."""
        rows = self.progress.rows
        if rows and self._setup.processes.first:
            with atomic(self._setup.folder / "metrics.csv") as temporary:
                write_csv(temporary, {name: [row[name] for row in rows] for name in rows[0]})

    def check_finite(self, name: str, value: float, step: int, batch: Batch) -> None:
        """Refuse a ``value`` called ``name`` that is NaN or infinite in a ``step`` of a ``batch``."""
        if math.isfinite(value):
            return
        raise ModelError(
            f"the {name} is {value} in step {step}, epoch {len(self.progress.rows)} "
            f"(slides {self._setup.names(batch)}); the last good state is {self._last_good()}; try lower "
            "learning rates"
        )

    @contextmanager
    def naming_step(self, step: int) -> Iterator[None]:
        """Add the step and the last good state to the message of a :class:`ModelError` raised inside."""
        try:
            yield
        except ModelError as error:
            raise ModelError(
                f"{error} (step {step}, epoch {len(self.progress.rows)}); the last good state is "
                f"{self._last_good()}"
            ) from error

    def _last_good(self) -> str:
        newest = self.states.newest()
        return "not stored yet" if newest is None else str(newest)
