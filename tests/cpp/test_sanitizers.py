"""The C++ test programs, compiled with the address and undefined-behaviour sanitizers for several vector widths.

"wide" is the text of the AVX-512 kernels, products in few bits included, on 64-byte vectors the compiler makes out of
whatever the processor has, and "matrix" the same with products by an emulated matrix unit: their logic is tested on
machines that lack the instructions.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "g++")
FLAGS = (
    "-std=c++20 -O1 -g -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror -Wno-psabi "
    "-fsanitize=address,undefined -fno-sanitize-recover=all -pthread"
).split()
VARIANTS = {
    "portable": [],
    "wide": ["-DAK_VECTOR_BYTES=64", "-DAK_EMULATE_NARROW"],
    "matrix": ["-DAK_VECTOR_BYTES=64", "-DAK_EMULATE_NARROW", "-DAK_EMULATE_MATRIX_UNIT"],
}
if "avx2" in Path("/proc/cpuinfo").read_text():
    VARIANTS["avx2"] = ["-mavx2", "-mfma", "-mbmi2", "-mf16c"]
if platform.machine() == "x86_64":
    VARIANTS = {name: flags or ["-march=x86-64-v2"] for name, flags in VARIANTS.items()}
PROGRAMS = {
    "test_common": [],
    "test_anderson_step": ["csrc/cpu/anderson_step.cpp"],
    "test_solve_affine": ["csrc/cpu/solve_affine.cpp", "csrc/cpu/scratch.cpp"],
    "test_solve_cells": [
        *(f"csrc/cpu/solve_{cell}.cpp" for cell in ("mlp", "mlp_linear", "gated")),
        "csrc/cpu/scratch.cpp",
    ],
}
# The text of the CUDA kernels, run on the host: no vectors of its own, so one variant will do, one with fma if it can.
CUDA_PROGRAMS = {
    "test_cuda_step": ["csrc/cuda/step_plan.cpp", "csrc/cpu/anderson_step.cpp"],
    "test_cuda_residual": ["csrc/cuda/residual_plan.cpp"],
    "test_cuda_tensor": [],
    "test_mixed_step": [],
    "test_cuda_affine": ["csrc/cuda/row_plan.cpp", "csrc/cpu/solve_affine.cpp", "csrc/cpu/scratch.cpp"],
    "test_cuda_crew": [
        "csrc/cuda/crew_plan.cpp",
        "csrc/cuda/row_plan.cpp",
        "csrc/cpu/solve_affine.cpp",
        "csrc/cpu/scratch.cpp",
    ],
    "test_cuda_cells": ["csrc/cuda/row_plan.cpp"],
    "test_cuda_plan_table": ["csrc/cuda/row_plan.cpp"],
}

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_program(program: str, variant: str, tmp_path: Path) -> None:
    build_and_run(program, PROGRAMS[program], variant, tmp_path)


@pytest.mark.parametrize("program", CUDA_PROGRAMS)
def test_cuda_program(program: str, tmp_path: Path) -> None:
    build_and_run(program, CUDA_PROGRAMS[program], "avx2" if "avx2" in VARIANTS else "portable", tmp_path)


def build_and_run(program: str, others: list[str], variant: str, folder: Path) -> None:
    binary = folder / program
    sources = [f"csrc/tests/{program}.cpp", *others]
    build = [COMPILER, *FLAGS, *VARIANTS[variant], f"-DAK_ISA={variant}", *sources, "-o", str(binary)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    ran = subprocess.run([binary], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
