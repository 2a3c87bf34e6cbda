"""What scoring one slide costs, stage by stage: against its floor, and against encoding all of its tissue.

Run ``python -m benchmarks.scoring``, or some parts of it by ``--only``. Leave ``OMP_NUM_THREADS`` alone, or
set it to what ``--threads`` is: 1 by default, so that each side computes with one thread. Models have learned
nothing, which does not change what they cost.

``split``: seconds of one slide by stage, from a run in which each stage is timed, and the compressed bytes
and the file's own tiles that were read for it. ``floor``: wall time of the same without timing stages, by the
least that it could be: reading and decoding exactly those tiles one after the other, the attention network
alone on the ready thumbnail, the backbone alone on ready tiles in the same precision and batches. Aim 1.3.
``exhaustive``: against what others do, who read every tissue tile by OpenSlide and Pillow and encode batches
of 64 by the same backbone: in float32, and in bfloat16 with the layout that is fastest for it. Tiles that are
spread evenly over the tissue are measured; ``extrapolated_s`` is ``measured_s * all_tiles / measured_tiles``.
Nothing else is extrapolated: ``all_bytes`` is the sum over all tissue tiles in the file's index, and
``scoring_bytes`` over those that scoring read. ``scoring_bytes_asked`` is all that the process asked of
files, the index too, which those who encode all read as well. Goals on the slide of 80,000 pixels: ``times``
400, ``bytes_times`` 80.
``precision``: images per second of backbones by precision, and how well features agree with those in float32:
as the backbone gives them, and whitened. Without ``--weights`` the backbone is random, whose features hardly
differ from tile to tile: whitened, they show the rounding far more than those of a trained one.

In each round all sides take turns; figures are medians over rounds.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import openslide
import torch
from torch import Tensor, nn

import pipelines.score
import wsi_ats.models.scoring
import wsi_ats.overview.overview
from benchmarks import reading
from benchmarks._collection import TARGET, hardware, say, score_task, table, write_model
from benchmarks.report import report
from benchmarks.slide_size import write
from pipelines.score import ScoreTask
from wsi_ats.geometry import IntArray
from wsi_ats.models import sampling
from wsi_ats.models.checkpoints import load_model
from wsi_ats.models.scoring import Scored, predict_slide
from wsi_ats.nn.backbone import batch_norms, create_backbone
from wsi_ats.nn.encoder import TileEncoder
from wsi_ats.nn.model import AttentionSampler
from wsi_ats.nn.precision import autocast, resolve
from wsi_ats.overview.masks import TissueMask
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.settings import Settings
from wsi_ats.slides import SlideRef, open_slide
from wsi_ats.slides.base import Pixels, Slide
from wsi_ats.slides.codecs import Coding
from wsi_ats.slides.storage import LocalFile
from wsi_ats.slides.stored_image import StoredImage
from wsi_ats.slides.tiff import levels_of
from wsi_ats.slides.tiff_index import TiffIndex
from wsi_ats.slides.wrappers import WrappedSlide

Rows = list[dict[str, Any]]

PARTS = ("split", "exhaustive", "precision")

# Tiles in a batch of those who encode all.
_THEIR_BATCH = 64

# Backbones, and the side of the images that each is made for.
NETWORKS = {"resnet18": 256, "resnet50": 256, "vit_small_patch16_224": 224}

# What is timed, by the name of its stage: functions where their callers look them up. Time in a function that
# another of them calls is the inner one's alone. Encoding is waited for, in whatever thread it happens.
_ENCODE = "encode_cells" if hasattr(sampling, "encode_cells") else "embed_in_parts"
STAGES: dict[str, tuple[Any, str]] = {
    "records": (ScoreTask, "__call__"),
    "open": (pipelines.score, "open_slide"),
    "rest": (wsi_ats.models.scoring, "predict_slide"),
    "thumbnail": (wsi_ats.overview.overview, "read_thumbnail"),
    "tissue": (wsi_ats.overview.overview, "find_tissue"),
    "attention": (AttentionSampler, "score_cells"),
    "draw": (sampling, "draw_cells"),
    "network": (sampling, _ENCODE),
    "tiles": (sampling, "read_tiles"),
}
# Parts of whatever stage they are called in.
READ, DECODE = "read", "decode"
ORDER = (
    "open",
    "thumbnail: read",
    "thumbnail: decode",
    "thumbnail",
    "tissue",
    "attention",
    "draw",
    "tiles: read",
    "tiles: decode",
    "tiles",
    "network",
    "rest",
    "records",
)
MEANS = {"thumbnail": "thumbnail: average", "tiles": "tiles: arrange", "rest": "rest of the prediction"}


def encoding(settings: Settings) -> tuple[int, str]:
    """Tiles in a batch and precision, as scoring encodes them."""
    scoring: Any = getattr(settings, "scoring", None)
    return (64, "float32") if scoring is None else (8, scoring.precision)


class Stopwatch:
    """Seconds by stage of the thread that made it, and bytes and tiles that were read in each.

    Parameters
    ----------
    clock
        Gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, int] = defaultdict(int)
        self.tiles: dict[str, int] = defaultdict(int)
        self._thread = threading.get_ident()
        self._stages: list[str] = []
        self._inner: list[float] = []

    def watch(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Time a function's calls as a stage, or as a part of the stage that is going on."""

        def watched(*arguments: Any, **named: Any) -> Any:
            if threading.get_ident() != self._thread:
                return function(*arguments, **named)
            part = name in {READ, DECODE}
            stage = f"{self._stages[-1]}: {name}" if part and self._stages else name
            self._stages.append(self._stages[-1] if part and self._stages else name)
            self._inner.append(0.0)
            begin = self._clock()
            try:
                return function(*arguments, **named)
            finally:
                took = self._clock() - begin
                self._stages.pop()
                self.seconds[stage] += took - self._inner.pop()
                if self._inner:
                    self._inner[-1] += took

        return watched

    def fetch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Time announcing and reading, and count what is read."""
        announce = self.watch(READ, function)

        def watched(file: LocalFile, offsets: IntArray, sizes: IntArray) -> Any:
            if threading.get_ident() == self._thread and self._stages:
                self.bytes[self._stages[-1]] += int(sizes.sum())
                self.tiles[self._stages[-1]] += len(sizes)
            return self.watch(READ, announce(file, offsets, sizes))

        return watched

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time all stages while the context lasts."""
        with ExitStack() as stack:
            for name, (owner, attribute) in STAGES.items():
                watched = self.watch(name, getattr(owner, attribute))
                stack.enter_context(patch.object(owner, attribute, watched))
            stack.enter_context(patch.object(LocalFile, "fetch", self.fetch(LocalFile.fetch)))
            stack.enter_context(patch.object(Coding, "decode", self.watch(DECODE, Coding.decode)))
            yield


class _Noting(WrappedSlide):
    """Notes which regions of which level are read."""

    def __init__(self, inner: Slide) -> None:
        super().__init__(inner)
        self.regions: list[tuple[int, IntArray, int, int]] = []

    def read_regions(self, level: int, corners: IntArray, width: int, height: int) -> Pixels:
        self.regions.append((level, corners, width, height))
        return self._inner.read_regions(level, corners, width, height)


def predict(task: ScoreTask, ref: SlideRef, slide: Slide, model: Any) -> Scored:
    """Score an open slide as a task does."""
    return predict_slide(
        model, ref, slide, task.settings, target=TARGET, model_digest=task.model_digest, seed=task.seed
    )


@dataclass(frozen=True)
class Floor:
    """The least that scoring a slide takes: what has to be read, looked at and encoded, all ready at hand.

    Parameters
    ----------
    path
        The slide.
    images, regions
        Its levels, and which regions of them are read.
    thumbnail, tissue
        What attention sees.
    tiles
        Those that were drawn, uint8, shape (n, side, side, 3).
    model, settings
        What scores.
    """

    path: Path
    images: Sequence[StoredImage]
    regions: Sequence[tuple[int, IntArray, int, int]]
    thumbnail: Tensor
    tissue: TissueMask
    tiles: Tensor
    model: AttentionSampler
    settings: Settings

    @classmethod
    def of(cls, task: ScoreTask, ref: SlideRef, model: Any) -> Floor:
        """Find out what is read of a slide, by scoring it."""
        file = LocalFile(ref.path)
        index = TiffIndex.of(file)
        file.close()
        assert index is not None
        with open_slide(ref) as inner:
            slide = _Noting(inner)
            selection = predict(task, ref, slide, model).selection
            assert selection is not None
            thumbnail, tissue = wsi_ats.overview.overview.look(inner, task.settings)
            tiles = read_tiles(inner, selection.grid, np.unique(selection.cells))
        return cls(
            Path(ref.path),
            levels_of(index),
            slide.regions,
            torch.from_numpy(thumbnail),
            tissue,
            torch.from_numpy(tiles),
            model,
            task.settings,
        )

    @torch.inference_mode()
    def measure(self) -> tuple[float, float, float]:
        """Seconds of reading and decoding, of attention, and of the backbone."""
        spent = 0.0
        for level, image in enumerate(self.images):
            with reading.floor(self.path, image) as read:
                begin = time.perf_counter()
                for _, corners, width, height in (each for each in self.regions if each[0] == level):
                    read(corners, width, height)
                spent += time.perf_counter() - begin
        begin = time.perf_counter()
        self.model.score_cells(self.thumbnail, torch.from_numpy(self.tissue.cells), self.tissue.grid.shape)
        attended = time.perf_counter()
        batch, precision = encoding(self.settings)
        for part in self.tiles.split(batch):
            with autocast(precision, part.device, part.shape[1]):
                self.model.embed(part)
        return spent, attended - begin, time.perf_counter() - attended


def split(path: Path, task: ScoreTask, rounds: int, work: Path) -> tuple[Rows, Rows]:
    """Rows of the stages of scoring a slide, and a row that holds them against the floor."""
    ref = SlideRef.from_path(path.resolve())
    model: Any = load_model(task.model).model
    floor = Floor.of(task, ref, model)
    found: list[dict[str, float]] = []
    watches: list[Stopwatch] = []
    for number in range(rounds + 1):  # the first warms up
        with TemporaryDirectory(dir=work) as out:
            begin = time.perf_counter()
            _in(task, out)(ref)
            whole = time.perf_counter() - begin
        with open_slide(ref) as slide:
            begin = time.perf_counter()
            predict(task, ref, slide, model)
            predicted = time.perf_counter() - begin
        watch = Stopwatch()
        with TemporaryDirectory(dir=work) as out, watch.watching():
            _in(task, out)(ref)
        read, attention, network = floor.measure()
        if number:
            watches.append(watch)
            found.append(
                {
                    "task_s": whole,
                    "predict_s": predicted,
                    "read": read,
                    "attention": attention,
                    "network": network,
                }
            )
    middle = {key: median(each[key] for each in found) for key in found[0]}
    size = {"slide": path.stem, "backbone": task.settings.model.backbone, "threads": torch.get_num_threads()}
    seconds = {stage: median(watch.seconds[stage] for watch in watches) for stage in ORDER}
    stages: Rows = []
    for stage in ORDER:
        row = {
            **size,
            "stage": MEANS.get(stage, stage),
            "seconds": seconds[stage],
            "share": seconds[stage] / sum(seconds.values()),
            "bytes": watches[-1].bytes[stage.removesuffix(": read")] if stage.endswith(": read") else None,
            "tiles": watches[-1].tiles[stage.removesuffix(": read")] if stage.endswith(": read") else None,
            "rounds": rounds,
            "hardware": hardware(),
        }
        say("split", row)
        stages.append(row)
    least = middle["read"] + middle["attention"] + middle["network"]
    row = {
        **size,
        "precision": _type(task.settings),
        "task_s": middle["task_s"],
        "predict_s": middle["predict_s"],
        "stages_s": sum(seconds.values()),
        "floor_read_s": middle["read"],
        "floor_attention_s": middle["attention"],
        "floor_network_s": middle["network"],
        "floor_s": least,
        "predict_by_floor": middle["predict_s"] / least,
        "task_by_floor": middle["task_s"] / least,
        "rounds": rounds,
        "hardware": hardware(),
    }
    say("floor", row)
    return stages, [row]


def _in(task: ScoreTask, out: str) -> ScoreTask:
    return score_task(Path(out), task.model)


def _type(settings: Settings) -> str:
    """In which numbers scoring encodes."""
    found = resolve(encoding(settings)[1], torch.device("cpu"), settings.tile.size)
    return str(found).removeprefix("torch.")


def all_tissue(path: Path, settings: Settings) -> tuple[IntArray, int]:
    """Corners (n, 2) of all tissue tiles in level-0 pixels, and their compressed bytes in the file."""
    with open_slide(path) as slide:
        tissue = wsi_ats.overview.overview.look(slide, settings)[1]
        side = settings.tile.size
        corners = tissue.grid.boxes(tissue.cells)[:, :2]
        if tissue.grid.cell != side:
            raise ValueError(f"{path}: a tile is {tissue.grid.cell} pixels wide, not {side}; set tile.mpp")
        stored = slide.stored_bytes(0, corners, side, side)
    assert stored is not None
    return corners, stored


@torch.inference_mode()
def encode_all(
    path: Path, corners: IntArray, side: int, network: nn.Module, precision: str
) -> tuple[float, float]:
    """Encode tiles as pipelines do that encode all of them; gives the seconds of reading and of computing."""
    layout = torch.contiguous_format if precision == "float32" else torch.channels_last
    mean, std = (
        torch.tensor(each).reshape(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    read = computed = 0.0
    with openslide.OpenSlide(path) as slide:
        for first in range(0, len(corners), _THEIR_BATCH):
            begin = time.perf_counter()
            part = corners[first : first + _THEIR_BATCH].tolist()
            pixels = [slide.read_region((x, y), 0, (side, side)).convert("RGB") for x, y in part]
            images = np.stack([np.asarray(each) for each in pixels])
            middle = time.perf_counter()
            batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
            with autocast(precision, batch.device, side):
                network(((batch - mean) / std).contiguous(memory_format=layout))
            read += middle - begin
            computed += time.perf_counter() - middle
    return read, computed


def asked_of_files() -> int:
    """Bytes that this process has read so far, wherever they came from."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def exhaustive(path: Path, task: ScoreTask, count: int, rounds: int) -> Rows:
    """Hold scoring a slide against encoding all of its tissue."""
    ref, settings = SlideRef.from_path(path.resolve()), task.settings
    model: Any = load_model(task.model).model
    corners, stored = all_tissue(path, settings)
    chosen = corners[np.linspace(0, len(corners) - 1, min(count, len(corners))).round().astype(int)]
    made = partial(create_backbone, settings.model.backbone, pretrained=False, size=settings.tile.size)
    networks = {
        "float32": made().network.eval(),
        "bfloat16": made().network.eval().to(memory_format=torch.channels_last),
    }
    theirs: dict[str, list[tuple[float, float]]] = {precision: [] for precision in networks}
    ours: list[float] = []
    for number in range(rounds + 1):  # the first warms up
        for precision, network in networks.items():
            some = chosen if number else chosen[:_THEIR_BATCH]
            theirs[precision].append(encode_all(path, some, settings.tile.size, network, precision))
        before, begin = asked_of_files(), time.perf_counter()
        with open_slide(ref) as slide:
            prediction = predict(task, ref, slide, model).prediction
        ours.append(time.perf_counter() - begin)
        asked = asked_of_files() - before
    rows: Rows = []
    scoring, scored = median(ours[1:]), prediction.bytes_read
    assert scored is not None
    for precision, figures in theirs.items():
        measured = median(read + computed for read, computed in figures[1:])
        extrapolated = measured * len(corners) / len(chosen)
        row = {
            "slide": path.stem,
            "backbone": settings.model.backbone,
            "threads": torch.get_num_threads(),
            "precision": precision,
            "measured_tiles": len(chosen),
            "measured_s": measured,
            "of_it_reading_s": median(read for read, _ in figures[1:]),
            "all_tiles": len(corners),
            "extrapolated_s": extrapolated,
            "scoring_precision": _type(settings),
            "scoring_tiles": prediction.tiles_read,
            "scoring_s": scoring,
            "times": extrapolated / scoring,
            "all_bytes": stored,
            "scoring_bytes": scored,
            "scoring_bytes_asked": asked,
            "bytes_times": stored / scored,
            "bytes_times_asked": stored / asked,
            "rounds": rounds,
            "hardware": hardware(),
        }
        say("exhaustive", row)
        rows.append(row)
    return rows


def encoder_of(name: str, side: int, tiles: Tensor, checkpoint: str) -> TileEncoder:
    """Build an encoder whose blocks all have a say, whether it has learned or not."""
    made = create_backbone(name, pretrained=False, checkpoint=checkpoint, size=side)
    if not checkpoint:
        for layer in batch_norms(made.network):  # those that end a residual block begin with 0
            nn.init.ones_(layer.weight)
    encoder = TileEncoder(made, trained=bool(checkpoint)).eval()
    encoder.calibrate(tiles)
    return encoder


@torch.inference_mode()
def features_of(encoder: TileEncoder, tiles: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Features (n, D) as the backbone gives them, and whitened."""
    raw: list[Tensor] = []
    hook = encoder.network.register_forward_hook(lambda _, given, made: raw.append(made))  # noqa: ARG005
    with autocast(precision, tiles.device, tiles.shape[1]):
        whitened = encoder(tiles)
    hook.remove()
    return raw[0], whitened


def precisions(
    name: str,
    tiles: Tensor,
    *,
    batches: Sequence[int],
    threads: Sequence[int],
    rounds: int,
    checkpoint: str = "",
) -> Rows:
    """Images per second of a backbone by precision, and how features agree.

    Parameters
    ----------
    name, checkpoint
        The backbone, and its weights; random ones by default.
    tiles
        uint8, shape (n, side, side, 3), at least as many as the largest batch; whitening is measured on all.
    batches, threads
        Sizes of batches, and threads of torch.
    rounds
        How often each batch is encoded.
    """
    side = tiles.shape[1]
    before = torch.get_num_threads()
    encoder = encoder_of(name, side, tiles, checkpoint)
    rows: Rows = []
    for count in threads:
        torch.set_num_threads(count)
        for batch in batches:
            part = tiles[:batch]
            seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
            features: dict[str, tuple[Tensor, Tensor]] = {}
            for number in range(rounds + 1):  # the first warms up
                for precision, spent in seconds.items():
                    begin = time.perf_counter()
                    features[precision] = features_of(encoder, part, precision)
                    if number:
                        spent.append(time.perf_counter() - begin)
            exact = [each.double() for each in features["float32"]]
            for precision, spent in seconds.items():
                other = [each.double() for each in features[precision]]
                cosines = [torch.cosine_similarity(*pair).min() for pair in zip(exact, other, strict=True)]
                row = {
                    "backbone": name,
                    "weights": checkpoint or "random",
                    "side": side,
                    "batch": batch,
                    "threads": count,
                    "precision": precision,
                    "images_per_s": batch / median(spent),
                    "by_float32": median(seconds["float32"]) / median(spent),
                    "largest_difference": ((other[0] - exact[0]).abs().max() / exact[0].abs().max()).item(),
                    "least_cosine": cosines[0].item(),
                    "least_cosine_whitened": cosines[1].item(),
                    "rounds": rounds,
                    "hardware": hardware(),
                }
                say("precision", row)
                rows.append(row)
    torch.set_num_threads(before)
    return rows


def tiles_of(path: Path, count: int, side: int) -> Tensor:
    """Tissue of a slide, spread evenly over it: uint8, shape (count, side, side, 3)."""
    corners, _ = all_tissue(path, Settings())
    chosen = corners[np.linspace(0, len(corners) - 1, count).round().astype(int)]
    with open_slide(path) as slide:
        return torch.from_numpy(slide.read_regions(0, chosen, side, side))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables and write them to ``results/scoring_*.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="Small slides and networks: does it run?")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--sides", type=int, nargs="+", help="Of the slides, pixels.")
    parser.add_argument("--tiles", type=int, help="Tiles that are measured of those who encode all.")
    parser.add_argument(
        "--threads", type=int, default=1, help="Of torch in `exhaustive`; `split` has one, as workers do."
    )
    parser.add_argument("--networks", nargs="+", help="Backbones of `precision`.")
    parser.add_argument("--weights", nargs="*", default=[], metavar="backbone=file", help="In `precision`.")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.name=value")
    parser.add_argument("--slides", type=Path, default=Path("results/slides"), help="Kept for another run.")
    parser.add_argument("--work", type=Path, default=Path("results/scoring"), help="For what is deleted.")
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args(arguments)
    quick = options.quick
    rounds = options.rounds or (1 if quick else 5)
    sides = options.sides or ([4096] if quick else [20_000, 80_000])
    options.work.mkdir(parents=True, exist_ok=True)
    work = options.work.resolve()
    backbone, drawn = ("test_resnet", 4) if quick else ("resnet18", 64)
    settings = Settings().with_values(
        [f"model.backbone={backbone}", f"sampling.tiles={drawn}", "model.pretrained=false", *options.set]
    )
    task = score_task(work, write_model(work / "model", settings))
    paths = [write(options.slides, side) for side in sides]
    below = ["hardware"]
    before = torch.get_num_threads()
    if "split" in options.only:
        torch.set_num_threads(1)  # a task does so, and what it is held against must have as many
        parts = [split(path, task, rounds, work) for path in paths]
        stages, floors = ([row for part in parts for row in part[i]] for i in (0, 1))
        report("stages of scoring", "scoring_split", table(stages), options.out, below=below)
        report("scoring by its floor", "scoring_floor", table(floors), options.out, below=below)
    if "exhaustive" in options.only:
        torch.set_num_threads(options.threads)
        count = options.tiles or (16 if quick else 512)
        rows = [row for path in paths for row in exhaustive(path, task, count, rounds)]
        title = "scoring against encoding all tissue (extrapolated from the measured tiles)"
        report(title, "scoring_exhaustive", table(rows), options.out, below=below)
    torch.set_num_threads(before)
    if "precision" in options.only:
        batches, threads = ((2, 4), (1,)) if quick else ((8, 64), (1, 2))
        networks = options.networks or (["test_resnet"] if quick else list(NETWORKS))
        weights = dict(each.split("=", 1) for each in options.weights)
        rows = []
        for name in networks:
            side = NETWORKS.get(name, 256)
            tiles = tiles_of(paths[0], 16 if quick else 128, side)
            checkpoint = weights.get(name, "")
            rows += precisions(
                name, tiles, batches=batches, threads=threads, rounds=rounds, checkpoint=checkpoint
            )
        report("precision of backbones", "scoring_precision", table(rows), options.out, below=below)


if __name__ == "__main__":
    main()
