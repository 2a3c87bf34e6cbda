"""The picture of the page in the documentation is what the page looks like."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from results.scored_folder import Made, write_folder

from viewer.browser import Tab
from viewer.pictured import TARGET, made_up
from viewer.serving import running
from wsi_ats.slides.base import SlideRef
from wsi_ats.testing.synthetic import write_collection
from wsi_ats.viewer.collection import Collection

KEPT = Path(__file__).parents[2] / "docs" / "images" / "view.png"


def test_the_documentation_shows_the_page_as_it_is(browser, tmp_path):
    """If the page looks different now, copy the picture that the message names to ``docs``."""
    slides = tmp_path / "slides"
    written = write_collection(slides, slides=6, width=4096, height=3072, tile_size=64, seed=3, variants=8)
    truth = {each.slide_id: slides / "truth" / f"{each.slide_id}.geojson" for each in written}
    made = [
        made_up(SlideRef(each.slide_id, str(each.path), f"case_{number}"), truth[each.slide_id], each.label)
        for number, each in enumerate(written)
    ]
    damaged = Made(SlideRef("slide_006", str(slides / "slide_006.tif"), "case_6"), error="it is empty")
    scores = write_folder(tmp_path / "scores", TARGET, [*made, damaged])
    shown = next(each for each in made if each.scores["prob_tumour"] > 0.5)
    with running(Collection(scores, truth)) as url:
        tab = Tab(browser, url)
        tab.show(f"#{shown.ref.id}/2250/1350/4.5")
        highest = shown.selection.cells[[shown.selection.attention.argmax()]]
        x, y, width, height = shown.selection.grid.boxes(highest)[0]
        tab.page.mouse.click(*tab.at(x + width / 2, y + height / 2))
        tab.page.wait_for_selector("#tile table")
        tab.settle()
        shot = Image.open(io.BytesIO(tab.page.screenshot())).convert("RGB")
        tab.page.close()
    new = tmp_path / KEPT.name
    shot.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(new, optimize=True)
    assert new.stat().st_size < 300_000
    with Image.open(KEPT) as kept:
        assert kept.size == shot.size, new
        unlike = np.abs(np.asarray(kept.convert("RGB"), int) - np.asarray(shot, int)).max(-1)
    assert (unlike > 64).mean() < 0.1, new  # another browser may have other letters
