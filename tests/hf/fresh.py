"""Everything that a user of transformers does with a folder, in a process without megavrc.

Run by test_transformers.py, and by test_versions.py with the oldest transformers that is supported.
"""

import json
import operator
import os
import shutil
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, GenerationConfig

sys.modules["megavrc"] = None  # type: ignore[assignment]  # importing it fails
torch.set_num_threads(1)
print("transformers", transformers.__version__)
folder, out = sys.argv[1], Path(sys.argv[2])
prompts = ["a red square moves left", "a blue dog"]

assert AutoConfig.from_pretrained(folder, trust_remote_code=True).vrc["grid"] == 4
assert GenerationConfig.from_pretrained(folder).first_temperature == 0.7
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert not model.training
results = {
    "default": model.generate_video(prompts, seed=5),
    "cold": model.generate_video(
        prompts, seed=[5, 9], temperature=0.0, guidance=2.0, later_temperature=1.0, output="ids"
    ),
    "one": model.generate_video(prompts[0], seed=5, frames=9),
}
first = results["default"][:, 0]
results["image"] = model.generate_video(prompts, seed=5, first_frame=first)
results["clip"] = model.generate_video(prompts, seed=5, clip=results["default"][:, :5])
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
results["text"] = tokenizer(prompts, padding="max_length", return_tensors="pt")["input_ids"]

# Saved again by transformers, and loaded from there, code and tokenizer included.
model.save_pretrained(out / "again")
again = AutoModel.from_pretrained(out / "again", trust_remote_code=True)
state = model.state_dict()
assert again.state_dict().keys() == state.keys()
assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
assert torch.equal(again.generate_video(prompts, seed=5), results["default"])

# Half precision: batch norms and the video tokenizer stay float32, whole batches equal single clips in shape.
norms = {name for name in state if ".compressor.net.1." in name or ".decompressor.net.1." in name}
floats = {name for name in state if state[name].is_floating_point()}
for name, dtype, cast in (("bfloat16", torch.bfloat16, "bfloat16"), ("float16", torch.float16, "half")):
    half = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=dtype)
    wide = {name for name, tensor in half.state_dict().items() if tensor.dtype == torch.float32}
    assert wide == norms | {name for name in floats if name.startswith("video_tokenizer.")}
    assert half.vrc.head.weight.dtype == dtype
    results[name] = half.generate_video(prompts, seed=5)
    half.save_pretrained(out / name)
    saved = AutoModel.from_pretrained(out / name, trust_remote_code=True, dtype="auto")
    assert saved.vrc.head.weight.dtype == dtype
    assert torch.equal(saved.generate_video(prompts, seed=5), results[name])
    for convert in (lambda model, dtype=dtype: model.to(dtype), operator.methodcaller(cast)):
        narrow = convert(AutoModel.from_pretrained(folder, trust_remote_code=True))
        assert all(torch.equal(tensor, half.state_dict()[key]) for key, tensor in narrow.state_dict().items())
        assert {key for key, tensor in narrow.state_dict().items() if tensor.dtype == torch.float32} == wide
    long = narrow.generate_video(prompts, seed=5, first_frame=first, frames=21)
    assert torch.equal(long[:, 0], results["image"][:, 0])  # the first frame encoded and decoded

# A revision on a hub that is no longer its newest: everything is of that revision.
hub = Path(os.environ["HF_HOME"]) / "hub" / "models--me--vrc"
old, new = "0" * 39 + "1", "0" * 39 + "2"
shutil.copytree(folder, hub / "snapshots" / old)
sampling = json.loads((Path(folder) / "generation_config.json").read_text())
for path in shutil.copytree(folder, hub / "snapshots" / new).iterdir():
    if path.name.startswith("tokenizer"):
        path.unlink()
(hub / "snapshots" / new / "generation_config.json").write_text(json.dumps(sampling | {"top_k": 1}))
(hub / "refs").mkdir()
(hub / "refs" / "main").write_text(new)
(hub / "refs" / "v1").write_text(old)
for revision in (old, "v1"):
    pinned = AutoModel.from_pretrained("me/vrc", revision=revision, trust_remote_code=True)
    assert torch.equal(pinned.generate_video(prompts, seed=5), results["default"])
pinned.save_pretrained(out / "pinned")
assert json.loads((out / "pinned" / "generation_config.json").read_text()) == sampling
assert AutoModel.from_pretrained("me/vrc", trust_remote_code=True).sampling_defaults["top_k"] == 1

placed = AutoModel.from_pretrained(folder, trust_remote_code=True, device_map={"": "cpu"})
assert torch.equal(placed.generate_video(prompts, seed=5), results["default"])
save_file({name: tensor.clone() for name, tensor in results.items()}, out / "results.safetensors")
