"""Checkpoints that depend on neither the world size nor the engine: plain tensors, JSON, checksums, atomic commits."""

from megavrc.checkpoint.format import Checkpoint, DamagedCheckpoint, open_unverified, read, verify
from megavrc.checkpoint.lease import Lease
from megavrc.checkpoint.record import read_record, write_record
from megavrc.checkpoint.store import (
    Retention,
    begin,
    checkpoint_folder,
    commit,
    newest_good,
    occupied,
    read_weights,
    write,
)

__all__ = [
    "Checkpoint",
    "DamagedCheckpoint",
    "Lease",
    "Retention",
    "begin",
    "checkpoint_folder",
    "commit",
    "newest_good",
    "occupied",
    "open_unverified",
    "read",
    "read_record",
    "read_weights",
    "verify",
    "write",
    "write_record",
]
