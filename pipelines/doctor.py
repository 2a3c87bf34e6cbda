"""Check the installation: versions, optional packages, GPU, and what to install."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines._runs import versions

# Optional packages: purpose, module, extra.
_OPTIONAL = (
    ("survival", "lifelines", "survival"),
    ("plots of evaluate, crossval and demo, and pictures of slides", "matplotlib", "plots"),
    ("--metrics", "prometheus_client", "metrics"),
    ("slides at s3://", "s3fs", "remote"),
    ("slides at https://", "aiohttp", "remote"),
    ("view", "bokeh", "view"),
    ("Dask's dashboard", "bokeh", "dashboard"),
    ("Dask on SLURM", "dask_jobqueue", "slurm"),
    ("--tensorboard", "tensorboard", "tensorboard"),
    ("export --to anndata", "anndata", "anndata"),
    ("export --to dicom", "highdicom", "dicom"),
    ("export --to spatialdata", "spatialdata", "spatialdata"),
)

_STORES = {"s3://": "s3fs", "https://": "aiohttp", "gs://": "gcsfs", "az://": "adlfs"}


@dataclass(frozen=True)
class Check:
    """One part of the installation.

    Parameters
    ----------
    name, found
        The part, and its version or state.
    advice
        What to do; empty if nothing is wrong.
    needed
        Whether the part is required.
    """

    name: str
    found: str
    advice: str = ""
    needed: bool = True


@dataclass(frozen=True)
class Diagnosis:
    """The result of all checks."""

    checks: Sequence[Check]

    @property
    def exit_code(self) -> int:
        """1 when a needed part is missing."""
        return 1 if any(check.advice and check.needed for check in self.checks) else 0

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {"checks": [asdict(check) for check in self.checks]}

    def sections(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Return the lines of the table."""
        texts = [
            (each.name, f"{each.found} - {each.advice}" if each.advice else each.found)
            for each in self.checks
        ]
        return [("doctor", texts)]


def doctor() -> Diagnosis:
    """Check the installation.

    Examples
    --------
    >>> [check.name for check in doctor().checks if check.advice]  # doctest: +SKIP
    ['GPU']
    """
    return Diagnosis([_machine(), *_packages(), _openslide(), *_readers(), *_optional(), _gpu()])


def _machine() -> Check:
    return Check("machine", f"{platform.platform()}, {os.cpu_count()} cores")


def _packages() -> list[Check]:
    # A source checkout has no version of wsi-ats, and needs none.
    optional = {module for _, module, _ in _OPTIONAL} | {"wsi-ats"}
    return [
        Check(name, version, f"pip install {name}" if version == "not installed" else "")
        if name not in optional
        else Check(name, version, needed=False)
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
    return [
        Check("reader direct", "plain TIFF pyramids (svs, tif, ome.tif), also in stores"),
        Check("reader OpenSlide", " ".join(sorted(SLIDE_SUFFIXES))),
        Check("reader zarr", "OME-Zarr, also in stores"),
        Check("stores", " ".join(stores) or "none", needed=False),
    ]


def _optional() -> list[Check]:
    return [
        Check(purpose, module, needed=False)
        if importlib.util.find_spec(module) is not None
        else Check(purpose, f"{module} is not installed", f'pip install "wsi-ats[{extra}]"', needed=False)
        for purpose, module, extra in _OPTIONAL
    ]


def _gpu() -> Check:
    name = "GPU"
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return Check(name, f"torch cannot be loaded: {error}", "pip install torch")
    if torch.cuda.is_available():
        return Check(name, ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))
    advice = "" if torch.version.cuda is None else "if there is one, check its driver with nvidia-smi"
    return Check(name, "none, the CPU is used", advice, needed=False)
