"""Each tool's folders, from any depth."""

from __future__ import annotations

import shutil

import pytest
from bag_files import MPP, clam_features, clam_patches, clam_tensor, numbers, plain, stamp, tiles, trident

from wsi_ats.bags.folder import BagFiles, BagFolder
from wsi_ats.bags.opening import open_bag
from wsi_ats.errors import FeatureError, ManifestError

CORNERS = tiles()
VALUES = numbers(len(CORNERS))
TREE = "20x_256px_0px_overlap"


def opened(found: BagFolder, name: str):
    files = found.files_for(name)
    bag = open_bag(files.features, mpp=MPP, coords=files.coords)
    assert bag.corners.tolist() == CORNERS.tolist()
    return bag


@pytest.mark.parametrize("beside", [True, False])
def test_clam_features_with_patches_beside_or_inside(tmp_path, beside):
    features = clam_features(tmp_path / "features", "a", CORNERS, VALUES)
    clam_tensor(tmp_path / "features", "a", VALUES)
    patches = clam_patches(tmp_path if beside else tmp_path / "features", "a", CORNERS)
    found = BagFolder.find(tmp_path / "features")
    assert found.ids == ("a",)
    assert found.files_for("a") == BagFiles(features, patches)
    opened(found, "a")


def test_clam_tensors_alone(tmp_path):
    tensor = clam_tensor(tmp_path / "features", "a", VALUES)
    patches = clam_patches(tmp_path, "a", CORNERS)
    assert BagFolder.find(tmp_path / "features").files_for("a") == BagFiles(tensor, patches)
    opened(BagFolder.find(tmp_path / "features"), "a")


def test_the_folder_of_tensors_itself_finds_coordinates_around_it(tmp_path):
    tensor = clam_tensor(tmp_path, "a", VALUES)
    clam_features(tmp_path, "a", CORNERS, VALUES)
    patches = clam_patches(tmp_path, "a", CORNERS)
    assert BagFolder.find(tensor.parent).files_for("a") == BagFiles(tensor, patches)


@pytest.mark.parametrize("depth", ["", TREE, f"{TREE}/features_uni_v1"])
def test_trident_from_any_depth(tmp_path, depth):
    for name in ("a", "TCGA-A1.1234-abcd.0"):
        trident(tmp_path, name, CORNERS, VALUES)
    found = BagFolder.find(tmp_path / depth)
    assert found.encoder == "uni"
    assert found.ids == ("TCGA-A1.1234-abcd.0", "a")
    patches = tmp_path / TREE / "patches" / "TCGA-A1.1234-abcd.0_patches.h5"
    assert found.files_for("TCGA-A1.1234-abcd.0").coords == patches
    assert opened(found, "TCGA-A1.1234-abcd.0").encoder == "uni"


def test_trident_tensors_use_the_patches(tmp_path):
    features = trident(tmp_path, "a", CORNERS, VALUES)
    tensor = clam_tensor(tmp_path, "a", VALUES)
    shutil.move(tensor, features.with_suffix(".pt"))
    features.unlink()
    assert opened(BagFolder.find(tmp_path / TREE), "a").encoder == "uni"


@pytest.mark.parametrize("other", [{"encoder": "conch_v15"}, {"grid": "10x_512px_0px_overlap"}])
def test_several_encoders_or_sizes_are_listed_and_one_must_be_named(tmp_path, other):
    trident(tmp_path, "a", CORNERS, VALUES)
    second = trident(tmp_path, "a", CORNERS, VALUES, **other).parent
    with pytest.raises(ManifestError) as refused:
        BagFolder.find(tmp_path)
    assert f"{TREE}/features_uni_v1" in str(refused.value)
    assert str(second.relative_to(tmp_path)) in str(refused.value)
    assert "name one of these folders" in str(refused.value)
    assert BagFolder.find(second).ids == ("a",)


def test_trident_features_of_slides_are_no_features_of_tiles(tmp_path):
    trident(tmp_path, "a", CORNERS, VALUES)
    (tmp_path / TREE / "slide_features_titan").mkdir()
    assert BagFolder.find(tmp_path).encoder == "uni"


def test_stamp_with_the_slides_own_folders(tmp_path):
    top = tmp_path / "mahmood-uni2-0a1b2c3d"
    path = stamp(top / "site 1" / "a.b.h5", CORNERS, VALUES)
    path.with_suffix(".jpg").touch()
    found = BagFolder.find(top)
    assert (found.ids, found.encoder) == (("a.b",), "uni2-h")
    assert found.files_for("a.b") == BagFiles(path)
    opened(found, "a.b")


def test_a_plain_folder_ignores_hidden_files_and_patches(tmp_path):
    path = plain(tmp_path / "a.h5", CORNERS, VALUES)
    plain(tmp_path / "._a.h5", CORNERS, VALUES)
    found = BagFolder.find(str(tmp_path))
    assert (found.ids, found.encoder) == (("a",), "")
    assert found.files_for("a") == BagFiles(path)


@pytest.mark.parametrize("others", [["b/x.h5"], ["x.pt"]])
def test_two_files_of_a_slide_are_an_error_of_that_slide_which_names_both(tmp_path, others):
    paths = [plain(tmp_path / each, CORNERS, VALUES) for each in ("x.h5", "y.h5", *others)]
    found = BagFolder.find(tmp_path)
    assert found.files_for("y").features == paths[1]
    with pytest.raises(FeatureError) as refused:
        found.files_for("x")
    assert str(paths[0]) in str(refused.value)
    assert str(paths[2]) in str(refused.value)


def test_a_slide_without_features_is_an_error_that_shows_ids(tmp_path):
    plain(tmp_path / "a.h5", CORNERS, VALUES)
    with pytest.raises(FeatureError, match=r"of slide a\.svs, but of 1 others: a; slide ids must"):
        BagFolder.find(tmp_path).files_for("a.svs")


def test_folders_without_features_are_refused(tmp_path):
    with pytest.raises(ManifestError, match="no such folder"):
        BagFolder.find(tmp_path / "nothing")
    (tmp_path / "a.txt").touch()
    with pytest.raises(ManifestError, match="no features found; expected"):
        BagFolder.find(tmp_path)
