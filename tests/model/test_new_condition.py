"""The condition that docs/architecture.md shows: used as it stands there by training, generation and conversion."""

from pathlib import Path
from typing import Any

import pytest
import torch
from programs import DOCS, programs_of

from megavrc.errors import UserError
from megavrc.generation.folder import Folder
from megavrc.model import VRC, ClipRequest, ConditionConfig, ModelConfig, SamplingSettings, VideoPipeline
from megavrc.model.condition import KINDS, kind_of
from megavrc.model.flops import training_flops
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.tokenizers import OmniTokenizer
from megavrc.training.tasks.conditions import conditions_of

PAGE = DOCS / "architecture.md"
CAPTIONS = ["a red square moves left", "a blue circle moves up"]


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    [code] = [block for block in programs_of(PAGE) if "class DirectionEmbedding" in block]
    monkeypatch.setitem(KINDS, "direction", None)  # and it goes again
    exec(code, {})
    condition: Any = ConditionConfig(kind="direction", slots=1)  # type: ignore[arg-type]
    return ModelConfig(grid=4, layers=2, vocab=32, frames=1, condition=condition)


def test_the_condition_of_the_page_trains_and_generates(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = VRC(config)
    items = [{"caption": caption} for caption in (*CAPTIONS, None)]
    condition = conditions_of(items, config.condition, None)
    assert condition.values.tolist() == [0, 2, 4], "the last has no caption"
    condition = condition[:2]
    ids = torch.randint(config.vocab, (2, 2, 4, 4))
    model(ids, condition, torch.tensor([True, False])).loss.backward()
    used = model.condition.table.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert used in ([], [2, 4]) and training_flops(config) > 0
    torch.testing.assert_close(
        model.embed_condition(condition, torch.tensor([True, True])),
        model.embed_condition(model.null_condition(2)),
    )
    settings = SamplingSettings(guidance=2.0)
    clips = VideoPipeline(model.eval()).generate(ClipRequest(condition, [0, 1], settings), "ids")
    assert clips.shape == ids.shape


def test_the_condition_of_the_page_is_asked_for_with_a_prompt(config: ModelConfig) -> None:
    net = OmniTokenizerNet(OmniTokenizerConfig(width=32, heads=2, dim_head=8, codes=32, code_dim=4))
    folder = Folder(Path("x"), VRC(config).eval(), OmniTokenizer(net), None, None, {})
    assert folder.condition(CAPTIONS).values.tolist() == [0, 2]
    with pytest.raises(UserError, match="ends in sideways"):
        folder.condition("a red square moves sideways")
    with pytest.raises(UserError, match="generated from prompts"):
        folder.condition(label=3)
    assert kind_of(config.condition).reads == "caption"
