"""The user's mistakes, and what every exit code of a command or a job means."""

EXIT_USER = 2
EXIT_STOPPED = 75
EXIT_HANG = 85
EXIT_INTERRUPTED = 130
EXIT_CODES = {
    0: "finished, or stopped by a signal after saving",
    1: "an exception; see the log",
    EXIT_USER: "the user's mistake; see the log",
    EXIT_STOPPED: "tokenization stopped by a signal",
    EXIT_HANG: "a hang, which the watchdog named in the log, or a network or file system that failed for long",
    EXIT_INTERRUPTED: "stopped by Ctrl-C before it could save",
    134: "aborted (SIGABRT)",
    137: "killed (SIGKILL): out of host memory, a lost node, or the end of the grace period",
    138: "stopped (SIGUSR1) before training had begun",
    139: "segmentation fault (SIGSEGV)",
    143: "terminated (SIGTERM) before it could save",
}


class UserError(ValueError):
    """The user's mistake. The message is one line: which file, key or value is wrong, and what to do."""


class TransientError(UserError):
    """A file system or a network that failed again and again; another time it may work. One line, as above."""


def check_least(**values: tuple[int, int]) -> None:
    """Refuse options below their least value."""
    for name, (value, least) in values.items():
        if value < least:
            raise UserError(f"--{name}: {value}, at least {least}")


def check_keep(*shares: float) -> None:
    """Refuse a `--keep` that is no share of tokens."""
    if wrong := [share for share in shares if not 0 < share <= 1]:
        raise UserError(f"--keep: {wrong[0]} is not a share above 0 and at most 1")
