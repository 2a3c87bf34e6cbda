"""Input tables: the slides of a run, their labels and their splits.

- ``manifest``: references to slides, with labels and splits. Start here.
- ``sources``, ``folders``, ``slide_table``: find slides in folders, globs, stores and tables.
- ``columns``, ``label_table``, ``split_table``: read the tables of several tools.
- ``splits``: divide cases into training, validation and test sets.
- ``files``: read and write CSV and Parquet, for all rooms.
"""
