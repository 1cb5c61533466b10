"""The training loop, the same for every task.

Randomness of a step depends on (seed, step, micro-batch, rank) and its data on (seed, position), so a run that was
stopped anywhere goes on exactly as if it had not been.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from megavrc.data.order import Order
from megavrc.data.stream import Stream
from megavrc.distributed import Rank, StopSignal, any_rank, seed_for
from megavrc.training.config import AnyRunConfig
from megavrc.training.engine import Engine, Update
from megavrc.training.metrics import Clock, Meter, Reporter
from megavrc.training.run import RunFolder
from megavrc.training.schedule import learning_rate
from megavrc.training.tasks import Task

log = logging.getLogger("megavrc")

MAX_SKIPPED = 50  # steps in a row; then the run has diverged and more steps would only burn time


class Trainer:
    """A run in progress: engine, data and reports of this rank."""

    def __init__(self, config: AnyRunConfig, task: Task, run: RunFolder, rank: Rank) -> None:
        self.config, self.task, self.run, self.rank = config, task, run, rank
        self.step, self.skipped = run.step, 0
        torch.manual_seed(seed_for(config.seed, "weights"))
        core = task.build()
        if run.checkpoint is None:
            task.initialise(core)
        self.engine = Engine(core, task.loss, config.train, config.optimizer, rank, config.deepspeed)
        if run.checkpoint is not None:
            missing = self.engine.load_state(run.checkpoint.groups, run.checkpoint.state["updates"])
            if missing:
                log.warning("%s has no %s", run.checkpoint.path, ", ".join(sorted(missing)))
            self.skipped = run.checkpoint.state["skipped"]
        self.saver = run.saver(self.engine.state)
        stream = Stream(
            task.source,
            Order(len(task.source), seed_for(config.seed, "order")),
            global_batch=config.train.global_batch,
            micro_batch=config.train.micro_batch,
            rank=rank.rank,
            world_size=rank.world_size,
            collate=task.collate,
            start_step=self.step,
            workers=config.train.workers,
        )
        self.batches: Iterator[Any] = iter(stream)
        self.meter, self.clock = Meter(), Clock()
        self.reporter = Reporter(run.path, self.step, config.train.steps) if rank.main else None

    def train_step(self) -> Update:
        """One optimiser step: its micro-batches, then the update."""
        before = self.engine.snapshot_buffers()
        for micro in range(self.engine.accumulation):
            with self.clock.wait():
                batch = to_device(next(self.batches), self.rank.device)
            torch.manual_seed(seed_for(self.config.seed, "forward", self.step, micro, self.rank.rank))
            self.meter.add(*self.engine.forward_backward(batch, self.step))
        lr = learning_rate(self.step, self.config.train.steps, self.config.optimizer)
        update = self.engine.step(lr, before)
        self.meter.commit(update.applied)
        self.skipped += not update.applied
        self.step += 1
        return update

    def report(self, update: Update, steps: int) -> dict[str, float]:
        """A line of metrics about the last `steps` steps (collective)."""
        means = self.meter.means()
        seconds, waiting = self.clock.lap()
        clips = steps * self.config.train.global_batch / seconds
        values = {
            **means,
            "lr": learning_rate(self.step - 1, self.config.train.steps, self.config.optimizer),
            "grad_norm": update.grad_norm,
            "clips/s": clips,
            "tokens/s": clips * self.task.tokens,
            "data_wait_%": 100 * waiting,
            "skipped": float(self.skipped),
        }
        if self.saver.stalled:
            values["checkpoint_stall_s"], self.saver.stalled = self.saver.stalled, 0.0
        if self.saver.failures:
            values["checkpoint_failures"] = float(self.saver.failures)
        if self.reporter:
            self.reporter.write(self.step, values)
        return values

    def save(self, last: bool) -> None:
        """A checkpoint of this step (collective), written in the background unless it is the run's last."""
        progress = {"updates": self.engine.updates, "skipped": self.skipped}
        with self.clock.excluded():
            write = self.saver.save_and_wait if last else self.saver.save
            write(self.step, self.run.describe(progress))

    def preview(self) -> None:
        """Pictures of what the model does at this step (collective)."""
        with self.clock.excluded(), self.engine.whole_core(self.task.build) as module:
            if self.rank.main:
                self.task.preview(module, self.run.path / "previews", self.step)

    def finish(self, values: dict[str, float]) -> None:
        """Export, then complete.json (collective)."""
        with self.engine.whole_core(self.task.build) as module:
            if self.rank.main:
                self.run.complete({"metrics": values, **self.task.finish(module, self.run.path)})
        dist.barrier()  # so that no rank is gone before the export is whole

    def close(self) -> None:
        self.saver.close()
        if self.reporter:
            self.reporter.close()


def train(config: AnyRunConfig, task: Task, rank: Rank) -> None:
    """Train until `train.steps`, or until a signal asks to stop; resumes what is in the run folder.

    Raises:
        UserError: the run folder holds another run, or a value of the configuration does not fit.
        RuntimeError: the run has diverged.
    """
    stop = StopSignal()
    run = RunFolder(config, task.identity, task.facts, rank)
    with contextlib.closing(run):
        if run.finished:
            log.info("%s: finished at step %d; raise train.steps to go on", run.path, run.step)
            return
        if rank.main:
            run.complete_file.unlink(missing_ok=True)
        trainer = Trainer(config, task, run, rank)
        log.info("%s: steps %d to %d on %d ranks", run.path, run.step, config.train.steps, rank.world_size)
        with contextlib.closing(trainer):
            _run_steps(trainer, stop)


def _run_steps(trainer: Trainer, stop: StopSignal) -> None:
    settings = trainer.config.train
    in_a_row, reported, values = 0, trainer.step, {}
    while trainer.step < settings.steps:
        update = trainer.train_step()
        trainer.saver.poll()
        in_a_row = 0 if update.applied else in_a_row + 1
        if not update.applied:
            log.warning("step %d: non-finite gradient; skipped on all ranks", trainer.step - 1)
        if in_a_row == MAX_SKIPPED:
            raise RuntimeError(
                f"{MAX_SKIPPED} steps in a row had non-finite gradients; resume with a lower lr"
            )
        last = trainer.step == settings.steps
        [stopping] = any_rank(stop.received is not None)
        if last or stopping or trainer.step % settings.log_every == 0:
            values = trainer.report(update, trainer.step - reported)
            reported = trainer.step
        if last or stopping or trainer.step % settings.save_every == 0:
            trainer.save(last=last or stopping)
        if stopping and not last:
            return log.info("stopped by %s after step %d; saved", stop.received or "a rank", trainer.step)
        if not last and settings.preview_every and trainer.step % settings.preview_every == 0:
            trainer.preview()
    trainer.preview()
    trainer.finish(values)
    return None


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch of nested dictionaries and tuples of tensors, on the device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: to_device(value, device) for name, value in batch.items()}
    return tuple(to_device(value, device) for value in batch)
