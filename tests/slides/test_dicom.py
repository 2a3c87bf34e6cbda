"""Which DICOM files are one slide, and which are none; read by OpenSlide."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage, SegmentationStorage

from wsi_ats.errors import ManifestError, SlideOpenError
from wsi_ats.slides import open_slide
from wsi_ats.slides.dicom import files_of_series, is_dicom, read_instance
from wsi_ats.tables.manifest import find_slides, read_manifest
from wsi_ats.testing.dicom import write_dicom

SERIES = [f"1.3.6.1.4.1.5962.99.1.{number}.1637717011470.2.0" for number in (1334438926, 1334438927)]


@pytest.fixture
def colour():
    """A picture of one colour."""

    def made(red, width=256, height=192):
        pixels = np.full((height, width, 3), 200, np.uint8)
        pixels[..., 0] = red
        return pixels

    return made


def shown(ref):
    """The red of a slide's first pixel, about, and its levels' widths."""
    with open_slide(ref) as slide:
        red = int(slide.read_regions(0, np.array([[0, 0]]), 1, 1)[0, 0, 0, 0])
        return round(red, -1), [level.width for level in slide.levels]


def test_every_series_of_a_folder_is_a_slide(tmp_path, colour):
    for red in (50, 100, 150):
        write_dicom(tmp_path / f"scan_{red}.dcm", f"1.2.{red}", colour(red))
    refs = read_manifest(tmp_path)
    assert [ref.id for ref in refs] == ["scan_100", "scan_150", "scan_50"]
    assert [shown(ref)[0] for ref in refs] == [100, 150, 50]
    assert read_manifest(f"{tmp_path}/*.dcm") == refs


def test_a_series_in_several_files_is_one_slide_of_all_its_levels(tmp_path, colour):
    for number, series in enumerate(SERIES):
        for level, width in enumerate((512, 256, 128)):
            name = tmp_path / f"{level}{number}.dcm"
            write_dicom(name, series, colour(100 + 50 * number, width, width), mpp=0.5 * 2**level)
        write_dicom(tmp_path / f"label{number}.dcm", series, colour(0, 1024, 1024), flavour="LABEL")
    refs = read_manifest(tmp_path)
    assert [ref.id for ref in refs] == SERIES
    assert [shown(ref) for ref in refs] == [(100, [512, 256, 128]), (150, [512, 256, 128])]


def test_a_lone_series_is_named_after_its_folder(tmp_path, colour):
    for level, width in enumerate((256, 128)):
        write_dicom(tmp_path / "case 1" / f"{level}.dcm", SERIES[0], colour(90, width, width))
    write_dicom(tmp_path / "case 1" / "marks.dcm", "1.2.3", colour(0), kind=SegmentationStorage)
    [ref] = read_manifest(tmp_path)
    assert (ref.id, ref.path) == ("case 1", str(tmp_path / "case 1" / "0.dcm"))
    assert shown(ref) == (90, [256, 128])


def test_dicom_files_that_are_not_whole_slide_images_are_left_out_by_name(tmp_path, colour, caplog):
    write_dicom(tmp_path / "slide.dcm", SERIES[0], colour(90))
    write_dicom(tmp_path / "marks.dcm", "1.2.3", colour(0), kind=SegmentationStorage)
    write_dicom(tmp_path / "glass.dcm", "1.2.4", colour(0), flavour="OVERVIEW")
    assert [ref.id for ref in read_manifest(tmp_path)] == ["slide"]
    assert "2 DICOM files are left out" in caplog.text
    assert f"{tmp_path / 'marks.dcm'} (Segmentation Storage)" in caplog.text
    assert f"{tmp_path / 'glass.dcm'} (overview)" in caplog.text


def test_files_without_an_extension_are_recognised_by_content(tmp_path, colour):
    write_dicom(tmp_path / "first", "1.2.3", colour(60))
    write_dicom(tmp_path / "1.2.840.7", "1.2.4", colour(120))
    (tmp_path / "README").write_text("DICM is not at byte 128 of this")
    refs = read_manifest(tmp_path)
    assert [ref.path for ref in refs] == [str(tmp_path / "1.2.840.7"), str(tmp_path / "first")]
    assert [shown(ref)[0] for ref in refs] == [120, 60]


def test_a_series_in_several_folders_is_one_slide_and_unread_files_are_named(tmp_path, colour, caplog):
    for folder, width in (("a", 128), ("b", 256)):
        write_dicom(tmp_path / folder / "1.dcm", SERIES[0], colour(90, width, width))
    [ref] = read_manifest(tmp_path)
    assert (ref.id, ref.path) == (SERIES[0], str(tmp_path / "b" / "1.dcm"))
    assert f"{tmp_path / 'a' / '1.dcm'} (part of {ref.path}; put a slide's files" in caplog.text


def test_files_of_one_name_in_separate_folders_are_named_after_the_folders(tmp_path, colour):
    for number, folder in enumerate("xy"):
        write_dicom(tmp_path / folder / "IM0001.dcm", f"1.2.{number}", colour(90))
    assert [ref.id for ref in read_manifest(tmp_path)] == ["x", "y"]


def test_the_last_number_of_a_uid_is_not_a_file_extension(tmp_path, colour):
    for number in (1, 2):
        write_dicom(tmp_path / f"1.2.840.{number}", f"1.2.{number}", colour(90))
    assert [ref.id for ref in read_manifest(tmp_path)] == ["1.2.840.1", "1.2.840.2"]


def test_a_dicomdir_is_not_a_slide(tmp_path, colour, caplog):
    """Every export to a disk has one; it has no SOP class but in its header."""
    directory = Dataset()
    directory.FileSetID = "DISK"
    directory.file_meta = FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    directory.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    write_dicom(tmp_path / "SE000000", SERIES[0], colour(90))
    [ref] = read_manifest(tmp_path)
    assert shown(ref)[0] == 90
    assert "DICOMDIR (Media Storage Directory Storage)" in caplog.text


def test_files_of_a_slide_listed_one_by_one_are_one_slide(tmp_path, colour):
    files = [
        write_dicom(tmp_path / "case 1" / f"{level}.dcm", SERIES[0], colour(90, width, width))
        for level, width in enumerate((256, 128))
    ]
    files.append(write_dicom(tmp_path / "case 1" / "l.dcm", SERIES[0], colour(9), flavour="LABEL"))
    [ref] = read_manifest(files)
    assert (ref.id, ref.path) == ("case 1", str(files[0]))
    table = tmp_path / "slides.csv"
    for first, second, problem in (
        (0, 1, "are files of one slide"),
        (0, 2, "not a level of a slide, but label"),
    ):
        table.write_text(f"path\n{files[first]}\n{files[second]}\n")
        with pytest.raises(ManifestError, match=problem):
            read_manifest(table)
    with pytest.raises(ManifestError, match="no slides found"):
        read_manifest(files[2])


def test_two_sources_that_name_one_series_differently_are_refused(tmp_path, colour):
    for level, width in enumerate((256, 128)):
        file = write_dicom(tmp_path / "slides" / f"{level}.dcm", SERIES[0], colour(90, width, width))
        (tmp_path / f"{level}.csv").write_text(f"slide_id,path\nslide {level},{file}\n")
    with pytest.raises(ManifestError, match=r"0.csv, .*1.csv: .* are files of one slide"):
        read_manifest([tmp_path / "0.csv", tmp_path / "1.csv"])


def test_slides_arriving_in_a_folder_are_not_named_after_it(tmp_path, colour):
    """Else the first would be called otherwise as soon as there is a second."""
    for number in (1, 2):
        for level, width in enumerate((256, 128)):
            write_dicom(tmp_path / f"{number}{level}.dcm", f"1.2.{number}", colour(90, width, width))
        assert [ref.id for ref in find_slides(tmp_path)] == ["1.2.1", "1.2.2"][:number]


def test_an_unreadable_neighbour_does_no_harm(tmp_path, colour, monkeypatch):
    path = write_dicom(tmp_path / "s.dcm", SERIES[0], colour(90))
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "nowhere")
    assert files_of_series(path) == [path]
    gone, whole = read_manifest(tmp_path)
    with pytest.raises(SlideOpenError, match="gone"):
        open_slide(gone)
    assert shown(whole)[0] == 90
    os.mkfifo(tmp_path / "pipe.dcm")  # OpenSlide itself would wait for it
    assert files_of_series(path) == [path]
    assert [ref.id for ref in find_slides(tmp_path)] == ["gone", "pipe", "s"]


def test_a_header_is_read_once_for_as_long_as_the_file_is_the_same(tmp_path, colour, monkeypatch):
    path = write_dicom(tmp_path / "s.dcm", SERIES[0], colour(90))
    assert read_instance(path).series == SERIES[0]
    monkeypatch.setattr("pydicom.filereader.read_partial", None)
    assert read_instance(path).series == SERIES[0]
    monkeypatch.undo()
    write_dicom(path, SERIES[1], colour(90, 128, 128))
    assert read_instance(path).series == SERIES[1]


def test_a_file_whose_header_cannot_be_read_is_listed_and_refused(tmp_path, colour):
    whole = write_dicom(tmp_path / "whole.dcm", SERIES[0], colour(90)).read_bytes()
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "cut.dcm").write_bytes(whole[:160])
    refs = find_slides(tmp_path)
    assert [ref.id for ref in refs] == ["cut", "empty", "whole"]
    for ref in refs[:2]:
        with pytest.raises(SlideOpenError, match=ref.id):
            open_slide(ref)


def test_a_damaged_offset_table_is_an_error_not_a_crash(tmp_path, colour):
    path = write_dicom(tmp_path / "s.dcm", SERIES[0], colour(90))
    write_dicom(tmp_path / "t.dcm", SERIES[0], colour(90, 128, 128))
    content = bytearray(path.read_bytes())
    table = content.index(b"\xe0\x7f\x10\x00") + 20
    assert content[table : table + 4] == bytes(4)
    content[table + 6] ^= 0x80
    path.write_bytes(content)
    for name in ("s.dcm", "t.dcm"):
        with pytest.raises(SlideOpenError, match=r"offsets in s\.dcm is damaged: its 12 frames"):
            open_slide(tmp_path / name)


def test_an_image_without_a_type_is_taken_for_a_level(tmp_path, colour):
    path = write_dicom(tmp_path / "s.dcm", SERIES[0], colour(90), flavour=None)
    assert read_instance(path).is_level


def test_the_files_of_a_slide_are_those_of_its_series(tmp_path, colour):
    first = write_dicom(tmp_path / "0.dcm", SERIES[0], colour(90))
    second = write_dicom(tmp_path / "1", SERIES[0], colour(90, 128, 128))
    write_dicom(tmp_path / "2.dcm", SERIES[1], colour(90))
    shutil.copy(first, tmp_path / ".0.dcm")
    (tmp_path / "notes.txt").write_text("")
    assert files_of_series(first) == [first, second]
    assert is_dicom(second)


def test_a_temporarily_unreadable_file_is_read_later(tmp_path, colour, monkeypatch):
    path = write_dicom(tmp_path / "s.dcm", SERIES[0], colour(90))

    def away(self, *given):
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", away)
        assert read_instance(path) is None
    assert read_instance(path).series == SERIES[0]
