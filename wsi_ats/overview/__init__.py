"""The overview of a slide (thumbnail, tissue and artefacts on a grid of cells), and the reading of tiles.

``overview`` reads it, and ``records`` defines and stores it. ``tissue`` and ``quality`` analyse a thumbnail,
``regions`` defines the blocks of cells in two-level sampling, ``annotated`` keeps to the tissue in
annotations, and ``tiles`` reads the pixels of a grid. Nothing here imports torch. Later rooms may import
every module.
"""
