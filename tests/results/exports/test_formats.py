"""Each format is read back by the program that it is for, or as that program's source reads it."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import shapely
import torch

from results import scored_folder
from results.scored_folder import BOUNDS, GRID, write_scores
from wsi_ats.bags.opening import open_bag
from wsi_ats.errors import ArtifactError
from wsi_ats.results.exports.outlines import outline
from wsi_ats.results.exports.registry import FORMATS
from wsi_ats.tables.files import read_csv

CORNERS = GRID.boxes([0, 5, 7])[:, :2]


READS_SLIDES = {"png", "dicom"}  # tested with real slides, in tests/pipelines


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - READS_SLIDES))
def test_a_format_says_which_files_it_wrote(name, exported):
    for package in FORMATS[name].packages:
        pytest.importorskip(package)
    folder, files = exported(name)
    assert sorted(files) == sorted(path for path in folder.rglob("*") if path.is_file())
    assert files


def test_clam_finds_coordinates_features_and_its_list(exported):
    folder, _ = exported("clam")
    listed = read_csv(folder / "process_list_autogen.csv")
    assert listed["slide_id"] == ["a.svs", "b.svs"]
    for name in listed["slide_id"]:
        bag = name.split(".svs")[0]  # as extract_features_fp.py does
        with h5py.File(folder / "patches" / f"{bag}.h5", "r") as file:
            coords = file["coords"]
            assert (coords.attrs["patch_level"], coords.attrs["patch_size"]) == (0, 256)
            np.testing.assert_array_equal(coords[:], CORNERS)
        with h5py.File(folder / "h5_files" / f"{bag}.h5", "r") as file:
            np.testing.assert_array_equal(file["features"][:], scored_folder.features(bag))
            np.testing.assert_array_equal(file["coords"][:], CORNERS)
        tensor = torch.load(folder / "pt_files" / f"{bag}.pt", weights_only=True)
        np.testing.assert_array_equal(tensor.numpy(), scored_folder.features(bag))


def test_trident_finds_its_tree_and_torchmil_reads_it(exported):
    from torchmil import datasets

    folder, _ = exported("trident")
    (job,) = folder.iterdir()
    assert job.name == "20x_128px_0px_overlap"  # tiles of 128 pixels of 0.5 um
    with h5py.File(job / "patches" / "a_patches.h5", "r") as file:
        assert file["coords"].attrs["patch_size_level0"] == 256
        assert file["coords"].attrs["level0_width"] == 1000
    (folder / "labels.csv").write_text("slide,label\na.svs,1\nb.svs,0\n")
    bags = datasets.TridentWSIDataset(
        base_path=f"{job}/",
        labels_path=str(folder / "labels.csv"),
        feature_extractor="wsi_ats",
        wsi_name_col="slide",
        wsi_label_col="label",
        bag_keys=["X", "Y", "coords"],
        patch_size=256,
        load_at_init=False,
    )
    np.testing.assert_array_equal(bags[0]["X"].numpy(), scored_folder.features("a"))
    np.testing.assert_array_equal(np.asarray(bags[0]["coords"]), CORNERS // 256)


def test_torchmil_reads_its_arrays(exported):
    from torchmil import datasets

    folder, _ = exported("torchmil")
    bags = datasets.ProcessedMILDataset(
        features_path=str(folder / "features"),
        coords_path=str(folder / "coords"),
        bag_keys=["X", "coords"],
        verbose=False,
    )
    assert len(bags) == 2
    np.testing.assert_array_equal(bags[1]["X"].numpy(), scored_folder.features("b"))
    np.testing.assert_array_equal(np.asarray(bags[1]["coords"]), CORNERS)
    np.testing.assert_array_equal(np.load(folder / "attention" / "a.npy"), [0.1, 0.4, 0.2])


def test_stamp_finds_micrometres(exported):
    folder, _ = exported("stamp")
    with h5py.File(folder / "a.h5", "r") as file:
        np.testing.assert_allclose(file["coords"][:], CORNERS * 0.25)
        assert (file.attrs["unit"], file.attrs["tile_size_um"], file.attrs["tile_size_px"]) == ("um", 64, 128)
    bag = open_bag(folder / "a.h5", mpp=0.25)
    np.testing.assert_array_equal(bag.corners, CORNERS)
    np.testing.assert_array_equal(bag.read(np.arange(3)), scored_folder.features("a"))


def test_plain_geojson_has_polygons_in_pixels_of_the_whole_slide(exported):
    folder, _ = exported("geojson")
    collection = json.loads((folder / "a.geojson").read_text())
    boxes = [shapely.geometry.shape(each["geometry"]).bounds for each in collection["features"]]
    assert boxes == [(0, 0, 256, 256), (256, 256, 512, 512), (768, 256, 1024, 512)]
    first = collection["features"][0]["properties"]
    assert (first["slide_id"], first["attention"], first["draws"]) == ("a", 0.1, 1)
    assert first["evidence_tumour"] == -first["evidence_normal"]
    weights = [each["properties"]["weight"] for each in collection["features"]]
    assert sum(weights) == pytest.approx(1)


def test_qupath_gets_tiles_attention_and_tissue_where_it_shows_them(exported):
    folder, files = exported("qupath")
    assert {path.name for path in files} >= {"a.geojson", "a.attention.geojson", "a.tissue.geojson"}
    cells = json.loads((folder / "a.attention.geojson").read_text())["features"]
    assert len(cells) == 10  # tissue
    assert {each["properties"]["objectType"] for each in cells} == {"detection"}
    relative = [each["properties"]["measurements"]["attention (times uniform)"] for each in cells]
    assert np.mean(relative) == pytest.approx(1)
    assert max(relative) == pytest.approx(4 * 10 / 13)
    (tissue,) = json.loads((folder / "a.tissue.geojson").read_text())["features"]
    assert tissue["properties"]["objectType"] == "annotation"
    outlined = shapely.geometry.shape(tissue["geometry"])
    every = shapely.union_all([shapely.geometry.shape(each["geometry"]) for each in cells])
    assert outlined.equals(every)
    assert outlined.bounds[:2] == (-BOUNDS.x, -BOUNDS.y)
    assert len({each["id"] for each in (*cells, tissue)}) == 11


def test_files_for_qupath_are_ascii_because_it_reads_them_in_the_encoding_of_the_machine(tmp_path):
    slide = write_scores(tmp_path / "scores", "a").slides[0]
    umlaut = scored_folder.selection("a")
    umlaut.evidence["Tumör"] = umlaut.evidence.pop("tumour")
    scored_folder.write_selection(tmp_path / "scores" / "selections" / "a.parquet", umlaut)
    FORMATS["qupath"].slide(tmp_path, slide)
    features = json.loads((tmp_path / "a.geojson").read_text(encoding="ascii"))["features"]
    assert "evidence Tumör" in features[0]["properties"]["measurements"]


def test_the_script_for_qupath_names_the_folder_and_the_slides(exported, scores, tmp_path):
    folder, _ = exported("qupath")
    listed = json.loads((folder / "slides.json").read_text())["slides"]
    assert listed == [{"name": name, "path": f"/scans/{name}.svs"} for name in ("a", "b")]
    odd = tmp_path / 'é "quoted" $folder'
    odd.mkdir()
    FORMATS["qupath"].collection(odd, scores, [])
    script = (odd / "open_in_qupath.groovy").read_text(encoding="ascii")
    assert f'new File("{tmp_path}/\\u00e9 \\"quoted\\" \\$folder")' in script
    assert script.count("{") == script.count("}")


@pytest.mark.parametrize("name", ["torchmil", "stamp"])
def test_formats_of_features_say_how_to_keep_them(name, tmp_path):
    slide = write_scores(tmp_path / "scores", "a", kept=False).slides[0]
    with pytest.raises(ArtifactError, match=r"no features of a, .* score again with --keep-features"):
        FORMATS[name].slide(tmp_path / "out", slide)


@pytest.mark.parametrize(
    ("mask", "area"),
    [([[1, 1], [1, 1]], 4), ([[1, 0], [0, 1]], 2), ([[1, 1, 1], [1, 0, 1], [1, 1, 1]], 8), ([[0]], 0)],
)
def test_an_outline_covers_its_cells_and_nothing_else(mask, area):
    mask = np.array(mask, bool)
    grid = type(GRID)(10 * mask.shape[1], 10 * mask.shape[0], 10, 10)
    geometry = shapely.geometry.shape(outline(mask, grid, corner=(3, 4)))
    assert geometry.area == 100 * area
    for row, column in np.ndindex(mask.shape):
        centre = shapely.Point(10 * column + 5 - 3, 10 * row + 5 - 4)
        assert geometry.contains(centre) == mask[row, column]
