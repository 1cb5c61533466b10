"""What the meter averages: applied steps only, each metric over the steps that have it."""

import json
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megavrc.training.metrics import Meter, utilisation
from megavrc.training.reporter import Reporter


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


def test_utilisation_is_the_share_of_the_dense_peak() -> None:
    """989.5 TFLOP/s is the H200's dense peak, half of what is stated with sparsity."""
    assert utilisation(494.75e12, "NVIDIA H200") == {"TFLOP/s/rank": 494.75, "mfu_%": 50.0}
    assert utilisation(3e12, "Some GPU 9000") == {"TFLOP/s/rank": 3.0}, "no peak is guessed"
    assert utilisation(3e12, None) == {"TFLOP/s/rank": 3.0}
    assert utilisation(0.0, "NVIDIA H200") == {}, "the video tokenizer's are not counted"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread
def test_metrics_on_a_full_disk_are_lost_and_nothing_else(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = "".join(json.dumps({"step": step}) + "\n" for step in range(1, 1000))
    (small_disk / "metrics.jsonl").write_text(lines)
    with pytest.raises(OSError, match="No space"):
        (small_disk / "others").write_bytes(bytes(10**6))
    logging.getLogger("megavrc").propagate = True
    reporter = Reporter(small_disk, first_step=990, steps=2000)
    for step in range(991, 2000):
        reporter.write(step, {"loss": 1.0}, {})
    reporter.close()
    assert "lines after step 990 stay in it" in caplog.text
    assert "this line of metrics is lost" in caplog.text
    assert (small_disk / "metrics.jsonl").read_text().startswith(lines)
