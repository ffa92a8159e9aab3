"""The compiled library asks of the machine it lands on only what the wheel promises."""

from __future__ import annotations

import platform
import re

import pytest

from attractor_kernels import _facts

elffile = pytest.importorskip("elftools.elf.elffile")

SYSTEM = {"libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6", "libpthread.so.0"}
LOADERS = {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


@pytest.fixture(params=["_cpu.so", "_facts.*.so"])
def library(request, package):
    [path] = package.glob(request.param)
    with path.open("rb") as file:
        yield elffile.ELFFile(file)


def dynamic(library, tag: str) -> list[str]:
    section = library.get_section_by_name(".dynamic")
    return [getattr(entry, tag.removeprefix("DT_").lower()) for entry in section.iter_tags(tag)]


def undefined(library) -> list[str]:
    symbols = library.get_section_by_name(".dynsym").iter_symbols()
    return [symbol.name for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF" and symbol.name]


def test_needs_torch_and_the_system_only(library):
    needed = set(dynamic(library, "DT_NEEDED"))
    assert needed <= SYSTEM | LOADERS | {"libtorch_cpu.so", "_cpu.so"}


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
    exported = [symbol.name for symbol in symbols if symbol["st_shndx"] != "SHN_UNDEF"]
    assert not [name for name in exported if re.search("avx|portable|solve", name)]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have the portable code only")
def test_every_instruction_set_is_compiled_in():
    assert list(_facts.instruction_sets()) == ["avx512bf16", "avx512vnni", "avx512", "avx2", "portable"]
    assert _facts.instruction_sets()["portable"]
