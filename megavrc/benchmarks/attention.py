"""Benchmark of the attention backends on sequences of the model, taking turns in one run."""

import contextlib
import functools
import itertools
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from megavrc.errors import UserError
from megavrc.files import write_result
from megavrc.hardware import check_device, machine
from megavrc.model.attention import BACKENDS, BackendError, SegmentMask, choose, load

Attend = Callable[[Tensor, Tensor, Tensor, SegmentMask], Tensor]

HEAD_DIM, FIRST_FRAME, SEGMENT = 64, 1024, 256
INPUTS = 5  # sets of random inputs that the rounds go through
AHEAD = 4_000_000  # clock cycles that the GPU waits, so that it never waits for the launches that are timed
CPU_CASES = [(128, 4, 1, 12)]  # condition slots, later frames, batch, heads
GPU_SHAPES = [(1, 12), (8, 12), (16, 16), (8, 20), (8, 32)]
GPU_CASES = [
    *((128, 4, batch, heads) for batch, heads in GPU_SHAPES),
    (120, 4, 8, 12),  # segments do not begin at the borders of tiles
    *((128, 16, batch, heads) for batch, heads in GPU_SHAPES),
]


def attention(
    device: str = "cpu",
    dtype: Literal["fp32", "bf16", "fp16"] | None = None,
    shapes: list[tuple[int, int]] | None = None,
    text: list[int] | None = None,
    frames: list[int] | None = None,
    backends: list[Literal["rects", "masked", "flex", "triton", "flash"]] | None = None,
    rounds: int | None = None,
    threads: int = 1,
    tune: bool = False,
    json: Path | None = None,
) -> None:
    """Time the attention backends forward and backward, head_dim 64, against torch's attention with a dense mask.

    Inputs are random views of a fused projection. Sequences are text, 1024 tokens of the first frame, and 256
    bidirectional rows for each later frame. FLOPs are 4 x visible pairs x 64 x heads x batch forward, 2.5 times that
    backward. `causal` is torch's causal attention over the whole sequence: another mask of about the same area, as a
    bound. Medians; the backends take turns in every round. Says at the end which backend was fastest, and what `auto`
    takes.

    Args:
        device: cpu or cuda.
        dtype: of the tensors (default: bf16 on cuda, fp32 on cpu).
        shapes: pairs of batch and heads. Without shapes, text and frames: one sequence of 12 heads; on cuda eleven.
        text: condition slots before the first frame (default: 128).
        frames: later frames (default: 4).
        backends: the ones to time (default: all that run here).
        rounds: timed rounds (default: 5; 30 on cuda).
        threads: CPU threads. With one, CPU seconds are measured, else wall time.
        tune: on cuda, time the triton backend a second time with tile sizes found by search.
        json: write the results there.
    """
    on_gpu = device.startswith("cuda")
    torch.set_num_threads(threads)
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[
        dtype or ("bf16" if on_gpu else "fp32")
    ]
    check_device(device)
    rounds = rounds if rounds is not None else 30 if on_gpu else 5
    if min([rounds, *(text or [1])]) < 1 or min(frames or [0]) < 0:
        raise UserError("--rounds and --text must be at least 1, --frames at least 0")
    contestants, refused = _contestants(backends, device, kind, tune and on_gpu)
    clock = _GpuClock() if on_gpu else _CpuClock(threads)
    sizes = GPU_CASES if on_gpu else CPU_CASES
    if shapes or text or frames:
        products = itertools.product(text or [128], frames or [4], shapes or [(1, 12)])
        sizes = [(slots, count, *shape) for slots, count, shape in products]
    cases = []
    for slots, count, batch, heads in sizes:
        if on_gpu:
            torch.compiler.reset()  # there is a limit of compiled shapes
        case = _Case(slots, count, batch, heads, device, kind)
        cases.append(case.measure(contestants, clock, rounds))
        _print(cases[-1])
    for name, reason in refused.items():
        print(f"{name}: {reason}")
    auto = choose("auto", device.partition(":")[0], kind, HEAD_DIM, True)
    wins = Counter(case["fastest"] for case in cases)
    names = ", ".join(f"{name} in {count} of {len(cases)}" for name, count in wins.most_common())
    print(f"fastest forward and backward: {names}; auto takes {auto}, another: --train.attention NAME")
    result = {
        "machine": machine(device, threads),
        "dtype": str(kind).removeprefix("torch."),
        "head_dim": HEAD_DIM,
        "clock": clock.name,
        "cases": cases,
        "auto": auto,
        "refused": refused,
    }
    if "triton tuned" in contestants:
        from megavrc.model.attention_triton import tuned

        result["tuned"] = tuned()
    if json:
        write_result(json, result)


# --- who takes part -----------------------------------------------------------------------------------------------


def _contestants(
    wanted: list[Any] | None, device: str, dtype: torch.dtype, tune: bool
) -> tuple[dict[str, Attend], dict[str, str]]:
    """Backends that pass their trial here, and why others do not; one that was asked for must."""
    contestants: dict[str, Attend] = {"masked": load("masked"), "causal": _causal}
    refused = {}
    for name in wanted or [name for name in BACKENDS if name != "dense"]:
        try:
            choose(name, device.partition(":")[0], dtype, HEAD_DIM, True)
            contestants[name] = load(name)
        except BackendError as error:
            if wanted:
                raise UserError(f"--backends: {error}") from error
            refused[name] = str(error)
    if tune and "triton" in contestants:
        contestants["triton tuned"] = load("triton")
    return contestants, refused


def _causal(q: Tensor, k: Tensor, v: Tensor, mask: SegmentMask) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


# --- clocks -------------------------------------------------------------------------------------------------------


class _CpuClock:
    """Seconds of this process (one thread) or of the wall."""

    def __init__(self, threads: int) -> None:
        self.now = time.process_time if threads == 1 else time.perf_counter
        self.name = "CPU seconds" if threads == 1 else "wall seconds"

    def time(self, *work: Callable[[], object]) -> list[float]:
        marks = [self.now()]
        for part in work:
            part()
            marks.append(self.now())
        return [later - earlier for earlier, later in zip(marks, marks[1:], strict=False)]


class _GpuClock:
    """Seconds of the GPU between events; it starts late, so that it always has the next launch at hand."""

    name = "CUDA events"

    def time(self, *work: Callable[[], object]) -> list[float]:
        torch.cuda.synchronize()
        torch.cuda._sleep(AHEAD)
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(work) + 1)]
        marks[0].record()
        for part, mark in zip(work, marks[1:], strict=True):
            part()
            mark.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1000 for a, b in zip(marks, marks[1:], strict=False)]


# --- one shape ----------------------------------------------------------------------------------------------------


class _Case:
    """Sequences of one layout, batch and number of heads."""

    def __init__(
        self, slots: int, frames: int, batch: int, heads: int, device: str, dtype: torch.dtype
    ) -> None:
        self.batch, self.heads, self.device, self.dtype = batch, heads, device, dtype
        self.name = f"{slots}+{FIRST_FRAME}+{frames}x{SEGMENT}, batch {batch}, {heads} heads"
        prefix = slots + FIRST_FRAME
        ends = [
            *range(1, prefix + 1),
            *(prefix + (1 + row // SEGMENT) * SEGMENT for row in range(frames * SEGMENT)),
        ]
        self.ends = torch.tensor(ends)
        self.mask = SegmentMask.from_ends(self.ends)

    @functools.cached_property
    def inputs(self) -> list[tuple[Tensor, ...]]:
        """Some sets of q, k, v and a gradient of the output."""
        generator = torch.Generator(self.device).manual_seed(0)
        shape = (4, self.batch, self.mask.kv_len, self.heads, HEAD_DIM)
        sets = []
        for _ in range(INPUTS):
            values = torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype)
            fused = values[:3].transpose(0, 1).transpose(1, 2).contiguous().requires_grad_()
            sets.append((*fused.permute(2, 0, 3, 1, 4), values[3].transpose(1, 2)))
        return sets

    def flops(self, name: str) -> float:
        """Of the forward pass."""
        length = self.mask.kv_len
        area = length * (length + 1) // 2 if name == "causal" else self.mask.area
        return 4.0 * area * HEAD_DIM * self.heads * self.batch

    def _once(self, attend: Attend, clock: _CpuClock | _GpuClock, number: int) -> list[float]:
        q, k, v, gradient = self.inputs[number % INPUTS]
        out: list[Tensor] = []
        return clock.time(
            lambda: out.append(attend(q, k, v, self.mask)),
            lambda: torch.autograd.grad(out[0], (q, k, v), gradient),
        )

    def measure(
        self, contestants: dict[str, Attend], clock: _CpuClock | _GpuClock, rounds: int
    ) -> dict[str, Any]:
        times: dict[str, list[list[float]]] = {name: [] for name in contestants}
        peaks = {}
        for number in range(-1, rounds):  # round -1 compiles and warms up
            for name, attend in contestants.items():
                if self.device.startswith("cuda"):
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                with _searched_tiles(name == "triton tuned"):
                    spent = self._once(attend, clock, number)
                if number >= 0:
                    times[name].append(spent)
                if self.device.startswith("cuda"):
                    peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
        results = {name: self._summary(name, spent) for name, spent in times.items()}
        for name, result in results.items():
            for part in ("forward", "backward", "both"):
                result[part]["of_masked"] = result[part]["ms"] / results["masked"][part]["ms"]
            if name in peaks:
                result["peak_mib"] = peaks[name]
        return {
            "case": self.name,
            "rows": self.mask.kv_len,
            "visible": self.mask.area / self.mask.kv_len**2,
            "rounds": rounds,
            "mask_build_ms": self._mask_build_ms(),
            "backends": results,
            "fastest": min(results.keys() & set(BACKENDS), key=lambda name: results[name]["both"]["ms"]),
        }

    def _summary(self, name: str, times: list[list[float]]) -> dict[str, Any]:
        flops = self.flops(name)
        parts = {
            "forward": ([forward for forward, _ in times], flops),
            "backward": ([backward for _, backward in times], 2.5 * flops),
            "both": ([sum(both) for both in times], 3.5 * flops),
        }
        medians = {part: (statistics.median(spent), count) for part, (spent, count) in parts.items()}
        return {
            part: {"ms": 1000 * seconds, "tflops_per_second": count / seconds / 1e12}
            for part, (seconds, count) in medians.items()
        }

    def _mask_build_ms(self) -> dict[str, float]:
        """Once a layout, on the host: the mask itself, the tables of `triton`, the tiles of `flex`."""
        from megavrc.model.attention_flex import block_mask

        device = torch.device(self.device)
        build = functools.partial(SegmentMask.from_ends, self.ends)
        work: dict[str, Callable[[], object]] = {
            "mask": build,
            "tables": lambda: build().tables(device),
            "flex tiles": lambda: block_mask(build(), device),
        }
        return {
            name: 1000 * statistics.median(_CpuClock(0).time(*[function] * 5))
            for name, function in work.items()
        }


@contextlib.contextmanager
def _searched_tiles(active: bool) -> Iterator[None]:
    """Inside, the triton backend searches its tile sizes."""
    if active:
        os.environ["MEGAVRC_ATTENTION_TUNE"] = "1"
    try:
        yield
    finally:
        if active:
            del os.environ["MEGAVRC_ATTENTION_TUNE"]


def _print(case: dict[str, Any]) -> None:
    built = case["mask_build_ms"]["mask"]
    print(f"{case['case']}: {case['rows']} rows, {case['visible']:.1%} visible, mask built in {built:.1f} ms")
    print(f"{'':14s}{'forward':>21s}{'backward':>21s}{'both':>21s}  of masked   (T: TFLOP/s)")
    for name, result in case["backends"].items():
        parts = (result["forward"], result["backward"], result["both"])
        columns = "".join(f"{part['ms']:9.2f} ms {part['tflops_per_second']:7.3f} T" for part in parts)
        print(f"  {name:12s}{columns}  {result['both']['of_masked']:9.2f}", flush=True)
