"""The training loop, the same for every task."""

import contextlib
import logging
from typing import Any

import torch.distributed as dist

from megavrc.distributed import Rank, StopSignal, any_rank
from megavrc.training.config import BaseRunConfig
from megavrc.training.run_folder import RunFolder
from megavrc.training.tasks import Task
from megavrc.training.trainer import Trainer
from megavrc.training.watchdog import Watchdog

log = logging.getLogger("megavrc")


def train(config: BaseRunConfig, task: Task[Any], rank: Rank) -> None:
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
        with Watchdog(run.path, rank, config.train.watchdog_s) as watchdog:
            with contextlib.closing(Trainer(config, task, run, rank, watchdog)) as trainer:
                if rank.roll_call:
                    dist.barrier()
                    rank.roll_call.end()
                if rank.main:
                    run.record_start()
                steps = (run.step, config.train.steps)
                log.info("%s: steps %d to %d on %d ranks", run.path, *steps, rank.world_size)
                take_steps(trainer, stop)


def take_steps(trainer: Trainer, stop: StopSignal) -> None:
    """The steps that are left, and what happens once in a while between them (collective)."""
    settings = trainer.config.train
    if settings.spike_threshold and trainer.run.checkpoint is None:
        trainer.save(wait=True, validation={})  # an early spike needs somewhere to go back to
    reported, values = trainer.step, {}
    trainer.clock.lap()  # what came before, and the wait for other ranks, is no time of training
    while trainer.step < settings.steps:
        update = trainer.train_step()

        # Is the run still well? All ranks judge the same numbers, so either all go back or none does.
        trainer.watchdog.at(trainer.step, "agreement")
        trainer.saver.poll()  # moves the checkpoint that is being written on
        if spike := trainer.judge(update):
            trainer.go_back(spike)
            reported = trainer.step
            continue

        # A signal reaches ranks at different moments: as soon as one of them was asked to stop, all do, at this step.
        [stopping] = any_rank(stop.asked())
        last = trainer.step == settings.steps

        # Once in a while: validate. Not when stopping: there may be less time left than that takes.
        validation: dict[str, float] = {}
        if last or (_every(settings.validate_every, trainer.step) and not stopping):
            validation = trainer.validate()

        # Once in a while: generate and measure. All ranks take part, but the main one alone has the numbers.
        evaluation: dict[str, float] = {}
        every = trainer.evaluate_every
        if evaluate := every > 0 and (last or (trainer.step % every == 0 and not stopping)):
            evaluation = trainer.evaluate()

        # Once in a while: report. What was just measured is part of the line, and so is the end of what was done.
        if last or stopping or validation or evaluate or _every(settings.log_every, trainer.step):
            values = trainer.report(update, trainer.step - reported, validation | evaluation)
            reported = trainer.step

        # Once in a while: save. The process ends after the last one, so it must be whole by then.
        if last or stopping or _every(settings.save_every, trainer.step):
            trainer.save(wait=last or stopping, validation=validation)
        if stopping and not last:
            log.info("stopped by %s after step %d; saved", stop.received or "another rank", trainer.step)
            return

        # Once in a while: preview. After the checkpoint, so that nothing is lost if it takes too much memory.
        if not last and _every(settings.preview_every, trainer.step):
            trainer.preview()

    trainer.preview()  # out of the loop, for a run that ended between its last step and here
    trainer.finish(values)


def _every(steps: int, step: int) -> bool:
    return steps > 0 and step % steps == 0
