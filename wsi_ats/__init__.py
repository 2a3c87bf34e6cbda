"""Attention sampling for whole-slide histopathology images."""
