"""A parser that answers a mistake with what may have been meant."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lightning_bce.suggest import nearest_flag, nearest_name, shortened

_USAGE = 2  # exit code


class Parser(LightningArgumentParser):
    """Lightning's parser, which answers a misspelt name with the nearest one."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print what is wrong, what may have been meant and where help is, and exit with status 2."""
        hint = nearest_flag(message, self) or nearest_name(message)
        if "is not accepted" in message and not hint:
            flags = [action.dest for action in self._actions if action.dest not in ("help", "print_config", "config")]
            message = f"{message}; there are: {', '.join(flags)}"
        refuse(f"{shortened(message)}\nDid you mean {hint}?" if hint else shortened(message))


def refuse(message: str) -> NoReturn:
    """Print what is wrong and where help is, and exit with the status of a usage error."""
    sys.stderr.write(f"error: {message}\nFor all options: lightning-bce fit --help (or validate, test, predict)\n")
    raise SystemExit(_USAGE)
