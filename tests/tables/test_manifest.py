"""Folders, globs, tables and stores become slides."""

from __future__ import annotations

import pytest

from tables.table_files import table
from wsi_ats.errors import ManifestError, MppError
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.manifest import find_slides, read_manifest
from wsi_ats.tables.slide_table import read_labels

# --- files, folders, globs ---


def test_a_folder_is_searched_for_slides_and_other_files_are_ignored(folder):
    refs = read_manifest(folder)
    assert [(r.id, r.path, r.case) for r in refs] == [
        ("a", str(folder / "a.svs"), "a"),
        ("b", str(folder / "below/b.ndpi"), "b"),
    ]


def test_hidden_folders_are_not_searched(folder):
    for name in (".~tmp~/c.svs", ".rsync-partial/a.svs", "below/.d.zarr/zarr.json"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("half of it")
    assert [r.id for r in read_manifest(folder)] == ["a", "b"]


def test_listing_present_slides_allows_none_and_duplicate_names(folder):
    assert find_slides(folder) == read_manifest(folder)
    (folder / "below" / "a.svs").write_text("another")
    assert [r.id for r in find_slides(folder)] == ["a", "a", "b"]
    (folder / "empty").mkdir()
    assert find_slides(folder / "empty") == find_slides(folder / "*.ndpi") == []
    with pytest.raises(ManifestError, match="gone: no such file or folder"):
        find_slides(folder / "gone")


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("slide_id\n", []),
        ("path\nyet to come.svs\n", ["yet to come"]),
        ("slide_id\nyet to come\na\nb\n", ["a", "b"]),
        ("slide_id,path\nyet to come,\n1,a.svs\n", ["1"]),
    ],
)
def test_a_table_may_list_slides_not_yet_present(folder, text, ids):
    assert [r.id for r in find_slides(table(folder, text))] == ids
    with pytest.raises(ManifestError):
        read_manifest(table(folder, "slide_id\n"))


def test_a_folder_of_zarr_is_one_slide_however_it_is_named(folder):
    for name in ("c.ome.zarr", "below/d.zarr"):
        inner = folder / name / "0" / "c"
        inner.mkdir(parents=True)
        (folder / name / "zarr.json").write_text("{}")
        (inner / "0.tif").write_text("")  # it is not a slide, whatever its content
    names = ["a", "b", "c", "d"]
    assert sorted(r.id for r in read_manifest(folder)) == names
    assert sorted(r.id for r in read_manifest(f"{folder}/**")) == names
    assert [r.id for r in read_manifest(f"{folder}/*.zarr")] == ["c"]
    [ref] = read_manifest(folder / "c.ome.zarr")
    assert (ref.id, ref.path) == ("c", str(folder / "c.ome.zarr"))
    found = read_manifest(table(folder, "slide_id,label\nc.ome.zarr,x\nd,y\n"))
    assert [(r.id, r.path) for r in found] == [
        ("c", str(folder / "c.ome.zarr")),
        ("d", str(folder / "below/d.zarr")),
    ]


def test_a_file_is_a_slide_whatever_its_extension(folder):
    assert [r.id for r in read_manifest(folder / "a.jpg")] == ["a"]


def test_a_glob_finds_slides_and_folders_of_them(folder):
    assert [r.id for r in read_manifest(f"{folder}/*.svs")] == ["a"]
    assert [r.id for r in read_manifest(f"{folder}/*")] == ["a", "b"]
    assert [r.id for r in read_manifest(f"{folder}/**/*.ndpi")] == ["b"]


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(folder):
    odd = folder / "run[1]"
    odd.mkdir()
    (odd / "c.svs").write_bytes(b"x")
    assert [r.id for r in read_manifest(odd)] == ["c"]


def test_a_mirax_slide_is_listed_by_its_index_file_alone(tmp_path):
    (tmp_path / "m").mkdir()
    for name in ("m.mrxs", "m/Slidedat.ini", "m/Data0000.dat"):
        (tmp_path / name).write_bytes(b"x")
    assert [r.path for r in read_manifest(tmp_path)] == [str(tmp_path / "m.mrxs")]


def test_ome_tiff_ids_lose_both_extensions(tmp_path):
    (tmp_path / "s.ome.tif").write_bytes(b"x")
    assert read_manifest(tmp_path)[0].id == "s"


@pytest.mark.parametrize("source", ["", "sub", "*.svs", "sub/**/*"])
def test_the_error_for_no_slides_names_the_known_extensions(tmp_path, source):
    (tmp_path / "sub").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ManifestError, match=r"no slides found.*\.svs"):
        read_manifest(f"{tmp_path}/{source}")


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="no such file or folder"):
        read_manifest(tmp_path / "none")


def test_two_files_of_one_stem_are_an_error_that_names_both(folder):
    (folder / "below" / "a.tif").write_bytes(b"x")
    with pytest.raises(ManifestError, match=r"called 'a': .*a\.svs .*and .*below/a\.tif"):
        read_manifest(folder)


# --- slide tables ---


def test_the_own_table_gives_every_field_and_paths_relative_to_itself(folder):
    path = table(
        folder,
        "slide_id,case_id,path,label,split,mpp\n"
        "one,p1,a.svs,x,train,0.25\n"
        f"two,p2,{folder}/below/b.ndpi,y,Test,\n",
    )
    assert read_manifest(path) == [
        SlideRef("one", str(folder / "a.svs"), "p1", "x", "train", 0.25),
        SlideRef("two", str(folder / "below/b.ndpi"), "p2", "y", "test", None),
    ]


def test_a_path_alone_is_enough(folder):
    [slide] = read_manifest(table(folder, "path\na.svs\n"))
    assert (slide.id, slide.case, slide.label, slide.mpp) == ("a", "a", None, None)


def test_clam_table_finds_its_slides_at_or_below_its_folder(folder):
    refs = read_manifest(table(folder, "case_id,slide_id,label\np1,a,x\np1,b,y\n"))
    assert [(r.id, r.case, r.label, r.path) for r in refs] == [
        ("a", "p1", "x", str(folder / "a.svs")),
        ("b", "p1", "y", str(folder / "below/b.ndpi")),
    ]


def test_clam_table_names_the_slides_that_are_not_there(folder):
    path = table(folder, "case_id,slide_id,label\np1,a,x\np2,c,y\np3,d,y\n")
    with pytest.raises(ManifestError, match=r"no path for 2 slides.*: c, d;.*--labels"):
        read_manifest(path)


def test_an_ambiguous_name_needs_a_path_only_when_requested(folder):
    (folder / "below" / "a.tif").write_bytes(b"x")
    assert [r.id for r in read_manifest(table(folder, "slide_id\nb\n"))] == ["b"]
    with pytest.raises(ManifestError, match=r"may be .*a\.svs or .*a\.tif; add a column path"):
        read_manifest(table(folder, "slide_id\na\n"))


def test_stamp_pair_joins_by_patient(folder):
    slides = table(folder, "PATIENT,FILENAME\np1,a.svs\np2,below/b.ndpi\n", "slides.csv")
    clini = table(folder, "PATIENT,AGE,isMSIH\np1,50,MSIH\np2,60,nonMSIH\n", "clini.csv")
    refs = read_manifest(slides, labels=clini, label_column="isMSIH")
    assert [(r.id, r.case, r.label) for r in refs] == [("a", "p1", "MSIH"), ("b", "p2", "nonMSIH")]
    with pytest.raises(ManifestError, match=r"no column 'label'; found PATIENT, AGE, isMSIH"):
        read_manifest(slides, labels=clini)
    with pytest.raises(ManifestError, match=r"no column 'MSI'; found PATIENT, AGE, isMSIH"):
        read_manifest(slides, labels=clini, label_column="MSI")


def test_trident_table_overrides_the_resolution(folder):
    refs = read_manifest(table(folder, 'wsi,mpp\na.svs,0.25\nbelow/b.ndpi,"0,5"\n'))
    assert [(r.id, r.mpp) for r in refs] == [("a", 0.25), ("b", 0.5)]


def test_the_mpp_option_fills_in_where_the_table_is_silent(folder):
    refs = read_manifest(table(folder, "wsi,mpp\na.svs,0.25\nbelow/b.ndpi,\n"), mpp=0.5)
    assert [r.mpp for r in refs] == [0.25, 0.5]


def test_some_missing_files_fail_alone_but_all_missing_are_refused(folder):
    assert len(read_manifest(table(folder, "path\na.svs\ngone.svs\n"))) == 2
    with pytest.raises(ManifestError, match=r"none of its 2 slides exists.*relative to the table"):
        read_manifest(table(folder, "path\nx/a.svs\ngone.svs\n"))


def test_remote_paths_are_kept_as_they_are(folder):
    assert read_manifest(table(folder, "path\ns3://bucket/a.svs\n"))[0].path == "s3://bucket/a.svs"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("slide_id,path\n", "no rows"),
        ("name,file\na,b\n", "needs a column path or slide_id; found name, file"),
        ("path,mpp\na.svs,fine\n", "row 1: mpp is 'fine'"),
        ("path,split\na.svs,training\n", "row 1: split is 'training', expected one of train, val, test"),
        ("slide_id,path\none,a.svs\none,below/b.ndpi\n", r"called 'one': .*a\.svs .*and .*b\.ndpi"),
        ("path\na.svs\na.svs\n", r"called 'a': .*a\.svs .*and .*a\.svs"),
        ("slide_id,path\nx/y,a.svs\n", "cannot be empty or contain a slash"),
        ("path,wsi\na.svs,a.svs\n", r"\['path', 'wsi'\] have the same meaning"),
        ("slide_id,path,label\n,,x\n", "row 1: names neither"),
    ],
)
def test_invalid_tables_are_refused_with_the_reason(folder, text, message):
    with pytest.raises(ManifestError, match=message):
        read_manifest(table(folder, text))


@pytest.mark.parametrize("value", ["0", "352.8", "-1", "inf"])
def test_an_implausible_resolution_is_refused(folder, value):
    with pytest.raises(MppError, match="micrometres per pixel, expected"):
        read_manifest(table(folder, f"path,mpp\na.svs,{value}\n"))
    with pytest.raises(MppError):
        read_manifest(folder, mpp=float(value))


def test_a_spreadsheet_file_is_refused_with_advice(folder):
    (folder / "t.xlsx").write_bytes(b"PK\x03\x04\xff")
    with pytest.raises(ManifestError, match="CSV UTF-8"):
        read_manifest(folder / "t.xlsx")


# --- labels ---


def test_linked_folders_are_searched_once_and_link_cycles_end(tmp_path):
    real, linked = tmp_path / "elsewhere", tmp_path / "slides"
    (real / "deep").mkdir(parents=True)
    (linked / "own").mkdir(parents=True)
    for path in (real / "deep" / "a.svs", linked / "own" / "b.svs"):
        path.write_text("")
    (linked / "batch").symlink_to(real, target_is_directory=True)
    (linked / "again").symlink_to(linked / "own", target_is_directory=True)
    (real / "deep" / "up").symlink_to(linked, target_is_directory=True)
    refs = read_manifest(linked)
    assert [(ref.id, ref.path) for ref in refs] == [
        ("a", str(linked / "batch" / "deep" / "a.svs")),
        ("b", str(linked / "own" / "b.svs")),
    ]


def test_slides_to_be_refused_are_still_listed(tmp_path):
    for name in ("a.qptiff", "b.vsi", "c.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dicom").write_text("")
    assert [ref.id for ref in read_manifest(tmp_path)] == ["a", "b", "1"]


def test_a_name_that_is_too_long_for_the_files_of_a_slide_is_refused_by_its_length(tmp_path):
    (tmp_path / ("\u00e9" * 120 + ".svs")).write_text("")
    [longest] = read_manifest(tmp_path)
    assert len(longest.id.encode()) == 240
    (tmp_path / ("a" * 241 + ".svs")).write_text("")
    with pytest.raises(
        ManifestError, match=r"slide_id has 241 bytes, .* allow only 240; .* shorter slide_id in a table"
    ):
        read_manifest(tmp_path)


# --- stores ---


@pytest.fixture
def store():
    """Files in memory, of which some are slides."""
    import fsspec

    files = fsspec.filesystem("memory")
    names = (
        "a.svs",
        "below/b.ome.tif",
        "below/c.zarr/zarr.json",
        "below/c.zarr/0/c/0/0",
        "._a.svs",
        "note.txt",
    )
    for name in names:
        files.pipe_file(f"/store/{name}", b"x")
    yield "memory://store"
    files.rm("/store", recursive=True)


def test_a_folder_of_a_store_is_searched_as_one_of_this_machine(store):
    refs = read_manifest(f"{store}/")
    assert [(r.id, r.path, r.case) for r in refs] == [
        ("a", "memory:///store/a.svs", "a"),
        ("b", "memory:///store/below/b.ome.tif", "b"),
        ("c", "memory:///store/below/c.zarr", "c"),
    ]


@pytest.mark.parametrize(
    ("what", "ids"),
    [
        ("*.svs", ["a"]),
        ("**/*.tif", ["b"]),
        ("a.svs", ["a"]),
        ("note.txt", ["note"]),
        ("below/c.zarr", ["c"]),
    ],
)
def test_a_file_or_glob_of_a_store(store, what, ids):
    assert [r.id for r in read_manifest(f"{store}/{what}")] == ids


def test_urls_of_a_table_stay_as_they_are(tmp_path):
    urls = ["s3://bucket/a.svs", "https://host/b.ome.tif?X-Amz-Date=1&X-Amz-Signature=a/b.c"]
    refs = read_manifest(table(tmp_path, "path\n" + "\n".join(urls)))
    assert [(r.id, r.path) for r in refs] == [("a", urls[0]), ("b", urls[1])]
    labels = read_labels(table(tmp_path, f"path,label\n{urls[0]},x\n{urls[1]},y\n", "labels.csv"))
    assert {name: row.label for name, row in labels.rows.items()} == {"a": "x", "b": "y"}


def test_labels_are_joined_with_slides_of_a_store(store, tmp_path):
    labels = table(tmp_path, "slide_id,label\na,x\nb,y\nc,x\n")
    assert [r.label for r in read_manifest(f"{store}/", labels=labels)] == ["x", "y", "x"]


def test_a_signed_url_is_a_slide_without_a_request():
    url = "https://no.such.host.invalid/scans/a.svs?" + "X-Amz-Signature=" + "0" * 1000
    [slide] = read_manifest(url)
    assert (slide.id, slide.path) == ("a", url)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("memory://store/nothing/", "no such file or folder"),
        ("memory://store/*.txt", "no slides found; looked for"),
        ("memory://store/table.csv", "tables must be on this machine"),
        ("https://host/scans/", "web servers do not list"),
        ("nosuch://store/", "nosuch:// is not a known protocol"),
    ],
)
def test_urls_missing_in_a_store(store, what, said):
    with pytest.raises(ManifestError, match=said):
        read_manifest(what)
