"""Draw the windows of speculative decoding, from a run of the decoder's own code: docs/images/speculation.svg.

In the place of a network stands a table: the distribution of a token after the one before it.
"""

from types import SimpleNamespace

import torch
from canvas import Canvas
from torch import Tensor

from megavrc.model.sampling import Sampling
from megavrc.model.speculation import speculative_frame

COUNT, WINDOW, VOCAB, CELL = 16, 5, 6, 34


class Table:
    """Gives logits after each token that is pushed, and keeps what was pushed: first place, tokens."""

    def __init__(self, after: Tensor) -> None:
        self.after, self.passes, self.batch = after, [], 1
        self.config = SimpleNamespace(grid=4, vocab=VOCAB)
        self.cache = SimpleNamespace(length=0, truncate=self._truncate)
        self.pending = torch.zeros(1, 0, dtype=torch.long)

    def _truncate(self, length: int) -> None:
        self.cache.length = length

    def push_raw(self, ids: Tensor) -> None:
        self.pending = ids

    def raw_logits(self, count: int, keep_mask: bool) -> Tensor:
        self.passes.append((max(self.cache.length, 0), self.pending[0].tolist()))
        start = self.after[:1] if self.pending.shape[1] < count else self.after[:0]  # before the first token
        self.cache.length += self.pending.shape[1]
        return torch.cat([start, self.after[self.pending[0]]])[None, -count:]


def run() -> tuple[list[tuple[int, list[int]]], list[int]]:
    """(place of the first token, tokens) of each pass, and the frame in the end."""
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.rand(VOCAB, VOCAB, generator=generator, dtype=torch.float64)
    numbers = torch.rand(1, 1 + COUNT, 3, WINDOW + 1, generator=generator, dtype=torch.float64)
    table = Table(logits)
    ids, _ = speculative_frame(table, Sampling(), "neighbour", numbers)  # type: ignore[arg-type]
    return table.passes, ids[0].tolist()


def drawing() -> str:
    """The figure as SVG: a row a pass, a column a token."""
    passes, ids = run()
    canvas = Canvas(96 + 30 * len(passes), f"Speculative decoding of {COUNT} tokens in {len(passes)} passes")
    more = "a row is a pass; its window holds drafts behind the tokens that are final"
    canvas.title(20, 26, f"{COUNT} tokens in {len(passes)} passes", more)
    low = 0
    for number, (first, tokens) in enumerate(passes):
        y = 42 + 30 * number
        given = {first + place: token for place, token in enumerate(tokens)}
        after = passes[number + 1][0] + 1 if number + 1 < len(passes) else COUNT
        canvas.text(30, y + 18, str(number + 1), "small quiet", "end")
        for place in range(COUNT):
            x = 42 + place * (CELL + 2)
            draft = given.get(place)
            if place < low:
                canvas.box(x, y, CELL, 26, "plain", str(ids[place]))
            elif place < after:
                stayed = draft == ids[place]
                canvas.box(x, y, CELL, 26, "good" if stayed else "compressed", str(ids[place]))
            elif draft is not None:
                canvas.box(x, y, CELL, 26, "empty", str(draft))
        canvas.text(42 + COUNT * (CELL + 2) + 10, y + 18, f"{after - low} final", "small quiet")
        low = after
    x, y = 42, 56 + 30 * len(passes)
    for kind, words in (
        ("plain", "final before"),
        ("good", "a draft that stayed"),
        ("compressed", "drawn anew by this pass"),
        ("empty", "drafts, judged again by the next pass"),
    ):
        canvas.box(x, y, 12, 12, kind)
        canvas.text(x + 18, y + 11, words, "small")
        x += 40 + 6.6 * len(words)
    return canvas.svg()
