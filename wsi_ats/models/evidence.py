"""What a survey of a slide, or of a case, found: tiles that tell attention where to look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wsi_ats.nn import expectation
from wsi_ats.nn.distillation import distillation, influence, target


@dataclass(frozen=True)
class Attended:
    """What attention makes of some tiles of a slide, and of the slide as a whole.

    Parameters
    ----------
    log_attention
        Logarithm of the attention of each tile's cell, shape (m,), with gradient. It is known where attention
        itself is too small for a number.
    log_mass
        Logarithm of the sum of the attention's exponentiated logits, shape (): what the softmax divides by.
    entropy
        Of the attention, in nats, shape (), with gradient.
    top_share
        Attention of the hundredth of the cells, or regions, that have most of it.
    """

    log_attention: Tensor
    log_mass: Tensor
    entropy: Tensor
    top_share: float


@dataclass(frozen=True)
class Evidence:
    """Tiles that were drawn uniformly, and what the classifier says of them.

    Parameters
    ----------
    attend
        Says what attention, as it is when this is called, makes of the tiles.
    weight
        Weights of the tiles in an estimate of the whole when attention was uniform, shape (m,).
    uniform
        What attention made of the tiles then.
    said
        What the classifier says of each tile: its gate and, behind that, its outputs, shape (m, 1 + O),
        float64.
    nothing
        With linear pooling the classifier's outputs for a feature of zeros, shape (O,); ``None`` with gated.
    classes
        Whether only differences between outputs matter.
    """

    attend: Callable[[], Attended]
    weight: Tensor
    uniform: Attended
    said: Tensor
    nothing: Tensor | None
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
            said=torch.cat([each.said for each in slides]),
            nothing=slides[0].nothing,
            classes=slides[0].classes,
        )

    @cached_property
    def target(self) -> Tensor:
        """What attention should be, as a share of each tile, shape (m,); sums to 1."""
        gate, outputs = self.said[:, 0], self.said[:, 1:]
        return target(
            self.weight, influence(self.weight, gate, outputs, nothing=self.nothing, classes=self.classes)
        )

    @torch.no_grad()
    def foresight(self) -> Tensor:
        """Return how much higher attention's logits are where a tile is worth reading than on average.

        In nats, shape (); 0 is expected of attention that knows nothing of these tiles.
        """
        log_attention = self.attend().log_attention.double()
        even = self.weight.double() / self.weight.double().sum()
        return distillation(even, log_attention) - distillation(self.target, log_attention)

    @torch.no_grad()
    def simulate(self, tiles: int, *, exploration: float, draws: int, generator: torch.Generator) -> Tensor:
        """Outputs as draws by attention as it is would give them, without reading a tile.

        The tiles of the survey stand for the whole: draws are with replacement, from them alone (a
        bootstrap). Tiles are pooled as a ratio, to which linear pooling is close.

        Parameters
        ----------
        tiles
            In each draw.
        exploration
            Share of uniform draws.
        draws
            How many.
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
        said = self.said.cpu()[drawn]
        weight = (attention / proposal)[drawn] / tiles
        return torch.stack(
            [expectation.gated(*each) for each in zip(weight, said[..., 1:], said[..., 0], strict=True)]
        )


def _together(slides: Sequence[Attended]) -> Attended:
    """Attention over the cells of several slides as if they were those of one."""
    masses = torch.stack([each.log_mass for each in slides])
    of_slide = torch.log_softmax(masses, 0)
    share = of_slide.exp()
    return Attended(
        log_attention=torch.cat(
            [own + each.log_attention for own, each in zip(of_slide, slides, strict=True)]
        ),
        log_mass=torch.logsumexp(masses, 0),
        entropy=share @ torch.stack([each.entropy for each in slides]) - share @ of_slide,
        top_share=sum(own * each.top_share for own, each in zip(share.tolist(), slides, strict=True)),
    )
