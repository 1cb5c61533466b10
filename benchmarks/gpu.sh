#!/usr/bin/env bash
# All checks and measurements that need a GPU, meant to take under 10 minutes on an H200. Results go to benchmarks/results/.
# A step that fails does not stop the others; they are named at the end, and the exit code is 1.
#
#   benchmarks/gpu.sh                        PYTHON=python
#   benchmarks/gpu.sh tests attention        only these: tests attention generate train tune
#
# On a machine that has torch with CUDA, transformers and little more, without a network: bring these 49 MB, made where there is one
# (3.12: that machine's Python; .venv: the project's), install them there; its torch, triton, numpy and transformers stay as they are.
#   .venv/bin/pip download -d wheels --no-deps --only-binary=:all: --python-version 3.12 jsonargparse typeshed-client docstring-parser \
#       'av<19' 'webdataset<2' braceexpand 'sentencepiece<0.3' 'protobuf<8' hjson msgpack ninja psutil py-cpuinfo einops pytest pluggy \
#       iniconfig hypothesis sortedcontainers pillow
#   .venv/bin/pip wheel -w wheels --no-deps --no-build-isolation deepspeed
#   python -m pip install --no-index --no-deps wheels/*.whl
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} # megavrc need not be installed
PARTS=" ${*:-tests attention generate train tune} "
FAILED=()
for part in $PARTS; do
    case $part in tests | attention | generate | train | tune) ;; *) echo "no such part: $part" >&2; exit 2 ;; esac
done

step() { # PART NAME COMMAND..: run a command if its part is wanted
    local part=$1 name=$2
    shift 2
    [[ $PARTS == *" $part "* ]] || return 0
    echo "== $name"
    "$@" || FAILED+=("$name")
}

generate() { # NAME OPTIONS..
    step generate "generate $1" "$PYTHON" tools/benchmark.py generate --device cuda --dtype bfloat16 --repeats 2 \
        --json "benchmarks/results/generate-$1-cuda.json" "${@:2}"
}

step tests "tests" "$PYTHON" -m pytest -m gpu -p no:cacheprovider tests/model/test_cuda.py
step attention "attention" "$PYTHON" tools/benchmark.py attention --device cuda --json benchmarks/results/attention-cuda.json
generate l --preset l --speculative 16
generate b --preset b --variants vrc-4 token row --transformers false
generate xl --preset xl --variants vrc-4 row --transformers false
generate 1.2b --preset 1.2b --variants vrc-4 row --transformers false
generate l-batch --preset l --variants vrc-4 --batch 16 64 --transformers false
# Its `planned` beside `memory` is the check of tools/plan_run.py's estimate.
step train "train" "$PYTHON" tools/benchmark.py train --preset xl 1.2b --micro_batch 1 8 --precision bf16 \
    --json benchmarks/results/train-cuda.json
# The search compiles 48 kernels.
step tune "attention with searched tiles" "$PYTHON" tools/benchmark.py attention --device cuda --tune --shapes '[8,12]' '[8,32]' \
    --backends flex triton --json benchmarks/results/attention-tuned-cuda.json

if ((${#FAILED[@]})); then
    printf 'FAILED: %s\n' "${FAILED[@]}"
    exit 1
fi
