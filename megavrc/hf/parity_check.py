"""The gate: a fresh process without megavrc must compute from a folder what we compute from its source."""

import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megavrc.errors import UserError
from megavrc.files import write_json
from megavrc.generation.folder import read_sampling
from megavrc.model import VRC, ClipRequest, VideoPipeline
from megavrc.model.attention import BackendError
from megavrc.model.clips import decode_clips
from megavrc.model.condition import Condition
from megavrc.model.decoder import store_for_generation
from megavrc.model.omnitokenizer import OmniTokenizerNet
from megavrc.tokenizers import TextTokenizer

PROBE = Path(__file__).with_name("parity_probe.py")
CLIPS = 2
SEEDS = [3, 4]
SAMPLING: dict[str, Any] = {"guidance": 1.5, "temperature": 0.9, "top_k": 0, "top_p": 0.95}
PROMPTS = ["a red square moves left", "CAF\u00c9, two  dogs <s>"]
# With more tokens, frames are given so that few tokens are left to draw one by one, which takes minutes.
LONG_FRAME = 256


@dataclass
class Given:
    """Inputs of the comparison, the same for both sides."""

    tensors: dict[str, Tensor]
    prompts: list[str]
    labels: list[int]

    @property
    def condition(self) -> Condition:
        """The condition of all samples."""
        return Condition(self.tensors["condition"], self.tensors.get("real"))


def make_inputs(vrc: VRC, net: OmniTokenizerNet, text: TextTokenizer | None) -> Given:
    """Random ids and a condition that fit the model."""
    config, condition = vrc.config, vrc.config.condition
    generator = torch.Generator().manual_seed(0)
    shape = (CLIPS, 1 + config.frames, config.grid, config.grid)
    tensors = {"ids": torch.randint(config.vocab, shape, generator=generator)}
    prompts, labels = [], []
    if condition.is_class:
        labels = [0, condition.classes - 1]
        tensors["condition"] = vrc.condition.make(condition, labels).values
    elif text is not None:
        kept = [prompt for prompt in PROMPTS if len(text.ids(prompt)) < condition.slots]
        prompts = (kept or [""]) * CLIPS
        prompts = prompts[:CLIPS]
        tensors["condition"] = torch.tensor([text.encode(prompt, condition.slots) for prompt in prompts])
    elif condition.features:
        slots = (CLIPS, condition.slots - 1)
        tensors["condition"] = torch.randn(*slots, condition.feature_dim, generator=generator)
        tensors["real"] = torch.rand(slots, generator=generator) < 0.5
    else:
        tensors["condition"] = vrc.null_condition(CLIPS).values
    if config.tokens_per_frame > LONG_FRAME and config.frames:
        side = config.grid * net.config.patch
        known = 1 + (config.frames - 1) * net.config.temporal_patch if config.prediction == "token" else 1
        clip = torch.randint(256, (CLIPS, known, side, side, 3), generator=generator)
        tensors["clip"] = clip.to(torch.uint8)
    return Given(tensors, prompts, labels)


@torch.no_grad()
def expected_outputs(
    vrc: VRC, net: OmniTokenizerNet, text: TextTokenizer | None, given: Given, defaults: dict[str, Any]
) -> dict[str, Tensor]:
    """The outputs that the probe must write, computed here from the source; `defaults` is the folder's sampling."""
    vrc, net = vrc.eval(), net.eval()
    store_for_generation(vrc)  # as the probe does: Intel's MKL rounds few rows by how a matrix lies in memory
    outputs = asdict(vrc(given.tensors["ids"], given.condition, logits=True))
    request = ClipRequest.of(
        given.condition, defaults, seed=SEEDS, clip=given.tensors.get("clip"), **SAMPLING
    )
    ids = VideoPipeline(vrc, net).generate(request, "ids")
    outputs |= {"generated": ids, "pixels": decode_clips(net, ids)}
    if text is not None:
        outputs["text"] = given.tensors["condition"]
    return {name: value for name, value in outputs.items() if value is not None}


def run_probe(folder: Path, given: Given) -> dict[str, Tensor]:
    """Load `folder` with transformers in a fresh process without megavrc; UserError with its last line if it fails."""
    with tempfile.TemporaryDirectory() as exchange:
        save_file(given.tensors, Path(exchange) / "given.safetensors")
        spec: dict[str, Any] = {
            "prompts": given.prompts,
            "labels": given.labels,
            "seeds": SEEDS,
            "sampling": SAMPLING,
        }
        write_json(Path(exchange) / "given.json", spec | {"threads": torch.get_num_threads()})
        private = {"HF_HOME": exchange, "HF_MODULES_CACHE": f"{exchange}/modules", "HF_HUB_OFFLINE": "1"}
        process = subprocess.run(
            [sys.executable, "-I", PROBE, folder.resolve(), exchange],
            cwd=exchange,
            env=os.environ | private,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if process.returncode:
            lines = [line for line in process.stderr.splitlines() if line and not line[0].isspace()]
            raise UserError(f"{folder}: fails in transformers: {lines[-1] if lines else process.returncode}")
        return load_file(Path(exchange) / "got.safetensors")


def check(folder: Path, vrc: VRC, net: OmniTokenizerNet, text: TextTokenizer | None) -> dict[str, Tensor]:
    """Pass the folder or raise.

    Args:
        folder: the converted folder.
        vrc, net, text: the source, on the CPU, in the folder's dtype.

    Returns:
        The outputs that agreed.

    Raises:
        UserError: it does not load, or computes something else; the message names what differs most. Or
            MEGAVRC_ATTENTION asks for a backend that cannot run here.
    """
    given = make_inputs(vrc, net, text)
    print(f"check: {CLIPS} clips and their losses, from the source ..", file=sys.stderr, flush=True)
    try:
        expected = expected_outputs(vrc, net, text, given, read_sampling(folder))
    except BackendError as error:
        raise UserError(str(error)) from error
    print("check: the same from the folder, in a fresh process ..", file=sys.stderr, flush=True)
    got = run_probe(folder, given)
    for name, value in expected.items():
        problem = _difference(value, got.get(name))
        if problem:
            raise UserError(f"{folder}: {name} computed by transformers {problem}")
    return expected


def _difference(expected: Tensor, got: Tensor | None) -> str:
    """How two outputs differ; empty when they are the same bits."""
    if got is None:
        return "is missing"
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return f"is {got.dtype} {list(got.shape)}, expected {expected.dtype} {list(expected.shape)}"
    if torch.equal(got, expected):
        return ""
    return f"differs from the source, at most by {float((got.double() - expected.double()).abs().max()):.3g}"
