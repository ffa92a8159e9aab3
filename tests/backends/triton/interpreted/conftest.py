"""Collected by ../test_triton.py in a process of its own, where Triton interprets."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

if os.environ.get("ATTRACTOR_KERNELS_TRITON_TESTS") != "interpreted":
    collect_ignore_glob = ["*"]


@pytest.fixture(autouse=True)
def _arithmetic_like_a_gpu():
    """Overflow and division by zero give Inf and NaN without a warning."""
    with np.errstate(all="ignore"):
        yield
