#!/usr/bin/env bash
# Token shards from the sources a machine already holds: every .py, .h, .cpp and .md of the Python environment that has
# torch, and the system's headers. About 170M tokens where the environment is large; for runs longer than an epoch of the
# default corpus.
usage() {
  cat <<'TEXT'
data/python_env.sh [OUT] [TOKENIZE-OPTION…]     default OUT: data/cache/python_env
  data/python_env.sh                                         vocabulary 32768
  data/python_env.sh /data/env --vocab_size 16384 --holdout 0.01
OUT/sources.txt lists the files, OUT/manifest.sha256 their hashes (sha256sum --check tells what changed since).
Then train with --data.corpus OUT.
Environment: SWITCHYARD_PYTHON (default: the python3 beside the torch that was built with, else python3), TOKENIZE
(default build/bin/tokenize), ROOTS (folders to gather instead), JOBS (default: all cores).
TEXT
}
set -euo pipefail
[[ ${1:-} != -h && ${1:-} != --help ]] || { usage; exit 0; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$root/data/cache/python_env
if [[ $# -gt 0 && $1 != --* ]]; then out=$1; shift; fi
tokenize=${TOKENIZE:-$root/build/bin/tokenize}
jobs=${JOBS:-$(nproc)}
die() { echo "python_env.sh: $1" >&2; exit 1; }
[[ -x $tokenize ]] || die "$tokenize is missing; run runs/setup.sh, or name it with TOKENIZE"

# The folder of the torch package is two below the environment's own; a plain python3 knows its own folders.
python=${SWITCHYARD_PYTHON:-}
torch=$(sed -n 's/^SWITCHYARD_TORCH:[A-Z]*=//p' "$root/build/CMakeCache.txt" 2>/dev/null || true)
[[ -n $python || -z $torch ]] || python=$(realpath -m "$torch/../../../../bin/python3")
[[ -x $python ]] || python=$(command -v "${SWITCHYARD_PYTHON:-python3}") || die "there is no python3; name one with SWITCHYARD_PYTHON"
if [[ -z ${ROOTS:-} ]]; then
  ROOTS=$("$python" -c 'import sysconfig; p = sysconfig.get_paths(); print(*dict.fromkeys((p["stdlib"], p["purelib"], p["platlib"])))')
  ROOTS+=" /usr/include"
fi
"$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' ||
  echo "python_env.sh: $python has no torch; its environment may be small (name another with SWITCHYARD_PYTHON)" >&2

mkdir -p "$out"
work=$(mktemp -d "$out/.gather.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "gathering sources below: $ROOTS"
# Empty files hold nothing; those above 4 MiB are tables, not text people wrote.
# shellcheck disable=SC2086  # ROOTS is a list of folders
find $ROOTS -xdev -name __pycache__ -prune -o -type f \( -name '*.py' -o -name '*.h' -o -name '*.cpp' -o -name '*.md' \) \
  -size +0 -size -4097k ! -name '*[,\\]*' -print0 2>/dev/null >"$work/found" || true
LC_ALL=C sort -zu "$work/found" | xargs -0 -r -n 256 -P "$jobs" sha256sum 2>/dev/null >"$work/hashes" || true
[[ -s $work/hashes ]] || die "no .py, .h, .cpp or .md below $ROOTS"
# Packages carry copies of each other: of equal files one stays, or held-out text would also be trained on.
LC_ALL=C sort -k 2 "$work/hashes" | awk '!seen[$1]++' >"$out/manifest.sha256"
cut -c 67- "$out/manifest.sha256" >"$out/sources.txt"
echo "$(wc -l <"$work/hashes") files, $(wc -l <"$out/sources.txt") after leaving out copies"

"$tokenize" --input "@$out/sources.txt" --out "$out" "$@"
