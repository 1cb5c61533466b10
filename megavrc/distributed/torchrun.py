"""torchrun that says nothing below what a rank has said: `python -m megavrc.distributed.torchrun`, with its options.

torchrun ends with a traceback of 30 lines and exit code 1 whatever its ranks ended with.
"""

import logging
import sys

from megavrc.errors import EXIT_INTERRUPTED


def main() -> int:
    """Run torchrun on this command line; returns the exit code of the rank that failed first, 128 + n for a signal."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        run.main()
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    except SignalException as error:  # its ranks got it too, and have ended
        return 128 + int(error.sigval)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
