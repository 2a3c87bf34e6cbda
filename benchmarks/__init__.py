"""Measurements behind the numbers in the documentation; each script prints a table and writes it as CSV.

Shared modules: ``report`` has the command line and the tables, ``timing`` the clocks, ``synthetic`` slides
and untrained models for measurements of speed, ``tissue`` slides of real tissue for experiments on learning,
and ``engine`` their training.
"""
