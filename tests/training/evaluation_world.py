"""The same run with evaluation and without, the former in two parts: what test_evaluation.py compares."""

import sys
from pathlib import Path

import torch
from test_tasks import make_tokens, text_tokenizer, tiny_net

from megavrc.checkpoint import read_weights
from megavrc.distributed import connect
from megavrc.files import read_lines_of_json, write_json
from megavrc.model import ConditionConfig, ModelConfig
from megavrc.tokenizers import OmniTokenizer
from megavrc.training.loop import train
from megavrc.training.tasks.vrc import VRCTask
from megavrc.training.tasks.vrc_config import EvaluationConfig, RunConfig, TokenDataConfig

ROOT = Path(sys.argv[1])


def config(name: str, evaluation: EvaluationConfig, steps: int) -> RunConfig:
    model = ModelConfig(frames=4, layers=1, condition=ConditionConfig(vocab=64))
    data = TokenDataConfig(str(ROOT / "video"), str(ROOT / "tokenizer.model"), str(ROOT / "omni"))
    config = RunConfig(run_dir=str(ROOT / name), stage="video", model=model, data=data, evaluation=evaluation)
    settings = {"steps": steps, "global_batch": 4, "micro_batch": 2, "log_every": 1, "preview_every": 0}
    for key, value in settings.items():
        setattr(config.train, key, value)
    config.preview.count, config.optimizer.warmup, config.optimizer.schedule = 0, 1, "constant"
    return config


tokenizer = OmniTokenizer(tiny_net())
tokenizer.save(ROOT / "omni")
make_tokens(ROOT / "video", 5, tokenizer.sha256)
text_tokenizer(ROOT)
on, off = EvaluationConfig(every=2, clips=4), EvaluationConfig()
with connect() as rank:
    for name, evaluation, steps in (("off", off, 4), ("on", on, 2), ("on", on, 4)):
        made = config(name, evaluation, steps)
        train(made, VRCTask(made), rank)
weights = [read_weights(ROOT / name)[0] for name in ("off", "on")]
lines = {name: read_lines_of_json(ROOT / name / "metrics.jsonl") for name in ("off", "on")}
same = all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
write_json(ROOT / "results.json", {"lines": lines, "same_weights": same})
