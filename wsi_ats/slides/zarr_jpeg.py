"""JPEG as a codec of Zarr 3, with the name and format of the package imagecodecs-zarr.

Zarr has no JPEG codec. Pyramids written here can be read by every Zarr library with the codec
``imagecodecs_jpeg``; in Python 3.12 and later, ``pip install imagecodecs-zarr`` provides it. This module
registers the same codec if that package is not installed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.registry import get_codec_class, register_codec

from wsi_ats.slides import jpeg

NAME = "imagecodecs_jpeg"


@dataclass(frozen=True)
class JpegCodec(ArrayBytesCodec):
    """The codec of chunks of shape (height, width, 3), uint8: JPEG with colour at full resolution.

    A ``transpose`` codec before it moves the channels to the end; a ``crc32c`` codec after it detects damage
    that JPEG decoders ignore.

    Parameters
    ----------
    level
        Quality, 1 to 100.
    """

    is_fixed_size = False

    level: int = 90

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read the codec's entry of ``zarr.json``.

        Raises
        ------
        ValueError
            When it has options other than quality and subsampling.
        """
        configuration = dict(data.get("configuration") or {})
        level, subsampling = configuration.pop("level", 90), configuration.pop("subsampling", "444")
        if configuration or not isinstance(level, int):
            raise ValueError(
                f"codec {NAME} with {data.get('configuration')} is not known here; install imagecodecs-zarr"
            )
        del subsampling  # it is also stored in the JPEG image
        return cls(level)

    def to_dict(self) -> dict[str, Any]:
        """Return the codec's entry of ``zarr.json``."""
        return {"name": NAME, "configuration": {"level": self.level, "subsampling": "444"}}

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        pixels = np.empty(chunk_spec.shape, dtype=np.uint8)
        await asyncio.to_thread(jpeg.decode, chunk_data.to_bytes(), pixels)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pixels)

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        pixels = np.ascontiguousarray(chunk_data.as_numpy_array())
        stream = await asyncio.to_thread(jpeg.encode, pixels, self.level)
        return chunk_spec.prototype.buffer.from_bytes(stream)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Raise ``NotImplementedError``: the size is unknown before encoding."""
        raise NotImplementedError


def register_jpeg() -> None:
    """Register the codec with Zarr, unless another package has registered it."""
    try:
        get_codec_class(NAME)
    except (LookupError, ValueError):
        register_codec(NAME, JpegCodec)
