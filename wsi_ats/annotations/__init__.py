"""Annotations of slides: outlines that people drew in QuPath, ASAP or Aperio ImageScope.

``record`` defines them, ``opening`` reads a file in the format that its content shows (``qupath``, ``asap``,
``aperio``; ``xml`` is what the last two have in common), ``folder`` finds the file of each slide, and
``shapes`` computes areas. Nothing here imports torch. Later rooms may import every module.
"""
