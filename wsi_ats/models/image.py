"""A CNN on the whole slide, read at one scale, if it fits into memory."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from wsi_ats.errors import ModelError, SlideError
from wsi_ats.geometry import Grid
from wsi_ats.models.base import DrawLogits, Kind, OneByOne, naming
from wsi_ats.models.batches import Example, Reader
from wsi_ats.models.encoding import Embed
from wsi_ats.nn.encoder import build_encoder
from wsi_ats.nn.memory import free_bytes, peak_bytes
from wsi_ats.nn.network import ImageClassifier
from wsi_ats.nn.precision import autocast
from wsi_ats.overview.records import Overview
from wsi_ats.overview.tiles import read_thumbnail
from wsi_ats.settings import ImageModel, Settings
from wsi_ats.slides.base import Slide

# Allowance for scratch space of kernels and fragmentation: CPUs needed 3 % to 19 % more than tensors take.
_MARGIN = 1.2


@dataclass(frozen=True)
class WholeImage(OneByOne):
    """See :class:`wsi_ats.models.base.Method` and :class:`wsi_ats.models.base.OneByOne`.

    Parameters
    ----------
    model, settings, device
        As in the latter.
    free
        Function that returns the free bytes of a device.
    """

    model: ImageClassifier
    free: Callable[[torch.device], int] = free_bytes

    def check(self, training: Sequence[Example], validation: Sequence[Example]) -> None:
        """Refuse slides that would not fit into memory; only the largest are checked."""
        for examples, learn in ((training, True), (validation, False)):
            if examples:
                largest = max(examples, key=lambda each: math.prod(each.overview.tissue.grid.shape))
                with naming(largest.ref.id):
                    self._refuse_too_large(largest.overview.tissue.grid, training=learn)

    def calibrate(self, examples: Sequence[Example], reader: Reader) -> None:
        """Measure the encoder's constants on the training slides.

        Raises
        ------
        ModelError
            When fewer than two slides can be read.
        """

        def images() -> Iterator[Tensor]:
            errors: list[str] = []
            for example in examples:
                try:
                    yield self._read(example, reader)
                except SlideError as error:
                    errors.append(str(error))
            if len(examples) - len(errors) < 2:
                raise ModelError(f"too few slides could be read for calibration: {'; '.join(errors)}")

        self.model.encoder.calibrate_on(images)

    def _compute(
        self,
        example: Example,
        reader: Reader,
        seed: int,  # noqa: ARG002  (nothing is drawn)
    ) -> tuple[Tensor, Tensor, int]:
        output = self._classify(self._read(example, reader), self.settings.training.precision)
        return output, torch.zeros((), device=self.device), 0

    @torch.inference_mode()
    def score(
        self,
        slide: Slide,
        overview: Overview,
        seeds: Iterable[int],  # noqa: ARG002  (nothing is drawn)
        embed: Embed,  # noqa: ARG002  (there are no tiles)
    ) -> Generator[DrawLogits, None, None]:
        """Compute the logits of one slide.

        Raises
        ------
        ModelError
            When it would not fit into memory.
        """
        grid = overview.tissue.grid
        with naming(slide.path):
            self._refuse_too_large(grid, training=False)
        image = torch.from_numpy(read_thumbnail(slide, grid, self._pixels))[None].to(self.device)
        yield DrawLogits(self._classify(image, self.settings.scoring.precision).float().cpu())

    @property
    def _own(self) -> ImageModel:
        return self.settings.model_as(ImageModel)

    @property
    def _pixels(self) -> int:
        return self._own.pixels_per_cell(self.settings.tile)

    def _read(self, example: Example, reader: Reader) -> Tensor:
        """Return the image of a slide, shape (1, h, w, 3), uint8, on the device."""
        grid = example.overview.tissue.grid
        read = partial(read_thumbnail, grid=grid, pixels_per_cell=self._pixels)
        [image] = reader.run([(example.ref, read)])
        return torch.from_numpy(image.result())[None].to(self.device)

    def _classify(self, image: Tensor, precision: str) -> Tensor:
        device = self.device or torch.device("cpu")
        with autocast(precision, device, min(image.shape[1:3])):
            features = self.model.embed(image)[0]
        return self.model.classify(features)

    def _refuse_too_large(self, grid: Grid, *, training: bool) -> None:
        device = self.device or torch.device("cpu")
        free, needed = self.free(device), self.needed(grid, self._pixels, training=training)
        if needed <= free:
            return
        fits = bisect_left(
            range(1, self._pixels),
            True,
            key=lambda pixels: self.needed(grid, pixels, training=training) > free,
        )
        scale = self._own.scale * fits / self._pixels
        height, width = (count * self._pixels for count in grid.shape)
        raise ModelError(
            f"the image is {width} x {height} pixels at model.scale {self._own.scale}: "
            f"{'training' if training else 'scoring'} would need {needed / 1e9:.3g} GB on {device.type}, and "
            f"{free / 1e9:.3g} GB are free; "
            + (f"train with a model.scale of at most {scale}" if fits else "no model.scale would fit")
            + ", a smaller backbone, or another model.kind"
        )

    def needed(self, grid: Grid, pixels_per_cell: int, *, training: bool) -> int:
        """Return the bytes that a slide needs, with the optimiser's two moments of each weight and a margin.

        Parameters
        ----------
        grid
            The slide's grid.
        pixels_per_cell
            Resolution of the image.
        training
            Whether to include the backward pass.
        """
        rows, columns = grid.shape
        shape = (rows * pixels_per_cell, columns * pixels_per_cell, 3)
        moments = 2 * sum(each.nbytes for each in self.model.parameters() if each.requires_grad)
        tensors = peak_bytes(self.model, shape, training=training) + (moments if training else 0)
        return math.ceil(_MARGIN * tensors)


def _build(settings: Settings, outputs: int, weights: bool) -> ImageClassifier:
    model = settings.model_as(ImageModel)
    encoder = build_encoder(
        model.backbone,
        pretrained=model.pretrained and weights,
        checkpoint=model.checkpoint if weights else "",
    )
    return ImageClassifier(encoder, classes=outputs)


IMAGE = Kind(ImageClassifier, _build, WholeImage)
"""Kind ``image``: a CNN on the whole slide."""
