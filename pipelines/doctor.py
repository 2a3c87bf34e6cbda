"""Say what is installed, what is missing, and what to do about it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines._runs import versions

# What a URL begins with, and the package that fsspec needs for it.
_STORES = {"s3://": "s3fs", "https://": "aiohttp", "gs://": "gcsfs", "az://": "adlfs"}

# What is better or possible with a package, and its module.
_OPTIONAL = {"Dask's dashboard": ("bokeh", "bokeh")}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Parameters
    ----------
    name, found
        What, and what was found.
    advice
        What to do; empty where nothing is needed.
    needed
        Whether the library is of no use without it.
    """

    name: str
    found: str
    advice: str = ""
    needed: bool = True


@dataclass(frozen=True)
class Diagnosis:
    """All that was looked at."""

    checks: Sequence[Check]

    @property
    def exit_code(self) -> int:
        """1 when something that is needed is missing."""
        return 1 if any(check.advice and check.needed for check in self.checks) else 0

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {"checks": [asdict(check) for check in self.checks]}

    def sections(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """What a person reads."""
        texts = [
            (each.name, f"{each.found} - {each.advice}" if each.advice else each.found)
            for each in self.checks
        ]
        return [("doctor", texts)]


def doctor() -> Diagnosis:
    """Look at the installation.

    Examples
    --------
    >>> [check.name for check in doctor().checks if check.advice]  # doctest: +SKIP
    ['graphics processor']
    """
    return Diagnosis(
        [_machine(), *_packages(), _openslide(), *_readers(), *_optional(), _graphics_processor()]
    )


def _machine() -> Check:
    return Check("machine", f"{platform.platform()}, {os.cpu_count()} cores")


def _packages() -> list[Check]:
    # Run from a checkout the library itself has no version, and needs none.
    return [
        Check(name, version, f"pip install {name}" if version == "not installed" else "", name != "wsi-ats")
        for name, version in versions().items()
    ]


def _openslide() -> Check:
    try:
        module = importlib.import_module("wsi_ats.slides.openslide")
    except (ImportError, OSError) as error:
        advice = "pip install openslide-bin openslide-python"
        return Check("OpenSlide library", f"cannot be loaded: {error}", advice)
    return Check("OpenSlide library", str(module.library_version()))


def _readers() -> list[Check]:
    from wsi_ats.tables.folders import SLIDE_SUFFIXES

    stores = [name for name, module in _STORES.items() if importlib.util.find_spec(module) is not None]
    missing = [_STORES[name] for name in ("s3://", "https://") if name not in stores]
    return [
        Check("reader direct", "plain TIFF pyramids (svs, tif, ome.tif), also in stores"),
        Check("reader OpenSlide", " ".join(sorted(SLIDE_SUFFIXES))),
        Check("reader zarr", "OME-Zarr, also in stores"),
        Check(
            "stores",
            " ".join(stores) or "none",
            f"pip install {' '.join(missing)}" if missing else "",
            needed=False,
        ),
    ]


def _optional() -> list[Check]:
    return [
        Check(name, package)
        if importlib.util.find_spec(module) is not None
        else Check(name, f"{package} is not installed", f"pip install {package}", needed=False)
        for name, (package, module) in _OPTIONAL.items()
    ]


def _graphics_processor() -> Check:
    name = "graphics processor"
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return Check(name, f"torch cannot be loaded: {error}", "pip install torch")
    if torch.cuda.is_available():
        return Check(name, ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))
    advice = "" if torch.version.cuda is None else "check the driver with nvidia-smi if there should be one"
    return Check(name, "none, the CPU is used", advice, needed=False)
