"""Slides: references to slides, and the opening and reading of slides in any format.

Other rooms use :class:`SlideRef`, :class:`Slide` and :func:`open_slide`, and import no slide library.

- ``base``: the reference, the description and the open slide; ``wrappers``, ``colour``: wrapped slides.
- ``opening``: the choice of a reader; ``tiff``, ``openslide``, ``zarr``, ``memory``: the readers.
- ``tiff_*``, ``ome_xml``, ``stored_image``, ``codecs``, ``jpeg``: the index of TIFF files, and decoding.
- ``zarr_*``, ``ome_zarr``: the parts of a Zarr image; ``pyramid``, ``shards``: writing of pyramids.
- ``storage``, ``remote``, ``ranges``, ``answers``: bytes from disks and stores.
- ``dicom``, ``resolution``, ``resample``, ``fingerprint``, ``advice``: as named.
"""

from __future__ import annotations

from wsi_ats.slides.base import Mpp, Slide, SlideRef
from wsi_ats.slides.opening import Choice, choose_reader, open_slide

__all__ = ["Choice", "Mpp", "Slide", "SlideRef", "choose_reader", "open_slide"]
