"""Discriminators, perceptual distance, SSIM, resolution scaling, restart of codes: each alone, then on two ranks."""

import dataclasses
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from megavrc.errors import UserError
from megavrc.evaluation.quality import mean_psnr
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet, to_patches
from megavrc.tokenizers.discriminators import PatchDiscriminator, gan_terms
from megavrc.tokenizers.inflation import inflate
from megavrc.tokenizers.objective import ObjectiveConfig, TokenizerObjective, mean_over_ranks
from megavrc.tokenizers.perceptual import STAGES, Perceptual
from megavrc.tokenizers.quality import clip_psnr, ssim

FULL = {"perceptual": 0.5, "vgg": "given", "gan_frame": 0.3, "gan_clip": 0.2, "feature_matching": 0.5}
FULL |= {"gan_width": 4, "gan_start": 2, "restart": True, "scales": [0.5, 1.0]}
STEPS = 5


def vgg_state(narrow: int = 16) -> dict[str, Tensor]:
    """Random weights with torchvision's names and `narrow` times fewer channels."""
    generator, channels, state = torch.Generator().manual_seed(0), 3, {}
    for stage, width in zip(STAGES, (64, 128, 256, 512, 512), strict=True):
        for number in stage:
            shape = (width // narrow, channels, 3, 3)
            state[f"features.{number}.weight"] = torch.randn(shape, generator=generator) * 0.2
            state[f"features.{number}.bias"] = torch.zeros(width // narrow)
            channels = width // narrow
    return state | {"classifier.0.bias": torch.zeros(4)}


def heads_state(narrow: int = 16) -> dict[str, Tensor]:
    widths = enumerate((64, 128, 256, 512, 512))
    return {f"lin{tap}.model.1.weight": torch.full((1, width // narrow, 1, 1), 0.5) for tap, width in widths}


def objective(**changes: object) -> TokenizerObjective:
    torch.manual_seed(0)
    sizes = {"width": 16, "heads": 2, "dim_head": 8, "enc_block": "w", "dec_block": "t", "temporal_depth": 1}
    net = OmniTokenizerNet(OmniTokenizerConfig(**sizes, window=2, codes=16))  # type: ignore[arg-type]
    config = ObjectiveConfig(**{"warmup_steps": 0, **FULL, **changes})  # type: ignore[arg-type]
    return TokenizerObjective(net, config, Perceptual(vgg_state()) if config.perceptual else None).train()


def clips(step: int, count: int = 4, frames: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 256, (count, frames, 32, 32, 3), dtype=torch.uint8, generator=generator)


def test_sizes_are_those_of_the_original() -> None:
    counts = [sum(p.numel() for p in PatchDiscriminator(dims).parameters()) for dims in (2, 3)]
    # Its two together have 13,824,394: 2 of a norm on the clip logit and 6 of an optional noise are not ours.
    assert counts == [2_766_529, 11_057_857] and sum(counts) + 8 == 13_824_394


@pytest.mark.parametrize("dims", [2, 3])
def test_each_side_gets_its_own_gradients_only(dims: int) -> None:
    torch.manual_seed(0)
    net = PatchDiscriminator(dims, 4).train()
    shape = (2, 3, 5, 32, 32)[: dims + 2] if dims == 3 else (2, 3, 32, 32)
    real, fake = torch.rand(shape), torch.rand(shape, requires_grad=True)
    terms = gan_terms(net, real, fake)
    by_hinge = torch.autograd.grad(
        terms.hinge, [fake, *net.parameters()], retain_graph=True, allow_unused=True
    )
    assert by_hinge[0] is None and all(grad is not None for grad in by_hinge[1:])
    for term in (terms.adversarial, terms.matching):
        grads = torch.autograd.grad(term, [fake, *net.parameters()], retain_graph=True, allow_unused=True)
        assert grads[0] is not None and grads[0].abs().sum() > 0
        assert all(grad is None for grad in grads[1:])


def test_the_terms_follow_the_formulas_and_only_the_discriminator_s_passes_count() -> None:
    torch.manual_seed(0)
    net = PatchDiscriminator(2, 4).train()
    real, fake = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    terms = gan_terms(net, real, fake)
    moved = {name: tensor.clone() for name, tensor in net.named_buffers()}
    net.load_state_dict(start)
    with torch.no_grad():
        (on_real, features), (on_fake, theirs) = net(real), net(fake)
    hinge = (F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()) / 2
    torch.testing.assert_close(terms.hinge, hinge)
    torch.testing.assert_close(terms.adversarial, -on_fake.mean())
    matching = sum((a - b).abs().mean() for a, b in zip(features, theirs, strict=True))
    torch.testing.assert_close(terms.matching, matching)
    for name, tensor in net.named_buffers():  # after one pass on each
        torch.testing.assert_close(moved[name], tensor, msg=name)


def test_a_discriminator_that_has_won_gets_no_gradient() -> None:
    for threshold, rests in ((1e6, True), (1e-6, False)):
        model = objective(gan_threshold=threshold, perceptual=0.0)
        model(clips(0), 3)[0].backward()
        grads = [p.grad for p in model.discriminators.parameters()]
        assert all(grad is not None for grad in grads)
        assert (sum(float(grad.abs().sum()) for grad in grads if grad is not None) == 0) == rests
        assert any(float(p.grad.abs().sum()) > 0 for p in model.net.parameters() if p.grad is not None)


def test_terms_take_part_when_they_should() -> None:
    model = objective()
    start = {"adversarial_frame", "matching_frame", "discriminator_frame"}
    both = start | {name.replace("frame", "clip") for name in start}
    assert not both & model(clips(0), 1)[1].keys()
    assert both <= model(clips(0), 2)[1].keys()
    on_images = model(clips(0, frames=1), 2)[1].keys()
    assert both & on_images == start, "there is no clip to judge"
    assert {"perceptual", "restarted", "ssim", "psnr", "usage"} <= on_images
    model = objective(perceptual=0.0, gan_frame=0.0, gan_clip=0.0)
    assert not list(model.discriminators.parameters())


def test_the_perceptual_distance_is_lpips() -> None:
    model = Perceptual(vgg_state())
    x, y = torch.rand(2, 2, 3, 32, 32) - 0.5
    assert model(x, x) == 0
    distance = torch.zeros(())
    for ours, theirs in zip(model.features(x), model.features(y), strict=True):
        distance += (F.normalize(ours, dim=1) - F.normalize(theirs, dim=1)).square().sum(1).mean()
    torch.testing.assert_close(model(x, y), distance, rtol=1e-3, atol=1e-5)
    heads = [tensor for tensor in heads_state().values()]
    torch.testing.assert_close(Perceptual(vgg_state(), heads)(x, y), 0.5 * model(x, y))
    state = vgg_state()
    grey = (torch.full((1, 3, 16, 16), 0.2) + 0.5 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / (
        torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    )
    h = F.relu(F.conv2d(grey, state["features.0.weight"], state["features.0.bias"], padding=1))
    h = F.relu(F.conv2d(h, state["features.2.weight"], state["features.2.bias"], padding=1))
    torch.testing.assert_close(model.features(torch.full((1, 3, 16, 16), 0.2))[0], h)
    assert [tap.shape[-1] for tap in model.features(x)] == [32, 16, 8, 4, 2]


def test_frozen_features_are_neither_trained_nor_saved(tmp_path: Path) -> None:
    model = objective()
    names = [name for name, _ in model.named_parameters()] + list(model.state_dict())
    assert not [name for name in names if "perceptual" in name]
    model(clips(0), 3)[0].backward()
    assert model.perceptual is not None and model.perceptual.features_0_weight.grad is None


def test_feature_files(tmp_path: Path) -> None:
    torch.save(vgg_state(), tmp_path / "vgg.pth")
    safetensors.torch.save_file(vgg_state(), tmp_path / "vgg.safetensors")
    torch.save(heads_state(), tmp_path / "heads.pth")
    x, y = torch.rand(2, 1, 3, 32, 32) - 0.5
    expected = Perceptual(vgg_state())(x, y)
    for name in ("vgg.pth", "vgg.safetensors"):
        assert torch.equal(Perceptual.from_files(tmp_path / name)(x, y), expected)
    with_heads = Perceptual.from_files(tmp_path / "vgg.pth", tmp_path / "heads.pth")
    torch.testing.assert_close(with_heads(x, y), 0.5 * expected)
    vgg19 = {name: tensor for name, tensor in vgg_state().items() if "17" not in name}
    torch.save(vgg19, tmp_path / "vgg19.pth")
    torch.save([1], tmp_path / "list.pth")
    torch.save(TokenizerObjective, tmp_path / "code.pth")
    (tmp_path / "text.safetensors").write_text("not tensors")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "vgg.pth").read_bytes()[:5000])
    (tmp_path / "empty.pth").touch()
    for name, reason in (
        ("absent.pth", "no such file"),
        ("vgg19.pth", r"features\.17\.weight is missing"),
        ("heads.pth", r"features\.0\.weight is missing"),
        ("list.pth", "not a state dict"),
        ("code.pth", "cannot be read"),
        ("text.safetensors", "cannot be read"),
        ("cut.pth", "cannot be read"),
        ("empty.pth", "cannot be read"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            Perceptual.from_files(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="lin0"):
        Perceptual.from_files(tmp_path / "vgg.pth", tmp_path / "vgg.pth")


def test_ssim() -> None:
    x = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)) - 0.5
    assert ssim(x, x).item() == pytest.approx(1.0)
    flat = torch.full_like(x, 0.1)
    a, b = 0.6, 0.7  # of constant pictures only the term of the means is left
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    assert ssim(flat, flat + 0.1).item() == pytest.approx(expected, rel=1e-4)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    values = [ssim(x + size * noise, x).item() for size in (0.0, 0.05, 0.2, 0.5)]
    assert values == sorted(values, reverse=True) and values[-1] < 0.5
    assert ssim(x[..., :8, :8], x[..., :8, :8]).item() == pytest.approx(1.0), "smaller than the window"


def test_psnr_while_training_is_that_of_the_evaluation() -> None:
    x = torch.randint(256, (3, 3, 2, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    y = (x.float() + torch.tensor([0.0, 3.0, 40.0])[:, None, None, None, None]).clamp(0, 255).to(torch.uint8)
    floats = [clips.float() / 255 - 0.5 for clips in (x, y)]
    assert clip_psnr(*floats).item() == pytest.approx(mean_psnr(x.numpy(), y.numpy()), rel=1e-5)


def test_one_resolution_is_drawn_for_every_step() -> None:
    model = objective(scales=[0.5, 0.75, 1.0, 1.25])
    x = torch.rand(2, 3, 5, 64, 64) - 0.5
    sides = [model._rescaled(x, step).shape[-1] for step in range(60)]
    assert {sides.count(side) > 5 for side in (32, 48, 64, 80)} == {True} and set(sides) == {32, 48, 64, 80}
    assert sides == [model._rescaled(x, step).shape[-1] for step in range(60)]
    halved = model._rescaled(x, sides.index(32))
    assert halved.shape == (2, 3, 5, 32, 32)
    pooled = F.avg_pool2d(x[1, :, 3], 2)  # neither samples nor frames are mixed up
    assert (halved[1, :, 3] - pooled).abs().mean() < 0.1 < (halved[0, :, 3] - pooled).abs().mean()


def test_dead_codes_are_replaced_by_vectors_of_the_batch() -> None:
    model = objective()
    book = model.net.codebook
    book.N.copy_(torch.tensor([0.5, 3.0] * 8))
    before, z = book.embeddings.clone(), F.normalize(torch.randn(1, 2, 4, 4, 8), dim=-1)
    assert model._restart_dead_codes(z, step=7) == 8
    assert torch.equal(book.embeddings[1::2], before[1::2]), "codes in use stay"
    assert torch.cdist(book.embeddings[::2], z.reshape(-1, 8)).min(1).values.max() < 1e-3
    assert torch.equal(book.z_avg[::2], book.embeddings[::2]) and book.N.min() == 1
    assert model._restart_dead_codes(z, step=8) == 0


@pytest.mark.parametrize("how", ["average", "still"])
def test_inflation(how: str) -> None:
    config = objective().net.config
    net = OmniTokenizerNet(config)
    image = net.state_dict()
    made = inflate(image, config, how)  # type: ignore[arg-type]
    emb, head = "encoder.to_patch_emb", "decoder.to_pixels"
    first = image[f"{emb}_first_frame.2.weight"].view(-1, 3, 1, 64).expand(-1, -1, 4, -1).flatten(1)
    torch.testing.assert_close(made[f"{emb}.2.weight"], first / 4)
    factor = 4 if how == "average" else 1
    assert torch.equal(made[f"{emb}.1.weight"], torch.ones(768) / factor)
    bias = image[f"{head}_first_frame.0.bias"].view(3, 1, 64).expand(-1, 4, -1).flatten()
    torch.testing.assert_close(made[f"{head}.0.bias"], bias / factor)
    net.load_state_dict(made)
    still = (torch.rand(1, 3, 1, 32, 32) - 0.5).expand(-1, -1, 5, -1, -1)
    embedded = {}
    net.encoder.enc_spatial_transformer.register_forward_pre_hook(
        lambda module, args: embedded.update(x=args[0])
    )
    net.to_latents(still)
    alike = torch.allclose(embedded["x"][:, 0], embedded["x"][:, 1], atol=1e-4)
    assert alike == (how == "still"), "only `still` gives a clip without motion the embeddings of its image"


def test_inflation_without_a_norm_of_patches() -> None:
    config = dataclasses.replace(objective().net.config, patch_norm=False)
    net = OmniTokenizerNet(config)
    net.load_state_dict(inflate(net.state_dict(), config, "average"))
    still = (torch.rand(1, 3, 1, 32, 32) - 0.5).expand(-1, -1, 5, -1, -1)
    image = net.encoder.to_patch_emb_first_frame(to_patches(still[:, :, :1], 1, config.patch))
    of_clip = net.encoder.to_patch_emb(to_patches(still[:, :, 1:], config.temporal_patch, config.patch))
    torch.testing.assert_close(of_clip, image.expand(-1, 1, -1, -1, -1))


def run(model: TokenizerObjective, first: int = 0, last: int = STEPS, part: slice = slice(None)) -> None:
    """Gradient descent on alternating clips and images, averaging gradients over ranks as an engine would."""
    for step in range(first, last):
        frames = 1 if step == 3 else 5
        frame = torch.tensor([step % frames, 0, 1 % frames, 2 % frames])
        loss, metrics = model(clips(step, frames=frames)[part], step, frame[part])
        loss.backward()
        assert torch.isfinite(loss) and ("matching_clip" in metrics) == (step in (2, 4))
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.data -= 0.02 * mean_over_ranks(parameter.grad)
                parameter.grad = None


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
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(
            first[name], tensor, atol=2e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}"
        )
    trained = [name for name, p in model.discriminators.named_parameters("discriminators") if p.dim() > 1]
    assert all(not torch.equal(first[name], start[name]) for name in trained)


@pytest.mark.parametrize("at", [2, 4])
def test_resume_is_exact(at: int) -> None:
    whole, begun = objective(), objective()
    run(whole)
    run(begun, last=at)
    resumed = objective()
    resumed.load_state_dict(begun.state_dict())
    run(resumed, first=at)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
