"""Published OmniTokenizer checkpoints (Lightning `.ckpt`): safe reading, and the configuration from their shapes.

Source: github.com/FoundationVision/OmniTokenizer, checkpoints of huggingface.co/Daniel0724/OmniTokenizer.
"""

import argparse
import collections
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from megavrc.errors import UserError
from megavrc.model.omnitokenizer import OmniTokenizerConfig

log = logging.getLogger("megavrc")

TOKENIZER_KEYS = ("encoder.", "decoder.", "pre_vq_conv.", "post_vq_conv.", "codebook.")
ENCODER_SPATIAL = "encoder.enc_spatial_transformer"
ENCODER_TEMPORAL = "encoder.enc_temporal_transformer"
DECODER_SPATIAL = "decoder.dec_spatial_transformer"
ZIP_MAGIC = b"PK\x03\x04"
ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("argparse", "Namespace"): argparse.Namespace,
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
}
FIELDS = {  # argument that the original program recorded -> our field; None there means its default
    "embedding_dim": "width",
    "heads": "heads",
    "dim_head": "dim_head",
    "patch_size": "patch",
    "temporal_patch_size": "temporal_patch",
    "enc_block": "enc_block",
    "dec_block": "dec_block",
    "temporal_depth": "temporal_depth",
    "twod_window_size": "window",
    "n_codes": "codes",
    "codebook_dim": "code_dim",
}
SUPPORTED = {  # what the published video VQ models have; shapes do not show most of it
    "causal_in_temporal_transformer": True,
    "causal_in_peg": True,
    "spatial_pos": "rope",
    "patch_embed": "linear",
    "l2_code": True,
    "use_vae": False,
    "use_external_codebook": False,
    "defer_temporal_pool": False,
    "defer_spatial_pool": False,
    "gen_upscale": None,
}


def read_published(path: Path) -> tuple[OmniTokenizerConfig, dict[str, Tensor]]:
    """Configuration and tokenizer weights of a published video VQ checkpoint; discriminators and the like are left.

    Nothing that the file names is run. Classes that no weight needs are logged in one line.

    Raises:
        UserError: not such a file, weights of an unknown class, hyper-parameters that contradict the weights, or a
            VAE or an image-only (`rel` position bias) model, which are not supported.
    """
    content, strangers = load_without_running(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if isinstance(state, StandIn):
        raise UserError(f"{path}: its weights are of class {state.named()}, which is not loaded")
    state = state if isinstance(state, dict) else {}
    weights = {k: v for k, v in state.items() if isinstance(k, str) and k.startswith(TOKENIZER_KEYS)}
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            found = value.named() if isinstance(value, StandIn) else type(value).__name__
            raise UserError(f"{path}: weight {name} is of class {found}, only plain tensors are loaded")
    try:
        config = config_from_weights(weights)
    except KeyError as error:
        raise UserError(f"{path}: not an OmniTokenizer checkpoint (no weights named {error})") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    recorded = content.get("hyper_parameters") if content is not state else None
    if problems := contradictions(recorded, config):
        raise UserError(f"{path}: hyper-parameters do not fit: {'; '.join(problems)}")
    if strangers:
        log.warning("%s: not loaded, no weight needs them: %s", path, ", ".join(strangers))
    return config, weights


def config_from_weights(weights: dict[str, Tensor]) -> OmniTokenizerConfig:
    """The configuration that shapes and keys imply.

    Raises:
        KeyError: a key that every tokenizer has is missing.
        ValueError: a VAE or an image-only model, or a weight without the axes that it must have.
    """

    def shape(name: str, axes: int = 2) -> torch.Size:
        found = weights[name].shape
        if len(found) != axes or 0 in found:
            raise ValueError(f"weight {name} has shape {list(found)}, expected {axes} axes")
        return found

    width, features = shape("encoder.to_patch_emb_first_frame.2.weight")
    codes, code_dim = shape("codebook.embeddings")
    if shape("pre_vq_conv.1.weight")[0] == 2 * code_dim:
        raise ValueError("a VAE checkpoint has no ids; use a VQ checkpoint of the video models")
    spatial = re.compile(r"(enc|dec)_spatial_transformer\.layers\.\d+\.1\.spatial_rel_pos_bias")
    if any(spatial.search(key) for key in weights):
        raise ValueError(
            "an image-only checkpoint (`rel` position bias) is not supported; use a video VQ checkpoint"
        )
    temporal = f"{ENCODER_TEMPORAL}.layers.0"
    (dim_head,) = shape(f"{temporal}.1.q_scale", axes=1)
    tables = [shape(key)[0] for key in weights if key.endswith("relative_position_bias_table")]
    return OmniTokenizerConfig(
        width=width,
        heads=shape(f"{temporal}.1.to_q.weight")[0] // dim_head,
        dim_head=dim_head,
        patch=round((features / 3) ** 0.5),
        temporal_patch=shape("encoder.to_patch_emb.2.weight")[1] // features,
        enc_block=_letters(weights, ENCODER_SPATIAL),
        dec_block=_letters(weights, DECODER_SPATIAL),
        temporal_depth=len(_letters(weights, ENCODER_TEMPORAL)),
        window=(round(tables[0] ** 0.5) + 1) // 2 if tables else 1,
        codes=codes,
        code_dim=code_dim,
        ff_mult=_ff_mult(width, shape(f"{temporal}.3.4.weight")[1]),
        temporal_peg="original",
    )


def contradictions(recorded: Any, config: OmniTokenizerConfig) -> list[str]:
    """What the recorded hyper-parameters (`{"args": Namespace}`; anything else says nothing) say otherwise."""
    args = recorded.get("args") if isinstance(recorded, dict) else None
    if not isinstance(args, argparse.Namespace):
        return []
    options = {name.replace("casual_", "causal_"): value for name, value in vars(args).items()}
    expected = {name: getattr(config, field) for name, field in FIELDS.items()}
    if "w" not in config.enc_block + config.dec_block:
        del expected["twod_window_size"]
    problems = [
        f"{name} {options[name]}, the weights have {value}"
        for name, value in expected.items()
        if options.get(name) not in (None, value)
    ]
    mult = options.get("ff_mult")  # many factors give one hidden size
    if isinstance(mult, int | float) and _hidden(mult, config.width) != _hidden(config.ff_mult, config.width):
        problems.append(f"ff_mult {mult}, the weights have {config.ff_mult}")
    return problems + [
        f"{name} {options[name]} is not supported, only {value}"
        for name, value in SUPPORTED.items()
        if options.get(name, value) != value
    ]


def _letters(weights: dict[str, Tensor], prefix: str) -> str:
    layers = {int(m[1]) for k in weights if (m := re.match(re.escape(prefix) + r"\.layers\.(\d+)\.", k))}
    return "".join(
        "w" if f"{prefix}.layers.{i}.1.relative_position_bias_table" in weights else "t"
        for i in sorted(layers)
    )


def _ff_mult(width: int, hidden: int) -> float:
    """A factor that gives this hidden size; whole numbers first."""
    candidates = [float(n) for n in range(1, 17)] + [(hidden + 0.5) / width * 1.5]
    return next(m for m in candidates if _hidden(m, width) == hidden)


def _hidden(mult: float, width: int) -> int:
    return int(mult * (2 / 3) * width)


# --- reading without running ---------------------------------------------------------------------------------------


class StandIn:
    """An object whose class or function is not on the list: accepts everything, does nothing."""

    name = ""
    args: tuple[Any, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def named(self) -> str:
        """Its class or function, and the classes that were handed to it."""
        given = [a.name for a in self.args if isinstance(a, type) and issubclass(a, StandIn)]
        return " of ".join([self.name, *given])


def load_without_running(
    path: Path, also: Mapping[tuple[str, str], Any] = MappingProxyType({})
) -> tuple[Any, list[str]]:
    """The content of a file of `torch.save`, and the classes and functions that stand-ins replaced, sorted.

    Args:
        path: the file; nothing that it names is run.
        also: by (module, name), what may be built beside tensors and plain containers.

    Raises:
        UserError: not such a file, or a damaged one.
    """
    allowed = {**ALLOWED, **also}
    stand_ins: dict[tuple[str, str], type[StandIn]] = {}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in allowed:
                return allowed[module, name]
            readable = f"{module}.{name}".encode("unicode_escape").decode()
            return stand_ins.setdefault((module, name), type("StandIn", (StandIn,), {"name": readable}))

    class PickleModule:
        """What `torch.load` asks of a pickle module; `load` reads the header of files older than torch 1.6."""

        @staticmethod
        def load(file: Any, **options: Any) -> Any:
            return Unpickler(file, **options).load()

    PickleModule.Unpickler = Unpickler  # type: ignore[attr-defined]
    try:
        _refuse_torchscript(path)
        content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=PickleModule)
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path}: not a readable checkpoint ({error})") from None
    return content, sorted(stand_in.name for stand_in in stand_ins.values())


def _refuse_torchscript(path: Path) -> None:
    """`torch.load` would run such an archive, whatever the pickle module."""
    with open(path, "rb") as file:
        zipped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    if zipped and "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records():
        raise ValueError("a TorchScript archive")
