"""Section ``training`` of the settings."""

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
    """Settings of the training of the networks."""

    epochs: int = setting(18, fixes=Fixes.TRAINING, must=at_least(0))
    """Passes over the training slides in which backbone, gate and head learn from uniformly drawn tiles. A
    classifier that saw only the tiles that attention selects would memorise them."""
    tiles: int = setting(64, fixes=Fixes.TRAINING, must=at_least(1), needs="draws")
    """Tiles of each slide in a step of these epochs."""
    attention_epochs: int = setting(12, fixes=Fixes.TRAINING, must=at_least(0), needs="attends")
    """Passes in which attention learns from the classifier, which stays fixed."""
    attention_tiles: int = setting(256, fixes=Fixes.TRAINING, must=at_least(1), needs="attends")
    """Uniformly drawn tiles of each slide that attention learns from; they are read and encoded once."""
    joint_epochs: int = setting(0, fixes=Fixes.TRAINING, must=at_least(0), needs="attends")
    """Passes in which all networks learn together from tiles drawn by attention, as in the paper. The epoch
    with the best validation metric is kept, or the state before the first one. Not needed if the first two
    phases succeed."""
    feature_dropout: float = setting(0.5, fixes=Fixes.TRAINING, must=within("[0, 1)"), needs="reads_tiles")
    """Fraction of each tile's features that is dropped in training: a few features are enough to recognise
    the training slides."""
    slides_per_step: int = setting(8, fixes=Fixes.TRAINING, must=at_least(1))
    """Slides in a step, or cases if their slides are taken together. Fewer make gradients noisier; more make
    progress slower at first. With several processes, each process takes this many."""
    tiles_per_pass: int = setting(0, fixes=Fixes.TRAINING, must=at_least(0), needs="draws")
    """Tiles encoded at once. The slides of a step are divided into passes, and the gradients of the passes
    are summed. 0: as many tiles as have the pixels of 64 tiles of 256 pixels, which need 2.5 GB in a
    resnet18; large GPUs are faster with more."""
    read_ahead: int = setting(1, fixes=Fixes.TRAINING, must=at_least(0))
    """Steps whose tiles are drawn and read while an earlier step computes. One is enough to hide the reading;
    with more, attention changes more between draw and use, and weights vary more."""
    precision: str = setting("auto", fixes=Fixes.TRAINING, must=one_of(*PRECISIONS))
    """``float32`` or ``bfloat16``. ``auto`` is ``bfloat16`` if the device supports it and tiles are not tiny,
    which halves the time of a ResNet. Weights, and computations of attention, gate and head, stay in single
    precision."""
    compile: bool = setting(False, fixes=Fixes.TRAINING)
    """Compile the backbone (torch.compile), which takes minutes at the start."""
    fine_tuning: str = setting("full", fixes=Fixes.TRAINING, must=_FINE_TUNING)
    """Part of the backbone that learns: ``full``; ``last-1``, ``last-2``, ... for the last blocks and the
    layers after them; or ``frozen``: all kinds except ``image`` then encode each tile once, without
    augmentation, and keep its features, as most pipelines do."""
    ema: float = setting(0.0, fixes=Fixes.TRAINING, must=within("[0, 1)"))
    """Decay of an exponential moving average of the weights, such as 0.99; the average is then the model. 0:
    off. Averages are better late in training and lag behind early."""
    balance: str = setting("none", fixes=Fixes.TRAINING, must=one_of("none", "weights", "sampling"))
    """``weights`` gives rare classes more weight in the loss, and ``sampling`` shows their slides more often,
    so that all classes count the same. With ``none``, probabilities reflect the frequencies of the
    classes."""
    patience: int = setting(0, fixes=Fixes.TRAINING, must=at_least(0))
    """Epochs without a better validation metric after which a phase ends and its best epoch's weights are
    kept. 0: never, and the last epoch's weights are kept, because small validation sets select epochs by
    chance."""
    monitor: str = setting("loss", fixes=Fixes.TRAINING, must=one_of("loss", "score"))
    """Validation metric that selects the best epoch: ``loss``, which still changes when all of a few slides
    are classified correctly, or ``score``, the task's own metric (such as the area under the ROC curve)."""
    checkpoint_steps: int = setting(200, fixes=Fixes.TRAINING, must=at_least(1))
    """Steps between checkpoints, which are also written at the end of each epoch. A killed run repeats at
    most this many steps."""
    keep_checkpoints: int = setting(2, fixes=Fixes.TRAINING, must=at_least(1))
    """Number of latest checkpoints to keep. With two, training can resume even if the last one is damaged."""
    learning_rate: float = setting(1e-4, fixes=Fixes.TRAINING, must=at_least(0))
    """Learning rate of the backbone, and of the attention network's backbone if it is from timm. It is usual
    for fine-tuning, and low enough to keep the features' mean and spread constant."""
    attention_learning_rate: float = setting(1e-2, fixes=Fixes.TRAINING, must=positive())
    """Learning rate of the attention network, which is small and starts from uniform attention, or of its
    last layer if it has a backbone."""
    head_learning_rate: float = setting(3e-3, fixes=Fixes.TRAINING, must=positive())
    """Learning rate of the head, a linear layer on standardised features. Its weights must become large to
    find a rare tile."""
    gate_learning_rate: float = setting(1.5e-3, fixes=Fixes.TRAINING, must=positive(), needs="draws")
    """Learning rate of the gate, which weights tiles by their content. A sharp gate lets very few of the
    drawn tiles decide and memorises the training slides: at the head's rate, AUC was lower by up to 0.08."""
    weight_decay: float = setting(0.01, fixes=Fixes.TRAINING, must=at_least(0))
    """Weight decay, at the usual value for AdamW."""
    entropy: float = setting(1e-4, fixes=Fixes.TRAINING, must=at_least(0), needs="attends")
    """Strength of the entropy term that keeps attention spread out in joint training; the value is from the
    paper's scripts."""
    supervision: float = setting(0.0, fixes=Fixes.TRAINING, must=at_least(0), needs="attends")
    """Strength of attention supervision by the posterior of the drawn tiles (:mod:`wsi_ats.nn.supervision`)
    in joint training of classes; it is added to the gradient of the slide's loss. Use it for joint training
    from the start, when that gradient alone is noise; after the other phases it narrows attention too far."""
    evidence: float = setting(4.0, fixes=Fixes.TRAINING, must=at_least(0), needs="attends")
    """Weight of a tile's own loss, in addition to its gate, in the posterior that attention learns from."""
    warmup: float = setting(0.15, fixes=Fixes.TRAINING, must=within("[0, 0.5]"))
    """Fraction of the steps over which the learning rate rises: gradients of uniform attention are noisy."""
    clip: float = setting(1.0, fixes=Fixes.TRAINING, must=positive())
    """Largest gradient norm: a rare tile with a large weight must not undo an epoch."""
    validation: float = setting(0.2, fixes=Fixes.TRAINING, must=within("[0, 0.5]"))
    """Fraction of the cases set aside for validation; with 0, all cases are trained on."""
    calibrate_scores: bool = setting(True, fixes=Fixes.TRAINING)
    """After training, scale and shift the outputs so that probabilities are right on the validation slides,
    if there are at least ten and they include all classes. The order of the scores does not change. Without
    calibration, networks are overconfident and their decision boundary is shifted on new slides."""
    calibration_tiles: int = setting(512, fixes=Fixes.TRAINING, must=at_least(2))
    """Tiles from all training slides on which the mean and spread of the features are measured, as well as
    the statistics of a backbone without published weights; more tiles changed nothing."""
    seed: int = setting(0, fixes=Fixes.TRAINING, must=at_least(0))
    """Seed of the weights, the order of slides and the draws."""

    def __post_init__(self) -> None:
        check(self, "training")

    @property
    def learning_blocks(self) -> int | None:
        """Number of blocks at the end of the backbone that learn; ``None`` for the whole backbone."""
        if self.fine_tuning == "full":
            return None
        return 0 if self.fine_tuning == "frozen" else int(self.fine_tuning.removeprefix("last-"))
