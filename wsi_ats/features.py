"""Features of all tiles of a slide, kept on disk so that a frozen encoder sees each tile once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsi_ats.artifacts import atomic, digest_of, slide_digest
from wsi_ats.errors import ArtifactError
from wsi_ats.selection import TissueMask
from wsi_ats.slides.base import SlideRef

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FeatureFolder:
    """A folder of features; a file's name says of which slide, tiles and encoder they are.

    Parameters
    ----------
    folder
        Where.
    encoder
        Fingerprint of the encoder: features of another are never found.
    """

    folder: Path
    encoder: str

    def load(self, ref: SlideRef, tissue: TissueMask) -> Features | None:
        """Features of a slide's tissue cells, shape (K, D); ``None`` where there are none yet.

        Raises
        ------
        ArtifactError
            When the file is damaged.
        """
        path = self._path(ref, tissue)
        if not path.exists():
            return None
        try:
            features: Features = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(f"{path} is damaged: {error}; delete it, and it is made again") from error
        return features

    def save(self, ref: SlideRef, tissue: TissueMask, features: Features) -> None:
        """Keep the ``features``, shape (K, D), of the ``tissue`` cells of slide ``ref``, atomically."""
        with atomic(self._path(ref, tissue)) as temporary:
            np.save(temporary, features, allow_pickle=False)

    def _path(self, ref: SlideRef, tissue: TissueMask) -> Path:
        cells = digest_of(repr(tissue.grid), tissue.mask.tobytes().hex())
        return self.folder / f"{ref.id}-{digest_of(self.encoder, slide_digest(ref.path), cells)}.npy"
