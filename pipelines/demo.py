"""The whole story in one command: make slides, train on their labels, score others, compare, show."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines._cluster import connect, dashboard
from pipelines._runs import Execution, Summary, rooted
from pipelines.prepare import PrepareTask
from pipelines.score import score
from pipelines.train import train
from wsi_ats.errors import ArtifactError
from wsi_ats.files import read_json, write_json
from wsi_ats.overview.prepared import load_overview
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.results.attention import load_attention
from wsi_ats.results.exports.tables import read_selection
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.files import read_parquet
from wsi_ats.tables.manifest import read_manifest
from wsi_ats.testing.bank import make_tile_bank
from wsi_ats.testing.layout import Kind
from wsi_ats.testing.synthetic import write_collection, write_slide

# Small enough for two cores and a few minutes. The backbone is one of the smallest of timm and starts
# from random weights, so nothing is downloaded.
SETTINGS = (
    "tile.size=64",
    "thumbnail.pixels_per_cell=4",
    "model.backbone=test_resnet",
    "model.pretrained=false",
    "sampling.tiles=16",
)

# Attention sampling, and what it must be told apart from.
ARMS: Mapping[str, tuple[str, ...]] = {
    "attention sampling": (),
    "uniform draws": ("model.kind=uniform",),
}

# Where the slides are; `demo.json` beside these folders says of which demo.
_FOLDERS = ("training", "held-out", "gigapixel")

# Written last, each in its folder: with them the slides are complete.
_MARKS = ("labels.csv", "gigapixel.npz")

_TILE_SIZE = 64
_CEILING_DRAWS = 50


@dataclass(frozen=True)
class Scale:
    """How large the demo is.

    Parameters
    ----------
    training, held_out
        Numbers of slides.
    side
        Of these slides, in pixels.
    gigapixel_side
        Of the large slide, in pixels.
    slides_per_bank
        Slides made of the same tiles, as if they came from one laboratory.
    epochs
        Passes over the training slides in which the classifier learns.
    """

    training: int = 120
    held_out: int = 100
    side: int = 4096
    gigapixel_side: int = 32768
    slides_per_bank: int = 4
    epochs: int = 12


@dataclass(frozen=True)
class Arm:
    """How one way of classifying did on the held-out slides.

    Parameters
    ----------
    auc
        Area under the ROC curve.
    tiles, bytes
        Tiles read of all tissue tiles, bytes read of all bytes of the files; ``None`` where no tiles are
        read.
    in_lesion
        Share of the tiles drawn of positive slides that lie in the lesion.
    seconds
        Median time to score a slide.
    """

    auc: float
    tiles: float | None = None
    bytes: float | None = None
    in_lesion: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Demonstration:
    """What the demo found.

    Parameters
    ----------
    arms
        Figures of each way of classifying, by name.
    ceiling
        Expected AUC of a perfect tile classifier on as many tiles, drawn uniformly and spread in space as
        here, and drawn independently.
    gigapixel
        Figures of the large slide.
    seconds
        Time that each part took.
    figure
        Picture of the large slide.
    """

    arms: Mapping[str, Arm]
    ceiling: tuple[float, float]
    gigapixel: Mapping[str, str]
    seconds: Mapping[str, float]
    figure: Path
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return asdict(self) | {"figure": str(self.figure)}

    def sections(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        """What a person reads."""
        head = ("", "AUC", "tiles", "bytes", "in lesion", "s/slide")
        spread, independent = (f"{each:.3f}" for each in self.ceiling)
        times = [(name, f"{seconds:.0f} s") for name, seconds in self.seconds.items()]
        return [
            (
                "held-out slides: share of tiles and bytes read, of draws in the lesion",
                [
                    head,
                    *((name, *_cells(arm)) for name, arm in self.arms.items()),
                    ("ceiling, spread draws", spread, *[""] * 4),
                    ("ceiling, independent draws", independent, *[""] * 4),
                ],
            ),
            ("a gigapixel slide", [*self.gigapixel.items(), ("figure", str(self.figure))]),
            ("time", [*times, ("all", f"{sum(self.seconds.values()):.0f} s")]),
        ]


def demo(
    out: str | Path,
    *,
    seed: int = 0,
    scale: Scale | None = None,
    execution: Execution | None = None,
) -> Demonstration:
    """Train on synthetic slides from their labels alone, and compare on slides of another making.

    The slides have regions that stand out in the thumbnail; in positive slides some are lesions, which
    differ from the others only at full resolution. Held-out slides share neither tiles nor stains with
    the training slides.

    Parameters
    ----------
    out
        Folder for slides, models, scores and the figure.
    seed
        Of everything: slides, weights, draws.
    scale
        How large; by default it takes some twelve minutes of processor time.
    execution
        Where and how; the folder of an earlier demo of the same seed and scale is gone on with.

    Raises
    ------
    ArtifactError
        When the folder holds the slides of another demo, or of nobody knows whom.

    Examples
    --------
    >>> print(demo("demo").arms["attention sampling"].auc)  # doctest: +SKIP
    """
    execution, scale, out = execution or Execution(), scale or Scale(), rooted(out)
    changes = (*SETTINGS, f"training.epochs={scale.epochs}", f"training.seed={seed}")
    settings = Settings().with_values(changes)
    _claim(out, {"seed": seed, **asdict(scale)}, overwrite=execution.overwrite)
    clock = Stopwatch()
    with connect(execution.scheduler, workers=execution.workers) as client:
        if client is not execution.scheduler:
            execution.reporter.message(dashboard(client))
        execution = replace(execution, scheduler=client)
        with clock("write slides"):
            training, held_out = make_slides(out, scale, seed=seed, execution=execution)
        arms = compare(out, training, held_out, settings, execution=execution, clock=clock)
        with clock("train and score: thumbnail only"):
            model = out / "models" / next(iter(arms)).replace(" ", "_")
            arms["thumbnail only"] = _thumbnail_arm(model, training, held_out, settings, seed)
        with clock("gigapixel slide: write"):
            truth, slide = _write_gigapixel(out / "gigapixel", scale.gigapixel_side, seed=3 * seed + 2)
        with clock("gigapixel slide: score and draw"):
            scores = out / "scores" / "gigapixel"
            _complete(score([slide], model, scores, seed=seed, execution=execution))
            figure = out / "gigapixel.png"
            gigapixel = _draw_gigapixel(figure, slide, scores, truth, settings)
    best = ceiling(held_out, out / "held-out" / "truth", settings.sampling.tiles, seed)
    return Demonstration(arms, best, gigapixel, clock.seconds, figure)


def make_slides(
    out: Path, scale: Scale, *, seed: int, execution: Execution, visibility: float = 1.0
) -> tuple[list[SlideRef], list[SlideRef]]:
    """Write slides to train on and slides to score, unless they are there.

    Parameters
    ----------
    out
        Folder for both; they go to ``training`` and ``held-out``.
    scale
        How many, and how large.
    seed
        Of all of them; the two parts share neither tiles nor stains.
    execution
        Where; the two parts are written at the same time, if there are workers for both.
    visibility
        How much the regions stand out in the thumbnail; see ``wsi_ats.testing.bank.TileBank``.
    """
    counts = {"training": scale.training, "held-out": scale.held_out}
    with connect(execution.scheduler, workers=execution.workers) as client:
        jobs = [
            client.submit(_write_slides, out / name, count, scale, 3 * seed + number, visibility, pure=False)
            for number, (name, count) in enumerate(counts.items())
        ]
        client.gather(jobs)
    training, held_out = (read_manifest(out / name / "labels.csv") for name in counts)
    return training, held_out


def compare(
    out: Path,
    training: Sequence[SlideRef],
    held_out: Sequence[SlideRef],
    settings: Settings,
    *,
    execution: Execution,
    clock: Stopwatch,
    arms: Mapping[str, tuple[str, ...]] = ARMS,
) -> dict[str, Arm]:
    """Train ways of classifying on some slides, and measure them on others.

    Parameters
    ----------
    out
        The folder that :func:`make_slides` wrote to; models and scores go there, too.
    training, held_out
        The slides.
    settings
        What all arms have in common; ``training.seed`` decides the draws at scoring, too.
    execution
        Where and how; what an earlier call has finished is not done again.
    clock
        Told how long each part takes.
    arms
        The settings in which each arm differs, by its name.
    """
    measured = {}
    for name, differences in arms.items():
        run, scores = (out / kind / name.replace(" ", "_") for kind in ("models", "scores"))
        with clock(f"train: {name}"):
            _complete(train(training, run, settings=settings.with_values(differences), execution=execution))
        with clock(f"score: {name}"):
            _complete(score(held_out, run, scores, seed=settings.training.seed, execution=execution))
        measured[name] = _measure(scores, held_out, out / "held-out" / "truth")
    return measured


def _claim(out: Path, made: Mapping[str, int], *, overwrite: bool) -> None:
    """Note which slides the folder holds; others are refused or, with ``overwrite``, deleted."""
    record, folders = out / "demo.json", [out / name for name in _FOLDERS if (out / name).exists()]
    if folders and not record.exists():
        names = ", ".join(folder.name for folder in folders)
        raise ArtifactError(f"{out} holds {names}, but no demo.json that tells whose; choose another --out")
    if folders and overwrite:
        for folder in folders:
            for mark in _MARKS:
                (folder / mark).unlink(missing_ok=True)
            shutil.rmtree(folder)
    elif folders and (there := read_json(record)) != made:
        different = [
            f"{name} is {there.get(name)} there and {value} now"
            for name, value in made.items()
            if there.get(name) != value
        ]
        raise ArtifactError(
            f"{out} holds the slides of another demo: {'; '.join(different)}. Choose another --out, or "
            "replace them with --overwrite"
        )
    write_json(record, made)


class Stopwatch:
    """Keeps the time of named parts.

    Attributes
    ----------
    seconds
        By part.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Take the time of the context, under this name."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin


def _cells(arm: Arm) -> tuple[str, ...]:
    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.2%}"

    seconds = "" if arm.seconds is None else f"{arm.seconds:.2f}"
    return (f"{arm.auc:.3f}", share(arm.tiles), share(arm.bytes), share(arm.in_lesion), seconds)


def _complete(summary: Summary) -> None:
    if summary.failed:
        raise ArtifactError(f"the demo's own slides failed: {dict(summary.failed)}; use --overwrite")


def _write_slides(folder: Path, count: int, scale: Scale, seed: int, visibility: float) -> None:
    # The labels are written last: with them the folder is complete.
    if not (folder / "labels.csv").exists():
        write_collection(
            folder,
            slides=count,
            width=scale.side,
            height=scale.side,
            tile_size=_TILE_SIZE,
            seed=seed,
            visibility=visibility,
            variants=16,
            palettes=1,
            banks=max(1, count // scale.slides_per_bank),
        )


def _truth(folder: Path, slide_id: str, name: str) -> npt.NDArray[Any]:
    with np.load(folder / f"{slide_id}.npz") as file:
        array: npt.NDArray[Any] = file[name]
    return array


def _measure(scores: Path, refs: Sequence[SlideRef], truth: Path) -> Arm:
    """Compare the scores of held-out slides with what is known of them."""
    from wsi_ats.tasks.evaluation import auc

    rows, _ = read_parquet(scores / "predictions.parquet")
    labels = {ref.id: ref.label for ref in refs}
    targets = [int(labels[slide_id] == "positive") for slide_id in rows["slide_id"]]
    in_lesion = []
    for slide_id, positive in zip(rows["slide_id"], targets, strict=True):
        if positive:
            cells = read_selection(scores / "selections" / f"{slide_id}.parquet").cells
            in_lesion.append(float(np.mean(_truth(truth, slide_id, "kinds").flat[cells] == Kind.LESION)))
    area = auc(targets, np.stack([rows["prob_negative"], rows["prob_positive"]], axis=1))
    assert area is not None  # both classes are there by construction
    return Arm(
        auc=area,
        tiles=sum(rows["tiles_read"]) / sum(rows["tiles_total"]),
        bytes=sum(rows["bytes_read"]) / sum(Path(ref.path).stat().st_size for ref in refs),
        in_lesion=mean(in_lesion),
        seconds=median(rows["seconds"]),
    )


def _thumbnail_arm(
    model: Path,
    training: Sequence[SlideRef],
    held_out: Sequence[SlideRef],
    settings: Settings,
    seed: int,
) -> Arm:
    """Train on the thumbnails that training has prepared, and classify those of the held-out slides."""
    import torch

    from wsi_ats.overview.overview import read_overview
    from wsi_ats.tasks.evaluation import auc
    from wsi_ats.training.baselines import fit_thumbnails, thumbnail_logits

    task = PrepareTask.of(model, settings)
    classifier = fit_thumbnails(
        [load_overview(task.prepared(ref.id)) for ref in training],
        [int(ref.label == "positive") for ref in training],
        classes=2,
        epochs=settings.training.epochs,
        seed=seed,
    )
    probabilities = []
    with torch.inference_mode():
        for ref in held_out:
            with open_slide(ref) as slide:
                logits = thumbnail_logits(classifier, read_overview(slide, settings))
            probabilities.append(torch.softmax(logits, dim=0).tolist())
    area = auc([int(ref.label == "positive") for ref in held_out], probabilities)
    assert area is not None  # both classes are there by construction
    return Arm(auc=area)


def ceiling(refs: Sequence[SlideRef], truth: Path, tiles: int, seed: int) -> tuple[float, float]:
    """Expected AUC of uniform draws when a tile with any lesion in it is told without fail.

    That is 1 - P(none is drawn) / 2. For draws that are spread in space as ``uniform`` draws them, by
    trying; for independent draws, (1 - f)^n for a share f of such tiles.

    Parameters
    ----------
    refs
        Slides with labels.
    truth
        Folder of what is known of them.
    tiles
        Number of draws.
    seed
        Of the trials.

    Returns
    -------
    float, float
        With draws spread in space, and with independent draws.
    """
    import torch

    from wsi_ats.nn.sampling import draw

    generator = torch.Generator().manual_seed(seed)
    spread, independent = [], []
    for ref in refs:
        if ref.label != "positive":
            continue
        kinds = _truth(truth, ref.id, "kinds")
        cells = torch.from_numpy(np.flatnonzero(kinds))
        lesion = torch.from_numpy(_truth(truth, ref.id, "shows_lesion")).flatten()[cells]
        proposal = torch.full((len(cells),), 1 / len(cells))
        for _ in range(_CEILING_DRAWS):
            drawn = draw("uniform", proposal, cells=cells, shape=kinds.shape, n=tiles, generator=generator)
            spread.append(float(not lesion[drawn.indices].any()))
        independent.append((1 - lesion.double().mean().item()) ** tiles)
    return 1 - mean(spread) / 2, 1 - mean(independent) / 2


def _write_gigapixel(folder: Path, side: int, *, seed: int) -> tuple[npt.NDArray[np.uint8], SlideRef]:
    """Write one large positive slide, unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    path, truth = folder / "gigapixel.tif", folder / "gigapixel.npz"
    if not truth.exists():
        written = write_slide(
            path,
            bank=make_tile_bank(_TILE_SIZE, seed),
            width=side,
            height=side,
            positive=True,
            rng=np.random.default_rng(seed),
        )
        written.write_truth(folder)
    return _truth(folder, path.stem, "kinds"), SlideRef.from_path(path)


def _draw_gigapixel(
    figure: Path, ref: SlideRef, scores: Path, truth: npt.NDArray[np.uint8], settings: Settings
) -> dict[str, str]:
    """Draw the large slide and tell its figures."""
    from wsi_ats.overview.overview import read_overview
    from wsi_ats.results.plots import figure_of_slide

    rows, _ = read_parquet(scores / "predictions.parquet")
    row = {name: column[0] for name, column in rows.items()}
    selection = read_selection(scores / "selections" / f"{ref.id}.parquet")
    attention = load_attention(scores / "attention" / f"{ref.id}.npz")
    with open_slide(ref) as slide:
        thumbnail = read_overview(slide, settings).thumbnail
        tiles = read_tiles(slide, selection.grid, selection.cells)
    size = Path(ref.path).stat().st_size
    facts = {
        "size": f"{selection.grid.width:,} x {selection.grid.height:,} pixels, {size / 1e6:,.0f} MB",
        "tiles read": f"{row['tiles_read']} of {row['tiles_total']:,} tissue tiles",
        "bytes read": f"{row['bytes_read'] / 1e6:.2f} MB ({row['bytes_read'] / size:.2%})",
        "drawn tiles in lesion": f"{np.mean(truth.flat[selection.cells] == Kind.LESION):.1%}",
        "probability of positive": f"{row['prob_positive']:.3f} (it is positive)",
        "seconds": f"{row['seconds']:.2f}",
    }
    figure_of_slide(
        figure,
        thumbnail=thumbnail,
        attention=attention,
        selection=selection,
        tiles=tiles,
        title=f"{facts['size']}: {facts['tiles read']}, probability {facts['probability of positive']}",
        truth=truth,
    )
    return facts
