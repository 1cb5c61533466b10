"""Private names of other packages that megavrc leans on: each still exists, or an upgrade fails here.

A name that is set on instances is looked for in the source of the class's module.
"""

import importlib
import inspect
from typing import Any

import pytest

ZERO = "deepspeed.runtime.zero"

# module, attribute path ("" for none), text that its source must hold ("" for none), the file that needs it, what for
NEEDED = [
    (
        f"{ZERO}.stage_1_and_2",
        "DeepSpeedZeroOptimizer._lazy_init_hp_params_optimizer_state",
        "",
        "training/state.py",
        "moments exist before the first step",
    ),
    (
        f"{ZERO}.stage_1_and_2",
        "",
        "self.single_partition_of_fp32_groups",
        "training/state.py",
        "moments at ZeRO stages 1 and 2",
    ),
    (
        f"{ZERO}.stage3",
        "",
        "self.fp32_partitioned_groups_flat",
        "training/state.py",
        "moments at ZeRO stage 3",
    ),
    (
        "deepspeed.runtime.bf16_optimizer",
        "",
        "self.fp32_groups_flat_partition",
        "training/state.py",
        "moments in bf16",
    ),
    (
        f"{ZERO}.partition_parameters",
        "",
        ".ds_numel",
        "training/engine.py",
        "small parameters stay whole at stage 3",
    ),
    (f"{ZERO}.partition_parameters", "", ".ds_shape", "training/state.py", "shapes at stage 3"),
    (f"{ZERO}.partition_parameters", "", ".ds_tensor", "training/state.py", "partitions at stage 3"),
    (
        f"{ZERO}.stage_1_and_2",
        "",
        "self._global_grad_norm",
        "training/engine.py",
        "the gradient norm in the metrics",
    ),
    (
        f"{ZERO}.stage3",
        "",
        "self._global_grad_norm",
        "training/engine.py",
        "the gradient norm in the metrics",
    ),
    (f"{ZERO}.stage_1_and_2", "", "overflow", "training/engine.py", "skipped steps are counted"),
    (f"{ZERO}.stage3", "", "overflow", "training/engine.py", "skipped steps are counted"),
    (
        "deepspeed.ops",
        "__compatible_ops__",
        "",
        "training/engine.py",
        "no build of CPU collectives at start-up",
    ),
    ("jsonargparse._typehints", "ActionTypeHint", "self._typehint", "command_line.py", "types of options"),
    (
        f"{ZERO}.muon.original_muon",
        "",
        "@compiler.compile()",
        "training/engine.py",
        "an unused optimizer is not compiled",
    ),
    (
        "torch._utils",
        "_rebuild_tensor_v2",
        "",
        "tokenizers/published.py",
        "published weights are read unrun",
    ),
    (
        "torch._utils",
        "_rebuild_parameter",
        "",
        "tokenizers/published.py",
        "published weights are read unrun",
    ),
    (
        "torch._utils",
        "_rebuild_parameter_with_state",
        "",
        "training/import_deepspeed.py",
        "DeepSpeed's checkpoints",
    ),
    (
        "torch._tensor",
        "_rebuild_from_type_v2",
        "",
        "training/import_deepspeed.py",
        "DeepSpeed's checkpoints",
    ),
    (
        "torch._C",
        "PyTorchFileReader.get_all_records",
        "",
        "tokenizers/published.py",
        "TorchScript archives are refused",
    ),
    (
        "torch._dynamo.variables.functions",
        "",
        "_dynamo_marked_constant",
        "model/quick_start.py",
        "the trial is not traced",
    ),
    ("torch", "UntypedStorage._cdata", "", "launch/memory.py", "shared storage is counted once"),
    ("torch", "_weight_int8pack_mm", "", "quantization/int8.py", "products with int8 weights on a CPU"),
    ("torch.cuda", "_sleep", "", "measure.py", "the GPU's queue is filled before timing"),
    (
        "torch.nn.modules.module",
        "Module",
        "self._forward_hooks",
        "model/fused_step.py",
        "hooks are not left out",
    ),
    (
        "torch.nn.modules.module",
        "Module",
        "self._forward_pre_hooks",
        "model/fused_step.py",
        "hooks are not left out",
    ),
    ("torch.nn", "Module._apply", "", "model/modeling_vrc.py", "batch norms stay fp32 in half precision"),
    (
        "transformers",
        "PreTrainedModel._init_weights",
        "",
        "model/modeling_vrc.py",
        "missing tensors are refused",
    ),
    (
        "transformers.modeling_utils",
        "",
        "_keep_in_fp32_modules_strict",
        "model/modeling_vrc.py",
        "batch norms stay fp32",
    ),
    (
        "transformers.modeling_utils",
        "",
        "self.config._attn_implementation",
        "vlm/attention.py",
        "which attention a model has",
    ),
    ("transformers.masking_utils", "sdpa_mask", "", "vlm/attention.py", "masks of an attention of its own"),
    ("transformers.masking_utils", "eager_mask", "", "vlm/attention.py", "masks of an attention of its own"),
    (
        "transformers.vision_utils",
        "get_vision_window_index",
        "",
        "vlm/tower.py",
        "order of the tower's tokens",
    ),
    (
        "transformers.models.llava_onevision.modeling_llava_onevision",
        "image_size_to_num_patches",
        "",
        "vlm/tower.py",
        "tiles of an image",
    ),
    (
        "transformers.models.llava_next_video.modeling_llava_next_video",
        "image_size_to_num_patches",
        "",
        "vlm/tower.py",
        "tiles of an image",
    ),
    *[
        (f"transformers.models.{llm}.modeling_{llm}", "", text, "vlm/inner.py", "layers of an LLM")
        for llm in ("llama", "qwen2", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
        for text in ("self.rotary_emb = ", "self.input_layernorm = ", "self.self_attn = ", "self.layers = ")
    ],
    (
        "transformers.utils.hub",
        "",
        "_raise_exceptions_for_missing_entries",
        "model/modeling_vrc.py",
        "optional files",
    ),
    (
        "transformers.utils.hub",
        "",
        "_raise_exceptions_for_connection_errors",
        "model/modeling_vrc.py",
        "optional files",
    ),
    (
        "transformers.convert_slow_tokenizer",
        "generate_merges",
        "",
        "hf/fast_tokenizer.py",
        "tokenizer.json",
    ),
    (
        "transformers.convert_slow_tokenizer",
        "import_protobuf",
        "",
        "hf/fast_tokenizer.py",
        "tokenizer.json",
    ),
    ("jsonargparse._namespace", "", "\\u200b", "config.py", "options that are named like a method"),
]


@pytest.mark.parametrize(
    ("module", "path", "text", "file", "why"), NEEDED, ids=[f"{row[0]}:{row[1] or row[2]}" for row in NEEDED]
)
def test_private_name_exists(module: str, path: str, text: str, file: str, why: str) -> None:
    found: Any = importlib.import_module(module)
    for name in filter(None, path.split(".")):
        assert hasattr(found, name), f"megavrc/{file} needs {module}.{path}: {why}"
        found = getattr(found, name)
    if text:
        source = inspect.getsource(importlib.import_module(module))
        assert text in source, f"megavrc/{file} needs {text} of {module}: {why}"
