"""The parts of a report, made from scores: facts of the run, table of slides, and a part on each slide."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from pipelines._reports import duration
from wsi_ats.errors import ArtifactError, SettingsError, SlideError, without_secrets
from wsi_ats.results.exports.pictures import write_pictures
from wsi_ats.results.report import Cell, Column, Picture, SlidePart
from wsi_ats.results.scores import ScoredSlide, Scores
from wsi_ats.results.shown import SHEETS
from wsi_ats.slides.resample import compressed
from wsi_ats.tasks.targets import Target

# Widths and qualities with which 200 slides stay below 20 MB; type on a contact sheet is still legible.
_SLIDE, _SHEET = (900, 50), (750, 25)
_TILES_SHOWN = 10

_DPI = 110  # pictures that are drawn for the report are a little wider than they are shown


def run_facts(scores: Scores) -> list[tuple[str, str]]:
    """Return names and values that say how the scores came about."""
    record = scores.record
    digests = record.get("digests") or {}
    versions = ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
    machine = record.get("machine") or {}
    facts = {
        "command": record.get("command"),
        "task": f"{scores.target.task}: {', '.join(scores.target.names)}",
        "model digest": digests.get("model"),
        "random seed": record.get("seed"),
        "started": record.get("start"),
        "ended": record.get("end"),
        "machine": f"{machine.get('platform', '?')}, {machine.get('cpus', '?')} cores",
        "versions": versions,
        "folder": scores.folder,
    }
    return [(name, without_secrets(str(value))) for name, value in facts.items() if value is not None]


def settings_facts(scores: Scores) -> list[tuple[str, str]]:
    """Return names and values of the settings."""
    tables: Mapping[str, Any] = scores.record.get("settings") or {}
    return [
        (f"{section}.{name}", str(value))
        for section, values in tables.items()
        for name, value in (values.items() if isinstance(values, dict) else [("", values)])
    ]


def counts(scores: Scores) -> list[tuple[str, str]]:
    """Return the large numbers at the top."""
    rows = [slide.row for slide in scores.slides]
    statuses = [row["status"] for row in rows]
    read, total = (sum(row[name] or 0 for row in rows) for name in ("tiles_read", "tiles_total"))
    known = [row["bytes_read"] for row in rows if row["bytes_read"] is not None]
    seconds = [row["seconds"] for row in rows if row["status"] == "done"]
    found = [
        ("slides scored", f"{statuses.count('done'):,}"),
        ("failed", f"{statuses.count('failed'):,}"),
        ("without tissue", f"{statuses.count('no_tissue'):,}"),
        ("tiles read", f"{read:,}"),
        ("tissue tiles", f"{total:,}"),
    ]
    if known:
        found.append(("MB read", f"{sum(known) / 1e6:,.1f}"))
    if seconds:
        found.append(("per slide (median)", duration(float(np.median(seconds)))))
    return found


def columns(target: Target, *, labelled: bool) -> list[Column]:
    """Return the columns of the table of slides."""
    return [
        *(Column(name) for name in ("Slide", "Case", "Status")),
        *([Column("Label")] if labelled else []),
        Column("Predicted"),
        *(Column(_title(name), numeric=True) for name in target.columns),
        *(Column(name, numeric=True) for name in ("Sampling error", "Tiles read", "Tissue tiles", "Seconds")),
    ]


def _title(column: str) -> str:
    """Return what people call a column of scores."""
    name = column.removeprefix("prob_")
    return column if name == column else f"P({name})"


def cells(slide: ScoredSlide, target: Target, labels: Mapping[str, str | None] | None) -> list[Cell]:
    """Return the row of a slide in the table."""
    row = slide.row
    numbers = (*((row[name], ".3f") for name in target.columns), (row["logit_se"], ".2g"))
    costs = ((row["tiles_read"], ",d"), (row["tiles_total"], ",d"), (row["seconds"], ".2f"))
    return [
        *(Cell(slide.id), Cell(str(row["case_id"])), Cell(row["status"].replace("_", " "))),
        *([] if labels is None else [Cell(labels.get(slide.id) or "")]),
        Cell(row["predicted"] or ""),
        *(
            Cell("") if value is None else Cell(f"{value:{form}}", value)
            for value, form in (*numbers, *costs)
        ),
    ]


def slide_parts(
    scores: Scores, labels: Mapping[str, str | None] | None, *, pictures: bool
) -> Iterator[SlidePart]:
    """Make the parts on slides one by one; each may read its slide."""
    for number, slide in enumerate(scores.slides, 1):
        drawn, reason = _pictures(slide) if pictures else ([], "")
        names, rows, caption = _tiles(slide)
        yield SlidePart(
            number=number,
            id=slide.id,
            status=slide.status.value,
            error=without_secrets(slide.row["error"] or ""),
            facts=_facts(slide, scores.target, labels),
            pictures=drawn,
            without_picture=reason,
            tile_columns=names,
            tiles=rows,
            tiles_caption=caption,
        )


def _facts(
    slide: ScoredSlide, target: Target, labels: Mapping[str, str | None] | None
) -> list[tuple[str, str]]:
    row = slide.row
    found: list[tuple[str, Any]] = [("case", row["case_id"])]
    if labels is not None:
        found.append(("label", labels.get(slide.id) or "not known"))
    if row["predicted"] is not None:
        found.append(("predicted", row["predicted"]))
    found += [(_title(name), f"{row[name]:.3f}") for name in target.columns if row[name] is not None]
    if row["logit_se"] is not None:
        found.append(("sampling standard error", f"{row['logit_se']:.2g}, from {row['draws']} draws"))
    if row["tiles_total"]:
        found.append(("tiles read", f"{row['tiles_read']:,} of {row['tiles_total']:,}"))
    if row["bytes_read"] is not None:
        found.append(("bytes read", f"{row['bytes_read'] / 1e6:.2f} MB"))
    found += [("time", duration(row["seconds"])), ("file", without_secrets(slide.path))]
    return [(name, str(value)) for name, value in found]


def _pictures(slide: ScoredSlide) -> tuple[list[Picture], str]:
    """Return the pictures that scoring kept, or draw them now; or the reason why there are none."""
    if slide.status == "failed":
        return [], ""
    pictures = slide.folder / "pictures"
    kept = [folder / f"{slide.id}.png" for folder in (pictures, pictures / SHEETS)]
    try:
        if kept[0].exists():
            return [_picture(slide, path) for path in kept if path.exists()], ""
        with tempfile.TemporaryDirectory() as folder:
            return [_picture(slide, path) for path in write_pictures(Path(folder), slide, dpi=_DPI)], ""
    except (ArtifactError, SettingsError, SlideError) as error:
        return [], f"There is no picture: {without_secrets(str(error))}."


def _picture(slide: ScoredSlide, path: Path) -> Picture:
    text = f"{slide.id}: its tissue, the tiles read with their order, and attention"
    if path.parent.name == SHEETS:
        text = f"{slide.id}: tiles at full resolution, those with the largest part in the score first"
    return Picture(data_url(path, *(_SHEET if path.parent.name == SHEETS else _SLIDE)), text)


def data_url(path: Path, widest: int = 1600, quality: int = 60) -> str:
    """Return a PNG as the URL of a WebP, at most so wide, in a quality from 0 to 100."""
    small = BytesIO()
    compressed(path, small, widest=widest, quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"


def _tiles(slide: ScoredSlide) -> tuple[Sequence[str], list[list[str]], str]:
    """Return the tiles with the largest part in the score as a table: columns, rows and caption."""
    if not slide.reads_tiles:
        return [], [], ""
    try:
        selection = slide.selection()
    except ArtifactError as error:
        return [], [], f"The drawn tiles cannot be read: {error}"
    tiles = selection.distinct()
    evidence = {name: values[tiles.row] for name, values in selection.evidence.items()}
    size = np.abs(np.nan_to_num(list(evidence.values()))).max(0) if evidence else tiles.weight
    best = np.argsort(-size, kind="stable")[:_TILES_SHOWN]
    boxes = selection.grid.boxes(tiles.cells)
    rows = [
        [
            *(f"{value:,}" for value in boxes[place, :2].tolist()),
            f"{selection.attention[tiles.row[place]] * slide.row['tiles_total']:.2f}",
            f"{tiles.weight[place]:.4f}",
            str(tiles.draws[place]),
            *("" if np.isnan(values[place]) else f"{values[place]:+.3f}" for values in evidence.values()),
        ]
        for place in best.tolist()
    ]
    names = ["x", "y", "Attention (times uniform)", "Weight", "Draws"]
    names += [f"Evidence: {name}" for name in evidence]
    caption = (
        f"The {len(best)} of {len(tiles.cells)} drawn tiles with the largest "
        f"{'evidence' if evidence else 'weight'}; x and y are level-0 pixels of the tile's corner"
    )
    return names, rows, caption
