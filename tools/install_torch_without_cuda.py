"""Install a torch of the package index in an environment for runs on the CPU, without its 2 GB of NVIDIA libraries.

    python tools/install_torch_without_cuda.py ENVIRONMENT VERSION

That torch is a CUDA build: its import needs those libraries, though a run on the CPU calls none of them. The two
small ones that the import does call are installed; for each other, a stand-in is put beside torch's own libraries.
It has the symbols that the loader looks for, as data: a call of any ends the process. Needs a C compiler and
pyelftools.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from email.parser import HeaderParser
from pathlib import Path

from elftools.elf.elffile import ELFFile

NVIDIA_LIBRARIES = ("libcu", "libnccl", "libnv")
# The symbols of some libraries carry no version that would tell the library; their prefix does.
UNVERSIONED_PREFIXES = ("cuFile", "curand", "cusparseLt", "nccl")


def install(environment: Path, version: str) -> Path:
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "--no-deps", f"torch=={version}"], check=True)
    site_packages = next(environment.glob("lib/python*/site-packages"))
    metadata = next(site_packages.glob("torch-*.dist-info/METADATA")).read_text()
    wanted = []
    for requirement in HeaderParser().parsestr(metadata).get_all("Requires-Dist", []):
        requirement = requirement.removesuffix('; platform_system == "Linux"')
        if requirement.startswith("cuda-toolkit"):
            wanted.append(re.sub(r"\[.*\]", "[cudart,cupti]", requirement))
        elif ";" not in requirement and not requirement.startswith(("cuda", "nvidia", "triton")):
            wanted.append(requirement)
    subprocess.run([*pip, *wanted], check=True, stderr=subprocess.DEVNULL)  # pip complains of what is left out
    return site_packages


def needed(path: Path) -> list[str]:
    with path.open("rb") as file:
        return [tag.needed for tag in ELFFile(file).get_section_by_name(".dynamic").iter_tags("DT_NEEDED")]


def loaded_by_import(folder: Path) -> list[Path]:
    """Torch's own libraries that `import torch` loads."""
    found: set[Path] = set()
    queue = [folder / "libtorch_python.so", folder / "libtorch_global_deps.so"]
    while queue:
        path = queue.pop()
        if path not in found and path.exists():
            found.add(path)
            queue += [folder / name for name in needed(path)]
    return sorted(found)


def wanted_symbols(path: Path) -> list[tuple[str, str | None, str | None]]:
    """(name, library, version) of the symbols a library looks for; the latter None where unversioned."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        versions = {
            entry["vna_other"]: (library.name, entry.name)
            for library, entries in elf.get_section_by_name(".gnu.version_r").iter_versions()
            for entry in entries
        }
        indices = elf.get_section_by_name(".gnu.version")
        return [
            (symbol.name, *versions.get(indices.get_symbol(number)["ndx"], (None, None)))
            for number, symbol in enumerate(elf.get_section_by_name(".dynsym").iter_symbols())
            if symbol["st_shndx"] == "SHN_UNDEF" and symbol["st_info"]["bind"] == "STB_GLOBAL"
        ]


def make_stand_in(path: Path, versions: dict[str, set[str]]) -> None:
    names = set().union(*versions.values())
    code = ".data\n" + "".join(f".globl {name}\n{name}: .quad 0\n" for name in sorted(names))
    code += '.section .note.GNU-stack,"",@progbits\n'
    script = "".join(
        f"{version} {{ global: {' '.join(f'{name};' for name in sorted(group))} }};\n"
        for version, group in versions.items()
        if version
    )
    with tempfile.TemporaryDirectory() as scratch:
        source, version_script = Path(scratch, "stand_in.s"), Path(scratch, "versions")
        source.write_text(code)
        version_script.write_text(script)
        options = [f"-Wl,--version-script={version_script}"] if script else []
        link = ["cc", "-shared", "-nostdlib", f"-Wl,-soname,{path.name}", *options, str(source), "-o", str(path)]
        subprocess.run(link, check=True)


def main(environment: Path, version: str) -> None:
    site_packages = install(environment, version)
    folder = site_packages / "torch" / "lib"
    libraries = loaded_by_import(folder)
    installed = {path.name for path in [*folder.iterdir(), *site_packages.glob("nvidia/*/lib/*")]}
    missing = {name for path in libraries for name in needed(path) if name.startswith(NVIDIA_LIBRARIES)} - installed
    symbols: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in missing}
    for path in libraries:
        for name, library, symbol_version in wanted_symbols(path):
            if library in missing:
                symbols[library][symbol_version].add(name)
            elif library is None and name.startswith(UNVERSIONED_PREFIXES):
                owner = next(one for one in missing if name.lower().startswith(one[3:].partition(".")[0].lower()))
                symbols[owner][""].add(name)
    for name, versions in sorted(symbols.items()):
        make_stand_in(folder / name, versions)
    print(f"torch {version} installed; stand-ins: {', '.join(sorted(missing)) or 'none needed'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2])
