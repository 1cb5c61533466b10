"""Run by the tests of faults, one process a rank: the toy task through the command line of a pretraining."""

import json
import os

from toy import ToyTask

from megavrc.training.config import RunConfig
from megavrc.training.entry import pretrain

if __name__ == "__main__":
    pretrain(RunConfig, lambda config, rank: ToyTask(**json.loads(os.environ.get("TOY", "{}"))))
