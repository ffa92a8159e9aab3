"""Lets the tests of this folder import its helper modules, whatever pytest's import mode."""

import sys
from pathlib import Path

import pytest

# Thousands of cases, minutes long.
THOROUGH = {"test_batch", "test_causal", "test_cells", "test_distributed", "test_shapes"}

sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in THOROUGH:
            item.add_marker(pytest.mark.thorough)
