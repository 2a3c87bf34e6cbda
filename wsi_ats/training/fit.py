"""Train a network from slide labels, phase by phase.

Read from top to bottom: a run has phases (:mod:`wsi_ats.training.phases`), a phase has epochs, and an epoch
is a shuffled pass over the slides in small batches. While a batch is computed, the tiles of the next are
drawn and being read; for each batch estimate the outputs, which is the method's business, and step. In the
phase ``attention`` nothing is read, for the slides were surveyed at its beginning
(:mod:`wsi_ats.training.distillation`). Every random choice is a function of the seed, the step and the
slide, and what is read ahead never crosses a stored state, so that a run that was killed at any moment and
started again ends in the same weights.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from wsi_ats.errors import ArtifactError, ModelError
from wsi_ats.files import atomic, digest_of
from wsi_ats.models.base import Estimates, Finish, Method, draw_seed
from wsi_ats.models.batches import Example, Reader, ahead, balancing, epoch_batches, units
from wsi_ats.models.checkpoints import StateFolder
from wsi_ats.models.evidence import Evidence
from wsi_ats.models.frozen import FrozenFeatures
from wsi_ats.models.kinds import method_for, model_for
from wsi_ats.models.sampling import AttentionSampling
from wsi_ats.nn.backbone import Precomputed
from wsi_ats.nn.cases import pool_slides
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.nn.optimisation import averaged, optimizer_of, set_rates
from wsi_ats.nn.supervision import teaching
from wsi_ats.settings import Fixes, Settings
from wsi_ats.tables.files import write_csv
from wsi_ats.tasks.targets import Target
from wsi_ats.tasks.trainable import check_trainable
from wsi_ats.training.diagnosis import Row
from wsi_ats.training.distillation import Judge, Trust, loss, recall, survey, trust
from wsi_ats.training.phases import Phase, phases_of
from wsi_ats.training.processes import Processes
from wsi_ats.training.validation import Outputs, Watch, drawing_uniformly, is_exhausted, watched_figure

_LOG = logging.getLogger(__name__)

# Draws of each validation slide in the comparison at the end; one scatters by up to 0.07 in the area under
# the curve of a hundred slides.
_FINAL_DRAWS = 4

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
    network: Callable[[], SlideNetwork] | None = None,
    features: Path | None = None,
) -> Trained:
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
        Where checkpoints and metrics go.
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
    network
        Makes the network, of a kind that :mod:`wsi_ats.models` knows; by default the one that settings
        describe.
    features
        Where features go if the backbone is frozen; ``features/`` in the folder by default. Runs of the same
        settings, whatever their seeds and splits, may share it, at the same time, too.

    Returns
    -------
    Trained
        The model of the last epoch, or of the best one where ``training.patience`` is set.

    Raises
    ------
    SettingsError
        When they suit scoring only, the task or the number of processes has no use for them, patience has
        no slides to watch, or a slide's colours or channel are not those of section ``tile``.
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
    check_trainable(settings, processes=1 if processes is None else processes.count)
    settings.check_watched(len(validation))
    for example in (*training, *validation):
        example.ref.check_pixels(colour=settings.tile.colour, channel=settings.tile.channel)
    run = _Training(
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
    )
    # Of other graphics processors nothing is changed, and to ask them for their state takes memory there.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return run.run(on_epoch)


@dataclass
class Progress:
    """How far training has come: what is stored with every state, besides tensors.

    Parameters
    ----------
    phase
        Number of the phase that it is in.
    step
        Steps that were taken, of all phases.
    start
        Steps that had been taken when the phase began.
    rows
        Figures of the epochs that are complete.
    sums
        Of the epoch that is not.
    bad
        Slides that could not be read, and why.
    best
        Best validation figure of the phase, where its best epoch is kept.
    trust
        How far attention is trusted, once that is known.
    """

    phase: int = 0
    step: int = 0
    start: int = 0
    rows: list[dict[str, float | str | None]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    best: float | None = None
    trust: dict[str, Any] | None = None


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Parameters
    ----------
    model
        In evaluation mode.
    rows
        Figures of all epochs.
    trust
        How far its attention is to be trusted; ``None`` for a model without attention to thumbnails. Without
        epochs of attention nobody judges it: its scale is 1 if it learned with all the rest, 0 if not at all.
    by_attention, by_uniform
        Figures of the validation slides, each from several draws of ``sampling.tiles`` tiles, by attention
        and by uniform draws; empty without validation slides and for models that do not draw.
    validation_loss
        Loss of the validation slides by the model as it is, by attention where it has some; infinite where
        there are none.
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
        network: Callable[[], SlideNetwork],
        features: Path,
        max_bad: int | None,
        on_bad: OnBad,
    ) -> None:
        self.settings, self.target, self.learning = settings, target, settings.training
        self.folder, self.device, self.reader, self.network = folder, device, reader, network
        self.features = features
        self.processes, self.max_bad, self.on_bad = processes, max_bad, on_bad
        self.training, self.validation = training, validation
        self.phases = phases_of(settings)
        by_case = settings.model.cases != "separate"
        self.units, self.watched = (units(each, by_case=by_case) for each in (training, validation))
        self.classes = [training[places[0]].target[0] for places in self.units]
        self.unit_weights = balancing(self.classes) if self.learning.balance == "weights" else None
        targets = target.normalise(torch.tensor([training[places[0]].target for places in self.units]))
        # The constant with the least loss, under the loss and the draws that are trained with: with balanced
        # classes, each as likely as any other. Validation figures have the same one, though their loss is
        # plain: what balanced training makes of a network that tells nothing is this constant, not the
        # shares of the labels, so that its gain is 0 there, too.
        if self.learning.balance != "none":
            targets = torch.tensor(sorted(set(self.classes)))[:, None]
        self.chance = target.definition.constant_outputs(targets, target.outputs)
        self.watch = Watch(validation, self.watched, settings, target, self.chance, processes, device)
        self.frozen: FrozenFeatures | None = None
        self.evidence: dict[int, Evidence] = {}
        self.turns = torch.Generator()
        slides = (
            f"{part}/{each.ref.id}/{each.ref.case}={each.target}"
            for part, of in enumerate((training, validation))
            for each in of
        )
        identity = digest_of(settings.digest(Fixes.MODEL), repr(target), str(processes.count), *slides)
        self.states = StateFolder(folder / "checkpoints", identity, keep=self.learning.keep_checkpoints)

    def run(self, on_epoch: OnEpoch) -> Trained:
        """Train; returns the model and what is known of it."""
        with ExitStack() as stack:
            self._start(stack)
            while self.progress.phase < len(self.phases):
                self._run_phase(on_epoch)
            return self._trained()

    @property
    def phase(self) -> Phase:
        """The phase that the run is in."""
        return self.phases[self.progress.phase]

    @property
    def phase_rows(self) -> list[dict[str, float | str | None]]:
        """Figures of the epochs of this phase."""
        return [row for row in self.progress.rows if row["phase"] == self.phase.name]

    def _start(self, stack: ExitStack) -> None:
        """Make the model and all that goes with it, as it is at the start or was when a run was stopped."""
        learning = self.learning
        torch.manual_seed(learning.seed)
        self.model = self.network().to(self.device)
        if learning.learning_blocks is not None:
            self.model.encoder.freeze(but_last=learning.learning_blocks)
        if learning.compile:
            self.model.encoder.network.compile(dynamic=True)
        self.learnable = {name for name, each in self.model.named_parameters() if each.requires_grad}
        self._method(self.settings).check(self.training, self.validation)
        self.progress = Progress(**(self.states.record() or {}))
        self._prepare()
        there = self.states.load(self.model, self.optimizer, self.average)
        found = set(self.processes.gather(self.progress.step if there else None))
        if len(found) > 1:
            raise ArtifactError(
                f"processes found states of different steps ({found}) in {self.folder}; give --out in a "
                "folder that all machines share"
            )
        if not there:
            if self.processes.first:
                # On pixels: of features the statistics inside the backbone cannot be measured.
                self._method(self.settings).calibrate(self.training, self.reader)
            self.processes.share_weights(self.model)
        self.frozen = self._frozen_features(stack)  # which are known by those statistics, too
        if not there:
            self._enter()
            return
        if self.processes.first:
            self._write_metrics()  # the run may have been stopped between the two files
        else:
            self.progress.sums = {}  # of all processes, and the first has them
        for slide_id, error in self.progress.bad.items():
            self.on_bad(slide_id, error)
        if self.phase.name == "attention":
            self._recall(self._stored_survey())

    def _frozen_features(self, stack: ExitStack) -> FrozenFeatures | None:
        """Return a reader of features, for a backbone that does not learn; all processes share its folder."""
        encoder = self.model.encoder
        learns = any(name.startswith("encoder.") for name in self.learnable)  # in any phase
        if learns or not self.settings.model.reads_tiles:
            return None
        if isinstance(encoder.network, Precomputed):  # the reader gives features
            return None
        return stack.enter_context(
            FrozenFeatures(
                self.reader,
                encoder,
                self.features,
                device=self.device,
                precision=self.learning.precision,
            )
        )

    def _method(self, settings: Settings) -> Method:
        return method_for(self.model, settings, self.device)

    @property
    def source(self) -> Reader:
        """Who gives tiles, or their features."""
        return self.frozen or self.reader

    def _prepare(self) -> None:
        """Make the optimiser and the average of weights of this phase."""
        learning, phase = self.learning, self.phase
        learns = {
            id(each)
            for name in phase.learns
            for module in self.model.parts().get(name, ())
            for each in module.parameters()
        }
        # What the last phase has left would count in the norm of this one's gradients.
        self.model.zero_grad(set_to_none=True)
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(name in self.learnable and id(weight) in learns)
        rates = {
            "backbone": learning.learning_rate,
            "attention": learning.attention_learning_rate,
            "attention_backbone": learning.learning_rate,
            "head": learning.head_learning_rate,
            "gate": learning.gate_learning_rate,
        }
        self.optimizer = optimizer_of(self.model, rates, weight_decay=learning.weight_decay)
        self.average = averaged(self.model, learning.ema)
        self.method = self._method(phase.settings(self.settings))
        if phase.name == "attention" and self.settings.augmentation.turns:
            self.method = replace(cast(AttentionSampling, self.method), turns=self.turns)

    def _enter(self) -> None:
        """Begin a phase."""
        phase, model = self.phase, self.model
        if phase.name == "joint" and self.progress.trust and not self.progress.trust["scale"]:
            self._skip(
                "tiles are drawn uniformly, as the validation slides tell, and attention that is not drawn "
                "from learns nothing"
            )
            return
        if isinstance(model, AttentionSampler):
            model.attention_scale.fill_(0.0 if phase.name == "classifier" else 1.0)
            if self.progress.trust is not None:
                model.attention_scale.fill_(self.progress.trust["scale"])
        self._prepare()
        self.progress.start, self.progress.best = self.progress.step, None
        if phase.name == "attention":
            found = self._survey()
            if not self.frozen:
                self._add(tiles=sum(len(found[number]) for number in self.processes.share(sorted(found))))
            self._recall(found)
        if phase.name == "joint" and self.progress.phase and self.validation:
            before = self._validate("")
            name, merit = watched_figure(before, self.learning)
            if merit is None:
                self._skip(
                    f"{name} cannot be told from the validation slides (a class may be absent, or none could "
                    "be read), and only epochs that raise it would be kept; give others, or set "
                    "training.monitor=loss"
                )
                return
            self._keep_if_best(before)
        self._save()

    def _skip(self, why: str) -> None:
        """Leave out a phase; its predecessor's last state is the run's, and leads here again."""
        _LOG.warning("%s training is left out: %s", self.phase.name, why)
        self.progress.phase += 1

    def _run_phase(self, on_epoch: OnEpoch) -> None:
        """Take the epochs of a phase that were not taken yet, and end it."""
        while len(self.phase_rows) < self.phase.epochs and not is_exhausted(self.phase_rows, self.learning):
            begin = time.perf_counter()
            self._train_epoch()
            row = self._row(time.perf_counter() - begin)
            self.progress.rows.append(row)
            self._keep_if_best(row)
            self._save()
            if self.processes.first:
                self._write_metrics()
            on_epoch(row)
        self._leave()

    def _leave(self) -> None:
        """End a phase: keep its best epoch, or its last, and find out how far attention is to be trusted."""
        self.model.load_state_dict(self.final.state_dict())
        self.processes.gather(None)  # the best weights may still be being written
        if self.progress.best is not None:
            self.states.load_best(self.model)
        if self.phase.name == "attention":
            # The first process decides for all: they could not go on together in different phases.
            found = self.processes.gather(self._trust())[0]
            cast(AttentionSampler, self.model).attention_scale.fill_(found.scale)
            self.progress.trust = asdict(found)
            self.evidence = {}
        self.progress.phase += 1
        if self.progress.phase < len(self.phases):
            self._enter()

    def _trust(self) -> Trust:
        """Find out on the validation slides how far attention is to be trusted."""
        judges, targets = [], []
        for slides in self.watched:
            known = self._known([len(self.training) + slide for slide in slides])
            if known:
                example = self.validation[slides[0]]
                judges.append(Judge(example.ref.case, known))
                targets.append(example.target)

        def figure(outputs: Tensor, places: Sequence[int]) -> float | None:
            chosen = torch.tensor([targets[place] for place in places], dtype=torch.float64)
            return self.watch.main_figure(outputs, chosen)[1]

        return trust(
            cast(AttentionSampler, self.model.eval()),
            judges,
            figure,
            tiles=self.settings.sampling.tiles,
            exploration=self.settings.sampling.exploration,
            seed=self.learning.seed,
        )

    def _keep_if_best(self, row: Row) -> None:
        """Keep the weights if the validation figure is the best of the phase, where the best epoch counts."""
        joint = self.phase.name == "joint" and self.progress.phase > 0
        if not (self.learning.patience or joint) or not self.validation:
            return
        name, merit = watched_figure(row, self.learning)
        if merit is None:
            if self.learning.patience and self.progress.best is None:
                raise ModelError(
                    f"training.patience is {self.learning.patience}, but {name} cannot be told from the "
                    "validation slides: a class may be absent, or none could be read; give others, set "
                    "training.monitor=loss, or set training.patience=0"
                )
            return
        if self.progress.best is None or merit > self.progress.best:
            self.progress.best = merit
            if self.processes.first:
                self.states.save_best(self.final)

    # Where to look

    @property
    def _surveyed(self) -> dict[int, Example]:
        """Slides that attention learns from, and behind them those that tell how far to trust it."""
        return dict(enumerate([*self.training, *self.validation]))

    def _survey(self) -> dict[int, Tensor]:
        """Ask the fixed classifier what tiles of each slide tell, and keep the answers."""
        model, examples = cast(AttentionSampler, self.model.eval()), self._surveyed
        own = {number: examples[number] for number in self.processes.share(list(examples))}
        bad: dict[str, str] = {}
        with drawing_uniformly(model):
            found = survey(
                cast(AttentionSampling, self.method),
                own,
                self.source,
                self.learning.seed,
                read_ahead=self.learning.read_ahead,
                on_bad=bad.__setitem__,
            )
        self._note_bad(bad)
        self.evidence = dict(found)
        said = {number: each.said.cpu() for number, each in found.items()}
        everything = {number: each for part in self.processes.gather(said) for number, each in part.items()}
        if self.processes.first:
            self.states.save_named("survey", {str(number): each for number, each in everything.items()})
        self.processes.gather(None)
        return everything

    def _stored_survey(self) -> dict[int, Tensor]:
        """Return the answers that were kept, or ask again: seed and classifier are the same, and so are they.

        Tiles that are read again are not counted again, as those of steps that a killed run repeats are not.
        """
        stored = self.states.load_named("survey")
        if all(self.processes.gather(stored is not None)):
            return {int(number): each for number, each in (stored or {}).items()}
        _LOG.warning("slides are surveyed again, which reads training.attention_tiles tiles of each")
        found = self._survey()
        if self.frozen:
            self.frozen.take_count()
        return found

    def _recall(self, found: Mapping[int, Tensor]) -> None:
        """Make the evidence of slides that this process did not survey itself, from what was found."""
        model = cast(AttentionSampler, self.model)
        bad: dict[str, str] = {}
        with drawing_uniformly(model):
            self.evidence |= recall(
                cast(AttentionSampling, self.method),
                self._surveyed,
                self.source,
                self.learning.seed,
                {number: each for number, each in found.items() if number not in self.evidence},
                on_bad=bad.__setitem__,
            )
        self._note_bad(bad)

    def _known(self, slides: Sequence[int]) -> list[Evidence]:
        """Return what the survey of slides of a case found: of each or, where they are pooled, of all."""
        known = [self.evidence[slide] for slide in slides if slide in self.evidence]
        return [Evidence.of_case(known)] if known and self.settings.model.cases == "union" else known

    def _distil(self, step: int, batch: Sequence[tuple[int, int]]) -> None:
        """Take a step of attention alone."""
        torch.manual_seed(draw_seed(self.learning.seed, "step", step))  # dropout, if attention has any
        self.optimizer.zero_grad(set_to_none=True)
        count = 0
        for unit, _ in self.processes.share(batch):
            self.turns.manual_seed(draw_seed(self.learning.seed, f"turns of {unit}", step))
            for evidence in self._known(self.units[unit]):
                with self._blaming(step):
                    own, entropy, top = loss(evidence)
                self._check("loss", own.item(), step, batch)
                (own / len(batch)).backward()  # type: ignore[no-untyped-call]
                self._add(loss=own.item(), units=1, drawn=1, cells=entropy.exp().item(), top=top)
                count += 1
        self._take_step(step, batch, count)

    @property
    def final(self) -> SlideNetwork:
        """The network that is watched and kept: the average of weights, where there is one."""
        if self.average is None:
            return self.model
        return cast(SlideNetwork, self.average.module)

    def _train_epoch(self) -> None:
        """Take the steps of an epoch that have not been taken yet."""
        learning, epoch, attention = self.learning, len(self.phase_rows), self.phase.name == "attention"
        batches = epoch_batches(
            len(self.units),
            learning.slides_per_step * self.processes.count,
            draw_seed(learning.seed, f"order {self.phase.name}", epoch),
            classes=self.classes if learning.balance == "sampling" else None,
        )
        # A slide may be shown more than once: what is drawn of it depends on its place in the order.
        shown = np.arange(len(self.units)) + len(self.progress.rows) * len(self.units)
        places = np.array_split(shown, len(batches))
        steps = [list(zip(*each, strict=True)) for each in zip(batches, places, strict=True)]
        first = self.progress.start + epoch * len(steps)
        self.model.train()
        todo = range(self.progress.step, first + len(steps))

        def begin(step: int) -> list[_Pass]:
            return [] if attention else self._begin(step, steps[step - first])

        # Nothing is read ahead across a stored state: a run that goes on from it draws by newer weights.
        for _, part in itertools.groupby(todo, key=lambda step: step // learning.checkpoint_steps):
            age = 0
            for step, begun in ahead(part, begin, learning.read_ahead):
                done = (step - self.progress.start) / (self.phase.epochs * len(steps))
                set_rates(self.optimizer, done, warmup=learning.warmup)
                if attention:
                    self._distil(step, steps[step - first])
                else:
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
        # A loss that compares slides needs all of them at once.
        passes = 1 if self.target.definition.relative else min(len(own), self.method.passes(slides))
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
                finish = self.method.begin(examples, self.source, seeds)
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
            units, kept = [unit_of[number] for number in shown], len(shown)
            mean = self._loss(outputs, units)
            with torch.no_grad():
                chance = self._loss(self.chance.to(outputs).expand_as(outputs), units)
            # Divided by the slides of the whole step, so that nothing depends on how it is shared out.
            total = mean * (kept / len(batch))
            slides = sum(len(self.units[unit]) for unit, _ in batch)
            if result.drawn and self.phase.name == "joint":
                entropy = torch.stack([seen.entropy for seen in result.drawn])
                total = total - self.learning.entropy * entropy.sum() / slides
                if self.learning.teaching and self.target.definition.has_classes:
                    total = total + self.learning.teaching * self._teaching(each, result) / slides
            self._check("loss", total.item(), step, batch)
            total.backward()  # type: ignore[no-untyped-call]
            self._add(loss=mean.item() * kept, chance=chance.item() * kept, units=kept)
            if not self.frozen:
                self._add(tiles=result.tiles)
            for seen in result.drawn:
                self._add(
                    drawn=1, cells=seen.entropy.exp().item(), top=seen.top_share, effective=seen.effective
                )
            read += kept
        self._take_step(step, batch, read)

    def _take_step(self, step: int, batch: Sequence[tuple[int, int]], count: int) -> None:
        """Change the weights by the gradients of all processes, if any slide of theirs counted."""
        if not self.processes.add_gradients(self.model, count):
            return
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.learning.clip)
        self._check("gradient's norm", norm.item(), step, batch)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def _loss(self, outputs: Tensor, shown: Sequence[int]) -> Tensor:
        """Mean loss of some slides, or cases, given by their numbers."""
        targets = self._targets([self.training[self.units[unit][0]] for unit in shown])
        each = self.target.definition.losses(outputs, targets)
        if self.unit_weights is not None:
            each = each * each.new_tensor([self.unit_weights[unit] for unit in shown])
        return each.mean()

    def _teaching(self, shown: _Pass, result: Estimates) -> Tensor:
        """What attention is taught by the drawn tiles of some slides; see :mod:`wsi_ats.nn.supervision`."""
        taught = result.outputs.new_zeros(())
        for place, seen in zip(result.places, result.drawn, strict=True):
            with torch.no_grad():
                alone = self.model.classify(seen.features)
                targets = self._targets([shown.examples[place]]).expand(len(alone), -1)
                evidence = -self.learning.evidence * self.target.definition.losses(alone, targets)
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

    def _row(self, seconds: float) -> dict[str, float | str | None]:
        """Figures of an epoch whose steps are all taken."""
        if self.frozen:
            self._add(tiles=self.frozen.take_count())
        sums = self._gathered()
        self.progress.sums = {}
        if not sums["units"]:
            raise ModelError("no training slide could be read: " + "; ".join(self.progress.bad.values()))
        drawn, chance = sums["drawn"], sums["chance"]
        begin = time.perf_counter()
        return {
            "epoch": len(self.progress.rows),
            "phase": self.phase.name,
            "loss": sums["loss"] / sums["units"],
            "gain": 1 - sums["loss"] / chance if chance else None,
            "effective_cells": sums["cells"] / drawn if drawn else None,
            "top_share": sums["top"] / drawn if drawn else None,
            "effective": sums["effective"] / drawn if sums["effective"] else None,
            "staleness": sums["staleness"] / sums["steps"] if sums["effective"] else None,
            "tiles": sums["tiles"],
            "failed": sums["failed"],
            **self._watch(),
            "seconds": seconds + time.perf_counter() - begin,
        }

    def _watch(self) -> dict[str, float | None]:
        """Figures of the validation slides, by attention and by uniform draws of the same size."""
        figures = self._validate("")
        model = self.final
        if not isinstance(model, AttentionSampler):
            return {**figures, **{name.replace("validation_", "uniform_"): None for name in figures}}
        before = self.progress.rows[-1] if self.progress.rows else None
        if not model.attention_scale or model.attention is None:
            uniform = {name.replace("validation_", "uniform_"): value for name, value in figures.items()}
        elif self.phase.name == "attention" and before and before["phase"] == "attention":
            # The classifier has not changed.
            uniform = {
                name: cast(float | None, value)
                for name, value in before.items()
                if name.startswith("uniform_")
            }
        else:
            with drawing_uniformly(model):
                uniform = self._validate("", prefix="uniform_")
        return {**figures, **uniform}

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

    def _validate(self, draw: str | int, *, prefix: str = "validation_") -> dict[str, float | None]:
        """Figures of the slides to watch, by the same draw at every epoch, so that epochs can be compared."""
        [outputs] = self.watch.outputs(self.final, self.source, [draw], self._note_bad)
        if self.frozen:
            self.frozen.take_count()  # of tiles that are learned from alone, as of other kinds
        with self._blaming(self.progress.step):
            return self.watch.figures(outputs, prefix)

    def _trained(self) -> Trained:
        """Calibrate the outputs, hold attention against uniform draws, and return the model."""
        model, found = self.model.eval(), None
        model.zero_grad(set_to_none=True)
        by_attention: dict[str, float | None] = {}
        by_uniform: dict[str, float | None] = {}
        loss, calibrated = None, None
        if isinstance(model, AttentionSampler) and model.attention is not None:
            judged = self.progress.trust
            found = Trust(**judged) if judged else Trust(model.attention_scale.item(), None, None, None, 0)
        if self.validation:
            draws = uniform = self._drawn()
            if found and found.scale:
                with drawing_uniformly(cast(AttentionSampler, model)):
                    uniform = self._drawn()
            draws, calibrated = self.watch.calibrated(draws)
            uniform, _ = self.watch.calibrated(uniform)
            by_attention, by_uniform = self.watch.compare(draws, uniform)
            loss = by_attention["loss"]
            if calibrated:
                calibrated.into(model.head)
        return Trained(
            model,
            self.progress.rows,
            found,
            by_attention if found else {},
            by_uniform if found else {},
            validation_loss=math.inf if loss is None else loss,
            calibrated=calibrated is not None,
        )

    def _drawn(self) -> Sequence[Outputs]:
        """Outputs of the validation slides by several draws, by one where there is no chance in it."""
        draws = _FINAL_DRAWS if isinstance(self.model, AttentionSampler) else 1
        return self.watch.outputs(self.model, self.source, range(draws), self._note_bad)

    def _save(self) -> None:
        """Store the state; of the figures so far the first process keeps those of all."""
        if self.frozen:
            self._add(tiles=self.frozen.take_count())
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
