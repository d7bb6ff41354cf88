"""What models return, where it is not the logits alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def logits_of(output: Any) -> Tensor:
    """Return the logits of what a model returned.

    Args:
        output: A tensor; a mapping or an object with ``logits``, as models of transformers return; or a mapping with
            ``out``, as segmentation models of torchvision do. Outputs beside it, such as those of auxiliary heads, are
            left out.

    Raises:
        TypeError: If there is no telling which part of it is the logits.

    Example:
        >>> import torch
        >>> logits_of({"out": torch.zeros(2, 1), "aux": torch.ones(2, 1)})
        tensor([[0.],
                [0.]])
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        found = next((output[name] for name in ("logits", "out") if name in output), None)
        came = f"a mapping with {sorted(map(str, output))}"
    else:
        found = getattr(output, "logits", None)
        came = f"a {type(output).__name__}"
    if not isinstance(found, Tensor):
        raise TypeError(
            f"The model returned {came}; a tensor of logits, a mapping with 'logits' or 'out', or an object with "
            "`logits` was expected. For another output override `forward` of BinaryClassifier."
        )
    return found
