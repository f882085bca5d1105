#!/usr/bin/env bash
# Every measurement on a GPU, in one call: bash benchmarks/gpu/run.sh --out FOLDER --data cifar10.npz
set -euo pipefail
exec python3 "$(dirname "$0")/run.py" "$@"
