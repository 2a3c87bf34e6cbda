"""Results of scored slides, and exports to other programs.

``records`` defines them, ``attention`` keeps attention maps, ``plots`` draws, and ``exports`` has a file for
each program that receives results. ``pipelines`` may import all of them.
"""
