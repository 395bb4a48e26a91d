#!/usr/bin/env bash
# runs/multinode.sh on this machine alone, as two of its ranks, as far as --dry-run goes: no ssh is needed for that. Then
# what it says of a host file that cannot work.
source "$(dirname "${BASH_SOURCE[0]}")/../testing.sh"
root=$(cd "$here/.." && pwd)
command -v mpirun >/dev/null || skip "mpirun is not installed"
[[ $bin -ef $root/build/bin ]] || skip "multinode.sh runs the programs of build/bin, this test is of $bin"
export OMPI_MCA_rmaps_base_oversubscribe=1

echo 'localhost slots=2   # both here' >hosts
"$root/runs/multinode.sh" hosts --config tiny_moe --dry-run >log 2>&1 || fail "it ended with code $?" log
grep -qE '^2 ranks on 1 machines, commit [0-9a-f]+$' log || fail "it does not say what runs where" log
[[ $(grep -c '^would train 20 steps .* on 2 ranks' log) -eq 1 ]] || fail "two ranks do not tell once what they would train" log
passed "two ranks on localhost, without ssh"

refused() {
  printf '%s\n' "$1" >hosts
  "$root/runs/multinode.sh" hosts --config tiny_moe --dry-run >log 2>&1 && fail "it took the host file: $1" log
  grep -qF -- "$2" log || fail "nothing says: $2" log
}
refused '# nothing' 'names no machine; write a line like: gpu1 slots=8'
refused 'localhost' "says not how many ranks; write: localhost slots=8"
passed "host files that cannot work are explained"
