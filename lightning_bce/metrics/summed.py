"""The base of metrics whose states are sums: exact over batches, ranks, merges and casts."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import Self

from lightning_bce.engine import sum_dtype

CHUNK = 2**16
"""Elements at a time: what is computed on the way then takes little memory, and stays in a cache."""


class SummedMetric(Metric):
    """Base of metrics that add up what they saw.

    The states keep their dtype, also when the module that holds the metric is cast to half precision (float64 is
    float32 on devices without it). Those of another metric can be added if it counts the same quantity.

    Args:
        **kwargs: Options of :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = False

    fingerprint: Tensor

    def _add_sums(self, *shape: int, **dtypes: torch.dtype) -> None:
        """Add states of one shape that begin at 0 and are summed over ranks."""
        for name, dtype in dtypes.items():
            self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

    def _identify(self, *options: object) -> None:
        """Tell this metric from others of its kind by what decides on the meaning of its sums."""
        # A MetricCollection shares the states of metrics whose states are equal after the first batch, which those of
        # two losses can be (a batch without positives under two values of pos_weight). The fingerprint differs; as
        # bytes, because states are compared with `allclose`, to which two large numbers are close.
        fingerprint = zlib.crc32(repr(options).encode())
        self.add_state("fingerprint", torch.tensor(list(fingerprint.to_bytes(4, "big"))), dist_reduce_fx="max")

    def _increase(self, **sums: Tensor) -> None:
        """Add to states."""
        for name, value in sums.items():
            state: Tensor = getattr(self, name)
            # Out of place: a state that was reset in inference mode cannot be changed in place outside of it.
            setattr(self, name, state + value.detach().to(state))

    @property
    def sums(self) -> dict[str, Tensor]:
        """The states by name."""
        return {name: getattr(self, name) for name in self._defaults}

    @contextmanager
    def _over_ranks(self) -> Iterator[None]:
        """Have the states of all ranks within, as ``compute`` has them."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            yield

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the state of another metric of the same kind and options.

        Raises:
            ValueError: If the other one counted another quantity.
        """
        if isinstance(incoming_state, (dict, type(self))):  # torchmetrics refuses others
            state: dict[str, Any] = incoming_state if isinstance(incoming_state, dict) else incoming_state.metric_state
            ours, theirs = (
                {name: s[name].tolist() if name == "fingerprint" else tuple(s[name].shape) for name in sorted(s)}
                for s in (self.sums, state)
            )
            if ours != theirs:
                raise ValueError(
                    f"States of shapes {theirs} cannot be added to those of this {type(self).__name__}, {ours}: they "
                    "are not the same quantity. Build both with the same options."
                )
        super().merge_state(incoming_state)
        # torchmetrics 1.9 goes on to return the value from before, and warns that nothing was seen.
        self._computed = None
        self._update_count += 1 if isinstance(incoming_state, dict) else incoming_state._update_count

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> Self:
        # `module.to(torch.bfloat16)` would take the sums along, and in bfloat16 a count stops at 256.
        names = tuple(self._defaults)
        this: Any = super()._apply(fn, (*exclude_state, *names))
        device = fn(torch.zeros(1, device=self.device)).device
        for name in names:
            if name not in exclude_state:
                state: Tensor = getattr(this, name)
                dtype = torch.float32 if device.type == "mps" and state.is_floating_point() else state.dtype
                this._defaults[name] = this._defaults[name].to(device, dtype)
                setattr(this, name, state.to(device, dtype))
        this._computed = None  # a value that was kept would have been cast
        return this  # type: ignore[no-any-return]


def add_at(places: Tensor, values: Tensor | None, size: int) -> Tensor:
    """Return the sums of values by place, (size,), in float64; without values how many there are, as whole numbers.

    Args:
        places: Whole numbers in [0, ``size``), any shape.
        values: What to add up, the shape of ``places``.
        size: Number of places.
    """
    # [no sync] Not `bincount`, whose output has a size that depends on the data: it waits for the device.
    places = places.flatten()
    if values is None:
        counts = torch.zeros(size, dtype=torch.int64, device=places.device)
        return counts.index_add_(0, places, torch.ones_like(places, dtype=torch.int64))
    wide = sum_dtype(places)
    return torch.zeros(size, dtype=wide, device=places.device).index_add_(0, places, values.flatten().to(wide))


def chunks(elements: int, rows: int, *tensors: Tensor | None, times: int = 1) -> Iterator[list[Tensor | None]]:
    """Yield tensors in pieces of some rows, about ``CHUNK`` elements each; what has one row for all stays whole.

    Args:
        elements: How many there are in all rows.
        rows: Size of dimension 0.
        *tensors: With ``rows`` or one row, or None.
        times: How many ``CHUNK`` a piece holds.
    """
    size = max(1, times * CHUNK * rows // max(1, elements))
    for start in range(0, rows, size):
        yield [t if t is None or len(t) != rows else t[start : start + size] for t in tensors]
