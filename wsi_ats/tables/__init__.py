"""Tables in: which slides there are, what is known of them, and how they are split.

``manifest`` makes references to slides from folders and tables, ``splits`` shares their cases out, and
``files`` reads and writes CSV and Parquet for all rooms.
"""
