"""Scores on disk: the output folder of `score`, read back for evaluation, export, reports and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from wsi_ats.bags.opening import open_bag
from wsi_ats.bags.record import Bag
from wsi_ats.errors import ArtifactError, ManifestError
from wsi_ats.files import digest_of, read_json
from wsi_ats.results.records import RUN_FILE, AttentionMap, Prediction, Selection, Status
from wsi_ats.results.selections import load_attention, read_selection
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.fingerprint import contents_digest
from wsi_ats.slides.storage import is_remote
from wsi_ats.tables.files import read_csv, read_parquet
from wsi_ats.tables.folders import find_in_store
from wsi_ats.tables.manifest import find_slides
from wsi_ats.tasks.targets import Target

_COLUMNS = frozenset(each.name for each in fields(Prediction)) - {"scores", "log_weight"}


@dataclass(frozen=True)
class ScoredSlide:
    """A slide in a folder of scores. Its files are read when they are asked for.

    Parameters
    ----------
    folder
        The folder of scores.
    row
        The slide's row of ``predictions.parquet``; see :class:`wsi_ats.results.records.Prediction`.
    target, settings
        Target of the model, and sections ``tile`` and ``thumbnail`` of the run's settings.
    place
        Where the slide is now, if it was moved after it was scored.
    """

    folder: Path
    row: Mapping[str, Any]
    target: Target
    settings: Mapping[str, Any]
    place: str | None = None

    @property
    def id(self) -> str:
        """Name of the slide."""
        return str(self.row["slide_id"])

    @property
    def path(self) -> str:
        """Path or URL where the slide is now."""
        return self.place or str(self.row["path"])

    @property
    def features_file(self) -> Path:
        """The file of features of drawn tiles, which is there if they were kept."""
        return self._file("features", "h5")

    @property
    def status(self) -> Status:
        """Outcome of scoring."""
        return Status(self.row["status"])

    @property
    def reads_tiles(self) -> bool:
        """Whether tiles were read, so that there is a selection; an image model reads none."""
        return self.status == Status.DONE and self.row["tiles_read"] > 0

    def selection(self) -> Selection:
        """Read the tiles that were drawn.

        Raises
        ------
        ArtifactError
            When the file is missing or damaged.
        """
        return read_selection(self._file("selections", "parquet"))

    def attention(self) -> AttentionMap | None:
        """Read the attention map; ``None`` for a model without attention, and without tissue.

        Raises
        ------
        ArtifactError
            When the file is damaged.
        """
        return load_attention(self._file("attention", "npz")) if self.has_attention else None

    @property
    def has_attention(self) -> bool:
        """Whether there is an attention map."""
        return self._file("attention", "npz").exists()

    def features(self) -> Bag | None:
        """Open the features of the tiles that were drawn, in the order of their cells.

        Returns
        -------
        Bag or None
            ``None`` if they were not kept.

        Raises
        ------
        ArtifactError
            When the selection is damaged.
        FeatureError
            When the file is damaged.
        """
        file = self.features_file
        return open_bag(file, mpp=self.selection().mpp) if file.exists() else None

    def ref(self) -> SlideRef:
        """Return the reference by which the slide was scored, at the place where it is now.

        Raises
        ------
        ArtifactError
            When the slide has changed since it was scored, or the scores do not record it.
        """
        record = read_json(self._file("records", "json"))
        try:
            recorded = record["slide"]
            digest, facts = recorded["digest"], {k: v for k, v in recorded.items() if k != "digest"}
            # JSON has no tuples, and older records no regions.
            sequences = {name: tuple(facts.get(name, ())) for name in ("features", "region_classes")}
            ref = SlideRef(**facts | sequences)
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{self.folder} does not record how {self.id} was opened ({error!r}); score it again with "
                "this version"
            ) from error
        ref = replace(ref, path=self.place or ref.path)
        if contents_digest(ref.path) != digest:
            what = "has changed since it was scored"
            if is_remote(ref.path):
                what = f"cannot be read now, or {what}"
            elif not Path(ref.path).exists():
                what = "is not there"
            raise ArtifactError(
                f"{self.id}: {ref.path} {what}; score it again, or name the folder where the slides are now "
                "with --slides FOLDER"
            )
        return ref

    def _file(self, folder: str, ending: str) -> Path:
        return self.folder / folder / f"{self.id}.{ending}"


@dataclass(frozen=True)
class Scores:
    """Finished scores of a collection.

    Parameters
    ----------
    folder, target
        The folder, and the target of the model.
    slides
        The slides, in the order of ``predictions.parquet``.
    cases
        Rows of ``cases.csv`` by case, if the stage wrote one.
    record
        Contents of ``run.json``: settings, versions, machine, times and counts.
    """

    folder: Path
    target: Target
    slides: Sequence[ScoredSlide]
    cases: Mapping[str, Mapping[str, Any]] | None
    record: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Fingerprint of the inputs of the scores, without the time: a longer folder of slides keeps it."""
        return digest_of(
            str(sorted((self.record.get("digests") or {}).items())), str(self.record.get("seed"))
        )

    @property
    def refs(self) -> list[SlideRef]:
        """The slides by name, path and case, without labels."""
        return [SlideRef(each.id, each.row["path"], each.row["case_id"]) for each in self.slides]

    @cached_property
    def by_id(self) -> Mapping[str, ScoredSlide]:
        """The slides by their names."""
        return {each.id: each for each in self.slides}

    def moved_to(self, source: str | Path) -> Self:
        """Return these scores, of slides that were moved or copied to another place.

        Parameters
        ----------
        source
            Folder or glob, here or in a store, or table of the slides; slides are found by their names. Those
            that are not there are looked for where they were.

        Raises
        ------
        ManifestError
            When the source cannot be read, or has none of these slides.
        """
        found = find_in_store(str(source)) if is_remote(str(source)) else find_slides(source)
        places = {ref.id: ref.path for ref in found}
        if not places.keys() & self.by_id.keys():
            raise ManifestError(
                f"{source} has {len(places)} slides, but none of those that were scored; slides are found by "
                "the names of their files"
            )
        return replace(self, slides=[replace(each, place=places.get(each.id)) for each in self.slides])


def read_scores(folder: Path) -> Scores:
    """Read the tables of finished scores.

    Raises
    ------
    ArtifactError
        When they are missing, not finished or of an older version.
    """
    record = read_json(folder / RUN_FILE)
    if record.get("stage") != "score" or record.get("end") is None:
        raise ArtifactError(
            f"{folder} holds no finished scores (stage {record.get('stage')}, end {record.get('end')}); give "
            "the output folder of `wsi-ats score`, or run that command again to finish it"
        )
    try:
        found = record["target"]
        target = Target(**found | {"names": tuple(found["names"])})
        settings = {name: record["settings"][name] for name in ("tile", "thumbnail")}
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder / RUN_FILE} does not record what was predicted, and how ({error!r}); score again with "
            "this version"
        ) from error
    table, _ = read_parquet(folder / "predictions.parquet")
    missing = {*_COLUMNS, *target.columns} - table.keys()
    if missing:
        raise ArtifactError(
            f"{folder / 'predictions.parquet'} has no column {', '.join(sorted(missing))}; score again with "
            "this version"
        )
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    slides = [ScoredSlide(folder, row, target, settings) for row in rows]
    return Scores(folder, target, slides, _read_cases(folder / "cases.csv", target), record)


def _read_cases(path: Path, target: Target) -> dict[str, dict[str, Any]] | None:
    if not path.exists():
        return None
    table = read_csv(path)
    missing = {"case_id", *target.columns} - table.keys()
    if missing:
        raise ArtifactError(f"{path} has no column {', '.join(sorted(missing))}; score again")
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    # Scores are empty where none of the case's slides has one.
    return {row["case_id"]: row for row in rows if all(row[name] for name in target.columns)}
