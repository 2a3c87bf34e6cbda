"""What pictures of a slide say in words, in lines that fit."""

from __future__ import annotations

import textwrap

import numpy as np

from wsi_ats.results.shown import ShownSlide

OUTLINES = {"#d55e00": "orange", "#0072b2": "blue", "#009e73": "green", "#cc79a7": "pink"}
"""Colours of further outlines, and their names; they can be told apart with any colour vision."""

_MOST_NAMES = 6
_TIMES, _MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"


def heading(shown: ShownSlide, width: float, last: str) -> list[str]:
    """Return the lines above a picture.

    Parameters
    ----------
    shown
        The slide.
    width
        Of the picture, in inches.
    last
        What follows scores and sampling error.
    """
    name, most = shown.id, int(9 * width)
    if len(name) > most:
        name = f"{name[: most // 2]}…{name[-(most // 2) :]}"
    others = [shown.scores, *([shown.sampling_error, last] if shown.scored else [])]
    return [name, *textwrap.wrap("; ".join(filter(None, others)), int(14.5 * width))]


def ink(shown: ShownSlide) -> str:
    """Return the colour that can be seen on the slide's background."""
    return "black" if np.median(shown.overview.thumbnail[::8, ::8]) > 100 else "white"


def legend(shown: ShownSlide, width: float) -> list[str]:
    """Return the lines below the picture of a slide."""
    words = [f"{ink(shown)} outline: tissue"] if shown.tissue.any() else []
    words += [f"{OUTLINES[each]}: {name}" for each, name in zip(OUTLINES, shown.outlines, strict=False)]
    if shown.drawn is not None:
        some = len(shown.sheet) < len(shown.drawn.cells)
        most = f", the {len(shown.sheet)} of most {shown.order_of_sheet}" if some else ""
        words.append(f"circles: tiles read{most}, with an area that grows with their weight")
        words.append("numbers: " + ("of the tiles" if shown.reads_all else "order in which tiles were drawn"))
        words += ["dots: other tiles read"] if some and not shown.reads_all else []
    return textwrap.wrap("; ".join(words), int(16.5 * width))


def about_sheet(shown: ShownSlide) -> str:
    """Say how many of the tiles are on the contact sheet, and in which order."""
    count, whole = len(shown.sheet), len(shown.drawn.cells) if shown.drawn else 0
    return f"{count} of {whole:,} tiles, by {shown.order_of_sheet}" + (
        f"; {whole - count:,} more are in the table of selected tiles" if whole > count else ""
    )


def legend_of_sheet(shown: ShownSlide, width: float) -> list[str]:
    """Return the lines below the contact sheet."""
    words = ["numbers as in the picture of the slide; attention in multiples of uniform attention"]
    names = names_of_evidence(shown)
    if names:
        less = len(shown.target.names) - len(names)
        words.append(
            f"evidence in {shown.unit_of_evidence}, what the tile adds to the score"
            + (f" (of {less} more names: see the table)" if less else "")
        )
        words.append(f"orange frames: for {names[0]}; blue: against it")
    return textwrap.wrap("; ".join(words), int(16.5 * width))


def names_of_evidence(shown: ShownSlide) -> list[str]:
    """Return the names whose evidence is shown: that of the largest score, then those of most evidence."""
    evidence = shown.drawn.evidence if shown.drawn else {}
    total = {name: np.abs(np.nan_to_num(values)).sum() for name, values in evidence.items()}
    best = shown.target.names[shown.best]
    return sorted(total, key=lambda name: (name != best, -total[name]))[:_MOST_NAMES]


def captions_of(shown: ShownSlide, width: int) -> list[list[str]]:
    """Return the lines below each tile of the contact sheet, after its number; ``width`` is in letters.

    Evidence for several names is in one line where there is room for it below all tiles.
    """
    drawn, names = shown.drawn, names_of_evidence(shown)
    assert drawn is not None
    texts = []
    for position in shown.sheet.tolist():
        evidence = []
        for name in names:
            value = drawn.evidence[name][position]
            short = name if len(name) <= width - 10 else f"{name[: width - 11]}…"
            number = f"{value:+.2g}".replace("-", _MINUS) if np.isfinite(value) else "unknown"
            evidence.append(f"{short} {number}")
        texts.append(evidence)
    fits = all(len(", ".join(each)) <= width for each in texts)
    return [
        [
            f"attention {_times(drawn.attention[position])}, weight {drawn.weight[position]:.2g}",
            *([", ".join(each)] if fits and each else each),
        ]
        for position, each in zip(shown.sheet.tolist(), texts, strict=True)
    ]


def _times(value: float) -> str:
    if value < 0.01:
        return f"<0.01{_TIMES}"
    return f"{value:.2f}{_TIMES}" if value < 10 else f"{value:,.0f}{_TIMES}"


def round_length(most: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20 ... (or 0.5, 0.2 ...) that is at most this.

    Examples
    --------
    >>> round_length(7.3), round_length(0.4), round_length(1000)
    (5.0, 0.2, 1000.0)
    """
    power = 10.0 ** np.floor(np.log10(most * (1 + 1e-9)))
    return float(power * max(each for each in (1, 2, 5) if each * power <= most * (1 + 1e-9)))
