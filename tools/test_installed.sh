#!/usr/bin/env bash
# Run tests against the package installed in an environment, as a user would have it: from outside the source tree
# and with no compiler to be found. Those marked needs_compiler run where --with-compiler is given, and only there;
# those marked thorough, which take many minutes, where --thorough is. Packages in a folder after --before take the
# place of the environment's.
#
#   tools/test_installed.sh [--with-compiler | --thorough] [--before FOLDER] ENVIRONMENT [pytest argument ...]
set -euo pipefail

marked="not needs_compiler and not thorough"
before=
while true; do
  case "$1" in
    --with-compiler) marked=needs_compiler ;;
    --thorough) marked=thorough ;;
    --before)
      before=$(cd "$2" && pwd)
      shift
      ;;
    *) break ;;
  esac
  shift
done
root=$(cd "$(dirname "$0")/.." && pwd)
environment=$(cd "$1" && pwd)
shift

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/bin" "$scratch/work"
cp "$root/pyproject.toml" "$scratch/work"
cp -r "$root/tests" "$scratch/work"
mkdir "$scratch/work/benchmarks"
cp -r "$root/benchmarks/gpu" "$scratch/work/benchmarks"
rm -rf "$scratch/work/tests/cpp" # these compile

unset PYTHONPATH
if [ -n "$before" ]; then
  export PYTHONPATH=$before
fi
if [ "$marked" = needs_compiler ]; then
  PATH="$environment/bin:$PATH"
else
  unset CC CXX
  for tool in bash cat cp env ls mkdir rm sh uname; do
    ln -s "$(command -v "$tool")" "$scratch/bin/$tool"
  done
  PATH="$environment/bin:$scratch/bin"
  for compiler in cc c++ gcc g++ clang clang++ ld nvcc; do
    if found=$(command -v "$compiler"); then
      echo "a compiler is on PATH: $found" >&2
      exit 1
    fi
  done
fi

cd "$scratch/work"
python -c "
import pathlib, shutil, sys, torch, attractor_kernels
here = pathlib.Path(attractor_kernels.__file__)
assert pathlib.Path(sys.prefix) in here.parents, here
print(here.parent, 'with torch', torch.__version__, 'and compiler', shutil.which('g++'))
"
python -m pytest -m "$marked" "$@"
