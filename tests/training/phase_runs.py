"""Settings of phases, and training that records its reads."""

from __future__ import annotations

from pathlib import Path

import torch

from training.runs import SETTINGS, TARGET, assert_same_weights, slide_of, trained
from wsi_ats.models.batches import TileReader
from wsi_ats.models.kinds import model_for
from wsi_ats.training.fit import Trained

# Four steps an epoch.
PHASES = [
    *("training.epochs=2", "training.attention_epochs=3", "training.joint_epochs=2"),
    *("training.tiles=5", "training.attention_tiles=10", "training.slides_per_step=2"),
    *("training.learning_rate=0.001", "training.weight_decay=0.5", "sampling.exploration=0.1"),
]
CLASSIFIER = [*PHASES, "training.attention_epochs=0", "training.joint_epochs=0"]
ATTENTION = [*PHASES, "training.joint_epochs=0"]


def start_of(*changes: str):
    """The network as it starts, but with attention that is not uniform, so that it would show."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = model_for(SETTINGS.with_values(changes), TARGET)
        if getattr(network, "attention", None) is not None:
            torch.nn.init.normal_(network.attention.logit.weight)
    return network


class Recorded(TileReader):
    """Keeps which tiles of which slides were asked for, in order."""

    def __init__(self) -> None:
        super().__init__(2, lambda ref: slide_of(ref.id))
        self.asked: list[tuple[str, int]] = []

    def run(self, jobs):
        self.asked += [(ref.id, cell) for ref, job in jobs for cell in job.keywords["cells"].tolist()]
        return super().run(jobs)


def recorded(folder: Path, *changes: str, on_epoch=lambda row: None):
    """Train; return the result and the tiles requested."""
    reader = Recorded()
    return trained(folder, *changes, reader=reader, on_epoch=on_epoch), reader.asked


def assert_same(one: Trained, other: Trained) -> None:
    assert_same_weights(one.model, other.model)
    assert one.trust == other.trust
    assert (one.by_attention, one.by_uniform) == (other.by_attention, other.by_uniform)
