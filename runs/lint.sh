#!/usr/bin/env bash
# Format and lint of our sources.   runs/lint.sh [--fix] [--tidy]
#   --fix   rewrites files to the format     --tidy   also runs clang-tidy on the folders without torch (minutes)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit
set -uo pipefail
fix='' tidy=''
for option; do
  case $option in
    --fix) fix=1 ;;
    --tidy) tidy=1 ;;
    *) sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}"; exit 2 ;;
  esac
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
  [[ -e build/compile_commands.json ]] || { echo "clang-tidy needs build/compile_commands.json: run runs/setup.sh" >&2; exit 1; }
  # GCC's precompiled header is nothing clang reads, so the folders that use torch are left out.
  mapfile -t plain < <(git ls-files -- 'src/base/*.cpp' 'src/config/*.cpp' 'src/data/*.cpp')
  printf '%s\n' "${plain[@]}" | xargs -P "$(nproc)" -n 4 "$clang_tidy" -p build --quiet --warnings-as-errors='*' || failed=1
fi
((failed)) || echo "lint: ${#files[@]} files are clean"
exit $failed
