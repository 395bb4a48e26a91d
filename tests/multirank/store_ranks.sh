#!/bin/sh
# store_ranks.sh BINARY RANKS: starts the ranks one by one with the variables of a launcher without MPI; all must succeed.
binary=$1 ranks=$2
export MASTER_ADDR=127.0.0.1 WORLD_SIZE="$ranks"
MASTER_PORT=$((20000 + $$ % 20000))
export MASTER_PORT
pids=""
rank=0
while [ "$rank" -lt "$ranks" ]; do
  RANK=$rank LOCAL_RANK=$rank timeout 60 "$binary" control &
  pids="$pids $!"
  rank=$((rank + 1))
done
for pid in $pids; do
  wait "$pid" || { echo "FAILED: a rank ended with an error"; exit 1; }
done
echo passed
