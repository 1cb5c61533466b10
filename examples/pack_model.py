"""Pack a converted folder small: matrices in bfloat16, no copies of code, which `load_folder` does not need."""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from megavrc.files import sha256_file

KEPT = ("config.json", "generation_config.json", "tokenizer.model")

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", type=Path, help="folder written by megavrc convert_checkpoint to-hf")
parser.add_argument("out", type=Path, help="the new folder")
options = parser.parse_args()

options.out.mkdir(parents=True)
tensors = load_file(options.model / "model.safetensors")
small = {
    name: tensor.to(torch.bfloat16) if tensor.is_floating_point() and tensor.dim() > 1 else tensor
    for name, tensor in tensors.items()
}
save_file(small, options.out / "model.safetensors", metadata={"format": "pt"})
for name in KEPT:
    (options.out / name).write_bytes((options.model / name).read_bytes())
config = json.loads((options.out / "config.json").read_text())
config.pop("auto_map", None)  # names files of code, which stay behind
(options.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
sums = [f"{sha256_file(path)}  {path.name}\n" for path in sorted(options.out.iterdir())]
(options.out / "SHA256SUMS").write_text("".join(sums))
print(f"{options.out}: {sum(path.stat().st_size for path in options.out.iterdir()) / 1e6:.2f} MB")
