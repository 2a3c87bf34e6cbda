"""Evidence from a survey of a slide, or of a case: the tiles from which attention learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wsi_ats.nn import expectation
from wsi_ats.nn.distillation import distillation, influence, target


@dataclass(frozen=True)
class TileAttention:
    """Attention to some tiles of a slide, and to the slide as a whole.

    Parameters
    ----------
    log_attention
        Logarithm of the attention of each tile's cell, shape (m,), with gradient; defined even where the
        attention itself underflows.
    log_mass
        Logarithm of the divisor of the attention's softmax, shape ().
    entropy
        Entropy of the attention, in nats, shape (), with gradient.
    top_share
        Total attention of the top hundredth of the cells, or regions.
    """

    log_attention: Tensor
    log_mass: Tensor
    entropy: Tensor
    top_share: float


@dataclass(frozen=True)
class Evidence:
    """Uniformly drawn tiles, with the classifier's outputs for each.

    Parameters
    ----------
    attend
        Function that returns the attention to the tiles at the time of the call.
    weight
        Weights of the tiles by the uniform attention of the survey, shape (m,).
    uniform
        Attention to the tiles at the time of the survey.
    tile_outputs
        Gate of each tile followed by the classifier's outputs, shape (m, 1 + O), float64.
    zero_outputs
        The classifier's outputs for a feature of zeros, shape (O,); ``None`` with gated pooling.
    classes
        Whether the outputs are logits of classes, of which only differences matter.
    """

    attend: Callable[[], TileAttention]
    weight: Tensor
    uniform: TileAttention
    tile_outputs: Tensor
    zero_outputs: Tensor | None
    classes: bool

    @classmethod
    def of_case(cls, slides: Sequence[Evidence]) -> Evidence:
        """Return the evidence of a case whose slides are pooled as if their cells were those of one slide."""
        if len(slides) == 1:
            return slides[0]
        share = torch.softmax(torch.stack([each.uniform.log_mass for each in slides]), 0)
        return cls(
            attend=lambda: _together([each.attend() for each in slides]),
            weight=torch.cat([own * each.weight for own, each in zip(share, slides, strict=True)]),
            uniform=_together([each.uniform for each in slides]),
            tile_outputs=torch.cat([each.tile_outputs for each in slides]),
            zero_outputs=slides[0].zero_outputs,
            classes=slides[0].classes,
        )

    @cached_property
    def target(self) -> Tensor:
        """Target of attention: the share of each tile, shape (m,); sums to 1."""
        gate, outputs = self.tile_outputs[:, 0], self.tile_outputs[:, 1:]
        return target(
            self.weight,
            influence(self.weight, gate, outputs, zero_outputs=self.zero_outputs, classes=self.classes),
        )

    @torch.no_grad()
    def foresight(self) -> Tensor:
        """Return the difference of attention logits between informative tiles and the average tile.

        In nats, shape (); the expectation is 0 for attention that is independent of these tiles.
        """
        log_attention = self.attend().log_attention.double()
        even = self.weight.double() / self.weight.double().sum()
        return distillation(even, log_attention) - distillation(self.target, log_attention)

    @torch.no_grad()
    def simulate(self, tiles: int, *, exploration: float, draws: int, generator: torch.Generator) -> Tensor:
        """Simulate the outputs of draws by the current attention, without reading tiles.

        Draws are with replacement from the tiles of the survey, which represent the slide (a bootstrap).
        Tiles are pooled as a ratio, which linear pooling approximates.

        Parameters
        ----------
        tiles
            Number of tiles in each draw.
        exploration
            Share of uniform draws.
        draws
            Number of draws.
        generator
            Source of randomness, on the CPU.

        Returns
        -------
        Tensor, shape (draws, O), float64, on the CPU
        """
        even = (self.weight.double() / self.weight.double().sum()).cpu()
        change = (self.attend().log_attention - self.uniform.log_attention).double().cpu()
        attention = torch.softmax(even.log() + change, 0)
        proposal = torch.lerp(attention, even, exploration)
        drawn = torch.multinomial(proposal.expand(draws, -1), tiles, replacement=True, generator=generator)
        tile_outputs = self.tile_outputs.cpu()[drawn]
        weight = (attention / proposal)[drawn] / tiles
        return torch.stack(
            [
                expectation.gated(*each)
                for each in zip(weight, tile_outputs[..., 1:], tile_outputs[..., 0], strict=True)
            ]
        )


def _together(slides: Sequence[TileAttention]) -> TileAttention:
    """Combine the attention to several slides as if their cells were those of one."""
    masses = torch.stack([each.log_mass for each in slides])
    of_slide = torch.log_softmax(masses, 0)
    share = of_slide.exp()
    return TileAttention(
        log_attention=torch.cat(
            [own + each.log_attention for own, each in zip(of_slide, slides, strict=True)]
        ),
        log_mass=torch.logsumexp(masses, 0),
        entropy=share @ torch.stack([each.entropy for each in slides]) - share @ of_slide,
        top_share=sum(own * each.top_share for own, each in zip(share.tolist(), slides, strict=True)),
    )
