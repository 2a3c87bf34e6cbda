"""Weights for a small backbone, as a stand-in for published ones, which cannot be had without a network.

They are trained on single tiles of kinds of tissue that are in none of the needle benchmark's slides, by what
each image is said to show: of the bowel, fat, mucus and normal mucosa (CRC-VAL-HE-7K, CC BY 4.0; patients may
be those of the slides, which the names do not tell), of bone, normal tissue, dead and living tumour (TCIA
osteosarcoma, CC BY 3.0), of the mouth, normal tissue and carcinoma (CC0).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from wsi_ats.artifacts import atomic
from wsi_ats.errors import ManifestError

_IMAGES = {
    "osteosarcoma_tcia": ("*.jpg",),
    "oscc_normal_100x": ("*.jpg",),
    "crc_val_he_7k": ("ADI*.jpg", "MUC*.jpg", "NORM*.jpg"),
}
_SIDE = 64
_BATCH = 64
_RATE = 2e-3
_GLASS = 210  # all colours brighter; a tile half of glass shows nothing of its class


def pretrain(data: Path, path: Path, *, backbone: str, steps: int, seed: int = 0) -> None:
    """Train a backbone on single tiles and keep its weights, unless they are there.

    Parameters
    ----------
    data
        Folder with ``tiles``.
    path
        File for the weights.
    backbone
        A timm name.
    steps
        Of 64 tiles each.
    seed
        Of weights and tiles.
    """
    if path.exists():
        return
    images, classes = _read(data / "tiles")
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    network = timm.create_model(backbone, num_classes=max(classes) + 1)
    config = network.pretrained_cfg
    mean, std = (torch.tensor(config[name]).reshape(3, 1, 1) * 255 for name in ("mean", "std"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=0.05)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    members = [np.flatnonzero(np.array(classes) == number) for number in range(max(classes) + 1)]
    for _ in range(steps):
        targets = rng.integers(len(members), size=_BATCH)
        tiles = np.stack([_tile(images[rng.choice(members[target])], rng) for target in targets])
        logits = network((torch.from_numpy(tiles).permute(0, 3, 1, 2) - mean) / std)
        loss = F.cross_entropy(logits, torch.from_numpy(targets), label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    network.reset_classifier(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, temporary)


def _read(folder: Path) -> tuple[list[NDArray[np.uint8]], list[int]]:
    images, names = [], []
    found = (path for name, kinds in _IMAGES.items() for kind in kinds for path in (folder / name).glob(kind))
    for path in sorted(found):
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB")))
        names.append(f"{path.parent.name} {path.name.split('_')[0]}")
    if not images:
        raise ManifestError(f"{folder} has none of {', '.join(_IMAGES)}; give --data")
    known = sorted(set(names))
    return images, [known.index(name) for name in names]


def _tile(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """A part of an image at a random place and scale, turned, mirrored and stained at random."""
    for _ in range(8):
        side = int(rng.integers(_SIDE, 2 * _SIDE + 1))
        top, left = rng.integers(0, np.subtract(image.shape[:2], side) + 1)
        part = image[top : top + side, left : left + side]
        if np.mean(part.min(axis=-1) > _GLASS) < 0.5:
            break
    part = np.rot90(part, rng.integers(4))
    if rng.integers(2):
        part = part[:, ::-1]
    small = Image.fromarray(np.ascontiguousarray(part)).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    power = np.exp(rng.normal(0, 0.2, 3) + rng.normal(0, 0.2))
    stained: NDArray[np.float32] = (255 * (np.asarray(small) / 255) ** power).astype(np.float32)
    return stained
