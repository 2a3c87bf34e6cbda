"""Tables on disk, CSV and Parquet: the only import of pyarrow.

In memory, a table is a dictionary of columns of equal length, in order. Files are written in place; callers
use :func:`wsi_ats.files.atomic` if readers must never see an incomplete file.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from wsi_ats.errors import ArtifactError, ManifestError, SettingsError

Columns = Mapping[str, Sequence[Any]]

_METADATA_KEY = b"wsi_ats"


def read_csv(path: str | Path) -> dict[str, list[str]]:
    """Read a table written by a person; all values are text.

    The separator is the most frequent of comma, semicolon and tab in the first line, because spreadsheet
    programs follow the conventions of a country; or the one that the first line names, as in Excel's
    ``sep=;``. Spaces around values, empty lines and a byte order mark are dropped; cells missing at the end
    of a row are empty.

    Parameters
    ----------
    path
        A text file whose first line names the columns.

    Returns
    -------
    dict of list of str
        The columns in the file's order; empty lists if there is nothing below the first line.

    Raises
    ------
    ManifestError
        When the file is missing, empty or not a table.
    """
    try:
        # Otherwise the byte order mark that Excel writes would become part of the first name.
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{path}: is not UTF-8 text (byte {error.start}); save it as 'CSV UTF-8'"
        ) from error
    named = re.match(r'\s*"?sep=(.)"?\n', text)
    if named:
        text = text[named.end() :]
    first = next((line for line in text.split("\n") if line.strip()), "")
    separator = named[1] if named else max(",;\t", key=first.count)
    # Not splitlines(), which also ends lines at characters that are text in a table.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        before = 0 if named is None else named[0].count("\n")
        rows = [(before + reader.line_num, [value.strip() for value in row]) for row in reader]
    except csv.Error as error:
        raise ManifestError(f"{path}: is not a CSV table: {error}") from error
    rows = [(line, row) for line, row in rows if any(row)]
    if not rows:
        raise ManifestError(f"{path}: is empty; its first line must name the columns")
    names = rows[0][1]
    while not names[-1]:  # spreadsheet programs leave empty columns on the right
        names.pop()
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ManifestError(f"{path}: column names occur twice: {', '.join(map(repr, repeated))}")
    for line, row in rows[1:]:
        if any(row[len(names) :]):
            raise ManifestError(
                f"{path}, line {line}: {len(row)} values for {len(names)} columns "
                f"({', '.join(names)}); quote values that contain {separator!r}"
            )
    return {name: [row[i] if i < len(row) else "" for _, row in rows[1:]] for i, name in enumerate(names)}


def write_csv(path: str | Path, columns: Columns) -> None:
    """Write a table as CSV: UTF-8, commas, numbers at full precision, empty cells for ``None``.

    Parameters
    ----------
    path
        The file to write.
    columns
        Columns of equal length.

    Raises
    ------
    SettingsError
        When the columns differ in length.
    """
    _check_lengths(columns)
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_parquet(
    path: str | Path,
    columns: Columns,
    *,
    types: Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a table as Parquet.

    Parameters
    ----------
    path
        The file to write.
    columns
        Columns of equal length; ``None`` is a missing value.
    types
        Arrow's type name (``"int64"``, ``"double"``, ``"string"``) of columns that may be empty or hold only
        ``None``, because their type cannot be inferred from their values.
    metadata
        Values that can be stored as JSON; they become part of the file's schema.

    Raises
    ------
    SettingsError
        When the columns differ in length or a column mixes types.
    """
    _check_lengths(columns)
    types = types or {}
    arrays = {}
    for name, values in columns.items():
        kind = pa.type_for_alias(types[name]) if name in types else None
        try:
            arrays[name] = pa.array(values, type=kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise SettingsError(f"column {name!r} cannot be stored: {error}") from error
    table = pa.table(arrays)
    if metadata is not None:
        table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(metadata)})
    pyarrow.parquet.write_table(table, path)


def read_parquet(path: str | Path) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Read a table and its metadata.

    Parameters
    ----------
    path
        A file from :func:`write_parquet`, or from another program, without metadata.

    Returns
    -------
    columns : dict of list
    metadata : dict

    Raises
    ------
    ArtifactError
        When the file is missing or damaged.
    """
    if not Path(path).is_file():
        raise ArtifactError(f"{path}: no such file")
    try:
        # Read as one file, even if the folder's name looks like a partition ("case=7").
        table = pyarrow.parquet.ParquetFile(path).read()
        metadata = json.loads((table.schema.metadata or {}).get(_METADATA_KEY, b"{}"))
    except (pa.ArrowException, OSError, json.JSONDecodeError) as error:
        raise ArtifactError(
            f"{path}: is not a Parquet file or is damaged: {error}; delete it and make it again"
        ) from error
    return table.to_pydict(), metadata


def _check_lengths(columns: Columns) -> None:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise SettingsError(f"columns must have equal lengths, not {lengths}")
