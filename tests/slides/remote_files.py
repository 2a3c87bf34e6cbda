"""Limits on waiting for a store, and regions of a slide in it."""

from __future__ import annotations

import numpy as np

from wsi_ats.slides.remote import Patience

# For servers that never answer, and for those that answer, late perhaps on a busy machine.
QUICK = Patience(tries=2, pause=0.01, seconds=0.3, bytes_per_second=1 << 30)
PATIENT = Patience(tries=3, pause=0.01)
BLOCK = 64 << 10

CORNERS = np.array([[0, 0], [512, 768], [1280, 1792], [256, 0]])
