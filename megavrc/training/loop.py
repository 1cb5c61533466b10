"""The training loop, the same for every task."""

import contextlib
import logging

from megavrc.distributed import Rank, StopSignal, any_rank
from megavrc.training.config import AnyRunConfig
from megavrc.training.run_folder import RunFolder
from megavrc.training.tasks import Task
from megavrc.training.trainer import Trainer
from megavrc.training.watchdog import Watchdog

log = logging.getLogger("megavrc")


def train(config: AnyRunConfig, task: Task, rank: Rank) -> None:
    """Train until `train.steps`, or until a signal or the time limit stops it; resumes what is in the run folder.

    Raises:
        UserError: the run folder holds another run, or a value of the configuration does not fit.
        Diverged: the run cannot go on by itself.
        LostRank: other ranks are gone.
    """
    stop = StopSignal(config.train.exit_duration)
    run = RunFolder(config, task.identity, task.facts, rank)
    with contextlib.closing(run):
        if run.finished:
            log.info("%s: finished at step %d; raise train.steps to go on", run.path, run.step)
            return
        if rank.main:
            run.complete_file.unlink(missing_ok=True)
        with Watchdog(run.path, rank, config.train.watchdog_s) as watchdog:
            with contextlib.closing(Trainer(config, task, run, rank, watchdog)) as trainer:
                steps = (run.step, config.train.steps)
                log.info("%s: steps %d to %d on %d ranks", run.path, *steps, rank.world_size)
                _run_steps(trainer, stop)


def _run_steps(trainer: Trainer, stop: StopSignal) -> None:
    settings = trainer.config.train
    reported, values = trainer.step, {}
    if settings.spike_threshold and trainer.run.checkpoint is None:
        trainer.save(last=True, validation={})  # to have where to go back to
    while trainer.step < settings.steps:
        update = trainer.train_step()
        trainer.watchdog.at(trainer.step, "agreement")
        trainer.saver.poll()
        if trainer.guard(update):
            reported = trainer.step
            continue
        last = trainer.step == settings.steps
        [stopping] = any_rank(stop.asked())
        due = last or stopping
        measured = last or (_every(settings.validate_every, trainer.step) and not stopping)
        validation = trainer.validate() if measured else {}
        if due or validation or trainer.step % settings.log_every == 0:
            values = trainer.report(update, trainer.step - reported, validation)
            reported = trainer.step
        if due or trainer.step % settings.save_every == 0:
            trainer.save(last=due, validation=validation)
        if stopping and not last:
            return log.info(
                "stopped by %s after step %d; saved", stop.received or "another rank", trainer.step
            )
        if not last and _every(settings.preview_every, trainer.step):
            trainer.preview()
    trainer.preview()
    trainer.finish(values)
    return None


def _every(steps: int, step: int) -> bool:
    return steps > 0 and step % steps == 0
