"""Measurements behind the numbers in the documentation; each script prints a table and writes it as CSV.

``report`` has the command line and the tables, ``timing`` the clocks, ``synthetic`` slides and untrained
models for speed, ``tissue`` slides of real tissue for learning, ``engine`` training and scoring for them all.
"""
