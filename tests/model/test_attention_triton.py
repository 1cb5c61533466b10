"""The Triton kernel on CPU, in Triton's interpreter: the same suite in fp32 and fp16 (bf16 is broken there).

The interpreter must be switched on before triton is imported and would break kernels on a GPU, so it lives in a process
of its own.
"""

import importlib
import importlib.util
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import attention_cases as cases
import pytest
import torch

from megavrc.model import segment_attention
from megavrc.model.attention import load_backend

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed")

CASES = ["text and segments", "one segment only", "cached rows", "keys nobody sees", "one row"]


@pytest.fixture(scope="module")
def interpret():
    """Calls a function in the process of the interpreter."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            process.submit(torch.set_num_threads, 1).result()  # starts it
        yield lambda function, *arguments: process.submit(function, *arguments).result()


@pytest.mark.parametrize("name", CASES)
def test_float32(interpret, name):
    interpret(cases.check_errors, "triton", cases.SMALL[name], torch.float32)


def test_float16(interpret):
    interpret(cases.check_errors, "triton", cases.SMALL["text and segments"], torch.float16)


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_all_cases(interpret, name, dtype, head_dim):
    interpret(cases.check_errors, "triton", cases.SMALL[name], dtype, head_dim)


@pytest.mark.slow
def test_more_properties(interpret):
    interpret(cases.check_permutation, "triton", torch.float16)
    interpret(cases.check_causal, "triton", torch.float32)
    interpret(cases.check_large_logits, "triton", torch.float32)
    interpret(cases.check_large_logits, "triton", torch.float16)


@pytest.mark.slow
def test_forbidden_keys_do_not_leak(interpret):
    interpret(cases.check_leaks, "triton", torch.float32)


def _log_sum_exp() -> None:
    from megavrc.model import attention_triton

    mask = cases.layout(40, 1, 21)
    q, k, v, _ = cases.draw(mask, torch.float32)
    _, lse = attention_triton._attention(q, k, v, *mask.tables(q.device))
    scores = (q @ k.transpose(-1, -2)).double() * q.shape[-1] ** -0.5
    exact = scores.masked_fill(~mask.dense(), float("-inf")).logsumexp(-1)
    torch.testing.assert_close(lse.double() / attention_triton.LOG2_E, exact, rtol=0, atol=2e-6)


def test_log_sum_exp(interpret):
    interpret(_log_sum_exp)


def _operator() -> None:
    """Schema, fake tensors and autograd of the operator; one graph; strides that need a copy; the same bits again."""
    from megavrc.model import attention_triton

    mask = cases.layout(9, 1, 6)
    tensors = cases.draw(mask, torch.float32, 16, batch=1, heads=1)
    q, k, v = (tensor.requires_grad_() for tensor in tensors[:3])
    torch.library.opcheck(attention_triton._attention, (q, k, v, *mask.tables(q.device)))

    compiled = torch.compile(
        lambda *x: segment_attention(*x, mask, "triton") + 1, fullgraph=True, backend="aot_eager"
    )
    outs = [compiled(q, k, v), segment_attention(q, k, v, mask, "triton") + 1]
    assert torch.equal(*outs)
    for pair in zip(*(torch.autograd.grad(out.sum(), (q, k, v)) for out in outs), strict=True):
        assert torch.equal(*pair)
    transposed = q.detach().transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.equal(load_backend("triton")(transposed, k, v, mask) + 1, outs[1])


@pytest.mark.slow
def test_operator(interpret):
    interpret(_operator)


def _copy_of_the_file(folder: Path) -> None:
    from megavrc.model import attention_triton

    package = folder / "converted"
    package.mkdir()
    for name in ("attention_triton", "segment_mask"):
        source = Path(attention_triton.__file__).with_name(f"{name}.py")
        (package / f"{name}.py").write_text(source.read_text())
    changed = package / "other.py"
    changed.write_text((package / "attention_triton.py").read_text() + "# changed\n")
    sys.path.insert(0, str(folder))
    same = importlib.import_module("converted.attention_triton")
    other = importlib.import_module("converted.other")
    assert same._attention is attention_triton._attention
    assert other._attention is not attention_triton._attention


def test_copies_of_the_file_in_one_process(interpret, tmp_path):
    interpret(_copy_of_the_file, tmp_path)


def test_without_the_interpreter_and_without_a_gpu_it_is_refused():
    if torch.cuda.is_available():
        pytest.skip("has a CUDA device")
    mask = cases.layout(9, 1, 6)
    q, k, v, _ = cases.draw(mask, torch.float32, 16)
    with pytest.raises(ValueError, match="attention backend 'triton' cannot run on cpu"):
        segment_attention(q, k, v, mask, "triton")
