"""In which numbers networks compute."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack

import torch

# oneDNN 3.x computes a wrong gradient, of memory that nobody wrote to, for the weights of a 3 x 3 convolution
# of stride 2 on maps of a single pixel in bfloat16. Tiles of 64 pixels are far from being that small.
SMALLEST_SIDE = 64


def resolve(precision: str, device: torch.device, side: int) -> torch.dtype:
    """Turn a setting into a type.

    Parameters
    ----------
    precision
        ``"float32"``, ``"bfloat16"``, or ``"auto"``: the latter where the device computes in it, not merely
        emulates it, and images are not so small that some of its gradients are wrong.
    device
        Where networks are.
    side
        Of the images, in pixels.

    Examples
    --------
    >>> resolve("float32", torch.device("cpu"), 256), resolve("auto", torch.device("cpu"), 16)
    (torch.float32, torch.float32)
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() and side >= SMALLEST_SIDE
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
