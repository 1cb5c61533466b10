"""Checkpoints that depend on neither the world size nor the engine: plain tensors, JSON, checksums, atomic commits."""

from megavrc.checkpoint.format import Checkpoint, DamagedCheckpoint, read, verify
from megavrc.checkpoint.store import newest_good, read_weights, write

__all__ = ["Checkpoint", "DamagedCheckpoint", "newest_good", "read", "read_weights", "verify", "write"]
