"""A scored slide as HTML for a notebook: its numbers, and pictures if its tiles were kept."""

from __future__ import annotations

import base64
import tempfile
from html import escape
from importlib.util import find_spec
from pathlib import Path

from wsi_ats.results.records import Prediction
from wsi_ats.results.shown import ShownSlide


def html_of(prediction: Prediction, shown: ShownSlide | None) -> str:
    """Return a table of a prediction, and the pictures of its slide.

    Parameters
    ----------
    prediction
        The prediction.
    shown
        What the pictures show; ``None`` for none. They need matplotlib, and are left out with a note where it
        is missing.
    """
    facts: dict[str, str | None] = {
        "slide": prediction.slide_id,
        "status": prediction.status,
        "predicted": prediction.predicted,
    }
    facts |= {name: f"{value:.4g}" for name, value in prediction.scores.items()}
    if prediction.logit_se is not None:
        facts["sampling standard error"] = f"{prediction.logit_se:.2g} ({prediction.draws} draws)"
    facts["tiles read"] = f"{prediction.tiles_read:,} of {prediction.tiles_total:,}"
    if prediction.error:
        facts["note"] = prediction.error
    lines = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
        if value is not None
    )
    return f"<table>{lines}</table>{_pictures(shown)}"


def _pictures(shown: ShownSlide | None) -> str:
    if shown is None:
        return "<p>Score with <code>keep_tiles=True</code> for pictures.</p>"
    if find_spec("matplotlib") is None:
        return "<p>Pictures need matplotlib: <code>pip install 'wsi-ats[plots]'</code>.</p>"
    from wsi_ats.results.pictures import write_pictures_of

    with tempfile.TemporaryDirectory() as folder:
        drawn = [path.read_bytes() for path in write_pictures_of(Path(folder), shown, dpi=100)]
    return "".join(
        f"<img style='max-width:100%' alt='{escape(text)}' "
        f"src='data:image/png;base64,{base64.b64encode(each).decode()}'>"
        for each, text in zip(drawn, ("the slide", "its drawn tiles"), strict=False)
    )
