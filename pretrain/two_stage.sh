#!/usr/bin/env bash
# From tokenized clips to a converted model: text tokenizer, stage 1, stage 2, conversion.
# A part that is finished is skipped, so after any interruption the same command goes on. Settings are variables:
#
#   RUN=runs/demo             where everything is: $RUN/{text,tokens,stage1,stage2,hf}
#   IMAGE_CONFIG VIDEO_CONFIG configurations of the stages        IMAGE_OPTIONS VIDEO_OPTIONS  more options for them
#   CAPTIONS                  manifest.jsonl or .txt to train the text tokenizer on, if the model learns text embeddings
#   TEXT_VOCAB=128            its size, at most model.condition.vocab of the configurations
#   VIDEO_TOKENIZER           folder or checkpoint of the video tokenizer
#   NPROC=2                   processes on this machine           LAUNCH  the whole launcher, e.g. "srun", "mpirun -n 8",
#                             "torchrun --nproc-per-node=8" or "deepspeed --num_gpus=8"
#   PYTHON=python
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 0 ;; esac

PYTHON=${PYTHON:-python}
RUN=${RUN:-runs/demo}
IMAGE_CONFIG=${IMAGE_CONFIG:-pretrain/configs/demo_image.yaml}
VIDEO_CONFIG=${VIDEO_CONFIG:-pretrain/configs/demo_video.yaml}
VIDEO_TOKENIZER=${VIDEO_TOKENIZER:-$RUN/tokenizer/model}
CAPTIONS=${CAPTIONS:-$RUN/data/manifest.jsonl}
TEXT=$RUN/text/tokenizer.model
own=("$PYTHON" -m megavrc.distributed.torchrun --standalone --nproc-per-node="${NPROC:-2}")
if ! command -v nvidia-smi > /dev/null; then
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # one thread a process, or the processes fight for the cores
fi

stage() { # NAME CONFIG OPTIONS...
    local name=$1 config=$2
    shift 2
    if [ -f "$RUN/$name/complete.json" ]; then
        echo "$RUN/$name: complete"
        return
    fi
    local words=("${own[@]}")
    if [ -n "${LAUNCH:-}" ]; then
        read -ra words <<< "$LAUNCH"
        case "${words[0]##*/} $LAUNCH" in
            torchrun\ * | deepspeed\ * | *torch.distributed.run* | *megavrc.distributed.torchrun*) ;; # they start python themselves
            *) words+=("$PYTHON") ;;
        esac
    fi
    "${words[@]}" pretrain/pretrain_vrc.py --config="$config" --run_dir="$RUN/$name" \
        --data.video_tokenizer="$VIDEO_TOKENIZER" "$@"
    if [ ! -f "$RUN/$name/complete.json" ]; then
        echo "$RUN/$name: stopped before its end; run this again to go on" >&2
        exit 1
    fi
}

eval "image_options=(${IMAGE_OPTIONS:-})"
eval "video_options=(${VIDEO_OPTIONS:-})"
# What the model of stage 1 is conditioned on: a text tokenizer is for those that learn text embeddings.
condition=$("$PYTHON" -c '
import sys
from megavrc.config import load_config, run_command
from megavrc.training.tasks.vrc_config import RunConfig

def show():
    condition = load_config(RunConfig).model.condition
    print(condition.kind, condition.text)

sys.exit(run_command(show, []))
' --config="$IMAGE_CONFIG" --run_dir="$RUN/stage1" --data.path="$RUN/tokens/image" --data.text_tokenizer="$TEXT" \
    "${image_options[@]}")

text=() convert=()
if [ "$condition" = "text learned" ] && { [ -f "$CAPTIONS" ] || [ -f "$TEXT" ]; }; then
    if [ -f "$TEXT" ]; then
        echo "$TEXT: already there"
    else
        "$PYTHON" tools/train_text_tokenizer.py --captions="$CAPTIONS" --out="$TEXT" --vocab="${TEXT_VOCAB:-128}"
    fi
    text=(--data.text_tokenizer="$TEXT") convert=(--text_tokenizer="$TEXT")
fi
stage stage1 "$IMAGE_CONFIG" --data.path="$RUN/tokens/image" "${text[@]}" "${image_options[@]}"
stage stage2 "$VIDEO_CONFIG" --data.path="$RUN/tokens/video" --init_from="$RUN/stage1" "${text[@]}" "${video_options[@]}"
if [ -f "$RUN/hf/config.json" ]; then
    echo "$RUN/hf: already there"
else
    "$PYTHON" tools/convert_checkpoint.py to-hf --run="$RUN/stage2" --video_tokenizer="$VIDEO_TOKENIZER" \
        "${convert[@]}" --out="$RUN/hf"
fi
