"""Files of each tool give the same corners in level-0 pixels."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from bag_files import (
    MPP,
    clam_features,
    clam_patches,
    clam_tensor,
    first_clam_patches,
    numbers,
    plain,
    stamp,
    tiles,
    trident,
    trident_attributes,
)

from wsi_ats.bags.encoders import encoder_name, encoder_of_folder
from wsi_ats.bags.opening import open_bag
from wsi_ats.errors import FeatureError

CORNERS = tiles()
VALUES = numbers(len(CORNERS))


def check(bag, side=512.0):
    assert bag.corners.dtype == np.int64
    np.testing.assert_array_equal(bag.corners, CORNERS)
    assert bag.side == side
    assert bag.width == VALUES.shape[1]
    np.testing.assert_array_equal(bag.read(np.arange(len(CORNERS))), VALUES)


def test_clam_takes_the_size_of_tiles_from_the_patches(tmp_path):
    patches = clam_patches(tmp_path, "a", CORNERS, size=256, level=1, downsample=2.0)
    features = clam_features(tmp_path, "a", CORNERS, VALUES)
    check(open_bag(features, mpp=MPP, coords=patches))


def test_clam_downsamples_are_not_rounded(tmp_path):
    patches = clam_patches(tmp_path, "a", CORNERS, size=128, level=1, downsample=3.9997)
    bag = open_bag(clam_features(tmp_path, "a", CORNERS, VALUES), mpp=MPP, coords=patches)
    check(bag, side=pytest.approx(128 * 3.9997))


def test_clam_without_patches_is_refused_with_the_next_step(tmp_path):
    features = clam_features(tmp_path, "a", CORNERS, VALUES)
    with pytest.raises(
        FeatureError, match=r"no attribute tells the size of its tiles.*keep CLAM's or TRIDENT's"
    ):
        open_bag(features, mpp=MPP)


def test_clam_tensor_takes_coordinates_from_the_patches(tmp_path):
    patches = clam_patches(tmp_path, "a", CORNERS)
    check(open_bag(clam_tensor(tmp_path, "a", VALUES), mpp=MPP, coords=patches))


def test_tensor_without_coordinates_is_refused(tmp_path):
    with pytest.raises(FeatureError, match="it has no coordinates"):
        open_bag(clam_tensor(tmp_path, "a", VALUES), mpp=MPP)


@pytest.mark.parametrize(("size", "downsample", "custom"), [(256, 2.0, 1), (128, 2.0, 2)])
def test_level_coordinates_of_the_first_clam_are_scaled(tmp_path, size, downsample, custom):
    """It is known by the images in its patches."""
    patches = first_clam_patches(tmp_path, "a", CORNERS, size=size, downsample=downsample, custom=custom)
    with h5py.File(patches) as file:
        small = file["coords"][()]
    assert small.max() < CORNERS.max()
    check(open_bag(clam_features(tmp_path, "a", small, VALUES), mpp=MPP, coords=patches))


def test_clam_level_without_downsample_is_refused(tmp_path):
    features = plain(tmp_path / "a.h5", CORNERS, VALUES)
    with h5py.File(features, "r+") as file:
        del file["coords"].attrs["patch_size_level0"]
        file["coords"].attrs.update({"patch_size": 256, "patch_level": 1})
    with pytest.raises(FeatureError, match="tiles of level 1, but no attribute downsample"):
        open_bag(features, mpp=MPP)


def test_trident_has_all_in_one_file(tmp_path):
    bag = open_bag(trident(tmp_path, "a", CORNERS, VALUES), mpp=MPP)
    check(bag)
    assert bag.encoder == "uni"


def test_trident_with_a_leading_axis(tmp_path):
    check(open_bag(trident(tmp_path, "a", CORNERS, VALUES[None]), mpp=MPP))


def test_trident_without_level0_size_uses_magnifications_or_the_resolution(tmp_path):
    attributes = trident_attributes("a")
    del attributes["patch_size_level0"]
    check(open_bag(trident(tmp_path, "a", CORNERS, VALUES, attributes=attributes), mpp=MPP))
    del attributes["level0_magnification"]
    check(open_bag(trident(tmp_path, "a", CORNERS, VALUES, attributes=attributes), mpp=MPP))
    del attributes["target_magnification"]
    with pytest.raises(FeatureError, match="no attribute tells the size of its tiles"):
        open_bag(trident(tmp_path, "a", CORNERS, VALUES, attributes=attributes), mpp=MPP)


@pytest.mark.parametrize("width", [6, None])
def test_trident_slide_without_tiles_is_an_empty_bag(tmp_path, width):
    """TRIDENT stores no attributes then, and shape (0,) if the encoder does not tell its width."""
    features = np.empty((0,) if width is None else (0, width), np.float32)
    path = tmp_path / "features_uni_v1" / "a.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = features, np.empty((0, 2), np.int64)
    bag = open_bag(path, mpp=MPP)
    assert bag.corners.shape == (0, 2)
    assert bag.read(np.empty(0, np.int64)).shape == (0, width or 1)


def test_stamp_micrometres_become_level0_pixels(tmp_path):
    bag = open_bag(stamp(tmp_path / "a.h5", CORNERS, VALUES), mpp=MPP)
    check(bag)
    assert bag.encoder == "uni2-h"


def test_older_stamp_has_tile_size(tmp_path):
    attributes = {"unit": "um", "tile_size": 128.0, "extractor": "ctranspath"}
    check(open_bag(stamp(tmp_path / "a.h5", CORNERS, VALUES, attributes=attributes), mpp=MPP))


@pytest.mark.parametrize("attributes", [{"unit": "px", "tile_size": 224}, {"unit": "um"}])
def test_stamp_with_unknown_unit_or_size_is_refused(tmp_path, attributes):
    path = stamp(tmp_path / "a.h5", CORNERS, VALUES, attributes=attributes)
    with pytest.raises(FeatureError, match="expected unit 'um' and tile_size_um"):
        open_bag(path, mpp=MPP)


def test_stamp_features_of_a_slide_are_refused(tmp_path):
    path = stamp(tmp_path / "a.h5", CORNERS[:1], VALUES[:1], attributes={"feat_type": "slide"})
    with pytest.raises(FeatureError, match="features of a slide; features of tiles are needed"):
        open_bag(path, mpp=MPP)


def test_fractional_coordinates_without_a_unit_are_refused(tmp_path):
    path = stamp(tmp_path / "a.h5", CORNERS + 0.3, VALUES, mpp=1, attributes={})
    with pytest.raises(FeatureError, match="fractions of pixels, and no attribute tells a unit"):
        open_bag(path, mpp=MPP)


def test_coordinates_of_other_tiles_are_refused(tmp_path):
    patches = clam_patches(tmp_path, "a", CORNERS[:-1])
    features = clam_features(tmp_path, "a", CORNERS, VALUES)
    with pytest.raises(FeatureError, match=r"its 48 coordinates differ from the 47 in .*patches"):
        open_bag(features, mpp=MPP, coords=patches)


def test_rows_and_coordinates_must_be_equal_in_number(tmp_path):
    with pytest.raises(FeatureError, match="47 rows of features for 48 coordinates"):
        open_bag(plain(tmp_path / "a.h5", CORNERS, VALUES[:-1]), mpp=MPP)


@pytest.mark.parametrize("values", [VALUES[:, 0], VALUES.astype(np.int32), np.stack([VALUES, VALUES])])
def test_other_shapes_and_types_are_refused(tmp_path, values):
    with pytest.raises(FeatureError, match=r"expected features of tiles as float16 or float32 \(N, D\)"):
        open_bag(plain(tmp_path / "a.h5", CORNERS, values), mpp=MPP)


def test_a_file_of_coordinates_is_no_bag(tmp_path):
    with pytest.raises(FeatureError, match="coordinates, but no features"):
        open_bag(clam_patches(tmp_path, "a", CORNERS), mpp=MPP)


def test_a_file_of_something_else_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["counts"] = np.arange(3)
    with pytest.raises(FeatureError, match="neither features nor coordinates, but counts"):
        open_bag(tmp_path / "a.h5", mpp=MPP)


@pytest.mark.parametrize("name", ["a.h5", "a.pt"])
def test_missing_empty_and_truncated_files_are_refused(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(FeatureError, match="cannot be read"):
        open_bag(path, mpp=MPP)
    path.touch()
    with pytest.raises(FeatureError, match="cannot be read"):
        open_bag(path, mpp=MPP)
    whole = (
        clam_tensor(tmp_path, "b", VALUES) if name == "a.pt" else plain(tmp_path / "b.h5", CORNERS, VALUES)
    )
    content = whole.read_bytes()
    for share in (0.2, 0.5, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(FeatureError, match="cannot be read"):
            open_bag(path, mpp=MPP)


def test_a_tensor_file_never_runs_code(tmp_path):
    import torch

    class Harmful:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"features": Harmful()}, tmp_path / "a.pt")
    with pytest.raises(FeatureError, match="cannot be read as a tensor"):
        open_bag(tmp_path / "a.pt", mpp=MPP)


def test_a_tensor_file_of_something_else_is_refused(tmp_path):
    import torch

    torch.save({"features": torch.zeros(2, 3)}, tmp_path / "a.pt")
    with pytest.raises(FeatureError, match="expected a tensor of features"):
        open_bag(tmp_path / "a.pt", mpp=MPP)


def test_names_of_encoders_agree_between_tools():
    assert {encoder_name(each) for each in ("uni_v1", "mahmood-uni", "UNI")} == {"uni"}
    assert {encoder_name(each) for each in ("conch_v15", "mahmood-conch1_5")} == {"conch_v1.5"}
    assert encoder_name(" hf-hub:Owner/Model ") == "hf-hub:Owner/Model"
    assert encoder_of_folder(Path("features_uni_v1")) == "uni"
    assert encoder_of_folder(Path("20x_256px_0px_overlap/features_my_net")) == "my_net"
    assert encoder_of_folder(Path("features_20x")) == ""
    assert encoder_of_folder(Path("ctranspath-0a1b2c3d")) == "ctranspath"
    assert encoder_of_folder(Path("slides")) == ""
