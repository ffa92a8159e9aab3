#!/usr/bin/env bash
# Run tests against the package installed in an environment, as a user would have it: from outside the source tree
# and with no compiler to be found.
#
#   tools/test_installed.sh ENVIRONMENT [pytest argument ...]
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
environment=$(cd "$1" && pwd)
shift

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/bin" "$scratch/work"
cp "$root/pyproject.toml" "$scratch/work"
cp -r "$root/tests" "$scratch/work"
rm -rf "$scratch/work/tests/cpp" # these compile

for tool in bash cat cp env ls mkdir rm sh uname; do
  ln -s "$(command -v "$tool")" "$scratch/bin/$tool"
done
export PATH="$environment/bin:$scratch/bin"
unset CC CXX PYTHONPATH
for compiler in cc c++ gcc g++ clang clang++ ld nvcc; do
  if found=$(command -v "$compiler"); then
    echo "a compiler is on PATH: $found" >&2
    exit 1
  fi
done

cd "$scratch/work"
python -c "
import pathlib, sys, torch, attractor_kernels
here = pathlib.Path(attractor_kernels.__file__)
assert pathlib.Path(sys.prefix) in here.parents, here
print(f'{here.parent} with torch {torch.__version__}, no compiler on PATH')
"
python -m pytest "$@"
