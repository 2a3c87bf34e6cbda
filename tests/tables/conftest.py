"""A folder of slides."""

from __future__ import annotations

import pytest


@pytest.fixture
def folder(tmp_path):
    """Files a.svs, below/b.ndpi, and things that are no slides."""
    (tmp_path / "below").mkdir()
    for name in ("a.svs", "below/b.ndpi", "notes.txt", "._a.svs", ".hidden.tif", "a.jpg"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path
