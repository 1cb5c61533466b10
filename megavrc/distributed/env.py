"""The rank of this process, from torchrun, srun, mpirun or plain python, without asking the user.

Whatever the launcher, the five variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are set
afterwards, so nothing below (torch, DeepSpeed) has to guess again.
"""

import contextlib
import hashlib
import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # public, in torch's documentation

from megavrc.distributed import fault
from megavrc.distributed.interface import choose_interface, own_address
from megavrc.distributed.roll_call import GONE, RollCall, is_communication
from megavrc.errors import UserError

log = logging.getLogger("megavrc")

ASK = 60.0  # seconds after which absent ranks are named, again and again
# Below the kernel's ephemeral range, so no outgoing connection holds one by chance.
PORTS = range(20000, 30000)
MOST_RANKS = 1 << 20


@dataclass(frozen=True)
class Rank:
    """This process among the ranks of one run."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    roll_call: RollCall | None = field(default=None, compare=False, repr=False)  # until training begins

    @property
    def main(self) -> bool:
        """True on the one rank that writes files and prints."""
        return self.rank == 0


def seed_for(seed: int, *parts: int | str) -> int:
    """A 63-bit seed for one purpose, e.g. `seed_for(seed, "dropout", step, micro, rank)`.

    A hash, so that neighbouring steps, ranks and purposes share nothing; the same on every machine.
    """
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def discover(env: Mapping[str, str]) -> dict[str, str]:
    """The five rendezvous variables, from the environment of torchrun, srun, mpirun or plain python.

    Raises:
        UserError: ranks on several machines under mpirun without MASTER_ADDR and MASTER_PORT, and without mpi4py.
    """
    if "RANK" in env and "WORLD_SIZE" in env:  # torchrun, or set by hand
        found = {key: env[key] for key in ("RANK", "WORLD_SIZE")}
        return found | {"LOCAL_RANK": env.get("LOCAL_RANK", "0")} | _address(env, "127.0.0.1", "29500")
    if "OMPI_COMM_WORLD_RANK" in env:  # before srun's, of which it may be a single task (srun --pty bash)
        names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
        return _mpi(env, names, env["OMPI_COMM_WORLD_LOCAL_SIZE"])
    if "SLURM_STEP_NUM_TASKS" in env:  # set for the tasks of srun, not in the batch script itself
        host = _first_host(env.get("SLURM_STEP_NODELIST") or env["SLURM_JOB_NODELIST"])
        # Another one after a requeue, in case the port was what failed.
        number = int(env["SLURM_JOB_ID"]) + 101 * int(env.get("SLURM_RESTART_COUNT", "0"))
        port = str(PORTS[number % len(PORTS)])
        ranks = _ranks(env, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        return ranks | _address(env, host, port)
    if "PMI_RANK" in env:  # MPICH, Intel MPI
        return _mpi(env, ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"), env.get("MPI_LOCALNRANKS", "0"))
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    return alone | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}


def _ranks(env: Mapping[str, str], rank: str, size: str, local: str) -> dict[str, str]:
    return {"RANK": env[rank], "WORLD_SIZE": env[size], "LOCAL_RANK": env.get(local, "0")}


def _address(env: Mapping[str, str], host: str, port: str) -> dict[str, str]:
    return {"MASTER_ADDR": env.get("MASTER_ADDR", host), "MASTER_PORT": env.get("MASTER_PORT", port)}


def _mpi(env: Mapping[str, str], names: tuple[str, str, str], on_this_machine: str) -> dict[str, str]:
    ranks = _ranks(env, *names)
    if on_this_machine != ranks["WORLD_SIZE"] and not {"MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        return ranks | _address_of_first_rank()
    port = PORTS[os.getppid() % len(PORTS)]  # all ranks of one machine are children of the same mpirun
    return ranks | _address(env, "127.0.0.1", str(port))


def _address_of_first_rank() -> dict[str, str]:
    """What the first rank says of itself, broadcast by MPI: ranks of several machines have nothing else in common."""
    try:
        import mpi4py

        mpi4py.rc.finalize = False  # done below: a pretraining process does not end through the interpreter
        from mpi4py import MPI
    except (ImportError, RuntimeError):  # not installed; installed without an MPI library
        raise UserError(
            "mpirun over several machines: pass -x MASTER_ADDR=<first host> -x MASTER_PORT=<free port>, or "
            "pip install 'megavrc[mpi]'"
        ) from None
    mine = {"MASTER_ADDR": socket.gethostname(), "MASTER_PORT": str(_free_port())}
    address: dict[str, str] = MPI.COMM_WORLD.bcast(mine, root=0)
    MPI.Finalize()
    return address


def _first_host(nodelist: str) -> str:
    """`gpu[003-007,9]-ib,x` -> `gpu003-ib`."""
    match = re.match(r"(?:[^][,]|\[\w[^][]*])+(?=,|$)", nodelist)  # to the first comma outside brackets
    if match is None:
        raise UserError(f"SLURM node list {nodelist!r} not understood; set MASTER_ADDR")
    return re.sub(r"\[(\w+)[^]]*]", r"\1", match[0])


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def gpu_variables(env: Mapping[str, str], index: int) -> dict[str, str]:
    """The variables by which DeepSpeed finds this rank's GPU, which must be equal.

    Not the local rank where each rank sees one GPU only (srun --gpus-per-task=1): there it is number 0 of every rank.
    """
    return {name: str(index) for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK") if name in env}


def strip_launcher_args(argv: list[str]) -> list[str]:
    """A command line without what launchers add to it: `--local_rank=N`, by DeepSpeed's and torch's old one."""
    return [word for word in argv if not re.fullmatch(r"--local[_-]rank=\d+", word)]


class AbsentRank(Exception):
    """Ranks did not come when this run started; the message names them."""


@contextlib.contextmanager
def connect(
    timeout_minutes: float = 30.0, join_minutes: float = 15.0, device: torch.device | None = None
) -> Iterator[Rank]:
    """Join the ranks of this run: torch's default process group, NCCL on GPUs and gloo on CPUs.

    The group is destroyed on the way out, also after an error, so that the other ranks fail at once.

    Args:
        timeout_minutes: of communication.
        join_minutes: how long to wait for ranks that have not started yet.
        device: of this rank (default: the GPU of its local rank, or the CPU where there is none).

    Raises:
        UserError: see `discover`; the first rank's address does not resolve, or one of the five variables has a value
            that cannot be.
        AbsentRank: not all ranks came, or the first one cannot listen because its port is taken. A rank that came and
            is then lost, before `Rank.roll_call` ends, ends this process: exit code 85.
    """
    os.environ.update(discover(os.environ))
    address = os.environ["MASTER_ADDR"]
    try:
        socket.getaddrinfo(address, None)
    except OSError:  # torch would try until the timeout
        raise UserError(f"MASTER_ADDR: {address!r} does not resolve on {socket.gethostname()}") from None
    world_size = _number("WORLD_SIZE", 1, MOST_RANKS)
    rank, local_rank = _number("RANK", 0, world_size - 1), _number("LOCAL_RANK", 0, MOST_RANKS)
    _number("MASTER_PORT", 0, 65535)
    if device is None or (device.type == "cuda" and device.index is None):
        gpus = torch.cuda.device_count()
        device = torch.device("cuda", local_rank % gpus) if gpus else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        os.environ.update(gpu_variables(os.environ, device.index))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    deadline = time.monotonic() + 60 * join_minutes
    store = _meet(rank, world_size, deadline)
    with contextlib.ExitStack() as stack:
        roll_call = None
        if world_size > 1:
            roll_call = RollCall(_meet(rank, world_size, deadline, serves=False), rank, world_size)
            stack.callback(roll_call.end)
        _wait_for_all(store, rank, world_size, join_minutes, deadline)
        fault.point("meet", 0)
        timeout = timedelta(minutes=timeout_minutes)
        store.set_timeout(timeout)
        try:
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
            stack.callback(dist.destroy_process_group)
            yield Rank(rank, world_size, local_rank, device, roll_call)
        except Exception as error:
            if roll_call and is_communication(error):
                roll_call.wait_for_verdict()
            raise


def _number(name: str, least: int, most: int) -> int:
    """The value of an environment variable, which a person may have set."""
    value = os.environ[name]
    if not re.fullmatch(r"\d{1,9}", value, re.ASCII) or not least <= int(value) <= most:
        raise UserError(
            f"{name}={value} in the environment: expected an integer from {least} to {most}; correct or unset it"
        )
    return int(value)


def _meet(rank: int, world_size: int, deadline: float, serves: bool | None = None) -> Store:
    """The store that all ranks reach, at the first one's."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if serves is None:  # not where torchrun listens, which outlives its ranks
        serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    while True:
        timeout = timedelta(seconds=max(0.1, min(ASK, deadline - time.monotonic())))
        try:
            tcp = TCPStore(host, port, world_size, serves, timeout, wait_for_workers=False, multi_tenant=True)
            return PrefixStore(f"megavrc/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", tcp)
        except dist.DistError as error:
            if serves:
                reason = str(error).splitlines()[0]
                raise AbsentRank(f"rank 0 cannot listen, set MASTER_PORT to another port: {reason}") from None
        if time.monotonic() > deadline:
            raise AbsentRank(f"rank 0 did not answer at {host}:{port} in time; see its log")
        log.warning("rank %d waits for rank 0 at %s:%d", rank, host, port)


def _wait_for_all(store: Store, rank: int, world_size: int, minutes: float, deadline: float) -> None:
    """Until all ranks have come. torch's own rendezvous does not say who is missing."""
    here = [f"here/{number}" for number in range(world_size)]
    store.set(here[rank], own_address(os.environ["MASTER_ADDR"]))
    while True:
        try:
            store.wait(here, timedelta(seconds=max(0.1, min(ASK, deadline - time.monotonic()))))
            return choose_interface(store, rank, here)
        except dist.DistError:
            absent = _absent(store, here)
        if time.monotonic() > deadline:
            raise AbsentRank(f"{absent} did not start within {minutes:g} minutes; see the logs there")
        if rank == 0:
            log.warning("waiting for %s, for %g minutes at most", absent, minutes)


def _absent(store: Store, here: list[str]) -> str:
    try:
        absent = [str(number) for number, key in enumerate(here) if not store.check([key])]
    except dist.DistError:  # the store's rank has given up first, and says who it is
        raise AbsentRank(f"not all ranks came: {GONE}; see its log") from None
    return f"rank{'s' * (len(absent) > 1)} {', '.join(absent)} of {len(here)}"
