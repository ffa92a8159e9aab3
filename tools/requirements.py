"""Print what pyproject.toml asks for, one requirement a line, so that pip can install it without the package.

python tools/requirements.py build [extra ...]     build: the build backend's requirements
"""

import sys
from pathlib import Path

import tomllib

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"] | {"build": PROJECT["build-system"]["requires"]}


def requirements(extra: str) -> list[str]:
    """Of one extra, with those of the extras it includes as `name[extra]`."""
    found = []
    for requirement in EXTRAS[extra]:
        name, _, included = requirement.partition("[")
        own = name == PROJECT["project"]["name"]
        found += requirements(included.rstrip("]")) if own else [requirement]
    return found


if __name__ == "__main__":
    print("\n".join(dict.fromkeys(line for extra in sys.argv[1:] for line in requirements(extra))))
