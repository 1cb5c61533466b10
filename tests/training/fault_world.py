"""Run by the tests of faults, one process a rank: the toy task through the command line of a pretraining."""

import json
import os

from toy import ToyTask

from megavrc.benchmarks.faulty_task import FaultyTask
from megavrc.training.config import BaseRunConfig
from megavrc.training.entry import pretrain

if __name__ == "__main__":
    options = json.loads(os.environ.get("TOY", "{}"))
    pretrain(BaseRunConfig, lambda config, rank: FaultyTask(ToyTask(**options)))
