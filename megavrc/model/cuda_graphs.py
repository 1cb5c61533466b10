"""Buffers that generation keeps on the device: static tensors, and the CUDA graphs captured over them.

A pass is a function without arguments or results that reads and writes static tensors, so that it can be called, or
captured once and replayed: without Python, launch costs or waiting for the host. But for `index` it never overwrites
what it reads, so that it can be repeated.
"""

import functools
import threading
from collections.abc import Callable, Hashable
from typing import Any

import torch

from .decoder import Decoder, Memory
from .vrc import VRC

KEY_STEP = 256  # token steps attend over the next multiple of this many rows, one graph each


class Workspace:
    """The static tensors of one kind of job: a model, a batch size, guidance and sampling.

    Attributes:
        ids_BTN: long [B, 1 + F, N], the tokens, as they are drawn.
        uniform_BTN: float64, the number that each token is drawn with.
        order_BTN: long, the cells of a frame (of a row of the first one) in the order in which they are drawn, where
            that is in several passes.
        features_TBND: representations of the frames, where they and not the tokens are fed back.
        index: long [1], the token (of all frames in a row) that the next device step draws.
        steps: `host` positions, `device` positions, or `graph`: device positions, captured.
    """

    def __init__(self, model: VRC, batch: int, copies: int = 1, steps: str | None = None) -> None:
        config, like = model.config, model.tokens.weight.detach()
        shape = (batch, 1 + config.frames, config.tokens_per_frame)
        fed_back = 0 if config.feedback == "tokens" else 1 + config.frames
        with torch.inference_mode(False):  # the next clip may be generated outside of it
            self.memory = Memory(model, batch, copies)
            self.ids_BTN = torch.zeros(shape, dtype=torch.long, device=like.device)
            self.uniform_BTN = torch.zeros(shape, dtype=torch.float64, device=like.device)
            self.order_BTN = torch.zeros(
                shape if config.refine else (0, 0, 0), dtype=torch.long, device=like.device
            )
            self.features_TBND = like.new_zeros(fed_back, batch, config.tokens_per_frame, config.width)
            self.index = torch.zeros(1, dtype=torch.long, device=like.device)
        self.steps = steps or ("graph" if like.is_cuda else "host")
        self._graphs: dict[Hashable, tuple[Any, tuple[str, int]]] = {}
        self._pool: Any = None

    def keys_for(self, rows: int) -> int:
        """The number of cache rows that a device step attends over which has seen `rows` in the end."""
        capacity = self.memory.cache.layers[0].shape[3]
        return min(-(-rows // KEY_STEP) * KEY_STEP, capacity)

    def run(self, key: Hashable, decoder: Decoder, one_pass: Callable[[], None]) -> None:
        """Make one pass; `key` tells passes apart that launch different work. Rows still pending are not captured."""
        with torch.cuda.device_of(self.index):  # what is launched and captured goes to the current device
            if self.steps != "graph" or not decoder.idle:
                one_pass()
            else:
                self._replay(key, decoder, one_pass)

    def _replay(self, key: Hashable, decoder: Decoder, one_pass: Callable[[], None]) -> None:
        passes = decoder.passes
        if key not in self._graphs:
            self._graphs[key] = self._capture(decoder, one_pass)
        graph, state = self._graphs[key]
        graph.replay()
        decoder.restore(state)
        decoder.passes = passes + 1

    def _capture(self, decoder: Decoder, one_pass: Callable[[], None]) -> tuple[Any, tuple[str, int]]:
        """The graph of a pass, and where it leaves the decoder; everything else is as before."""
        state, index = decoder.state, self.index.clone()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), _capture_stream(self.index.device)
        with _CAPTURING:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                one_pass()  # libraries allocate and choose algorithms at first use, which cannot be captured
                self.index.copy_(index)
                decoder.restore(state)
            torch.cuda.current_stream().wait_stream(stream)
            # Other threads go on: one that decodes the frames before this one may allocate memory meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                one_pass()
        after = decoder.state
        decoder.restore(state)
        return graph, after


_CAPTURING = threading.Lock()  # one capture at a time is all that torch promises


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all graphs of a device: captures share the memory of a pool, and cuBLAS its workspace, by stream."""
    return torch.cuda.Stream(device)
