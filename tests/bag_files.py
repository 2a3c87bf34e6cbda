"""Files of features as CLAM, TRIDENT and STAMP write them: names, types, chunks and attributes of each."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

SLIDE = (4096, 3072)  # width and height in level-0 pixels
MPP = 0.25


def tiles(step: int = 512, side: int = 512) -> np.ndarray:
    """Corners of all whole tiles of a slide, column by column as the tools list them."""
    width, height = SLIDE
    return np.array(
        [(x, y) for x in range(0, width - side + 1, step) for y in range(0, height - side + 1, step)]
    )


def numbers(count: int, width: int = 6, dtype: str = "float32") -> np.ndarray:
    """Features that tell row and column, exact in float16."""
    column = np.arange(width)
    return ((np.arange(count)[:, None] >> 7 * (column % 2)) % 128 + column / 8).astype(dtype)


def _save(path: Path, values: dict[str, np.ndarray], attributes: dict[str, dict] | None = None) -> Path:
    """CLAM's and TRIDENT's way to save: growing datasets with one row in a chunk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, each in values.items():
            growing = (None, *each.shape[1:])
            stored = file.create_dataset(
                name, each.shape, each.dtype, maxshape=growing, chunks=(1, *each.shape[1:])
            )
            stored[:] = each
            stored.attrs.update((attributes or {}).get(name, {}))
    return path


def clam_patches(
    folder: Path, name: str, corners, *, size: int = 256, level: int = 1, downsample: float = 2.0
):
    attributes = {
        "patch_size": size,
        "patch_level": level,
        "downsample": (downsample, downsample),
        "downsampled_level_dim": tuple(int(each / downsample) for each in SLIDE),
        "level_dim": tuple(int(each / downsample) for each in SLIDE),
        "name": name,
        "save_path": str(folder),
    }
    path = folder / "patches" / f"{name}.h5"
    return _save(path, {"coords": np.asarray(corners, np.int64)}, {"coords": attributes})


def clam_features(folder: Path, name: str, corners, features) -> Path:
    """CLAM's features have coordinates, but no attributes."""
    values = {"features": features, "coords": np.asarray(corners, np.int32)}
    return _save(folder / "h5_files" / f"{name}.h5", values)


def clam_tensor(folder: Path, name: str, features) -> Path:
    import torch

    path = folder / "pt_files" / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.from_numpy(features), path)
    return path


def first_clam_patches(
    folder: Path, name: str, corners, *, size: int, downsample: float, custom: int
) -> Path:
    """CLAM's first version: images and, in a smaller level's pixels, their coordinates."""
    level = tuple(int(each / downsample) for each in SLIDE)
    attributes = {
        "patch_level": 1,
        "wsi_name": name,
        "downsample": (downsample, downsample),
        "level_dim": level,
        "downsampled_level_dim": tuple(each // custom for each in level),
    }
    coords = (np.asarray(corners) // (downsample * custom)).astype(np.int32)
    images = np.zeros((len(coords), size, size, 3), np.uint8)
    path = folder / "patches" / f"{name}.h5"
    return _save(path, {"imgs": images, "coords": coords}, {"imgs": attributes})


def trident_attributes(name: str, **others) -> dict:
    return {
        "patch_size": 256,
        "patch_size_level0": 512,
        "level0_magnification": 40,
        "target_magnification": 20,
        "overlap": 0,
        "name": name,
        "savetodir": "20x_256px_0px_overlap",
        "level0_width": SLIDE[0],
        "level0_height": SLIDE[1],
        **others,
    }


def trident(
    job: Path,
    name: str,
    corners,
    features,
    *,
    encoder: str = "uni_v1",
    attributes: dict | None = None,
    grid: str = "20x_256px_0px_overlap",
) -> Path:
    attributes = trident_attributes(name) if attributes is None else attributes
    corners = np.asarray(corners, np.int64)
    _save(job / grid / "patches" / f"{name}_patches.h5", {"coords": corners}, {"coords": attributes})
    return _save(
        job / grid / f"features_{encoder}" / f"{name}.h5",
        {"features": features, "coords": corners},
        {"coords": attributes, "features": {"name": name, "savetodir": str(job), "encoder": encoder}},
    )


def stamp(path: Path, corners, features, *, mpp: float = MPP, attributes: dict | None = None) -> Path:
    """STAMP: micrometres in float32, contiguous float16, attributes of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["coords"] = (np.asarray(corners) * mpp).astype(np.float32)
        file["feats"] = features.astype(np.float16)
        file.attrs.update(
            {
                "stamp_version": "2.4.0",
                "extractor": "mahmood-uni2",
                "unit": "um",
                "tile_size_um": 128.0,
                "tile_size_px": 224,
                "feat_type": "tile",
            }
            if attributes is None
            else attributes
        )
    return path


def plain(path: Path, corners, features, **storage) -> Path:
    """A file with TRIDENT's size of tiles, in any storage layout of HDF5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features, **storage)
        coords = file.create_dataset("coords", data=np.asarray(corners, np.int64))
        coords.attrs["patch_size_level0"] = 512
    return path
