"""Kinds of models: the ways from a slide to outputs, which know slides *and* networks.

``sampling``, ``two_level``, ``mil`` and ``image`` are the kinds, ``kinds`` lists them by name and builds
networks from settings, ``base`` is what they have in common. ``batches`` reads tiles for them, ``encoding``
and ``calibration`` encode, ``frozen`` and ``features`` keep features. ``scoring`` scores one slide;
``checkpoints`` and ``card`` are models on disk. Only ``card`` and ``stopping`` may be imported without torch.
"""
