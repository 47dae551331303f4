"""Hidden states of the frozen base model, computed once and kept for every task, away from the device."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Hashable
from pathlib import Path

import torch
from torch import Tensor

from spunge import memory

RAM_SHARE = 0.25
"""The share of the free memory, when the first state is kept, that the cache may take."""


class StateCache:
    """Tensors by key: in memory up to a budget, beyond it in a memory map.

    The file of a memory map loses its name as soon as it is mapped: nothing can damage it, and it goes with the
    process. Where it cannot be made, states are computed anew.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = int(memory.available() * RAM_SHARE) if budget is None else budget
        self.in_memory = 0
        self._states: dict[Hashable, Tensor] = {}
        self._spilling = True

    def get(self, key: Hashable, build: Callable[[], Tensor], scratch: Path) -> Tensor:
        """Returns the state under this key, building it the first time; from then on it lies in main memory."""
        state = self._states.get(key)
        if state is not None:
            return state
        state = build()
        size = state.numel() * state.element_size()
        # Beyond the budget a map, which loses only where a fast GPU meets a slow disk (docs/log.md), and gives all
        # its gain while its file is in the page cache.
        if self.in_memory + size <= self.budget:
            self._states[key] = state.cpu()
            self.in_memory += size
        elif self._spilling:
            try:
                self._states[key] = _mapped(state, scratch)
            except (OSError, RuntimeError) as error:  # torch raises the latter where it cannot map
                self._spilling = False
                warnings.warn(
                    f"{scratch}: hidden states cannot be kept here ({error}); they are computed anew",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return state


def _mapped(state: Tensor, scratch: Path) -> Tensor:
    data = memoryview(state.cpu().contiguous().view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
    with tempfile.NamedTemporaryFile(dir=scratch) as file:
        file.write(data)  # written, not mapped for writing: a full disk is then an error, not a signal
        file.flush()
        # Python's own maps keep the file open, and a process may have no more than about a thousand open.
        mapped = torch.from_file(file.name, shared=False, size=data.nbytes, dtype=torch.uint8)
    return mapped.view(state.dtype).reshape(state.shape)
