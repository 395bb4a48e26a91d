#!/usr/bin/env bash
# Installs what is missing and builds. Again: builds what changed, or does nothing. docs/setup.md tells more.
usage() {
  cat <<'TEXT'
runs/setup.sh [OPTION…]      installs what is missing on Debian 12 or Ubuntu 24.04, and builds build/bin/*
  --cpu, --cuda      the light build, or the one with CUDA kernels; default: as before, else --cuda where a GPU is
  --full-torch       the full torch package also for --cpu, so that Python can import it (parity tests)
  --tests            build the tests too
  --only TARGET      build only this target (repeatable); default: the programs
  --build-dir DIR    build there instead of build/
  --cmake ARG        pass ARG to cmake, as in --cmake -DWITH_MOE=OFF (repeatable)
  --lint-tools       install clang-format and clang-tidy too
  --force            check everything again, whatever an earlier run found
Environment: SWITCHYARD_TORCH (folder of an installed torch 2.11), SWITCHYARD_CACHE (where environments are put; default
~/.cache/switchyard, shared by all clones), CUDACXX (nvcc), JOBS (compilers at a time).
TEXT
}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
kind='' need_python='' tests='' lint='' force='' build=$root/build targets=() cmake_args=()
while (($#)); do
  case $1 in
    --cpu | --cuda) kind=${1#--} ;;
    --full-torch) need_python=1 ;;
    --tests) tests=1 ;;
    --only) targets+=("${2:?--only needs a target}"); shift ;;
    --build-dir) build=$(realpath -m "${2:?--build-dir needs a folder}"); shift ;;
    --cmake) cmake_args+=("${2:?--cmake needs an argument}"); shift ;;
    --lint-tools) lint=1 ;;
    --force) force=1 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "setup.sh: unknown option '$1'; see runs/setup.sh --help" >&2; exit 2 ;;
  esac
  shift
done
mkdir -p "$build" 2>/dev/null || { echo "setup.sh: cannot create $build; choose another with --build-dir" >&2; exit 1; }
[[ -z ${SWITCHYARD_TORCH:-} ]] || SWITCHYARD_TORCH=$(realpath -m "$SWITCHYARD_TORCH")
log=$build/setup.log
exec 9>"$build/.setup.lock"
# Of several ranks or users one sets up; the others wait here and then find it done.
flock -n 9 || { echo "waiting for another setup.sh in $build"; flock 9; }
: >"$log"
for part in console debian torch cuda; do source "$root/runs/setup/$part.sh"; done

# What the last complete run settled on; sourced, so that this run can tell whether anything is left to do.
stamp=$build/.setup-stamp
done_kind='' done_torch='' done_python='' done_key=''
[[ ! -e $stamp ]] || source "$stamp"
if [[ -z $kind ]]; then
  if [[ -n $done_kind ]]; then
    kind=$done_kind
  elif nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    kind=cuda
  else
    kind=cpu
  fi
fi
need=$kind
[[ -z $need_python || $need == cuda ]] || need=python
key=$(cat "$root"/runs/setup.sh "$root"/runs/setup/*.sh - <<<"$kind ${cmake_args[*]:-} ${SWITCHYARD_TORCH:-}" | sha256sum | cut -c 1-32)

up_to_date() {
  [[ -z $force && -z $lint && $done_key == "$key" && -e $build/build.ninja && -e $done_torch/lib/libtorch_cpu.so ]] &&
    { [[ $need != python ]] || [[ -n $done_python ]]; }
}

configure() {
  local with_cuda=OFF
  [[ $kind != cuda ]] || with_cuda=ON
  # Another compiler, or another torch, leaves nothing of the old configuration that could be trusted.
  if [[ -n $done_key && ($done_kind != "$kind" || $done_torch != "$torch") ]]; then rm -f "$build/CMakeCache.txt"; fi
  [[ -z ${toolkit:-} ]] || export CUDA_PATH=$toolkit CUDAToolkit_ROOT=$toolkit
  [[ $kind != cuda ]] || export CUDACXX=$nvcc
  # Always: an earlier folder that cmake remembers may be gone.
  [[ $kind != cuda ]] || cmake_args=("-DSWITCHYARD_CUDNN_FRONTEND=${cudnn_frontend:-}" "${cmake_args[@]}")
  step "configuring ($kind)" cmake -G Ninja -S "$root" -B "$build" -DWITH_CUDA=$with_cuda -DSWITCHYARD_TORCH="$torch" "${cmake_args[@]}"
}

# Two GB a compiler: more of them than memory holds makes the machine swap or kill.
jobs() {
  local by_memory
  by_memory=$(awk '/MemAvailable/ {print int($2 / 2000000)}' /proc/meminfo)
  ((by_memory >= 1)) || by_memory=1
  echo $((by_memory < $(nproc) ? by_memory : $(nproc)))
}

if up_to_date; then
  torch=$done_torch
else
  packages=("${build_packages[@]}")
  [[ -z $lint ]] || packages+=("${lint_packages[@]}")
  install_debian_packages "${packages[@]}"
  [[ $(uname -m) != x86_64 ]] || grep -qm1 -w avx2 /proc/cpuinfo || die "this processor has no AVX2, which the CPU kernels are compiled for"
  command -v c++ >/dev/null || die "there is no C++ compiler; install g++"
  ensure_torch "$need"
  if [[ $kind == cuda ]]; then
    check_driver
    ensure_nvcc
    ensure_cudnn_frontend
  fi
  say "torch: $torch${nvcc:+, nvcc: $nvcc}"
  need_space "$build" 2000 "building"
  configure
  printf 'done_kind=%q done_torch=%q done_python=%q done_key=%q\n' "$kind" "$torch" "$torch_python" "$key" >"$stamp"
fi

((${#targets[@]})) || targets=(programs)
[[ -z $tests ]] || targets+=(all)
what="${targets[*]}"
step "building ${what// /, } in $build, ${JOBS:=$(jobs)} compilers at a time" ninja -C "$build" -j "$JOBS" "${targets[@]}"
if tail -n 1 "$log" | grep -q 'no work to do'; then say "up to date"; else say "built: $build/bin"; fi
