"""Tables and references of slides."""

from __future__ import annotations

from wsi_ats.slides.base import SlideRef


def table(folder, text, name="table.csv"):
    (folder / name).write_text(text)
    return folder / name


def ref(name, case=None, label=None):
    return SlideRef(name, f"{name}.svs", case or name, label)
