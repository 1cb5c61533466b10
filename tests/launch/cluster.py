"""A real SLURM of two nodes on this machine: munged, slurmctld and two slurmd, all in one folder."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ports import free_ports

DAEMONS = ("munged", "slurmctld", "slurmd")

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={home}/munge.socket,cred_expire=5
StateSaveLocation={home}/state
SlurmctldPidFile={home}/slurmctld.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdPidFile={home}/slurmd-%n.pid
SlurmdLogFile={home}/slurmd-%n.log
SlurmdSpoolDir={home}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmdTimeout=10
KillWait=5
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES PriorityTier=10 PreemptMode=REQUEUE GraceTime=30 OverTimeLimit=0
PartitionName=urgent Nodes=n1,n2 PriorityTier=100 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why there can be no SLURM here; None if there can."""
    absent = [name for name in DAEMONS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"SLURM is not installed ({', '.join(absent)}): apt-get install slurm-wlm munge"
    return "SLURM's daemons need root" if os.geteuid() else None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@dataclass
class Cluster:
    """Commands of a running cluster."""

    home: Path
    daemons: dict[str, "subprocess.Popen[bytes]"]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.home / "slurm.conf"), "PATH": _path()}

    def run(self, *words: str | Path, **options: object) -> str:
        """The output of a command that must succeed."""
        done = subprocess.run(
            list(map(str, words)),
            capture_output=True,
            text=True,
            timeout=120,
            env=self.environment,
            **options,
        )  # type: ignore[call-overload]
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout)

    def start_node(self, name: str) -> None:
        """The daemon of one node, n1 or n2."""
        words = ["slurmd", "-D", "-N", name, "-f", str(self.home / "slurm.conf")]
        self.daemons[name] = _daemon(self.home, name, words, self.environment)

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` knows."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


def processes(variable: str, word: str) -> list[tuple[int, set[str]]]:
    """Processes of this machine with NAME=VALUE in their environment and a word in their command, srun left out."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environ = set((process / "environ").read_text(errors="replace").split("\0"))
            command = (process / "cmdline").read_text(errors="replace")
        except OSError:  # gone meanwhile
            continue
        if variable in environ and word in command and not command.startswith("srun"):
            found.append((int(process.name), environ))
    return found


def wait_for(what: str, fulfilled: Callable[[], object], seconds: float = 120) -> None:
    """Poll until it is so."""
    end = time.monotonic() + seconds
    while not fulfilled():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.2)


def _daemon(
    home: Path, name: str, words: list[str], environment: dict[str, str]
) -> "subprocess.Popen[bytes]":
    with open(home / f"{name}.out", "ab") as out:
        return subprocess.Popen(words, stdout=out, stderr=out, env=environment)


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start it, wait until both nodes are idle, and take it down with all that still runs on it."""
    # Not pytest's folder: a socket's path is short, and munged wants no folder above it that others can write.
    home = Path(tempfile.mkdtemp(prefix="slurm-", dir="/run" if os.access("/run", os.W_OK) else None))
    cluster = Cluster(home, {})
    try:
        _start(cluster)
        yield cluster
    except BaseException:
        for log in (*home.glob("*.log"), *home.glob("*.out")):
            print(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-25:]))
        raise
    finally:
        with contextlib.suppress(Exception):
            cluster.run("scancel", "--user=root", "--signal=KILL", "--full")
            cluster.run("scancel", "--user=root")
            time.sleep(1)
        for daemon in reversed(cluster.daemons.values()):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()
        shutil.rmtree(home, ignore_errors=True)


def _start(cluster: Cluster) -> None:
    home, munge = cluster.home, pwd.getpwnam("munge")
    home.chmod(0o755)
    shared = home / "munge"
    shared.mkdir()
    key = shared / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    for path in (shared, key):
        os.chown(path, munge.pw_uid, munge.pw_gid)
    (home / "state").mkdir()
    ports = free_ports(3)
    config = CONFIG.format(home=home, host=socket.gethostname(), ports=ports)
    (home / "slurm.conf").write_text(config.replace(f"{home}/munge.socket", f"{shared}/socket"))
    (home / "cgroup.conf").write_text("CgroupAutomount=no\n")
    files = [f"--{kind}-file={shared}/{kind}" for kind in ("key", "pid", "log", "seed")]
    munged = ["runuser", "-u", "munge", "--", "munged", "--foreground", f"--socket={shared}/socket", *files]
    cluster.daemons["munged"] = _daemon(home, "munged", munged, cluster.environment)
    wait_for("munged", (shared / "socket").exists, 20)
    controller = ["slurmctld", "-D", "-c", "-f", str(home / "slurm.conf")]
    cluster.daemons["slurmctld"] = _daemon(home, "slurmctld", controller, cluster.environment)
    for node in ("n1", "n2"):
        cluster.start_node(node)
    idle = ["sinfo", "--noheader", "--Node", "--partition=main", "--format=%T"]

    def both_idle() -> bool:
        done = subprocess.run(idle, capture_output=True, text=True, env=cluster.environment)
        return done.stdout.split() == ["idle", "idle"]

    wait_for("both nodes idle", both_idle, 60)
