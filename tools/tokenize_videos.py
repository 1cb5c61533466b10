"""Videos to token shards: plan, run (any number of tasks), status, finalize, verify; `all` for one machine."""

if __name__ == "__main__":  # the decoding processes load this file too, and need nothing of what follows
    from megavrc.config import command
    from megavrc.tokenization.job import plan, run, run_all
    from megavrc.tokenization.result import finalize, status, verify

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
