"""`megavrc evaluate fd-self`: train a small video network on the data at hand, and try whether it may be used."""

from pathlib import Path

import numpy as np

from megavrc.errors import UserError, check_least
from megavrc.evaluation.clip_source import ClipSource, source_facts
from megavrc.evaluation.protocols import Window, protocol_of, real_windows
from megavrc.evaluation.self_network import check_folder
from megavrc.evaluation.self_training import (
    Clips,
    self_network,
    train_convolutions,
    try_network,
    what_is_told,
)
from megavrc.generation.clip_sources import open_source
from megavrc.generation.evaluate_clips import FEWEST_DRAWS, check_outputs, publish_report
from megavrc.hardware import check_device
from megavrc.progress import progress

FEWEST = 16  # clips of each side of the trial
SHARE = 4  # of the clips, at least, is left to train on: half


def fd_self(
    real: Path,
    out: Path,
    tokenizer: Path | None = None,
    n: int = 1024,
    clips: int = 4096,
    frames: int = 16,
    size: int = 64,
    steps: int = 1000,
    batch: int = 32,
    reversible: bool = False,
    draws: int = 200,
    seed: int = 0,
    device: str = "auto",
    json: Path | None = None,
) -> int:
    """Train a small video network on the data at hand, for `megavrc evaluate fvd --network OUT`, and try it.

    It learns what the list of clips tells (captions, labels, attributes), blur and the order of frames. On clips that
    it never saw its distance must grow from real over reconstructed to blurred, frozen, reversed, shuffled and torn
    ones; a network that fails is refused by every other command. Exit code 1 if it fails.

    Args:
        real: real clips with captions, labels or attributes: manifest.jsonl:SPLIT, or as for megavrc evaluate
            fvd.
        out: folder for the network.
        tokenizer: folder or .ckpt of a video tokenizer: its reconstructions must lie between real and faulty clips.
        n: clips of each side of the trial, which are not trained on; at most a quarter of all. Shots of one video may
            stand on both sides of it and in training.
        clips: largest number of clips to train on; all are held in memory.
        frames: frames of each clip.
        size: side in pixels that clips are resized to (short side, then the centre).
        steps: training steps.
        batch: clips of a step.
        reversible: say that clips are as probable backward as forward, as those of megavrc make_scenes and
            make_shapes are; a reversed clip is then no fault.
        draws: draws of the bootstrap.
        seed: seed of weights, choices and bootstrap.
        device: `cpu` or `cuda`; auto is cuda where there is one.
        json: file to write the trial to.
    """
    check_outputs(json)
    check_folder(out)
    check_least(n=(n, FEWEST), clips=(clips, 1), frames=(frames, 2), size=(size, 16), steps=(steps, 1))
    check_least(batch=(batch, 1), draws=(draws, FEWEST_DRAWS))
    device = str(check_device(device))
    source = open_source(real, device=device)
    n = min(n, len(source.clips) // SHARE)
    if n < FEWEST:
        raise UserError(f"{source.name}: {len(source.clips)} clips, at least {SHARE * FEWEST} are needed")
    changes = [f"n={2 * n + clips}", f"frames={frames}"]
    windows = real_windows(source, protocol_of("custom", changes=changes), seed=seed).windows
    reference, measured, training = windows[:n], windows[n : 2 * n], windows[2 * n :]
    if not training:
        raise UserError(f"{source.name}: too few clips of {frames} frames to train on")
    words, targets = what_is_told(source, [window.clip for window in training])
    trained = train_convolutions(_read(source, training, size), targets, steps, batch, seed, device)
    known = _read(source, reference, size)
    network = self_network(trained, known, seed)
    rebuilt = open_source(tokenizer, like=source, device=device) if tokenizer else None
    made = _read(rebuilt, measured, size) if rebuilt else None
    report = try_network(network, known, _read(source, measured, size), made, draws, seed, reversible)
    report.protocol.update(clips=len(training), steps=steps, batch=batch, words=len(words))
    report.protocol["sources"] = [source_facts(source)]
    if not tokenizer:
        report.lines.append("without --tokenizer it is not known where reconstructed clips lie")
    wrong = report.protocol["wrong"]
    network.save(out, {"real": source.name, "words": words, "wrong": wrong})
    config = {"real": real, "out": out, "tokenizer": tokenizer}
    publish_report("fd-self", report, config, json, device)
    print(f"{out}: {'did not pass: it is refused by other commands' if wrong else 'passed'}")
    return 1 if wrong else 0


def _read(source: ClipSource, windows: list[Window], size: int) -> Clips:
    return np.stack(
        [source.read(window.clip, window.wanted, size) for window in progress(windows, source.name)]
    )
