"""Collected by ../test_triton.py in a process of its own, where Triton compiles."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

if os.environ.get("ATTRACTOR_KERNELS_TRITON_TESTS") != "ahead_of_time":
    collect_ignore_glob = ["*"]
