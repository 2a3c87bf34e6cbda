"""The first view of a slide: thumbnail, tissue and artefacts, on the grid of cells; and reading of tiles.

``overview`` puts them together. ``tissue`` and ``quality`` find what a thumbnail shows, ``masks`` are the
maps that they give, ``regions`` are the blocks of cells of two-level sampling, ``tiles`` reads pixels of a
grid, and ``prepared`` keeps the view on disk. Nothing here knows torch. Rooms above may import every module.
"""
