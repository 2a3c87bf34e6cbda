"""Measured comparisons: each script prints a table and writes it as CSV under ``results/``."""
