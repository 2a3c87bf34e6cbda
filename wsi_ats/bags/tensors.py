"""Files of torch (``.pt``) with the features of a slide, as CLAM and TRIDENT write them."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_ats.bags.record import Rows, Stamp
from wsi_ats.errors import FeatureError
from wsi_ats.files import atomic
from wsi_ats.geometry import IntArray


def read_tensor(path: Path) -> Rows:
    """Return the rows of a file that holds one tensor (N, D) or (1, N, D); code in it is never run.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    FeatureError
        When the file is missing or damaged, or holds something else.
    """
    values = _load(path)
    count, width = values.shape
    return TensorRows(path, values.dtype.str, count, width, Stamp.of(path))


def write_tensor(path: Path, features: npt.NDArray[Any]) -> Path:
    """Write features (N, D) as CLAM does, atomically, and return the path."""
    import torch

    with atomic(path) as temporary:
        torch.save(torch.from_numpy(features), temporary)
    return path


def _load(path: Path) -> npt.NDArray[Any]:
    """Map the file into memory, if its version of torch allows it; then only the rows used are read."""
    import torch

    try:
        mapped = zipfile.is_zipfile(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise FeatureError(
            str(path), f"cannot be read as a tensor: {error}; if it is there, copy it or extract it again"
        ) from error
    if isinstance(found, torch.Tensor) and found.ndim == 3 and len(found) == 1:
        found = found[0]
    if not isinstance(found, torch.Tensor) or found.ndim != 2 or not found.is_floating_point():
        what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found)
        raise FeatureError(str(path), f"expected a tensor of features (N, D), not {what}")
    if found.dtype == torch.bfloat16:
        found = found.float()
    values: npt.NDArray[Any] = found.detach().numpy()
    return values


@dataclass(frozen=True)
class TensorRows:
    """Rows of a tensor in a file.

    Parameters
    ----------
    path
        The file.
    dtype
        Type of a value in NumPy's notation, for example ``<f4``.
    count
        Number of rows.
    width
        Values in a row.
    stamp
        The file's stamp when it was opened.
    """

    path: Path
    dtype: str
    count: int
    width: int
    stamp: Stamp

    def read(self, rows: IntArray) -> npt.NDArray[Any]:
        """See :class:`wsi_ats.bags.record.Rows`."""
        try:
            self.stamp.check(self.path, self.path)
        except OSError as error:
            raise FeatureError(str(self.path), f"cannot be read: {error.strerror or error}") from error
        return np.asarray(_load(self.path)[rows])
