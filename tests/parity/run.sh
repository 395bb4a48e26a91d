#!/usr/bin/env bash
# Parity of the program with an independent Python model.
#   tests/parity/run.sh BUILD [PYTHON [OPTION of compare.py ...]]
# BUILD: the build folder, or its bin/.  PYTHON: one that imports torch and safetensors; default: $SWITCHYARD_PYTHON
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=${1:?the build folder is missing} python=${2:-${SWITCHYARD_PYTHON:-}}
[[ -n $python ]] && "$python" -c 'import torch, safetensors' 2>/dev/null || {
  echo "skipped: parity needs a Python that imports torch and safetensors, and '${python:-none given}' does not"
  exit 0
}
dump=$build/bin/parity_dump
[[ -x $dump ]] || dump=$build/parity_dump
[[ -x $dump ]] || { echo "no parity_dump in $build: build the target parity_dump first" >&2; exit 1; }
"$python" "$here/selftest.py" && "$python" "$here/compare.py" --dump "$dump" "${@:3}"
