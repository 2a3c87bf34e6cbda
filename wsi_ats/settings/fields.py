"""One setting as a field: its default, the allowed values, and the results that depend on it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from enum import Flag, auto
from typing import Any, TypeVar

from wsi_ats.errors import SettingsError

_Value = TypeVar("_Value")


class Fixes(Flag):
    """The results that depend on a setting; digests and refusals are derived from them."""

    THUMBNAILS = auto()
    """Prepared thumbnails and tissue, the input of training and scoring."""
    NETWORK = auto()
    """Inputs and layers of the networks: a trained model cannot be used with another value."""
    TRAINING = auto()
    """The learned weights."""
    SCORING = auto()
    """Scores of a trained model."""

    MODEL = THUMBNAILS | NETWORK | TRAINING
    """Everything that a trained model depends on."""
    EVERYTHING = MODEL | SCORING

    @property
    def words(self) -> tuple[str, ...]:
        """Names of the results, such as ``("training", "scoring")``."""
        return tuple(each.name.lower() for each in self if each.name)

    @property
    def changeable_at_scoring(self) -> bool:
        """True if a trained model can be scored with another value; otherwise a change needs training."""
        return Fixes.NETWORK not in self and bool(self & (Fixes.THUMBNAILS | Fixes.SCORING))


@dataclass(frozen=True, slots=True)
class Must:
    """The allowed values of a setting.

    Parameters
    ----------
    test
        Returns whether a value is allowed.
    words
        Completes "must ..." in errors.
    schema
        The same in the words of JSON Schema, as far as it has any.
    """

    test: Callable[[Any], bool]
    words: str
    schema: Mapping[str, Any] = field(default_factory=dict)


def one_of(*choices: object) -> Must:
    """Allow a few values."""
    *others, last = map(str, choices)
    words = f"be {', '.join(others)} or {last}" if others else f"be {last}"
    return Must(lambda value: value in choices, words, {"enum": choices})


def at_least(least: int) -> Must:
    """Allow ``least`` and larger values."""
    words = f"be at least {least}" if least else "not be negative"
    return Must(lambda value: value >= least, words, {"minimum": least})


def positive() -> Must:
    """Allow numbers above 0."""
    return Must(lambda value: value > 0, "be positive", {"exclusiveMinimum": 0})


def within(interval: str) -> Must:
    """Allow an interval, written as ``[0, 1)``."""
    low, high = (float(each) for each in interval[1:-1].split(","))
    return Must(
        lambda value: (
            low <= value <= high
            and (interval[0] == "[" or value != low)
            and (interval[-1] == "]" or value != high)
        ),
        f"be in {interval}",
        {
            "minimum" if interval[0] == "[" else "exclusiveMinimum": low,
            "maximum" if interval[-1] == "]" else "exclusiveMaximum": high,
        },
    )


@dataclass(frozen=True, slots=True)
class Rule:
    """The rule stored with the field of a setting.

    Parameters
    ----------
    fixes
        Results that depend on the setting.
    must
        Allowed values; ``None`` for all values of its type.
    needs
        Trait of the kinds of models that use the setting, such as ``draws``; see
        :class:`wsi_ats.settings.model.ModelSettings`. Empty if all kinds use it.
    """

    fixes: Fixes
    must: Must | None = None
    needs: str = ""


def setting(default: _Value, *, fixes: Fixes, must: Must | None = None, needs: str = "") -> _Value:
    """Declare a setting as the field of a section; its reason is the docstring below the field.

    ``default`` is its default value; ``fixes``, ``must`` and ``needs`` form its :class:`Rule`.
    """
    made: Any = field(default=default, metadata={"rule": Rule(fixes, must, needs)})
    chosen: _Value = made
    return chosen


def rule_of(each: Field[Any]) -> Rule:
    """Return the rule stored with a field."""
    rule: Rule = each.metadata["rule"]
    return rule


def require(condition: bool, message: str) -> None:
    """Raise a :class:`~wsi_ats.errors.SettingsError` unless a condition holds."""
    if not condition:
        raise SettingsError(message)


def check(section: Any, name: str) -> None:
    """Refuse values that a section's fields do not allow; the error names the setting and the value."""
    for each in fields(section):
        must, value = rule_of(each).must, getattr(section, each.name)
        if must is not None:
            require(must.test(value), f"{name}.{each.name} must {must.words}, not {value!r}")


def reasons(section: type[Any]) -> dict[str, str]:
    """Return the reason for each setting of a section: the docstring below its field, as one line."""
    found: dict[str, str] = {}
    for kind in reversed(section.__mro__[:-1]):
        (body,) = ast.parse(inspect.getsource(kind)).body
        assert isinstance(body, ast.ClassDef)
        for above, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(above, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = ast.literal_eval(below.value)
                found[ast.unparse(above.target)] = " ".join(text.split())
    return found
