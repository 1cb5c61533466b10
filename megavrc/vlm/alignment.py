"""The two parts before the training of a mini-VLM, as with real ones: a tower that sees, and words that mean what is
seen.

The tower and the projector learn to tell what each token shows, where, and in a clip when. Then words for places,
colours, digits and times begin as the mean of the tokens that show them, and the head as the words, but small.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megavrc.progress import progress
from megavrc.vlm.mini import IDS, WIDTH, pixels, visual_grid
from megavrc.vlm.questions import COLOURS, DIGITS, FRAMES, PLACES, SEEN, SIDE, TIMES, Kind, labelled

BATCH, RATE = 16, 3e-3
PROBES = 128
"""Pictures or clips that words are made of."""


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
    """Cross-entropy of what each token shows, its place and its frame, by linear heads that are thrown away."""
    heads = [nn.Linear(WIDTH, classes) for classes in (len(SEEN), len(PLACES), FRAMES)]
    learns = [model.model.vision_tower, model.model.multi_modal_projector, *heads]
    weights = [weight for module in learns for weight in module.parameters()]
    optimizer = torch.optim.AdamW(weights, RATE, betas=(0.9, 0.98), weight_decay=0.02)
    for step in progress(range(steps), "tower"):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50, 3 * (steps - step) / steps)
        shown, labels = batch_of(kind, seed, step * BATCH, BATCH)
        tokens = visual_grid(model, shown).flatten(0, 3)
        frames = torch.arange(labels.shape[1])[:, None, None].expand(labels.shape)
        targets = (labels, places_like(labels), frames)
        losses = [
            F.cross_entropy(head(tokens), each.flatten()) for head, each in zip(heads, targets, strict=True)
        ]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()


def places_like(labels_BThw: Tensor) -> Tensor:
    """The number of the place where each token lies."""
    rows = torch.arange(SIDE).repeat_interleave(labels_BThw.shape[-1] // SIDE)
    return (SIDE * rows[:, None] + rows).expand(labels_BThw.shape)


@torch.no_grad()
def set_words(model: Any, kind: Kind, seed: int) -> None:
    """Each word apart from the mean of its kind, and of one size."""
    parts = [batch_of(kind, seed + 1, start, BATCH) for start in range(0, PROBES, BATCH)]
    tokens = torch.cat([visual_grid(model, shown) for shown, _ in parts])
    labels = torch.cat([known for _, known in parts])
    places = places_like(labels)
    groups = [
        {place: tokens[places == number] for number, place in enumerate(PLACES)},
        {name: tokens[labels == SEEN.index(name)] for name in COLOURS},
        {digit: tokens[labels == SEEN.index(digit)] for digit in DIGITS}
        if kind == "image"
        else {time: tokens[:, int(time)].flatten(0, 2) for time in TIMES},
    ]
    words = model.get_input_embeddings().weight
    for group in groups:
        means = {word: found.mean(0) for word, found in group.items()}
        centre = torch.stack(list(means.values())).mean(0)
        for word, mean in means.items():
            apart = mean - centre
            words[IDS[word]] = apart / apart.square().mean().sqrt() / 2
    model.lm_head.weight.copy_(words / 10)
