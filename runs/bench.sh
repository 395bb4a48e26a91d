#!/usr/bin/env bash
# This program and the PyTorch peer (benchmarks/peer_torch.py) alternately on this machine's GPU, as one table.
#   runs/bench.sh [CONFIG…]    whole steps: tokens/s, MFU, milliseconds, memory, start-up; default: moe_8x2
#   runs/bench.sh layer        the sparse layer alone in TFLOP/s; the shapes are those of `bench moe`
#   runs/bench.sh --checkpoint RUN [CONFIG]    whole steps from a run's last checkpoint, both on its real text
#   runs/bench.sh --imbalance 0.5 [CONFIG…]    whole steps of ours: experts unequally loaded against equally
# Options (--help): --rounds N (default 3), --json FILE, --bin FOLDER of built programs (default: build/bin, built where
# missing), …    SWITCHYARD_PYTHON: a Python with torch 2.11, default: that of the build, else python3.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin='' build=$root/build
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    -h | --help) exec python3 "$root/benchmarks/side_by_side.py" --help ;;
    --bin) next=$((i + 1)) bin=${!next:-} ;;
    --bin=*) bin=${!i#--bin=} ;;
  esac
done
nvidia-smi -L 2>/dev/null | grep -q '^GPU' || { echo "runs/bench.sh measures on a GPU, and none is visible here" >&2; exit 2; }
if [[ -z $bin ]]; then
  "$root/runs/setup.sh" --cuda --only train --only bench || exit
else
  build=$(dirname "$bin")
fi
python=${SWITCHYARD_PYTHON:-}
[[ -n $python || ! -e $build/.setup-stamp ]] || python=$(source "$build/.setup-stamp" && echo "$done_python")
exec "${python:-python3}" "$root/benchmarks/side_by_side.py" "$@"
