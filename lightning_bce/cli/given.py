"""What was said, by flags and in YAML files, before any parser knows the types."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml


def stated_names(arguments: Sequence[str]) -> set[str]:
    """Return the dotted names of all that flags and YAML files say, without "init_args"."""
    stated: set[str] = set()

    def walk(value: Any, name: str) -> None:
        for key, item in value.items() if isinstance(value, dict) else ():
            inner = name if key == "init_args" else f"{name}.{key}".lstrip(".")
            stated.add(inner)
            walk(item, inner)

    stated |= {argument.partition("=")[0].lstrip("-").replace(".init_args", "") for argument in arguments}
    for document in _documents(arguments):
        walk(document, "")
    return stated


def names_checkpoint(arguments: Sequence[str]) -> bool:
    """Return whether flags or YAML files name a checkpoint to go on with."""
    return bool(value_of("--ckpt_path", arguments) or any(found.get("ckpt_path") for found in _documents(arguments)))


def gives_head(arguments: Sequence[str]) -> bool:
    """Return whether flags or YAML files give the classifier a head; a saved configuration says null where not."""
    models = [found.get("model") for found in _documents(arguments)]
    in_files = any(model.get("head") for model in models if isinstance(model, dict))
    return bool(value_of("--model.head", arguments) or in_files)


def _documents(arguments: Sequence[str]) -> Iterator[dict[Any, Any]]:
    """Yield what the YAML files say, those that can be read: what is wrong with others the parser says better."""
    for path in configurations(arguments):
        with contextlib.suppress(OSError, yaml.YAMLError):
            found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            if isinstance(found, dict):
                yield found


def configurations(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the paths of the YAML files among the arguments."""
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-c"):
            yield value if equals else arguments[index + 1] if index + 1 < len(arguments) else ""


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """Return the last value of a flag, as the parser would."""
    found = None
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            found = argument.split("=", 1)[1]
        elif argument == flag and index + 1 < len(arguments):
            found = arguments[index + 1]
    return None if found in ("null", "None", "") else found
