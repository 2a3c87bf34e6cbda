"""Files and identity of a training run."""

from __future__ import annotations

from wsi_ats.files import read_json

RUN_FILES = [
    *("checkpoints", "config.toml", "metrics.csv", "model.json", "model.safetensors", "prepared", "records"),
    *("run.json", "slides.csv", "slides.parquet", "splits.csv", "thumbnails"),
]


def model_of(out) -> str:
    return str(read_json(out / "model.json")["digest"])
