"""The attention-sampling model: three pure steps, with tiles read between the first two.

::

    thumbnail -> attend -> attention -> (draw, read tiles) -> embed -> features -> pool -> classify

No tensor connects cell numbers and tiles: gradients flow through the attention and the features only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from wsi_ats.errors import ModelError
from wsi_ats.nn.attention import FeatureMapAttention, SmallAttention, candidate_logits, score_turned
from wsi_ats.nn.backbone import create_backbone
from wsi_ats.nn.encoder import TileEncoder, build_encoder
from wsi_ats.nn.expectation import POOLINGS
from wsi_ats.nn.network import SlideNetwork


class AttentionSampler(SlideNetwork):
    """Attention network, tile encoder and classifier of one model.

    Parameters
    ----------
    attention
        Network from thumbnail (rows * p, columns * p, 3) and mask (rows, columns) to logits (rows, columns);
        ``None`` for uniform sampling.
    encoder
        Encoder from tiles (N, h, w, 3) to features (N, D).
    classes
        Number of outputs, such as classes.
    pool
        Name of a pooling of drawn tiles; see :data:`wsi_ats.nn.expectation.POOLINGS`.
    regions
        Like ``attention``, from a coarse thumbnail to the regions of two-level sampling; ``attention`` then
        sees one region at a time.

    Attributes
    ----------
    attention_scale
        Factor of the attention logits, shape (): 1 for attention as learned, 0 for uniform attention.

    Examples
    --------
    >>> model = build_model(classes=2, backbone="test_vit", pretrained=False, attention="small",
    ...                     pool="linear", tile_size=64, pixels_per_cell=4)
    >>> attention = model.attend(torch.zeros(8, 12, 3, dtype=torch.uint8), torch.arange(6), (2, 3))
    >>> attention.tolist() == [1 / 6] * 6 or attention.sum().item()  # uniform at the start
    1.0
    """

    def __init__(
        self,
        attention: nn.Module | None,
        encoder: TileEncoder,
        *,
        classes: int,
        pool: str,
        regions: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if pool not in POOLINGS:
            raise ModelError(f"unknown pooling {pool!r}; choose one of {', '.join(POOLINGS)}")
        self.pooling = POOLINGS[pool]
        self.attention = attention
        self.regions = regions
        self.register_buffer("attention_scale", torch.ones(()))
        self.attention_scale: Tensor
        self.encoder = encoder
        self.gate = nn.Linear(encoder.width, 1, bias=False) if self.pooling.gated else None
        self.head = nn.Linear(encoder.width, classes)
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)  # at the start all tiles weigh the same

    def attend(self, thumbnail: Tensor, cells: Tensor, shape: tuple[int, int]) -> Tensor:
        """Compute the attention over candidate ``cells`` of a grid of a ``shape``, from its ``thumbnail``.

        Shape (K,), sums to 1; see :meth:`score_cells`.
        """
        return torch.softmax(self.score_cells(thumbnail, cells, shape), dim=0)

    def score_cells(
        self, thumbnail: Tensor, cells: Tensor, shape: tuple[int, int], *, turn: int = 0
    ) -> Tensor:
        """Compute the attention logits of the candidate cells.

        Parameters
        ----------
        thumbnail
            RGB, uint8, shape (rows * p, columns * p, 3).
        cells
            Flat numbers of the candidate (tissue) cells, shape (K,).
        shape
            Rows and columns of the grid.
        turn
            Orientation in which the network sees the slide; see :func:`wsi_ats.nn.attention.score_turned`.

        Returns
        -------
        Tensor, shape (K,)
        """
        return self._score(self.attention, thumbnail, cells, shape, turn)

    def score_regions(
        self, thumbnail: Tensor, regions: Tensor, shape: tuple[int, int], *, turn: int = 0
    ) -> Tensor:
        """Compute the attention logits of the candidate regions; like :meth:`score_cells`.

        Parameters
        ----------
        thumbnail
            Coarse thumbnail, RGB, uint8, shape (rows * p, columns * p, 3).
        regions
            Flat numbers of the candidate regions, shape (T,).
        shape
            Rows and columns of the grid of regions.
        turn
            See :meth:`score_cells`.

        Raises
        ------
        ModelError
            When the model has one level only.
        """
        if self.regions is None:
            raise ModelError("this model has one level and no regions; train one with thumbnail.levels=2")
        return self._score(self.regions, thumbnail, regions, shape, turn)

    def _score(
        self, network: nn.Module | None, thumbnail: Tensor, cells: Tensor, shape: tuple[int, int], turn: int
    ) -> Tensor:
        if network is None or not self.attention_scale:
            return self.attention_scale.new_zeros(len(cells), device=thumbnail.device)
        mask = torch.zeros(shape, dtype=torch.bool, device=thumbnail.device)
        mask.view(-1)[cells] = True
        return self.attention_scale * candidate_logits(score_turned(network, thumbnail, mask, turn), cells)

    def pool(self, weights: Tensor, features: Tensor) -> Tensor:
        """Estimate the slide's feature (D,) from the weights (m,) and features (m, D) of drawn tiles."""
        return self.pooling.estimate(weights, features, self.gate_logits(features))

    def pool_without(self, weights: Tensor, features: Tensor, group: Tensor) -> Tensor:
        """Estimate the slide's feature without each group of tiles in turn, shape (G, D), float64.

        Parameters
        ----------
        weights, features, group
            See :meth:`wsi_ats.nn.expectation.Pooling.estimate_without`.
        """
        return self.pooling.estimate_without(weights, features, self.gate_logits(features), group)

    def gate_logits(self, features: Tensor) -> Tensor:
        """Return the gate's logits (m,) of tiles with features (m, D); 0 without a gate."""
        if self.gate is None:
            return features.new_zeros(len(features))
        logits: Tensor = self.gate(features)[:, 0]
        return logits

    def log_mass(self, weights: Tensor, features: Tensor) -> Tensor:
        """Return the logarithm of the divisor of :meth:`pool`, shape (); 0 where pooling does not divide."""
        return self.pooling.log_mass(weights, self.gate_logits(features))

    def parts(self) -> Mapping[str, Sequence[nn.Module]]:
        """See :meth:`wsi_ats.nn.network.SlideNetwork.parts`; adds the gate and attention's backbone."""
        networks = [each for each in (self.attention, self.regions) if each is not None]
        maps = [each for each in networks if isinstance(each, FeatureMapAttention)]
        return {
            "backbone": [self.encoder],
            "attention": [each.logit if isinstance(each, FeatureMapAttention) else each for each in networks],
            "attention_backbone": [each.network for each in maps],
            "head": [self.head],
            "gate": [] if self.gate is None else [self.gate],
        }


def build_model(
    *,
    classes: int,
    backbone: str,
    pretrained: bool,
    attention: str | None,
    pool: str,
    tile_size: int,
    pixels_per_cell: int,
    pixels_per_region: int | None = None,
    checkpoint: str = "",
    attention_checkpoint: str = "",
) -> AttentionSampler:
    """Build a model from settings.

    Parameters
    ----------
    classes
        Number of outputs, such as classes.
    backbone, pretrained, checkpoint
        See :func:`wsi_ats.nn.backbone.create_backbone`.
    attention, attention_checkpoint
        ``"small"`` or a timm name, and a local file of its weights; ``None`` for uniform sampling.
    pool
        See :data:`wsi_ats.nn.expectation.POOLINGS`.
    tile_size
        Side of a tile in pixels.
    pixels_per_cell
        Side of a cell in thumbnail pixels.
    pixels_per_region
        Side of a region in pixels of the coarse thumbnail; gives the model two levels.

    Raises
    ------
    ModelError
        When a network cannot be built.
    """
    encoder = build_encoder(backbone, pretrained=pretrained, checkpoint=checkpoint, size=tile_size)

    def attention_network(pixels: int) -> nn.Module | None:
        if attention is None:
            return None
        if attention == "small":
            return SmallAttention(pixels)
        return FeatureMapAttention(
            create_backbone(attention, pretrained=pretrained, checkpoint=attention_checkpoint, maps=True)
        )

    return AttentionSampler(
        attention_network(pixels_per_cell),
        encoder,
        classes=classes,
        pool=pool,
        regions=None if pixels_per_region is None else attention_network(pixels_per_region),
    )
