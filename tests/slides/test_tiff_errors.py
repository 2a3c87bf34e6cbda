"""Errors of damaged TIFF files: the advice they give, and nothing else on the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading

import imagecodecs
import numpy as np
import pytest
import tifffile

from slides.hostile_files import REDUCED, RESOLUTION, SIZES, deflate, everything, image, outcome, strip
from wsi_ats.errors import SlideError, SlideOpenError, SlideReadError
from wsi_ats.slides import SlideRef, open_slide
from wsi_ats.slides.openslide import OpenSlideSlide
from wsi_ats.slides.tiff import TiffSlide

# --- permissions ---


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read everything")
def test_a_file_without_read_permission_is_an_error(codings, tmp_path):
    path = tmp_path / "s.tif"
    path.write_bytes(codings["none"][0].read_bytes())
    path.chmod(0)
    for reader in ("direct", "openslide", "auto"):
        with pytest.raises(SlideOpenError, match=r"s\.tif"):
            open_slide(SlideRef("s", str(path), "s", reader=reader))


# --- advice ---


@pytest.mark.parametrize("kind", ["big, deflate", "jpeg", "zstd"])
def test_the_error_suggests_an_incomplete_copy_where_likely(codings, tmp_path, kind):
    path, _ = codings[kind]
    with tifffile.TiffFile(path) as file:
        start, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    damaged = tmp_path / "damaged.tif"
    for content, asked in ((bytes(size), True), (b"\x55" * size, False)):
        whole = bytearray(path.read_bytes())
        whole[start : start + size] = content
        damaged.write_bytes(whole)
        with TiffSlide(str(damaged)) as slide, pytest.raises(SlideReadError) as caught:
            slide.read_regions(0, np.array([[0, 0]]), 9, 9)
        assert ("is the copy complete?" in str(caught.value)) == asked
        assert ("only zeros" in str(caught.value)) == asked
        assert ("have it written again" in str(caught.value)) != asked
        assert "--reader" not in str(caught.value)


def test_a_truncated_index_is_distinguished_from_an_invalid_one(codings, damaged_tag, tmp_path):
    cut = tmp_path / "cut.tif"
    cut.write_bytes(codings["none"][0].read_bytes()[:-9])
    with pytest.raises(SlideOpenError, match=r"is the copy complete\?"):
        open_slide(cut)
    with pytest.raises(SlideOpenError, match="have it written again"):
        open_slide(damaged_tag)


# --- files that change while they are open ---


def test_a_replaced_file_is_still_read_as_opened(codings, tmp_path):
    path, truth = tmp_path / "s.tif", codings["none"][1]
    path.write_bytes(codings["none"][0].read_bytes())
    with TiffSlide(str(path)) as slide:
        (tmp_path / "other").write_bytes(codings["zstd"][0].read_bytes())
        (tmp_path / "other").replace(path)
        np.testing.assert_array_equal(slide.read_regions(0, np.array([[0, 0]]), *SIZES[0])[0], truth[0])
        path.unlink()
        np.testing.assert_array_equal(slide.read_regions(0, np.array([[0, 0]]), *SIZES[0])[0], truth[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_file_that_shrinks_is_an_error_naming_the_missing_place(codings, tmp_path, threads):
    path = tmp_path / "s.tif"
    path.write_bytes(codings["none"][0].read_bytes())
    with TiffSlide(str(path), threads=threads) as slide:
        with path.open("r+b") as file:
            file.truncate(30_000)
        np.testing.assert_array_equal(
            slide.read_regions(0, np.array([[0, 0]]), 50, 50)[0], codings["none"][1][0][:50, :50]
        )
        with pytest.raises(SlideReadError, match=r"s\.tif.*level 0, the tile.*\(96, 0\).*beyond its end"):
            slide.read_regions(0, np.array([[100, 5]]), 20, 20)


# --- messages ---


def test_a_tag_that_cannot_be_read_is_an_error_and_not_left_out(damaged_tag):
    with pytest.raises(SlideOpenError, match=r"index is damaged.*1 of 12 tags of an image cannot be read"):
        open_slide(damaged_tag)


@pytest.fixture(params=["its level", "all", "switched off"])
def silenced(request):
    """Silence tifffile's log, as a program may: damage must be found without it."""
    logger = logging.getLogger("tifffile")
    if request.param == "all":
        logging.disable(logging.CRITICAL)
    elif request.param == "its level":
        logger.setLevel(logging.CRITICAL)
    else:
        logger.disabled = True
    yield
    logging.disable(logging.NOTSET)
    logger.setLevel(logging.NOTSET)
    logger.disabled = False


@pytest.mark.usefixtures("silenced")
def test_damage_is_found_where_a_program_has_silenced_the_log(damaged_tag, codings, tmp_path):
    with pytest.raises(SlideOpenError, match="1 of 12 tags of an image cannot be read"):
        open_slide(damaged_tag)
    for path, truth in codings.values():
        whole = path.read_bytes()
        for share in np.linspace(0, 1, 40, endpoint=False):
            cut = tmp_path / "cut.tif"
            cut.write_bytes(whole[: int(share * len(whole))])
            read = outcome(cut)
            assert read is None or (len(read) == len(truth) and all(map(np.array_equal, read, truth))), (
                f"{path.name}, {share:.0%}"
            )


@pytest.mark.parametrize(
    ("tag", "value"),
    [(258, (3, [9, 8, 8])), (284, (3, [3])), (277, (3, [4]))],
    ids=["bits", "planes", "samples"],
)
@pytest.mark.parametrize("kind", ["zstd", "deflate"])
def test_a_level_that_is_damaged_is_not_left_out(handmade, pattern, tmp_path, kind, tag, value):
    """OpenSlide would leave it out, and read all of level 0 for a thumbnail: 10 seconds at 10,000 pixels."""
    encode, number = {
        "zstd": (lambda tile: imagecodecs.zstd_encode(tile.tobytes()), 50000),
        "deflate": (deflate, 8),
    }[kind]
    full, half = (pattern(*size, seed) for seed, size in enumerate(SIZES))
    images = [
        image(full, encode, compression=number, tags=RESOLUTION),
        image(half, encode, compression=number, tags={**REDUCED, tag: value}),
    ]
    path = handmade().write(tmp_path / "s.tif", images)
    with pytest.raises(
        SlideOpenError, match="its level of 100 x 65 pixels is stored in a different form from level 0: "
    ):
        open_slide(path)


def test_a_level_only_openslide_reads_is_not_damage(handmade, pattern, tmp_path):
    full, half = (pattern(*size, seed) for seed, size in enumerate(SIZES))
    packed = image(
        half, lambda tile: imagecodecs.packbits_encode(tile.tobytes()), compression=32773, tags=REDUCED
    )
    path = handmade().write(tmp_path / "s.tif", [image(full, tags=RESOLUTION), packed])
    with open_slide(path) as slide:
        assert isinstance(slide, OpenSlideSlide)
        read = [slide.read_regions(n, np.array([[0, 0]]), *size)[0] for n, size in enumerate(SIZES)]
    for found, expected in zip(read, (full, half), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("wrong", ["no place", "no size", "too many strips", "no pixels at all"])
def test_an_unreadable_label_does_not_prevent_opening(handmade, pattern, tmp_path, wrong):
    label = strip((10, 10), _279=(4, [300]), _278=(4, [10]))
    label |= {"tile": (1, 1), "tiles": [b""]}
    label["tags"] |= {
        "no place": {273: None},
        "no size": {279: None},
        "too many strips": {273: (4, [8] * 3), 279: (4, [300] * 3)},
        "no pixels at all": dict.fromkeys([256, 257, 258, 273, 279]),
    }[wrong]
    pixels = pattern(*SIZES[0])
    path = handmade().write(tmp_path / "s.tif", [image(pixels), label])
    np.testing.assert_array_equal(everything(path), [pixels])


def test_nothing_but_the_error_reaches_the_terminal(damaged_tag, handmade, pattern, tmp_path):
    odd = handmade().write(tmp_path / "odd.tif", [image(pattern(*SIZES[0]), tags={296: (3, [9])})])
    code = f"""
import contextlib
from wsi_ats.errors import SlideError
from wsi_ats.slides import open_slide
for path in ({str(damaged_tag)!r}, {str(odd)!r}):
    with contextlib.suppress(SlideError), open_slide(path):
        pass
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_errors_of_another_thread_are_not_attributed_to_this_file(codings, damaged_tag):
    path, truth = codings["none"]
    stop = threading.Event()

    def complain():
        while not stop.is_set():
            with contextlib.suppress(SlideError):
                open_slide(damaged_tag)

    other = threading.Thread(target=complain)
    other.start()
    try:
        for _ in range(30):
            assert all(map(np.array_equal, everything(path), truth))
    finally:
        stop.set()
        other.join()
    assert logging.getLogger("tifffile").handlers == []
