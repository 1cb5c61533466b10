"""Speculative Jacobi decoding: several tokens of a frame a pass, distributed exactly as if drawn one by one.

A pass runs a window of draft tokens behind the final ones, which gives for each draft the distribution p that its
position has after the drafts before it. The draft itself was drawn from a distribution q of an earlier pass; `couple`
turns it into a draw from p that is the same token as often as possible. The window's first p has only final tokens
before it, so its token is final; so is the next one if the draft before it stayed, and so on. What is not final is
the next pass's drafts, and their p its q.

Nothing is lost: what happens at earlier positions never looks at a draft, so given all of that the draft is still
distributed as q, and the coupled token as p. Speculative Jacobi decoding needs no training and no second model (arXiv
2410.01699); redrawing by coupling instead of independently keeps the drafts that are good already (arXiv 2510.24211).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ModelConfig
from .decoder import Decoder
from .sampling import Draft, Sampling, SamplingSettings, draw, probabilities


def couple(drafts: Tensor, q: Tensor, p: Tensor, accept: Tensor, redraw: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens distributed as p from drafts distributed as q, as few of them changed as possible (a maximal coupling).

    A draft x stays with probability min(1, p(x) / q(x)); else the token is drawn from max(0, p - q), normalised.

    Args:
        drafts: long [...].
        q, p: [..., V].
        accept, redraw: [...] independent numbers in [0, 1).

    Returns:
        long [...] and bool [...]: the tokens, and which drafts stayed.
    """
    q_of_draft, p_of_draft = (probs.gather(-1, drafts[..., None])[..., 0] for probs in (q, p))
    stays = accept * q_of_draft < p_of_draft
    excess = (p - q).clamp(min=0)
    excess = excess.where(excess.sum(-1, keepdim=True) > 0, p)  # p = q up to rounding
    return drafts.where(stays, draw(excess, redraw)), stays


def numbers_shape(config: ModelConfig, settings: SamplingSettings) -> tuple[int, int, int, int]:
    """Shape of the random numbers that speculation takes for one sample; its product is 0 without speculation.

    Frames; the first drafts and each pass; accepting, redrawing, new drafts; drafts of a window and the token after.

    Raises:
        ValueError: the model draws no frame token by token.
    """
    if settings.speculative and config.first_frame == "row":
        raise ValueError("speculative: this model draws its first frame row by row, none token by token")
    frames = 1 + config.frames if config.prediction == "token" else 1
    size = min(settings.speculative, config.tokens_per_frame - 1)
    return frames if settings.speculative else 0, 1 + config.tokens_per_frame, 3, size + 1


def speculative_frame(
    decoder: Decoder, sampling: Sampling, draft: Draft, numbers: Tensor, before_BN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw a frame of raw tokens; as after the sequential loop, all but the last have been run.

    The samples of a batch share one cache length, that of the slowest. A faster one keeps its lead, its final tokens
    running again among the pass's rows, until it is a window ahead; then it waits. So its own passes, and with them
    its draws, are the same whatever its neighbours do, and the batch takes about as many as its slowest sample.

    Args:
        decoder: its pending rows end where the frame begins.
        sampling: of the frame; p and q are the guided, filtered distributions.
        draft: where the first guess of a token comes from, see `SamplingSettings`.
        numbers: [B, 1 + N, 3, window + 1] in [0, 1), one frame's of `numbers_shape`.
        before_BN: the frame before, where there is one.

    Returns:
        ids, long [B, N], and how many passes each sample took part in, long [B].
    """
    window = _Window(decoder, sampling, draft, numbers, before_BN)
    count, start = window.count, 0
    while (low := window.low) < count:
        stop = window.stop
        if low:
            decoder.cache.truncate(start + low - 1)
        decoder.push_raw(window.ids[:, max(low - 1, 0) : stop])
        logits = decoder.raw_logits(stop - low + 1, keep_mask=False)
        if not low:
            start = decoder.cache.length - stop
        window.advance(logits)
    decoder.cache.truncate(start + count - 1)
    return window.ids[:, :count], window.passes


class _Window:
    """Final tokens and drafts of a batch, each sample's window behind its own final tokens.

    Attributes:
        count, size: tokens of the frame and drafts of a window.
        ids: long [B, ..], final tokens, then drafts; longer than the frame, for drafts past its end.
        final: long [B], how many tokens are final.
        passes: long [B], passes that a sample took part in.
        low: the fewest final tokens of a sample; the next pass predicts from this one on.
        stop: end of the drafts that the next pass runs.
    """

    def __init__(
        self, decoder: Decoder, sampling: Sampling, draft: Draft, numbers: Tensor, before_BN: Tensor | None
    ) -> None:
        config, batch, device = decoder.config, decoder.batch, numbers.device
        self.count, self.size = numbers.shape[1] - 1, numbers.shape[3] - 1
        self.sampling, self.draft, self.numbers, self.before = sampling, draft, numbers, before_BN
        self.grid, self.vocab = config.grid, config.vocab
        self.samples = torch.arange(batch, device=device)[:, None]
        self.slots = torch.arange(self.size + 1, device=device)  # the drafts and the token after them
        self.final = torch.zeros(batch, dtype=torch.long, device=device)
        self.passes = torch.zeros_like(self.final)
        self.ids = self.final.new_zeros(batch, self.count + 2 * self.size + 1)
        self.ids, self.q = self._guess(self.ids, self.final[:, None] + self.slots[:-1], numbers[:, 0, 2, :-1])
        self._measure()

    def _measure(self) -> None:
        final = self.final.tolist()
        self.low = min(final)
        ahead = max(count for count in final if count <= self.low + self.size)
        self.stop = min(ahead + self.size, self.count - 1)

    def advance(self, logits: Tensor) -> None:
        """Take in the logits of a pass, [B, 1 + stop - low, V]."""
        active = ((self.final < self.count) & (self.final <= self.low + self.size))[:, None]
        places = self.final[:, None] + self.slots
        rows = (places - self.low).clamp(max=logits.shape[1] - 1)  # past the end of the frame any will do
        p = probabilities(logits[self.samples, rows], self.sampling)
        turn = (1 + self.passes).clamp(max=self.count)
        accept, redraw, fresh = self.numbers[self.samples[:, 0], turn].unbind(1)
        drafts = self.ids.gather(1, places[:, :-1])
        coupled, stays = couple(drafts, self.q, p[:, :-1], accept[:, :-1], redraw[:, :-1])
        after = draw(p[:, -1:], redraw[:, -1:])
        ids = self.ids.scatter(1, places, torch.cat([coupled, after], dim=1))
        ids, fresh_q = self._guess(ids, places[:, -1:] + self.slots[1:], fresh[:, :-1])
        steps = 1 + stays.long().cumprod(1).sum(1, keepdim=True)
        steps = steps.minimum(self.count - self.final[:, None])
        q = torch.cat([p, fresh_q], dim=1)[self.samples, steps + self.slots[:-1]]
        self.ids, self.q = ids.where(active, self.ids), q.where(active[..., None], self.q)
        self.final, self.passes = self.final + (steps * active)[:, 0], self.passes + active[:, 0]
        self._measure()

    def _guess(self, ids: Tensor, places: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor]:
        """Put first drafts at these consecutive places; returns the ids and the distributions that they come from."""
        if self.draft == "random":
            tokens = (fresh * self.vocab).long()
            q = self.numbers.new_full((*tokens.shape, self.vocab), 1 / self.vocab)
            return ids.scatter(1, places, tokens), q
        if self.draft == "neighbour" and self.before is not None:
            tokens = self.before.gather(1, places.clamp(max=self.count - 1))
        else:
            newest = places[:, :1] - 1
            step = self.grid if self.draft == "neighbour" else 1
            # Up the column, to a token that is there.
            source = places - (places - newest + step - 1) // step * step
            source = source.where(source >= 0, newest).clamp(min=0)
            tokens = ids.gather(1, source)
        return ids.scatter(1, places, tokens), F.one_hot(tokens, self.vocab).to(self.numbers.dtype)
