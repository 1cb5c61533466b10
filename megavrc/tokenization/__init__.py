"""The offline job that turns videos into token shards: plan, run, status, finalize, verify."""
