"""Train all of a network together from slide labels.

Read from top to bottom: an epoch is a shuffled pass over the slides in small batches; while a batch is
computed, the tiles of the next are drawn and being read; for each batch estimate the outputs, which is the
method's business, and step. Every random choice is a function of the seed, the step and the slide, and what
is read ahead never crosses a stored state, so that a run that was killed at any moment and started again
ends in the same weights.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from wsi_ats.artifacts import atomic, digest_of
from wsi_ats.batches import Example, Reader, ahead, epoch_batches, units
from wsi_ats.checkpoints import StateFolder, model_for
from wsi_ats.config import LEARNED, Settings, TrainingSettings
from wsi_ats.errors import ArtifactError, ModelError
from wsi_ats.evaluation import figures
from wsi_ats.methods import method_for
from wsi_ats.methods.base import Estimates, Finish, draw_seed
from wsi_ats.nn.cases import pool_slides
from wsi_ats.nn.losses import activate, losses
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.nn.optimisation import averaged, optimizer_of, set_rates
from wsi_ats.nn.teaching import teaching
from wsi_ats.processes import Processes
from wsi_ats.tables import write_csv
from wsi_ats.targets import Target

_LOG = logging.getLogger(__name__)

Row = Mapping[str, float | None]
"""A row of ``metrics.csv``."""

OnEpoch = Callable[[Row], None]
OnBad = Callable[[str, str], None]


def fit(
    training: Sequence[Example],
    validation: Sequence[Example],
    settings: Settings,
    *,
    target: Target,
    folder: Path,
    device: torch.device,
    on_epoch: OnEpoch,
    reader: Reader,
    max_bad: int | None = None,
    on_bad: OnBad = lambda slide_id, error: None,  # noqa: ARG005
    processes: Processes | None = None,
) -> SlideNetwork:
    """Train a model, or go on where an interrupted run of the same settings and slides stopped.

    The state is written to ``checkpoints/`` after every epoch and every ``training.checkpoint_steps``, and
    the figures of all epochs to ``metrics.csv``.

    Parameters
    ----------
    training
        Slides to learn from.
    validation
        Slides to watch; may be empty.
    settings
        All of them; the seed is ``training.seed``.
    target
        What is predicted; ``Example.target`` is as it encodes labels.
    folder
        Where checkpoints, metrics and, where the backbone is frozen, features go.
    device
        Where to compute.
    on_epoch
        Called with the epoch's row of ``metrics.csv``.
    reader
        Reads the tiles.
    max_bad
        Most slides that may turn out to be unreadable; training goes on without them. No limit by default.
    on_bad
        Called once with the id of each such slide and what is wrong with it, by a resumed run again.
    processes
        Those that train this model together, this one alone by default; all must be given the same slides.

    Returns
    -------
    SlideNetwork
        In evaluation mode: the last epoch's, or the best one's where ``training.patience`` is set.

    Raises
    ------
    SettingsError
        When they suit scoring only, the task or the number of processes has no use for them, patience has
        no slides to watch, or a slide's colours are not those of ``tile.colour``.
    ManifestError
        When slides of one case, taken together, have different labels.
    ModelError
        When a network cannot be built, too few slides can be read, one does not fit into memory, or the loss
        is no longer a number.
    SlideError
        When a tile cannot be read a second time, where the backward pass reads tiles again.
    ArtifactError
        When the folder holds the state of another run, or a state cannot be written.
    """
    settings.check_trainable(processes=1 if processes is None else processes.count)
    settings.check_watched(len(validation))
    for example in (*training, *validation):
        example.ref.check_colour(settings.tile.colour)
    run = _Training(
        training,
        validation,
        settings,
        target,
        folder=folder,
        device=device,
        reader=reader,
        processes=processes or Processes(),
        max_bad=max_bad,
        on_bad=on_bad,
    )
    # Of other graphics processors nothing is changed, and to ask them for their state takes memory there.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return run.run(on_epoch)


@dataclass
class Progress:
    """How far training has come: what is stored with every state, besides tensors.

    Parameters
    ----------
    step
        Steps that were taken.
    rows
        Figures of the epochs that are complete.
    sums
        Of the epoch that is not.
    bad
        Slides that could not be read, and why.
    """

    step: int = 0
    rows: list[dict[str, float | None]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pass:
    """Slides of a step that are computed together, of which tiles are being read.

    Parameters
    ----------
    examples
        The slides.
    units
        Number of what each is, or belongs to: the slide, or its case.
    shown
        Number of the occasion: of slides of rare classes there may be several in a step, each of its own.
    finish
        Gives their estimates.
    """

    examples: Sequence[Example]
    units: Sequence[int]
    shown: Sequence[int]
    finish: Finish


class _Training:
    """A run: what stays the same, what changes with every step, and the loop."""

    def __init__(
        self,
        training: Sequence[Example],
        validation: Sequence[Example],
        settings: Settings,
        target: Target,
        *,
        folder: Path,
        device: torch.device,
        reader: Reader,
        processes: Processes,
        max_bad: int | None,
        on_bad: OnBad,
    ) -> None:
        self.settings, self.target, self.learning = settings, target, settings.training
        self.folder, self.device, self.reader = folder, device, reader
        self.processes, self.max_bad, self.on_bad = processes, max_bad, on_bad
        self.training, self.validation = training, validation
        by_case = settings.model.cases != "separate"
        self.units, self.watched = (units(each, by_case=by_case) for each in (training, validation))
        self.classes = [training[places[0]].target[0] for places in self.units]
        self.unit_weights = _balancing(self.classes) if self.learning.balance == "weights" else None
        slides = (
            f"{part}/{each.ref.id}/{each.ref.case}={each.target}"
            for part, of in enumerate((training, validation))
            for each in of
        )
        identity = digest_of(settings.digest(*LEARNED), repr(target), str(processes.count), *slides)
        self.states = StateFolder(folder / "checkpoints", identity, keep=self.learning.keep_checkpoints)

    def run(self, on_epoch: OnEpoch) -> SlideNetwork:
        """Train; returns the model."""
        self._start()
        while len(self.progress.rows) < self.learning.epochs and not _exhausted(
            self.progress.rows, self.learning
        ):
            begin = time.perf_counter()
            self._train_epoch()
            row = self._row(time.perf_counter() - begin)
            watched = _watched_figure(row, self.learning)
            if self.learning.patience and not self.progress.rows and row[watched] is None:
                raise ModelError(
                    f"training.patience is {self.learning.patience}, but {watched} cannot be told from the "
                    "validation slides: a class may be absent, or none could be read; give others, set "
                    "training.monitor=loss, or set training.patience=0"
                )
            self.progress.rows.append(row)
            best = _best(self.progress.rows, self.learning) == len(self.progress.rows) - 1
            if self.processes.first and best:
                self.states.save_best(self.final)
            self._save()
            if self.processes.first:
                self._write_metrics()
            on_epoch(row)
        self.processes.gather(None)  # the best weights may still be being written
        if self.learning.patience and self.validation:
            self.states.load_best(self.final)
        return self.final.eval()

    def _start(self) -> None:
        """Make the model and all that goes with it, as it is at the start or was when a run was stopped."""
        learning = self.learning
        torch.manual_seed(learning.seed)
        self.model = model_for(self.settings, self.target).to(self.device)
        if learning.learning_blocks is not None:
            self.model.encoder.freeze(but_last=learning.learning_blocks)
        if learning.compile:
            self.model.encoder.network.compile(dynamic=True)
        self.method = method_for(self.model, self.settings, self.device, self.folder)
        self.method.check(self.training, self.validation)
        rates = {
            "backbone": learning.learning_rate,
            "attention": learning.attention_learning_rate,
            "head": learning.head_learning_rate,
        }
        self.optimizer = optimizer_of(self.model, rates, weight_decay=learning.weight_decay)
        self.progress, self.average = Progress(), averaged(self.model, learning.ema)
        record = self.states.load(self.model, self.optimizer, self.average)
        found = set(self.processes.gather(record and record["step"]))
        if len(found) > 1:
            raise ArtifactError(
                f"processes found states of different steps ({found}) in {self.folder}; give --out in a "
                "folder that all machines share"
            )
        if record is None:
            if self.processes.first:
                self.method.calibrate(self.training, self.reader)
            self.processes.share_weights(self.model)
            self.average = averaged(self.model, learning.ema)
            return
        self.progress = Progress(**record)
        if self.processes.first:
            self._write_metrics()  # the run may have been stopped between the two files
        else:
            self.progress.sums = {}  # of all processes, and the first has them
        for slide_id, error in self.progress.bad.items():
            self.on_bad(slide_id, error)

    @property
    def final(self) -> SlideNetwork:
        """The network that is watched and kept: the average of weights, where there is one."""
        if self.average is None:
            return self.model
        return cast(SlideNetwork, self.average.module)

    def _train_epoch(self) -> None:
        """Take the steps of an epoch that have not been taken yet."""
        learning, epoch = self.learning, len(self.progress.rows)
        batches = epoch_batches(
            len(self.units),
            learning.slides_per_step * self.processes.count,
            draw_seed(learning.seed, "order", epoch),
            classes=self.classes if learning.balance == "sampling" else None,
        )
        # A slide may be shown more than once: what is drawn of it depends on its place in the order.
        places = np.array_split(np.arange(len(self.units)) + epoch * len(self.units), len(batches))
        steps = [list(zip(*each, strict=True)) for each in zip(batches, places, strict=True)]
        first = epoch * len(steps)
        self.model.train()
        todo = range(self.progress.step, first + len(steps))
        # Nothing is read ahead across a stored state: a run that goes on from it draws by newer weights.
        for _, part in itertools.groupby(todo, key=lambda step: step // learning.checkpoint_steps):
            age = 0
            for step, begun in ahead(
                part, lambda step: self._begin(step, steps[step - first]), learning.read_ahead
            ):
                set_rates(self.optimizer, step / (learning.epochs * len(steps)), warmup=learning.warmup)
                self._step(step, steps[step - first], begun)
                self._add(staleness=min(age, learning.read_ahead), steps=1)
                self.progress.step, age = step + 1, age + 1
            if self.progress.step < first + len(steps):
                self._save()

    def _begin(self, step: int, batch: Sequence[tuple[int, int]]) -> list[_Pass]:
        """Draw the tiles of a step's slides, or this process's share of them, and begin to read them."""
        torch.manual_seed(draw_seed(self.learning.seed, "begin", step))  # dropout, if attention has any
        own = self.processes.share(batch)
        slides = sum(len(self.units[unit]) for unit, _ in own)
        # The loss of survival is one of all slides together.
        passes = 1 if self.target.task == "survival" else min(len(own), self.method.passes(slides))
        begun = []
        for part in np.array_split(np.asarray(own, dtype=np.int64).reshape(-1, 2), max(1, passes)):
            shown = [
                (self.training[slide], unit, place)
                for unit, place in part.tolist()
                for slide in self.units[unit]
            ]
            examples = [example for example, _, _ in shown]
            seeds = [draw_seed(self.learning.seed, example.ref.id, place) for example, _, place in shown]
            with self._blaming(step):
                finish = self.method.begin(examples, self.reader, seeds)
            of, places = [unit for _, unit, _ in shown], [place for *_, place in shown]
            begun.append(_Pass(examples, of, places, finish))
        return begun

    def _step(self, step: int, batch: Sequence[tuple[int, int]], begun: Sequence[_Pass]) -> None:
        """Compute a step's loss, pass by pass, and take the step."""
        torch.manual_seed(draw_seed(self.learning.seed, "step", step))  # dropout, if the backbone has any
        self.optimizer.zero_grad(set_to_none=True)
        read = 0
        for each in begun:
            with self._blaming(step):
                result = each.finish()
            self._note_bad(result.failed)
            self._add(failed=len(result.failed))
            if not len(result.places):
                continue
            outputs, shown = pool_slides(
                result.outputs, result.log_weight, [each.shown[place] for place in result.places]
            )
            unit_of = dict(zip(each.shown, each.units, strict=True))
            loss, kept = self._loss(outputs, [unit_of[number] for number in shown]), len(shown)
            # Divided by the slides of the whole step, so that nothing depends on how it is shared out.
            total = loss * (kept / len(batch))
            if result.entropy is not None:
                slides = sum(len(self.units[unit]) for unit, _ in batch)
                total = total - self.learning.entropy * result.entropy.sum() / slides
                if self.learning.teaching and self.target.task == "classification":
                    total = total + self.learning.teaching * self._teaching(each, result) / slides
            self._check("loss", total.item(), step, batch)
            total.backward()  # type: ignore[no-untyped-call]
            self._add(loss=loss.item() * kept, units=kept, tiles=result.tiles)
            if result.entropy is not None:
                self._add(entropy=result.entropy.sum().item(), drawn=len(result.places))
                self._add(effective=sum(each.effective for each in result.drawn))
            read += kept
        if not self.processes.add_gradients(self.model, read):
            return
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.learning.clip)
        self._check("gradient's norm", norm.item(), step, batch)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def _loss(self, outputs: Tensor, shown: Sequence[int]) -> Tensor:
        """Mean loss of some slides, or cases, given by their numbers."""
        targets = self._targets([self.training[self.units[unit][0]] for unit in shown])
        each = losses(self.target.task, outputs, targets)
        if self.unit_weights is not None:
            each = each * each.new_tensor([self.unit_weights[unit] for unit in shown])
        return each.mean()

    def _teaching(self, shown: _Pass, result: Estimates) -> Tensor:
        """What attention is taught by the drawn tiles of some slides; see :mod:`wsi_ats.nn.teaching`."""
        taught = result.outputs.new_zeros(())
        for place, seen in zip(result.places, result.drawn, strict=True):
            with torch.no_grad():
                alone = self.model.classify(seen.features)
                targets = self._targets([shown.examples[place]]).expand(len(alone), -1)
                evidence = -self.learning.evidence * losses(self.target.task, alone, targets)
            taught = taught + teaching(seen.weight, seen.attention, seen.gate, evidence)
        return taught

    def _targets(self, examples: Sequence[Example]) -> Tensor:
        """Targets (B, T) of some slides in the units of the network's outputs."""
        # Single precision would make one of two times that differ by a little.
        targets = torch.tensor([each.target for each in examples], dtype=torch.float64, device=self.device)
        return self.target.normalise(targets)

    def _note_bad(self, slides: Mapping[str, str]) -> None:
        """Report slides that could not be read, each once, and refuse too many."""
        for slide_id, error in slides.items():
            if slide_id not in self.progress.bad:
                _LOG.warning("step %d goes on without %s: %s", self.progress.step, slide_id, error)
                self.progress.bad[slide_id] = error
                self.on_bad(slide_id, error)
        if self.max_bad is not None and len(self.progress.bad) > self.max_bad:
            raise ModelError(
                f"{len(self.progress.bad)} slides could not be read, and --max-bad allows {self.max_bad}: "
                + "; ".join(self.progress.bad.values())
            )

    def _check(self, what: str, value: float, step: int, batch: Sequence[tuple[int, int]]) -> None:
        if math.isfinite(value):
            return
        ids = ", ".join(self.training[slide].ref.id for unit, _ in batch for slide in self.units[unit])
        raise ModelError(
            f"the {what} is {value} in step {step}, epoch {len(self.progress.rows)} (slides {ids}); the last "
            f"good state is {self._last_good()}; try lower learning rates"
        )

    @contextmanager
    def _blaming(self, step: int) -> Iterator[None]:
        """Say in which step a network gave no more numbers, and what there is to go back to."""
        try:
            yield
        except ModelError as error:
            raise ModelError(
                f"{error} (step {step}, epoch {len(self.progress.rows)}); the last good state is "
                f"{self._last_good()}"
            ) from error

    def _row(self, seconds: float) -> dict[str, float | None]:
        """Figures of an epoch whose steps are all taken."""
        sums = self._gathered()
        self.progress.sums = {}
        if not sums["units"]:
            raise ModelError("no training slide could be read: " + "; ".join(self.progress.bad.values()))
        drawn = sums["drawn"]
        begin = time.perf_counter()
        return {
            "epoch": len(self.progress.rows),
            "loss": sums["loss"] / sums["units"],
            "entropy": sums["entropy"] / drawn if drawn else None,
            "effective": sums["effective"] / drawn if drawn else None,
            "staleness": sums["staleness"] / sums["steps"] if drawn else None,
            "tiles": sums["tiles"],
            "failed": sums["failed"],
            **self._validate(),
            "seconds": seconds + time.perf_counter() - begin,
        }

    def _add(self, **numbers: float) -> None:
        """Add to the sums of the epoch."""
        for name, number in numbers.items():
            self.progress.sums[name] = self.progress.sums.get(name, 0) + number

    def _gathered(self) -> Counter[str]:
        """Bring together what all processes have noted in this epoch: the sums, and slides that are bad."""
        sums: Counter[str] = Counter()
        for noted, bad in self.processes.gather((self.progress.sums, self.progress.bad)):
            sums.update(noted)
            self._note_bad(bad)
        return sums

    def _validate(self) -> dict[str, float | None]:
        """Figures of the slides to watch, by the same draw at every epoch, so that epochs can be compared."""
        method = method_for(self.final.eval(), self.settings, self.device, self.folder)
        own = self.processes.share(self.watched)
        per_step = self.learning.slides_per_step
        per_pass = max(1, per_step // method.passes(per_step))
        parts = [own[first : first + per_pass] for first in range(0, len(own), per_pass)]

        def begin(part: Sequence[Sequence[int]]) -> _Pass:
            shown = [(self.validation[slide], unit) for unit, slides in enumerate(part) for slide in slides]
            examples = [example for example, _ in shown]
            seeds = [draw_seed(self.learning.seed, example.ref.id, -1) for example in examples]
            numbers = [unit for _, unit in shown]
            return _Pass(examples, numbers, numbers, method.begin(examples, self.reader, seeds))

        outputs: list[list[float]] = []
        targets: list[tuple[float, ...]] = []
        with torch.inference_mode():
            for part, begun in ahead(parts, begin, self.learning.read_ahead):
                result = begun.finish()
                self._note_bad(result.failed)
                numbers = [begun.units[place] for place in result.places]
                pooled, shown = pool_slides(result.outputs, result.log_weight, numbers)
                outputs += pooled.double().cpu().tolist()
                targets += [self.validation[part[unit][0]].target for unit in shown]
        everywhere = self.processes.gather((outputs, targets))
        return self._watched_figures(
            torch.tensor([each for found, _ in everywhere for each in found], dtype=torch.float64),
            torch.tensor([each for _, found in everywhere for each in found], dtype=torch.float64),
        )

    def _watched_figures(self, outputs: Tensor, targets: Tensor) -> dict[str, float | None]:
        """Loss and the task's main figure, of outputs (N, O) and targets (N, T) in the labels' own units."""
        task, known = self.target.task, len(outputs) > 0
        if not known:
            outputs = torch.zeros(0, self.target.outputs)
            targets = torch.zeros(0, len(self.training[0].target))
        if not outputs.isfinite().all():
            raise ModelError(
                "the model gives scores that are no numbers; the last good state is "
                f"{self._last_good()}; try lower learning rates"
            )
        loss = losses(task, outputs, self.target.normalise(targets)).mean().item() if known else None
        scores = self.target.restore(activate(task, outputs))
        name, value = next(iter(figures(task, targets.numpy(), scores.numpy()).items()))
        return {"validation_loss": loss, f"validation_{name}": value}

    def _save(self) -> None:
        """Store the state; of the figures so far the first process keeps those of all."""
        sums = self._gathered()
        self.progress.sums = dict(sums) if self.processes.first else {}
        if self.processes.first:
            self.states.save(
                self.progress.step, self.model, self.optimizer, self.average, asdict(self.progress)
            )

    def _write_metrics(self) -> None:
        rows = self.progress.rows
        if rows:
            with atomic(self.folder / "metrics.csv") as temporary:
                write_csv(temporary, {name: [row[name] for row in rows] for name in rows[0]})

    def _last_good(self) -> str:
        newest = self.states.newest()
        return "not there yet" if newest is None else str(newest)


def _balancing(classes: Sequence[float]) -> list[float]:
    """Weight of each slide, or case, that gives all classes the same say; their mean is 1."""
    counts = Counter(classes)
    return [len(classes) / (len(counts) * counts[each]) for each in classes]


def _best(rows: Sequence[Row], learning: TrainingSettings) -> int:
    """Number of the epoch with the best validation figure; where none has one, of the last."""
    name = _watched_figure(rows[0], learning)
    sign = -1 if name == "validation_loss" else 1
    known = [(sign * value, -epoch) for epoch, row in enumerate(rows) if (value := row[name]) is not None]
    return -max(known)[1] if known else len(rows) - 1


def _watched_figure(row: Row, learning: TrainingSettings) -> str:
    """Name of the validation figure that tells the best epoch."""
    names = [name for name in row if name.startswith("validation_")]
    (score,) = (name for name in names if name != "validation_loss")
    return score if learning.monitor == "score" else "validation_loss"


def _exhausted(rows: Sequence[Row], learning: TrainingSettings) -> bool:
    """Whether patience is at its end."""
    return bool(learning.patience and rows) and len(rows) - 1 - _best(rows, learning) >= learning.patience
