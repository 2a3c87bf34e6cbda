"""Encode tiles for scoring, in batches of one size that several slides may share.

In half precision, the last digits of some networks' outputs depend on the size of the batch, because other
sizes are computed by other kernels. They do not depend on the other tiles' contents or order. Therefore all
batches have one size, the last is padded, and a tile's features are the same in any batch, on any worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ats.bags.matched import MatchedBag
from wsi_ats.errors import SettingsError
from wsi_ats.geometry import Grid, IntArray
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.nn.precision import autocast
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.overview.tissue import are_empty
from wsi_ats.settings import Settings
from wsi_ats.slides.base import Pixels, Slide

# Tiles read at a time: more would take memory and gain no speed.
TILES_AT_A_TIME = 64

# Tiles in a batch. CPUs are as fast with 8 as with 64, and pad less; GPUs need 64.
_BATCH = 8
_BATCH_ON_GPU = 64


def to_device(tiles: NDArray[Any], device: torch.device | None) -> Tensor:
    """Copy tiles or features to a device unchanged; the copy to a GPU is asynchronous."""
    tensor = torch.from_numpy(tiles)
    if device is not None and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(eq=False)
class _Request:
    """Tiles of one caller, and their features so far."""

    tiles: Pixels
    done: Future[Tensor] = field(default_factory=Future)
    parts: dict[int, Tensor] = field(default_factory=dict)

    def receive(self, first: int, features: Tensor) -> None:
        self.parts[first] = features
        if sum(map(len, self.parts.values())) == len(self.tiles):
            # Free these pixels before the caller continues, perhaps to read more.
            self.tiles = self.tiles[:0].copy()
            self.done.set_result(torch.cat([self.parts[place] for place in sorted(self.parts)]))


@dataclass(frozen=True)
class _Piece:
    """Tiles of a request that are in one batch."""

    request: _Request
    first: int
    count: int


class TileBatches:
    """An encoder shared by many callers, each in its own thread.

    Tiles that arrive while a batch is computed wait in a queue, and the next batch takes from all of them:
    many slides with few tiles share batches, and none waits for a batch to fill. Results are the same.

    Parameters
    ----------
    embed
        Function from tiles, uint8 (n, h, w, 3), on the device, to features (n, D), each of its tile alone.
    device
        Device that encodes tiles; the CPU by default.
    precision
        See :func:`wsi_ats.nn.precision.resolve`.
    lanes
        Number of batches computed at a time, for a CPU of several cores.
    threads
        Number of torch threads per lane; torch chooses by default. For the same result on machines of
        different size, give 1, and more lanes.
    size
        Number of tiles in a batch; the default depends on the device.

    Raises
    ------
    SettingsError
        For fewer than one lane, thread or tile.

    Examples
    --------
    >>> with TileBatches(lambda tiles: tiles.float().mean((1, 2)), size=2) as batches:
    ...     batches.encode(np.full((3, 4, 4, 3), 7, np.uint8)).result().tolist()
    [[7.0, 7.0, 7.0], [7.0, 7.0, 7.0], [7.0, 7.0, 7.0]]
    """

    def __init__(
        self,
        embed: Callable[[Tensor], Tensor],
        *,
        device: torch.device | None = None,
        precision: str = "float32",
        lanes: int = 1,
        threads: int | None = None,
        size: int | None = None,
    ) -> None:
        self._embed, self._device, self._precision = embed, device or torch.device("cpu"), precision
        self.size = size or (_BATCH_ON_GPU if self._device.type == "cuda" else _BATCH)
        if lanes < 1 or self.size < 1 or (threads is not None and threads < 1):
            raise SettingsError(
                f"encoding needs at least one lane, thread and tile, not {lanes}, {threads} and {self.size}"
            )
        set_threads = None if threads is None else partial(torch.set_num_threads, threads)
        self._pool = ThreadPoolExecutor(lanes, "encode", initializer=set_threads)
        self._guard = Lock()
        self._queue: deque[_Piece] = deque()

    def encode(self, tiles: Pixels) -> Future[Tensor]:
        """Begin to encode tiles.

        Parameters
        ----------
        tiles
            RGB, uint8, shape (n, h, w, 3); all callers' tiles have the same size.

        Returns
        -------
        future of a Tensor, shape (n, D), on the device
            Raises any error of encoding.
        """
        request = _Request(tiles)
        if not len(tiles):
            raise SettingsError("there are no tiles to encode")
        with self._guard:
            self._queue.append(_Piece(request, 0, len(tiles)))
        # Submit as many batches as these tiles alone need, so that every queued tile is taken.
        for _ in range(-(-len(tiles) // self.size)):
            batch: list[_Piece] = []
            self._pool.submit(self._compute, batch).add_done_callback(partial(self._tell_error, batch))
        return request.done

    def _take(self) -> list[_Piece]:
        """Take the next tiles of the queue, at most a batch."""
        taken: list[_Piece] = []
        room = self.size
        with self._guard:
            while room and self._queue:
                piece = self._queue.popleft()
                part = _Piece(piece.request, piece.first, min(room, piece.count))
                taken.append(part)
                room -= part.count
                if part.count < piece.count:
                    rest = _Piece(piece.request, piece.first + part.count, piece.count - part.count)
                    self._queue.appendleft(rest)
        return taken

    def _compute(self, batch: list[_Piece]) -> None:
        """Encode a batch, padded with black tiles, and add its pieces to the argument."""
        batch += self._take()
        if not batch:  # other batches took these tiles
            return
        pixels = np.zeros((self.size, *batch[0].request.tiles.shape[1:]), dtype=np.uint8)
        place = 0
        for each in batch:
            pixels[place : place + each.count] = each.request.tiles[each.first : each.first + each.count]
            place += each.count
        with torch.inference_mode(), autocast(self._precision, self._device, pixels.shape[1]):
            features = self._embed(to_device(pixels, self._device))
        # Not in a callback, whose errors would be lost: a GPU reports an error at the next call.
        place = 0
        with self._guard:
            for each in batch:
                if not each.request.done.done():  # else another part failed
                    each.request.receive(each.first, features[place : place + each.count])
                place += each.count

    def _tell_error(self, batch: list[_Piece], done: Future[None]) -> None:
        """Pass the error of a batch to its callers."""
        if done.cancelled():
            return  # closed, which drops the queue
        if (error := done.exception()) is not None:
            with self._guard:
                for each in batch:
                    if not each.request.done.done():
                        each.request.done.set_exception(error)

    def close(self) -> None:
        """Wait for running batches, and cancel the queue."""
        self._pool.shutdown(cancel_futures=True)
        with self._guard:
            for piece in self._queue:
                piece.request.done.cancel()
            self._queue.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


Embed = Callable[[Grid, IntArray], tuple[Tensor, int]]
"""Function from a grid and flat numbers (n,) of its cells to the features (n, D) of their tiles, and the
number of tiles that are empty; see :func:`wsi_ats.overview.tissue.are_empty`."""


@contextmanager
def embed_tiles(
    model: SlideNetwork,
    slide: Slide,
    settings: Settings,
    device: torch.device | None = None,
    *,
    shared: TileBatches | None = None,
    at_a_time: int = TILES_AT_A_TIME,
    keep: Callable[[IntArray, Pixels], None] | None = None,
) -> Iterator[Embed]:
    """Read tiles of an open slide and encode them, for scoring.

    Parameters
    ----------
    model
        The network.
    slide
        The open slide.
    settings
        Section ``scoring`` is used.
    device
        Device of the network; the CPU by default.
    shared
        An encoder of the network that other slides use too, and which is left open; by default a new one,
        with the same result.
    at_a_time
        See :func:`encode_cells`.
    keep
        Function that is given the cells (n,) and tiles (n, s, s, 3) of each read, in order.

    Yields
    ------
    function
        It may raise :class:`~wsi_ats.errors.SlideError`.
    """

    def read(grid: Grid, cells: IntArray) -> Pixels:
        tiles = read_tiles(slide, grid, cells)
        if keep is not None:
            keep(cells, tiles)
        return tiles

    with (
        TileBatches(model.embed, device=device, precision=settings.scoring.precision)
        if shared is None
        else nullcontext(shared)
    ) as batches:
        yield lambda grid, cells: encode_cells(batches, partial(read, grid), cells, at_a_time=at_a_time)


def embed_features(model: SlideNetwork, bag: MatchedBag, device: torch.device | None = None) -> Embed:
    """Take the features of tiles from a file in place of their pixels, for scoring.

    Parameters
    ----------
    model
        A network that was trained on features.
    bag
        The features of the slide's tiles.
    device
        Device of the network; the CPU by default.

    Returns
    -------
    function
        It may raise :class:`~wsi_ats.errors.FeatureError`; no tile counts as empty.
    """
    return lambda grid, cells: (model.embed(to_device(bag.read(cells), device)), 0)  # noqa: ARG005


def encode_cells(
    batches: TileBatches,
    read: Callable[[IntArray], Pixels],
    cells: IntArray,
    *,
    at_a_time: int = TILES_AT_A_TIME,
) -> tuple[Tensor, int]:
    """Read some cells while others are encoded, with few pixels in memory.

    Parameters
    ----------
    batches
        The encoder.
    read
        Function from cells (n,) to tiles.
    cells
        Flat cell numbers, shape (N,), at least one.
    at_a_time
        Number of tiles read together; as many more may be waiting to be encoded.

    Returns
    -------
    Tensor, shape (N, D)
        Their features.
    int
        Number of empty tiles; see :func:`wsi_ats.overview.tissue.are_empty`.

    Raises
    ------
    SlideError
        When a tile cannot be read.
    """
    encoded: list[Tensor] = []
    empty = 0

    def counted(part: IntArray) -> Pixels:
        nonlocal empty
        tiles = read(part)
        empty += int(are_empty(tiles).sum())
        return tiles

    for _, features in encode_parts(batches, counted, cells, at_a_time=at_a_time):
        encoded.append(features)
    return torch.cat(encoded), empty


def encode_parts(
    batches: TileBatches,
    read: Callable[[IntArray], Pixels],
    cells: IntArray,
    *,
    at_a_time: int = TILES_AT_A_TIME,
) -> Iterator[tuple[IntArray, Tensor]]:
    """Read some cells while others are encoded, and keep neither pixels nor features of those that are done.

    Parameters
    ----------
    batches, read, at_a_time
        See :func:`encode_cells`.
    cells
        Flat cell numbers, shape (N,).

    Yields
    ------
    ndarray of int64, shape (n,), and Tensor, shape (n, D)
        Cells in the given order, and their features.

    Raises
    ------
    SlideError
        When a tile cannot be read.

    Examples
    --------
    >>> with TileBatches(lambda tiles: tiles.float().mean((1, 2)), size=2) as batches:
    ...     read = lambda cells: np.repeat(cells.astype(np.uint8), 48).reshape(-1, 4, 4, 3)
    ...     parts = list(encode_parts(batches, read, np.arange(3), at_a_time=2))
    >>> [(cells.tolist(), features[:, 0].tolist()) for cells, features in parts]
    [([0, 1], [0.0, 1.0]), ([2], [2.0])]
    """
    begun: deque[tuple[IntArray, Future[Tensor]]] = deque()
    # Whole parts: a part that does not fill its last batch is padded.
    for first in range(0, len(cells), at_a_time):
        part = cells[first : first + at_a_time]
        begun.append((part, batches.encode(read(part))))
        if len(begun) > 1:
            part, features = begun.popleft()
            yield part, features.result()
    for part, features in begun:
        yield part, features.result()
