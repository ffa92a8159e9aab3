"""The compiled library asks of the machine it lands on only what the wheel promises."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest
import torch

from attractor_kernels import _facts
from attractor_kernels.backends import cuda
from attractor_kernels.backends.override import CUDA_OPERATORS

elffile = pytest.importorskip("elftools.elf.elffile")

SYSTEM = {"libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6", "libpthread.so.0"}
LOADERS = {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


@pytest.fixture(params=["_cpu.so", "_cuda.so", "_facts.*.so", "_direct.*.so"])
def library(request, package):
    if request.param == "_cuda.so" and (absent := _facts.build()["cuda"]["absent"]):
        pytest.skip(f"no CUDA kernels: {absent}")
    [path] = package.glob(request.param)
    with path.open("rb") as file:
        yield elffile.ELFFile(file)


def dynamic(library, tag: str) -> list[str]:
    section = library.get_section_by_name(".dynamic")
    return [getattr(entry, tag.removeprefix("DT_").lower()) for entry in section.iter_tags(tag)]


def undefined(library) -> list[str]:
    symbols = library.get_section_by_name(".dynsym").iter_symbols()
    return [symbol.name for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF" and symbol.name]


def exported(path: Path) -> list[str]:
    with path.open("rb") as file:
        section = elffile.ELFFile(file).get_section_by_name(".dynsym")
        if section is None:
            return []
        return [symbol.name for symbol in section.iter_symbols() if symbol["st_shndx"] != "SHN_UNDEF"]


def test_needs_torch_and_the_system_only(library):
    needed = set(dynamic(library, "DT_NEEDED"))
    allowed = {"libtorch_cpu.so", "_cpu.so"}
    if "libtorch_cuda.so" in needed:
        # The one symbol that a torch without CUDA lacks; the rest is there wherever torch is.
        allowed.add("libtorch_cuda.so")
        folder = Path(torch.__file__).parent / "lib"
        there = {name for path in folder.glob("lib*.so") for name in exported(path)}
        wanted = [name for name in undefined(library) if "torch" in name]
        assert len(wanted) > 10
        assert set(wanted) - there <= {"aoti_torch_get_current_cuda_stream"}
    assert needed <= SYSTEM | LOADERS | allowed


def test_carries_no_path_of_the_build_machine(library):
    paths = dynamic(library, "DT_RPATH") + dynamic(library, "DT_RUNPATH")
    assert set(paths) <= {"$ORIGIN"}


def test_uses_torch_through_its_stable_interface(library):
    # C names only: a mangled one would belong to a single torch version.
    foreign = [name for name in undefined(library) if re.search(r"N[KV]?(2at|3c10|5torch|6caffe2)", name)]
    assert not foreign


def test_exports_no_kernel(library):
    # Hidden symbols cannot clash with another build of the package, and let the loader start faster.
    symbols = library.get_section_by_name(".dynsym").iter_symbols()
    names = [symbol.name for symbol in symbols if symbol["st_shndx"] != "SHN_UNDEF"]
    assert not [name for name in names if re.search("avx|portable|solve|step|cuda[A-Z]", name)]


@pytest.mark.skipif(
    torch.version.cuda is None, reason="torch is built without CUDA; make test-cuda-build has one with it"
)
@pytest.mark.parametrize("op", [*CUDA_OPERATORS, "anderson_step", "residual_norm"])
def test_cuda_library_loads_without_a_device(op):
    assert cuda.library_obstacle() == (_facts.build()["cuda"]["absent"] or None)
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"attractor_kernels::{op}", "CUDA")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have the portable code only")
def test_every_instruction_set_is_compiled_in():
    assert list(_facts.instruction_sets()) == [
        "avx512amx",
        "avx512bf16",
        "avx512vnni",
        "avx512",
        "avx2",
        "portable",
    ]
    assert _facts.instruction_sets()["portable"]
