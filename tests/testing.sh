# What the test scripts share. Sourced first; leaves the script in an empty folder of its own, deleted at its end.
#   SWITCHYARD_BIN         folder of train, sample and evaluate (required)
#   SWITCHYARD_TEST_DATA   where the text and its tokens are kept between tests; default: beside SWITCHYARD_BIN
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export SWITCHYARD_ROOT=$here/..
bin=$(cd "${SWITCHYARD_BIN:?the folder of the programs is missing}" && pwd) || exit 1
# Two threads, since one would hide what depends on their order. Tests share cores with each other: a thread that spins
# while it waits keeps the one it waits for from running.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

skip() { echo "skipped: $*"; exit 77; }
passed() { echo "passed: $*"; }
# fail MESSAGE [LOG]: ends the test, with the end of what the program wrote
fail() {
  echo "FAILED: $1"
  [[ $# -lt 2 ]] || tail -n 15 "$2"
  exit 1
}
command -v python3 >/dev/null || skip "python3 is not installed"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1

# The same text on every machine, cut by a tokenizer that is part of the tree: nothing here depends on a library's version.
data=${SWITCHYARD_TEST_DATA:-$(dirname "$bin")/test-data}
mkdir -p "$data"
(
  flock 9
  [[ -d $data/text ]] || { python3 "$here/golden/make_text.py" "$data/text.partial" && mv "$data/text.partial" "$data/text"; }
) 9>"$data/text.lock" || fail "the text could not be made"
text=(--data.corpus "$data/text" --data.tokenizer "$here/golden/tokenizer.model" --data.cache "$data/cache" --data.holdout_fraction 0.1)

# train RUN ARGUMENT…: trains into the folder RUN, output to RUN.log (a resume's is added); returns the exit code.
train() { "$bin/train" "${text[@]}" --train.out "$work/$1" "${@:2}" >>"$1.log" 2>&1; }
must_train() { train "$@" || fail "training $1 ended with code $?" "$1.log"; }
metrics() { python3 "$here/metrics.py" "$@"; }

# same_run A B: two run folders tell of the same steps, in every figure but the time they took, and end in the same bits.
same_run() {
  diff <(metrics comparable "$1/metrics.jsonl") <(metrics comparable "$2/metrics.jsonl") >difference ||
    fail "$2 does not tell the same as $1" difference
  local last
  last=$(newest_checkpoint "$1")
  for file in weights.safetensors optimizer.safetensors routing.safetensors; do
    [[ -e $1/checkpoints/$last/$file || -e $2/checkpoints/$last/$file ]] || continue  # a run may keep nothing of routing
    cmp "$1/checkpoints/$last/$file" "$2/checkpoints/$last/$file" || fail "$file of $2 is not that of $1"
  done
}
newest_checkpoint() { (cd "$1/checkpoints" && printf '%s\n' step-* | tail -n 1); }

# wait_for_step RUN STEP PID: until the run has logged that step; fails when it ends before.
wait_for_step() {
  until [[ -s $1/metrics.jsonl && $(metrics last_step "$1/metrics.jsonl") -ge $2 ]]; do
    kill -0 "$3" 2>/dev/null || fail "$1 ended before step $2" "$1.log"
    sleep 0.05
  done
}
