"""What the transformers wrapper and the plain loader share."""

import pytest
import torch

from megavrc.model import ClipRequest, Sampling, SamplingSettings, VideoPipeline
from megavrc.model.clips import encode_clips, sampling_settings
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet


def test_later_layers_and_parts_override() -> None:
    folder = {"first_temperature": 0.7, "later_temperature": 0.5, "top_p": 0.9, "guidance": 2.0}
    assert sampling_settings() == SamplingSettings()
    assert sampling_settings(folder) == SamplingSettings(Sampling(0.7, 0, 0.9), Sampling(0.5, 0, 0.9), 2.0)
    given = {"temperature": 1.0, "later_top_k": 5, "top_k": 3, "guidance": None}
    assert sampling_settings(folder, given) == SamplingSettings(
        Sampling(1.0, 3, 0.9), Sampling(1.0, 5, 0.9), 2.0
    )
    apart = folder | {"later_guidance": 1.0, "plausibility": 0.1}
    assert sampling_settings(apart).guidance_of(1) == 1.0
    whole = sampling_settings(apart, {"guidance": 3.0})  # of the whole clip, as temperature is
    assert (whole.guidance_of(0), whole.guidance_of(1), whole.plausibility) == (3.0, 3.0, 0.1)
    refined = {"later_passes": [8, 1], "row_passes": 2}
    assert sampling_settings(refined, {"later_passes": 4}) == SamplingSettings(later_passes=4, row_passes=2)
    with pytest.raises(ValueError, match="unknown option heat"):
        sampling_settings({"heat": 1})
    with pytest.raises(ValueError, match="temperature >= 0"):
        sampling_settings({"temperature": -1})


def test_a_tokenizer_that_looks_ahead_sees_a_clip_of_full_length(source) -> None:
    """`temporal_peg: original`: the given frames are followed by repetitions of the last one."""
    torch.manual_seed(0)
    config = OmniTokenizerConfig.from_dict(source.video.config.to_dict() | {"temporal_peg": "original"})
    net = OmniTokenizerNet(config).eval()
    given = torch.randint(256, (1, 5, 16, 16, 3), dtype=torch.uint8)
    pipeline, condition = VideoPipeline(source.model, net), source.model.null_condition(1)
    ids = pipeline.generate(ClipRequest(condition, [0], beginning=given, frames=9), "ids")
    full = torch.cat([given, given[:, -1:].expand(-1, 4, -1, -1, -1)], dim=1)
    assert ids.shape == (1, 3, 4, 4)
    assert torch.equal(ids[:, :2], encode_clips(net, full)[:, :2])
    with pytest.raises(ValueError, match="more than the clip to generate"):
        pipeline.generate(ClipRequest(condition, [0], beginning=given, frames=1), "ids")
