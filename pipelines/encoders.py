"""List the foundation encoders that are known by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wsi_ats.encoders import ENCODERS, Encoder

# Two tables, each as wide as a terminal.
_NETWORKS = ("name", "features", "tile", "mpp", "pooling", "weights")
_TERMS = ("name", "licence", "gated", "paper")


@dataclass(frozen=True)
class EncoderList:
    """All encoders, in the order of their table."""

    encoders: Sequence[Encoder]
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints: every fact, with its sources."""
        return {"encoders": [asdict(each) | {"page": each.page} for each in self.encoders]}

    def sections(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        """Return the networks, their licences, and what else may be a backbone."""
        others = (
            ("a timm name", "any of python -c 'import timm; print(timm.list_models())'"),
            ("hf-hub:owner/model", "any model on the Hugging Face hub that timm can load"),
        )
        return [
            ("--set model.backbone=NAME", self._table(_NETWORKS)),
            ("licences and papers", self._table(_TERMS)),
            ("other values", list(others)),
        ]

    def _table(self, heads: tuple[str, ...]) -> list[tuple[str, ...]]:
        return [heads, *(tuple(_cells(each)[head] for head in heads) for each in self.encoders)]


def encoders() -> EncoderList:
    """List the encoders.

    Examples
    --------
    >>> [each.width for each in encoders().encoders if each.name == "uni"]
    [1024]
    """
    return EncoderList(list(ENCODERS.values()))


def _cells(encoder: Encoder) -> dict[str, str]:
    """Return the cells of an encoder's row by column."""
    return {
        "name": encoder.name,
        "features": str(encoder.width),
        "tile": str(encoder.tile),
        "mpp": " ".join(f"{each:g}" for each in encoder.mpp) or "?",
        "pooling": encoder.pooling,
        "weights": encoder.parameters or "?",
        "licence": encoder.licence or "see page",
        "gated": "yes" if encoder.gated else "no",
        "paper": encoder.paper or "-",
    }
