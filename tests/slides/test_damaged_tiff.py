"""TIFF files that are cut short or changed: an error that names the file, or the true pixels."""

from __future__ import annotations

import contextlib
import random
from io import BytesIO

import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from slides.hostile_files import (
    APERIO,
    KINDS,
    SIZES,
    TILE,
    anywhere,
    damage,
    everything,
    image,
    in_a_process,
    jpeg,
    jpeg_2000,
    outcome,
    tiles_of,
    without_tiles,
)
from wsi_ats.errors import MppError, SlideError, SlideOpenError, SlideReadError
from wsi_ats.slides import SlideRef, open_slide
from wsi_ats.slides.openslide import OpenSlideSlide
from wsi_ats.slides.storage import LocalFile
from wsi_ats.slides.tiff import TiffSlide
from wsi_ats.slides.tiff_index import TiffIndex

# --- cut short ---


@pytest.mark.parametrize("kind", KINDS)
@damage
@given(share=anywhere)
@example(share=0.0)
def test_a_truncated_file_is_an_error_or_read_whole(codings, tmp_path, kind, share):
    path, truth = codings[kind]
    whole = path.read_bytes()
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole[: int(share * len(whole))])
    read = outcome(cut)
    assert read is None or all(map(np.array_equal, read, truth))
    assert read is None or len(read) == len(truth)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_last_bytes_are_noticed(codings, tmp_path, kind):
    path, truth = codings[kind]
    for missing in range(1, 24):
        cut = tmp_path / "cut.tif"
        cut.write_bytes(path.read_bytes()[:-missing])
        read = outcome(cut)
        assert read is None or all(map(np.array_equal, read, truth))


@pytest.mark.parametrize(
    "name", ["hamamatsu_test3-DAPI.ndpi", "ometiff_OS-1-detail_HE.ome.tif", "aperio_cmu-1-small-region.svs"]
)
def test_a_truncated_real_slide_is_an_error(shared_data, tmp_path, name):
    whole = (shared_data / "slides" / name).read_bytes()
    draw = random.Random(0)
    for size in [*(draw.randrange(len(whole)) for _ in range(12)), len(whole) - 1]:
        cut = tmp_path / name
        cut.write_bytes(whole[:size])
        with pytest.raises(SlideError, match=name):
            everything(cut)


# --- bits that changed ---


@pytest.mark.parametrize("kind", KINDS)
@damage
@given(share=anywhere, bit=st.integers(0, 7), also=st.sampled_from([None, 0, 255, 127]))
def test_a_changed_index_is_an_error_or_still_an_image(codings, tmp_path, kind, share, bit, also):
    """Of another size, even: an index has no checksum."""
    path, _ = codings[kind]
    content, places = bytearray(path.read_bytes()), without_tiles(path)
    place = int(places[int(share * len(places))])
    content[place] = content[place] ^ 1 << bit if also is None else also
    changed = tmp_path / "changed.tif"
    changed.write_bytes(content)
    with (
        contextlib.suppress(SlideError),
        open_slide(SlideRef("s", str(changed), "s", reader="direct")) as slide,
    ):
        for number, level in enumerate(slide.levels):
            read = slide.read_regions(number, np.array([[0, 0], [level.width - 9, level.height - 9]]), 9, 9)
            assert read.shape == (2, 9, 9, 3)
        with contextlib.suppress(MppError):
            assert 0.01 <= slide.mpp.value <= 100


@pytest.mark.parametrize("kind", KINDS)
@damage
@given(share=anywhere, bit=st.integers(0, 7))
def test_a_changed_tile_leaves_other_tiles_unchanged(codings, tmp_path, kind, share, bit):
    path, truth = codings[kind]
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        start, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
        first_height = file.pages[0].chunks[0]
    content[start + int(share * size)] ^= 1 << bit
    changed = tmp_path / "changed.tif"
    changed.write_bytes(content)
    with TiffSlide(str(changed)) as slide:
        below = SIZES[0][1] - first_height
        rest = slide.read_regions(0, np.array([[0, first_height]]), SIZES[0][0], below)[0]
        np.testing.assert_array_equal(rest, truth[0][first_height:])
        try:
            read = slide.read_regions(0, np.array([[0, 0]]), 96, first_height)
        except SlideReadError as error:
            assert "level 0, the tile of" in str(error)  # noqa: PT017  (there need be none)
        else:
            # Deflate has a checksum; the others have none.
            assert kind not in {"big, deflate", "strips"} or np.array_equal(
                read[0], truth[0][:first_height, :96]
            )


def test_half_of_the_changes_in_a_real_jpeg_tile_are_noticed(shared_data):
    """JPEG has no checksum: the rest gives other pixels, here as in any reader."""
    path = shared_data / "slides" / "aperio_cmu-1-small-region.svs"
    storage = LocalFile(str(path))
    index = TiffIndex.of(storage)
    full = index.images[0]
    data = storage.fetch(full.offsets[4, :1].astype(np.int64), full.sizes[4, :1].astype(np.int64))(0)
    draw, noticed, tries = random.Random(0), 0, 400
    for _ in range(tries):
        changed = bytearray(data)
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        try:
            full.coding.decode(bytes(changed), np.empty((240, 240, 3), np.uint8))
        except ValueError:
            noticed += 1
    storage.close()
    assert 0.3 < noticed / tries < 0.7


@pytest.mark.parametrize("kept", [0, 1, 5], ids="{} of 6 tiles".format)
def test_a_part_of_jpeg_2000_that_is_missing_is_noticed(handmade, pattern, tmp_path, kept):
    """The decoder would leave black."""
    stream = BytesIO()
    tile = tiles_of(pattern(*SIZES[0]))[0]
    Image.fromarray(tile).save(stream, "JPEG2000", no_jp2=True, tile_size=(32, 32))
    data = stream.getvalue()
    start = data.index(b"\xff\x90")
    at, parts = start, []
    while data[at : at + 2] == b"\xff\x90":
        parts.append(data[at : at + int.from_bytes(data[at + 6 : at + 10], "big")])
        at += len(parts[-1])
    assert len(parts) == 6
    content = {"size": TILE, "tile": TILE, "compression": 33005, "tags": APERIO}
    whole = handmade().write(tmp_path / "whole.tif", [content | {"tiles": [data]}])
    np.testing.assert_array_equal(everything(whole)[0], tile)
    cut = data[:start] + b"".join(parts[:kept]) + data[at:]
    damaged = handmade().write(tmp_path / "damaged.tif", [content | {"tiles": [cut]}])
    with pytest.raises(SlideReadError, match=f"{kept} of 6 tiles of a JPEG 2000"):
        everything(damaged)


@pytest.mark.parametrize(
    "damaged", [b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xdb\x10\x00\xff\xd9", b"\xff\xd8tables"]
)
def test_damaged_jpeg_tables_are_noticed_on_opening(handmade, pattern, tmp_path, damaged):
    tags = {347: (7, damaged + bytes(5))}
    one = image(pattern(*SIZES[0]), jpeg, compression=7, photometric=6, tags=tags)
    with pytest.raises(SlideOpenError, match="JPEG"):
        open_slide(handmade().write(tmp_path / "s.tif", [one]))


@pytest.mark.parametrize(("place", "value"), [(42, 15), (42, 0x87), (43, 2), (46, 2), (50, 2)])
def test_jpeg_2000_of_an_unsupported_pixel_format_is_refused(
    handmade, pattern, tmp_path, capfd, place, value
):
    """The decoder would take them for luma and chroma, and prints warnings."""
    stream = bytearray(jpeg_2000(tiles_of(pattern(*SIZES[0]))[0]))
    stream[place] = value
    content = {"size": TILE, "tile": TILE, "compression": 33005, "tags": APERIO, "tiles": [bytes(stream)]}
    with pytest.raises(SlideReadError, match="not of 8 bits, or has colours at a lower resolution"):
        everything(handmade().write(tmp_path / "s.tif", [content]))
    assert capfd.readouterr() == ("", "")


# --- OpenSlide, which reads the other files ---


def test_openslide_survives_changed_files(codings, tmp_path):
    """Alone, it would end the process for some: it is asked only where the index makes sense."""
    jobs = []
    draw = random.Random(0)
    for kind in ("none", "jpeg", "jpeg 2000"):
        path, _ = codings[kind]
        places = without_tiles(path)
        for number in range(25):
            content = bytearray(path.read_bytes())
            content[int(draw.choice(places))] ^= 1 << draw.randrange(8)
            if number % 5 == 0:
                content = content[: draw.randrange(len(content))]
            changed = tmp_path / f"{kind}{number}.tif"
            changed.write_bytes(content)
            jobs.append(("auto", changed))
    done = in_a_process(jobs)
    assert len(done) == len(jobs)
    assert {said.split(":")[0] for said, _ in done} <= {"read", "SlideOpenError", "SlideReadError"}


@settings(damage, derandomize=True)
@given(share=anywhere, bit=st.integers(0, 7))
@pytest.mark.parametrize("kind", ["none", "big, deflate", "jpeg"])
def test_changed_files_that_both_read_are_the_same_to_both(codings, tmp_path, kind, share, bit):
    path, _ = codings[kind]
    content, places = bytearray(path.read_bytes()), without_tiles(path)
    content[int(places[int(share * len(places))])] ^= 1 << bit
    changed = tmp_path / "changed.tif"
    changed.write_bytes(content)
    with contextlib.suppress(SlideError), contextlib.ExitStack() as stack:
        slide = stack.enter_context(open_slide(changed))
        other = stack.enter_context(OpenSlideSlide(str(changed)))
        corner = np.array([[0, 0]])
        for number, level in enumerate(other.levels):
            assert slide.levels[number] == level
            size = min(level.width, 1000), min(level.height, 1000)
            if level.downsample.is_integer():
                pixels = (each.read_regions(number, corner, *size) for each in (slide, other))
                np.testing.assert_array_equal(*pixels)
