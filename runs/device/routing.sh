#!/usr/bin/env bash
# All that routing has to prove on a GPU, a part after the other, each within its time; a part that fails does not stop
# the others. Ends with a line a part, and with 1 where one failed.
#   runs/device/routing.sh BIN OUT [--older BIN] [PART…]
#     kernels   every kernel against the host (kernel_check)           200 s
#     ops       routing's kernels against their floors (bench ops)     200 s
#     layer     the sparse layer without its products, and what each optional feature adds (bench routing)   300 s
#     replay    replayed steps against eager ones (tests/gpu/replay.sh)                                      420 s
#     off       with --older: whole moe_8x2 steps of that build and of BIN in turn; unused features cost nothing   500 s
# BIN is a build's folder of programs, kernel_check in ../tests beside it. All output is kept in OUT; default: every part.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
usage() { echo "routing.sh: $1" >&2; sed -n '4,10s/^# //p' "$0" >&2; exit 2; }
older='' names=() all=(kernels ops layer replay off)
while (($#)); do
  case $1 in
    --older) older=${2:?--older needs a folder of programs}; shift ;;
    -*) usage "unknown option '$1'" ;;
    *) names+=("$1") ;;
  esac
  shift
done
((${#names[@]} >= 2)) || usage "it takes a folder of programs and a folder for results"
bin=$(cd "${names[0]}" && pwd) || exit 2
mkdir -p "${names[1]}" && out=$(cd "${names[1]}" && pwd) || exit 2
[[ -z $older ]] || older=$(cd "$older" && pwd) || exit 2
parts=("${names[@]:2}")
for part in "${parts[@]}"; do [[ " ${all[*]} " == *" $part "* ]] || usage "there is no part '$part'"; done
if ((${#parts[@]} == 0)); then
  parts=("${all[@]}")
  [[ -n $older ]] || parts=(kernels ops layer replay)
fi

summary=() failed=0
# part NAME SECONDS FILTER COMMAND…: runs it, all output into OUT/NAME.txt, and shows what FILTER lets through
part() {
  local name=$1 limit=$2 filter=$3 code start=$SECONDS
  shift 3
  [[ " ${parts[*]} " == *" $name "* ]] || return 0
  printf '\n== %s\n' "$name"
  if [[ $1 == "$bin"* && ! -x $1 ]]; then
    echo "$1 is not built"
    summary+=("$name: FAILED, $1 is not built")
    failed=1
    return
  fi
  timeout --kill-after=20 "$limit" "$@" 2>&1 | tee "$out/$name.txt" | grep --line-buffered -E "$filter"
  code=${PIPESTATUS[0]}
  case $code in
    0) summary+=("$name: passed in $((SECONDS - start)) s") ;;
    77) summary+=("$name: $(tail -n 1 "$out/$name.txt")") ;;      # "skipped: …"
    124 | 137) summary+=("$name: stopped after $limit s"); failed=1 ;;
    *) summary+=("$name: FAILED with code $code"); tail -n 5 "$out/$name.txt"; failed=1 ;;
  esac
}

routing='router|dispatch|values_to_rows|permute_rows|combine|noise|proposals|dropout'
part kernels 200 "^FAILED|^kernel |failed$|^skipped|$routing" "$bin/../tests/kernel_check"
part ops 200 "^floors|^kernel|$routing" "$bin/bench" ops --json "$out/ops.json"
part layer 300 '.' "$bin/bench" routing --json "$out/layer.json"
part replay 420 '.' env SWITCHYARD_BIN="$bin" SWITCHYARD_TEST_DATA="$out/test-data" bash tests/gpu/replay.sh
part off 500 '.' bash runs/device/two_builds.sh "${older:-missing}" "$bin" "$out/off"

printf '\n'
printf '%s\n' "${summary[@]}"
exit $failed
