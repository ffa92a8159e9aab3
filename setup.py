"""Builds the compiled parts of the package with ninja; everything declarative is in pyproject.toml.

attractor_kernels/_cpu.so      the CPU kernels and their torch operators. Each kernel file is compiled once per
                               instruction set and the library picks at run time, so one wheel serves every x86-64-v2
                               machine. It uses torch through its stable ABI only, so one build serves TARGET_TORCH
                               and every later torch.
attractor_kernels/_cuda.so     the CUDA kernels and their torch operators, where nvcc is found; loaded only where torch
                               has CUDA, and linked so that the torch built with need not have it.
attractor_kernels/_facts*.so   a pybind11 module that says what was built and what the kernels would do.
attractor_kernels/_direct*.so  the way to the CPU's kernels past torch's dispatcher, for small solves.

FORCE_CUDA=1 makes a build without nvcc an error, FORCE_CUDA=0 leaves the CUDA kernels out; TORCH_CUDA_ARCH_LIST names
their architectures.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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
# The same for CUDA. A kernel that spills or keeps an array on a thread's stack does not build.
NVCC_FLAGS = (
    "-std=c++20 -O3 --expt-relaxed-constexpr --fmad=false -Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Werror "
    "-Werror=all-warnings -Xptxas=-warn-spills,-warn-lmem-usage,-Werror"
).split()
CUDA_ARCHITECTURES = "8.0 9.0a 10.0+PTX"
X86_FLAGS = {
    "portable": ["-march=x86-64-v2"],
    "avx2": ["-mavx2", "-mfma", "-mbmi2", "-mf16c"],
    "avx512": ["-march=x86-64-v4"],
    "avx512vnni": ["-march=x86-64-v4", "-mavx512vnni"],
    "avx512bf16": ["-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"],
    "avx512amx": ["-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}


def instruction_sets() -> dict[str, list[str]]:
    return X86_FLAGS if platform.machine() in ("x86_64", "AMD64") else {"portable": []}


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


class Nvcc(NamedTuple):
    """The CUDA compiler, or why there is none."""

    command: str = ""
    version: str = ""
    architectures: str = ""
    absent: str = ""

    def targets(self) -> list[str]:
        """For 9.0a: -gencode=arch=compute_90a,code=sm_90a; for 10.0+PTX also the text for later devices."""
        flags = []
        for name in self.architectures.split():
            number = name.removesuffix("+PTX").replace(".", "")
            code = f"[sm_{number},compute_{number}]" if name.endswith("+PTX") else f"sm_{number}"
            flags.append(f"-gencode=arch=compute_{number},code={code}")
        return flags

    @property
    def wgmma(self) -> bool:
        """Whether a device of compute capability 9.0 has code with its products by warpgroups; of plans for devices
        elsewhere, where nothing is built, whether the default build has."""
        names = {name.removesuffix("+PTX") for name in (self.architectures or CUDA_ARCHITECTURES).split()}
        return "9.0a" in names and "9.0" not in names


def find_nvcc() -> Nvcc:
    wanted = os.environ.get("FORCE_CUDA", "")
    if wanted == "0":
        return Nvcc(absent="left out by FORCE_CUDA=0")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    command = shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)
    if command is None:
        absent = f"nvcc was not found {f'in {home}/bin' if home else 'on PATH'} when it was built"
        if wanted == "1":
            sys.exit(f"FORCE_CUDA=1, but {absent}")
        print(f"CPU kernels only: {absent}", file=sys.stderr)
        return Nvcc(absent=absent)
    told = subprocess.run([command, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"\bV([\d.]+)", told)
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES
    for name in (names := re.split(r"[;\s]+", architectures.strip())):
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
            sys.exit(f"TORCH_CUDA_ARCH_LIST must hold numbers like 8.0, 9.0a or 10.0+PTX, got {name!r}")
    return Nvcc(command, found.group(1) if found else "of unknown version", " ".join(names))


def quote(words: list[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


def write_if_changed(path: Path, text: str) -> None:
    """Leave the time stamp of an unchanged file alone, so that nothing is rebuilt for it."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


class Plan:
    """What ninja is to do: objects, the libraries, and the flags each part needs."""

    def __init__(self, folder: Path, cpu_library: Path, modules: dict[str, Path], nvcc: Nvcc) -> None:
        import pybind11
        import torch

        self.folder = folder
        self.cpu_library = cpu_library
        self.modules = modules
        self.nvcc = nvcc
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
            f'constexpr const char* kNvccVersion = "{self.nvcc.version}";\n'
            f'constexpr const char* kCudaArchitectures = "{self.nvcc.architectures}";\n'
            f'constexpr const char* kCudaAbsent = "{self.nvcc.absent}";\n'
            f"constexpr bool kWgmma = {str(self.nvcc.wgmma).lower()};\n"
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
            if not self.nvcc.absent:
                self.add_cuda_library(ninja)
            self.add_facts_module(ninja)
            self.add_module(ninja, self.modules["_direct"], ("direct",), [])
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

    def add_cuda_library(self, ninja: Writer) -> None:
        """One symbol of torch's CUDA library is used, which a torch without CUDA lacks: a stand-in of the same name is
        linked against, and the real one is found when the library is loaded."""
        ninja.variable("nvcc", quote([self.nvcc.command, f"-ccbin={compiler()[0]}"]))
        ninja.rule("device", "$nvcc -MMD -MF $out.d $flags -c $in -o $out", "compile $in", depfile="$out.d", deps="gcc")
        ninja.rule("link_cuda", "$nvcc -shared -cudart=static $in $flags -o $out", "link $out")
        stand_in, code = self.folder / "stand_in" / "libtorch_cuda.so", self.folder / "stand_in.cpp"
        write_if_changed(code, 'extern "C" void aoti_torch_get_current_cuda_stream() {}\n')
        stand_in_object = str(self.folder / "stand_in" / "stand_in.o")
        ninja.build(stand_in_object, "compile", str(code), variables={"flags": "-fPIC", "variant": "stand-in"})
        flags = quote(["-nostdlib", f"-Wl,-soname,{stand_in.name}"])
        ninja.build(str(stand_in), "link", stand_in_object, variables={"flags": flags})

        objects = []
        for kernel in sorted(CSRC.glob("cuda/*.cu")):
            objects.append(str(self.folder / "cuda" / f"{kernel.stem}.cu.o"))
            flags = quote([*NVCC_FLAGS, *self.nvcc.targets(), f"-DAK_BUILT_WITH_WGMMA={int(self.nvcc.wgmma)}"])
            ninja.build(objects[-1], "device", str(kernel), variables={"flags": flags})
        objects += [self.add_object(ninja, source, "cuda", []) for source in sorted(CSRC.glob("cuda/*.cpp"))]
        for source in sorted(CSRC.glob("ops/cuda*.cpp")):
            objects.append(self.add_object(ninja, source, "ops", self.torch_flags))
        linker = "-s,-z,defs,--no-as-needed,--exclude-libs,ALL"
        folders = [f"-L{stand_in.parent}", f"-L{self.torch / 'lib'}"]
        flags = quote([*self.nvcc.targets(), f"-Xlinker={linker}", "-lstdc++", *folders, "-ltorch_cpu", "-ltorch_cuda"])
        ninja.build(str(self.cuda_library), "link_cuda", objects, implicit=str(stand_in), variables={"flags": flags})

    @property
    def cuda_library(self) -> Path:
        return self.cpu_library.with_name("_cuda.so")

    def add_facts_module(self, ninja: Writer) -> None:
        # The plans of the CUDA kernels are plain C++, so they can be asked for where nothing else of CUDA is built.
        plans = [self.add_object(ninja, source, "facts", []) for source in sorted(CSRC.glob("cuda/*_plan.cpp"))]
        self.add_module(ninja, self.modules["_facts"], ("facts", "plans"), plans)

    def add_module(self, ninja: Writer, module: Path, sources: tuple[str, ...], others: list[str]) -> None:
        """A module of Python on the very library that solves, found beside it."""
        library = self.cpu_library
        flags = [*self.python_includes, f"-I{self.folder}"]
        compiled = [self.add_object(ninja, CSRC / "ops" / f"{name}.cpp", "modules", flags) for name in sources]
        flags = quote([f"-L{library.parent}", f"-l:{library.name}", "-Wl,-rpath,$ORIGIN"]).replace("$", "$$")
        ninja.build(str(module), "link", compiled + others, implicit=str(library), variables={"flags": flags})


class BuildWithNinja(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        # Those loaded by torch, not by Python, fit every Python version.
        *package, name = fullname.split(".")
        if name in ("_cpu", "_cuda"):
            return os.path.join(*package, f"{name}.so")
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        paths = {ext.name: Path(self.get_ext_fullpath(ext.name)).resolve() for ext in self.extensions}
        modules = {name: paths[f"attractor_kernels.{name}"] for name in MODULES}
        plan = Plan(Path(self.build_temp).resolve(), paths["attractor_kernels._cpu"], modules, NVCC).write()
        jobs = os.environ.get("MAX_JOBS", str(len(os.sched_getaffinity(0))))
        subprocess.run([sys.executable, "-m", "ninja", "-f", str(plan), "-j", jobs], check=True)


NVCC = find_nvcc()
MODULES = ("_facts", "_direct")  # Python's own; the others are torch's
COMPILED = ["_cpu", *MODULES, *([] if NVCC.absent else ["_cuda"])]

setup(
    ext_modules=[Extension(f"attractor_kernels.{name}", []) for name in COMPILED],
    cmdclass={"build_ext": BuildWithNinja},
)
