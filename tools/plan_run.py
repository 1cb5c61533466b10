"""Memory, throughput, time and cost of a run: `plan_run.py --gpu=h100 --gpus=8 --check -- --config=C.yaml ...`."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("plan_run")
