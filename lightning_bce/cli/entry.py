"""The entry of the command: which subcommand, what is not worth a warning, and the exit status."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_bce.callbacks import NotFiniteError
from lightning_bce.classifier import BinaryClassifier
from lightning_bce.cli.command import BinaryCLI
from lightning_bce.cli.parser import refuse
from lightning_bce.plot_command import plot
from lightning_bce.report.command import report

_INTERRUPTED, _TERMINATED = 130, 143  # exit codes beside 1, a run that failed, and 2, usage; a signal n is 128 + n
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quota
_NOISE = [
    # Lightning's own call on this torch; nothing that a user could change.
    (".*LeafSpec.*is deprecated.*", FutureWarning),
    (".*LeafSpec.*is deprecated.*", DeprecationWarning),
    # In-memory tables load in microseconds: worker processes would only cost.
    (".*does not have many workers.*", UserWarning),
    # The exact loss of every epoch is logged whatever the interval of the single steps is.
    (".*smaller than the logging interval.*", UserWarning),
    # What is loaded for a test or a prediction is the model; those callbacks only train.
    (".*callbacks used to create the checkpoint need to be provided.*", UserWarning),
    # A resumed run has a folder of its own; the best checkpoint of the first stays where it is.
    (".*The dirpath has changed from.*", UserWarning),
    # Runs are numbered, so an existing folder is one that was named on purpose.
    (".*Checkpoint directory .* exists and is not empty.*", UserWarning),
]


def main(args: Sequence[str] | None = None, model_class: type[BinaryClassifier] = BinaryClassifier) -> None:
    """Run the command.

    Args:
        args: Arguments in place of those of the process.
        model_class: A subclass of BinaryClassifier, for a project's own command.
    """
    if importlib.util.find_spec("jsonargparse") is None:
        sys.exit("error: The command needs more than the library does: pip install 'lightning_bce[cli,data]'")
    # Advertisements for other packages.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    for message, category in _NOISE:
        warnings.filterwarnings("ignore", message, category)
    # A console script does not look in the current folder, where a user's own losses and models are.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    given = sys.argv[1:] if args is None else args
    if given[:1] == ["plot"]:
        plot(given[1:])
    elif given[:1] == ["report"]:
        report(given[1:])
    elif given[:1] == ["compare"]:
        from lightning_bce.comparison.command import command  # late: no other command waits for it

        sys.exit(command(given[1:]))
    else:
        try:
            BinaryCLI(model_class, args)
        except NotFiniteError as error:
            sys.exit(f"error: {error}")
        except FileExistsError as error:  # an output of before, which is not overwritten unasked
            refuse(str(error))
        except OSError as error:
            if error.errno not in _FULL:
                raise
            sys.exit(f"error: {error}. Make room; with --ckpt_path a run goes on from its last checkpoint.")
        except SIGTERMException:  # of Lightning, with status 0
            sys.exit(_TERMINATED)
        except KeyboardInterrupt:
            sys.exit(_INTERRUPTED)
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning has ended the run in order, with status 1
                sys.exit(_INTERRUPTED)
            raise
