"""A run in progress: its engine, data, guards and reports on one rank. What happens when is in `loop`.

Randomness of a step depends on (seed, step, micro-batch, rank) and its data on (seed, position), so a run that was
stopped anywhere goes on exactly as if it had not been.
"""

import logging
import statistics
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megavrc.checkpoint import Checkpoint
from megavrc.data.stream import Stream
from megavrc.distributed import Rank, fault, seed_for, total_over_ranks
from megavrc.files import check_fields, sha256_json
from megavrc.hardware import peak_memory
from megavrc.training.compile_blocks import prepare_blocks
from megavrc.training.config import BaseRunConfig
from megavrc.training.engine import Engine, Update
from megavrc.training.guards import BadStep, Guards
from megavrc.training.metrics import Clock, Meter, by_rank, slow_ranks, utilisation
from megavrc.training.reporter import Reporter
from megavrc.training.run_folder import RunFolder
from megavrc.training.schedule import learning_rate
from megavrc.training.tasks import Task
from megavrc.training.tasks.base import Evaluated, to_device
from megavrc.training.validation import validate
from megavrc.training.watchdog import Watchdog

log = logging.getLogger("megavrc")

STATE = {  # of a checkpoint that training goes on from
    **{"updates": int, "skipped": int},
    **{"rollbacks": int | None, "data_offset": int | None, "losses": list[float] | None},
    "skipped_in_a_row": int | None,
}


class Trainer:
    """A run in progress: engine, data, guards and reports of this rank.

    Attributes:
        step: optimiser steps done.
        skipped: steps without an update, because a loss or gradient was not finite.
        data_offset: steps by which the data is ahead, because of what was left out when training went back.
    """

    def __init__(
        self, config: BaseRunConfig, task: Task[Any], run: RunFolder, rank: Rank, watchdog: Watchdog
    ) -> None:
        self.config, self.task, self.run, self.rank, self.watchdog = config, task, run, rank, watchdog
        self.step = self.skipped = self.data_offset = 0
        torch.manual_seed(seed_for(config.seed, "weights"))
        core = task.build()
        if run.checkpoint is None:
            task.initialise(core)
        prepare_blocks(task.blocks(core), config.train)
        self.engine = Engine(core, task.loss, config.train, config.optimizer, rank, config.deepspeed)
        self.guards = Guards(config.train, run.path, rank, run.start)
        if run.checkpoint is not None:
            self._restore(run.checkpoint)
            self.guards.rollbacks = run.checkpoint.state.get("rollbacks", 0)
            self.data_offset = run.checkpoint.state.get("data_offset", 0)
        on_gpu = rank.device.type == "cuda"
        self.device_name = torch.cuda.get_device_name(rank.device) if on_gpu else None
        self.slow: set[int] = set()  # ranks, by the last line of metrics
        self.losses: list[Tensor] = []  # of this step's micro-batches on this rank
        self.samples: list[int] = []  # of this step on this rank, as indices into the source
        self.saver = run.saver(self.engine.state, validates=bool(task.validation))
        self.meter, self.clock = Meter(), Clock()
        self.clock.exclude_collectives(core)
        self.stream = Stream(
            task.source,
            task.order,
            global_batch=config.train.global_batch,
            micro_batch=config.train.micro_batch,
            rank=rank.rank,
            world_size=rank.world_size,
            collate=task.collate,
            workers=config.train.workers,
            max_damaged=task.max_damaged,
        )
        self.reporter: Reporter | None = None
        self._open()

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Be where a checkpoint is (collective)."""
        check_fields(checkpoint.path / "state.json", checkpoint.state, STATE)
        missing = self.engine.load_state(checkpoint.groups, checkpoint.state["updates"])
        if missing:
            log.warning("%s has no %s", checkpoint.path, ", ".join(sorted(missing)))
        self.step, self.skipped = checkpoint.step, checkpoint.state["skipped"]
        self.guards.restore(checkpoint.state.get("losses", []), checkpoint.state.get("skipped_in_a_row", 0))

    def _open(self) -> None:
        """Data and reports from this step on."""
        self.stream.start_step = self.step + self.data_offset
        self.batches: Iterator[Any] = iter(self.stream)
        if self.reporter:
            self.reporter.close()
        if self.rank.main:
            steps = self.config.train.steps
            self.reporter = Reporter(self.run.path, self.step, steps, self.run.start)

    def train_step(self) -> Update:
        """One optimiser step: its micro-batches, then the update."""
        before = self.engine.snapshot_buffers()
        self.losses, self.samples = [], []
        for micro in range(self.engine.accumulation):
            self.watchdog.at(self.step, "data")
            with self.clock.wait():
                fault.point("data", self.step)
                batch = to_device(next(self.batches), self.rank.device)
            self.samples += self.stream.samples
            torch.manual_seed(seed_for(self.config.seed, "forward", self.step, micro, self.rank.rank))
            self.watchdog.at(self.step, "forward")
            with self.clock.work():
                fault.point("forward", self.step)
                loss, metrics = self.engine.forward(batch, self.step)
            self.watchdog.at(self.step, "backward")
            fault.point("backward", self.step)
            self.engine.backward(loss)
            self.losses.append(loss.detach())
            self.meter.add(loss.detach(), metrics)
        self.watchdog.at(self.step, "update")
        fault.point("update", self.step)
        lr = learning_rate(self.step, self.config.train.steps, self.config.optimizer)
        update = self.engine.step(lr, before)
        self.meter.commit(update.applied)
        self.skipped += not update.applied
        self.step += 1
        return update

    def judge(self, update: Update) -> BadStep | None:
        """The guards' judgement of the last step (collective): a spike to go back from, or None. Raises Diverged."""
        if not update.applied:
            self.run.check_ours()
        return self.guards.judge(self.step - 1, update.applied, self.losses, self.samples)

    def go_back(self, spike: BadStep) -> None:
        """To the newest checkpoint (collective); the data since is left out, for it is what the spike came from."""
        self.run.check_ours()
        self.saver.finish()
        checkpoint = self.run.newest()
        window = [checkpoint.step + self.data_offset, self.step + self.data_offset]
        self.guards.record_rollback(spike, to=checkpoint.step, left_out_data_of_steps=window)
        self.data_offset += self.step - checkpoint.step
        self.saver.before = checkpoint.step
        self._restore(checkpoint)
        self._open()
        self.meter = Meter()
        self.clock.lap()

    # --- what is written -------------------------------------------------------------------------------------

    def report(self, update: Update, steps: int, more: dict[str, float]) -> dict[str, float]:
        """A line of metrics about the last `steps` steps, and `more` of them (collective)."""
        self.run.check_ours()
        means = self.meter.means()
        tokens = means.pop("tokens", self.task.tokens)
        seconds, waiting, own = self.clock.lap()
        clips = steps * self.config.train.global_batch / seconds
        values = {
            **means,
            "lr": learning_rate(self.step - 1, self.config.train.steps, self.config.optimizer),
            "grad_norm": update.grad_norm,
            "clips/s": clips,
            "tokens/s": clips * tokens,
            **utilisation(clips / self.rank.world_size * self.task.flops, self.device_name),
            "data_wait_%": 100 * waiting,
            "skipped": float(self.skipped),
            "rollbacks": float(self.guards.rollbacks),
            "replaced": float(total_over_ranks(self.stream.replaced)),
            **more,
        }
        if self.saver.stalled:
            values["checkpoint_stall_s"], self.saver.stalled = self.saver.stalled, 0.0
        if self.saver.failures:
            values["checkpoint_failures"] = float(self.saver.failures)
        mine = [own / steps, peak_memory(self.rank.device) / 2**30]
        everyones, memory = map(list, zip(*by_rank(mine, self.rank), strict=True))
        values["memory_GiB"] = max(memory)
        slow = slow_ranks(everyones, seconds / steps)
        for rank in slow & self.slow:  # twice in a row: not a hiccup
            log.warning("step %d: rank %d is slow: %s", self.step, rank, _seconds(everyones, rank))
        self.slow = slow
        if self.reporter:
            self.reporter.write(self.step, values, {"rank_s": everyones, "rank_GiB": memory})
        return values

    def save(self, wait: bool, validation: dict[str, float]) -> None:
        """A checkpoint of this step (collective).

        Args:
            wait: until it is whole, rather than write it in the background.
            validation: measured at this step, or empty.
        """
        self.watchdog.at(self.step, "checkpoint")
        progress = {
            "updates": self.engine.updates,
            "skipped": self.skipped,
            "skipped_in_a_row": self.guards.skipped_in_a_row,
            "rollbacks": self.guards.rollbacks,
            "data_offset": self.data_offset,
            "losses": self.guards.recent_losses,
        }
        losses = [value for name, value in validation.items() if name.endswith("/loss")]
        if losses:
            progress["validation_loss"] = statistics.fmean(losses)
            sets = {name: [samples.identity, samples.count] for name, samples in self.task.validation.items()}
            progress["validation_sets"] = sha256_json(sets)
        with self.clock.excluded():
            write = self.saver.save_and_wait if wait else self.saver.save
            write(self.step, self.run.describe(progress))

    def validate(self) -> dict[str, float]:
        """Means over the validation sets at this step (collective)."""
        self.watchdog.at(self.step, "validation")
        fault.point("validation", self.step)
        if not self.task.validation:
            return {}
        with self.clock.excluded(), self.engine.whole_core(self.task.build, everywhere=True) as module:
            return validate(module, self.task, self.config.train.micro_batch, self.rank, self.step)

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations; 0: there are none."""
        return self.task.evaluate_every if isinstance(self.task, Evaluated) else 0

    def evaluate(self) -> dict[str, float]:
        """Metrics of what the model makes at this step (collective); on the main rank, others get none."""
        self.watchdog.at(self.step, "evaluation")
        assert isinstance(self.task, Evaluated)
        with self.clock.excluded(), self.engine.whole_core(self.task.build) as module:
            return self.task.evaluate(module, self.step) if self.rank.main else {}

    def preview(self) -> None:
        """Pictures of what the model does at this step (collective); without room for them, none."""
        self.watchdog.at(self.step, "preview")
        with self.clock.excluded(), self.engine.whole_core(self.task.build) as module:
            if self.rank.main:
                try:
                    self.task.preview(module, self.run.path / "previews", self.step)
                except OSError as error:
                    log.warning("step %d: no preview (%s); training goes on", self.step, error)

    def finish(self, values: dict[str, float]) -> None:
        """Export, then complete.json (collective)."""
        self.watchdog.at(self.step, "export")
        self.run.check_ours()
        with self.engine.whole_core(self.task.build) as module:
            if self.rank.main:
                assert self.reporter
                exported = self.task.finish(module, self.run.path)
                values = values or self.reporter.values  # all steps were done when this start began
                self.run.complete({"step": self.step, "metrics": values, **exported})
        dist.barrier()  # so that no rank is gone before the export is whole

    def close(self) -> None:
        self.saver.close()
        if self.reporter:
            self.reporter.close()


def _seconds(own: list[float], rank: int) -> str:
    return f"{own[rank]:.3f} s of its own work a step, the median rank has {statistics.median_low(own):.3f} s"
