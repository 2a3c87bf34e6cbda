"""From prepared slides to a model: the work of each process of a training."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines._readers import check_readers, open_reader
from pipelines._reports import Silent
from pipelines._runs import Execution, together
from pipelines._tensorboard import writing_events
from pipelines.prepare import PrepareTask
from wsi_ats.bags.matched import load_matched
from wsi_ats.errors import ManifestError, SettingsError
from wsi_ats.overview.records import load_overview
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.labels import check_cases, check_labels
from wsi_ats.tasks.registry import task_named
from wsi_ats.tasks.targets import Target
from wsi_ats.training.diagnosis import compare, diagnose
from wsi_ats.training.phases import phases_of

if TYPE_CHECKING:  # torch takes seconds to import
    import torch

    from wsi_ats.models.batches import Example, Reader
    from wsi_ats.training.fit import Trained
    from wsi_ats.training.processes import Processes


@dataclass(frozen=True)
class Fitted:
    """The result of a training.

    Parameters
    ----------
    trained
        The network, and what is known about it.
    target
        The target that it predicts.
    unreadable
        Reasons why slides turned out to be unreadable, by slide.
    seed
        Random seed of the training.
    """

    trained: Trained
    target: Target
    unreadable: Mapping[str, str]
    seed: int


@dataclass(frozen=True)
class Fitting:
    """A plan to fit a model.

    Parameters
    ----------
    out
        Folder of the run.
    settings
        All settings.
    execution
        The Dask workers, if these read tiles, and the reporter.
    readers, max_bad, tensorboard, restarts, retries, feature_cache
        See :func:`pipelines.train.train`.
    prepared
        Folder in which the slides are prepared; ``out`` by default.
    every_epoch
        See :func:`wsi_ats.training.fit.fit`.
    """

    out: Path
    settings: Settings
    execution: Execution
    readers: str
    max_bad: int | None
    tensorboard: bool
    restarts: int = 1
    retries: int = 1
    feature_cache: Path | None = None
    prepared: Path | None = None
    every_epoch: bool = True

    def plan(self, refs: Sequence[SlideRef], target: Target) -> tuple[list[SlideRef], list[SlideRef], Target]:
        """Return the training slides, the validation slides, and the target in units of the training slides.

        Raises
        ------
        ManifestError
            When too little is left to train on, or a case that is pooled has several labels.
        SettingsError
            When settings depend on validation metrics, and there are no validation slides.
        """
        from wsi_ats.tables.splits import split_by_case

        if self.settings.model.cases != "separate":
            check_cases(refs)
        rates = self.settings.training
        training, validation = split_by_case(refs, rates.validation, seed=rates.seed, task=target.task)
        self.settings.check_watched(len(validation))
        if target.definition.has_classes:  # a target is nothing more than their names
            return training, validation, target
        found = check_labels(training, target.task)
        if found.names != target.names:
            missing = ", ".join(map(repr, sorted(set(target.names) - set(found.names))))
            raise ManifestError(f"no training slide has {missing}; use other splits, or leave the label out")
        return training, validation, found

    def fit(self, refs: Sequence[SlideRef], target: Target, processes: Processes | None = None) -> Fitted:
        """Train on prepared slides; of several processes only the first reports and writes.

        One of several runs is kept; see :func:`wsi_ats.training.restarts.best_of`.

        Raises
        ------
        SettingsError
            When there are restarts to choose from, but no validation slides to choose by.
        """
        from wsi_ats.training.restarts import best_of, repeat

        training, validation, target = self.plan(refs, target)
        if self.restarts > 1 and not validation:
            raise SettingsError(
                f"--restarts {self.restarts} keeps the run with the least validation loss, but there are no "
                "validation slides; set training.validation, or give a split column with val"
            )
        first, reporter = processes is None or processes.first, self.execution.reporter
        unreadable: list[dict[str, str]] = []

        def fit_once(number: int) -> Trained:
            unreadable.append({})
            return self._fit_once(number, training, validation, target, processes, unreadable[-1])

        def announce() -> None:
            if first:
                reporter.message(
                    "attention found nothing in the thumbnails; training again from other weights (--retries)"
                )

        trained, outcomes = repeat(fit_once, restarts=self.restarts, retries=self.retries, on_retry=announce)
        best = best_of(outcomes)
        if best and first:
            shutil.copy(self._folder(best) / "metrics.csv", self.out / "metrics.csv")
        if first:
            if len(outcomes) > 1:
                losses = ", ".join(
                    f"{each.loss:.3f}" + ("" if each.found else " (attention found nothing)")
                    for each in outcomes
                )
                reporter.message(f"validation losses {losses}: run {best} is kept")
            for line in self.judge(trained, training, validation):
                reporter.message(line)
        return Fitted(trained, target, unreadable[best], self.settings.training.seed + best)

    def judge(
        self, trained: Trained, training: Sequence[SlideRef], validation: Sequence[SlideRef]
    ) -> list[str]:
        """Return lines about problems of a training, and about the gain from attention."""
        classes = [label for _, label in dict.fromkeys((ref.case, str(ref.label)) for ref in training)]
        lines = diagnose(
            trained.rows,
            self.settings,
            classes=classes if task_named(self.settings.model.task).has_classes else [],
            scale=1.0 if trained.trust is None else trained.trust.scale,
        )
        if self.settings.training.calibrate_scores and not trained.calibrated:
            lines.append(
                "scores are not calibrated, which takes at least ten validation slides with every class "
                "among them; probabilities may be far too certain"
            )
        if trained.trust is None:
            return lines
        if not any("attention" in phase.learns for phase in phases_of(self.settings)):
            return [*lines, "attention was not trained; tiles are drawn uniformly"]
        return lines + compare(
            trained.by_attention,
            trained.by_uniform,
            slides=len(validation),
            tiles=self.settings.sampling.tiles,
            scale=trained.trust.scale,
            foretells=trained.trust.foretells,
            cases=trained.trust.cases,
        )

    def _folder(self, restart: int) -> Path:
        return self.out / "restarts" / str(restart) if restart else self.out

    def _fit_once(
        self,
        restart: int,
        training: Sequence[SlideRef],
        validation: Sequence[SlideRef],
        target: Target,
        processes: Processes | None,
        unreadable: dict[str, str],
    ) -> Trained:
        from wsi_ats.training.fit import fit

        learning, folder = self.settings.training, self._folder(restart)
        settings = replace(self.settings, training=replace(learning, seed=learning.seed + restart))
        first = processes is None or processes.first
        reporter = self.execution.reporter if first else Silent()
        title = f"train, run {restart}" if restart else "train"
        with (
            self.reading([*training, *validation]) as reader,
            reporter.progress(title, sum(phase.epochs for phase in phases_of(settings))) as advance,
            writing_events(folder, wanted=self.tensorboard and first) as write_events,
        ):

            def on_epoch(metrics: Mapping[str, float | str | None]) -> None:
                known = [(name, value) for name, value in metrics.items() if value is not None]
                advance(
                    ", ".join(f"{name} {v if isinstance(v, str) else format(v, '.4g')}" for name, v in known)
                )
                write_events()

            def on_bad(slide_id: str, error: str) -> None:
                unreadable[slide_id] = error
                reporter.message(f"training goes on without {slide_id}: {error}")

            return fit(
                self.examples(training, target),
                self.examples(validation, target),
                settings,
                target=target,
                folder=folder,
                device=device(),
                on_epoch=on_epoch,
                reader=reader,
                max_bad=self.max_bad,
                on_bad=on_bad,
                processes=processes,
                features=self.feature_cache or self.out / "features",
                every_epoch=self.every_epoch,
            )

    @contextmanager
    def reading(self, refs: Sequence[SlideRef]) -> Iterator[Reader]:
        """Open the reader of the tiles of some slides, or of their features if they name them."""
        how = self.execution
        with ExitStack() as stack:
            reader = stack.enter_context(open_reader(self.readers, how.scheduler, how.workers, how.wait))
            named = [ref for ref in refs if ref.features]
            if named:
                from wsi_ats.models.stored import StoredFeatures

                task = PrepareTask.of(self.prepared or self.out, self.settings)
                bags = {ref.id: load_matched(task.matched(ref.id), _stored(ref, task)) for ref in named}
                reader = stack.enter_context(StoredFeatures(reader, bags, check_readers(self.readers) or 1))
            yield reader

    def examples(self, refs: Sequence[SlideRef], target: Target) -> list[Example]:
        """Load the overviews of prepared slides, with their labels as numbers."""
        from wsi_ats.models.batches import Example

        task, examples = PrepareTask.of(self.prepared or self.out, self.settings), []
        for ref in refs:
            overview = load_overview(task.prepared(ref.id))
            examples.append(Example(ref, overview, target.encode(str(ref.label))))
        return examples


def _stored(ref: SlideRef, task: PrepareTask) -> SlideRef:
    """Return a slide that names the copy of its features, if there is one."""
    copied = task.copied(ref.id)
    return replace(ref, features=(str(copied),)) if copied.exists() else ref


def check_network(settings: Settings, target: Target) -> None:
    """Make the network once, to find errors before any other work.

    Raises
    ------
    ModelError
        When a name is unknown, or weights are missing, do not fit or cannot be downloaded.
    """
    from wsi_ats.models.kinds import model_for

    model_for(settings, target)


def device() -> torch.device:
    """Return the GPU of this process if there is one, else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if together() else torch.device("cuda")
