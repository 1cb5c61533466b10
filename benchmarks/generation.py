"""Seconds per clip of VRC and of its token-by-token baseline, fresh weights, one engine, taking turns."""

import platform
from pathlib import Path
from typing import Literal

import torch

from megavrc.config import command, write_json
from megavrc.evaluation.speed import seconds_per_clip
from megavrc.model import VRC, ConditionConfig, ModelConfig, SamplingSettings, generate

Preset = Literal["debug", "b", "l", "xl", "1.2b"]


def main(
    presets: list[Preset] | None = None,
    device: str = "cpu",
    repeats: int = 5,
    guidance: float = 1.0,
    out: Path | None = None,
) -> None:
    """Time the generation of one clip at batch 1, tokens only, and write JSON.

    Args:
        presets: model sizes (default: debug).
        device: cpu or cuda; on cuda the weights are bf16.
        repeats: timed clips of each model, at least 5.
        guidance: classifier-free guidance; 1 is none.
        out: JSON file (default: benchmarks/results/generation-DEVICE.json).
    """
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    synchronise = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    results = {}
    for preset in presets or ["debug"]:
        makers = {}
        for prediction in ("segment", "token"):
            condition = ConditionConfig(kind="class", classes=101)
            config = ModelConfig(preset=preset, condition=condition, prediction=prediction)  # type: ignore[arg-type]
            model = VRC(config).to(device, dtype).eval()
            label, settings = torch.tensor([0], device=device), SamplingSettings(guidance=guidance)
            makers[prediction] = lambda seed, m=model, c=label, s=settings: generate(m, c, s, [seed])
        times = seconds_per_clip(makers, repeats=repeats, synchronise=synchronise)
        ratio = times["token"]["median"] / times["segment"]["median"]
        results[preset] = {"seconds_per_clip": times, "ratio": ratio}
        print(
            f"{preset:6s} segment {times['segment']['median']:.3f} s, token / segment {ratio:.2f}", flush=True
        )
    name = torch.cuda.get_device_name() if device.startswith("cuda") else f"{platform.machine()} CPU"
    machine = {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(dtype),
    }
    path = out or Path("benchmarks/results") / f"generation-{device}.json"
    write_json(path, {"machine": machine, "guidance": guidance, "presets": results})


if __name__ == "__main__":
    command(main)
