"""The mini-VLM: its task, and the trained one that the repository holds."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from megavrc.config import load_config
from megavrc.errors import UserError
from megavrc.files import read_json, sha256_file
from megavrc.training.config import TrainConfig
from megavrc.vlm.accuracy import Asked, asked
from megavrc.vlm.alignment import begin_aligned, early_states, teach_tower, unlike_words
from megavrc.vlm.asking import MiniSubject, Reduced
from megavrc.vlm.mini import (
    EARLY,
    FOLDER,
    IDS,
    LAYERS,
    VISUAL,
    WIDTH,
    WORDS,
    configuration,
    load_mini,
    new_mini,
    pixels,
    visual_grid,
)
from megavrc.vlm.mini_task import MiniRunConfig, MiniTask, answer_logits
from megavrc.vlm.questions import ANSWERS, COLOURS, PLACES, SEEN, TYPES, Kind, conversation, labelled

KINDS: tuple[Kind, ...] = ("image", "video")
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
TRAINED = [
    pytest.param(
        kind,
        marks=()
        if (FOLDER / kind / "complete.json").is_file()
        else pytest.mark.skip(reason=f"no {kind} in examples/mini_vlm: make vlm trains it"),
    )
    for kind in KINDS
]


def answers(kind: Kind, reduced: Reduced, count: int = 24) -> Asked:
    chosen = [conversation(kind, "test", 9, index) for index in range(count)]
    return asked(MiniSubject(FOLDER, kind), {9: chosen}, reduced, 3, 50)


def step(kind: Kind, tmp_path: Any) -> tuple[MiniTask, Any, dict[str, torch.Tensor]]:
    batches = TrainConfig(global_batch=12, micro_batch=12)
    task = MiniTask(MiniRunConfig(run_dir=str(tmp_path), kind=kind, train=batches))
    torch.manual_seed(0)
    return task, task.build(), task.collate([task.source[index] for index in range(4)])


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_answers(kind: Kind, tmp_path: Any) -> None:
    """At first every word is as likely; the answer is said before it is read; the picture reaches it."""
    task, model, batch = step(kind, tmp_path)
    assert 5e5 < sum(weight.numel() for weight in model.parameters()) < 1.5e6
    assert VISUAL[kind] - (kind == "video") <= {"image": 64, "video": 256}[kind]
    loss, shares = task.loss(model, batch, 0)
    assert float(loss.detach()) == pytest.approx(math.log(len(WORDS)), abs=1e-5) and list(shares) == list(
        TYPES[kind]
    )
    torch.nn.init.normal_(model.lm_head.weight, 0, 0.1)
    ids = batch["ids"].clone()
    ids[:, -1] = 0  # the last answer is only a target
    first, second = (answer_logits(model, given, batch["pixels"], kind)[0] for given in (batch["ids"], ids))
    assert torch.equal(first, second)
    black = {**batch, "pixels": torch.full_like(batch["pixels"], -1)}
    first, second = (float(task.loss(model, given, 0)[0].detach()) for given in (batch, black))
    assert first != second


def test_an_optimiser_step_helps(tmp_path: Any) -> None:
    task, model, batch = step("image", tmp_path)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(4):
        loss, _ = task.loss(model, batch, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5


def test_words_begin_beside_what_they_name() -> None:
    """Of the words for places and of those for colours, the nearest to a token is that of where it lies and shows."""
    torch.manual_seed(1)
    model = new_mini("image")
    begin_aligned(model, "image", 0, 60)
    frames, labels = labelled("image", 9, 0)
    with torch.no_grad():
        tokens = visual_grid(model.eval(), pixels([frames]))[0, 0].flatten(0, 1)

    def nearest(names: Sequence[str], chosen: torch.Tensor) -> list[str]:
        words = model.get_input_embeddings().weight[[IDS[name] for name in names]]
        return [names[number] for number in ((chosen - tokens.mean(0)) @ words.T).argmax(-1).tolist()]

    lies = [PLACES[4 * (row // 2) + column // 2] for row in range(8) for column in range(8)]
    assert np.mean([one == other for one, other in zip(nearest(PLACES, tokens), lies, strict=True)]) > 0.6
    shown = [SEEN[number] for number in labels.flatten() if SEEN[number] in COLOURS]
    coloured = tokens[torch.from_numpy(np.isin(labels.flatten(), [SEEN.index(name) for name in COLOURS]))]
    assert (
        np.mean([one == other for one, other in zip(nearest(tuple(COLOURS), coloured), shown, strict=True)])
        > 0.3  # of eight; corners of shapes are background
    )


def test_motion_is_learned_by_the_first_layers_alone() -> None:
    """Their states are those of the whole model, which is whole again afterwards."""
    torch.manual_seed(1)
    model = new_mini("video")
    text = model.model.language_model
    before = [layer.mlp.up_proj.weight.clone() for layer in text.layers]
    teach_tower(model, "video", 0, 2)
    changed = [
        not torch.equal(old, layer.mlp.up_proj.weight) for old, layer in zip(before, text.layers, strict=True)
    ]
    assert changed == [number < EARLY for number in range(LAYERS)]
    tokens = torch.randn(1, 20, WIDTH)
    with torch.no_grad():
        states = text(inputs_embeds=tokens, output_hidden_states=True).hidden_states
        torch.testing.assert_close(early_states(model, tokens), states[EARLY])
    assert float(unlike_words(7 * tokens)) > 1000 * float(unlike_words(tokens))


def test_a_batch_that_asks_types_unequally_is_refused() -> None:
    with pytest.raises(ValueError, match=r"global_batch: a multiple of 3"):
        MiniRunConfig(run_dir="x", kind="image")  # 8 by default


def test_weights_that_are_not_there_are_named(tmp_path: Any) -> None:
    with pytest.raises(UserError, match="make vlm"):
        load_mini(tmp_path, "image")


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def stripped(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    left = {name: value for name, value in weights.items() if "projector.linear_1.bias" not in name}
    save_file(left, folder / "model.safetensors", {"format": "pt"})


def resized(folder: Path) -> None:
    config = read_json(folder / "config.json")
    config["text_config"]["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, r"image: .*header"),
        (
            stripped,
            r"image: 1 weights of the mini-VLM are missing \(model\.multi_modal_projector\.linear_1\.bias\)",
        ),
        (
            resized,
            r"image: 18 weights of the mini-VLM have other sizes than config\.json says "
            r"\(model\.language_model\.layers\.0\.",
        ),
    ],
)
def test_a_folder_whose_weights_are_not_whole_is_named(spoil: Any, words: str, tmp_path: Path) -> None:
    """They would be random, and be measured."""
    new_mini("image").save_pretrained(tmp_path / "image")
    load_mini(tmp_path, "image")
    spoil(tmp_path / "image")
    with pytest.raises(UserError, match=words):
        load_mini(tmp_path, "image")


@pytest.mark.parametrize("kind", TRAINED)
def test_the_trained_one_is_small_and_that_of_its_run(kind: Kind) -> None:
    file = FOLDER / kind / "model.safetensors"
    assert (
        file.stat().st_size < 2e6
        and sha256_file(file) == read_json(FOLDER / kind / "complete.json")["sha256"]
    )
    assert load_mini(FOLDER, kind).config.to_dict()["text_config"]["hidden_size"] == 96


@pytest.mark.parametrize("kind", TRAINED)
def test_the_trained_one_follows_the_configuration_as_it_is(kind: Kind) -> None:
    """Its steps, batches, rates and seed are those of the shipped file; the network is that of the code."""
    recipe = read_json(FOLDER / kind / "complete.json").get("recipe")
    if recipe is None:
        pytest.skip("trained before recipes were written down")
    now = asdict(load_config(MiniRunConfig, ["--config", f"mini_vlm_{kind}"]))
    for name in ("kind", "seed", "tower_steps", "blind", "optimizer"):
        assert recipe[name] == json.loads(json.dumps(now[name])), name
    for name in ("steps", "global_batch", "micro_batch", "clip", "precision"):
        assert recipe["train"][name] == now["train"][name], name
    network = load_mini(FOLDER, kind).config.to_dict()
    for part in ("text_config", "vision_config"):
        wanted = configuration(kind).to_dict()[part]
        assert {name: network[part][name] for name in SIZES} == {name: wanted[name] for name in SIZES}


@pytest.mark.parametrize("kind", TRAINED)
def test_random_draws_anew_for_each_seed(kind: Kind) -> None:
    """The same conversations under two seeds are answered differently; a method without a seed answers them alike."""
    chosen = [conversation(kind, "test", 9, index) for index in range(24)]
    for name, differ in (("random", True), ("strided", False)):
        right = asked(MiniSubject(FOLDER, kind), {1: chosen, 2: chosen}, Reduced(name, 0.1), 1, 24).right
        assert np.array_equal(right[:24], right[24:]) != differ


@pytest.mark.parametrize("kind", TRAINED)
def test_one_that_was_trained_on_black_pictures_guesses(kind: Kind) -> None:
    """Within five points of chance on every type: questions and earlier answers give nothing away."""
    file = FOLDER / kind / "blind.json"
    if not file.is_file():
        pytest.skip(f"no blind run of {kind} yet")
    run = read_json(file)
    assert run["recipe"]["blind"] and run["recipe"]["kind"] == kind
    for name in TYPES[kind]:
        assert abs(run["metrics"][f"val/test/{name}"] - 1 / len(ANSWERS[name])) < 0.05, name


@pytest.mark.parametrize("kind", TRAINED)
def test_the_trained_one_answers_as_its_run_says(kind: Kind) -> None:
    """And needs its tokens: with a tenth of them, at random, it loses ten points and more of some type."""
    measured = read_json(FOLDER / kind / "complete.json")["metrics"]
    whole = answers(kind, Reduced())
    few = answers(kind, Reduced("random", 0.1))
    for name in TYPES[kind]:
        right = float(whole.right[whole.types == name].mean())
        assert right > measured[f"val/test/{name}"] - 0.2, name
    lost = [(whole.right.astype(int) - few.right)[whole.types == name].mean() for name in TYPES[kind]]
    assert max(lost) >= 0.1
    assert all(0.05 < share < 0.15 for share, _ in few.budgets)
