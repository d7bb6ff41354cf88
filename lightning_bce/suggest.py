"""The nearest name to a misspelt one, for the answers of the command line."""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
from collections.abc import Iterable, Iterator

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger

from lightning_bce.losses import BinaryLoss

_BASES = (
    BinaryLoss,
    pl.LightningDataModule,
    pl.Callback,
    Logger,
    torch.optim.Optimizer,
    torch.optim.lr_scheduler.LRScheduler,
)


_DATA_ADVICE = (
    " For the bundled digits: --data DigitsDataModule; for a table of yours: --data TableDataModule --data.path FILE."
)


def nearest_flag(message: str, parser: argparse.ArgumentParser) -> str | None:
    """Return the flag or subcommand nearest to the one that ``message`` complains of.

    Args:
        message: An error of argparse or jsonargparse.
        parser: The parser that raised it, or one above it.
    """
    unknown = re.search(r"(?:[Uu]nrecognized arguments|Key|Option)\W+(--)?'?([\w.]+)", message)
    if unknown is None or "is required" in message:
        return None
    flags = sorted({flag.lstrip("-") for flag in _flags(parser)})
    found = difflib.get_close_matches(unknown[2], flags, n=1, cutoff=0.6)
    return f"--{found[0]}" if found else None


def nearest_name(message: str) -> str | None:
    """Return the class, or the argument of a class, nearest to the one that ``message`` complains of."""
    argument = re.search(
        r"class_path '([\w.]+)':.*?(?:Option|Key|key) '?(\w+)'? is not (?:accepted|expected)", message, re.S
    )
    classes = {cls.__name__: cls for base in _BASES for cls in _subclasses(base)}
    if argument is not None and argument[1].rpartition(".")[2] in classes:
        parameters = inspect.signature(classes[argument[1].rpartition(".")[2]]).parameters
        names = [*parameters, *inspect.signature(BinaryLoss).parameters]
        found = difflib.get_close_matches(argument[2], names, n=1, cutoff=0.5)
        return found[0] if found else None
    value = re.search(r"(?:Expected a path but|import path string:|Given value:|invalid choice:)\s+'?([\w.]+)", message)
    if value is None:
        return None
    names = [*classes, "fit", "validate", "test", "predict"]
    found = difflib.get_close_matches(value[1].rpartition(".")[2], names, n=1, cutoff=0.6)
    return found[0] if found else None


def shortened(message: str) -> str:
    """Return an error of jsonargparse without the list of all that was tried."""
    linked = re.search(r"with args \(.*?\) failed: (.*)", message, re.S)
    if linked is not None:
        return linked[1]
    key = re.search(r'key "?([\w.]+)"?', message)
    where = f"--{key[1]}: " if key is not None else ""
    unknown = re.search(r"import path string: (\S+)", message)
    if unknown is not None and "Problem with given class_path" not in message:
        return (
            f"{where}{unknown[1]!r} names no class that is known by this name. A class of your own is given by its "
            "path, such as my_file.MyClass."
        )
    tried = re.search(r"Errors:\n(.*?)(?:\n *Given value type|\Z)", message, re.S)
    if tried is not None:
        reasons = [line.strip().removeprefix("- ") for line in tried[1].splitlines() if "NoneType" not in line]
        return where + "\n  ".join(reason for reason in reasons if reason)
    missing = re.search(r"arguments are required: \w+\.(\S+)", message)
    missing = missing or re.search(r"(?:Key|Option) [\"']\w+\.(\S+)[\"'] is required", message)  # older releases
    if missing is not None:
        return f"--{missing[1]} is missing." + (_DATA_ADVICE if missing[1] == "data" else "")
    return "\n  ".join(line.rstrip() for line in message.strip().splitlines() if line.strip())


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        choices: Iterable[object] = action.choices.values() if isinstance(action.choices, dict) else ()
        for nested in choices:
            if isinstance(nested, argparse.ArgumentParser):
                yield from _flags(nested)


def _subclasses(cls: type) -> Iterator[type]:
    found: list[type] = cls.__subclasses__()
    for subclass in found:
        yield subclass
        yield from _subclasses(subclass)
