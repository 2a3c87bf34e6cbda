"""What is predicted of a slide: how its label is written, and what the numbers of a network mean.

==============  =======================  ============================  ====================
task            label                    target                        columns of scores
==============  =======================  ============================  ====================
classification  ``tumour``               number of the class           ``prob_<class>`` ...
multilabel      ``her2;?er``, ``-``      0, 1 or nan for each label    ``prob_<label>`` ...
regression      ``3.2``                  the value                     ``value``
survival        ``23.5;1``               time, 1 for an event, else 0  ``risk``
==============  =======================  ============================  ====================

A slide of task multilabel has the labels that are named, ``-`` is none of them, and ``?er`` says that it is
not known of ``er``: nan, which the loss leaves out. Whoever was not seen to have the event (0) is censored:
it came after the time, or never.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np

from wsi_ats.errors import ManifestError, SettingsError

TASKS = ("classification", "multilabel", "regression", "survival")

_NUMBERS = {"regression": "value", "survival": "risk"}
_FLAGS = {"1": 1.0, "1.0": 1.0, "true": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0}
_NONE = "-"  # the set of no labels: an empty text means that nothing is known
_UNKNOWN = "?"

_Numbers = TypeVar("_Numbers", bound=Any)


@dataclass(frozen=True, slots=True)
class Target:
    """What a model predicts.

    Parameters
    ----------
    task
        One of ``TASKS``.
    names
        Classes, labels, or the one number of regression (``value``) and survival (``risk``).
    centre, scale
        A network gives a value in these units, so that one learning rate suits all:
        (value - centre) / scale. 0 and 1 for other tasks.

    Raises
    ------
    SettingsError
        When they do not fit one another.

    Examples
    --------
    >>> target = Target.of("multilabel", ["her2;er", "-", "pr;?er"])
    >>> target.names, target.encode("pr;?er")
    (('er', 'her2', 'pr'), (nan, 0.0, 1.0))
    >>> target.columns
    ('prob_er', 'prob_her2', 'prob_pr')
    """

    task: str
    names: tuple[str, ...]
    centre: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise SettingsError(f"a task must be one of {', '.join(TASKS)}, not {self.task!r}")
        fewest = {"classification": 2, "multilabel": 1}.get(self.task)
        if len(set(self.names)) != len(self.names) or len(self.names) < (fewest or 1):
            raise SettingsError(f"{self.task} needs {fewest or 1} different names or more, not {self.names}")
        if fewest is None and len(self.names) > 1:
            raise SettingsError(f"{self.task} predicts one number, not {self.names}")
        if not (math.isfinite(self.centre) and 0 < self.scale < math.inf):
            raise SettingsError(
                f"a finite centre and a positive scale are needed, not {self.centre}, {self.scale}"
            )
        if self.task != "regression" and (self.centre, self.scale) != (0, 1):
            raise SettingsError(
                f"{self.task} has no units; centre {self.centre} and scale {self.scale} must be 0 and 1"
            )

    @classmethod
    def of(cls, task: str, labels: Iterable[str]) -> Self:
        """Find out what is to be predicted from the labels of slides.

        Parameters
        ----------
        task
            One of ``TASKS``.
        labels
            Of the slides to train on; names are put in alphabetic order, and of regression ``centre`` and
            ``scale`` are mean and standard deviation.

        Raises
        ------
        ManifestError
            When a label is of a wrong type, or they do not differ.
        """
        labels = list(labels)
        if task == "classification":
            if len(set(labels)) < 2:
                raise ManifestError(f"two classes are needed, not {sorted(set(labels))}")
            return cls(task, tuple(sorted(set(labels))))
        if task == "multilabel":
            names = {name for label in labels for name in _members(label)}
            if not names:
                raise ManifestError(
                    f"none of {len(labels)} slides has any label; write their names, joined by ';'"
                )
            return cls(task, tuple(sorted(names)))
        if task == "survival":
            return cls(task, (_NUMBERS[task],))
        target = cls(task, (_NUMBERS[task],))
        values = np.array([target.encode(label)[0] for label in labels])
        if len(set(values)) < 2 or values.std() == 0:
            raise ManifestError(
                f"values that differ are needed, but all {len(values)} slides have {labels[:1]}"
            )
        return cls(task, target.names, float(values.mean()), float(values.std()))

    @property
    def outputs(self) -> int:
        """Outputs of the network."""
        return len(self.names)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the scores in ``predictions.csv``, one for each output."""
        if self.task in {"classification", "multilabel"}:
            return tuple(f"prob_{name}" for name in self.names)
        return self.names

    def encode(self, label: str) -> tuple[float, ...]:
        """Turn a label into numbers; see the head of this module.

        Raises
        ------
        ManifestError
            When the label is of a wrong type, or names what the model does not know.

        Examples
        --------
        >>> Target("survival", ("risk",)).encode("23.5;1")
        (23.5, 1.0)
        """
        if self.task == "regression":
            return (_number(label, "a number such as 3.2"),)
        if self.task == "survival":
            return _time_and_event(label)
        members = {label: 1.0} if self.task == "classification" else _members(label)
        unknown = sorted(members.keys() - set(self.names))
        if unknown:
            raise ManifestError(
                f"label is {label!r}, but {', '.join(map(repr, unknown))} is none of {', '.join(self.names)};"
                " mend it, or train on slides of all of them"
            )
        if self.task == "classification":
            return (float(self.names.index(label)),)
        return tuple(members.get(name, 0.0) for name in self.names)

    def normalise(self, targets: _Numbers) -> _Numbers:
        """Targets (..., T), an array or a tensor, in the units of the network's outputs."""
        normal: _Numbers = (targets - self.centre) / self.scale
        return normal

    def restore(self, scores: _Numbers) -> _Numbers:
        """Scores (..., C), an array or a tensor, in the units of the labels: undoes :meth:`normalise`."""
        restored: _Numbers = scores * self.scale + self.centre
        return restored

    def decide(self, scores: Mapping[str, float]) -> str | None:
        """Write what scores by column amount to like a label; ``None`` for a risk, which decides nothing.

        Examples
        --------
        >>> target = Target("multilabel", ("er", "her2"))
        >>> target.decide({"prob_er": 0.7, "prob_her2": 0.5})
        'er;her2'
        >>> target.decide({"prob_er": 0.1, "prob_her2": 0.2})
        '-'
        """
        values = [scores[column] for column in self.columns]
        if self.task == "classification":
            return self.names[values.index(max(values))]
        if self.task == "multilabel":
            return (
                ";".join(name for name, value in zip(self.names, values, strict=True) if value >= 0.5)
                or _NONE
            )
        return str(values[0]) if self.task == "regression" else None


def check_label(task: str, label: str) -> None:
    """Refuse a text that is no label of a task; any text is a class.

    Raises
    ------
    ManifestError
        Says what was expected.
    """
    if task == "multilabel":
        _members(label)
    elif task != "classification":
        Target(task, (_NUMBERS[task],)).encode(label)


def join_columns(task: str, columns: Mapping[str, str | None]) -> str | None:
    """Write the label that several columns of a table make up.

    Parameters
    ----------
    task
        ``survival``, with columns of time and event in this order, or ``multilabel``, with 0 or 1 in a column
        for each label.
    columns
        Text by name of the column; ``None`` where it is not known.

    Returns
    -------
    str or None
        ``None`` where nothing is known, of survival where anything is not.

    Raises
    ------
    ManifestError
        When the task has labels of one column, or a text is of a wrong type.

    Examples
    --------
    >>> join_columns("survival", {"months": "23.5", "died": "1"})
    '23.5;1'
    >>> join_columns("multilabel", {"her2": "1", "er": None, "pr": "0"})
    'her2;?er'
    """
    if task == "survival":
        if len(columns) != 2:
            raise ManifestError(f"survival needs two columns, time and event, not {', '.join(columns)}")
        time, event = columns.values()
        return None if time is None or event is None else f"{time};{_flag(event, list(columns)[1]):.0f}"
    if task != "multilabel":
        raise ManifestError(
            f"{task} has its label in one column, not in {', '.join(columns)}; name one, or set model.task "
            "to multilabel or survival"
        )
    label = []
    for name, text in columns.items():
        if ";" in name or name.startswith(_UNKNOWN) or name == _NONE:
            raise ManifestError(
                f"label {name!r} cannot be told from what ';', '?' and '-' mean; rename its column"
            )
        if text is None:
            label.append(_UNKNOWN + name)
        elif _flag(text, name):
            label.append(name)
    return None if set(columns.values()) == {None} else ";".join(label) or _NONE


def _flag(text: str, column: str) -> float:
    if text.lower() not in _FLAGS:
        raise ManifestError(f"{column} is {text!r}, expected 1 or 0, or nothing where it is not known")
    return _FLAGS[text.lower()]


def _members(label: str) -> dict[str, float]:
    """Labels that a text names, each with 1, or nan where it is not known."""
    if label.strip() == _NONE:
        return {}
    members = {}
    for name in map(str.strip, label.split(";")):
        bare = name.removeprefix(_UNKNOWN)
        if bare in {"", _NONE}:
            raise ManifestError(
                f"label is {label!r}, expected names joined by ';' such as 'her2;er', a '?' before those "
                "that are not known, or '-' for none"
            )
        members[bare] = 1.0 if bare == name else math.nan
    return members


def _time_and_event(label: str) -> tuple[float, float]:
    expected = "time;event such as '23.5;1', with event 1, or 0 where it was not seen to happen"
    time, _, event = (part.strip() for part in label.partition(";"))
    if event.lower() not in _FLAGS:
        raise ManifestError(f"label is {label!r}, expected {expected}")
    number = _number(time, expected, of=label)
    if number < 0:
        raise ManifestError(f"label is {label!r}, but a time cannot be negative; expected {expected}")
    return number, _FLAGS[event.lower()]


def _number(text: str, expected: str, *, of: str | None = None) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ManifestError(
            f"label is {text if of is None else of!r}, expected {expected} (with a decimal point)"
        )
    return number
