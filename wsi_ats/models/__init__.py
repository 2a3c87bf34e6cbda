"""Kinds of models: the ways from a slide to outputs, where slides and networks meet.

``sampling`` (with ``drawing``, ``one_level`` and ``two_level``), ``mil`` and ``image`` are the kinds,
``kinds`` lists them by name and builds networks from settings, and ``base`` is their interface. ``batches``
reads tiles for them, ``encoding`` and ``calibration`` encode, ``frozen`` and ``features`` keep features.
``scoring`` scores one slide; ``checkpoints`` and ``card`` are models on disk. Only ``card`` and ``stopping``
do without torch.
"""
