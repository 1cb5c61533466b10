"""Rank discovery under every launcher, seeds, and the signal flag."""

import os
import signal
import socket
import sys

import pytest
from torch.distributed import HashStore

from megavrc.distributed import AbsentRank, StopSignal, connect, discover, seed_for, strip_launcher_args
from megavrc.distributed.env import gpu_variables
from megavrc.distributed.interface import choose_interface, interface_of, own_address
from megavrc.errors import UserError

FIVE = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
SLURM = {
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NODELIST": "gpu[007-009,12],x3",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_STEP_NUM_TASKS": "16",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def test_torchrun() -> None:
    given = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "5"}
    assert discover(given | SLURM) == given, "torchrun inside a SLURM job counts"


def test_srun() -> None:
    found = discover(SLURM)
    assert found == {
        "RANK": "11",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "3",
        "MASTER_ADDR": "gpu007",
        "MASTER_PORT": "23456",
    }
    assert discover({**SLURM, "SLURM_RESTART_COUNT": "2"})["MASTER_PORT"] == "23658", (
        "another port than before"
    )
    assert discover({**SLURM, "MASTER_ADDR": "h", "MASTER_PORT": "9"})["MASTER_ADDR"] == "h"


def test_python_in_a_batch_script_is_alone() -> None:
    batch = {key: value for key, value in SLURM.items() if key != "SLURM_STEP_NUM_TASKS"} | {
        "SLURM_NTASKS": "16"
    }
    assert discover(batch)["WORLD_SIZE"] == "1"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("a-b[3,5]", "a-b3"),
        ("n[08-11]", "n08"),
        ("x,y", "x"),
        ("gpu[003-007]-ib", "gpu003-ib"),
        ("rack[1-2]node[3,5-6],x[1-2]", "rack1node3"),
        ("nid[001234-001237].hpc", "nid001234.hpc"),
    ],
)
def test_first_host(nodes: str, first: str) -> None:
    assert discover({**SLURM, "SLURM_JOB_NODELIST": nodes})["MASTER_ADDR"] == first


@pytest.mark.parametrize("nodes", ["n[3", "n[]", "n[1]]", ",x"])
def test_node_lists_that_are_not_understood(nodes: str) -> None:
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        discover({**SLURM, "SLURM_JOB_NODELIST": nodes})


def test_mpirun_on_one_machine() -> None:
    found = discover(OPENMPI)
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("1", "2", "1")
    assert found["MASTER_PORT"] == discover(OPENMPI | {"OMPI_COMM_WORLD_RANK": "0"})["MASTER_PORT"]


def test_mpirun_inside_a_step_of_srun_counts() -> None:
    """As in `srun --pty bash`, whose single task the shell is."""
    shell = {**SLURM, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    found = discover(shell | OPENMPI)
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("1", "2", "1")
    assert discover(SLURM | {"PMI_RANK": "0", "PMI_SIZE": "1"})["RANK"] == "11", "srun sets PMI's too"


def test_mpirun_on_several_machines_needs_an_address_or_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"MASTER_ADDR.*megavrc\[mpi\]"):
        discover({**OPENMPI, "OMPI_COMM_WORLD_SIZE": "8"})
    given = {**OPENMPI, "OMPI_COMM_WORLD_SIZE": "8", "MASTER_ADDR": "h", "MASTER_PORT": "9"}
    assert discover(given)["WORLD_SIZE"] == "8"


def test_deepspeed_is_told_the_gpu_and_not_the_local_rank() -> None:
    """Four ranks of a node that see one GPU each. DeepSpeed also asserts that both variables are equal."""
    found = discover(SLURM)
    assert found["LOCAL_RANK"] == "3" and gpu_variables(found, 0) == {"LOCAL_RANK": "0"}
    both = {"LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    assert gpu_variables(OPENMPI | discover(OPENMPI), 0) == both


def test_what_launchers_add_to_the_command_is_left_out() -> None:
    words = ["--config", "c.yaml", "--local_rank=1", "--local-rank=0", "--train.steps=3"]
    assert strip_launcher_args(words) == ["--config", "c.yaml", "--train.steps=3"]


def test_plain_python() -> None:
    first = discover({})
    assert first.keys() == FIVE
    assert (first["RANK"], first["WORLD_SIZE"]) == ("0", "1")


def test_an_address_that_does_not_resolve_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        os, "environ", {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "no.such.host.invalid"}
    )
    with pytest.raises(UserError, match=r"no\.such\.host\.invalid"), connect():
        pass


@pytest.mark.parametrize(
    ("addresses", "chosen"),
    [
        (["127.0.0.1", "127.0.0.1"], {}),  # one machine
        (["127.0.0.1", "localhost"], {"GLOO_SOCKET_IFNAME": "lo"}),  # as if it were another one
        (["127.0.0.1", ""], {}),
    ],
)
def test_gloo_listens_where_other_machines_reach_it(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str], chosen: dict[str, str]
) -> None:
    """On a machine whose own name leads to the loopback."""
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    store, keys = HashStore(), ["here/0", "here/1"]
    for key, address in zip(keys, addresses, strict=True):
        store.set(key, address)
    for given in ({}, {"GLOO_SOCKET_IFNAME": "eth7"}):
        monkeypatch.setattr(os, "environ", dict(given))
        choose_interface(store, 0, keys)
        assert os.environ == (given or chosen)


def test_interfaces_are_found_by_their_address() -> None:
    assert own_address("127.0.0.1") == "127.0.0.1" and interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None, "an address of nobody"


def test_ranks_that_do_not_start_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {
        "RANK": "0",
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": discover({})["MASTER_PORT"],
    }
    monkeypatch.setattr(os, "environ", present)
    with pytest.raises(AbsentRank, match="ranks 1, 2 of 3 did not start"), connect(join_minutes=0.03):
        pass
    monkeypatch.setattr(os, "environ", present | {"RANK": "2", "MASTER_PORT": discover({})["MASTER_PORT"]})
    with pytest.raises(AbsentRank, match="rank 0 did not answer"), connect(join_minutes=0.03):
        pass


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as other:
        port = str(other.getsockname()[1])
        place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        monkeypatch.setattr(os, "environ", place)
        with pytest.raises(AbsentRank, match=f"cannot listen, set MASTER_PORT .*{port}"), connect():
            pass


def test_seeds_are_stable_and_apart() -> None:
    assert seed_for(1, "order") == 8307011275362835592, "runs must resume under a newer version"
    seeds = {
        seed_for(seed, what, step, rank)
        for seed in range(3)
        for what in "ab"
        for step in range(5)
        for rank in range(4)
    }
    assert len(seeds) == 3 * 2 * 5 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_only_sets_a_flag(number: signal.Signals) -> None:
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        stop = StopSignal()
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number.name
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


@pytest.mark.parametrize(
    "wrong",
    [
        {"RANK": "a"},
        {"RANK": "2"},
        {"WORLD_SIZE": ""},
        {"WORLD_SIZE": "0"},
        {"MASTER_PORT": "99999"},
        {"LOCAL_RANK": "-1"},
    ],
)
def test_variables_that_cannot_be_are_named(wrong: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"RANK": "0", "WORLD_SIZE": "2", **wrong})
    [(name, value)] = wrong.items()
    with (
        pytest.raises(UserError, match=f"^{name}={value} in the environment: expected an integer"),
        connect(),
    ):
        raise AssertionError("it connected")
