"""The record of one foundation encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from wsi_ats.errors import ModelError

Colour: TypeAlias = tuple[float, float, float]
Argument: TypeAlias = int | float | str | bool

IMAGENET: tuple[Colour, Colour] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

POOLINGS = ("class", "class+mean", "attention", "mean")
"""Ways from tokens to features: the class token; the class token and the mean of the patch tokens; attention
of a learned query over all tokens; the mean of the last map."""

KEYS = ("timm", "transformers", "conch")
"""Names of weights in a published file: those of timm, of transformers, or of CONCH's two versions."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A published encoder of tiles.

    Parameters
    ----------
    name
        Name for ``model.backbone``.
    hub, file
        Repository on the Hugging Face hub, and its file of weights.
    architecture, arguments
        A timm network, and what it is built with. ``mlp_layer`` and ``embed_layer`` are names of classes.
    width
        Number of features.
    patch
        Side of a patch in pixels; the network takes tiles whose side is a multiple of it.
    tile
        Side of the input in pixels.
    mpp
        Micrometres per pixel of the tiles it was trained on, the usual value first; empty if not published.
    mean, std
        Normalisation of RGB in [0, 1].
    pooling
        One of :data:`POOLINGS`.
    pool_bias
        Whether pooling by attention adds constants.
    prefix
        Number of tokens before those of patches: the class token and registers.
    keys
        One of :data:`KEYS`.
    parameters
        Number of weights as published; ``None`` where no page gives the number for this network alone.
    licence
        Licence of the weights; ``None`` where pages disagree.
    gated
        Whether its licence must be accepted on its page before a download.
    paper
        arXiv number or DOI; empty where there is none.
    sources
        Pages that the facts come from.
    note
        What a user must know.

    Raises
    ------
    ModelError
        When a value is impossible.
    """

    name: str
    hub: str
    file: str
    architecture: str
    width: int
    patch: int
    licence: str | None
    gated: bool
    paper: str
    sources: tuple[str, ...]
    parameters: str | None = None
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    tile: int = 224
    mpp: tuple[float, ...] = (0.5,)
    mean: Colour = IMAGENET[0]
    std: Colour = IMAGENET[1]
    pooling: str = "class"
    pool_bias: bool = True
    prefix: int = 1
    keys: str = "timm"
    note: str = ""

    def __post_init__(self) -> None:
        for name, value, known in (("pooling", self.pooling, POOLINGS), ("keys", self.keys, KEYS)):
            if value not in known:
                raise ModelError(
                    f"{name} of encoder {self.name} is {value!r}; give one of {', '.join(known)}"
                )
        if self.tile % self.patch:
            raise ModelError(
                f"tile of encoder {self.name} is {self.tile}; give a multiple of its patch, {self.patch}"
            )
        if min(self.width, self.patch, self.tile, *self.mpp, *self.std) <= 0:
            raise ModelError(f"encoder {self.name} has a size that is not positive; correct its record")

    @property
    def page(self) -> str:
        """Address of its page on the hub."""
        return f"https://huggingface.co/{self.hub}"

    def unsuited(self, size: int, mpp: float) -> str:
        """Return how tiles differ from those it was trained on; empty if they do not.

        Parameters
        ----------
        size
            Side of a tile in pixels.
        mpp
            Micrometres per pixel. A tenth more or less counts as the same.

        Examples
        --------
        >>> from wsi_ats.encoders import ENCODERS
        >>> ENCODERS["uni"].unsuited(224, 0.5), ENCODERS["uni"].unsuited(448, 0.5)
        ('', 'tile.size is 448, but 224 in its training')
        """
        found = [f"tile.size is {size}, but {self.tile} in its training"] if size != self.tile else []
        if size % self.patch:
            found.append(
                f"the last {size % self.patch} pixels of each row and column are left out, because "
                f"{size} is not a multiple of {self.patch}"
            )
        if self.mpp and not any(abs(mpp - known) <= 0.1 * known for known in self.mpp):
            trained = " or ".join(f"{known:g}" for known in self.mpp)
            found.append(f"tile.mpp is {mpp:g}, but {trained} in its training")
        return "; ".join(found)
