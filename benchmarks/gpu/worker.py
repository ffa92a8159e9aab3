"""The cases of one section, in a process of their own: a crash, or a broken context, costs one case.

python -m benchmarks.gpu.worker SECTION --out DIR [--dry] [--wheel FILE] [--in-place]
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import traceback
from pathlib import Path

from .context import Context
from .sections import SECTIONS, Section
from .state import DONE, FAILED, State

BROKEN = 3  # exit status: the device answers no more; what is left needs another process


def run_section(section: Section, context: Context) -> int:
    """Runs the cases that were not tried yet; 0, or BROKEN."""
    state = State.read(context.out, section.name) or State(section.name)
    try:
        for name, call in section.module().cases(context):
            if state.tried(name):
                continue
            state.current = name
            state.write(context.out)
            begun = time.monotonic()
            try:
                result = call()
            except Exception as error:  # whatever a case may meet, the next one is tried
                traceback.print_exc()
                state.failed[name] = f"{type(error).__name__}: {error}"[:500]
            else:
                state.cases[name] = {"seconds": round(time.monotonic() - begun, 3), **result}
            state.seconds += time.monotonic() - begun
            state.current = None
            state.write(context.out)
            if not _usable(context):
                return BROKEN
        state.status = DONE
    except Exception as error:  # the section itself: no device, nothing to compare with
        traceback.print_exc()
        state.status, state.reason = FAILED, f"{type(error).__name__}: {error}"[:500]
    state.write(context.out)
    return 0


def _usable(context: Context) -> bool:
    """Whether the device, if it was used, still answers."""
    if "device" not in vars(context):
        return True
    gc.collect()
    try:
        context.device.release()
    except RuntimeError:
        traceback.print_exc()
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=list(SECTIONS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--in-place", action="store_true")
    options = parser.parse_args()
    context = Context(options.out, options.dry, options.wheel, options.in_place)
    sys.exit(run_section(SECTIONS[options.section], context))


if __name__ == "__main__":
    main()
