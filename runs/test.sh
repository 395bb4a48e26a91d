#!/usr/bin/env bash
# Sets up, builds the tests and runs all that this machine can run; what it cannot run is listed by name as skipped.
#   runs/test.sh [SETUP-OPTION…] [-- CTEST-OPTION…]      e.g. runs/test.sh -- -R router -V     runs/test.sh --cuda -- -L gpu
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$root/build setup=()
while (($#)); do
  case $1 in
    -h | --help) sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --) shift; break ;;
    --build-dir) build=$(realpath -m "$2"); setup+=("$1" "$2"); shift ;;
    *) setup+=("$1") ;;
  esac
  shift
done
"$root/runs/setup.sh" --tests "${setup[@]}" || exit

# Several ranks on few cores, in a container as root: Open MPI refuses both unless told.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none
source "$build/.setup-stamp"
export SWITCHYARD_ROOT=$root SWITCHYARD_PYTHON=${done_python:-}      # empty: tests that need Python's torch skip
[[ -n ${done_python:-} ]] || echo "no Python with torch here: parity tests are skipped; runs/test.sh --full-torch installs it"
nvidia-smi -L 2>/dev/null | grep -q '^GPU' || echo "no GPU here: tests labelled gpu are skipped"
exec ctest --test-dir "$build" --output-on-failure "$@"
