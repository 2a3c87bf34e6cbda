"""In which numbers networks compute."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack

import torch

# oneDNN 3.x computes 3 x 3 convolutions of stride 2 to maps of a single pixel in bfloat16 from memory that
# nobody wrote to: the gradient of their weights and, with AMX, their output. Tiles of 64 pixels are far from
# being that small.
SMALLEST_SIDE = 64


def resolve(precision: str, device: torch.device, side: int) -> torch.dtype:
    """Turn a setting into a type.

    Parameters
    ----------
    precision
        ``"float32"``, ``"bfloat16"``, or ``"auto"``: the latter where the device computes in it, not merely
        emulates it. On processors images of fewer than 64 pixels a side are computed in single precision
        whatever is asked for: in the other some results are wrong.
    device
        Where networks are.
    side
        Of the images, in pixels.

    Examples
    --------
    >>> resolve("float32", torch.device("cpu"), 256), resolve("auto", torch.device("cpu"), 16)
    (torch.float32, torch.float32)
    """
    if device.type == "cpu" and side < SMALLEST_SIDE:
        return torch.float32
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def in_full() -> AbstractContextManager[object]:
    """Context in which tensors keep the type that they have, whatever context it stands in."""
    stack = ExitStack()
    for kind in ("cpu", "cuda"):
        if torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


def autocast(precision: str, device: torch.device, side: int) -> torch.autocast:
    """Context in which networks compute in the type that a setting asks for; see :func:`resolve`."""
    enabled = resolve(precision, device, side) == torch.bfloat16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
