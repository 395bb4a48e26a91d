# A usable torch 2.11: found where one is installed, otherwise put into a virtual environment that all clones of this
# user share. Sourced by runs/setup.sh. Sets torch (the package's folder) and torch_python (an interpreter that imports
# it, or nothing).
torch_version=2.11.0
cache=${SWITCHYARD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/switchyard}

# usable_torch FOLDER cpu|cuda|python: version, headers, libraries, and that what the CPU library links to is there.
usable_torch() {
  local folder=$1 need=$2
  grep -qsE "^__version__ *= *'${torch_version//./\\.}(\+|')" "$folder/version.py" || return 1
  [[ -e $folder/lib/libtorch_cpu.so && -e $folder/include/ATen/ATen.h ]] || return 1
  if [[ $need != cpu ]]; then
    [[ -e $folder/lib/libtorch_cuda.so && -e $folder/../nvidia/nccl/include/nccl.h && -e $folder/../nvidia/cudnn ]] || return 1
  fi
  [[ $need != python || -d $folder/../safetensors ]] || return 1      # the parity tests read checkpoints
  ! ldd "$folder/lib/libtorch_cpu.so" 2>/dev/null | grep -q 'not found'
}

python_of() {      # the interpreter of the environment that holds a torch folder
  local root=${1%/lib/python3*}
  if [[ -x $root/bin/python3 ]]; then echo "$root/bin/python3"; else command -v python3; fi
}

system_torch() {
  python3 -c 'import importlib.util as u; s = u.find_spec("torch"); print(s.submodule_search_locations[0] if s else "")' 2>/dev/null || true
}

find_torch() {     # find_torch cpu|cuda|python
  local need=$1 folder
  if [[ -n ${SWITCHYARD_TORCH:-} ]]; then
    usable_torch "$SWITCHYARD_TORCH" "$need" ||
      die "SWITCHYARD_TORCH=$SWITCHYARD_TORCH is no usable torch $torch_version ($need); give the folder …/site-packages/torch, or unset it"
    torch=$SWITCHYARD_TORCH
    return 0
  fi
  # The one of the last build comes first: another would mean to configure anew.
  for folder in "${done_torch:-}" "$root"/.venv/lib/python3*/site-packages/torch "$(system_torch)" \
    "$cache"/torch-$torch_version-{cpu,cuda}/lib/python3*/site-packages/torch; do
    [[ -n $folder && -d $folder ]] || continue
    [[ $folder != "$cache"/* || -e ${folder%/lib/python3*}/complete ]] || continue
    if usable_torch "$folder" "$need"; then
      torch=$folder
      return 0
    fi
  done
  return 1
}

new_environment() {      # new_environment FOLDER PIP-ARGUMENTS…: all or nothing, told by the file `complete`
  local folder=$1
  shift
  rm -rf "$folder"
  python3 -m venv "$folder"
  PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 "$folder/bin/python3" -m pip install --no-cache-dir --no-compile "$@" || return 1
  touch "$folder/complete"
}

ensure_torch() {   # ensure_torch cpu|cuda|python
  local need=$1 folder
  mkdir -p "$cache" || die "cannot create $cache; set SWITCHYARD_CACHE to a folder that can be written"
  exec 8>"$cache/.lock"
  flock 8          # clones that are set up at the same time share one installation
  if ! find_torch "$need"; then
    local move="set SWITCHYARD_CACHE to a folder on a larger disk"
    if [[ $need == cpu ]]; then
      # The CPU library loads with these two; the rest of the package's 4 GB of CUDA libraries is left out.
      folder=$cache/torch-$torch_version-cpu
      need_space "$cache" 2500 "LibTorch (CPU)" "$move"
      step "LibTorch $torch_version into $folder (1.3 GB)" new_environment "$folder" \
        --no-deps torch==$torch_version nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85
    else
      folder=$cache/torch-$torch_version-cuda
      need_space "$cache" 8000 "LibTorch with CUDA" "$move"
      step "LibTorch $torch_version with CUDA into $folder (4.6 GB)" new_environment "$folder" torch==$torch_version numpy safetensors
    fi
    find_torch "$need" || die "the installed $folder is no usable torch $torch_version; remove that folder and try again"
  fi
  exec 8>&-
  torch_python=
  if usable_torch "$torch" python; then torch_python=$(python_of "$torch"); fi
}
