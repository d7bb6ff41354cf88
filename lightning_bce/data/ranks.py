"""Several ranks have to see the same data: each reads its own share of it, by the number of the row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def check_same_on_every_rank(what: str, facts: Mapping[str, Any]) -> None:
    """Refuse to go on where the ranks do not agree, on all of them; every rank has to call it.

    Args:
        what: What the facts are about, for the message.
        facts: Plain values, such as a file's fingerprint and the seed of its split.

    Raises:
        ValueError: With the facts that differ, rank by rank.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, dict(facts))
    differ = [name for name in facts if any(others[name] != facts[name] for others in everyone)]
    if differ:
        found = "; ".join(
            f"rank {rank}: " + ", ".join(f"{name} {others[name]}" for name in differ)
            for rank, others in enumerate(everyone)
        )
        raise ValueError(
            f"The ranks do not have the same {what} ({found}). Give every machine the same files and arguments: rows "
            "would be trained on twice, or by one rank and tested by another."
        )
