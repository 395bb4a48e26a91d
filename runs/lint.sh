#!/usr/bin/env bash
# Format and lint of our sources.   runs/lint.sh [--fix] [--tidy] [--build-dir DIR]
#   --fix   rewrites files to the format     --tidy   also runs clang-tidy on the folders without torch (minutes)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit
set -uo pipefail
fix='' tidy='' build=build
while (($#)); do
  case $1 in
    --fix) fix=1 ;;
    --tidy) tidy=1 ;;
    --build-dir) build=${2:?--build-dir needs a folder}; shift ;;
    *) sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}"; exit 2 ;;
  esac
  shift
done
tool() {      # version 14 first: another one formats differently
  local name
  for name in "$1-14" "$1"; do
    if command -v "$name" >/dev/null && "$name" --version | grep -q 'version 14\.'; then echo "$name"; return; fi
  done
  echo "$1 14 is not installed: run runs/setup.sh --lint-tools" >&2
  return 1
}

format=$(tool clang-format) || exit
mapfile -t files < <(git ls-files -- 'src/*.h' 'src/*.cpp' 'src/*.cu' 'src/*.cuh' 'tests/*.h' 'tests/*.cpp' 'tests/*.cu')
if [[ -n $fix ]]; then
  "$format" -i "${files[@]}"
  exit
fi
failed=0
"$format" --dry-run -Werror "${files[@]}" || { echo "format: fix with runs/lint.sh --fix" >&2; failed=1; }
long=$(git ls-files -- src tests | grep -E '\.(h|cpp|cu|cuh)$' | xargs wc -l | awk '$2 != "total" && $1 > 450 {print "  " $2 ": " $1 " lines"}')
[[ -z $long ]] || { printf 'files of more than 450 lines:\n%s\n' "$long" >&2; failed=1; }

if [[ -n $tidy ]]; then
  clang_tidy=$(tool clang-tidy) || exit
  [[ -e $build/compile_commands.json ]] || { echo "clang-tidy needs $build/compile_commands.json: run runs/setup.sh" >&2; exit 1; }
  # GCC's precompiled header is nothing clang reads, so the folders that use torch are left out. A file that passed is
  # not read again until it, a header or the settings change.
  passed=${SWITCHYARD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/switchyard}/tidy
  mkdir -p "$passed"
  settings=$(cat .clang-tidy src/base/*.h src/config/*.h src/data/*.h | sha256sum | cut -c 1-64)
  export clang_tidy build passed settings
  git ls-files -- 'src/base/*.cpp' 'src/config/*.cpp' 'src/data/*.cpp' | xargs -P "$(nproc)" -I{} bash -c '
    mark=$passed/$(sha256sum {} - <<<"$settings" | sha256sum | cut -c 1-32)
    [[ -e $mark ]] || { "$clang_tidy" -p "$build" --quiet --warnings-as-errors="*" {} 2> >(grep -v "warnings generated" >&2) && touch "$mark"; }' || failed=1
fi
((failed)) || echo "lint: ${#files[@]} files are clean"
exit $failed
