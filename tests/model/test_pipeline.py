"""What a pipeline keeps: for whom, how long, and that it is nobody else's."""

import copy
import pickle
import weakref

import pytest
import torch
from models import build, generate, inputs

from megavrc.model import ClipRequest, Sampling, SamplingSettings, VideoPipeline, pipeline
from megavrc.model.condition import Condition
from megavrc.model.cuda_graphs import Workspace

SETTINGS = SamplingSettings(Sampling(0.8, top_k=20), guidance=1.5)
OTHER = SamplingSettings(Sampling(0.7), guidance=1.5)


class Eager(Workspace):
    """One as on CUDA, whose passes run without graphs, so on a CPU too."""

    def __init__(self, model, batch, copies):
        super().__init__(model, batch, copies, steps="graph")

    def run(self, key, decoder, one_pass):
        one_pass()


@pytest.fixture
def kept(monkeypatch):
    """The workspace that a pipeline keeps."""
    monkeypatch.setattr(pipeline, "Workspace", Eager)
    return lambda of: next(iter(of._kept.values()))


def test_a_workspace_serves_jobs_of_its_kind_and_goes_with_the_next_kind_or_the_pipeline(kept):
    model = build()
    _, condition = inputs(model)
    owner = VideoPipeline(model)
    expected = [generate(VideoPipeline(model), condition, SETTINGS, seeds) for seeds in ([0, 1], [2, 3])]
    assert torch.equal(generate(owner, condition, SETTINGS, [0, 1]), expected[0])
    first = weakref.ref(kept(owner))
    assert torch.equal(generate(owner, condition, SETTINGS, [2, 3]), expected[1])
    assert kept(owner) is first()
    generate(owner, condition, OTHER, [0, 1])
    assert first() is None and len(owner._kept) == 1
    last = weakref.ref(kept(owner).memory)
    del owner
    assert last() is None


def test_on_a_cpu_nothing_is_kept():
    model = build()
    owner = VideoPipeline(model)
    generate(owner, inputs(model)[1], SETTINGS, [0, 1])
    assert not owner._kept


def test_clips_that_overlap_in_time_do_not_share_a_workspace(kept):
    model = build()
    condition = Condition(inputs(model)[1])
    owner = VideoPipeline(model)
    requests = [ClipRequest(condition, seeds, SETTINGS) for seeds in ([0, 1], [2, 3])]
    expected = [owner.generate(request, "ids") for request in requests]
    streams = [owner.stream(request, "ids") for request in requests]
    frames = list(zip(*streams, strict=True))
    for index, clips in enumerate(expected):
        assert torch.equal(torch.cat([both[index] for both in frames], dim=1), clips)


@pytest.mark.parametrize("change", ["type", "place"])
def test_what_was_captured_over_other_weights_is_not_used(kept, change):
    model = build()
    condition = inputs(model)[1]
    owner = VideoPipeline(model)
    generate(owner, condition, SETTINGS, [0, 1])
    before = weakref.ref(kept(owner))
    if change == "type":
        model.float()
    else:
        model.head.weight.data = model.head.weight.data.flip(0)
    got = generate(owner, condition, SETTINGS, [0, 1])
    assert before() is None
    assert kept(owner).memory.cache.layers[0].dtype == model.tokens.weight.dtype
    assert torch.equal(got, generate(VideoPipeline(model), condition, SETTINGS, [0, 1]))


def test_an_abandoned_clip_gives_its_workspace_back_and_the_mode_of_the_model(kept):
    model = build().train()
    owner = VideoPipeline(model)
    frames = owner.stream(ClipRequest(Condition(inputs(model)[1]), [0, 1], SETTINGS), "ids")
    next(frames)
    assert not model.training and not owner._kept
    frames.close()
    assert model.training and len(owner._kept) == 1


@pytest.mark.parametrize("training", [True, False])
def test_a_stream_that_ends_leaves_another_one_its_mode(training):
    """In training mode a pass would change the running statistics of batch norms."""
    model = build().train(training)
    request = ClipRequest(Condition(inputs(model)[1]), [0, 1], SETTINGS)
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    expected = VideoPipeline(model).generate(request, "ids")
    streams = [VideoPipeline(model).stream(request, "ids") for _ in range(2)]
    frames = [next(stream) for stream in streams]
    list(streams[0])
    assert torch.equal(torch.cat([frames[1], *streams[1]], dim=1), expected)
    assert model.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda owner: pickle.loads(pickle.dumps(owner))])
def test_a_copy_starts_without_what_was_kept(kept, how):
    model = build()
    condition = inputs(model)[1]
    owner = VideoPipeline(model)
    expected = generate(owner, condition, SETTINGS, [0, 1])
    other = how(owner)
    assert owner._kept and not other._kept
    assert torch.equal(generate(other, condition, SETTINGS, [0, 1]), expected)
    assert (other.vrc is model) == (how is copy.copy)


def test_impossible_requests_are_refused():
    model = build()
    condition = Condition(inputs(model)[1])
    for output in ("uint8", "magic"):
        with pytest.raises(ValueError, match=f"output: '{output}' is neither ids nor"):
            VideoPipeline(model).stream(ClipRequest(condition, [0, 1]), output)
    pixels = torch.zeros(2, 1, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="a beginning of pixels needs a video tokenizer"):
        VideoPipeline(model).generate(ClipRequest(condition, [0, 1], beginning=pixels), "ids")
    for options, message in (
        (dict(seed=[0]), "seed: 1 for 2 clips"),
        (dict(first_frame=pixels[:, 0], clip=pixels), "first_frame or clip, not both"),
        (dict(settings=SETTINGS, top_k=3), "give settings or top_k, not both"),
    ):
        with pytest.raises(ValueError, match=message):
            ClipRequest.of(condition, {}, **options)
