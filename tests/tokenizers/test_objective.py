"""The tokenizer's training objective: weights, codebook, and what several ranks must agree on."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.tokenizers.objective import (
    ObjectiveConfig,
    TokenizerObjective,
    kmeans_plus_plus,
    to_floats,
)
from megavrc.tokenizers.quality import clip_psnr

STEPS, WARMUP = 6, 3


def objective(**changes: object) -> TokenizerObjective:
    torch.manual_seed(0)
    net = OmniTokenizerNet(
        OmniTokenizerConfig(
            width=32, heads=2, dim_head=16, enc_block="w", dec_block="t", temporal_depth=1, window=2, codes=16
        )
    )
    config = ObjectiveConfig(**{"warmup_steps": WARMUP, "seed_vectors": 96, **changes})  # type: ignore[arg-type]
    return TokenizerObjective(net, config).train()


def clips(step: int, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 256, (count, 5, 32, 32, 3), dtype=torch.uint8, generator=generator)


def codebook(model: TokenizerObjective) -> dict[str, Tensor]:
    return {
        name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith("net.codebook")
    }


def run(
    model: TokenizerObjective, first: int = 0, last: int = STEPS, part: slice = slice(None)
) -> list[float]:
    """Train by plain gradient descent, averaging gradients over ranks as an engine would."""
    losses = []
    for step in range(first, last):
        loss, _ = model(clips(step)[part], step)
        loss.backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                if dist.is_initialized():
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= dist.get_world_size()
                parameter.data -= 0.1 * parameter.grad
                parameter.grad = None
        losses.append(loss.item())
    return losses


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = objective()
    run(model, part=slice(2 * rank, 2 * rank + 2))
    torch.save(model.state_dict(), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one_on_the_joint_batch(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    model = objective()
    run(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(
            first[name], tensor, atol=2e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}"
        )
    assert model.seeded


@pytest.mark.parametrize("at", [2, 4])  # within the warm-up, and after it
def test_resume_is_exact(at: int) -> None:
    whole = objective()
    losses = run(whole)
    begun = objective()
    run(begun, last=at)
    resumed = objective()
    resumed.load_state_dict(begun.state_dict())
    assert run(resumed, first=at) == losses[at:]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_only_quantised_training_moves_the_codebook() -> None:
    model = objective()
    fresh = codebook(model)
    run(model, last=WARMUP)
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in codebook(model).items())
    run(model, first=WARMUP)
    trained = codebook(model)
    assert not torch.equal(trained["net.codebook.embeddings"], fresh["net.codebook.embeddings"])
    model.eval()
    model(clips(0), STEPS)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in codebook(model).items())


def test_without_warmup_the_given_codebook_is_used() -> None:
    model = objective(warmup_steps=0)
    rows = model.net.codebook.embeddings.clone()
    model.eval()
    _, metrics = model(clips(0), 0)
    assert metrics["commitment"] > 0
    assert torch.equal(model.net.codebook.embeddings, rows)


def test_moving_averages_follow_the_formula() -> None:
    model = objective(warmup_steps=0, decay=0.9)
    book = model.net.codebook
    z = torch.nn.functional.normalize(torch.randn(1, 2, 2, 2, 8), dim=-1)
    rows, ids = book.embeddings.clone(), book.nearest(z).flatten()
    model._move_codebook(z, ids)
    counts = torch.bincount(ids, minlength=16).float()
    sums = torch.zeros(16, 8).index_add_(0, ids, z.reshape(-1, 8))
    n = 0.9 + 0.1 * counts
    torch.testing.assert_close(book.N, n)
    torch.testing.assert_close(book.embeddings, (0.9 * rows + 0.1 * sums) / n[:, None], atol=1e-5, rtol=1e-5)


def test_gradient_passes_straight_through_the_codes() -> None:
    model = objective(warmup_steps=0)
    z = torch.nn.functional.normalize(torch.randn(1, 1, 4, 4, 8), dim=-1).requires_grad_()
    codes, _ = model._quantise(z)
    assert (
        torch.equal(codes.detach(), model.net.codebook(model.net.codebook.nearest(z))) is False
    )  # moved since
    codes.sum().backward()
    assert z.grad is not None and torch.equal(z.grad, torch.ones_like(z))


def test_pixel_weights() -> None:
    model = objective(first_frame=3.0, foreground=2.0, motion=4.0)
    frames = torch.full((1, 5, 32, 32, 3), 26, dtype=torch.uint8)
    frames[:, :3, 4:8, 4:8] = 200
    frames[:, 3:, 4:8, 8:12] = 200  # moves after frame 2
    weights = model.pixel_weights(to_floats(frames))[0, 0]
    assert weights[0, 0, 0] == 3.0 and weights[0, 4, 4] == 9.0
    assert weights[1, 0, 0] == 1.0 and weights[1, 4, 4] == 3.0
    assert weights[3, 4, 4] == 5.0 and weights[3, 4, 8] == 7.0  # left behind; arrived
    assert torch.equal(objective().pixel_weights(to_floats(frames)), torch.ones(1, 1, 5, 32, 32))


def test_seeding_spreads_over_the_clusters() -> None:
    centres = torch.eye(8)
    vectors = centres.repeat_interleave(50, 0) + 0.01 * torch.randn(
        400, 8, generator=torch.Generator().manual_seed(0)
    )
    rows = kmeans_plus_plus(vectors, 8, seed=0)
    assert sorted((rows @ centres.T).argmax(1).tolist()) == list(range(8))
    assert torch.equal(rows, kmeans_plus_plus(vectors, 8, seed=0))
    assert kmeans_plus_plus(vectors[:1].repeat(3, 1), 8, seed=0).shape == (8, 8)  # fewer vectors than rows


def test_learns_and_reports() -> None:
    model = objective(seed_vectors=512)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    frames = clips(0) // 64 * 20 + 90
    first = None
    for step in range(30):
        loss, metrics = model(frames, step)
        first = first or loss.item()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.8 * first
    assert set(metrics) == {"reconstruction", "commitment", "psnr", "ssim", "tokens", "perplexity", "usage"}
    assert metrics["tokens"] == model.net.encode(to_floats(frames))[0].numel()
    assert 1 <= metrics["perplexity"] <= 16 and 0 < metrics["usage"] <= 1


def test_psnr_of_a_known_error() -> None:
    x = torch.zeros(2, 3, 1, 4, 4)
    assert clip_psnr(x + 0.1, x).item() == pytest.approx(20.0, abs=1e-4)
