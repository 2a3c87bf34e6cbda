"""A CNN on the whole slide, read at one scale, if it fits into memory."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from wsi_ats.errors import ModelError
from wsi_ats.geometry import Grid
from wsi_ats.models.base import DrawLogits, Estimates, Kind, naming
from wsi_ats.models.batches import Example, Reader, outcomes
from wsi_ats.models.encoding import Embed
from wsi_ats.nn.encoder import build_encoder
from wsi_ats.nn.image import ImageClassifier
from wsi_ats.nn.memory import free_bytes, peak_bytes
from wsi_ats.nn.precision import autocast
from wsi_ats.overview.records import Overview
from wsi_ats.overview.tiles import read_thumbnail
from wsi_ats.settings import ImageModel, Settings
from wsi_ats.slides.base import Pixels, Slide

# Allowance for scratch space of kernels and fragmentation: CPUs needed 3 % to 19 % more than tensors take.
_MARGIN = 1.2


@dataclass(frozen=True)
class WholeImage:
    """See :class:`wsi_ats.models.base.Method`.

    Parameters
    ----------
    model
        The network.
    settings
        Sections ``tile``, ``model``, ``training`` and ``scoring`` are used.
    device
        Device of the network; the CPU by default.
    free
        Function that returns the free bytes of a device.
    """

    model: ImageClassifier
    settings: Settings
    device: torch.device | None = None
    free: Callable[[torch.device], int] = free_bytes

    def passes(self, slides: int) -> int:
        """Use one pass per slide: slides differ in size, and memory may hold only one."""
        return slides

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
                [image], failed = self._read([example], reader)
                errors += failed.values()
                if image is not None:
                    yield torch.from_numpy(image)[None].to(self.device)
            if len(examples) - len(errors) < 2:
                raise ModelError(f"too few slides could be read for calibration: {'; '.join(errors)}")

        self.model.encoder.calibrate_on(images)

    def begin(
        self,
        examples: Sequence[Example],
        reader: Reader,
        seeds: Sequence[int],  # noqa: ARG002  (nothing is drawn)
    ) -> Callable[[], Estimates]:
        """Defer all reads to the result: memory may hold only a single image."""
        return partial(self._estimate, examples, reader)

    def _estimate(self, examples: Sequence[Example], reader: Reader) -> Estimates:
        images, failed = self._read(examples, reader)
        places = [place for place, image in enumerate(images) if image is not None]
        device = self.device or torch.device("cpu")
        side = min((min(each.shape[:2]) for each in images if each is not None), default=0)
        with autocast(self.settings.training.precision, device, side):
            features = [
                self.model.embed(torch.from_numpy(image)[None].to(self.device))[0]
                for image in images
                if image is not None
            ]
        outputs = [self.model.classify(each) for each in features]
        none = torch.zeros(0, self.model.head.out_features, device=self.device)
        return Estimates(
            outputs=torch.stack(outputs) if outputs else none,
            places=places,
            failed=failed,
            log_weight=torch.zeros(len(outputs), device=self.device),
        )

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
        image = torch.from_numpy(read_thumbnail(slide, grid, self._pixels))
        device, precision = self.device or torch.device("cpu"), self.settings.scoring.precision
        with autocast(precision, device, min(image.shape[:2])):
            features = self.model.embed(image[None].to(self.device))[0]
        yield DrawLogits(self.model.classify(features).float().cpu())

    @property
    def _own(self) -> ImageModel:
        return self.settings.model_as(ImageModel)

    @property
    def _pixels(self) -> int:
        return self._own.pixels_per_cell(self.settings.tile)

    def _read(
        self, examples: Sequence[Example], reader: Reader
    ) -> tuple[list[Pixels | None], Mapping[str, str]]:
        jobs = [
            (e.ref, partial(read_thumbnail, grid=e.overview.tissue.grid, pixels_per_cell=self._pixels))
            for e in examples
        ]
        return outcomes(reader.run(jobs), examples)

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
