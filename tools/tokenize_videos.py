"""Videos to token shards: plan, run (any number of tasks), status, finalize, verify; captions to text-features."""

if __name__ == "__main__":  # the decoding processes load this file too, and need nothing of what follows
    from megavrc.config import command
    from megavrc.tokenization.job import plan, run, run_all
    from megavrc.tokenization.result import finalize, status, verify
    from megavrc.tokenization.text_features import text_features

    command(
        {
            "plan": plan,
            "run": run,
            "status": status,
            "finalize": finalize,
            "verify": verify,
            "all": run_all,
            "text-features": text_features,
        }
    )
