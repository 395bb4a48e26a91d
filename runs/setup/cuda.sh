# The CUDA compiler: an installed CUDA 13, otherwise the Python registry's nvcc laid out as a toolkit. Sourced by
# runs/setup.sh. Sets nvcc, and toolkit when it is ours; cudnn_frontend, where torch's environment lacks its headers.
cuda_version=13.0.2
cudnn_frontend_version=1.32.0

find_nvcc() {
  local candidate
  for candidate in "${CUDACXX:-}" "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" /usr/local/cuda-13.0/bin/nvcc "$(command -v nvcc || true)"; do
    if [[ -x $candidate ]] && "$candidate" --version | grep -q 'release 13\.'; then
      nvcc=$candidate
      return 0
    fi
  done
  return 1
}

# nvcc looks for its parts beside its own real place, so bin/ is a real folder of links; CMake looks for lib64 with
# unversioned names. The folder stays: programs carry its path.
lay_out_toolkit() {
  local packages=$1 folder=$2 library name
  rm -rf "$folder"
  mkdir -p "$folder/lib64"
  cp -as "$packages/bin" "$folder/bin"
  ln -s "$packages/nvvm" "$packages/include" "$folder/"
  ln -s lib64 "$folder/lib"
  for library in "$packages"/lib/*; do
    name=${library##*/}
    ln -sf "$library" "$folder/lib64/$name"
    [[ $name != *.so.* || -e $folder/lib64/${name%%.so.*}.so ]] || ln -s "$library" "$folder/lib64/${name%%.so.*}.so"
  done
}

ensure_nvcc() {
  find_nvcc && return 0
  local folder=$cache/cuda-$cuda_version
  toolkit=$folder/toolkit
  exec 8>"$cache/.lock"
  flock 8
  if [[ ! -e $folder/complete || ! -x $toolkit/bin/nvcc ]]; then
    need_space "$cache" 2000 "the CUDA compiler" "set SWITCHYARD_CACHE to a folder on a larger disk"
    step "CUDA compiler $cuda_version into $folder" new_environment "$folder" "cuda-toolkit[nvcc,crt,nvvm,cccl,cudart,nvrtc]==$cuda_version"
    lay_out_toolkit "$(echo "$folder"/lib/python3*/site-packages/nvidia/cu13)" "$toolkit"
  fi
  exec 8>&-
  nvcc=$toolkit/bin/nvcc
  "$nvcc" --version >/dev/null || die "the CUDA compiler in $folder does not run; remove that folder and try again"
}

# The headers of the package alone: the rest is Python, and cuDNN comes with torch. No header, no failure: torch has an
# attention of its own.
fetch_cudnn_frontend() {
  local folder=$1
  if new_environment "$folder.new" --no-deps --only-binary :all: "nvidia-cudnn-frontend==$cudnn_frontend_version"; then
    rm -rf "$folder"
    mkdir -p "$folder"
    mv "$folder.new"/lib/python3*/site-packages/include "$folder/include"
  fi
  rm -rf "$folder.new"
}

ensure_cudnn_frontend() {
  local folder=$cache/cudnn-frontend-$cudnn_frontend_version minor=${cudnn_frontend_version#*.}
  cudnn_frontend=
  [[ ${cmake_args[*]:-} != *SWITCHYARD_CUDNN_FRONTEND=* ]] || return 0
  # Where torch's environment holds that version cmake finds it, but it would find an older one as well.
  ! grep -qsx "#define CUDNN_FRONTEND_MINOR_VERSION ${minor%%.*}" "${torch%/torch}/include/cudnn_frontend_version.h" || return 0
  exec 8>"$cache/.lock"
  flock 8
  if [[ ! -e $folder/include/cudnn_frontend.h ]]; then
    need_space "$cache" 200 "cuDNN's frontend"
    step "headers of cuDNN's frontend $cudnn_frontend_version into $folder" fetch_cudnn_frontend "$folder"
  fi
  exec 8>&-
  if [[ -e $folder/include/cudnn_frontend.h ]]; then
    cudnn_frontend=$folder/include
  else
    say "without the headers of cuDNN's frontend: attention on GPUs will be torch's; later: runs/setup.sh --force"
  fi
}

# A driver older than the toolkit loads nothing of it: better said now than at the first kernel.
check_driver() {
  local supported
  command -v nvidia-smi >/dev/null || return 0
  supported=$(nvidia-smi 2>/dev/null | grep -oE 'CUDA Version: [0-9]+' | grep -oE '[0-9]+') || return 0
  ((supported >= 13)) || die "the GPU's driver knows CUDA $supported, this program needs 13; update the driver to 580 or later, or use --cpu"
}
