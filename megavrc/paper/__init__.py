"""Tables and figures of the paper and of the small-scale study (docs/study.md), from result files alone."""
