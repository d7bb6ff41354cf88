"""LossProfile: where the loss comes from, easy or hard examples, and where its gradient goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_bce.losses import BinaryLoss, CombinedLoss
from lightning_bce.losses.checks import check_shapes, check_whole
from lightning_bce.losses.shapes import fit_weight
from lightning_bce.losses.stable import full_precision
from lightning_bce.metrics.summed import SummedMetric, add_at, chunks
from lightning_bce.metrics.untouched import untouched

_DECADES = (-9, 3)
_PER_DECADE = 16
_LOSS_BINS = (_DECADES[1] - _DECADES[0]) * _PER_DECADE + 2


class HardnessBins(NamedTuple):
    """Examples, loss and gradient in bins of the probability of the true side, p_t.

    Args:
        edges: Of the bins, (B + 1,), from 0 to 1.
        count: Elements, (2, B): negatives, positives.
        loss: Sum of their losses in nats, (2, B). NaN for a loss without a form by element.
        gradient: Sum of the absolute derivatives of the loss by the logit, (2, B).
    """

    edges: Tensor
    count: Tensor  # type: ignore[assignment]  # of a tuple it hides a method that nobody needs
    loss: Tensor
    gradient: Tensor


class LossBins(NamedTuple):
    """How many elements have a loss of which size.

    Args:
        edges: Of the bins in nats, (D + 1,), the first 0, the last infinite.
        count: Elements, (2, D): negatives, positives.
        loss: Sum of their losses in nats, (2, D).
    """

    edges: Tensor
    count: Tensor  # type: ignore[assignment]  # of a tuple it hides a method that nobody needs
    loss: Tensor


class ProfiledLoss(NamedTuple):
    """What :class:`LossProfile` computes.

    Args:
        hardness: By p_t.
        distribution: By the size of the loss. None for a loss without a form by element.
        gradient: Sums of the derivative of the loss by the logit, (C, 2): how the negatives and the positives of each
            label pull at its output.
    """

    hardness: HardnessBins
    distribution: LossBins | None
    gradient: Tensor


class LossProfile(SummedMetric):
    r"""Where a loss comes from: easy or hard examples, small or large losses, and which label's gradient.

    Elements are filed by

    - the probability of their true side, :math:`p_t`, which is :math:`p = \sigma(x)` for a target above one half and
      :math:`1 - p` otherwise, in uniform bins that hold their lower edge, the last one both; below 0.5 an element is
      *hard*, at 0.5 and above it is *easy*;
    - the size of their loss, in 16 bins for each factor of 10 from 1e-9 to 1e3 nats, one below and one above;

    each for negatives and positives. Memory is that of the bins; sums are in float64 and added up over ranks.

    ``count`` is the plain number of elements whose label is known. Losses and gradients carry the factors that the loss
    gives them (``weight``, ``class_weight``, ``pos_weight``, ...) and are divided by nothing. The gradient is the
    derivative by the logit, from the loss's own formula, also for a loss on probabilities, which gets the sigmoid. The
    loss is asked in evaluation mode, without a random number, and nothing in it changes.

    A loss of rows (a ranking, an overlap, a sum with such a term) has no loss of an element: ``hardness.loss`` is then
    NaN and ``distribution`` None; its gradient is that of ``loss.sums(...).loss.sum()``.

    ``forward`` and ``update`` take logits, target and optionally weight and mask, as :meth:`BinaryLoss.sums` takes
    them. They never wait for the device, and go through large batches in pieces, unless the loss of a sample depends on
    the others of its batch. A NaN logit is filed as hardest, with a loss of NaN. An update takes about half as long as
    forward and backward of cross-entropy by its formula, where the loss has a kernel, and otherwise 1.5 times as long.

    Args:
        loss: What to look at.
        num_labels: Number of labels C.
        bins: How many bins of p_t, even, so that 0.5 parts hard from easy.
        **kwargs: Options of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If the loss is no :class:`BinaryLoss`.
        ValueError: If an option is out of range, or a batch has another number of labels.

    Example:
        >>> import torch
        >>> from lightning_bce import BCEWithLogitsLoss
        >>> profile = LossProfile(BCEWithLogitsLoss(), bins=2)
        >>> profile.update(torch.tensor([2.0, -3.0, -4.0, 0.5]), torch.tensor([0, 0, 0, 1]))
        >>> profile.compute().hardness.count
        tensor([[1, 2],
                [0, 1]])
        >>> {name: round(share.item(), 2) for name, share in profile.shares().items()}
        {'hard_share': 0.25, 'hard_share_loss': 0.8, 'hard_share_gradient': 0.67}
    """

    higher_is_better = None

    count: Tensor
    loss_sum: Tensor
    gradient_sum: Tensor
    size_count: Tensor
    size_loss: Tensor
    label_gradient: Tensor

    def __init__(self, loss: BinaryLoss, num_labels: int = 1, *, bins: int = 20, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(loss, BinaryLoss):
            raise TypeError(f"`loss` is {type(loss).__name__}; a BinaryLoss was expected. Derive yours from it.")
        check_whole("num_labels", num_labels, at_least=1)
        check_whole("bins", bins, at_least=2)
        if bins % 2:
            raise ValueError(f"`bins` is {bins}; an even number was expected, so that 0.5 is an edge.")
        self.loss = loss
        self.num_labels = num_labels
        self.bins = bins
        self._identify(loss.fingerprint, bins)
        self._add_sums(2, bins, count=torch.int64, loss_sum=torch.float64, gradient_sum=torch.float64)
        self._add_sums(2, _LOSS_BINS, size_count=torch.int64, size_loss=torch.float64)
        self._add_sums(num_labels, 2, label_gradient=torch.float64)

    def update(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, mask: Tensor | None = None
    ) -> None:
        """Add a batch; the arguments are those of :meth:`BinaryLoss.sums`, always with logits."""
        check_shapes(logits, target)
        labels = 1 if logits.ndim < 2 else logits.shape[1]
        if labels != self.num_labels:
            raise ValueError(
                f"`logits` has shape {tuple(logits.shape)}, which is {labels} label(s), and `num_labels` is "
                f"{self.num_labels}. Set it to the number of outputs."
            )
        with _asked(self.loss, logits.device):
            for piece in _in_pieces(self.loss, logits, target, weight, mask):
                for part in chunks(piece.logits.numel(), len(piece.logits), *piece):
                    self._file(_Piece(*part))  # type: ignore[arg-type]  # only the same are None

    def _file(self, part: _Piece) -> None:
        """Add a piece of a batch."""
        positive = part.target > 0.5
        p_t = torch.sigmoid(torch.where(positive, part.logits, -part.logits))
        # One table of sides, hardness and sizes, whose margins are the two histograms: each sum is taken once.
        sizes = 1 if part.losses is None else _LOSS_BINS
        place = (p_t * self.bins).nan_to_num_(0.0).int().clamp_(max=self.bins - 1) + self.bins * positive.int()
        if part.losses is not None:
            place = place * sizes + _place_of_size(part.losses)
        sides, places = [~positive, positive], 2 * self.bins * sizes
        if part.known is not None:
            place = torch.where(part.known, place, places)  # one more, which is left out
            sides = [side & part.known for side in sides]

        def table(values: Tensor | None) -> Tensor:
            return add_at(place, values, places + 1)[:-1].reshape(2, self.bins, sizes)

        count = table(None)
        self._increase(count=count.sum(2), gradient_sum=table(part.gradient.abs()).sum(2))
        if part.losses is not None:
            loss = table(part.losses)
            self._increase(size_count=count.sum(1), loss_sum=loss.sum(2), size_loss=loss.sum(1))
        shape = (len(place), self.num_labels, -1)
        gradient, wide = part.gradient.reshape(shape), self.label_gradient.dtype
        by_side = [torch.where(side.reshape(shape), gradient, 0.0).sum((0, 2), dtype=wide) for side in sides]
        self._increase(label_gradient=torch.stack(by_side, -1))

    def compute(self) -> ProfiledLoss:
        """Return the bins and the gradient by label; see :class:`ProfiledLoss`."""
        device, wide = self.count.device, self.loss_sum.dtype
        edges = torch.linspace(0, 1, self.bins + 1, dtype=wide, device=device)
        if not _has_elements(self.loss):
            nothing = torch.full_like(self.loss_sum, torch.nan)
            hardness, distribution = HardnessBins(edges, self.count, nothing, self.gradient_sum), None
        else:
            hardness = HardnessBins(edges, self.count, self.loss_sum, self.gradient_sum)
            exponents = torch.arange(_LOSS_BINS - 1, dtype=wide, device=device) / _PER_DECADE + _DECADES[0]
            edges = torch.cat([exponents.new_zeros(1), 10**exponents, exponents.new_full((1,), torch.inf)])
            distribution = LossBins(edges, self.size_count, self.size_loss)
        return ProfiledLoss(hardness, distribution, self.label_gradient.reshape(self.num_labels, 2))

    def shares(self) -> dict[str, Tensor]:
        """Return :func:`hard_shares` over all ranks, three numbers to log."""
        return hard_shares(self.compute().hardness)

    def plot(self, val: ProfiledLoss | None = None, ax: Any = None) -> Any:
        """Plot the shares of examples, loss and gradient against p_t.

        Args:
            val: A result of ``forward`` or ``compute``. None computes one.
            ax: A matplotlib axis to draw on. None makes a new figure.

        Returns:
            Figure and axis.
        """
        from lightning_bce.metrics.drawing import axes

        hardness = (self.compute() if val is None else val).hardness
        figure, ax = axes(ax)
        edges = hardness.edges.tolist()
        parts = {"examples": hardness.count, "loss": hardness.loss, "gradient": hardness.gradient}
        for (name, part), style in zip(parts.items(), (":", "-", "--"), strict=True):
            shares = 100 * part.sum(0).double() / part.sum()
            if not shares.isnan().all():
                ax.stairs(shares.tolist(), edges, label=name, linestyle=style, linewidth=2)
        ax.axvline(0.5, color="0.7", linewidth=1, zorder=0)
        ax.set(
            xlim=(0, 1),
            ylim=(0, None),
            xlabel="probability of the true side, p_t",
            ylabel="share in the bin (%)",
            title=type(self.loss).__name__,
        )
        if ax.get_legend_handles_labels()[0]:  # else nothing was seen
            ax.legend()
        return figure, ax


def hard_shares(hardness: HardnessBins) -> dict[str, Tensor]:
    """Return the shares of the hard elements, p_t below 0.5: of all elements, of the loss and of the gradient.

    Args:
        hardness: With an even number of bins.

    Returns:
        ``hard_share``, ``hard_share_loss`` and ``hard_share_gradient``, scalars in [0, 1]; NaN of a total that is 0,
        and of the loss where elements have none.

    Example:
        >>> import torch
        >>> bins = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
        >>> hard_shares(HardnessBins(torch.tensor([0.0, 0.5, 1.0]), bins, bins, bins))["hard_share"]
        tensor(0.3750)
    """
    half = (hardness.edges[:-1] < 0.5).to(hardness.edges.dtype)
    names = ("hard_share", "hard_share_loss", "hard_share_gradient")
    return {name: (part * half).sum() / part.sum() for name, part in zip(names, hardness[1:], strict=True)}


def losses_and_gradients(
    loss: BinaryLoss, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, mask: Tensor | None = None
) -> tuple[Tensor | None, Tensor]:
    """Return the loss of each element and its derivative by the logit, without a graph and without a trace in the loss.

    It works in ``torch.no_grad`` and ``torch.inference_mode`` too. Both carry the factors that the loss gives them.

    Args:
        loss: Asked in evaluation mode. One on probabilities gets the sigmoid of the logits.
        logits: Scores before the sigmoid, (N,), (N, C) or (N, C, ...).
        target: Labels in [0, 1], the shape of ``logits``.
        weight: As :meth:`BinaryLoss.sums` takes it.
        mask: As :meth:`BinaryLoss.sums` takes it.

    Returns:
        Losses in nats, or None for a loss without a form by element, and the derivatives of their sum, or that of
        ``loss.sums(...).loss``; the shape of ``logits``, in float32 or better, 0 where unknown.

    Raises:
        ValueError: What the loss refuses.

    Example:
        >>> import torch
        >>> from lightning_bce import BCEWithLogitsLoss
        >>> with torch.inference_mode():
        ...     losses_and_gradients(BCEWithLogitsLoss(), torch.tensor([0.0, 0.0]), torch.tensor([0, 1]))
        (tensor([0.6931, 0.6931]), tensor([ 0.5000, -0.5000]))
    """
    check_shapes(logits, target)
    with _asked(loss, logits.device):
        found = list(_in_pieces(loss, logits, target, weight, mask))
        empty = torch.zeros_like(full_precision(logits.detach()))
        gradients = torch.cat([part.gradient for part in found]).reshape(logits.shape) if found else empty
        if not _has_elements(loss):
            return None, gradients
        losses = [part.losses for part in found if part.losses is not None]
        return torch.cat(losses).reshape(logits.shape) if losses else empty, gradients


class _Piece(NamedTuple):
    """Some rows of a batch, without a graph; ``known`` in the shape of the others, or None for everywhere."""

    logits: Tensor
    target: Tensor
    known: Tensor | None
    losses: Tensor | None
    gradient: Tensor


@contextmanager
def _asked(loss: BinaryLoss, device: torch.device) -> Iterator[None]:
    """Have a loss within that can be differentiated and changes nothing."""
    with torch.inference_mode(False), untouched(loss, device):
        for module in loss.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_inference():  # it was moved in inference mode, and autograd could not keep it
                    module._buffers[name] = buffer.clone()
        yield


def _in_pieces(
    loss: BinaryLoss, logits: Tensor, target: Tensor, weight: Tensor | None, mask: Tensor | None
) -> Iterator[_Piece]:
    """Yield a batch with its losses and gradients in pieces, or whole where samples are coupled."""
    if logits.ndim == 0:
        logits, target = logits[None], target[None]
        weight, mask = (t[None] if t is not None and t.ndim == 0 else t for t in (weight, mask))
    # In their final shapes before the cut, in which a single row could be taken for one value for all.
    weight = None if weight is None else fit_weight("weight", weight, logits)
    mask = None if mask is None else fit_weight("mask", mask, logits)
    whole = loss.couples_samples or _weighs_rows(loss, logits)
    # In pieces that are large enough for the loss to take its kernel.
    for part in chunks(0 if whole else logits.numel(), len(logits), logits, target, weight, mask, times=4):
        # Inference tensors know no gradient; their copies do.
        x, y, w, m = (t.clone() if t is not None and t.is_inference() else t for t in part)
        if x is not None and y is not None and x.numel():
            yield _differentiated(loss, x, y, w, m)


def _differentiated(
    loss: BinaryLoss, logits: Tensor, target: Tensor, weight: Tensor | None, mask: Tensor | None
) -> _Piece:
    losses, gradient = None, None
    with torch.enable_grad():
        x = full_precision(logits.detach()).requires_grad_()
        scores = x if loss.input_space == "logits" else torch.sigmoid(x)
        if _has_elements(loss):
            losses = loss.losses(scores, target, weight, mask=mask)
            total = losses.sum()
        else:
            total = loss.sums(scores, target, weight, mask=mask).loss.sum()
        if total.requires_grad:  # else it is a constant
            (gradient,) = torch.autograd.grad(total, x, allow_unused=True)
    x = x.detach()
    gradient = torch.zeros_like(x) if gradient is None else gradient
    known = loss.valid(x, target, mask)
    if known is not None:
        known = known.expand(x.shape)
        gradient = torch.where(known, gradient, 0.0)  # the sigmoid of a NaN has one of NaN, though its loss is left out
    return _Piece(x, target, known, None if losses is None else losses.detach(), gradient)


def _has_elements(loss: BinaryLoss) -> bool:
    """Return whether an element has a loss of its own."""
    if isinstance(loss, CombinedLoss):
        return all(isinstance(term, BinaryLoss) and _has_elements(term) for term in loss.terms.values())
    return loss.per_element


def _weighs_rows(loss: BinaryLoss, logits: Tensor) -> bool:
    """Return whether a loss has a constant for each row of a batch of one size, which no cut leaves in its place."""
    constants = [module._buffers.get("weight") for module in loss.modules() if isinstance(module, BinaryLoss)]
    return any(c is not None and c.ndim == logits.ndim and len(c) > 1 for c in constants)


def _place_of_size(losses: Tensor) -> Tensor:
    """Return the bin of each loss, int32: a negative one in the first, NaN in the last."""
    # Not the logarithm of 0, which takes 20 times as long, and many losses are 0 where a margin cuts them off.
    place = losses.clamp(min=1e-30).log10_().sub_(_DECADES[0]).mul_(_PER_DECADE).add_(1)
    return place.clamp_(0, _LOSS_BINS - 1).nan_to_num_(_LOSS_BINS - 1).int()
