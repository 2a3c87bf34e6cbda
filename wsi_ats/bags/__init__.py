"""Bags: the features of all tiles of a slide, which labs have as files of CLAM, TRIDENT and STAMP.

``folder`` finds the files of each slide, and ``opening`` opens them as a ``record.Bag``. ``matching`` assigns
tiles to the cells of a slide's grid, and refuses features of another place or resolution. ``writing`` writes
files that the other tools read. ``layouts`` knows how each tool stores coordinates, ``hdf5`` and ``tensors``
read the two kinds of files, and ``encoders`` has the tools' names of encoders. Nothing here imports torch,
except to open a ``.pt`` file.
"""
