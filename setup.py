"""Builds the two compiled parts of the package with ninja; everything declarative is in pyproject.toml.

attractor_kernels/_cpu.so      the CPU kernels and their torch operators. Each kernel file is compiled once per
                               instruction set and the library picks at run time, so one wheel serves every x86-64-v2
                               machine. It uses torch through its stable ABI only, so one build serves TARGET_TORCH
                               and every later torch.
attractor_kernels/_facts*.so   a pybind11 module that says what was built and what the kernels would do.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

if TYPE_CHECKING:
    from ninja.ninja_syntax import Writer

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
TARGET_TORCH = (2, 11)  # oldest torch the library loads in

COMMON_FLAGS = "-std=c++20 -O3 -fPIC -fvisibility=hidden -Wall -Wextra -Werror -Wno-psabi".split()
# No contraction: two instances of one template must round alike, or a row's bits would depend on its neighbours.
KERNEL_FLAGS = "-ffp-contract=off -fno-math-errno -fno-trapping-math".split()
X86_FLAGS = {
    "portable": ["-march=x86-64-v2"],
    "avx2": ["-mavx2", "-mfma", "-mbmi2", "-mf16c"],
    "avx512": ["-march=x86-64-v4"],
    "avx512vnni": ["-march=x86-64-v4", "-mavx512vnni"],
    "avx512bf16": ["-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"],
}


def instruction_sets() -> dict[str, list[str]]:
    return X86_FLAGS if platform.machine() in ("x86_64", "AMD64") else {"portable": []}


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def quote(words: list[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


def write_if_changed(path: Path, text: str) -> None:
    """Leave the time stamp of an unchanged file alone, so that nothing is rebuilt for it."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


class Plan:
    """What ninja is to do: objects, the two libraries, and the flags each part needs."""

    def __init__(self, folder: Path, cpu_library: Path, facts_module: Path) -> None:
        import pybind11
        import torch

        self.folder = folder
        self.cpu_library = cpu_library
        self.facts_module = facts_module
        self.torch_version = torch.__version__
        self.torch = Path(torch.__file__).parent
        python = sysconfig.get_path("include")
        self.python_includes = [f"-isystem{path}" for path in (python, pybind11.get_include())]
        self.torch_flags = [
            f"-isystem{self.torch / 'include'}",
            f"-DTORCH_TARGET_VERSION=0x{TARGET_TORCH[0]:02x}{TARGET_TORCH[1]:02x}000000000000",
        ]

    def facts_header(self) -> str:
        """Facts of this build that C++ cannot know by itself."""
        flags = "".join(
            f'    {{"{name}", "{" ".join(KERNEL_FLAGS + isa_flags)}"}},\n'
            for name, isa_flags in instruction_sets().items()
        )
        return (
            f'constexpr const char* kBuiltWithTorch = "{self.torch_version}";\n'
            f'constexpr const char* kTargetTorch = "{TARGET_TORCH[0]}.{TARGET_TORCH[1]}";\n'
            f'constexpr const char* kCommonFlags = "{" ".join(COMMON_FLAGS)}";\n'
            "constexpr struct { const char *name, *flags; } kKernelFlags[] = {\n"
            f"{flags}}};\n"
        )

    def write(self) -> Path:
        from ninja.ninja_syntax import Writer

        self.folder.mkdir(parents=True, exist_ok=True)
        write_if_changed(self.folder / "build_facts.h", self.facts_header())
        path = self.folder / "build.ninja"
        with path.open("w") as file:
            ninja = Writer(file, width=200)
            ninja.variable("builddir", str(self.folder))
            ninja.variable("cxx", quote(compiler()))
            compile_command, link_command = (
                "$cxx -MMD -MF $out.d $flags -c $in -o $out",
                "$cxx -shared -s $in $flags -o $out",
            )
            ninja.rule("compile", compile_command, "compile $in ($variant)", depfile="$out.d", deps="gcc")
            ninja.rule("link", link_command, "link $out")
            self.add_cpu_library(ninja)
            self.add_facts_module(ninja)
        return path

    def add_object(self, ninja: Writer, source: Path, variant: str, flags: list[str]) -> str:
        target = str(self.folder / variant / f"{source.stem}.o")
        variables = {"flags": quote(COMMON_FLAGS + flags), "variant": variant}
        ninja.build(target, "compile", str(source), variables=variables)
        return target

    def add_cpu_library(self, ninja: Writer) -> None:
        plain = [CSRC / "cpu" / "dispatch.cpp", CSRC / "cpu" / "scratch.cpp"]
        kernels = sorted(path for path in CSRC.glob("cpu/*.cpp") if path not in plain)
        objects = [self.add_object(ninja, source, "plain", []) for source in plain]
        for source in sorted(CSRC.glob("ops/cpu*.cpp")):
            objects.append(self.add_object(ninja, source, "ops", self.torch_flags))
        for name, isa_flags in instruction_sets().items():
            flags = [*KERNEL_FLAGS, *isa_flags, f"-DAK_ISA={name}"]
            objects += [self.add_object(ninja, source, name, flags) for source in kernels]
        # The C++ library first: torch exports some of its newer symbols too, and must not be what provides them.
        flags = ["-Wl,-z,defs", "-lstdc++", f"-L{self.torch / 'lib'}", "-ltorch_cpu"]
        ninja.build(str(self.cpu_library), "link", objects, variables={"flags": quote(flags)})

    def add_facts_module(self, ninja: Writer) -> None:
        """The facts come from the very library that solves, found beside the module."""
        library = self.cpu_library
        source = CSRC / "ops" / "facts.cpp"
        compiled = self.add_object(ninja, source, "facts", [*self.python_includes, f"-I{self.folder}"])
        flags = quote([f"-L{library.parent}", f"-l:{library.name}", "-Wl,-rpath,$ORIGIN"]).replace("$", "$$")
        ninja.build(str(self.facts_module), "link", compiled, implicit=str(library), variables={"flags": flags})


class BuildWithNinja(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        # _cpu is loaded by torch, not by Python, and fits every Python version.
        *package, name = fullname.split(".")
        return os.path.join(*package, "_cpu.so") if name == "_cpu" else super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        cpu_library, facts_module = (Path(self.get_ext_fullpath(ext.name)).resolve() for ext in self.extensions)
        plan = Plan(Path(self.build_temp).resolve(), cpu_library, facts_module).write()
        jobs = os.environ.get("MAX_JOBS", str(len(os.sched_getaffinity(0))))
        subprocess.run([sys.executable, "-m", "ninja", "-f", str(plan), "-j", jobs], check=True)


setup(
    ext_modules=[Extension("attractor_kernels._cpu", []), Extension("attractor_kernels._facts", [])],
    cmdclass={"build_ext": BuildWithNinja},
)
