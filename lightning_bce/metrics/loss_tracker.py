"""LossTracker: the exact loss of a whole epoch, by label and side, over uneven batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_bce.losses import BinaryLoss, LossSums
from lightning_bce.metrics.summed import SummedMetric


class LossTracker(SummedMetric):
    r"""Exact mean of a loss with its parts by label and side, as a :class:`torchmetrics.Metric`.

    The states are sums of losses and weights, (C, 2), so that uneven batches, ranks and merged trackers give the mean
    over all elements, :math:`\sum \ell / \sum w`, and not a mean of means. They are kept in float64, also when the
    module that holds the tracker is cast to half precision (in float32 on devices without float64).

    As input to ``forward`` and ``update``:

    - ``sums`` (:class:`LossSums`): what :meth:`BinaryLoss.sums` returned, or
    - ``logits``, ``target`` and optionally ``weight`` and ``mask``, as :meth:`BinaryLoss.sums` takes them.

    As output of ``compute``, a dictionary in nats, where (C,) is a scalar for one label, and NaN what was never
    seen:

    - ``loss``: the mean, a scalar,
    - ``class_loss``: the mean of each label, (C,),
    - ``negative_loss``, ``positive_loss``: the mean over each label's negatives and positives, (C,),
    - ``share``, ``negative_share``, ``positive_share``: parts of the total loss; ``share`` adds up to 1,
    - ``negative_weight``, ``positive_weight``: what they counted: the number of elements under "mean".

    Args:
        loss: Computes the sums from logits and targets, and tells trackers of different losses apart. None takes
            :class:`LossSums` only.
        num_labels: The number of labels C. Sums have a row for each; those of a loss without a form by label have one
            for all, which the tracker learns from the loss. Without a loss it is the number of rows.
        **kwargs: Options of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If sums of another shape arrive, or a tracker of another loss is merged.

    Example:
        >>> import torch
        >>> from lightning_bce import BCEWithLogitsLoss
        >>> tracker = LossTracker(BCEWithLogitsLoss())
        >>> tracker.update(torch.tensor([0.0, 0.0, 4.0]), torch.tensor([0, 0, 1]))
        >>> tracker.update(torch.tensor([-1.0]), torch.tensor([1]))
        >>> round(tracker.compute()["loss"].item(), 4)
        0.6794
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_legend_name = "Label"

    loss_sum: Tensor
    weight_sum: Tensor

    def __init__(self, loss: BinaryLoss | None = None, num_labels: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if loss is not None and not isinstance(loss, BinaryLoss):
            raise TypeError(
                f"`loss` is {type(loss).__name__}; a BinaryLoss was expected. Derive yours from "
                "`lightning_bce.BinaryLoss`, which needs one method, or pass LossSums of your own to a tracker without "
                "a loss."
            )
        if num_labels < 1:
            raise ValueError(f"`num_labels` is {num_labels}; at least 1 was expected.")
        num_labels = num_labels if loss is None else loss.num_rows(num_labels)
        self.loss = loss
        self.num_labels = num_labels
        self._add_sums(num_labels, 2, loss_sum=torch.float64, weight_sum=torch.float64)
        self._identify(0 if loss is None else loss.fingerprint)

    def update(
        self,
        sums: LossSums | Tensor,
        target: Tensor | None = None,
        weight: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> None:
        """Add a batch: its :class:`LossSums`, or logits and targets."""
        if isinstance(sums, LossSums):
            if target is not None or weight is not None or mask is not None:
                raise ValueError("LossSums hold targets, weights and mask already; pass them alone.")
        elif self.loss is None:
            raise ValueError("This tracker has no loss. Pass LossSums, or build it with `LossTracker(loss)`.")
        elif target is None:
            raise ValueError("Logits came without targets. Pass both, or the LossSums of a batch.")
        else:
            sums = self.loss.sums(sums, target, weight, mask=mask)
        expected = (self.num_labels, 2)
        if tuple(sums.loss.shape) != expected or tuple(sums.weight.shape) != expected:
            raise ValueError(
                f"The sums have shape {tuple(sums.loss.shape)} and this tracker {expected}. Set `num_labels` to the "
                "number of outputs."
            )
        self._increase(loss_sum=sums.loss, weight_sum=sums.weight)

    def compute(self) -> dict[str, Tensor]:
        """Return the mean loss and its parts; see the class for the names."""
        loss, weight = self.loss_sum, self.weight_sum
        side = loss / weight  # 0 / 0 is NaN: what was never seen has no mean
        share = loss / loss.sum()
        return {
            "loss": loss.sum() / weight.sum(),
            "class_loss": loss.sum(1) / weight.sum(1),
            "negative_loss": side[:, 0],
            "positive_loss": side[:, 1],
            "share": share.sum(1),
            "negative_share": share[:, 0],
            "positive_share": share[:, 1],
            "negative_weight": weight[:, 0],
            "positive_weight": weight[:, 1],
        }

    def sums_over_ranks(self) -> LossSums:
        """Return the sums of which ``compute`` makes means."""
        with self._over_ranks():
            return LossSums(self.loss_sum, self.weight_sum)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the mean loss of each label.

        Args:
            val: A result of ``forward`` or ``compute``, or a list of them. None computes one.
            ax: A matplotlib axis to draw on. None makes a new figure.

        Returns:
            Figure and axis.
        """
        val = self.compute() if val is None else val
        if isinstance(val, dict):
            return self._plot(val["class_loss"], ax)
        return self._plot([item["class_loss"] for item in val] if isinstance(val, Sequence) else val, ax)
