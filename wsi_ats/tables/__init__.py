"""Input tables: the slides of a run, their labels and their splits.

- ``manifest``: references to slides, with labels and splits. Start here.
- ``folders``: find slides in folders, globs and stores.
- ``columns``, ``slide_table``, ``split_table``: read the tables of several tools.
- ``splits``: divide cases into training, validation and test sets.
- ``files``: read and write CSV and Parquet, for all rooms.
"""
