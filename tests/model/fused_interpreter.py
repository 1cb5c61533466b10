"""Run by test_generate_device.py with TRITON_INTERPRET=1: fused steps against the layers, on a CPU in float32.

The interpreter cannot compute in bfloat16; tests/model/test_cuda.py does, on a GPU.
"""

import torch
from models import build, inputs

from megavrc.model import fused_step
from megavrc.model.decoder import Decoder
from megavrc.model.fused_step import FusedStep

ROWS = 20  # seen before the step: the splits of attention are full, begun and not begun
fused_step.SPLIT = 16
model = build("class", layers=1, width=96, heads=3, vocab=24).float()  # widths that need padding
_, condition = inputs(model, batch=1)
with torch.no_grad():
    decoder = Decoder(model, condition, 1, guidance=2.0)
    ids = torch.randint(model.config.vocab, (1, ROWS))
    decoder.push_raw(ids[:, :-1])
    decoder.step(1)
    decoder.push_raw(ids[:, -1:])
    expected = decoder.raw_logits()[:, 0]
    written = [buffer[:, :, :, ROWS].clone() for buffer in decoder.cache.layers]
    for buffer in decoder.cache.layers:
        buffer[:, :, :, ROWS:] = float("nan")  # to be written, or not to be read
    fused = FusedStep(model.config, decoder.cache)
    rows = model.embed_raw(ids[:, -1]).repeat(decoder.copies, 1)
    table = decoder.memory.tables[decoder.part]
    got = decoder.guide(fused(model, rows, table, torch.tensor([ROWS])))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for buffer, new in zip(decoder.cache.layers, written, strict=True):
        torch.testing.assert_close(buffer[:, :, :, ROWS], new, rtol=1e-5, atol=1e-6)
        assert buffer[:, :, :, ROWS + 1 :].isnan().all()
