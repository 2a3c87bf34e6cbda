"""Phases of training: parts of the network that learn together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wsi_ats.settings import Settings


@dataclass(frozen=True)
class Phase:
    """Epochs in which the same parts of a network learn from the same kind of draws.

    Parameters
    ----------
    name
        In ``classifier`` the classifier learns from uniform draws, in ``attention`` attention learns from the
        fixed classifier, and in ``joint`` all parts learn together, from draws by attention.
    epochs
        Largest number of epochs.
    learns
        Parts of the network that learn; see :meth:`wsi_ats.nn.network.SlideNetwork.parts`.
    tiles
        Number of tiles drawn from each slide in a step.
    """

    name: str
    epochs: int
    learns: tuple[str, ...]
    tiles: int

    def settings(self, settings: Settings) -> Settings:
        """Return the settings of a run with the draws of this phase."""
        sampling = settings.sampling
        regions = -(-sampling.regions * self.tiles // sampling.tiles)  # as many tiles in each as before
        return replace(settings, sampling=replace(sampling, tiles=self.tiles, regions=regions, max_tiles=0))


def phases_of(settings: Settings) -> list[Phase]:
    """Return the phases of settings, in order; :meth:`Settings.check_trainable` refuses settings with none.

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
