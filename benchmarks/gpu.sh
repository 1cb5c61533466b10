#!/usr/bin/env bash
# All checks and measurements that need a GPU, in about half an hour (the attention suite compiles many shapes). Results go to benchmarks/results/.
#
#   benchmarks/gpu.sh            PYTHON=python
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
"$PYTHON" -m pytest -m gpu -p no:cacheprovider tests
"$PYTHON" tools/benchmark.py attention --device=cuda --tune --json=benchmarks/results/attention-cuda.json
"$PYTHON" benchmarks/generation.py --device=cuda --presets='[b,l,xl,1.2b]'
"$PYTHON" tools/benchmark.py train --preset='[xl,1.2b]' --micro_batch='[1,8]' --precision=bf16 --json=benchmarks/results/train-cuda.json
