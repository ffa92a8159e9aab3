"""A compiled library of operators beside the package: loading it, and which operators it has kernels for."""

from __future__ import annotations

from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent.parent


class Library:
    """A library whose kernels torch dispatches to for `key`, "CPU" or "CUDA".

    Attributes:
        obstacle: why it is not loaded; None once it is.
    """

    def __init__(self, name: str, key: str) -> None:
        self.name = name
        self.path = _FOLDER / name
        self.obstacle: str | None = f"{name} was not loaded"
        self._key = key
        self._kernels: dict[str, bool] = {}

    def load(self) -> None:
        try:
            torch.ops.load_library(str(self.path))
        except (OSError, RuntimeError) as error:
            self.obstacle = f"{self.name} does not load: {error}"
        else:
            self.obstacle = None

    def find_kernel(self, op: str) -> None:
        """Notes whether a declared operator has a kernel: asked once, because a compiled graph cannot ask."""
        self._kernels[op] = torch._C._dispatch_has_kernel_for_dispatch_key(f"attractor_kernels::{op}", self._key)

    def lacks(self, op: str) -> str | None:
        """That there is no kernel for `op`; None if there is."""
        return None if self._kernels[op] else f"the library has no kernel for {op}"
