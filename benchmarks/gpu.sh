#!/usr/bin/env bash
# All checks and measurements that need a GPU, meant to take under 10 minutes on an H200. Results go to benchmarks/results/.
#
#   benchmarks/gpu.sh            PYTHON=python
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
"$PYTHON" -m pytest -m gpu -p no:cacheprovider tests
"$PYTHON" tools/benchmark.py attention --device=cuda --json=benchmarks/results/attention-cuda.json
for preset in b l xl 1.2b; do
    "$PYTHON" tools/benchmark.py generate --device cuda --dtype bfloat16 --preset "$preset" --variants '[vrc-4,token,row]' \
        --transformers false --json "benchmarks/results/generate-$preset-cuda.json"
done
"$PYTHON" tools/benchmark.py generate --device cuda --dtype bfloat16 --preset l --variants '[vrc-4]' --batch 64 \
    --transformers false --json benchmarks/results/generate-l-64-cuda.json
# Its planned_GiB beside memory_GiB is the check of tools/plan_run.py's estimate.
"$PYTHON" tools/benchmark.py train --preset='[xl,1.2b]' --micro_batch='[1,8]' --precision=bf16 --json=benchmarks/results/train-cuda.json
