"""How much memory a torch device has left: what decides how much goes on it at once."""

from __future__ import annotations

from spunge.memory import available


def free_memory(device: str) -> int:
    """Returns the bytes that are free on a device."""
    import torch

    return torch.cuda.mem_get_info(device)[0] if torch.device(device).type == "cuda" else available()
