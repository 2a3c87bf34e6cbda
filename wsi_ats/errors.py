"""All errors that this library raises on purpose.

::

    WsiAtsError
    ├── SettingsError        a setting or argument that cannot work            (exit code 2)
    ├── ManifestError        a slide table, folder or label table that cannot be used
    ├── SlideError           one slide cannot be used; carries its path
    │   ├── SlideOpenError   ... it cannot be opened
    │   ├── SlideReadError   ... some of its pixels cannot be read
    │   ├── MppError         ... its resolution is unknown or implausible
    │   ├── FeatureError     ... the features of its tiles cannot be used; carries their file
    │   └── AnnotationError  ... its annotations cannot be used; carries their file
    ├── ModelError           a network that cannot be built, loaded or trained
    └── ArtifactError        a stored file that is missing, damaged or from another run
        └── LockedError      ... an output folder that another run holds

A message names the value found, the expected value and the next step. Errors from other libraries are
translated where the library is called, with ``raise ... from``. Passwords and signatures in URLs are removed
from every message, because tables and logs are shared.
"""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(?<=://)[^/\s@]+:[^/\s@]*(?=@)")
# Secret values in signed URLs (Amazon, Google, Azure, CloudFront), up to punctuation that the message adds.
_SIGNATURE = re.compile(
    r"""([?&][^=&\s'"]*(?:sig|token|credential|key|password|secret|policy)[^=&\s'"]*=)"""
    r"""[^&\s'"]+?(?=[:;,.)]*(?:[&\s'"]|$))""",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """Replace passwords and signatures in URLs with ``***``.

    Examples
    --------
    >>> without_secrets("https://me:1234@host/a.svs?X-Amz-Date=2026&X-Amz-Signature=ab: not there")
    'https://***@host/a.svs?X-Amz-Date=2026&X-Amz-Signature=***: not there'
    """
    return _SIGNATURE.sub(r"\1***", _PASSWORD.sub("***", text))


class WsiAtsError(Exception):
    """Base class of all errors that this library raises on purpose."""

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class SettingsError(WsiAtsError):
    """A setting or argument that cannot work."""


class ManifestError(WsiAtsError):
    """A slide table, folder or label table that cannot be used."""


class SlideError(WsiAtsError):
    """A slide that cannot be used.

    Parameters
    ----------
    path
        The slide, as the user named it.
    problem
        The value found, the expected value and the next step.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)  # both, so that the error survives pickling
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return without_secrets(f"{self.path}: {self.problem}")


class SlideOpenError(SlideError):
    """A slide that cannot be opened."""


class SlideReadError(SlideError):
    """A slide with pixels that cannot be read."""


class MppError(SlideError):
    """A slide whose resolution (micrometres per pixel) is unknown or implausible."""


class FeatureError(SlideError):
    """Features of a slide's tiles that cannot be used; ``path`` is their file."""


class AnnotationError(SlideError):
    """Annotations of a slide that cannot be used; ``path`` is their file."""


class ModelError(WsiAtsError):
    """A network that cannot be built, loaded or trained."""


class ArtifactError(WsiAtsError):
    """A stored file that is missing, damaged or from another run."""


class LockedError(ArtifactError):
    """An output folder that another run holds."""


def not_installed(package: str, extra: str, purpose: str) -> SettingsError:
    """Return the error for an optional package that is missing.

    Parameters
    ----------
    package
        Name of the package.
    extra
        The ``wsi-ats`` extra that installs it.
    purpose
        The feature that needs it.

    Examples
    --------
    >>> print(not_installed("lifelines", "survival", "model.task survival"))
    model.task survival needs lifelines, which is not installed; pip install "wsi-ats[survival]"
    """
    return SettingsError(f'{purpose} needs {package}, which is not installed; pip install "wsi-ats[{extra}]"')
