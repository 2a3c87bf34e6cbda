"""The benchmark of the designs finds the order that theory says."""

from __future__ import annotations

from benchmarks.designs import gains


def test_variance_falls_from_multinomial_over_sequential_to_systematic():
    """Four random fields of independent logits; uniform draws vary most where attention knows best."""
    found = {
        design: gains(design, 10, 6.0, 0.0, repeats=150) for design in ("uniform", "sequential", "systematic")
    }
    for which in (0, 1):  # of the estimate, and of its gradient
        uniform, sequential, systematic = (each[which] for each in found.values())
        assert uniform < 1 < sequential < systematic
