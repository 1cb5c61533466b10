"""The two parts before the training of a mini-VLM, as with real ones: a tower that sees, and words that mean what is
seen.

The tower and the projector learn to tell what each token shows, where, and in a clip when; with them the first layers
of the LLM learn which way what it shows has come since the frame before, which no single frame tells. Then words for
places, colours, digits and times begin as the mean of the tokens that show them, and the head as the words, but small.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megavrc.progress import progress
from megavrc.video.shapes import DIRECTIONS
from megavrc.vlm.mini import EARLY, IDS, WIDTH, WORD_SIZE, pixels, visual_grid
from megavrc.vlm.questions import COLOURS, DIGITS, FRAMES, PLACES, SEEN, SIDE, TIMES, Kind, labelled

BATCH: dict[Kind, int] = {"image": 16, "video": 8}
RATE = 3e-3
PROBES = 128
"""Pictures or clips that words are made of."""
STOOD, UNKNOWN = len(DIRECTIONS), -100


def begin_aligned(model: Any, kind: Kind, seed: int, steps: int) -> None:
    """Train the tower for `steps`, then set the words. The same for a seed; on the CPU."""
    if steps:
        teach_tower(model, kind, seed, steps)
    set_words(model.eval(), kind, seed)
    model.train()


def batch_of(kind: Kind, seed: int, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Pixels [B, T, 3, H, W] and labels [B, T, h, w]."""
    found = [labelled(kind, seed, index) for index in range(start, start + count)]
    return pixels([frames for frames, _ in found]), torch.stack(
        [torch.from_numpy(known) for _, known in found]
    )


def teach_tower(model: Any, kind: Kind, seed: int, steps: int) -> None:
    """Cross-entropy of what each token shows, its place, its frame and its motion, by heads that are thrown away."""
    heads = [nn.Linear(WIDTH, classes) for classes in (len(SEEN), len(PLACES), FRAMES, len(DIRECTIONS) + 1)]
    learns = [model.model.vision_tower, model.model.multi_modal_projector, *heads]
    if kind == "video":
        learns += model.model.language_model.layers[:EARLY]
    weights = [weight for module in learns for weight in module.parameters()]
    optimizer = torch.optim.AdamW(weights, RATE, betas=(0.9, 0.98), weight_decay=0.02)
    for step in progress(range(steps), "tower"):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50, 3 * (steps - step) / steps)
        shown, labels = batch_of(kind, seed, step * BATCH[kind], BATCH[kind])
        tokens = visual_grid(model, shown).flatten(1, 3)
        frames = torch.arange(labels.shape[1])[:, None, None].expand(labels.shape)
        told = [(tokens, labels), (tokens, places_like(labels)), (tokens, frames)]
        losses = []
        if kind == "video":
            early = early_states(model, tokens)
            told.append((F.rms_norm(early, (WIDTH,)), motion_like(labels)))
            losses = [unlike_words(tokens), unlike_words(early)]
        for head, (states, target) in zip(heads, told, strict=False):
            said = head(states).flatten(0, 1)
            losses.append(F.cross_entropy(said, target.flatten(), ignore_index=UNKNOWN))
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()


def unlike_words(tokens_BND: Tensor) -> Tensor:
    """How far tokens are from the mean and size of words, 0 and 1: layers that learn from larger ones drown words."""
    return tokens_BND.mean((0, 1)).square().mean() + (tokens_BND.square().mean() - 1).square()


def early_states(model: Any, tokens_BND: Tensor) -> Tensor:
    """[B, N, D]: visual tokens after the first layers of the LLM, as the next layer is given them."""
    text = model.model.language_model
    every, norm = text.layers, text.norm
    text.layers, text.norm = every[:EARLY], nn.Identity()
    try:
        return text(inputs_embeds=tokens_BND, use_cache=False).last_hidden_state
    finally:
        text.layers, text.norm = every, norm


def motion_like(labels_BThw: Tensor) -> Tensor:
    """The number of the direction that what a token shows has come from the frame before, or `STOOD`.

    Colours are in a clip once, and steps are of one place; `UNKNOWN` in the first frame, and where nothing is.
    """
    before = F.pad(labels_BThw, (0, 0, 0, 0, 1, 0))[:, :-1]
    found = torch.full_like(labels_BThw, UNKNOWN)
    for number, (x, y) in enumerate([*DIRECTIONS.values(), (0, 0)]):
        came = before.roll((y, x), (2, 3)) == labels_BThw
        found[came & (labels_BThw > 0)] = number
    return found


def places_like(labels_BThw: Tensor) -> Tensor:
    """The number of the place where each token lies."""
    rows = torch.arange(SIDE).repeat_interleave(labels_BThw.shape[-1] // SIDE)
    return (SIDE * rows[:, None] + rows).expand(labels_BThw.shape)


@torch.no_grad()
def set_words(model: Any, kind: Kind, seed: int) -> None:
    """Each word apart from the mean of its kind, and of one size."""
    parts = [batch_of(kind, seed + 1, start, 16) for start in range(0, PROBES, 16)]
    tokens = torch.cat([visual_grid(model, shown) for shown, _ in parts])
    labels = torch.cat([known for _, known in parts])
    places = places_like(labels)
    groups = [
        {place: tokens[places == number] for number, place in enumerate(PLACES)},
        {name: tokens[labels == SEEN.index(name)] for name in COLOURS},
    ]
    if kind == "image":
        groups.append({digit: tokens[labels == SEEN.index(digit)] for digit in DIGITS})
    else:
        early, moved = early_states(model, tokens.flatten(1, 3)).view_as(tokens), motion_like(labels)
        groups.append({time: tokens[:, int(time)].flatten(0, 2) for time in TIMES})
        groups.append({way: early[moved == number] for number, way in enumerate(DIRECTIONS)})
    words = model.get_input_embeddings().weight
    for group in groups:
        means = {word: found.mean(0) for word, found in group.items()}
        centre = torch.stack(list(means.values())).mean(0)
        for word, mean in means.items():
            apart = mean - centre
            words[IDS[word]] = apart / apart.square().mean().sqrt() * WORD_SIZE[kind]
    model.lm_head.weight.copy_(words / 10)
