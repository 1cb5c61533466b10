"""What the meter averages: applied steps only, each metric over the steps that have it."""

import torch
import torch.distributed as dist

from megavrc.training.metrics import Meter


def test_means_are_over_the_applied_steps_that_have_the_metric() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        meter = Meter()
        for loss, metrics, applied in (
            (1.0, {"psnr": 10.0}, True),
            (2.0, {"psnr": 20.0, "clip": 5.0}, True),
            (99.0, {"psnr": 99.0}, False),
            (6.0, {"psnr": 30.0, "clip": 7.0}, True),
        ):
            meter.add(torch.tensor(loss), {name: torch.tensor(value) for name, value in metrics.items()})
            meter.commit(applied)
        assert meter.means() == {"loss": 3.0, "psnr": 20.0, "clip": 6.0}
        assert meter.means() == {}
    finally:
        dist.destroy_process_group()
