"""Kinds of models: from a slide and a network to outputs.

``sampling`` (with ``drawing`` and ``two_level``), ``mil`` and ``image`` are the kinds, ``kinds`` lists them
by name and builds networks from settings, and ``base`` is their interface. ``batches`` reads tiles for them,
``encoding`` and ``calibration`` encode, ``frozen`` and ``features`` store features that training needs, and
``embedding`` writes those of whole slides to files.
``scoring`` scores one slide; ``checkpoints`` and ``card`` store models. Only ``card`` and ``stopping`` do not
need torch.
"""
