"""Results of scored slides, and exports to other programs.

``records`` defines them, ``selections`` keeps drawn tiles and attention in files, ``plots`` draws numbers,
``pictures`` draws slides on a ``page`` (``shown``, ``captions`` and ``labels`` are what it draws), and
``exports`` has a file for each program that receives results. ``pipelines`` may import all of them.
"""
