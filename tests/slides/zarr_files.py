"""Pyramids in OME-Zarr, written without this library, and their levels computed another way."""

from __future__ import annotations

import numpy as np
import zarr
from zarr.storage import LocalStore

from wsi_ats.errors import SlideReadError
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.slides.zarr import ZarrSlide

CHANNELS = [{"color": colour, "window": {"start": 0, "end": 255, "min": 0, "max": 255}} for colour in
            ("FF0000", "00FF00", "0000FF")]  # fmt: skip


def write_by_hand(
    path, pyramid, *, axes="cyx", mpp=0.5, unit="micrometer", version="0.5", shards=None, **extra
):
    """Write a pyramid as another program might, by the zarr package alone."""
    zarr_format = 3 if version == "0.5" else 2
    group = zarr.open_group(LocalStore(path), mode="w", zarr_format=zarr_format)
    kinds = {"t": "time", "c": "channel"}
    described = [{"name": name, "type": kinds.get(name, "space")} for name in axes]
    for axis in described:
        if axis["type"] == "space" and unit is not None:
            axis["unit"] = unit
    datasets = []
    for number, pixels in enumerate(pyramid):
        height, width, _ = pixels.shape
        sizes = {"y": height, "x": width, "c": 3}
        chunks = {"y": 64, "x": 48, "c": 3}
        options = {"dimension_names": list(axes)} if zarr_format == 3 else {}
        if shards:
            options["shards"] = [{"y": 256, "x": 192, "c": 3}.get(name, 1) for name in axes]
        array = group.create_array(
            str(number),
            shape=[sizes.get(name, 1) for name in axes],
            chunks=[chunks.get(name, 1) for name in axes],
            dtype="uint8",
            fill_value=7,
            **options,
        )
        order = ["yxc".index(name) for name in axes if name in "yxc"]
        array[:] = pixels.transpose(order).reshape(array.shape)
        first = pyramid[0].shape
        steps = {"y": mpp * first[0] / height, "x": mpp * first[1] / width}
        scale = [steps.get(name, 1.0) for name in axes]
        datasets.append(
            {"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    multiscales = [{"name": "by hand", "axes": described, "datasets": datasets}]
    ome = {"multiscales": multiscales, "omero": {"channels": CHANNELS}, **extra}
    if zarr_format == 3:
        group.attrs.update({"ome": {"version": version, **ome}})
    else:
        multiscales[0]["version"] = version
        group.attrs.update(ome)
    return str(path)


def averages(pixels):
    """Averages of 2 x 2 pixels, of fewer where there are no more, another way."""
    height, width, _ = pixels.shape
    rows, columns = np.arange(0, height, 2), np.arange(0, width, 2)
    total = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), rows, axis=0), columns, axis=1)
    counts = np.minimum(2, height - rows)[:, None] * np.minimum(2, width - columns)
    return np.rint(total / counts[..., None]).astype(np.uint8)


def averaged_pyramid(pixels, smallest=512):
    levels = [pixels]
    while max(levels[-1].shape[:2]) > smallest:
        levels.append(averages(levels[-1]))
    return levels


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def whole(slide, level=0):
    size = slide.levels[level]
    return slide.read_regions(level, np.zeros((1, 2), dtype=np.int64), size.width, size.height)[0]


def tree(folder):
    """Every file of a folder and its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Failing(MemorySlide):
    """A slide that cannot be read any more after some regions."""

    def __init__(self, pixels, reads):
        super().__init__([pixels], mpp=0.5)
        self.reads = reads

    def read_regions(self, level, corners, width, height):
        self.reads -= 1
        if self.reads < 0:
            raise SlideReadError(self.path, "gone")
        return super().read_regions(level, corners, width, height)


def reads(path, x=0, y=0, width=40, height=40):
    with ZarrSlide(str(path)) as slide:
        return slide.read_regions(0, np.array([[x, y]]), width, height)[0]
