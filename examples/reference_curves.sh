#!/usr/bin/env bash
# Three short trainings whose loss curves are in docs/curves/, in about a minute and a half on one core.
#
#   OUT=runs/curves SEED=0 PYTHON=python bash examples/reference_curves.sh
#   megavrc compare_runs docs/curves/short_stage2.jsonl runs/curves/stage2 --tolerance=0.02 --keys loss
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/curves} SEED=${SEED:-0} PYTHON=${PYTHON:-python}
export OMP_NUM_THREADS=1 # sums then are taken in the same order

SHORT=(--seed="$SEED" --train.steps=100 --train.log_every=5 --optimizer.warmup=10)
CONFIGS=pretrain/configs

"$PYTHON" tools/make_shapes.py --out="$OUT/data" --clips=96 --val=0 --seed="$SEED"
"$PYTHON" pretrain/pretrain_tokenizer.py --config=$CONFIGS/demo_tokenizer.yaml --run_dir="$OUT/tokenizer" \
    --data.path="$OUT/data/manifest.jsonl" "${SHORT[@]}" --train.micro_batch=4 \
    --data.frames_schedule='{0: 9, 50: 17}' --objective.warmup_steps=20
"$PYTHON" tools/tokenize_videos.py all --manifest="$OUT/data/manifest.jsonl" --tokenizer="$OUT/tokenizer/model" \
    --out="$OUT/tokens" --size=64 --clips_per_shard=96 --workers=1
"$PYTHON" tools/train_text_tokenizer.py --captions="$OUT/data/manifest.jsonl" --out="$OUT/text/tokenizer.model" --vocab=128
for stage in 1:image 2:video; do
    first=()
    if [ "$stage" = 2:video ]; then first=(--init_from="$OUT/stage1"); fi
    "$PYTHON" pretrain/pretrain_vrc.py --config=$CONFIGS/demo_${stage#*:}.yaml --run_dir="$OUT/stage${stage%:*}" \
        --data.path="$OUT/tokens/${stage#*:}" --data.text_tokenizer="$OUT/text/tokenizer.model" \
        --data.video_tokenizer="$OUT/tokenizer/model" "${first[@]}" "${SHORT[@]}" --train.micro_batch=8
done
