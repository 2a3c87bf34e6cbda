"""Kinds of models: the ways from a slide to outputs, which know slides *and* networks.

``sampling``, ``mil`` and ``image`` are the kinds, ``kinds`` finds the one that goes with a
network, ``base`` is what they have in common. ``batches`` reads tiles for them, ``encoding`` and
``calibration`` encode, ``frozen`` and ``features`` keep features. ``scoring`` scores one slide;
``checkpoints`` and ``card`` are models on disk. Only ``card`` and ``stopping`` may be imported without
torch.
"""
