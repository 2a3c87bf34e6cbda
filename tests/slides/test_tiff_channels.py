"""TIFF files of several channels, pages or pictures, and those that are left to OpenSlide."""

from __future__ import annotations

import contextlib

import imagecodecs
import numpy as np
import pytest
import tifffile

from slides.encoded_tiles import APERIO, SIZE, grey, image, jpeg, jpeg_2000, smooth
from wsi_ats.errors import SlideError, SlideOpenError
from wsi_ats.slides import SlideRef, choose_reader, open_slide
from wsi_ats.slides.openslide import OpenSlideSlide

OTHERS = {
    "several layers": {"tags": {32997: (4, [2])}},
    "signed": {"tags": {339: (3, [2] * 3)}},
    "differences without compression": {"tags": {317: (3, [2])}},
    "white is 0": {"encode": grey, "samples": 1, "photometric": 0},
    "differences in jpeg 2000": {
        "encode": jpeg_2000,
        "compression": 33005,
        "tags": {**APERIO, 317: (3, [2])},
    },
    "aperio's other jpeg 2000": {"encode": jpeg_2000, "compression": 33003, "tags": APERIO},
    "hamamatsu": {"tags": {65420: (4, [1])}},
    "trestle": {"tags": {305: (2, b"MedScan\0")}},
    "leica": {
        "tags": {
            270: (2, b"<scn xmlns='http://www.leica-microsystems.com/scn/2010/10/01'></scn>" + b" " * 30)
        }
    },
    "philips": {"tags": {305: (2, b"Philips\0"), 270: (2, b"<DataObject/>\0")}},
    "ventana": {"tags": {700: (1, b"<iScan></iScan>")}},
    "huron": {"tags": {271: (2, b"Huron\0"), 270: (2, b"Resolution=0.25 um\0")}},
    "argos": {"tags": {65000: (2, b"<Argos.Scan.Metadata></Argos.Scan.Metadata>\0")}},
}


@pytest.mark.parametrize("other", OTHERS)
def test_formats_with_special_rules_are_left_to_openslide(handmade, tmp_path, other):
    path = handmade().write(tmp_path / "s.tif", [image(**OTHERS[other]), image(size=(350, 220))])
    choice = choose_reader(path)
    assert choice.reader == "openslide"
    assert choice.reason
    with contextlib.suppress(SlideError), open_slide(path) as slide:  # some lack metadata for OpenSlide
        assert isinstance(slide, OpenSlideSlide)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("aperio", [False, True])
def test_turned_or_mirrored_images_are_refused(handmade, tmp_path, orientation, aperio):
    """Read tile by tile each tile would be turned in its place, and the picture be scrambled."""
    tags = {274: (3, [orientation])} | (APERIO if aperio else {})
    path = handmade().write(tmp_path / "s.tif", [image(tags=tags), image(size=(350, 220))])
    with pytest.raises(SlideOpenError, match=rf"orientation \(tag 274\) is {orientation}: .*upright"):
        open_slide(path)


@pytest.mark.parametrize(
    ("tag", "names"),
    [
        ("<channel>{}</channel>", r" \(DAPI, FITC, Cy3\)"),
        ("<x><Name>{}</Name></x>", r" \(DAPI,"),
        ("", ", but"),
    ],
)
def test_pages_of_one_size_are_channels_and_refused_by_name(handmade, tmp_path, tag, names):
    texts = [tag.format(each).encode() + b" " * 8 + b"\0" for each in ("DAPI", "FITC", "Cy3")]
    pages = [
        image(grey, samples=1, photometric=1, seed=seed, tags={270: (2, text)})
        for seed, text in enumerate(texts)
    ]
    path = handmade().write(tmp_path / "s.tif", pages)
    with pytest.raises(SlideOpenError, match=rf"3 channels, depths or times of the same place{names}"):
        open_slide(path)


@pytest.fixture
def channels(handmade, tmp_path):
    """A QPTIFF of two channels in two levels, with a thumbnail between them."""
    names = [f"<Name>{each}</Name>".encode() + b"\0" * 8 for each in ("DAPI", "Cy3")]

    def grey_page(seed, size=SIZE, **tags):
        tags = {int(key[1:]): value for key, value in tags.items()}
        return image(grey, samples=1, photometric=1, seed=seed, size=size, tags=tags)

    full = [grey_page(seed, _270=(2, name)) for seed, name in enumerate(names)]
    half = [grey_page(seed, (350, 220), _254=(4, [1])) for seed in (2, 3)]
    thumbnail = image(size=(70, 44), tags={254: (4, [1])})
    return handmade().write(tmp_path / "s.tif", [*full, thumbnail, *half])


@pytest.mark.parametrize("channel", ["Cy3", "cy3", "1"])
@pytest.mark.parametrize("reader", ["auto", "direct"])
def test_a_channel_is_read_at_all_its_levels(channels, channel, reader):
    with open_slide(SlideRef("s", str(channels), "s", channel=channel, reader=reader)) as slide:
        assert [(level.width, level.height) for level in slide.levels] == [SIZE, (350, 220)]
        with tifffile.TiffFile(channels) as file:
            for number, page in enumerate((1, 4)):
                level = slide.levels[number]
                found = slide.read_regions(number, np.array([[0, 0]]), level.width, level.height)[0]
                expected = file.pages[page].asarray()
                np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, 2))


def test_an_unknown_channel_is_refused_with_the_known_ones(channels, handmade, tmp_path):
    with pytest.raises(SlideOpenError, match=r"tile.channel is 'GFP', but its channels are 0 DAPI, 1 Cy3"):
        open_slide(SlideRef("s", str(channels), "s", channel="GFP"))
    with pytest.raises(SlideOpenError, match=r"give one by its name, or its number"):
        open_slide(channels)
    alone = handmade().write(tmp_path / "alone.tif", [image()])
    with pytest.raises(SlideOpenError, match="has only one image"):
        open_slide(SlideRef("s", str(alone), "s", channel="DAPI"))
    with pytest.raises(SlideOpenError, match="the reader is openslide: requested"):
        open_slide(SlideRef("s", str(alone), "s", channel="DAPI", reader="openslide"))


def test_channels_of_one_name_are_chosen_by_number(handmade, tmp_path):
    pages = [
        image(grey, samples=1, photometric=1, seed=seed, tags={270: (2, b"<Name>Opal 520</Name>\0")})
        for seed in (0, 1)
    ]
    path = str(handmade().write(tmp_path / "s.tif", pages))
    with pytest.raises(
        SlideOpenError, match=r"several channels are called 'opal 520': 0 Opal 520, 1 Opal 520"
    ):
        open_slide(SlideRef("s", path, "s", channel="opal 520"))
    with open_slide(SlideRef("s", path, "s", channel="1")) as slide:
        assert slide.levels


def test_a_reduced_version_is_not_a_channel(handmade, tmp_path):
    path = handmade().write(tmp_path / "s.tif", [image(), image(tags={254: (4, [1])}, size=(350, 220))])
    with open_slide(path) as slide:
        assert len(slide.levels) == 2


@pytest.mark.parametrize("name", ["label", "Macro", "Aperio x\nlabel 387x463", "overview of it"])
def test_a_label_image_is_not_a_slide(handmade, tmp_path, name):
    text = {270: (2, name.encode() + b"\0" * 8)}
    path = handmade().write(tmp_path / "s.tif", [image(tags=text)])
    with pytest.raises(SlideOpenError, match=r"only image is called '(?i:label|macro|overview)'"):
        open_slide(path)
    path = handmade().write(tmp_path / "both.tif", [image(tags=text), image(size=(350, 220))])
    with open_slide(path) as slide:
        assert slide.levels


@pytest.mark.parametrize("code", [34675, 347])  # colour profile, JPEG tables
@pytest.mark.parametrize(
    ("kind", "values"), [(4, [3_000_000_000]), (3, [8, 9]), (2, b"text\0"), (5, [1, 2])], ids=str
)
def test_tags_of_bytes_of_another_type_are_damage(handmade, tmp_path, code, kind, values):
    """As a number one would be taken for so many bytes of memory."""
    coded = image(jpeg(), compression=7, photometric=6, tags={code: (kind, values)})
    path = handmade().write(tmp_path / "s.tif", [coded])
    with pytest.raises(SlideOpenError, match=f"tag {code} has . values of type {kind}, expected bytes"):
        open_slide(path)


def test_an_empty_file_is_called_empty(tmp_path):
    (tmp_path / "s.svs").write_bytes(b"")
    with pytest.raises(SlideOpenError, match="it is an empty file"):
        open_slide(tmp_path / "s.svs")


def test_an_olympus_overview_is_not_a_slide(handmade, tmp_path):
    path = handmade().write(tmp_path / "s.vsi", [image()])
    with pytest.raises(SlideOpenError, match=r"an overview and the label.*convert it"):
        open_slide(path)


def test_dicom_with_a_tiff_preamble_is_not_tiff(handmade, tmp_path):
    path = handmade().write(tmp_path / "s.tif", [image(), image(size=(350, 220))])
    assert choose_reader(path).reader == "direct"
    content = bytearray(path.read_bytes())
    content[128:132] = b"DICM"
    (tmp_path / "s.dcm").write_bytes(content)
    assert choose_reader(tmp_path / "s.dcm").reason == "it is not a TIFF file"


def test_more_tiles_than_places_are_left_to_openslide(handmade, tmp_path):
    content = image()
    content["tiles"].append(content["tiles"][0])
    assert (
        "57 tiles for 7 x 8 places" in choose_reader(handmade().write(tmp_path / "s.tif", [content])).reason
    )


def test_other_compressions_are_left_to_openslide(handmade, tmp_path):
    def encode(tile):
        return imagecodecs.packbits_encode(tile.tobytes())

    path = handmade().write(tmp_path / "s.tif", [image(encode, compression=32773)])
    with open_slide(path) as slide:
        assert isinstance(slide, OpenSlideSlide)
        region = slide.read_regions(0, np.array([[50, 60]]), 99, 70)[0]
        np.testing.assert_array_equal(region, smooth(SIZE)[60:130, 50:149])
