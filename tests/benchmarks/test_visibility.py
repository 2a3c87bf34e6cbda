"""The sweep over visibilities, small."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from benchmarks import visibility
from wsi_ats.errors import SettingsError

SMALL = ["--visibilities", "1", "--seeds", "1", "--arms", "uniform sampling", "--side", "1024"]
SMALL += ["--training", "4", "--held-out", "4", "--epochs", "1"]


pytestmark = pytest.mark.slow  # the sweep that all look at takes a quarter of a minute


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("visibility")
    visibility.main([*SMALL, "--out", str(out)])
    return out


def test_a_sweep_leaves_a_row_for_each_point(out):
    (row,) = visibility.read(out / "visibility.csv")
    assert (row["visibility"], row["seed"], row["arm"]) == (1, 1, "uniform sampling")
    assert 0 <= row["auc"] <= 1
    assert 0 <= row["drawn_in_lesion"] <= 1
    assert 0.5 < row["uniform_ceiling"] < 1
    assert row["regions_told_auc"] > 0.9


def test_a_sweep_leaves_a_picture(out):
    pixels = np.asarray(PIL.Image.open(out / "visibility.png").convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000


def test_what_is_measured_is_not_measured_again(out, capsys, monkeypatch):
    monkeypatch.setattr(visibility, "measure", None)
    before = (out / "visibility.csv").read_text()
    visibility.main([*SMALL, "--out", str(out)])
    assert (out / "visibility.csv").read_text() == before
    assert "uniform sampling" in capsys.readouterr().out


def test_scales_are_not_mixed(out):
    with pytest.raises(SettingsError, match="another scale"):
        visibility.main([*SMALL, "--epochs", "2", "--out", str(out)])
