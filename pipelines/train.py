"""Train a model from slides and their labels.

Slides are prepared on the cluster. The training itself runs in the calling process, which owns the GPU, so
that Ctrl-C, progress and checkpoints stay simple. Several threads read the tiles of a step: reading releases
Python's lock and needs no processes.

Several processes started by ``torchrun`` train one model together. The first locks the output folder,
prepares, writes and reports; the others wait for it to send them the slides.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import prepare
from pipelines._carry_out import Results, complete, report_left_out
from pipelines._features import check_source, report_matched
from pipelines._fitting import Fitted, Fitting, check_network, device
from pipelines._readers import check_readers
from pipelines._records import digest_of_slides, pending, settled
from pipelines._runs import (
    Execution,
    Identity,
    Run,
    Summary,
    check_together,
    count,
    open_run,
    rooted,
    together,
)
from pipelines._tensorboard import FOLDER as EVENTS
from pipelines._tensorboard import check_tensorboard
from wsi_ats.errors import ArtifactError, ManifestError, SettingsError
from wsi_ats.files import atomic
from wsi_ats.results.records import Status
from wsi_ats.settings import Fixes, Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.files import read_csv, read_parquet, write_csv
from wsi_ats.tables.labels import check_labels, unlabelled
from wsi_ats.tasks.registry import task_named
from wsi_ats.tasks.targets import Target
from wsi_ats.tasks.trainable import check_trainable

if TYPE_CHECKING:  # torch takes seconds to import
    from wsi_ats.training.processes import Processes

# Files that a finished run must have, besides the model.
_WRITTEN = ("config.toml", "splits.csv", "metrics.csv", "slides.parquet", "slides.csv")

_OWN = (
    *("config.toml", "splits.csv", "metrics.csv", "checkpoints", "features", "restarts", EVENTS),
    *("model.safetensors", "model.json"),
)


def train(
    refs: Sequence[SlideRef],
    out: str | Path,
    *,
    settings: Settings | None = None,
    max_bad: int | None = None,
    execution: Execution | None = None,
    readers: str = "threads",
    tensorboard: bool = False,
    restarts: int = 1,
    retries: int = 1,
    feature_cache: str | Path | None = None,
    prepared: prepare.Prepared | None = None,
) -> Summary:
    """Train a model.

    Slides without a label are left out, and so are slides that cannot be read or have no tissue. Slides that
    cannot be read make the exit code 1, because the model has seen fewer slides than requested.

    Parameters
    ----------
    refs
        Slides with labels; splits given by the manifest are kept. Slides that name features are learned from
        these, with settings of a model that takes features; see
        :func:`pipelines._features.starting_settings`.
    out
        Folder for the model and the records of its training. A stopped run continues from its last
        checkpoint.
    settings
        The settings; ``training.seed`` decides weights, splits and draws.
    max_bad
        Maximum number of slides that may become unreadable during training, which continues without them and
        counts them as failed. No limit by default.
    execution
        Where and how slides are prepared.
    readers
        The readers of tiles: ``threads``, ``threads:N``, or ``dask`` for the workers of
        ``execution.scheduler``, which send tiles as JPEG.
    tensorboard
        Write the metrics of each epoch for TensorBoard as well.
    restarts
        Number of trainings, each with other weights and draws; the model with the least validation loss is
        kept, among those whose attention found where to look. Models of later runs are in ``restarts/``.
    retries
        Maximum number of further trainings while attention finds nothing in the thumbnails.
    feature_cache
        Folder for the features of a frozen backbone; by default ``features/`` in the output folder. All
        restarts share it, and so may runs of the same settings, whatever their seeds and splits.
    prepared
        The slides, if they are prepared elsewhere, such as for all folds of a cross-validation; by default
        they are prepared in the output folder.

    Returns
    -------
    Summary

    Raises
    ------
    ManifestError
        When a label has the wrong type, or there is too little to learn from, such as a single class.
    SettingsError, ModelError, ArtifactError
        When settings do not work, the network is not available, or the output folder cannot be used.

    Examples
    --------
    >>> from wsi_ats.tables.manifest import read_manifest
    >>> train(read_manifest("slides", labels="labels.csv"), "run").exit_code  # doctest: +SKIP
    0
    """
    fitting = Fitting(
        rooted(out),
        settings or Settings(),
        execution or Execution(),
        readers,
        max_bad,
        tensorboard,
        restarts,
        retries,
        None if feature_cache is None else rooted(feature_cache),
        None if prepared is None else prepared.out,
    )
    known = None if prepared is None else prepared.results
    check_together()
    if not together():
        return _train(refs, fitting, _Others(None), known)
    from wsi_ats.training.processes import started_by_torchrun

    with started_by_torchrun(dict(os.environ), device()) as processes:
        others = _Others(processes)
        if not processes.first:
            told = others.ask()
            if told is not None:
                fitting.fit(*told, processes)
            return Summary("train", fitting.out, {})
        try:
            return _train(refs, fitting, others, known)
        finally:
            others.tell(None)  # if there was nothing to train


class _Others:
    """The other processes of a training, which wait for the first; there are none if it is alone."""

    def __init__(self, processes: Processes | None) -> None:
        self.processes = processes
        self._told = processes is None

    def tell(self, what: tuple[Sequence[SlideRef], Target] | None) -> None:
        """Send slides and target to the others, or ``None`` to end them; only the first call counts."""
        if not self._told and self.processes is not None:
            self._told = True
            self.processes.gather(what)

    def ask(self) -> tuple[Sequence[SlideRef], Target] | None:
        """Wait for the first process."""
        waiting: tuple[Sequence[SlideRef], Target] | None = None
        return None if self.processes is None else self.processes.gather(waiting)[0]


def _train(refs: Sequence[SlideRef], fitting: Fitting, others: _Others, prepared: Results | None) -> Summary:
    out, settings, execution = fitting.out, fitting.settings, fitting.execution
    _check(refs, fitting, others)
    differences = _differences(fitting)
    without = {ref.id for ref in unlabelled(refs)}
    refs = settled([ref for ref in refs if ref.id not in without], settings)
    target = check_labels(refs, settings.model.task)
    planned = fitting.plan(refs, target)[:2]  # errors are raised before the work
    _report_alike(target, execution)
    identity = Identity.of(
        "train",
        settings,
        Fixes.EVERYTHING,
        seed=settings.training.seed,
        slides=digest_of_slides(refs),
        **differences,
    )
    task = prepare.PrepareTask.of(out, settings)
    with open_run(out, identity, execution, results=(*_OWN, *task.results)) as run:
        if execution.dry_run:
            check_network(settings, target)
            left = (len(part) for part in pending(task, refs))
            return Summary.of_dry_run(
                "train", out, *left, notes=_notes(settings.model.task, *map(_labels, planned))
            )
        if _finished(run):
            earlier = (run.previous or {}).get("unreadable", {})
            summary = _finished_summary(out, settings.model.task, earlier)
            execution.reporter.message(f"{out} holds this model already; nothing to do{_advice(summary)}")
            return summary
        check_network(settings, target)
        run.begin()
        results = complete(task, refs, execution) if prepared is None else prepared.of(refs)
        if results.stopped:
            return _summary(out, results)
        task.write_tables(results.rows)
        report_matched(results.rows, execution.reporter)
        done = {row["slide_id"] for row in results.rows if row["status"] == Status.DONE}
        _report_empty(results, execution)
        usable = [ref for ref in refs if ref.id in done]
        if not usable:
            raise ManifestError(
                f"none of {len(refs)} slides can be learned from: {len(results.failed)} failed, the others "
                f"have no tissue; the first error is: {next(iter(results.failed.values()), 'none')}"
            )
        check_labels(usable, target.task)
        training, validation, _ = fitting.plan(usable, target)
        _write_splits(out, {"train": training, "val": validation}, execution)
        with atomic(out / "config.toml") as path:
            path.write_text(settings.to_toml(), encoding="utf-8")
        others.tell((usable, target))
        fitted = fitting.fit(usable, target, others.processes)
        digest = _save(fitted, out, settings)
        notes = {"unreadable": dict(fitted.unreadable), "trained_with_seed": fitted.seed}
        run.finish(count(results.rows), model=digest, **notes)
    summary = _summary(out, results, fitted.unreadable)
    return replace(summary, notes={**summary.notes, **_written_notes(out, target.task)})


def _check(refs: Sequence[SlideRef], fitting: Fitting, others: _Others) -> None:
    """Refuse settings that cannot work, and missing packages, before any work."""
    check_source(refs, fitting.settings)
    if fitting.readers == "dask" and any(ref.features for ref in refs):
        raise SettingsError(
            "--readers dask reads tiles, but --features takes their place; leave --readers out"
        )
    check_trainable(fitting.settings, processes=1 if others.processes is None else others.processes.count)
    if fitting.tensorboard:
        check_tensorboard()


def _differences(fitting: Fitting) -> dict[str, str]:
    """Return the options that change the result: JPEG loses detail; the number of readers has no effect."""
    differences = {"tiles": "jpeg"} if check_readers(fitting.readers) is None else {}
    return differences | ({"restarts": str(fitting.restarts)} if fitting.restarts > 1 else {})


def _save(fitted: Fitted, out: Path, settings: Settings) -> str:
    """Save the model, and return its digest."""
    from wsi_ats.models.checkpoints import save_model

    trust = fitted.trained.trust
    attention = asdict(trust) if trust else {}
    return save_model(out, fitted.trained.model, settings, fitted.target, attention=attention)


def _summary(out: Path, results: Results, unreadable: Mapping[str, str] | None = None) -> Summary:
    """Count slides as failed if they could not be prepared, or not be read later."""
    unreadable = unreadable or {}
    notes = {"unreadable_in_training": len(unreadable)} if unreadable else {}
    failed = {**results.failed, **unreadable}
    counts = count(results.rows)
    counts[Status.DONE] -= len(unreadable)
    counts[Status.FAILED] += len(unreadable)
    return Summary("train", out, counts, failed, results.reused, notes=notes)


def _notes(task: str, training: Sequence[str], validation: Sequence[str]) -> dict[str, Any]:
    """Summarise the labels of the slides in each split."""
    notes = task_named(task).notes([*training, *validation])
    return {**notes, "training_slides": len(training), "validation_slides": len(validation)}


def _labels(refs: Sequence[SlideRef]) -> list[str]:
    return [str(ref.label) for ref in refs]


def _written_notes(out: Path, task: str) -> dict[str, Any]:
    table = read_csv(out / "splits.csv")
    rows = list(zip(table["split"], table["label"], strict=True))
    return _notes(task, *([label for split, label in rows if split == name] for name in ("train", "val")))


def _report_alike(target: Target, execution: Execution) -> None:
    for plain, number in Counter(map(_plain, target.names)).items():
        if number > 1:
            names = " and ".join(repr(name) for name in target.names if _plain(name) == plain)
            execution.reporter.message(
                f"warning: {names} count as different labels; if they mean the same, correct the table"
            )


def _plain(name: str) -> str:
    """Return a form that is equal for labels that differ only in spelling: Tumor and tumor, 1 and 1.0."""
    text = " ".join(name.casefold().split())
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


def _finished(run: Run) -> bool:
    """Return whether all results of a run exist, and the model is the one that it wrote."""
    if run.previous is None or run.previous.get("end") is None:
        return False
    if not all((run.out / name).exists() for name in _WRITTEN):
        return False
    from wsi_ats.models.checkpoints import load_model

    try:
        return load_model(run.out, encoder=False).digest == run.previous.get("model")
    except ArtifactError:
        return False  # missing or damaged: it is written again from the last checkpoint


def _advice(summary: Summary) -> str:
    if not summary.failed:
        return ""
    return f"; {len(summary.failed)} slides failed and are not part of it; try them again with --overwrite"


def _finished_summary(out: Path, task: str, unreadable: Mapping[str, str]) -> Summary:
    columns, _ = read_parquet(out / "slides.parquet")
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    failed = {row["slide_id"]: row["error"] for row in rows if row["status"] == Status.FAILED}
    summary = _summary(out, Results(rows, failed, len(rows), stopped=False), unreadable)
    return replace(summary, notes={**summary.notes, **_written_notes(out, task)})


def _report_empty(results: Results, execution: Execution) -> None:
    empty = [row["slide_id"] for row in results.rows if row["status"] == Status.NO_TISSUE]
    if empty:
        execution.reporter.message(f"left out, no tissue: {', '.join(empty)}")
    report_left_out(results.rows, execution)


def _write_splits(out: Path, splits: Mapping[str, Sequence[SlideRef]], execution: Execution) -> None:
    """Write ``splits.csv``; if the splits have changed, delete checkpoints and start from the beginning."""
    members = sorted(
        ((ref, name) for name, part in splits.items() for ref in part), key=lambda each: each[0].id
    )
    columns = {
        "slide_id": [ref.id for ref, _ in members],
        "case_id": [ref.case for ref, _ in members],
        "label": [str(ref.label) for ref, _ in members],
        "split": [name for _, name in members],
    }
    path = out / "splits.csv"
    stale = [out / "checkpoints", out / "restarts"]
    if path.exists() and read_csv(path) != columns and any(folder.exists() for folder in stale):
        execution.reporter.message("the usable slides have changed; training starts from the beginning")
        for folder in stale:
            shutil.rmtree(folder, ignore_errors=True)
        (out / "metrics.csv").unlink(missing_ok=True)
    with atomic(path) as temporary:
        write_csv(temporary, columns)
