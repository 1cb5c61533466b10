"""Tokens on disk and in order: shard format, token dataset, training order, stream of batches, synthetic shapes."""
