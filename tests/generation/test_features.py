"""Models of text features: prompts through the text encoder that they were trained with."""

import json
from pathlib import Path

import pytest
import torch
from encoders import make_encoder
from hf_source import Source
from transformers import AutoTokenizer, T5EncoderModel

from megavrc.config import run_command
from megavrc.errors import UserError
from megavrc.generation.command import generate
from megavrc.generation.folder import load_folder
from megavrc.hf.convert import build, read_run, write_folder
from megavrc.model import ConditionConfig
from megavrc.model.clips import sampling_settings
from megavrc.model.modeling_vrc import VRCForVideoGeneration
from megavrc.tokenizers.text_encoder import encoder_identity

PROMPTS = ["a red square moves left", "a blue circle"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder") / "t5")


@pytest.fixture(scope="module")
def of_features(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converted folder of a model that was trained on the features of `encoder`."""
    root = tmp_path_factory.mktemp("features")
    source = Source(root, ConditionConfig(text="features", feature_dim=16, slots=8))
    training = {"facts": source.facts | {"text_encoder": encoder_identity(encoder)["sha256"]}}
    write_folder(root / "hf", build(read_run(source.run), torch.float32), source.video, None, training, "4GB")
    return root / "hf"


def test_clips_are_those_of_the_encoder_s_features(of_features, encoder) -> None:
    """Against transformers, for the encoder and for the model."""
    tokenizer, t5 = AutoTokenizer.from_pretrained(encoder), T5EncoderModel.from_pretrained(encoder).eval()
    features, real = torch.zeros(2, 7, 16), torch.zeros(2, 7, dtype=torch.bool)
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            found = t5(**tokenizer(prompt, return_tensors="pt")).last_hidden_state[0]
        features[row, -len(found) :], real[row, -len(found) :] = found.half().float(), True
    assert real.sum(1).tolist() == [6, 4]
    model = VRCForVideoGeneration.from_pretrained(of_features)
    expected = model.generate_video(condition=(features, real), seed=3, guidance=2.0)
    folder = load_folder(of_features, text_encoder=encoder)
    settings = sampling_settings(folder.sampling, {"guidance": 2.0})
    assert torch.equal(folder.generate(PROMPTS, seed=[3, 4], settings=settings, batch_size=1)[1], expected)
    empty = folder.condition(["", *PROMPTS], None)
    assert not empty[:1].real.any() and not empty[:1].values.any(), "as in training"
    assert torch.equal(empty[1:].values, features)
    assert torch.equal(model.generate_video(condition=empty[1:], seed=3, guidance=2.0), expected)
    (streamed,) = folder.stream(PROMPTS, seed=[3, 4], settings=settings, by_frame=False)
    assert torch.equal(streamed, expected)


def test_the_command_takes_the_encoder(of_features, encoder, tmp_path, capsys) -> None:
    words = ["--model", str(of_features), "--prompt", json.dumps(PROMPTS), "--out", str(tmp_path / "out")]
    assert run_command(generate, words) == 2
    assert (
        "prompts and the text encoder that it was trained with (megavrc generate" in capsys.readouterr().err
    )
    words += ["--text_encoder", str(encoder)]
    assert run_command(generate, words) == 0
    assert "2 clips generated, 0 were there" in capsys.readouterr().out


def test_other_encoders_and_long_prompts_are_refused(of_features, encoder, folder, tmp_path) -> None:
    other = make_encoder(tmp_path / "t5", seed=1)
    with pytest.raises(UserError, match="not the one that the model was trained with"):
        load_folder(of_features, text_encoder=other)
    with pytest.raises(UserError, match="not conditioned on text features"):
        load_folder(folder, text_encoder=encoder)
    with pytest.raises(UserError, match="more than 7 text tokens, which is what the model takes: shorten it"):
        load_folder(of_features, text_encoder=encoder).generate([f"{PROMPTS[0]} a circle"], seed=[0])
