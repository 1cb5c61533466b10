"""Benchmark of the attention backends on sequences of the model, taking turns in one run."""

import contextlib
import functools
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from megavrc.errors import UserError
from megavrc.hardware import check_device
from megavrc.measure import cuda_lap_times, lap_times, turns
from megavrc.model.attention import BACKENDS, Backend, BackendError, SegmentMask, choose_backend, load_backend
from megavrc.results import Metric, case, check_result_place, median_of, metric, publish_tables, ratio, result

Attend = Callable[[Tensor, Tensor, Tensor, SegmentMask], Tensor]
Laps = Callable[..., list[float]]  # seconds of pieces of work, one after the other

HEAD_DIM, FIRST_FRAME, SEGMENT = 64, 1024, 256
INPUTS = 5  # sets of random inputs that the rounds go through
PARTS = ("forward", "backward", "both")
COLUMNS = [*(name for part in PARTS for name in (part, f"{part}_rate")), "both_of_masked"]  # that are printed
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
    backends: list[Backend] | None = None,
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
        device: `cpu` or `cuda`.
        dtype: type of the tensors (default: bf16 on cuda, fp32 on cpu).
        shapes: pairs of batch and heads. Without shapes, text and frames: one sequence of 12 heads; on cuda eleven.
        text: condition slots before the first frame (default: 128).
        frames: later frames (default: 4).
        backends: backends to time (default: all that run here).
        rounds: timed rounds (default: 5; 30 on cuda).
        threads: CPU threads. With one, CPU seconds are measured, else wall time.
        tune: time the triton backend a second time with tile sizes found by search.
        json: file to write the results to.
    """
    check_result_place(json)
    on_gpu = device.startswith("cuda")
    torch.set_num_threads(threads)
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[
        dtype or ("bf16" if on_gpu else "fp32")
    ]
    device = str(check_device(device))
    rounds = rounds if rounds is not None else 30 if on_gpu else 5
    if min([rounds, *(text or [1])]) < 1 or min(frames or [0]) < 0:
        raise UserError("--rounds and --text must be at least 1, --frames at least 0")
    contestants, refused = _contestants(backends, device, kind, tune and on_gpu)
    sizes = GPU_CASES if on_gpu else CPU_CASES
    if shapes or text or frames:
        products = itertools.product(text or [128], frames or [4], shapes or [(1, 12)])
        sizes = [(slots, count, *shape) for slots, count, shape in products]
    rows: list[dict[str, Any]] = []
    wins: Counter[str] = Counter()
    for slots, count, batch, heads in sizes:
        if on_gpu:
            torch.compiler.reset()  # there is a limit of compiled shapes
        sequence = _Case(slots, count, batch, heads, device, kind)
        times, peaks = sequence.measure(contestants, _laps(device, threads), rounds)
        rows += sequence.rows(times, peaks)
        wins[min(times.keys() & set(BACKENDS), key=lambda name: median(map(sum, times[name])))] += 1
    auto = choose_backend("auto", device.partition(":")[0], kind, HEAD_DIM, True)
    protocol: dict[str, Any] = {
        "clock": "CUDA events" if on_gpu else "CPU seconds" if threads == 1 else "wall seconds",
        "rounds": rounds,
        "spread": "range of the rounds",
        "fastest_forward_and_backward": dict(wins),
        "auto": auto,
        "refused": refused,
    }
    if "triton tuned" in contestants:
        from megavrc.model.attention_triton import tuned

        protocol["tuned"] = tuned()
    config = {"dtype": str(kind).removeprefix("torch."), "head_dim": HEAD_DIM}
    publish_tables(result("benchmark attention", config, rows, {}, protocol, device, threads), json, COLUMNS)
    for name, reason in refused.items():
        print(f"{name}: {reason}")
    names = ", ".join(f"{name} in {count} of {len(sizes)}" for name, count in wins.most_common())
    print(f"fastest forward and backward: {names}; auto takes {auto}, another: --train.attention NAME")


# --- who takes part -----------------------------------------------------------------------------------------------


def _contestants(
    wanted: list[Any] | None, device: str, dtype: torch.dtype, tune: bool
) -> tuple[dict[str, Attend], dict[str, str]]:
    """Backends that pass their trial here, and why others do not; one that was asked for must."""
    contestants: dict[str, Attend] = {"masked": load_backend("masked"), "causal": _causal}
    refused = {}
    for name in wanted or [name for name in BACKENDS if name != "dense"]:
        try:
            choose_backend(name, device.partition(":")[0], dtype, HEAD_DIM, True)
            contestants[name] = load_backend(name)
        except BackendError as error:
            if wanted:
                raise UserError(f"--backends: {error}") from error
            refused[name] = str(error)
    if tune and "triton" in contestants:
        contestants["triton tuned"] = load_backend("triton")
    return contestants, refused


def _causal(q: Tensor, k: Tensor, v: Tensor, mask: SegmentMask) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _laps(device: str, threads: int) -> Laps:
    """The clock of the parts of a pass: by the GPU, else in CPU seconds (one thread) or by the wall's clock."""
    if device.startswith("cuda"):
        return cuda_lap_times
    return functools.partial(lap_times, time.process_time if threads == 1 else time.perf_counter)


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
        """FLOPs of the forward pass."""
        length = self.mask.kv_len
        area = length * (length + 1) // 2 if name == "causal" else self.mask.area
        return 4.0 * area * HEAD_DIM * self.heads * self.batch

    def _once(self, attend: Attend, laps: Laps, number: int) -> list[float]:
        q, k, v, gradient = self.inputs[number % INPUTS]
        out: list[Tensor] = []
        return laps(
            lambda: out.append(attend(q, k, v, self.mask)),
            lambda: torch.autograd.grad(out[0], (q, k, v), gradient),
        )

    def measure(
        self, contestants: dict[str, Attend], laps: Laps, rounds: int
    ) -> tuple[dict[str, list[list[float]]], dict[str, int]]:
        """Seconds forward and backward of each round, and on GPUs the peak bytes of the last, by backend."""
        times: dict[str, list[list[float]]] = {name: [] for name in contestants}
        peaks = {}
        for number, name in turns(contestants, rounds, 1, self.name):
            if self.device.startswith("cuda"):
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            with _searched_tiles(name == "triton tuned"):
                spent = self._once(contestants[name], laps, number)
            if number >= 0:
                times[name].append(spent)
            if self.device.startswith("cuda"):
                peaks[name] = torch.cuda.max_memory_allocated() - before
        return times, peaks

    def rows(self, times: dict[str, list[list[float]]], peaks: dict[str, int]) -> Iterator[dict[str, Any]]:
        """A case of the result for each backend."""
        shape: dict[str, Any] = {"rows": self.mask.kv_len, "visible": self.mask.area / self.mask.kv_len**2}
        shape |= {"batch": self.batch, "heads": self.heads, "mask_build_s": self._mask_build_s()}
        masked = self._metrics("masked", times["masked"])
        for name, spent in times.items():
            metrics = self._metrics(name, spent)
            for part in PARTS:
                metrics[f"{part}_of_masked"] = ratio(metrics[part], masked[part])
            if name in peaks:
                metrics["peak"] = metric(peaks[name], "B")
            yield case(f"{name}: {self.name}", metrics, backend=name, **shape)

    def _metrics(self, name: str, times: list[list[float]]) -> dict[str, Metric]:
        forward = self.flops(name)
        flops = dict(zip(PARTS, (forward, 2.5 * forward, 3.5 * forward), strict=True))
        seconds = {
            part: median_of(spent, "s")
            for part, spent in zip(
                PARTS, (*zip(*times, strict=True), [sum(both) for both in times]), strict=True
            )
        }
        rates = {
            f"{part}_rate": metric(flops[part] / spent["value"] / 1e12, "TFLOP/s", spent["n"])
            for part, spent in seconds.items()
        }
        return seconds | rates

    def _mask_build_s(self) -> dict[str, float]:
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
            name: median(lap_times(time.perf_counter, *[function] * 5)) for name, function in work.items()
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
