"""The way from a command line to a running task: configuration, ranks, log, exit code."""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import torch

from megavrc.config import load_config
from megavrc.distributed import AbsentRank, Rank, connect, same_error_on_all_ranks, strip_launcher_args
from megavrc.errors import EXIT_HANG, EXIT_INTERRUPTED, EXIT_USER, UserError
from megavrc.files import user_error
from megavrc.model.attention import BackendError
from megavrc.training.config import BaseRunConfig
from megavrc.training.guards import Diverged
from megavrc.training.loop import train
from megavrc.training.tasks.base import Task
from megavrc.training.tasks.tokenizer import TokenizerTask
from megavrc.training.tasks.tokenizer_config import TokenizerRunConfig
from megavrc.training.tasks.vrc import VRCTask
from megavrc.training.tasks.vrc_config import RunConfig
from megavrc.training.watchdog import LostRank, exit_code_of

C = TypeVar("C", bound=BaseRunConfig)

# Keys that everyone needs, which --help has first: those of every task, and those of VRC and the video tokenizer.
FIRST_OF_LOOP = ("train.steps", "train.global_batch", "train.micro_batch", "train.precision", "seed")
FIRST = ("config", "run_dir", "init_from", "data.path", "data.video_tokenizer", "data.size", *FIRST_OF_LOOP)


def pretrain_vrc(argv: list[str]) -> NoReturn:
    """Train VRC, stage 1 (images) or stage 2 (clips)."""
    pretrain(RunConfig, lambda config, rank: VRCTask(config), argv, "megavrc pretrain_vrc")


def pretrain_tokenizer(argv: list[str]) -> NoReturn:
    """Train a video tokenizer; the finished one is in `<run_dir>/model`."""
    pretrain(TokenizerRunConfig, TokenizerTask, argv, "megavrc pretrain_tokenizer")


def pretrain(
    cls: type[C],
    make_task: Callable[[C, Rank], Any],
    argv: list[str] | None = None,
    prog: str = "",
    first: Sequence[str] = FIRST,
) -> NoReturn:
    """Run a pretraining command: `--config FILE.yaml --dotted.key value ..`, under any launcher; exits.

    `first` are keys that `--help` has first.

    Exit codes: 0 finished, or stopped by a signal or time limit after saving; 2 the user's mistake, or a GPU
    whose memory is full; 85 a rank hangs, is gone or never came, or the data's network failed, so run it again; 130
    Ctrl-C before it could save; 1 anything else: the run has diverged, or an error with its traceback.
    """
    try:
        try:
            code = _run(cls, make_task, sys.argv[1:] if argv is None else argv, prog, first)
        except OSError as error:
            raise user_error(error) from error
    except UserError as error:
        code = _say(error, exit_code_of(error))
    except LostRank as error:
        code = _say(error, error.exit_code)
    except AbsentRank as error:
        code = _say(error, EXIT_HANG)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("stopped by Ctrl-C", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except Exception:
        with contextlib.suppress(OSError):  # of a log on a full disk, which changes no exit code
            traceback.print_exc()
        code = 1
    note = os.environ.get("MEGAVRC_MISTAKE")  # of the batch script: docs/slurm.md
    if code == EXIT_USER and note:
        with contextlib.suppress(OSError):
            open(note, "w").close()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    # ZeRO stage 3 sometimes aborts while the interpreter takes itself apart, which would look like a failed run.
    os._exit(code)


def _say(error: Exception, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _run(
    cls: type[C], make_task: Callable[[C, Rank], Any], argv: list[str], prog: str, first: Sequence[str]
) -> int:
    config = load_config(cls, strip_launcher_args(argv), first, prog)
    # Others wait in a collective while the main rank evaluates or writes alone: how long, the watchdog judges.
    with connect(max(30.0, config.train.watchdog_s / 60 + 5)) as rank:
        try:
            run_task(config, make_task, rank)
        except torch.OutOfMemoryError as error:  # of any rank, each for itself
            return _say(_full_memory(error, rank), EXIT_USER)
        except (UserError, BackendError, Diverged) as error:  # the same on all ranks: the main one says it
            code = EXIT_USER if isinstance(error, BackendError) else exit_code_of(error)
            return _say(error, code) if rank.main else code
    return 0


def _full_memory(error: Exception, rank: Rank) -> UserError:
    sentence = str(error).partition(". GPU")[0]  # what follows are numbers and hints for torch's developers
    return UserError(
        f"rank {rank.rank}: the memory of the GPU is full ({sentence}); lower train.micro_batch, or train VRC with "
        "train.activation_checkpointing: layers or a higher train.zero"
    )


def run_task(config: C, make_task: Callable[[C, Rank], Task[Any]], rank: Rank) -> None:
    """Make a task and train it, on every rank; the main one logs. Raises as `train`, or what making the task raises."""
    _log_on_main_rank(rank)
    with same_error_on_all_ranks(rank):
        task = make_task(config, rank)
    train(config, task, rank)


def _log_on_main_rank(rank: Rank) -> None:
    logger = logging.getLogger("megavrc")
    if logger.handlers:  # of a run before this one, in the same process
        return
    handler: logging.Handler = logging.StreamHandler(sys.stderr) if rank.main else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not rank.main:  # what is wrong with data concerns one rank
        handler = logging.StreamHandler(sys.stderr)
        handler.setLevel(logging.WARNING)
        handler.setFormatter(logging.Formatter(f"rank {rank.rank}: %(message)s"))
        logging.getLogger("megavrc.data").addHandler(handler)
