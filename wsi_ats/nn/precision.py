"""Numerical precision of networks."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack

import torch

# In bfloat16, oneDNN 3.x computes 3 x 3 convolutions of stride 2 to maps of a single pixel from uninitialised
# memory: the gradient of their weights and, with AMX, their output. Tiles of 64 pixels are far larger.
_SMALLEST_SIDE = 64


def resolve(precision: str, device: torch.device, side: int) -> torch.dtype:
    """Return the data type for a setting.

    Parameters
    ----------
    precision
        ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the device supports it in hardware. On
        CPUs, images of fewer than 64 pixels a side are always computed in single precision, because some
        results are wrong in bfloat16.
    device
        Device of the networks.
    side
        Side of the images in pixels.

    Examples
    --------
    >>> resolve("float32", torch.device("cpu"), 256), resolve("auto", torch.device("cpu"), 16)
    (torch.float32, torch.float32)
    """
    if device.type == "cpu" and side < _SMALLEST_SIDE:
        return torch.float32
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def in_full() -> AbstractContextManager[object]:
    """Return a context in which tensors keep their data type, even inside :func:`autocast`."""
    stack = ExitStack()
    for kind in ("cpu", "cuda"):
        if torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


def autocast(precision: str, device: torch.device, side: int) -> torch.autocast:
    """Return a context in which networks compute in the data type of a setting; see :func:`resolve`."""
    enabled = resolve(precision, device, side) == torch.bfloat16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
