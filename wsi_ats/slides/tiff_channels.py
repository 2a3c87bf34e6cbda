"""The channels of a TIFF file: their pages and names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from wsi_ats.slides.tiff_tags import description_of, is_reduced

# The name of a channel in the pages of PerkinElmer's and Akoya's QPTIFF, and other files.
_NAME = re.compile(r"<(?:Name|channel)>([^<]+)</", re.IGNORECASE)

Pages = Sequence[tuple[Any, bool]]


def alike(pages: Pages) -> list[int]:
    """Return the numbers of the first page and all pages of its size that are not reduced copies.

    Parameters
    ----------
    pages
        Pages from :func:`wsi_ats.slides.tiff_tags.pages_of`.
    """
    first = pages[0][0]
    return [
        number
        for number, (page, below) in enumerate(pages)
        if not below and page.shape == first.shape and (page is first or not is_reduced(page))
    ]


def names_of(pages: Pages, full: Sequence[int], vendor: str, channels: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the channels; empty if there are also depths or times.

    Parameters
    ----------
    pages
        All pages.
    full
        Numbers of the pages that show a channel at full resolution.
    vendor
        The file's vendor.
    channels
        Names in the file's OME-XML.
    """
    if vendor == "generic-tiff":
        found = (_NAME.search(description_of(pages[number][0])) for number in full)
        return tuple(each[1].strip() if each else "" for each in found)
    if vendor == "ome-tiff" and len(full) > 1 and len(channels) == len(full):
        return channels
    return ()


def numbers_of(pages: Pages, full: Sequence[int]) -> dict[int, int]:
    """Return the channel of each page that shows one, by the page's number.

    Coarser levels are below the page of their channel, or in sequence in the order of the channels.

    Parameters
    ----------
    pages
        All pages.
    full
        Numbers of the pages that show a channel at full resolution.
    """
    known = set(full)
    groups: dict[Any, list[int]] = {}
    for number, (page, below) in enumerate(pages):
        if number not in known and not below and page.is_tiled == pages[0][0].is_tiled:
            groups.setdefault(page.shape, []).append(number)
    channels = {
        number: channel
        for places in (full, *groups.values())
        if len(places) == len(full)
        for channel, number in enumerate(places)
    }
    owner = 0
    for number, (_, below) in enumerate(pages):
        if not below:
            owner = number
        elif owner in channels:
            channels[number] = channels[owner]
    return channels
