"""The columns of slide tables, and the slide names in them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath

from wsi_ats.errors import ManifestError
from wsi_ats.slides.base import SlideRef, composed
from wsi_ats.slides.storage import is_remote
from wsi_ats.tables.files import read_csv
from wsi_ats.tables.folders import SLIDE_ENDINGS
from wsi_ats.tasks.registry import task_named

NAMES = {
    "slide": ("slide_id",),
    "file": ("path", "filename", "wsi"),
    "case": ("case_id", "patient"),
    "label": ("label",),
    "split": ("split",),
    "mpp": ("mpp",),
    "downsample": ("downsample",),
}
"""Column names, in lower case, by meaning."""

SPLITS = ("train", "val", "test")

_MISSING = frozenset({"", "nan", "na", "n/a", "none", "null", "<na>"})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SlideTable:
    """A CSV file and its known columns.

    Parameters
    ----------
    path
        The file.
    rows
        All columns, by name.
    columns
        The known columns, by meaning: ``slide``, ``file``, ``case``, ``label``, ``split``, ``mpp``,
        ``downsample``.
    """

    path: Path
    rows: dict[str, list[str]]
    columns: dict[str, list[str]]

    @classmethod
    def read(cls, path: str | Path, *, empty: bool = False) -> SlideTable:
        """Read a table.

        Parameters
        ----------
        path
            The file.
        empty
            Whether it may have no rows.

        Raises
        ------
        ManifestError
            When it cannot be read, two columns have the same meaning, or there are no rows.
        """
        rows = read_csv(path)
        known: dict[str, list[str]] = {}
        for meaning, names in NAMES.items():
            found = [name for name in rows if name.lower() in names]
            if len(found) > 1:
                raise ManifestError(f"{path}: columns {found} have the same meaning; keep one")
            if found:
                known[meaning] = rows[found[0]]
        if not (empty or next(iter(rows.values()))):
            raise ManifestError(f"{path}: has no rows below its first line ({', '.join(rows)})")
        return cls(Path(path), rows, known)

    @property
    def found(self) -> str:
        """Names of all columns, for messages."""
        return ", ".join(self.rows)

    def labels(self, column: str | None, task: str) -> list[str | None] | None:
        """Return the label of each row; ``None`` if no column can be the label column.

        Parameters
        ----------
        column
            The label column, or several joined by commas; ``None`` for ``label``, or else the only column
            without another meaning.
        task
            Name of the task, which joins several columns.

        Raises
        ------
        ManifestError
            When a column is missing, or columns cannot be joined.
        """
        if column is not None:
            names = [column] if column in self.rows else [name.strip() for name in column.split(",")]
            for name in names:
                if name not in self.rows:
                    raise ManifestError(f"{self.path}: has no column {name!r}; found {self.found}")
            if len(names) == 1:
                return self._texts(names[0])
            try:
                return task_named(task).join({name: self._texts(name) for name in names})
            except ManifestError as error:
                raise ManifestError(f"{self.path}: {error}") from error
        if "label" in self.columns:
            return self._known_labels("label", self.columns["label"])
        # An unnamed column is the row number that pandas writes.
        known = {name for names in NAMES.values() for name in names} | {""}
        others = [name for name in self.rows if name.lower() not in known]
        return self._texts(others[0]) if len(others) == 1 else None

    def _texts(self, name: str) -> list[str | None]:
        return self._known_labels(name, self.rows[name])

    def _known_labels(self, name: str, texts: Sequence[str]) -> list[str | None]:
        labels = [_known(text) for text in texts]
        words = Counter(text for text, label in zip(texts, labels, strict=True) if text and label is None)
        if not any(labels):
            return labels
        for word, number in words.items():
            _log.warning(
                "%s: %d rows of column %r are %r, which means that the label is unknown; if this is a class, "
                "give it another name in the table, such as 'no finding'",
                self.path,
                number,
                name,
                word,
            )
        return labels

    def value(self, meaning: str, row: int) -> str | None:
        """Return a value by the meaning of its column; ``None`` if unknown."""
        return _known(self.columns[meaning][row]) if meaning in self.columns else None

    def case(self, row: int) -> str | None:
        """Return the case of a row, if known."""
        text = self.value("case", row)
        return text and composed(text)

    def split(self, row: int) -> str | None:
        """Return the split of a row, if known.

        Raises
        ------
        ManifestError
            When it is not ``train``, ``val`` or ``test``.
        """
        text = self.value("split", row)
        if text is not None and text.lower() not in SPLITS:
            raise ManifestError(
                f"{self.path}, row {row + 1}: split is {text!r}, expected one of {', '.join(SPLITS)}"
            )
        return text and text.lower()

    def mpp(self, row: int) -> float | None:
        """Return the micrometres per level-0 pixel of a row, if known.

        Raises
        ------
        ManifestError
            When it is not a number.
        """
        return self._number("mpp", row, "micrometres per pixel such as 0.25")

    def downsample(self, row: int) -> float:
        """Return the level-0 pixels per pixel of a row's file, which is 1 unless it is a thumbnail.

        Raises
        ------
        ManifestError
            When it is not a number.
        """
        return self._number("downsample", row, "level-0 pixels per pixel of the thumbnail such as 32") or 1.0

    def _number(self, meaning: str, row: int, expected: str) -> float | None:
        text = self.value(meaning, row)
        try:
            # In some countries, spreadsheets write a decimal comma.
            return None if text is None else float(text.replace(",", "."))
        except ValueError as error:
            raise ManifestError(
                f"{self.path}, row {row + 1}: {meaning} is {text!r}, expected {expected}"
            ) from error


def file_id(text: str) -> str:
    """Return the slide_id of a file that a table names."""
    if is_remote(text):
        return SlideRef.from_path(text).id
    return slide_id((PureWindowsPath if "\\" in text else PurePath)(text).name)


def slide_id(text: str) -> str:
    """Return the slide_id of a slide that a table names, with or without the file's ending."""
    if PurePath(text).suffix.lower() in SLIDE_ENDINGS:
        return SlideRef.from_path(text).id
    return composed(text)


def _known(text: str) -> str | None:
    return None if text.lower() in _MISSING else text
