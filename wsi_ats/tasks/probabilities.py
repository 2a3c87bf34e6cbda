"""Tasks whose scores are probabilities of events, such as having a class or a label."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from wsi_ats.tasks.base import Details, Floats, Names, Task

if TYPE_CHECKING:
    from wsi_ats.tasks.evaluation import Bools, Event


class ProbabilityTask(Task):
    """A task whose scores are probabilities; abstract."""

    main_metric = "auc"
    chance = 0.5
    most_names = None
    has_units, relative = False, False

    def strata(self, labels: Sequence[str], cases: Sequence[str]) -> list[str]:
        """Return the rarest class or label of each slide; common ones fall into all splits anyway."""
        each = [self.must_learn(label) or {"-"} for label in labels]
        number = Counter(name for names in each for name in names)
        return [min(names, key=lambda name: (number[name], name)) for names in each]

    def columns(self, names: Names) -> tuple[str, ...]:
        """Return a probability for each name."""
        return tuple(f"prob_{name}" for name in names)

    def metrics(self, targets: Floats, scores: Floats, names: Names, counts: Floats) -> dict[str, Floats]:
        """Compute auc, average_precision, metrics of decisions, and calibration_error.

        Areas and precisions are means over the events. With several classes or labels, each also has its own
        area, ``auc_<name>``.
        """
        from wsi_ats.tasks.curves import expected_calibration_error
        from wsi_ats.tasks.evaluation import area, average_precision

        events = self._events(targets, scores)
        areas = [area(event, counts) for event in events]
        mean = np.mean(areas, axis=0)
        whole = ~np.isnan(mean)
        found = {
            "auc": mean,
            "average_precision": np.where(whole, average_precision(events, counts), np.nan),
            **self._decisions(targets, scores, counts, whole),
            "calibration_error": expected_calibration_error(self._forecasts(targets, scores), counts),
        }
        each = zip(names, areas, strict=True) if len(names) == len(events) else ()
        return found | {f"auc_{name}": values for name, values in each}

    def main(self, targets: Floats, scores: Floats, counts: Floats) -> Floats:
        """Compute the mean area under the ROC curves of all events."""
        from wsi_ats.tasks.evaluation import mean_area

        return mean_area(self._events(targets, scores), counts)

    def _curves(self, targets: Floats, scores: Floats, names: Names) -> Details:
        """Make ROC and precision-recall curves and calibration."""
        from wsi_ats.tasks.curves import details_of_events

        events = self._events(targets, scores)
        named = dict(zip(names[len(names) - len(events) :], events, strict=True))
        return details_of_events(named, self._forecasts(targets, scores))

    @abstractmethod
    def _events(self, targets: Floats, scores: Floats) -> list[Event]:
        """Return the event of each name; of two classes only that of the second."""

    @abstractmethod
    def _forecasts(self, targets: Floats, scores: Floats) -> Event:
        """Return the events whose calibration is assessed, as one."""

    @abstractmethod
    def _decisions(self, targets: Floats, scores: Floats, counts: Floats, whole: Bools) -> dict[str, Floats]:
        """Compute metrics of decisions; ``whole`` tells in which samples every event has both outcomes."""
