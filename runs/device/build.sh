#!/usr/bin/env bash
# Builds everything with CUDA on a GPU machine whose python3 has torch 2.11, without installing anything.
# Usage: runs/device/build.sh [BUILD_FOLDER] [TARGET…]      SWITCHYARD_CUDNN_FRONTEND: folder of cudnn_frontend.h
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build-cuda}
shift || true
torch=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))')
cmake -G Ninja -S . -B "$build" -DWITH_CUDA=ON -DSWITCHYARD_TORCH="$torch" \
  ${SWITCHYARD_CUDNN_FRONTEND:+-DSWITCHYARD_CUDNN_FRONTEND="$SWITCHYARD_CUDNN_FRONTEND"} > "$build.configure.log" 2>&1 || { tail -40 "$build.configure.log"; exit 1; }
ninja -C "$build" "$@" > "$build.log" 2>&1 || { grep -E -A8 'error:|FAILED' "$build.log" | head -60; exit 1; }
echo "built in $SECONDS s"
