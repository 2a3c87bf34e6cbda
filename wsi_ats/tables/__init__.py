"""Tables in: the slides of a run, their labels, and their splits.

- ``manifest``: references to slides, with labels and splits. Start here.
- ``sources``, ``folders``, ``slide_table``: finding slides in folders, globs, stores and tables.
- ``columns``, ``label_table``, ``split_table``: reading the tables of several tools.
- ``splits``: sharing cases out to training, validation and testing.
- ``files``: CSV and Parquet, for all rooms.
"""
