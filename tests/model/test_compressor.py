"""Compressor and decompressor: shapes, alignment, starting point, and BatchNorm over ranks."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megavrc.model import CompressionConfig
from megavrc.model.compressor import BatchNorm, ChannelRMSNorm, Compressor, Decompressor

KINDS = ["conv", "avgpool", "strided", "space_to_depth"]


@pytest.mark.parametrize("rate, side", [(1, 1), (4, 2), (16, 4), (64, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_go_down_and_up(rate, side, kind):
    config = CompressionConfig(rate, kind)
    x = torch.randn(3, 16, 16, 32)
    small = Compressor(config, 32)(x)
    assert small.shape == (3, 16 // side, 16 // side, 32)
    assert Decompressor(config, 32)(small).shape == x.shape


@pytest.mark.parametrize("width, groups", [(48, 12), (128, 32), (144, 16), (1280, 32)])
def test_groups_divide_every_width_of_a_model(width, groups):
    norm = Compressor(CompressionConfig(4, norm="group"), width).net[1]
    assert norm.num_groups == groups and norm(torch.randn(1, width, 2, 2)).isfinite().all()


@pytest.mark.parametrize("rate, stages", [(1, 1), (4, 1), (16, 2), (64, 3)])
def test_layers_are_those_of_the_paper(rate, stages):
    """2-layer CNNs at rate 4, 3 and 4 layers at 16 and 64."""
    for module in (Compressor(CompressionConfig(rate), 16), Decompressor(CompressionConfig(rate), 16)):
        convs = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
        assert len(convs) == stages + 1


@pytest.mark.parametrize("rate, side", [(4, 2), (16, 4), (64, 8)])
def test_cells_are_aligned(rate, side):
    """With equal weights at all taps, a block of tokens moves its own cell most, and a cell moves its own block."""
    config = CompressionConfig(rate, norm="rms")
    down, up = Compressor(config, 8), Decompressor(config, 8)
    for net in (down.net, up.net):
        for index, module in enumerate(net):
            if isinstance(module, ChannelRMSNorm):
                net[index] = torch.nn.Identity()
            elif not isinstance(module, torch.nn.ReLU):
                torch.nn.init.constant_(module.weight, 0.1)
                torch.nn.init.zeros_(module.bias)
    flat, bumped = torch.ones(1, 64, 64, 8), torch.ones(1, 64, 64, 8)
    bumped[0, 32 : 32 + side, 32 : 32 + side] = 2.0
    change = (down(bumped) - down(flat)).norm(dim=-1)[0]
    assert divmod(int(change.argmax()), 64 // side) == (32 // side, 32 // side)
    cells, lit = torch.ones(1, 64 // side, 64 // side, 8), torch.ones(1, 64 // side, 64 // side, 8)
    lit[0, 32 // side, 32 // side] = 2.0
    weight = (up(lit) - up(cells)).norm(dim=-1)[0]
    centre = (weight.sum(1) @ torch.arange(64.0) / weight.sum()).item()
    assert centre == pytest.approx(32 + (side - 1) / 2, abs=0.5)


def joint_batch_norm(rank: int, world: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.manual_seed(0)
    x = torch.randn(4, 8, 3, 3) * 3 + 2
    norm = BatchNorm(8)
    mine = x.chunk(world)[rank].clone().requires_grad_()
    out = norm(mine)
    (out * torch.arange(out.numel()).view_as(out).cos()).sum().backward()
    for parameter in norm.parameters():
        dist.all_reduce(parameter.grad)
    torch.save(
        [out, mine.grad, *norm.state_dict().values(), *(p.grad for p in norm.parameters())],
        f"{folder}/{rank}",
    )
    dist.destroy_process_group()


def test_batch_norm_over_ranks_equals_one_process(tmp_path, free_port):
    mp.spawn(joint_batch_norm, (2, free_port, str(tmp_path)), nprocs=2)
    results = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    torch.manual_seed(0)
    x = (torch.randn(4, 8, 3, 3) * 3 + 2).requires_grad_()
    reference = torch.nn.BatchNorm2d(8)
    out = reference(x)
    weights = torch.arange(out.numel() // 2).view(2, *out.shape[1:]).cos().repeat(2, 1, 1, 1)
    (out * weights).sum().backward()
    torch.testing.assert_close(torch.cat([r[0] for r in results]), out)
    torch.testing.assert_close(torch.cat([r[1] for r in results]), x.grad)
    for rank in results:
        mean, var, weight_grad, bias_grad = rank[4:]
        torch.testing.assert_close(mean, reference.running_mean)
        torch.testing.assert_close(var, reference.running_var)
        torch.testing.assert_close(weight_grad, reference.weight.grad)
        torch.testing.assert_close(bias_grad, reference.bias.grad)
    assert torch.equal(results[0][4], results[1][4]) and torch.equal(results[0][5], results[1][5])
