"""Train all of a network together from slide labels.

Read from top to bottom: an epoch is a shuffled pass over the slides in small batches; for each batch
estimate the logits, which is the method's business, and step. Every random choice is a function of the seed,
the epoch and the slide, so that a run that was interrupted and resumed ends in the same weights.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from wsi_ats.artifacts import atomic, digest_of
from wsi_ats.batches import Example, TileReader, epoch_batches
from wsi_ats.checkpoints import load_state, model_for, read_record, save_state
from wsi_ats.config import Settings
from wsi_ats.errors import ArtifactError, ModelError
from wsi_ats.evaluation import auc
from wsi_ats.methods import method_for
from wsi_ats.methods.base import Method, draw_seed
from wsi_ats.nn.network import SlideNetwork
from wsi_ats.tables import write_csv

_LOG = logging.getLogger(__name__)

OnEpoch = Callable[[Mapping[str, float | None]], None]


def fit(
    training: Sequence[Example],
    validation: Sequence[Example],
    settings: Settings,
    *,
    classes: Sequence[str],
    folder: Path,
    device: torch.device,
    on_epoch: OnEpoch,
    reader: TileReader,
) -> SlideNetwork:
    """Train a model, or go on where an interrupted run of the same settings and slides stopped.

    After every epoch the state is written to ``checkpoints/last.safetensors`` and the figures of all
    epochs to ``metrics.csv``.

    Parameters
    ----------
    training
        Slides to learn from.
    validation
        Slides to watch; may be empty.
    settings
        All of them; the seed is ``training.seed``.
    classes
        Names of the classes; ``Example.target`` counts in them.
    folder
        Where checkpoints, metrics and, where the backbone is frozen, features go.
    device
        Where to compute.
    on_epoch
        Called with the epoch's row of ``metrics.csv``.
    reader
        Reads the tiles.

    Returns
    -------
    SlideNetwork
        In evaluation mode.

    Raises
    ------
    SettingsError
        When they suit scoring only.
    ModelError
        When a network cannot be built, no slide can be read, one does not fit into memory, or the loss is no
        longer a number.
    SlideError
        When a tile cannot be read a second time, where the backward pass reads tiles again.
    ArtifactError
        When the folder holds the state of another run.
    """
    settings.check_trainable()
    checkpoint = folder / "checkpoints" / "last.safetensors"
    slides = (f"{part}/{e.ref.id}={e.target}" for part, of in enumerate((training, validation)) for e in of)
    run = digest_of(settings.digest(), *classes, *slides)
    seed = settings.training.seed
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_for(settings, classes).to(device)
        if settings.training.freeze_backbone:
            model.encoder.freeze()
        method, optimizer = method_for(model, settings, device, folder), _optimizer(model, settings)
        method.check(training, validation)
        rows: list[dict[str, float | None]] = []
        if checkpoint.exists():
            if read_record(checkpoint)["run"] != run:
                raise ArtifactError(
                    f"{checkpoint} belongs to a run with other settings or slides; "
                    "use --overwrite to start anew, or another --out"
                )
            rows = load_state(checkpoint, model, optimizer, device)["rows"]
            _write_metrics(folder, rows)  # the run may have been stopped between the two files
        else:
            method.calibrate(training, reader)
        for epoch in range(len(rows), settings.training.epochs):
            torch.manual_seed(draw_seed(seed, "epoch", epoch))  # dropout, if the backbone has any
            begin = time.perf_counter()
            row: dict[str, float | None] = {"epoch": epoch}
            model.train()
            row |= _train_epoch(method, model, optimizer, training, reader, settings, epoch)
            model.eval()
            row |= _validate(method, validation, reader, settings)
            row["seconds"] = time.perf_counter() - begin
            rows.append(row)
            save_state(checkpoint, model, optimizer, {"run": run, "rows": rows})
            _write_metrics(folder, rows)
            on_epoch(row)
    return model.eval()


def _write_metrics(folder: Path, rows: Sequence[Mapping[str, float | None]]) -> None:
    with atomic(folder / "metrics.csv") as temporary:
        write_csv(temporary, {name: [row[name] for row in rows] for name in rows[0]})


def _optimizer(model: SlideNetwork, settings: Settings) -> torch.optim.Optimizer:
    rates = settings.training
    rate_of = {
        "backbone": rates.learning_rate,
        "attention": rates.attention_learning_rate,
        "head": rates.head_learning_rate,
    }
    groups = []
    for name, modules in model.parts().items():
        weights = [each for module in modules for each in module.parameters() if each.requires_grad]
        if weights:
            groups.append({"params": weights, "lr": rate_of[name], "peak": rate_of[name]})
    return torch.optim.AdamW(groups, weight_decay=rates.weight_decay)


def _train_epoch(
    method: Method,
    model: SlideNetwork,
    optimizer: torch.optim.Optimizer,
    examples: Sequence[Example],
    reader: TileReader,
    settings: Settings,
    epoch: int,
) -> dict[str, float | None]:
    rates = settings.training
    batches = epoch_batches(len(examples), rates.slides_per_step, draw_seed(rates.seed, "order", epoch))
    losses, entropies, tiles, failed = [], [], 0, 0
    for number, batch in enumerate(batches):
        done = (epoch * len(batches) + number) / (rates.epochs * len(batches))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * _rate(done, rates.warmup)
        optimizer.zero_grad(set_to_none=True)
        read = 0
        for part in np.array_split(batch, method.passes(len(batch))):
            result = method.estimate(
                [examples[i] for i in part],
                reader,
                seed_of=lambda example: draw_seed(rates.seed, example.ref.id, epoch),
            )
            failed += len(result.failed)
            for slide_id, error in result.failed.items():
                _LOG.warning("epoch %d goes on without %s: %s", epoch, slide_id, error)
            if not len(result.targets):
                continue
            loss = F.cross_entropy(result.logits, result.targets)
            total = loss
            if result.entropy is not None:
                total = loss - rates.entropy * result.entropy.mean()
                entropies.append(result.entropy.mean().item())
            total = total * (len(result.targets) / len(batch))
            total.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
            tiles += result.tiles
            read += len(result.targets)
        if not read:
            continue
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), rates.clip)
        for what, value in (("loss", losses[-1]), ("gradient's norm", norm.item())):
            if not math.isfinite(value):
                ids = ", ".join(examples[i].ref.id for i in batch)
                raise ModelError(
                    f"the {what} is {value} in epoch {epoch}, step {number} (slides {ids}); the last good "
                    "state is in checkpoints/; try lower learning rates"
                )
        optimizer.step()
    if not losses:
        raise ModelError("no training slide could be read; see the errors of `wsi-ats prepare`")
    return {
        "loss": float(np.mean(losses)),
        "entropy": float(np.mean(entropies)) if entropies else None,
        "tiles": tiles,
        "failed": failed,
    }


def _rate(done: float, warmup: float) -> float:
    """Share of the peak learning rate after a share of the steps: a linear rise, a plateau, half a cosine.

    The plateau lasts until half of the steps: nobody knows when attention, which starts uniform, will find
    its first lesion, and a rate that falls from the start may be too low by then.
    """
    if done < warmup:
        return 0.05 + 0.95 * done / warmup
    return 0.5 * (1 + math.cos(math.pi * max(0.0, 2 * done - 1)))


def _validate(
    method: Method, examples: Sequence[Example], reader: TileReader, settings: Settings
) -> dict[str, float | None]:
    if not examples:
        return {"validation_loss": None, "validation_auc": None}
    per_step = settings.training.slides_per_step
    per_pass = max(1, per_step // method.passes(per_step))
    batches = np.array_split(np.arange(len(examples)), -(-len(examples) // per_pass))
    with torch.inference_mode():
        results = [
            method.estimate(
                [examples[i] for i in batch],
                reader,
                # The same draw at every epoch, so that epochs can be compared.
                seed_of=lambda example: draw_seed(settings.training.seed, example.ref.id, -1),
            )
            for batch in batches
        ]
    logits, targets = torch.cat([r.logits for r in results]), torch.cat([r.targets for r in results])
    if not len(targets):
        return {"validation_loss": None, "validation_auc": None}
    if not logits.isfinite().all():
        raise ModelError(
            "the model gives scores that are no numbers; the last good state is in checkpoints/; try lower "
            "learning rates"
        )
    return {
        "validation_loss": F.cross_entropy(logits, targets).item(),
        "validation_auc": auc(targets.cpu().numpy(), torch.softmax(logits, 1).cpu().numpy()),
    }
