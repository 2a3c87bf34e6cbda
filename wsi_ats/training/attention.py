"""The attention phase: survey the slides, train attention on the survey, decide how far to trust it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from wsi_ats.models.base import draw_seed
from wsi_ats.models.batches import Example
from wsi_ats.models.evidence import Evidence
from wsi_ats.models.sampling import AttentionSampling
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.seeding import seed_layers
from wsi_ats.training.distillation import HeldOut, Trust, loss, recall, survey, trust
from wsi_ats.training.learner import Learner
from wsi_ats.training.progress import Journal
from wsi_ats.training.setup import Batch, Setup
from wsi_ats.training.validation import ValidationSlides, drawing_uniformly

_LOG = logging.getLogger(__name__)


class AttentionPhase:
    """The phase in which attention learns from a fixed classifier.

    It takes ``setup``, ``learner`` and ``journal`` of the training, and ``validation`` slides to evaluate on.
    """

    def __init__(
        self, setup: Setup, learner: Learner, journal: Journal, validation: ValidationSlides
    ) -> None:
        self._setup, self._learner, self._journal, self._validation = setup, learner, journal, validation
        self._evidence: dict[int, Evidence] = {}
        # The training slides that attention learns from, followed by the validation slides.
        self._examples: dict[int, Example] = dict(enumerate([*setup.training, *setup.validation]))

    def begin(self) -> None:
        """Survey the slides at the beginning of the phase."""
        found = self._survey()
        if not self._learner.frozen:
            own = self._setup.processes.share(sorted(found))
            self._journal.add(tiles=sum(len(found[number]) for number in own))
        self._recall(found)

    def resume(self) -> None:
        """Restore the survey in a run that was stopped within the phase.

        Without a stored survey the slides are surveyed again, with the same result, because seed and
        classifier are the same. As in repeated steps, tiles that are read again are not counted again.
        """
        stored = self._journal.states.load_named("survey")
        if all(self._setup.processes.gather(stored is not None)):
            self._recall({int(number): each for number, each in (stored or {}).items()})
            return
        _LOG.warning("slides are surveyed again, which reads training.attention_tiles tiles of each")
        found = self._survey()
        self._learner.take_tile_count()
        self._recall(found)

    def take(self, step: int, batch: Batch, begun: None) -> None:  # noqa: ARG002  (nothing is read)
        """Take a ``step`` of attention alone, on the slides of its ``batch``; nothing is ``begun``."""
        setup, journal = self._setup, self._journal
        # Dropout, if attention has any.
        seed_layers(draw_seed(setup.learning.seed, "step", step), setup.device)
        self._learner.optimizer.zero_grad(set_to_none=True)
        count = 0
        check = partial(journal.check_finite, step=step, batch=batch)
        for unit, _occasion in setup.processes.share(batch):
            self._learner.turns.manual_seed(draw_seed(setup.learning.seed, f"turns of {unit}", step))
            for evidence in self._known(setup.units[unit]):
                with journal.naming_step(step):
                    own, entropy, top = loss(evidence)
                value, cells = torch.stack([own.detach(), entropy.exp()]).tolist()
                check("loss", value)
                (own / len(batch)).backward()  # type: ignore[no-untyped-call]
                journal.add(loss=value, units=1, drawn=1, cells=cells, top=top)
                count += 1
        self._learner.take_step(count, check)

    def end(self) -> Trust:
        """Decide on the validation slides how far to trust attention, and discard the survey.

        All processes must call it. The first decides for all, because they must continue in the same phase.
        """
        found = self._setup.processes.gather(self._judge())[0]
        cast(AttentionSampler, self._learner.model).attention_scale.fill_(found.scale)
        self._evidence = {}
        return found

    def _judge(self) -> Trust:
        setup = self._setup
        held_out, targets = [], []
        for slides in setup.validation_units:
            known = self._known([len(setup.training) + slide for slide in slides])
            if known:
                example = setup.validation[slides[0]]
                held_out.append(HeldOut(example.ref.case, known))
                targets.append(example.target)

        def metric(outputs: Tensor, places: Sequence[int]) -> float | None:
            chosen = torch.tensor([targets[place] for place in places], dtype=torch.float64)
            return self._validation.main_metric(outputs, chosen)[1]

        return trust(
            cast(AttentionSampler, self._learner.model.eval()),
            held_out,
            metric,
            tiles=setup.settings.sampling.tiles,
            exploration=setup.settings.sampling.exploration,
            seed=setup.learning.seed,
        )

    def _survey(self) -> dict[int, Tensor]:
        """Compute the fixed classifier's outputs of tiles of each slide, and store them."""
        setup, journal = self._setup, self._journal
        model = cast(AttentionSampler, self._learner.model.eval())
        own = {number: self._examples[number] for number in setup.processes.share(list(self._examples))}
        bad: dict[str, str] = {}
        with drawing_uniformly(model):
            found = survey(
                cast(AttentionSampling, self._learner.method),
                own,
                self._learner.source,
                setup.learning.seed,
                read_ahead=setup.learning.read_ahead,
                on_bad=bad.__setitem__,
            )
        journal.note_bad(bad)
        self._evidence = dict(found)
        tile_outputs = {number: each.tile_outputs.cpu() for number, each in found.items()}
        everything = {
            number: each for part in setup.processes.gather(tile_outputs) for number, each in part.items()
        }
        if setup.processes.first:
            journal.states.save_named("survey", {str(number): each for number, each in everything.items()})
        setup.processes.gather(None)
        return everything

    def _recall(self, found: Mapping[int, Tensor]) -> None:
        """Restore the evidence of slides that another process or an earlier run surveyed."""
        bad: dict[str, str] = {}
        with drawing_uniformly(cast(AttentionSampler, self._learner.model)):
            self._evidence |= recall(
                cast(AttentionSampling, self._learner.method),
                self._examples,
                self._learner.source,
                self._setup.learning.seed,
                {number: each for number, each in found.items() if number not in self._evidence},
                on_bad=bad.__setitem__,
            )
        self._journal.note_bad(bad)

    def _known(self, slides: Sequence[int]) -> list[Evidence]:
        """Return the evidence of each slide of a case or, if slides are pooled, of all together."""
        known = [self._evidence[slide] for slide in slides if slide in self._evidence]
        return [Evidence.of_case(known)] if known and self._setup.settings.model.cases == "union" else known
