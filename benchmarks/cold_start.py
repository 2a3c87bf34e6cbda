"""What makes attention learn from slide labels alone, when a hundredth of the tissue decides them.

Run ``python -m benchmarks.cold_start``; one idle core takes 40 seconds for the slides of a seed and 20
for each arm. Slides are those of the demo, with fewer and smaller lesions, read once through the library and
held in memory, each distinct tile once; networks, draws, estimates and rates are the library's. The loop is
this file's own, so that variants that did *not* help can be tried without being settings of the library.

Slides of other tiles and stains are measured after training. Beside their AUC, which a mean over few slides
cannot tell apart from luck, the table says how much of the attention lies in lesions (all cells are asked, so
it has no sampling error) and how well the classifier alone tells lesions' tiles from look-alikes'.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.report import report
from pipelines.demo import SETTINGS
from wsi_ats.config import Settings
from wsi_ats.evaluation import auc
from wsi_ats.look import look
from wsi_ats.nn import expectation
from wsi_ats.nn.encoder import TileEncoder
from wsi_ats.nn.model import AttentionSampler, build_model
from wsi_ats.nn.sampling import Draw, draw, explore
from wsi_ats.nn.teaching import teaching
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables import read_csv, write_csv
from wsi_ats.testing.layout import Kind
from wsi_ats.testing.synthetic import SyntheticSlide, write_collection
from wsi_ats.tiles import read_tiles

SLIDES_PER_BANK = 4
TILES_AT_A_TIME = 128


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to train.

    Parameters
    ----------
    teaching
        Strength of :func:`wsi_ats.nn.teaching.teaching`.
    evidence
        Power of a tile's likelihood in it.
    normalise
        What is done to a tile's raw feature; see :data:`NORMALISATIONS`.
    again
        Epoch before which the constants of the feature are measured once more; 0 for never.
    held
        Share of the steps for which attention is kept uniform, while the rest learns.
    entropy, early_entropy
        Strength with which attention is kept spread; the second falls to zero over half of the steps.
    exploration
        Share of the draws spent on all cells alike.
    tiles, design
        The draw.
    wide_epochs, wide_tiles
        Epochs at the start in which more tiles are drawn, and how many.
    earlier_draws
        How many earlier draws of a slide are pooled with the present one; their features are as they were.
    scan_every, scan_slides, scan_tiles
        Every so many epochs, of so many slides so many tiles (0: all) are encoded without gradient; what
        they say is taught to the attention. 0 for never.
    scan_classifier
        Whether gate and head learn from the scanned slides too.
    attention_rate
        Peak learning rate of the attention.
    frozen
        Whether attention stays as it starts.
    epochs
        Passes over the slides; decided by :class:`Setup`.
    """

    teaching: float = 0.0
    evidence: float = 4.0
    normalise: str = "whitened"
    again: int = 0
    held: float = 0.0
    entropy: float = 1e-4
    early_entropy: float = 0.0
    exploration: float = 0.0
    tiles: int = 16
    design: str = "systematic"
    wide_epochs: int = 0
    wide_tiles: int = 64
    earlier_draws: int = 0
    scan_every: int = 0
    scan_slides: int = 8
    scan_tiles: int = 0
    scan_classifier: bool = False
    attention_rate: float = 1e-2
    frozen: bool = False
    epochs: int = 16


TAUGHT = Recipe(teaching=1.0)

ARMS: Mapping[str, Recipe] = {
    "slide's loss alone": Recipe(),
    "attention frozen": Recipe(frozen=True),
    "uniform draws": Recipe(design="uniform"),
    "taught": TAUGHT,
    "taught, evidence 1": replace(TAUGHT, evidence=1.0),
    "taught by the gate alone": replace(TAUGHT, evidence=0.0),
    "taught, evidence 16": replace(TAUGHT, evidence=16.0),
    "taught, strength 0.3": replace(TAUGHT, teaching=0.3),
    "taught, exploration 0.2": replace(TAUGHT, exploration=0.2),
    "taught, entropy 0.02": replace(TAUGHT, entropy=0.02),
    "taught, early entropy 0.1": replace(TAUGHT, early_entropy=0.1),
    "taught, attention held 0.3": replace(TAUGHT, held=0.3),
    "attention held 0.3": Recipe(held=0.3),
    "entropy 0.02": Recipe(entropy=0.02),
    "exploration 0.2": Recipe(exploration=0.2),
    "attention rate 0.002": Recipe(attention_rate=2e-3),
    "64 tiles": Recipe(tiles=64),
    "taught, 64 tiles": replace(TAUGHT, tiles=64),
    "taught, 64 tiles for 4 epochs": replace(TAUGHT, wide_epochs=4),
    "earlier draws pooled": Recipe(earlier_draws=7),
    "taught, earlier draws pooled": replace(TAUGHT, earlier_draws=7),
    "taught, scan": replace(TAUGHT, scan_every=2),
    "taught, scan teaches classifier": replace(TAUGHT, scan_every=2, scan_classifier=True),
    "taught, scan of 128 tiles": replace(TAUGHT, scan_every=1, scan_slides=16, scan_tiles=128),
    "taught, whitened again": replace(TAUGHT, again=5),
    "taught, standardised": replace(TAUGHT, normalise="standardised"),
    "taught, length": replace(TAUGHT, normalise="length"),
    "taught, layer": replace(TAUGHT, normalise="layer"),
    "taught, running": replace(TAUGHT, normalise="running"),
}
DEFAULT = ("slide's loss alone", "attention frozen", "uniform draws", "taught", "taught, evidence 1")


@dataclass(frozen=True, slots=True)
class Known:
    """A slide in memory, with what is known of its cells.

    Parameters
    ----------
    thumbnail
        RGB, uint8, shape (rows * p, columns * p, 3).
    cells, shape
        Flat numbers of the tissue cells, shape (K,), and the grid's rows and columns.
    distinct, place
        Distinct tiles (N, size, size, 3), and which of them each cell shows, shape (K,).
    lesion, region
        Cells that show any lesion, and those that are region of either kind, bool, shape (K,).
    target
        1 for positive.
    """

    thumbnail: Tensor
    cells: Tensor
    shape: tuple[int, int]
    distinct: Tensor
    place: Tensor
    lesion: Tensor
    region: Tensor
    target: int

    def tiles(self, chosen: Tensor) -> Tensor:
        """Tiles of some of the K cells."""
        return self.distinct[self.place[chosen]]


def make(slides: int, *, side: int, lesion: float, visibility: float, seed: int) -> list[Known]:
    """Make slides of which half are positive, and read all their tissue into memory."""
    settings = Settings().with_values(SETTINGS)
    with tempfile.TemporaryDirectory() as folder:
        written = write_collection(
            folder,
            slides=slides,
            width=side,
            height=side,
            tile_size=settings.tile.size,
            seed=seed,
            lesion_fraction=lesion,
            visibility=visibility,
            variants=16,
            palettes=1,
            banks=max(1, slides // SLIDES_PER_BANK),
        )
        return [_read(slide, settings) for slide in written]


def _read(written: SyntheticSlide, settings: Settings) -> Known:
    with open_slide(SlideRef.from_path(written.path)) as slide:
        thumbnail, tissue = look(slide, settings)
        tiles = read_tiles(slide, tissue.grid, tissue.cells)
    numbers: dict[bytes, int] = {}
    place = [numbers.setdefault(tile.tobytes(), len(numbers)) for tile in tiles]
    _, first = np.unique(place, return_index=True)
    return Known(
        torch.from_numpy(thumbnail),
        torch.from_numpy(tissue.cells),
        tissue.grid.shape,
        torch.from_numpy(tiles[first]),
        torch.tensor(place),
        torch.from_numpy(written.shows_lesion.flat[tissue.cells]),
        torch.from_numpy(written.kinds.flat[tissue.cells] >= Kind.LOOKALIKE),
        int(written.label == "positive"),
    )


NORMALISATIONS = {
    "whitened": "by constants, as the library does: centred, decorrelated, scaled to one length",
    "standardised": "the same without decorrelation",
    "length": "scaled to one length only",
    "layer": "over the feature's own entries",
    "running": "by the batch, and from a third of the epochs on by its running statistics",
}


def build(recipe: Recipe, slides: Sequence[Known], generator: torch.Generator) -> AttentionSampler:
    """Build the demo's network, and measure the constants of its features."""
    model = build_model(
        classes=2,
        backbone="test_resnet",
        pretrained=False,
        attention="small",
        pool="gated",
        tile_size=slides[0].distinct.shape[1],
        pixels_per_cell=slides[0].thumbnail.shape[0] // slides[0].shape[0],
    )
    calibrate(model.encoder, recipe, slides, generator)
    return model


def calibrate(
    encoder: TileEncoder, recipe: Recipe, slides: Sequence[Known], generator: torch.Generator
) -> int:
    """Measure the constants of the features as the library does; the number of tiles read."""
    each = -(-512 // len(slides))
    tiles = torch.cat([s.tiles(torch.randperm(len(s.cells), generator=generator)[:each]) for s in slides])
    parts = tiles.split(64)
    encoder.calibrate_on(lambda: parts, shrinkage=1.0 if recipe.normalise == "standardised" else 0.1)
    if recipe.normalise in {"length", "layer", "running"}:
        encoder.centre.zero_()
        encoder.whitening.copy_(torch.eye(encoder.width))
    return len(tiles)


@dataclass
class Training:
    """A network in training, and what it has cost.

    Attributes
    ----------
    tiles
        Read so far, repeats and scans included.
    """

    recipe: Recipe
    slides: Sequence[Known]
    seed: int
    tiles: int = 0
    earlier: dict[int, list[tuple[Draw, Tensor]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.model = build(self.recipe, self.slides, self.generator)
        width = self.model.encoder.width
        self.after: nn.Module = nn.Identity()
        if self.recipe.normalise == "layer":  # of a scaled feature it is that of the raw one
            self.after = nn.LayerNorm(width, elementwise_affine=False)
        elif self.recipe.normalise == "running":
            self.after = nn.BatchNorm1d(width, affine=False)
        rates = Settings().training
        peak = {
            "backbone": rates.learning_rate,
            "attention": self.recipe.attention_rate,
            "head": rates.head_learning_rate,
        }
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [w for part in parts for w in part.parameters()], "peak": peak[name], "lr": 0.0}
                for name, parts in self.model.parts().items()
            ],
            weight_decay=rates.weight_decay,
        )

    def run(self) -> None:
        """Train."""
        recipe, count = self.recipe, len(self.slides)
        batches = -(-count // 8)
        for epoch in range(recipe.epochs):
            self.model.train()
            if recipe.normalise == "running" and 3 * epoch >= recipe.epochs:
                self.after.eval()
            if recipe.again and epoch == recipe.again:
                self.tiles += calibrate(self.model.encoder, recipe, self.slides, self.generator)
            order = torch.randperm(count, generator=self.generator)
            for number, batch in enumerate(order.tensor_split(batches)):
                self.step(batch.tolist(), epoch, (epoch * batches + number) / (recipe.epochs * batches))
            if recipe.scan_every and epoch % recipe.scan_every == 0:
                self.scan()

    def step(self, batch: Sequence[int], epoch: int, done: float) -> None:
        """One step on some slides, when a share of all steps is done."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate(done)
        self.descend(self.loss(batch, [self.slides[i].target for i in batch], epoch, done))

    def loss(self, batch: Sequence[int], targets: Sequence[int], epoch: int, done: float) -> Tensor:
        """All that is minimised, of one draw of some slides."""
        recipe, model = self.recipe, self.model
        slides = [self.slides[i] for i in batch]
        held = recipe.frozen or done < recipe.held
        attentions = [self.attend(slide, held=held) for slide in slides]
        n = recipe.wide_tiles if epoch < recipe.wide_epochs else recipe.tiles
        draws = [self.draw(*pair, n) for pair in zip(slides, attentions, strict=True)]
        features = self.embed(
            torch.cat([slide.tiles(one.indices) for slide, one in zip(slides, draws, strict=True)])
        )
        parts = features.split([len(one.indices) for one in draws])
        logits, taught = [], []
        for i, target, attention, one, part in zip(batch, targets, attentions, draws, parts, strict=True):
            indices, weight, feature = one.indices, expectation.weights(attention, one), part
            if recipe.earlier_draws:
                indices, weight, feature = self.pooled(i, attention, one, part)
            logits.append(model.classify(model.pool(weight, feature)))
            taught.append(self.teach(weight, attention[indices], feature, target))
        spread = torch.stack([expectation.entropy(attention) for attention in attentions]).mean()
        keep = recipe.entropy + recipe.early_entropy * max(0.0, 1 - 2 * done)
        loss = F.cross_entropy(torch.stack(logits), torch.tensor(targets))
        return loss + torch.stack(taught).mean() - keep * spread

    def descend(self, loss: Tensor) -> None:
        """One step of the optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), Settings().training.clip)
        self.optimizer.step()

    def attend(self, slide: Known, *, held: bool = False) -> Tensor:
        """Attention (K,)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not held):
            return self.model.attend(slide.thumbnail, slide.cells, slide.shape)

    def draw(self, slide: Known, attention: Tensor, n: int) -> Draw:
        """Draw tiles."""
        return draw(
            self.recipe.design,
            explore(attention, self.recipe.exploration),
            cells=slide.cells,
            shape=slide.shape,
            n=n,
            generator=self.generator,
        )

    def embed(self, tiles: Tensor) -> Tensor:
        """Features of tiles that were read for this."""
        self.tiles += len(tiles)
        with torch.autocast("cpu", torch.bfloat16):
            features: Tensor = self.after(self.model.embed(tiles).float())
        if isinstance(self.after, nn.BatchNorm1d):
            features = F.normalize(features, dim=1) * math.sqrt(features.shape[1])
        return features

    def teach(self, weight: Tensor, attention: Tensor, features: Tensor, target: int) -> Tensor:
        """What attention is taught by tiles."""
        if not self.recipe.teaching:
            return torch.zeros(())
        assert self.model.gate is not None
        targets = torch.full((len(features),), target)
        losses = F.cross_entropy(self.model.classify(features), targets, reduction="none")
        gate = self.model.gate(features)[:, 0]
        return self.recipe.teaching * teaching(weight, attention, gate, -self.recipe.evidence * losses)

    def pooled(
        self, number: int, attention: Tensor, drawn: Draw, features: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cells, weights and features of a slide's present and earlier draws, all by attention as it is."""
        kept = self.earlier.setdefault(number, [])
        every = [(drawn, features), *kept]
        kept.append((drawn, features.detach()))
        del kept[: -self.recipe.earlier_draws]
        weight = torch.cat([expectation.weights(attention, one) for one, _ in every]) / len(every)
        return torch.cat([one.indices for one, _ in every]), weight, torch.cat([each for _, each in every])

    def scan(self) -> None:
        """Encode many tiles of a few slides without gradient, and teach what they say."""
        recipe, model = self.recipe, self.model
        losses = []
        for i in torch.randperm(len(self.slides), generator=self.generator)[: recipe.scan_slides].tolist():
            slide = self.slides[i]
            cells = torch.randperm(len(slide.cells), generator=self.generator)
            cells = cells[: recipe.scan_tiles or None]
            with torch.no_grad():
                features = torch.cat([self.embed(part) for part in slide.tiles(cells).split(TILES_AT_A_TIME)])
            attention = self.attend(slide, held=recipe.frozen)
            weight = attention[cells] * (len(slide.cells) / len(cells))
            losses.append(self.teach(weight, attention[cells], features, slide.target))
            if recipe.scan_classifier:
                logits = model.classify(model.pool(weight, features))
                losses[-1] = losses[-1] + F.cross_entropy(logits, torch.tensor(slide.target))
        self.descend(torch.stack(losses).mean())


def rate(done: float) -> float:
    """Share of the peak learning rate after a share of the steps: that of :mod:`wsi_ats.training`."""
    warmup = Settings().training.warmup
    if done < warmup:
        return 0.05 + 0.95 * done / warmup
    return 0.5 * (1 + math.cos(math.pi * max(0.0, 2 * done - 1)))


@torch.inference_mode()
def measure(training: Training, slides: Sequence[Known]) -> dict[str, float | None]:
    """Figures of a trained network on slides that it has not seen; :func:`main` prints their meaning."""
    model = training.model.eval()
    training.after.eval()
    tiles = training.tiles
    targets = [slide.target for slide in slides]
    drawn, everything, in_lesion, on_lesion, on_region = [], [], [], [], []
    scores: list[Tensor] = []
    truths: list[Tensor] = []
    for slide in slides:
        attention = training.attend(slide)
        one = training.draw(slide, attention, training.recipe.tiles)
        parts = slide.distinct.split(TILES_AT_A_TIME)
        features = torch.cat([training.embed(part) for part in parts])[slide.place]
        weight = expectation.weights(attention, one)
        drawn.append(torch.softmax(model.classify(model.pool(weight, features[one.indices])), 0))
        everything.append(torch.softmax(model.classify(model.pool(attention, features)), 0))
        on_region.append(attention[slide.region].sum().item())
        if slide.target:
            in_lesion.append(slide.lesion[one.indices].double().mean().item())
            on_lesion.append(attention[slide.lesion].sum().item())
        asked = slide.region | slide.lesion
        scores.append(torch.softmax(model.classify(features[asked]), 1))
        truths.append(slide.lesion[asked])
    training.tiles = tiles
    return {
        "auc": auc(targets, torch.stack(drawn).tolist()),
        "auc_of_all_tiles": auc(targets, torch.stack(everything).tolist()),
        "auc_of_a_tile": auc(torch.cat(truths).int().tolist(), torch.cat(scores).tolist()),
        "drawn_in_lesion": mean(in_lesion),
        "attention_on_lesion": mean(on_lesion),
        "attention_on_regions": mean(on_region),
    }


def signal_to_noise(training: Training, batches: int = 24) -> float:
    """Of the gradient that one step gives to the attention, how much comes from the labels.

    The same draws are given the slides' own labels and the same labels in another order; the difference is
    what the labels say. Its mean over batches (squared, less what is left of the noise) is the signal, its
    spread the noise.
    """
    model, slides, generator = training.model, training.slides, training.generator
    weights = [each for part in model.parts()["attention"] for each in part.parameters()]
    targets = [slide.target for slide in slides]
    differences = []
    for _ in range(batches):
        batch = torch.randperm(len(slides), generator=generator)[:8].tolist()
        other = torch.randperm(len(slides), generator=generator)[:8].tolist()
        state, gradients = generator.get_state(), []
        for labelled in (batch, other):
            generator.set_state(state)
            loss = training.loss(batch, [targets[i] for i in labelled], epoch=0, done=1.0)
            parts = torch.autograd.grad(loss, weights, allow_unused=True)
            gradients.append(torch.cat([p.flatten() for p in parts if p is not None]))
        differences.append(gradients[0] - gradients[1])
    every = torch.stack(differences).double()
    noise = every.var(0).sum()
    signal = every.mean(0).square().sum() - noise / batches
    return (signal.clamp(min=0) / noise).sqrt().item()


def ceiling(slides: Sequence[Known], n: int) -> float:
    """Expected AUC of a perfect classifier of ``n`` tiles drawn independently and uniformly."""
    missed = mean((1 - slide.lesion.double().mean().item()) ** n for slide in slides if slide.target)
    return 1 - missed / 2


@dataclass(frozen=True, slots=True)
class Setup:
    """What all arms have in common.

    Parameters
    ----------
    lesion
        Part of a positive slide's tissue that is lesion, by tiles at least half covered.
    visibility
        How much regions stand out in the thumbnail, 0 to 1.
    training, held_out
        Numbers of slides; the two parts share neither tiles nor stains.
    side
        Of a slide, pixels.
    epochs
        Passes over the slides.
    """

    lesion: float = 0.01
    visibility: float = 1.0
    training: int = 80
    held_out: int = 60
    side: int = 4096
    epochs: int = 16

    def slides(self, seed: int, *, held_out: bool = False) -> list[Known]:
        """Make those of a seed."""
        return make(
            self.held_out if held_out else self.training,
            side=self.side,
            lesion=self.lesion,
            visibility=self.visibility,
            seed=2 * seed + held_out,
        )


def run(arms: Sequence[str], setup: Setup, seed: int) -> Iterator[dict[str, Any]]:
    """Train arms, by their names in :data:`ARMS`, on the slides of a seed; one row of the table for each."""
    known, unknown = (setup.slides(seed, held_out=part) for part in (False, True))
    for arm in arms:
        one = Training(replace(ARMS[arm], epochs=setup.epochs), known, seed)
        begin = time.process_time()
        one.run()
        seconds = time.process_time() - begin
        yield {
            "seed": seed,
            "arm": arm,
            **measure(one, unknown),
            "uniform_ceiling": ceiling(unknown, ARMS[arm].tiles),
            "cpu_seconds": seconds,
            "tiles_read": one.tiles,
            **asdict(setup),
        }


def signals(slides: Sequence[Known], seed: int, epochs: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Signal in the gradient of uniform attention, for a classifier that knows more and more."""
    for count in epochs:
        one = Training(replace(ARMS["attention frozen"], epochs=count), slides, seed)
        one.run()
        quality = measure(one, slides)["auc_of_a_tile"]
        for arm in ("slide's loss alone", "taught, evidence 1", "taught", "taught, evidence 16"):
            one.recipe = ARMS[arm]
            row = {"seed": seed, "epochs": count, "auc_of_a_tile": quality, "arm": arm}
            yield row | {"signal_to_noise": signal_to_noise(one)}


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a table that :func:`main` wrote."""
    columns = read_csv(path)
    numbers = {name: [float(each) for each in cells] for name, cells in columns.items() if name != "arm"}
    return [dict(zip(columns, row, strict=True)) for row in zip(*(columns | numbers).values(), strict=True)]


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[object]]:
    """Means over seeds, and the range of what varies most; one line for each arm of each setup."""
    columns: dict[str, list[object]] = {}
    setups = dict.fromkeys(Setup(**{each.name: row[each.name] for each in fields(Setup)}) for row in rows)
    for setup, arm in itertools.product(setups, ARMS):
        here = [row for row in rows if {"arm": arm, **asdict(setup)}.items() <= row.items()]
        if not here:
            continue
        areas = [row["auc"] for row in here]
        line = {
            "lesion": setup.lesion,
            "visible": setup.visibility,
            "arm": arm,
            "seeds": len(here),
            "AUC": mean(areas),
            "lowest": min(areas),
            "all tiles": mean(row["auc_of_all_tiles"] for row in here),
            "a tile": mean(row["auc_of_a_tile"] for row in here),
            "in lesion": mean(row["drawn_in_lesion"] for row in here),
            "ceiling": mean(row["uniform_ceiling"] for row in here),
            "CPU s": mean(row["cpu_seconds"] for row in here),
            "tiles": mean(row["tiles_read"] for row in here),
        }
        for name, value in line.items():
            columns.setdefault(name, []).append(value)
    return columns


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print and write."""
    usual = Setup()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start", description=__doc__)
    parser.add_argument("--lesion", type=float, default=usual.lesion, help="part of positive tissue")
    parser.add_argument("--visibility", type=float, default=usual.visibility, help="of regions, 0 to 1")
    parser.add_argument("--training", type=int, default=usual.training, help="slides to train on")
    parser.add_argument("--held-out", type=int, default=usual.held_out, help="slides to measure on")
    parser.add_argument("--side", type=int, default=usual.side, help="of a slide, pixels")
    parser.add_argument("--epochs", type=int, default=usual.epochs)
    parser.add_argument("--seeds", type=int, nargs="+", default=(1, 2, 3))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=DEFAULT, metavar="ARM")
    parser.add_argument(
        "--signal",
        type=int,
        nargs="+",
        metavar="EPOCHS",
        help="measure the signal in the gradient of attention instead, after so many epochs of uniform draws",
    )
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the table")
    chosen = parser.parse_args(arguments)
    setup = Setup(**{each.name: getattr(chosen, each.name) for each in fields(Setup)})
    torch.set_num_threads(1)
    if chosen.signal:
        told = [row for seed in chosen.seeds for row in signals(setup.slides(seed), seed, chosen.signal)]
        columns = {name: [row[name] for row in told] for name in told[0]}
        report("attention's gradient in one step", "cold_start_signal", columns, chosen.out)
        return
    table = chosen.out / "cold_start.csv"
    rows = read(table) if table.exists() else []
    for seed in chosen.seeds:
        here = {"seed": seed, **asdict(setup)}
        found = {row["arm"] for row in rows if here.items() <= row.items()}
        if missing := [arm for arm in chosen.arms if arm not in found]:
            for row in run(missing, setup, seed):
                rows.append(row)
                chosen.out.mkdir(parents=True, exist_ok=True)
                write_csv(table, {name: [each[name] for each in rows] for name in rows[0]})
    report("held-out slides, mean over seeds and lowest", "cold_start_means", summary(rows), chosen.out)


if __name__ == "__main__":
    main()
