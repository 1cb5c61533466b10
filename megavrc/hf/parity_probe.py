"""A program of its own: load a folder with transformers where megavrc cannot be imported, and write what it computes.

    python -I parity_probe.py FOLDER EXCHANGE

reads EXCHANGE/given.safetensors and EXCHANGE/given.json and writes EXCHANGE/got.safetensors. Run by `parity_check.py`.
"""

import importlib.abc
import json
import sys
from pathlib import Path
from typing import Any


class _NoMegavrc(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] == "megavrc":
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def main(folder: str, exchange: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    spec = json.loads((exchange / "given.json").read_text())
    given = load_file(exchange / "given.safetensors")
    torch.set_num_threads(spec["threads"])
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "vrc"
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype="auto").eval()
    condition = (given["condition"], given["real"]) if "real" in given else given["condition"]
    got: dict[str, torch.Tensor] = {}
    source: dict[str, Any] = {"condition": condition}
    if spec["prompts"]:
        source = {"prompt": spec["prompts"]}
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        got["text"] = tokenizer(spec["prompts"], padding="max_length", return_tensors="pt")["input_ids"]
    elif spec["labels"]:
        source = {"label": spec["labels"]}
    frames: list[torch.Tensor] = []
    options = spec["sampling"] | {"seed": spec["seeds"], "clip": given.get("clip")}
    got["pixels"] = model.generate_video(**source, **options, on_frame=lambda _, ids: frames.append(ids))
    got["generated"] = torch.stack(frames, dim=1)
    with torch.no_grad():  # after that, since it stores matrices anew
        got |= dict(model(given["ids"], condition))
    save_file({name: value.clone() for name, value in got.items()}, exchange / "got.safetensors")


if __name__ == "__main__":
    sys.meta_path.insert(0, _NoMegavrc())
    main(sys.argv[1], Path(sys.argv[2]))
