"""Folders of images become collections of slides, pixel for pixel."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmarks._images import collect, write_pyramid
from wsi_ats.errors import ManifestError
from wsi_ats.slides import SlideRef, open_slide

NAMES = r"(?P<label>\w+?)_(?P<case>c\d)_"


def pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def save(path, *, seed=0, height=40, width=70):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(height, width, seed)).save(path)


@pytest.mark.parametrize(
    ("height", "width", "levels"), [(600, 1100, 4), (257, 300, 2), (64, 65, 1), (1, 600, 1)]
)
def test_an_image_is_a_pyramid_without_loss_and_knows_its_resolution(tmp_path, height, width, levels):
    image = pixels(height, width)
    write_pyramid(tmp_path / "a.tif", Image.fromarray(image), 0.75)
    with open_slide(SlideRef.from_path(tmp_path / "a.tif")) as slide:
        assert np.array_equal(slide.read_regions(0, np.array([[0, 0]]), width, height)[0], image)
        assert len(slide.levels) == levels
        assert slide.mpp.value == pytest.approx(0.75, rel=1e-6)


def test_a_lower_level_is_the_mean_of_four_pixels(tmp_path):
    image = pixels(512, 512)
    write_pyramid(tmp_path / "a.tif", Image.fromarray(image), 0.5)
    with open_slide(SlideRef.from_path(tmp_path / "a.tif")) as slide:
        half = slide.read_regions(1, np.array([[0, 0]]), 256, 256)[0]
    assert np.abs(half - image.reshape(256, 2, 256, 2, 3).mean((1, 3))).max() <= 1


@pytest.mark.parametrize("ending", ["jpg", "PNG", "tiff"])
def test_images_are_found_by_their_names(tmp_path, ending):
    save(tmp_path / "images" / "deep" / f"tumour_c1_x.{ending}")
    save(tmp_path / "images" / f"other_c2_y.{ending}")
    save(tmp_path / "images" / f"unrelated.{ending}")
    (tmp_path / "images" / "tumour_c1_notes.txt").write_text("")
    refs = collect(tmp_path / "images", tmp_path / "work", labels=None, names=NAMES, mpp=1.5)
    assert [(ref.id, ref.case, ref.label) for ref in refs] == [
        ("tumour_c1_x", "c1", "tumour"),
        ("other_c2_y", "c2", "other"),
    ]
    for ref in refs:
        with open_slide(ref) as slide:
            assert slide.mpp.value == pytest.approx(1.5)
    again = collect(tmp_path / "images", tmp_path / "work", labels=None, names=NAMES, mpp=1.5)
    assert again == refs


@pytest.mark.parametrize(
    "table",
    [
        "slide_id,case_id,label,mpp\na,p1,x,0.5\nb,p2,y,\n",
        "path,case_id,label,mpp\nsomewhere/a.png,p1,x,0.5\nb.png,p2,y,\n",
    ],
)
def test_a_table_names_images_with_or_without_ending_and_may_give_their_resolution(tmp_path, table):
    for name in "abc":
        save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "labels.csv").write_text(table)
    refs = collect(tmp_path / "images", tmp_path, labels=tmp_path / "labels.csv", names=NAMES, mpp=2.0)
    assert [(ref.id, ref.case, ref.label) for ref in refs] == [("a", "p1", "x"), ("b", "p2", "y")]
    found = []
    for ref in refs:
        with open_slide(ref) as slide:
            found.append(slide.mpp.value)
    assert found == pytest.approx([0.5, 2.0])


def test_slides_are_used_as_they_are(tmp_path, awkward_tiff):
    (tmp_path / "labels.csv").write_text(f"slide_id,label\n{awkward_tiff.stem},x\n")
    work, table = tmp_path / "work", tmp_path / "labels.csv"
    [ref] = collect(awkward_tiff.parent, work, labels=table, names=NAMES, mpp=3.0)
    assert ref.path == str(awkward_tiff)
    assert not work.exists()


def test_folders_without_labels_and_names_that_occur_twice_are_refused(tmp_path):
    save(tmp_path / "tumour_c1_x.png")
    with pytest.raises(ManifestError, match="file names match"):
        collect(tmp_path, tmp_path / "work", labels=None, names="(?P<label>z)(?P<case>z)", mpp=1.0)
    save(tmp_path / "deep" / "tumour_c1_x.jpg")
    with pytest.raises(ManifestError, match="two files are called 'tumour_c1_x'"):
        collect(tmp_path, tmp_path / "work", labels=None, names=NAMES, mpp=1.0)
    (tmp_path / "labels.csv").write_text("case_id,label\nc1,tumour\n")
    with pytest.raises(ManifestError, match="slide_id or path"):
        collect(tmp_path, tmp_path / "work", labels=tmp_path / "labels.csv", names=NAMES, mpp=1.0)
