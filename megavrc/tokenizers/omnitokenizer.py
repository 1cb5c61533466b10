"""The video tokenizer for users: loads its folder or a published checkpoint, uint8 clips to ids and back.

Notable: ids are computed in float32 without TF32, since near ties they depend on the last bits; bfloat16 is an option.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import safetensors.torch
import torch
from torch import Tensor

from megavrc.errors import UserError
from megavrc.files import check_format, read_json, write_atomic, write_json
from megavrc.model.clips import decode_clips, encode_clips
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet

from .published import read_published

FORMAT = 1  # of the folder
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
RUN_EXPORT = "model"  # in the folder of a finished run of pretrain_tokenizer
NAMED_PROBLEMS = 3  # of weights that do not fit

Precision = Literal["fp32", "bf16"]


class OmniTokenizer:
    """A video tokenizer in use: no gradients, no change of its codebook.

    Args:
        net: the network, in float32.
        precision: of `encode`. `bf16` computes the encoder's products in bfloat16, which changes ids near ties
            (docs/model.md has numbers); the distances to the codebook stay float32.
        size: side of the frames that it was trained on, in pixels, if known. It takes others, but may do worse.
    """

    def __init__(self, net: OmniTokenizerNet, precision: Precision = "fp32", size: int | None = None) -> None:
        if precision not in get_args(Precision):
            raise ValueError(f"precision must be fp32 or bf16, got {precision!r}")
        self.net, self.precision, self.size = net, precision, size
        self.config = net.config

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, device: str | torch.device = "cpu", precision: Precision = "fp32"
    ) -> "OmniTokenizer":
        """Load a folder written by `save`, or an original `.ckpt` file of the published video VQ models.

        Raises:
            UserError: nothing there, damaged, or a kind of checkpoint that is not supported.
        """
        path, size = Path(path), None
        if path.is_dir():
            config, weights, size = _read_folder(path)
        elif path.is_file():
            config, weights = read_published(path)
        else:
            raise UserError(f"{path}: no video tokenizer here (expected a folder or a .ckpt file)")
        with torch.device("meta"):
            net = OmniTokenizerNet(config)
        if problems := _misfits(net, weights):
            more = f" and {len(problems) - NAMED_PROBLEMS} more" if len(problems) > NAMED_PROBLEMS else ""
            listed = "; ".join(problems[:NAMED_PROBLEMS])
            raise UserError(f"{path}: weights do not fit their configuration: {listed}{more}")
        net.load_state_dict(weights, assign=True)
        return cls(net.to(device).float().eval().requires_grad_(False), precision, size)

    def save(self, folder: str | Path) -> None:
        """Write model.safetensors and config.json, each atomically; with config.json the folder is whole."""
        folder = Path(folder)
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        # Clones: weights that share one storage cannot be written.
        weights = {name: tensor.contiguous().clone() for name, tensor in self.net.state_dict().items()}
        write_atomic(folder / WEIGHTS_FILE, safetensors.torch.save(weights))
        about = {"format": FORMAT} | ({"size": self.size} if self.size else {})
        write_json(folder / CONFIG_FILE, about | self.config.to_dict())

    @property
    def device(self) -> torch.device:
        return self.net.codebook.embeddings.device

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of configuration and weights: with one hash and precision, tokenizers give the same ids."""
        digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode())
        for name, tensor in sorted(self.net.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of ids of a frame of these pixels; ValueError with the rule for a wrong size."""
        return self.config.grid(height, width)

    def encode(self, frames_BTHWC: Tensor) -> Tensor:
        """uint8 clips [B, T, H, W, 3] to ids, int64 [B, 1 + (T - 1) / temporal_patch, h, w].

        Raises:
            ValueError: not uint8, or a size that the tokenizer cannot take, with the rule.
        """
        if frames_BTHWC.dtype != torch.uint8 or frames_BTHWC.dim() != 5 or frames_BTHWC.shape[-1] != 3:
            raise ValueError(
                f"expected uint8 frames [B, T, H, W, 3], got {frames_BTHWC.dtype} {list(frames_BTHWC.shape)}"
            )
        with _exact(self.device):
            return encode_clips(self.net, frames_BTHWC.to(self.device), bf16=self.precision == "bf16")

    def decode(self, ids_BTHW: Tensor) -> Tensor:
        """Ids [B, T, h, w] to uint8 clips [B, 1 + (T - 1) * temporal_patch, H, W, 3]."""
        with _exact(self.device):
            return decode_clips(self.net, ids_BTHW.to(self.device).long())


@contextlib.contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Full float32 products, also inside a caller's autocast and where the process allows TF32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _misfits(net: OmniTokenizerNet, weights: dict[str, Tensor]) -> list[str]:
    expected = {name: list(tensor.shape) for name, tensor in net.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in weights.items()}
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    return problems + [
        f"{name} has shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]


def _refuse_other_folders(folder: Path) -> None:
    """UserError for folders that people take for a tokenizer's, with what to do."""
    if (folder / "run.json").is_file():
        for inside in (folder / RUN_EXPORT, folder / "video_tokenizer"):  # the second is from-hf's
            if (inside / CONFIG_FILE).is_file():
                raise UserError(f"{folder}: the folder of a run; its video tokenizer is {inside}")
        raise UserError(
            f"{folder}: the folder of a run, with no video tokenizer in it: one of pretrain_tokenizer has "
            f"{RUN_EXPORT}/ when it is finished"
        )
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"{folder}: no video tokenizer here (a folder of one has {CONFIG_FILE} and {WEIGHTS_FILE})"
        )
    content = read_json(folder / CONFIG_FILE)
    if isinstance(content, dict) and "model_type" in content:
        raise UserError(
            f"{folder}: a model of type {content['model_type']}; megavrc convert_checkpoint from-hf --model {folder} "
            "--out NEW writes the video tokenizer of a converted VRC to NEW/video_tokenizer"
        )


def _read_folder(folder: Path) -> tuple[OmniTokenizerConfig, dict[str, Tensor], int | None]:
    _refuse_other_folders(folder)
    content, size = read_json(folder / CONFIG_FILE), None
    if isinstance(content, dict):
        check_format(folder / CONFIG_FILE, content.pop("format", None), FORMAT)
        if not isinstance(size := content.pop("size", None), int | None):
            raise UserError(f"{folder / CONFIG_FILE}: size {size!r} must be an integer, in pixels")
    try:
        config = OmniTokenizerConfig.from_dict(content)
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG_FILE}: {error}") from None
    weights = folder / WEIGHTS_FILE
    try:
        return config, safetensors.torch.load_file(weights), size
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{weights}: cannot be read ({error})") from None
