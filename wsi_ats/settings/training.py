"""Section ``training``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from wsi_ats.settings.fields import Fixes, Must, at_least, check, one_of, positive, setting, within
from wsi_ats.settings.sections import PRECISIONS

_FINE_TUNING = Must(
    lambda value: re.fullmatch(r"full|frozen|last-[1-9]\d*", value) is not None,
    "be full, frozen, or last-1, last-2, ...",
)


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How the networks learn."""

    epochs: int = setting(18, fixes=Fixes.TRAINING, must=at_least(0))
    """Passes over the training slides in which gate, head and backbone learn what to look for. Tiles are
    drawn uniformly meanwhile: a classifier that sees only the tiles that attention selects memorises them."""
    tiles: int = setting(64, fixes=Fixes.TRAINING, must=at_least(1), needs="draws")
    """Tiles of each slide in a step of these epochs."""
    attention_epochs: int = setting(12, fixes=Fixes.TRAINING, must=at_least(0), needs="attends")
    """Passes in which attention learns where to look, from a classifier that is fixed."""
    attention_tiles: int = setting(256, fixes=Fixes.TRAINING, must=at_least(1), needs="attends")
    """Tiles of each slide, drawn uniformly, that attention learns from; they are read and encoded once."""
    joint_epochs: int = setting(0, fixes=Fixes.TRAINING, must=at_least(0), needs="attends")
    """Passes in which all of the network learns together from tiles drawn by attention, as in the paper;
    the epoch with the best validation metric is kept, or the state before them. Not needed where the first
    two do."""
    feature_dropout: float = setting(0.5, fixes=Fixes.TRAINING, must=within("[0, 1)"), needs="reads_tiles")
    """Share of each tile's features that is dropped in training: a few features are enough to recognise the
    training slides."""
    slides_per_step: int = setting(8, fixes=Fixes.TRAINING, must=at_least(1))
    """Slides in a step, or cases if their slides are taken together; fewer is noisier, more is slower to
    start. With several processes each has as many."""
    tiles_per_pass: int = setting(0, fixes=Fixes.TRAINING, must=at_least(0), needs="draws")
    """Tiles that are encoded at once: a step's slides are shared out over passes whose gradients are summed.
    0: as many as have the pixels of 64 tiles of 256 pixels, which take 2.5 GB in a resnet18; large GPUs are
    faster with more."""
    read_ahead: int = setting(1, fixes=Fixes.TRAINING, must=at_least(0))
    """Steps whose tiles are drawn and read while an earlier one computes. One hides the reading; with more,
    attention has changed more since the draw, and weights vary more."""
    precision: str = setting("auto", fixes=Fixes.TRAINING, must=one_of(*PRECISIONS))
    """``float32`` or ``bfloat16``; ``auto`` is the latter where the device has it and tiles are not tiny:
    half the time of a ResNet; weights and what attention, gate and head compute stay in single precision."""
    compile: bool = setting(False, fixes=Fixes.TRAINING)
    """Compile the backbone (torch.compile); this takes minutes at the start."""
    fine_tuning: str = setting("full", fixes=Fixes.TRAINING, must=_FINE_TUNING)
    """Part of the backbone that learns: ``full``; ``last-1``, ``last-2``, ... blocks and the layers after
    them; or ``frozen``, with which all kinds but ``image`` encode each tile once, as it is, and keep its
    features, as most pipelines do."""
    ema: float = setting(0.0, fixes=Fixes.TRAINING, must=within("[0, 1)"))
    """Decay of an exponential moving average of the weights, such as 0.99, which then is the model; 0: none.
    Averages are better late in training and lag behind early."""
    balance: str = setting("none", fixes=Fixes.TRAINING, must=one_of("none", "weights", "sampling"))
    """``weights`` lets rare classes count more, ``sampling`` shows their slides more often, so that all
    classes have the same weight; ``none`` keeps probabilities true to the classes' frequencies."""
    patience: int = setting(0, fixes=Fixes.TRAINING, must=at_least(0))
    """Epochs without a better validation metric after which a phase ends, with its best epoch's weights.
    0: never, and the last epoch's weights are kept; small validation sets choose epochs by luck."""
    monitor: str = setting("loss", fixes=Fixes.TRAINING, must=one_of("loss", "score"))
    """The validation metric by which the best epoch is chosen: ``loss``, which still changes when all of a
    few slides are classified correctly, or ``score``, the task's own (such as the area under the curve)."""
    checkpoint_steps: int = setting(200, fixes=Fixes.TRAINING, must=at_least(1))
    """Steps after which the state is written, besides each epoch's end; a killed run repeats as many at
    most."""
    keep_checkpoints: int = setting(2, fixes=Fixes.TRAINING, must=at_least(1))
    """Latest states that are kept; the one before the last is there if the last is damaged."""
    learning_rate: float = setting(1e-4, fixes=Fixes.TRAINING, must=at_least(0))
    """Of the backbone, and of attention's own where that is from timm; usual for fine-tuning, and slow enough
    for the features' mean and spread to stay constant."""
    attention_learning_rate: float = setting(1e-2, fixes=Fixes.TRAINING, must=positive())
    """Of the attention network, which is small and starts from uniform attention, or of its last layer where
    it has a backbone."""
    head_learning_rate: float = setting(3e-3, fixes=Fixes.TRAINING, must=positive())
    """Of the head: a linear layer on standardised features, which must become large to find a rare tile."""
    gate_learning_rate: float = setting(1.5e-3, fixes=Fixes.TRAINING, must=positive(), needs="draws")
    """Of the gate by which tiles weigh themselves. A sharp one lets very few of the drawn tiles decide and
    memorises the training slides: at the head's rate AUC was lower by up to 0.08."""
    weight_decay: float = setting(0.01, fixes=Fixes.TRAINING, must=at_least(0))
    """AdamW's usual."""
    entropy: float = setting(1e-4, fixes=Fixes.TRAINING, must=at_least(0), needs="attends")
    """In joint training, strength of the term that keeps attention spread; the paper's scripts' value."""
    teaching: float = setting(0.0, fixes=Fixes.TRAINING, must=at_least(0), needs="attends")
    """In joint training of classes, strength of attention supervision by the posterior of the drawn tiles
    (:mod:`wsi_ats.nn.supervision`), beside the gradient of the slide's loss. For joint training from the
    start, where that gradient alone is noise; after the other phases it narrows attention too far."""
    evidence: float = setting(4.0, fixes=Fixes.TRAINING, must=at_least(0), needs="attends")
    """Weight of a tile's own loss, beside its gate, in the posterior that attention learns from."""
    warmup: float = setting(0.15, fixes=Fixes.TRAINING, must=within("[0, 0.5]"))
    """Share of the steps over which the learning rate rises: gradients of uniform attention are noisy."""
    clip: float = setting(1.0, fixes=Fixes.TRAINING, must=positive())
    """Largest gradient norm: a rare tile of large weight must not undo an epoch."""
    validation: float = setting(0.2, fixes=Fixes.TRAINING, must=within("[0, 0.5]"))
    """Share of the cases set aside to watch; 0 trains on all."""
    calibrate_scores: bool = setting(True, fixes=Fixes.TRAINING)
    """After training, scale and shift the outputs so that probabilities are right on the validation slides,
    where these are ten or more and of all classes. The order of the scores stays the same. Networks are too
    certain, and their decision boundary is shifted on new slides."""
    calibration_tiles: int = setting(512, fixes=Fixes.TRAINING, must=at_least(2))
    """Tiles of all training slides on which the features' mean and spread are measured, and of a backbone
    without published weights its statistics; more changed nothing."""
    seed: int = setting(0, fixes=Fixes.TRAINING, must=at_least(0))
    """Of weights, order and draws."""

    def __post_init__(self) -> None:
        check(self, "training")

    @property
    def learning_blocks(self) -> int | None:
        """Blocks at the end of the backbone that learn; ``None`` for all of it."""
        if self.fine_tuning == "full":
            return None
        return 0 if self.fine_tuning == "frozen" else int(self.fine_tuning.removeprefix("last-"))
