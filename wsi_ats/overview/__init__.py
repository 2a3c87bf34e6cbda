"""The overview of a slide (thumbnail, tissue and artefacts, on a grid of cells), and reading of tiles.

``overview`` reads it, ``records`` and ``masks`` define it, and ``prepared`` keeps it on disk. ``tissue`` and
``quality`` analyse a thumbnail, ``regions`` are the blocks of cells of two-level sampling, and ``tiles``
reads pixels of a grid. Nothing here imports torch. Rooms above may import every module.
"""
