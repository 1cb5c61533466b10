"""Videos to token shards: plan, run (any number of tasks), status, finalize, verify; `all` for one machine."""

from megavrc.config import command
from megavrc.tokenization.job import finalize, plan, run, run_all, status, verify

if __name__ == "__main__":
    command(
        {
            "plan": plan,
            "run": run,
            "status": status,
            "finalize": finalize,
            "verify": verify,
            "all": run_all,
        }
    )
