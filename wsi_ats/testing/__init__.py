"""Synthetic slides and helpers for tests, usable by other projects."""
