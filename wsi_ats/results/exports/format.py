"""A format of other programs, as each file of this folder declares it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from wsi_ats.errors import not_installed
from wsi_ats.results.records import Status
from wsi_ats.results.scores import ScoredSlide, Scores


@dataclass(frozen=True)
class Format:
    """A format that scores can be exported to.

    Parameters
    ----------
    name
        Name in ``--to``, and of the folder that the files are written to.
    programs
        Programs that open the files.
    contents
        The files, for a list of formats.
    slide
        Function that writes the files of one slide into a folder, and returns them; ``None`` if there are
        none. Slides without tiles are not given, unless ``without_tiles``.
    collection
        Function that writes files about all slides that were exported, after those of each slide.
    packages
        Packages that the format needs, and that an extra installs.
    extra
        Name of this extra.
    without_tiles
        Whether scored slides of which no tiles were read are exported, too.
    options
        Options of ``slide`` by name, each with a function that refuses a wrong value.
    each
        What a file is called in the summary; other than "file" if it needs no program, such as "picture".
    note
        Function that says, from the slides and the files written, what is missing; empty if nothing is.

    Examples
    --------
    >>> def write(folder, slide):
    ...     (folder / f"{slide.id}.txt").write_text(str(len(slide.selection().cells)))
    ...     return [folder / f"{slide.id}.txt"]
    >>> Format("txt", programs="an editor", contents="number of tiles", slide=write).name
    'txt'
    """

    name: str
    programs: str
    contents: str
    slide: Callable[[Path, ScoredSlide], Sequence[Path]] | None = None
    collection: Callable[[Path, Scores, Sequence[ScoredSlide]], Sequence[Path]] | None = None
    packages: tuple[str, ...] = ()
    extra: str = ""
    without_tiles: bool = False
    options: Mapping[str, Callable[[Any], None]] = field(default_factory=dict)
    each: str = "file"
    note: Callable[[Sequence[ScoredSlide], Sequence[Path]], str] | None = None

    def summary(self, slides: Sequence[ScoredSlide], written: Sequence[Path]) -> str:
        """Return what was written of scored slides, and what is missing, as text."""
        missing = self.note([slide for slide in slides if self.exports(slide)], written) if self.note else ""
        files = f"{len(written)} {self.each}{'s' * (len(written) != 1)}"
        return files + f" for {self.programs}" * (self.each == "file") + (f"; {missing}" if missing else "")

    def exports(self, slide: ScoredSlide) -> bool:
        """Return whether there is something to export of a slide."""
        return slide.reads_tiles or (self.without_tiles and slide.status != Status.FAILED)

    def with_options(self, given: Mapping[str, Any]) -> Self:
        """Return the format with those of the given options that it has.

        Raises
        ------
        SettingsError
            For a wrong value.
        """
        own = {name: value for name, value in given.items() if name in self.options}
        for name, value in own.items():
            self.options[name](value)
        return replace(self, slide=partial(self.slide, **own)) if self.slide and own else self

    def check_installed(self) -> None:
        """Refuse the format if a package is missing.

        Raises
        ------
        SettingsError
            When one is missing; the message has the command that installs it.
        """
        for package in self.packages:
            if find_spec(package) is None:
                raise not_installed(package, self.extra, f"export --to {self.name}")
