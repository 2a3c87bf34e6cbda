"""The methods that the demo compares, and their metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import numpy as np

from pipelines._demo_slides import read_truth
from pipelines._runs import Execution, Summary
from pipelines.prepare import PrepareTask
from pipelines.score import score
from pipelines.train import train
from wsi_ats.errors import ArtifactError
from wsi_ats.overview.records import load_overview
from wsi_ats.results.selections import read_selection
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.files import read_parquet
from wsi_ats.testing.layout import Kind

# Attention sampling, and the method it is compared with.
ARMS: Mapping[str, tuple[str, ...]] = {"attention sampling": (), "uniform draws": ("model.kind=uniform",)}

_CEILING_DRAWS = 50


@dataclass(frozen=True)
class Arm:
    """Metrics of one method on the held-out slides.

    Parameters
    ----------
    auc
        Area under the ROC curve.
    tiles, bytes
        Shares of the tissue tiles and of the files' bytes that are read; ``None`` where no tiles are read.
    in_lesion
        Share of the tiles drawn from positive slides that lie in a lesion.
    seconds
        Median time to score a slide.
    """

    auc: float
    tiles: float | None = None
    bytes: float | None = None
    in_lesion: float | None = None
    seconds: float | None = None


class Stopwatch:
    """A stopwatch for named parts.

    Attributes
    ----------
    seconds
        Seconds by part.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure the time of the context."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin


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
    """Train each method on some slides and measure it on others.

    Parameters
    ----------
    out
        The folder that ``make_slides`` wrote to; models and scores are written there as well.
    training, held_out
        The slides.
    settings
        Settings of all methods; ``training.seed`` also decides the draws at scoring.
    execution
        The cluster; results of an earlier call are reused.
    clock
        Measures the time of each part.
    arms
        Settings that differ from ``settings``, by the name of the method.
    """
    measured = {}
    for name, differences in arms.items():
        run, scores = (out / kind / name.replace(" ", "_") for kind in ("models", "scores"))
        with clock(f"train: {name}"):
            check_complete(
                train(training, run, settings=settings.with_values(differences), execution=execution)
            )
        with clock(f"score: {name}"):
            check_complete(score(held_out, run, scores, seed=settings.training.seed, execution=execution))
        measured[name] = _measure(scores, held_out, out / "held-out" / "truth")
    return measured


def check_complete(summary: Summary) -> None:
    """Refuse results in which slides of the demo are missing.

    Raises
    ------
    ArtifactError
        When a slide has failed.
    """
    if summary.failed:
        raise ArtifactError(f"the demo's own slides failed: {dict(summary.failed)}; use --overwrite")


def _measure(scores: Path, refs: Sequence[SlideRef], truth: Path) -> Arm:
    """Compare the scores of held-out slides with the truth."""
    from wsi_ats.tasks.evaluation import auc

    rows, _ = read_parquet(scores / "predictions.parquet")
    labels = {ref.id: ref.label for ref in refs}
    targets = [int(labels[slide_id] == "positive") for slide_id in rows["slide_id"]]
    in_lesion = []
    for slide_id, positive in zip(rows["slide_id"], targets, strict=True):
        if positive:
            cells = read_selection(scores / "selections" / f"{slide_id}.parquet").cells
            in_lesion.append(float(np.mean(read_truth(truth, slide_id, "kinds").flat[cells] == Kind.LESION)))
    area = auc(targets, np.stack([rows["prob_negative"], rows["prob_positive"]], axis=1))
    assert area is not None  # both classes are there by construction
    return Arm(
        auc=area,
        tiles=sum(rows["tiles_read"]) / sum(rows["tiles_total"]),
        bytes=sum(rows["bytes_read"]) / sum(Path(ref.path).stat().st_size for ref in refs),
        in_lesion=mean(in_lesion),
        seconds=median(rows["seconds"]),
    )


def thumbnail_arm(
    model: Path, training: Sequence[SlideRef], held_out: Sequence[SlideRef], settings: Settings, seed: int
) -> Arm:
    """Train on the thumbnails of the training slides and classify those of the held-out slides."""
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
    """Compute the expected AUC of uniform draws with a perfect tile classifier.

    It is 1 - P(no tile with lesion is drawn) / 2. For draws that are spread in space, as design ``uniform``
    draws them, this probability is estimated by trials; for independent draws it is (1 - f)^n, where f is the
    share of tiles with lesion.

    Parameters
    ----------
    refs
        Slides with labels.
    truth
        Folder with the truth about them.
    tiles
        Number of draws, n.
    seed
        Random seed of the trials.

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
        kinds = read_truth(truth, ref.id, "kinds")
        cells = torch.from_numpy(np.flatnonzero(kinds))
        lesion = torch.from_numpy(read_truth(truth, ref.id, "shows_lesion")).flatten()[cells]
        proposal = torch.full((len(cells),), 1 / len(cells))
        for _ in range(_CEILING_DRAWS):
            drawn = draw("uniform", proposal, cells=cells, shape=kinds.shape, n=tiles, generator=generator)
            spread.append(float(not lesion[drawn.indices].any()))
        independent.append((1 - lesion.double().mean().item()) ** tiles)
    return 1 - mean(spread) / 2, 1 - mean(independent) / 2
