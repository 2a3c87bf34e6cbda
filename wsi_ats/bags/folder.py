"""Folders of features, as CLAM, TRIDENT, STAMP and this library write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wsi_ats.bags.encoders import encoder_of_folder
from wsi_ats.bags.opening import SUFFIXES
from wsi_ats.errors import FeatureError, ManifestError
from wsi_ats.slides.base import composed
from wsi_ats.tables.folders import listed

_PATCHES = "patches"  # CLAM's and TRIDENT's folder of coordinates


@dataclass(frozen=True)
class BagFiles:
    """The files of one slide, for :func:`wsi_ats.bags.opening.open_bag`.

    Parameters
    ----------
    features
        The file of features.
    coords
        The file of coordinates, if there is one of its own.
    """

    features: Path
    coords: Path | None = None


@dataclass(frozen=True)
class BagFolder:
    """The features of many slides; make it with :meth:`find`.

    Parameters
    ----------
    folder
        The folder of features.
    encoder
        Name of the encoder, if the folder's name tells it; empty otherwise. A file may name its own.
    features
        The files of features of each slide, by slide id; more than one is an error of that slide.
    coords
        The files of coordinates of each slide, by slide id; empty where features have their own.
    """

    folder: Path
    encoder: str
    features: Mapping[str, tuple[Path, ...]]
    coords: Mapping[str, tuple[Path, ...]]

    @classmethod
    def find(cls, folder: Path | str) -> BagFolder:
        """Find the features in a folder; no file is opened.

        Parameters
        ----------
        folder
            CLAM's folder with ``h5_files`` and ``pt_files``; TRIDENT's job folder, one of its folders such as
            ``20x_256px_0px_overlap``, or ``features_<encoder>`` in it; STAMP's folder of an extractor; or any
            folder with ``.h5`` or ``.pt`` files in it or below. Coordinates are also looked for in a folder
            ``patches`` in it or beside it.

        Raises
        ------
        ManifestError
            When the folder is missing or has no features, or features of several encoders.

        Examples
        --------
        >>> import tempfile
        >>> job = Path(tempfile.mkdtemp())
        >>> features = job / "20x_256px_0px_overlap" / "features_uni_v1"
        >>> features.mkdir(parents=True)
        >>> (features / "a.b.h5").touch()
        >>> found = BagFolder.find(job)
        >>> found.encoder, found.files_for("a.b").features == features / "a.b.h5"
        ('uni', True)
        """
        top = Path(folder)
        if not top.is_dir():
            raise ManifestError(
                f"{top}: no such folder; expected a folder of features of CLAM, TRIDENT or STAMP"
            )
        chosen = _trident(top) or top
        clam = [chosen / name for name in ("h5_files", "pt_files") if (chosen / name).is_dir()]
        # The tensors of CLAM are copies of the features in its HDF5 files.
        features: dict[str, tuple[Path, ...]] = {}
        for source in clam or [chosen]:
            features = _by_slide(_files(source)) | features
        if not features:
            raise ManifestError(
                f"{top}: no features found; expected {' or '.join(SUFFIXES)} files, CLAM's h5_files or "
                "pt_files, or TRIDENT's features_<encoder>"
            )
        coords: dict[str, tuple[Path, ...]] = {}
        around = (chosen.parent / "h5_files", chosen.parent / _PATCHES, chosen / _PATCHES)
        for place in around:
            if place.is_dir() and place != chosen and (place.name == _PATCHES or chosen.name == "pt_files"):
                coords |= _by_slide(place.glob("*.h5"), "_patches")
        return cls(chosen, encoder_of_folder(chosen), features, coords)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all slides that have features, sorted."""
        return tuple(sorted(self.features))

    def files_for(self, slide_id: str) -> BagFiles:
        """Return the files of a slide.

        Parameters
        ----------
        slide_id
            The slide's id: the name of its file without the extension.

        Raises
        ------
        FeatureError
            When it has no features, or several files of them.
        """
        name = composed(slide_id)
        features = self.features.get(name, ())
        coords = self.coords.get(name, ())
        if not features:
            raise FeatureError(
                str(self.folder),
                f"has no features of slide {slide_id}, but of {len(self.features)} others: "
                f"{listed(self.ids)}; slide ids must be the files' names without extension",
            )
        for files in (features, coords):
            if len(files) > 1:
                raise FeatureError(
                    str(files[0]),
                    f"is one of {len(files)} files of slide {slide_id}: {listed(map(str, files))}; "
                    "keep one of them, or name the folder of one",
                )
        return BagFiles(features[0], coords[0] if coords else None)


def _trident(top: Path) -> Path | None:
    """Return the one folder ``features_<encoder>`` in a folder of TRIDENT; ``None`` in other folders."""
    found = [
        each for pattern in ("features_*", "*/features_*") for each in top.glob(pattern) if each.is_dir()
    ]
    if len(found) > 1:
        raise ManifestError(
            f"{top} has features of several encoders or sizes of tiles: "
            f"{', '.join(sorted(str(each.relative_to(top)) for each in found))}; name one of these folders"
        )
    return found[0] if found else None


def _files(folder: Path) -> list[Path]:
    """All files of features in and below a folder; STAMP repeats the folders of the slides."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")  # unfinished, or a shadow file of macOS
        and _PATCHES not in path.relative_to(folder).parts[:-1]
    )


def _by_slide(paths: Iterable[Path], ending: str = "") -> dict[str, tuple[Path, ...]]:
    """Group files by slide id; only the last extension is left out, because names may have dots."""
    found: dict[str, tuple[Path, ...]] = {}
    for path in sorted(paths):
        name = composed(path.stem.removesuffix(ending))
        found[name] = (*found.get(name, ()), path)
    return found
