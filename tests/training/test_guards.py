"""Guards end a run that goes wrong again and again, however often it is started."""

import json
from pathlib import Path

import pytest
import torch

from megavrc.distributed import Rank
from megavrc.training.config import TrainConfig
from megavrc.training.guards import MAX_SKIPPED, Diverged, Guards


def test_a_lower_bound_of_rollbacks_holds_for_a_run_that_has_passed_it(tmp_path: Path, alone: Rank) -> None:
    guards = Guards(TrainConfig(spike_threshold=3.0, spike_window=4, spike_rollbacks=2), tmp_path, alone)
    guards.restore([1.0, 1.1, 0.9, 1.0])
    guards.rollbacks = 3
    with pytest.raises(Diverged, match="the run has gone back 3 times"):
        guards.judge(10, True, [torch.tensor(99.0)], [0])


def test_skipped_steps_in_a_row_count_over_starts(tmp_path: Path, alone: Rank) -> None:
    guards = Guards(TrainConfig(), tmp_path, alone, start=2)
    guards.restore([], skipped_in_a_row=MAX_SKIPPED - 1)
    with pytest.raises(Diverged, match=f"{MAX_SKIPPED} steps in a row"):
        guards.judge(10, False, [torch.tensor(float("nan"))], [0])
    [line] = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    assert (line["step"], line["start"]) == (10, 2)
