"""What every CUDA kernel of a compiled library takes of a multiprocessor, for the committed budget of tests/cpp.

    python tools/cuda_resources.py LIBRARY [--write csrc/cuda/budget.json]

Needs cuobjdump and nvdisasm (in the CUDA toolkit, or the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm) and
c++filt. Prints, by kernel and architecture: registers of a thread; bytes of stack and of local memory a thread;
bytes of static shared memory a block; warps that the registers let a multiprocessor hold; and how many instructions
load or store 16 bytes or more at once (wide_loads, wide_stores), reach a thread's local memory (local) or multiply
bfloat16 on tensor cores, by a warp (tensor) or a warpgroup (group).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

REGISTERS = 65536  # of a multiprocessor, from compute capability 8.0 to 10.0
WARP = 32
COUNTED = {
    "wide_loads": re.compile(r"\bLDG\.E\.\S*(128|256)"),
    "wide_stores": re.compile(r"\bSTG\.E\.\S*(128|256)"),
    "local": re.compile(r"\b(LDL|STL)\b"),
    "tensor": re.compile(r"\bHMMA\.16816\.F32\.BF16\b"),
    "group": re.compile(r"\bHGMMA\.64x\d+x16\.F32\.BF16\b"),
}


def tools_path() -> str:
    """PATH, with the folders where pip puts the tools."""
    packages = Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin")
    return os.pathsep.join([os.environ.get("PATH", ""), *map(str, packages)])


def missing_tools() -> list[str]:
    return [tool for tool in ("cuobjdump", "nvdisasm", "c++filt") if shutil.which(tool, path=tools_path()) is None]


def run(tool: str, *arguments: str, given: str | None = None) -> str:
    command = [str(shutil.which(tool, path=tools_path())), *arguments]
    environment = os.environ | {"PATH": tools_path()}
    return subprocess.run(command, check=True, capture_output=True, text=True, input=given, env=environment).stdout


def short_name(demangled: str) -> str:
    """step_kernel<float, 4, 128> for void ak::cuda::(anonymous namespace)::step_kernel<float, 4, 128>(...)."""
    name = re.sub(r"\(anonymous namespace\)::|\([\w:]*ProductKind\)|ak::cuda::|ak::", "", demangled)
    name = name.removeprefix("void ")
    return name.partition("(")[0].replace("> >", ">>")


def resources(library: Path) -> dict[str, dict[str, dict[str, int]]]:
    found: dict[str, dict[str, dict[str, int]]] = {}
    architecture = kernel = ""
    for line in run("c++filt", given=run("cuobjdump", "--dump-resource-usage", str(library))).splitlines():
        if match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (.*):$", line):
            kernel = short_name(match[1])
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            warps = REGISTERS // ((registers + 7) // 8 * 8 * WARP)
            found.setdefault(kernel, {})[architecture] = {
                "registers": registers,
                "stack": stack,
                "local_bytes": local,
                "shared": shared,
                "warps": min(warps, 64),
                **dict.fromkeys(COUNTED, 0),
            }
    for line in run("c++filt", given=run("cuobjdump", "--dump-sass", str(library))).splitlines():
        if match := re.match(r"\s*code for (\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function : (.*)$", line):
            kernel = short_name(match[1])
        else:
            for name, pattern in COUNTED.items():
                if pattern.search(line):
                    found[kernel][architecture][name] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--write", type=Path, help="the budget to write, instead of printing")
    options = parser.parse_args()
    text = json.dumps(resources(options.library), indent=2, sort_keys=True) + "\n"
    if options.write:
        options.write.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
