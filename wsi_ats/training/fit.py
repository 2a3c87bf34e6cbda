"""Train a network from slide labels, phase by phase.

Read from top to bottom: a run has phases (:mod:`wsi_ats.training.phases`), and a phase has epochs of steps
(:mod:`wsi_ats.training.steps`). While a step is computed, the tiles of the next are being read. The phase
``attention`` reads nothing in its steps, because it surveys the slides at its beginning
(:mod:`wsi_ats.training.attention`). Every random choice is a function of the seed, the step and the slide,
and no read crosses a stored state (:mod:`wsi_ats.training.progress`): a run that is killed at any moment and
resumed ends with the same weights.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch

from wsi_ats.errors import ModelError
from wsi_ats.models.batches import Example, Reader
from wsi_ats.models.kinds import model_for
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.settings import Settings
from wsi_ats.tasks.targets import Target
from wsi_ats.tasks.trainable import check_trainable
from wsi_ats.training.attention import AttentionPhase
from wsi_ats.training.diagnosis import Row
from wsi_ats.training.distillation import Trust
from wsi_ats.training.learner import Learner
from wsi_ats.training.processes import Processes
from wsi_ats.training.progress import Journal
from wsi_ats.training.setup import OnBad, Setup
from wsi_ats.training.steps import Steps, train_epoch
from wsi_ats.training.validation import Metrics, ValidationSlides, is_exhausted, monitored_metric

_LOG = logging.getLogger(__name__)

_OnEpoch = Callable[[Row], None]


def fit(
    training: Sequence[Example],
    validation: Sequence[Example],
    settings: Settings,
    *,
    target: Target,
    folder: Path,
    device: torch.device,
    on_epoch: _OnEpoch,
    reader: Reader,
    max_bad: int | None = None,
    on_bad: OnBad = lambda slide_id, error: None,  # noqa: ARG005
    processes: Processes | None = None,
    network: Callable[[], SlideNetwork] | None = None,
    features: Path | None = None,
    every_epoch: bool = True,
) -> Trained:
    """Train a model, or resume an interrupted run of the same settings and slides.

    The state is written to ``checkpoints/`` after every epoch and every ``training.checkpoint_steps``, and
    the metrics of all epochs to ``metrics.csv``.

    Parameters
    ----------
    training
        Slides to learn from.
    validation
        Slides to validate on; may be empty.
    settings
        All settings; the seed is ``training.seed``.
    target
        Target of the labels, which has encoded each ``Example.target``.
    folder
        Folder for checkpoints and metrics.
    device
        Device to train on.
    on_epoch
        Function called with each epoch's row of ``metrics.csv``.
    reader
        Reader of the tiles.
    max_bad
        Largest number of unreadable slides; training continues without them. No limit by default.
    on_bad
        Function called once with the id and the error of each such slide, and again by a resumed run.
    processes
        Processes that train this model together, by default this one alone; all must get the same slides.
    network
        Builds the network, of a kind in :mod:`wsi_ats.models`; by default the one in the settings.
    features
        Folder for the features of a frozen backbone; ``features/`` in the folder by default. Runs with
        the same settings may share it, even at the same time, whatever their seeds and splits.
    every_epoch
        Whether to validate after every epoch. Otherwise only the epochs that decide about weights are
        validated, and the last of each phase; the model is the same.

    Returns
    -------
    Trained
        The model of the last epoch, or of the best one if ``training.patience`` is set.

    Raises
    ------
    SettingsError
        When settings do not suit training, the task or the number of processes, patience has no validation
        slides, or a slide's colours or channel are not those of section ``tile``.
    ManifestError
        When slides of one case, which are pooled, have different labels.
    ModelError
        When a network cannot be built, too few slides can be read, one does not fit into memory, or the loss
        is NaN or infinite.
    SlideError
        When the backward pass reads a tile again and fails.
    ArtifactError
        When the folder contains the state of another run, or a state cannot be written.
    """
    check_trainable(settings, processes=1 if processes is None else processes.count)
    settings.check_watched(len(validation))
    for example in (*training, *validation):
        example.ref.check_pixels(colour=settings.tile.colour, channel=settings.tile.channel)
    setup = Setup(
        training,
        validation,
        settings,
        target,
        folder=folder,
        device=device,
        reader=reader,
        processes=processes or Processes(),
        network=network or partial(model_for, settings, target),
        features=features or folder / "features",
        max_bad=max_bad,
        on_bad=on_bad,
        every_epoch=every_epoch,
    )
    # The state of other GPUs does not change, and reading it takes memory there.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return _Run(setup).run(on_epoch)


@dataclass(frozen=True)
class Trained:
    """Result of a training.

    Parameters
    ----------
    model
        The network, in evaluation mode.
    rows
        Metrics of all epochs.
    trust
        Trust in its attention; ``None`` for a model without attention to thumbnails. Without attention
        epochs it is not evaluated: its scale is 1 if attention learned jointly with the rest, else 0.
    by_attention, by_uniform
        Metrics of the validation slides, each from several draws of ``sampling.tiles`` tiles, by attention
        and by uniform draws; empty without validation slides and for models that do not draw.
    validation_loss
        Loss of the validation slides, from draws by attention if the model has it; infinite without
        validation slides.
    calibrated
        Whether scores are calibrated; see ``training.calibrate_scores``.
    """

    model: SlideNetwork
    rows: Sequence[Row]
    trust: Trust | None = None
    by_attention: Mapping[str, float | None] = field(default_factory=dict)
    by_uniform: Mapping[str, float | None] = field(default_factory=dict)
    validation_loss: float = math.inf
    calibrated: bool = False


class _Run:
    """One training run, phase by phase."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.journal = setup, Journal(setup)
        self.slides = ValidationSlides(setup)

    def run(self, on_epoch: _OnEpoch) -> Trained:
        with ExitStack() as stack:
            self._start(stack)
            while self.journal.progress.phase < len(self.setup.phases):
                self._train_phase(on_epoch)
                self._end_phase()
            return self._trained()

    def _start(self, stack: ExitStack) -> None:
        """Build the network and everything that belongs to it, or restore the latest state."""
        setup, journal = self.setup, self.journal
        self.learner = learner = Learner(setup)
        self.steps = Steps(setup, learner, journal)
        self.attention = AttentionPhase(setup, learner, journal, self.slides)
        self.metrics = Metrics(learner, journal, self.slides)
        journal.resume()
        learner.begin_phase(journal.phase)
        resumed = journal.load(learner)
        if not resumed:
            if setup.processes.first:
                learner.calibrate()
            setup.processes.share_weights(learner.model)
        learner.open_features(stack)  # after calibration, which the features depend on
        if not resumed:
            self._begin_phase()
            return
        journal.write_metrics()  # the run may have been stopped between the two files
        for slide_id, error in journal.progress.bad.items():
            setup.on_bad(slide_id, error)
        if journal.phase.name == "attention":
            self.attention.resume()

    def _begin_phase(self) -> None:
        """Begin the current phase, or skip it if it would have no effect."""
        learner, progress, phase = self.learner, self.journal.progress, self.journal.phase
        if phase.name == "joint" and progress.trust and not progress.trust["scale"]:
            self._skip_phase(
                "the validation slides call for uniform draws, and attention learns nothing from draws "
                "that do not follow it"
            )
            return
        if isinstance(learner.model, AttentionSampler):
            trusted = progress.trust["scale"] if progress.trust else None
            untrained = 0.0 if phase.name == "classifier" else 1.0
            learner.model.attention_scale.fill_(untrained if trusted is None else trusted)
        learner.begin_phase(phase)
        progress.start, progress.best = progress.step, None
        if phase.name == "attention":
            self.attention.begin()
        if phase.name == "joint" and progress.phase and self.setup.validation:
            before = self.metrics.validate()
            name, merit = monitored_metric(before, self.setup.learning)
            if merit is None:
                self._skip_phase(
                    f"{name} is not defined on the validation slides (a class may be absent, or no slide "
                    "could be read), and only epochs that raise it would be kept; use other slides, or set "
                    "training.monitor=loss"
                )
                return
            self._keep_if_best(before)
        self.journal.save(learner)

    def _skip_phase(self, why: str) -> None:
        """Skip a phase; the run's last state is that of the previous phase, and resuming leads here again."""
        _LOG.warning("%s training is skipped: %s", self.journal.phase.name, why)
        self.journal.progress.phase += 1

    def _train_phase(self, on_epoch: _OnEpoch) -> None:
        """Take the remaining epochs of a phase."""
        setup, journal = self.setup, self.journal
        phase = journal.phase
        while len(journal.phase_rows) < phase.epochs and not is_exhausted(journal.phase_rows, setup.learning):
            begin = time.perf_counter()
            if phase.name == "attention":
                train_epoch(setup, self.learner, journal, begin=lambda *_: None, take=self.attention.take)
            else:
                train_epoch(setup, self.learner, journal, begin=self.steps.begin, take=self.steps.take)
            row = self.metrics.row(time.perf_counter() - begin)
            journal.progress.rows.append(row)
            self._keep_if_best(row)
            journal.save(self.learner)
            journal.write_metrics()
            on_epoch(row)

    def _end_phase(self) -> None:
        """End a phase: take its best epoch, or its last, and decide how far to trust attention."""
        learner, progress = self.learner, self.journal.progress
        learner.model.load_state_dict(learner.final.state_dict())
        self.setup.processes.gather(None)  # the best weights may still be being written
        if progress.best is not None:
            self.journal.states.load_best(learner.model)
        if self.journal.phase.name == "attention":
            progress.trust = asdict(self.attention.end())
        progress.phase += 1
        if progress.phase < len(self.setup.phases):
            self._begin_phase()

    def _keep_if_best(self, row: Row) -> None:
        """Keep the weights if the validation metric is the phase's best, and the best epoch is to be kept."""
        setup, progress = self.setup, self.journal.progress
        if not self.journal.keeps_best:
            return
        name, merit = monitored_metric(row, setup.learning)
        if merit is None:
            if setup.learning.patience and progress.best is None:
                raise ModelError(
                    f"training.patience is {setup.learning.patience}, but {name} is not defined on the "
                    "validation slides: a class may be absent, or no slide could be read; use other slides, "
                    "set training.monitor=loss, or set training.patience=0"
                )
            return
        if progress.best is None or merit > progress.best:
            progress.best = merit
            if setup.processes.first:
                self.journal.states.save_best(self.learner.final)

    def _trained(self) -> Trained:
        """Calibrate the outputs, compare attention with uniform draws, and return the model."""
        model, progress = self.learner.model.eval(), self.journal.progress
        model.zero_grad(set_to_none=True)
        found: Trust | None = None
        if isinstance(model, AttentionSampler) and model.attention is not None:
            scale = model.attention_scale.item()
            found = Trust(**progress.trust) if progress.trust else Trust(scale, None, None, None, 0)
        if not self.setup.validation:
            return Trained(model, progress.rows, found)
        draws_by_attention = found is not None and bool(found.scale)
        by_attention, by_uniform, calibration = self.metrics.compare_draws(by_attention=draws_by_attention)
        if calibration:
            calibration.into(model.head)
        loss = by_attention["loss"]
        return Trained(
            model,
            progress.rows,
            found,
            by_attention if found else {},
            by_uniform if found else {},
            validation_loss=math.inf if loss is None else loss,
            calibrated=calibration is not None,
        )
