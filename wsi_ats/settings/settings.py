"""All settings of a run as one frozen record, validated when created, read from and written as TOML."""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import tomli_w

from wsi_ats.encoders import find_encoder
from wsi_ats.errors import SettingsError
from wsi_ats.settings.fields import Fixes, require, rule_of
from wsi_ats.settings.model import ImageModel, ModelSettings, SamplingModel
from wsi_ats.settings.sections import (
    COARSEST_FOCUS,
    AugmentationSettings,
    SamplingSettings,
    ScoringSettings,
    ThumbnailSettings,
    TileSettings,
    TrainingSettings,
)
from wsi_ats.settings.tables import build, known_section, parse, with_kind

_Model = TypeVar("_Model", bound=ModelSettings)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a run.

    Parameters
    ----------
    tile, thumbnail, model, sampling, training, augmentation, scoring
        The sections; each field's docstring gives its reason. The record of ``model`` depends on the kind of
        model.

    Examples
    --------
    >>> settings = Settings().with_values(["sampling.tiles=16", "model.backbone='resnet50'"])
    >>> settings.sampling.tiles, settings.model.backbone
    (16, 'resnet50')
    """

    tile: TileSettings = field(default_factory=TileSettings)
    thumbnail: ThumbnailSettings = field(default_factory=ThumbnailSettings)
    model: ModelSettings = field(default_factory=SamplingModel)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    scoring: ScoringSettings = field(default_factory=ScoringSettings)

    def __post_init__(self) -> None:
        self._check_precision()
        self._check_artefacts()
        self._check_kind()

    def _check_precision(self) -> None:
        for name in ("training", "scoring"):
            require(
                getattr(self, name).precision != "bfloat16" or self.tile.size >= 64,
                f"{name}.precision is bfloat16 and tile.size is {self.tile.size}; some processors compute "
                "wrong results in bfloat16 for tiles under 64 pixels; use auto or float32",
            )

    def _check_artefacts(self) -> None:
        pixel = self.thumbnail_mpp
        enough = math.ceil(pixel / COARSEST_FOCUS * self.thumbnail.pixels_per_cell)
        require(
            "blur" not in self.thumbnail.excluded or pixel <= COARSEST_FOCUS,
            f"thumbnail.exclude names blur, but a pixel of the thumbnail is {pixel:g} micrometres wide, too "
            f"coarse to show it; set thumbnail.pixels_per_cell={enough}, or leave blur out",
        )

    def _check_kind(self) -> None:
        """Refuse settings of other sections that the kind of model does not use."""
        model, kind = self.model, self.model.kind
        require(
            model.attends or self.thumbnail.levels == 1,
            f"thumbnail.levels is {self.thumbnail.levels}, but a model of kind {kind} draws no regions; set "
            "thumbnail.levels=1",
        )
        require(
            model.draws or (self.sampling.draws == 1 and not self.sampling.anytime),
            f"a model of kind {kind} draws no tiles; leave out sampling.draws, sampling.tolerance and "
            "sampling.max_tiles",
        )
        require(
            model.reads_tiles or not self.thumbnail.exclude,
            f"thumbnail.exclude is {self.thumbnail.exclude}, but a model of kind {kind} sees the whole "
            "slide; leave it out",
        )
        if isinstance(model, ImageModel):
            model.pixels_per_cell(self.tile)

    @property
    def thumbnail_mpp(self) -> float:
        """Micrometres per pixel of the thumbnail, or of a region's thumbnail with two levels."""
        return self.tile.size * self.tile.mpp * self.tile.stride / self.thumbnail.pixels_per_cell

    def model_as(self, kind: type[_Model]) -> _Model:
        """Return the section ``model``, typed as the record of one kind.

        Raises
        ------
        SettingsError
            When the settings are of another kind.
        """
        if not isinstance(self.model, kind):
            raise SettingsError(
                f"model.kind is {self.model.kind}, but these settings are used for {kind.__name__}; change "
                "model.kind to match"
            )
        return self.model

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build settings from nested tables; settings that they do not name keep their defaults.

        Raises
        ------
        SettingsError
            For an unknown name, a wrong type or a value out of range.
        """
        return cls().with_tables(values)

    @classmethod
    def read(cls, path: str | Path, base: Self | None = None, changes: Iterable[str] = ()) -> Self:
        """Read a TOML file.

        Parameters
        ----------
        path
            The file.
        base
            Values of the settings that the file does not name; the defaults if not given.
        changes
            Single settings that are changed afterwards; see :meth:`with_values`.

        Raises
        ------
        SettingsError
            When the file is missing, is not valid TOML or holds a wrong setting.
        """
        try:
            tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"settings file {path} cannot be read: {error}") from error
        start = base or cls()
        try:
            settings = start._changed(tables)
        except SettingsError as error:
            raise SettingsError(f"settings file {path}: {error}") from error
        single = _tables_of(changes)
        given = {*tables.get("tile", ()), *single.get("tile", ())}
        return settings._changed(single)._with_tiles_of_encoder(start, given)

    def with_tables(self, tables: Mapping[str, Any]) -> Self:
        """Return a copy with the values from nested tables.

        If ``model.kind`` changes, the settings that both kinds share are kept. If ``model.backbone`` becomes
        a known encoder (:data:`wsi_ats.encoders.ENCODERS`), ``tile.size`` and ``tile.mpp`` become those of
        its training, unless the tables name them.

        Raises
        ------
        SettingsError
            For an unknown name, a wrong type or a value out of range; when the kind of model changes and a
            setting that only the former kind has was changed from its default.

        Examples
        --------
        >>> settings = Settings().with_tables({"model": {"backbone": "conch_v1"}})
        >>> settings.tile.size, settings.with_values(["model.backbone=uni", "tile.size=256"]).tile.size
        (448, 256)
        """
        return self._changed(tables)._with_tiles_of_encoder(self, tables.get("tile", ()))

    def _changed(self, tables: Mapping[str, Any]) -> Self:
        sections: dict[str, Any] = {}
        for name, table in tables.items():
            own = getattr(self, known_section(name, fields(self)))
            if not isinstance(table, Mapping):
                raise SettingsError(f"[{name}] must be a table, not {table!r}")
            kind, values = type(own), asdict(own)
            if name == "model":
                kind, values = with_kind(own, table)
            sections[name] = build(kind, values | dict(table), name)
        return type(self)(**{each.name: getattr(self, each.name) for each in fields(self)} | sections)

    def _with_tiles_of_encoder(self, before: Settings, given: Collection[str]) -> Self:
        name = self.model.backbone
        encoder = find_encoder(name)
        if encoder is None or name == before.model.backbone:
            return self
        trained: dict[str, Any] = {"size": encoder.tile} | ({"mpp": encoder.mpp[0]} if encoder.mpp else {})
        tile = {each: value for each, value in trained.items() if each not in given}
        return replace(self, tile=replace(self.tile, **tile))

    @property
    def unsuited_tiles(self) -> str:
        """How tiles differ from those that a known encoder was trained on; empty if they do not."""
        encoder = find_encoder(self.model.backbone)
        return encoder.unsuited(self.tile.size, self.tile.mpp) if encoder and self.model.reads_tiles else ""

    def with_values(self, assignments: Iterable[str]) -> Self:
        """Return a copy with single settings changed by ``section.name=value`` (TOML; quotes are optional).

        Raises
        ------
        SettingsError
            For a malformed assignment, or for the reasons given at :meth:`with_tables`.
        """
        return self.with_tables(_tables_of(assignments))

    def check_trainable(self) -> None:
        """Refuse settings that are valid for scoring but not for training.

        :func:`wsi_ats.tasks.trainable.check_trainable` also compares the settings with the task.

        Raises
        ------
        SettingsError
            For a biased design, phases in which nothing can be learned, or settings that the kind of model or
            a frozen backbone does not use.
        """
        learning = self.training
        if self.model.attends:
            self._check_phases()
        require(
            not self.model.encoder or self.model.takes_features,
            f"model.encoder is {self.model.encoder}, but model.backbone is {self.model.backbone}, which "
            "takes pixels; leave model.encoder out, or give features with --features",
        )
        require(
            not self.model.checkpoint or not self.model.takes_features,
            f"model.checkpoint is {self.model.checkpoint!r}, but model.backbone is {self.model.backbone}, "
            "which has no weights; leave the file out",
        )
        if not self.model.attends:
            require(learning.epochs > 0, "there are no epochs to train; set training.epochs")
            for name in ("joint_epochs", "supervision"):
                value = getattr(learning, name)
                require(
                    not value,
                    f"training.{name} is {value}, but a model of kind {self.model.kind} has no attention "
                    f"network to train; set training.{name}=0",
                )
        for name in ("colour", "stain"):
            strength = getattr(self.augmentation, name)
            for useless, why in (
                (not self.model.reads_tiles, f"a model of kind {self.model.kind} reads no tiles"),
                (self.model.takes_features, f"model.backbone is {self.model.backbone}, which replaces tiles"),
                (
                    learning.fine_tuning == "frozen",
                    "training.fine_tuning is frozen, and a frozen backbone encodes each tile once, without "
                    "augmentation; train it with training.fine_tuning=last-1 or full",
                ),
            ):
                require(
                    not strength or not useless,
                    f"augmentation.{name} is {strength}, but {why}; set augmentation.{name}=0.0",
                )
        require(
            self.sampling.design != "top",
            "sampling.design 'top' is biased: it never reads tiles that attention has not found yet, so it "
            "cannot be used for training; train with another design, such as systematic, and score with top",
        )

    def _check_phases(self) -> None:
        """Refuse phases of attention sampling in which attention could not learn."""
        learning, model = self.training, self.model_as(SamplingModel)
        require(
            not model.attention_checkpoint or model.attention != "small",
            f"model.attention_checkpoint is {model.attention_checkpoint!r}, but model.attention is small, "
            "which does not use it; set model.attention to the file's timm network, or leave the file out",
        )
        require(
            not model.attention_checkpoint or learning.attention_epochs + learning.joint_epochs > 0,
            f"model.attention_checkpoint is {model.attention_checkpoint!r}, but there are no epochs to train "
            "attention; set training.attention_epochs, or leave the file out",
        )
        require(
            learning.epochs + learning.attention_epochs + learning.joint_epochs > 0,
            "there are no epochs to train; set training.epochs or training.joint_epochs",
        )
        require(
            not learning.attention_epochs or learning.epochs > 0,
            f"training.epochs is 0 and training.attention_epochs is {learning.attention_epochs}: attention "
            "would learn from an untrained classifier; set training.epochs, or, for joint training alone, "
            "training.attention_epochs=0 and training.joint_epochs",
        )
        require(
            not learning.attention_epochs or self.sampling.design != "uniform",
            "sampling.design is uniform: attention would be trained but never used to draw tiles; set "
            "model.kind=uniform to do without attention, or choose another design, such as systematic",
        )

    def check_watched(self, slides: int) -> None:
        """Refuse ``training.patience`` without validation slides.

        Parameters
        ----------
        slides
            Number of validation slides.

        Raises
        ------
        SettingsError
            When ``training.patience`` is set and there are no validation slides.
        """
        require(
            slides > 0 or not self.training.patience,
            f"training.patience is {self.training.patience}, but there are no validation slides; set "
            "training.validation, give a split column with val, or set training.patience=0",
        )

    def to_toml(self) -> str:
        """Return all values as TOML."""
        return tomli_w.dumps(asdict(self))

    def tables(self, fixes: Fixes = Fixes.EVERYTHING) -> dict[str, dict[str, Any]]:
        """Return nested tables of the settings on which any of the results depends."""
        found: dict[str, dict[str, Any]] = {}
        for section in fields(self):
            own = getattr(self, section.name)
            chosen = {e.name: getattr(own, e.name) for e in fields(own) if rule_of(e).fixes & fixes}
            if chosen:
                found[section.name] = chosen
        return found

    def digest(self, fixes: Fixes = Fixes.EVERYTHING) -> str:
        """Return a fingerprint of the settings on which any of the results depends."""
        return hashlib.sha256(tomli_w.dumps(self.tables(fixes)).encode()).hexdigest()[:16]

    def check_scoring(self, trained: Settings) -> None:
        """Refuse changes that a trained model cannot be scored with, or that have no effect on scoring.

        Parameters
        ----------
        trained
            Settings that the model was trained with.

        Raises
        ------
        SettingsError
            When there is such a change; the message names the setting and both values.
        """
        require(
            self.model.kind == trained.model.kind,
            f"model.kind is {self.model.kind}, but the model was trained with {trained.model.kind}; leave it "
            "out or train again",
        )
        for section in fields(trained):
            own, built = getattr(self, section.name), getattr(trained, section.name)
            for each in fields(built):
                name, rule = f"{section.name}.{each.name}", rule_of(each)
                wanted, there = (getattr(values, each.name) for values in (own, built))
                used = not rule.needs or getattr(trained.model, rule.needs)
                if wanted == there or (used and rule.fixes.changeable_at_scoring):
                    continue
                if Fixes.NETWORK in rule.fixes:
                    raise SettingsError(
                        f"{name} is {_shown(wanted)}, but the model was trained with {_shown(there)}; leave "
                        "it out or train again"
                    )
                raise SettingsError(
                    f"{name} is {_shown(wanted)}, but it has no effect on scoring (the model was trained "
                    f"with {_shown(there)}); leave it out"
                )


def _tables_of(assignments: Iterable[str]) -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot:
            raise SettingsError(f"expected section.name=value, not {assignment!r}")
        tables.setdefault(section, {})[key] = parse(text.strip())
    return tables


def _shown(value: object) -> object:
    return "none" if value == "" else value
