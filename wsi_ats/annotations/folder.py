"""Folders of annotations, a file for each slide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wsi_ats.errors import AnnotationError, ManifestError
from wsi_ats.slides.base import composed
from wsi_ats.tables.folders import listed

ENDINGS = (".geojson", ".json", ".xml", ".geojson.gz", ".json.gz", ".xml.gz")
"""Endings of files of annotations."""


@dataclass(frozen=True)
class AnnotationFolder:
    """The annotations of many slides; make it with :meth:`find`.

    Parameters
    ----------
    folder
        The folder.
    files
        The files of each slide, by slide id; more than one is an error of that slide.
    """

    folder: Path
    files: Mapping[str, tuple[Path, ...]]

    @classmethod
    def find(cls, folder: Path | str) -> AnnotationFolder:
        """Find the annotations in a folder and below; no file is opened.

        Parameters
        ----------
        folder
            Folder with ``<slide_id>.geojson``, ``.json`` or ``.xml``, or one of these with ``.gz``.

        Raises
        ------
        ManifestError
            When the folder is missing or has no such file.

        Examples
        --------
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "a.b.geojson.gz").touch()
        >>> AnnotationFolder.find(folder).file_for("a.b").name
        'a.b.geojson.gz'
        """
        top = Path(folder)
        if not top.is_dir():
            raise ManifestError(
                f"{top}: no such folder; expected a folder with a file of annotations for each slide"
            )
        files: dict[str, tuple[Path, ...]] = {}
        for path in sorted(top.rglob("*")):
            ending = max((each for each in ENDINGS if path.name.lower().endswith(each)), key=len, default="")
            if ending and not path.name.startswith(".") and path.is_file():
                name = composed(path.name[: -len(ending)])
                files[name] = (*files.get(name, ()), path)
        if not files:
            raise ManifestError(
                f"{top}: no annotations found; expected files <slide_id> with one of the endings "
                f"{', '.join(ENDINGS)}"
            )
        return cls(top, files)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all slides that have annotations, sorted."""
        return tuple(sorted(self.files))

    def has(self, slide_id: str) -> bool:
        """Tell whether a slide has annotations."""
        return composed(slide_id) in self.files

    def file_for(self, slide_id: str) -> Path:
        """Return the file of a slide.

        Raises
        ------
        AnnotationError
            When the slide has none, or several.
        """
        found = self.files.get(composed(slide_id), ())
        if not found:
            raise AnnotationError(
                str(self.folder),
                f"has no annotations of slide {slide_id}, but of {len(self.files)} others: "
                f"{listed(self.ids)}; files must be named after the slides",
            )
        if len(found) > 1:
            raise AnnotationError(
                str(found[0]),
                f"is one of {len(found)} files of slide {slide_id}: {listed(map(str, found))}; keep one",
            )
        return found[0]
