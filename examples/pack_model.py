"""Pack a converted folder small: matrices in bfloat16, no copies of code, which `load_folder` does not need."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from megavrc.config import command
from megavrc.files import sha256_file
from megavrc.generation.folder_format import read_config, read_tensors

KEPT = ("generation_config.json", "tokenizer.model")


def pack_model(model: Path, out: Path) -> None:
    """Pack a converted folder small: matrices in bfloat16, no copies of code.

    Args:
        model: folder written by megavrc convert_checkpoint to-hf.
        out: the new folder.
    """
    config, tensors = read_config(model), read_tensors(model)
    config.pop("auto_map", None)  # names files of code, which stay behind
    kept = {name: (model / name).read_bytes() for name in KEPT}
    out.mkdir(parents=True)
    small = {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() and tensor.dim() > 1 else tensor
        for name, tensor in tensors.items()
    }
    save_file(small, out / "model.safetensors", metadata={"format": "pt"})
    for name, content in kept.items():
        (out / name).write_bytes(content)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    sums = [f"{sha256_file(path)}  {path.name}\n" for path in sorted(out.iterdir())]
    (out / "SHA256SUMS").write_text("".join(sums))
    print(f"{out}: {sum(path.stat().st_size for path in out.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    command(pack_model)
