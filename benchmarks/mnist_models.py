"""Networks for Megapixel MNIST: attention sampling, and what the paper held it against.

They are as small as the reference's, so that the experiment runs on two cores. Canvases are all of one size,
so that everything is batched over them; only the draw goes image by image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.mnist_canvas import CLASSES, SIDE, Canvases, Numbers
from wsi_ats.nn.expectation import entropy, gated, linear, weights
from wsi_ats.nn.sampling import Draw, draw_each, explore

TILE = 50
"""Pixels a side of a tile."""
LOW = 180
"""Pixels a side of the low view."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All choices of attention sampling on Megapixel MNIST.

    Parameters
    ----------
    stride
        Canvas pixels from one attention cell to the next, a multiple of 25 (three pixels of the low view).
    mask
        Whether only cells whose tile shows any ink in the low view are candidates.
    prior
        What the logarithm of a cell's ink is multiplied by before it is added to the attention logits.
    pool
        ``"gated"`` or ``"linear"``; see :mod:`wsi_ats.nn.expectation`.
    teaching
        Strength of the teaching of the attention by what drawn tiles turned out to be worth.
    evidence
        Power of a tile's own probability of the label in that worth.
    normalise
        Whether the tile network has batch normalisation.
    he
        Whether the tile network starts from He's initialisation, or from PyTorch's.
    design, exploration, tiles
        The draw; see :mod:`wsi_ats.nn.sampling`.
    entropy
        Strength with which attention is kept spread.
    batch, epochs, rate, attention_rate
        Of the training with Adam; rates fall to zero along a cosine.
    """

    stride: int = 25
    mask: bool = False
    prior: float = 0.0
    pool: str = "gated"
    teaching: float = 1.0
    evidence: float = 1.0
    normalise: bool = True
    he: bool = True
    design: str = "systematic"
    exploration: float = 0.0
    tiles: int = 10
    entropy: float = 0.01
    batch: int = 16
    epochs: int = 10
    rate: float = 2e-3
    attention_rate: float = 1e-2


class AttentionNetwork(nn.Module):
    """From the low view to a logit for every cell: one look at the cell's tile, one at its neighbours.

    Parameters
    ----------
    stride
        Low-view pixels from one cell to the next.
    width
        Channels.
    """

    def __init__(self, stride: int, width: int = 16) -> None:
        super().__init__()
        self.cell = nn.Conv2d(1, width, TILE * LOW // SIDE, stride=stride)
        self.around = nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect")
        self.logit = nn.Conv2d(width, 1, 1, bias=False)
        nn.init.zeros_(self.logit.weight)  # training starts from uniform attention

    def forward(self, views: Tensor) -> Tensor:
        """Score the cells of low views (B, 180, 180), from 0 to 255: logits (B, K)."""
        with torch.autocast("cpu", torch.bfloat16):
            seen = F.relu(self.around(F.relu(self.cell(views[:, None] / 64))))
        logits: Tensor = self.logit(seen.float())
        return logits.flatten(1)


class TileNetwork(nn.Module):
    """Three convolutions and a maximum: features (T, 48) of tiles (T, h, w) of any size.

    Under bfloat16 autocast, which halves the time on processors that know it.
    """

    WIDTH = 48

    def __init__(self, *, normalise: bool = True, he: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 5, stride=2)
        self.second = nn.Conv2d(16, 32, 3)
        self.third = nn.Conv2d(32, self.WIDTH, 3)
        norms = (nn.BatchNorm2d(16), nn.BatchNorm2d(32), nn.BatchNorm2d(self.WIDTH))
        self.norms = nn.ModuleList(norms if normalise else [nn.Identity()] * 3)
        self.last = nn.BatchNorm1d(self.WIDTH) if normalise else nn.Identity()
        if he:
            for layer in (self.first, self.second, self.third):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.to(memory_format=torch.channels_last)

    def forward(self, tiles: Tensor) -> Tensor:
        """Encode tiles, uint8."""
        one, two, three = self.norms
        x = (tiles[:, None].float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            x = F.max_pool2d(F.relu(one(self.first(x))), 2)
            x = F.relu(two(self.second(x)))
            x = F.relu(three(self.third(x))).amax((2, 3))
        features: Tensor = self.last(x.float())
        return features


@dataclass(frozen=True, slots=True)
class Seen:
    """What one pass over a batch of B canvases gave; n tiles were drawn of each."""

    log_attention: Tensor
    """(B, K)"""
    drawn: Draw
    """Fields (B, n); where fewer were drawn, the count of the rest is zero."""
    weights: Tensor
    """(B, n)"""
    gate: Tensor
    """(B, n)"""
    tile_logits: Tensor
    """What each tile alone says of the class, (B, n, 10)."""
    logits: Tensor
    """(B, 10)"""


class Sampler(nn.Module):
    """Attention sampling: low view, attention, a few tiles, their pooled feature, class logits."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.attention = AttentionNetwork(recipe.stride * LOW // SIDE)
        self.tile = TileNetwork(normalise=recipe.normalise, he=recipe.he)
        self.gate = nn.Linear(TileNetwork.WIDTH, 1, bias=False)
        nn.init.zeros_(self.gate.weight)  # at the start every tile counts the same
        self.head = nn.Linear(TileNetwork.WIDTH, CLASSES)

    def attend(self, views: Tensor) -> Tensor:
        """Logarithm of the attention over all cells, (B, K); minus infinity outside the mask."""
        recipe = self.recipe
        logits = self.attention(views)
        if recipe.mask or recipe.prior:
            ink = F.avg_pool2d(views[:, None], TILE * LOW // SIDE, recipe.stride * LOW // SIDE).flatten(1)
            logits = logits + recipe.prior * ink.clamp(min=1e-3).log()
            if recipe.mask:
                # A canvas of fifty-five patches always shows some.
                logits = logits.masked_fill(ink <= 0, -math.inf)
        return torch.log_softmax(logits, 1)

    def forward(self, canvases: Canvases, which: Numbers, generator: torch.Generator) -> Seen:
        """Look at canvases, draw tiles, read them and classify."""
        recipe = self.recipe
        log_attention = self.attend(torch.from_numpy(canvases.views(which, LOW)))
        attention = log_attention.exp()
        drawn = draw_all(recipe, attention, generator)
        corners = grid_corners(canvases.side, recipe.stride)[drawn.indices.flatten().numpy()]
        tiles = torch.from_numpy(canvases.tiles(np.repeat(which, drawn.indices.shape[1]), corners, TILE))
        features = encode_distinct(self.tile, tiles).unflatten(0, drawn.indices.shape)
        weight = torch.vmap(lambda a, i, c, e: weights(a, Draw(i, c, e)))(
            attention, drawn.indices, drawn.counts, drawn.expected
        )
        gate = self.gate(features)[..., 0]
        if recipe.pool == "linear":
            pooled = torch.vmap(linear)(weight, features)
        else:
            pooled = torch.vmap(gated)(weight, features, gate)
        return Seen(log_attention, drawn, weight, gate, self.head(features), self.head(pooled))

    def loss(self, seen: Seen, labels: Tensor) -> Tensor:
        """Cross-entropy, entropy term, and the teaching of the attention."""
        recipe = self.recipe
        loss = F.cross_entropy(seen.logits, labels)
        if recipe.entropy:
            loss = loss - recipe.entropy * torch.vmap(entropy)(seen.log_attention.exp()).mean()
        if recipe.teaching:
            loss = loss + recipe.teaching * teaching(seen, labels, recipe).mean()
        return loss


def teaching(seen: Seen, labels: Tensor, recipe: Recipe) -> Tensor:
    r"""What teaches the attention how much drawn tiles turned out to be worth, shape (B,).

    The worth of tile i is :math:`r_i \propto W_i e^{h_i} P_i(y)^\beta`, normalised over the drawn tiles and
    held constant: the self-normalised importance estimate, from the n tiles drawn, of the posterior that the
    attention (as prior), the tile's gate and its own probability of the label give over *all* cells. To teach
    the attention this posterior is the M step of expectation maximisation for "one tile tells the label",
    amortised over canvases by the network that sees the low view.

    The loss is :math:`-\sum_S (r_i - w_i) \log a_i`, w being the weights, normalised. Without w it is the
    cross-entropy between worth and attention; :math:`\sum_S W_i \nabla \log a_i` is zero in expectation, and
    taking it away makes the gradient exactly zero, not noise, as long as all drawn tiles say the same.
    Attention learned on noise alone drifts to wherever it has already been.
    """
    label = labels[:, None, None].expand(-1, seen.gate.shape[1], 1)
    evidence = F.log_softmax(seen.tile_logits, 2).gather(2, label)[..., 0]
    weight = seen.weights.detach()
    worth = torch.softmax(weight.log() + (seen.gate + recipe.evidence * evidence).detach(), 1)
    surprise = worth - weight / weight.sum(1, keepdim=True)
    # Cells that were not drawn, where fewer than n could be, are worth nothing and may have no attention.
    attention = seen.log_attention.gather(1, seen.drawn.indices).where(weight > 0, 0)
    return -(surprise * attention).sum(1)


def draw_all(recipe: Recipe, attention: Tensor, generator: torch.Generator) -> Draw:
    """Draw tiles of each canvas of a batch from its attention (B, K); fields (B, n)."""
    count, cells = attention.shape
    drawn = draw_each(
        recipe.design,
        [explore(each, recipe.exploration) for each in attention],
        cells=[torch.arange(cells)] * count,
        shapes=[(math.isqrt(cells),) * 2] * count,
        n=recipe.tiles,
        generators=[generator] * count,
    )
    padded = []
    for one in drawn:
        left = (0, recipe.tiles - len(one.indices))
        padded.append(
            (F.pad(one.indices, left), F.pad(one.counts, left), F.pad(one.expected, left, value=1.0))
        )
    return Draw(*(torch.stack(field) for field in zip(*padded, strict=True)))


def encode_distinct(network: Callable[[Tensor], Tensor], tiles: Tensor) -> Tensor:
    """Encode tiles (T, h, w), the black ones among them only once."""
    inked = tiles.flatten(1).amax(1) > 0
    distinct = inked.clone()
    distinct[(~inked).nonzero()[:1, 0]] = True
    place = torch.where(inked, distinct.cumsum(0) - 1, int(distinct[: int((~inked).int().argmax())].sum()))
    return network(tiles[distinct])[place]


def grid_corners(side: int, stride: int) -> Numbers:
    """Upper left pixels (K, 2) of all tiles of a canvas."""
    steps = np.arange(0, side - TILE + 1, stride)
    return np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)


class WholeCanvas(nn.Module):
    """The paper's first competitor: a CNN over the whole canvas at some scale, all of it rendered.

    Parameters
    ----------
    size
        Pixels a side of what it sees.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.tile = TileNetwork()
        self.head = nn.Linear(TileNetwork.WIDTH, CLASSES)

    def forward(self, canvases: Canvases, which: Numbers, generator: torch.Generator) -> Tensor:
        """Logits (B, 10)."""
        del generator
        logits: Tensor = self.head(self.tile(torch.from_numpy(canvases.views(which, self.size))))
        return logits

    def loss(self, seen: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(seen, labels)


class EveryTile(nn.Module):
    """Attention-based multiple instance learning on all tiles (Ilse et al. 2018), gated.

    Tiles lie side by side; black ones are encoded only once, as for attention sampling.
    """

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.tile = TileNetwork()
        self.content = nn.Linear(TileNetwork.WIDTH, hidden)
        self.gate = nn.Linear(TileNetwork.WIDTH, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.head = nn.Linear(TileNetwork.WIDTH, CLASSES)

    def forward(self, canvases: Canvases, which: Numbers, generator: torch.Generator) -> Tensor:
        """Logits (B, 10)."""
        del generator
        corners = grid_corners(canvases.side, TILE)
        tiles = canvases.tiles(np.repeat(which, len(corners)), np.tile(corners, (len(which), 1)), TILE)
        features = encode_distinct(self.tile, torch.from_numpy(tiles)).unflatten(0, (len(which), -1))
        scores = self.score(torch.tanh(self.content(features)) * torch.sigmoid(self.gate(features)))
        logits: Tensor = self.head((torch.softmax(scores, 1) * features).sum(1))
        return logits

    def loss(self, seen: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(seen, labels)
