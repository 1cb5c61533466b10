#!/usr/bin/env bash
# All checks and measurements that need a GPU, in under 10 minutes. Results go to benchmarks/results/.
#
#   benchmarks/gpu.sh            PYTHON=python
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
"$PYTHON" -m pytest -m gpu -p no:cacheprovider tests
"$PYTHON" benchmarks/generation.py --device=cuda --presets='[b,l,xl,1.2b]'
