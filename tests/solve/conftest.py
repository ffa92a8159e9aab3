"""Lets the tests of this folder import its helper modules, whatever pytest's import mode; a tape in a graph's place."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tape import TapeRecorder

from attractor_kernels.solve import graph_loop


@pytest.fixture
def recorder(monkeypatch) -> TapeRecorder:
    recorder = TapeRecorder()
    monkeypatch.setattr(graph_loop, "LOOPS", graph_loop.GraphLoops(recorder))
    return recorder
