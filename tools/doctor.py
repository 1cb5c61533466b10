"""What this machine and installation can do, which files you brought are whole. Exit code 0: the CPU demo can run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the doctor speaks before `pip install` too

from megavrc.__main__ import main

if __name__ == "__main__":
    main("doctor")
