"""What learns when: the phases of a training."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wsi_ats.settings import Settings


@dataclass(frozen=True)
class Phase:
    """Epochs in which the same parts of a network learn from the same kind of draws.

    Parameters
    ----------
    name
        ``classifier``: what to look for, from uniform draws; ``attention``: where to look, by a classifier
        that is fixed; ``joint``: all together, from draws by attention.
    epochs
        How many, at most.
    learns
        Parts of the network; see :meth:`wsi_ats.nn.network.SlideNetwork.parts`.
    tiles
        Drawn of each slide in a step.
    """

    name: str
    epochs: int
    learns: tuple[str, ...]
    tiles: int

    def settings(self, settings: Settings) -> Settings:
        """Settings of a run with the draws of this phase."""
        sampling = settings.sampling
        regions = -(-sampling.regions * self.tiles // sampling.tiles)  # as many tiles in each as ever
        return replace(settings, sampling=replace(sampling, tiles=self.tiles, regions=regions, max_tiles=0))


def phases_of(settings: Settings) -> list[Phase]:
    """Return the phases that settings ask for, in order; see :meth:`Settings.check_trainable` for none.

    Examples
    --------
    >>> [(phase.name, phase.epochs) for phase in phases_of(Settings())]
    [('classifier', 18), ('attention', 12)]
    """
    learning = settings.training
    phases = [Phase("classifier", learning.epochs, ("backbone", "attention", "head", "gate"), learning.tiles)]
    if settings.model.attends:
        looking = ("attention", "attention_backbone")
        phases = [
            Phase("classifier", learning.epochs, ("backbone", "head", "gate"), learning.tiles),
            Phase("attention", learning.attention_epochs, looking, learning.attention_tiles),
            Phase(
                "joint",
                learning.joint_epochs,
                ("backbone", *looking, "head", "gate"),
                settings.sampling.tiles,
            ),
        ]
    return [phase for phase in phases if phase.epochs]
