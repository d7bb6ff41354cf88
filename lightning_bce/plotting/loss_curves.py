"""Loss and gradient against the logit, for both sides: what a loss does to an example that it gets right or wrong."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lightning_bce.losses import BinaryLoss, RowLoss
from lightning_bce.plotting.text_panels import panel
from lightning_bce.spec import Spec, build, load_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKS = "*o+x#@%&=~"


class LossCurves(NamedTuple):
    """A loss along the logit.

    Args:
        logits: Where it was computed, (N,), in float64.
        positive: The loss in nats of a positive, (N,).
        negative: The loss in nats of a negative, (N,).
        positive_gradient: The derivative of ``positive`` by the logit, (N,).
        negative_gradient: The derivative of ``negative`` by the logit, (N,).
    """

    logits: Tensor
    positive: Tensor
    negative: Tensor
    positive_gradient: Tensor
    negative_gradient: Tensor


def loss_curves(loss: BinaryLoss, limit: float = 8.0, points: int = 257) -> LossCurves:
    """Return the loss and its gradient between the logits -``limit`` and ``limit``.

    A loss on probabilities gets the sigmoid of the logit, and its gradient is the one by the logit too. A loss of rows,
    in which no element has one of its own, is that of a row of three: the drawn element, and beside it a positive and a
    negative with logits of 0.

    Args:
        loss: Any loss without factors by label or element.
        limit: The largest logit, above 0.
        points: How many logits, at least 2.

    Raises:
        ValueError: If ``limit`` or ``points`` is out of range, or the loss needs more labels than one.

    Example:
        >>> from lightning_bce import BCEWithLogitsLoss
        >>> curves = loss_curves(BCEWithLogitsLoss(), limit=2.0, points=3)
        >>> [round(value, 4) for value in curves.positive.tolist()]
        [2.1269, 0.6931, 0.1269]
    """
    if not limit > 0 or points < 2:
        raise ValueError(f"`limit` is {limit} and `points` {points}; above 0 and at least 2 were expected.")
    logits = torch.linspace(-limit, limit, points, dtype=torch.float64)
    values = []
    for target in (1.0, 0.0):
        at = logits.clone().requires_grad_()
        scores = at if loss.input_space == "logits" else torch.sigmoid(at)
        try:
            if isinstance(loss, RowLoss):
                losses = torch.stack([_beside_two(loss, score, target) for score in scores])
            else:
                losses = loss.elementwise(scores, torch.full_like(logits, target))
        except Exception as error:
            raise ValueError(f"{loss!r} cannot be drawn: {error} Leave factors by label out.") from error
        (gradient,) = torch.autograd.grad(losses.sum(), at)
        values.append((losses.detach(), gradient))
    (positive, positive_gradient), (negative, negative_gradient) = values
    return LossCurves(logits, positive, negative, positive_gradient, negative_gradient)


def _beside_two(loss: RowLoss, score: Tensor, target: float) -> Tensor:
    """Return the loss of a row of an element and, at logits of 0, a positive and a negative."""
    shape = (3, 1) if loss.rows == "label" else (1, 3)
    row = torch.stack([score, torch.zeros_like(score), torch.zeros_like(score)]).reshape(shape)
    return loss.sums(row, torch.tensor([target, 1.0, 0.0]).reshape(shape)).mean()


def plot_losses(losses: Mapping[str, BinaryLoss], limit: float = 8.0) -> Figure:
    """Draw losses over each other: value and gradient, for a positive and for a negative.

    Args:
        losses: Losses by the names that the legend gives them.
        limit: The largest logit, above 0.

    Returns:
        A matplotlib figure that is not shown; ``figure.savefig(path)`` writes it.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no loss, or one cannot be drawn.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'lightning_bce[plot]'.") from error
    _check_some(losses)
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    for name, loss in losses.items():
        curves = loss_curves(loss, limit)
        for axis, title in zip(axes.flat, _PANELS, strict=True):
            axis.plot(curves.logits, getattr(curves, _PANELS[title]), label=name)
    for axis, title in zip(axes.flat, _PANELS, strict=True):
        axis.set_title(title)
        axis.axvline(0, color="lightgrey", linewidth=0.8, zorder=0)
        axis.axhline(0, color="lightgrey", linewidth=0.8, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel("logit")
    for axis, label in zip(axes[:, 0], ("nats", "nats per logit"), strict=True):
        axis.set_ylabel(label)
    axes[0, 1].legend(frameon=False, loc="upper left")
    return figure


_PANELS = {
    "loss of a positive": "positive",
    "loss of a negative": "negative",
    "gradient of a positive": "positive_gradient",
    "gradient of a negative": "negative_gradient",
}


def text_losses(losses: Mapping[str, BinaryLoss], limit: float = 8.0, width: int = 78, height: int = 12) -> str:
    """Return the same four panels in ASCII, one below the other.

    Args:
        losses: Losses by the names that the legend gives them.
        limit: The largest logit, above 0.
        width: Characters in a line, at least 30.
        height: Lines of a panel, at least 4.

    Raises:
        ValueError: If there is no loss, one cannot be drawn, or the size is too small.

    Example:
        >>> from lightning_bce import BCEWithLogitsLoss
        >>> print(text_losses({"BCE": BCEWithLogitsLoss()}, width=40, height=5).splitlines()[0])
        * BCE
    """
    _check_some(losses)
    if width < 30 or height < 4:
        raise ValueError(f"A panel of {width} by {height} characters is too small; 30 by 4 are the least.")
    inner = width - 10
    curves = {name: loss_curves(loss, limit, points=inner) for name, loss in losses.items()}
    marks = {name: _MARKS[i % len(_MARKS)] for i, name in enumerate(losses)}
    lines = [f"{marks[name]} {name}" for name in losses]
    for title, field in _PANELS.items():
        lines += ["", title, *panel({marks[n]: getattr(c, field).tolist() for n, c in curves.items()}, inner, height)]
        lines.append(" " * 9 + f"{-limit:<{inner // 2}g}{limit:>{inner - inner // 2}g}")
    return "\n".join(lines)


def loss_from_text(text: str) -> BinaryLoss:
    """Return the loss that a text such as "FocalLoss(gamma=2)" names.

    Only literals are read; nothing is evaluated.

    Args:
        text: A class of this package, or the dotted path of any other, with or without keyword arguments.

    Raises:
        ValueError: If the text has another form.
        SpecError: If it names no loss.

    Example:
        >>> loss_from_text("FocalLoss(gamma=0.5)")
        FocalLoss(gamma=0.5)
    """
    loss: BinaryLoss = build(loss_spec(text), BinaryLoss)
    return loss


def loss_spec(text: str) -> Spec:
    """Return what :func:`loss_from_text` builds as class path and arguments, which need not be all that it takes.

    Example:
        >>> loss_spec("FocalLoss(gamma=0.5)")
        {'class_path': 'lightning_bce.losses.FocalLoss', 'init_args': {'gamma': 0.5}}
    """
    expected = f"{text!r} is not of the form Name or Name(key=value, ...), such as FocalLoss(gamma=2)."
    try:
        parsed: Any = ast.parse(text.strip(), mode="eval").body
        call = parsed if isinstance(parsed, ast.Call) else None
        arguments = {} if call is None else {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
    except (SyntaxError, ValueError) as error:
        raise ValueError(expected) from error
    name = ast.unparse(parsed if call is None else call.func)
    if call is not None and (call.args or len(arguments) != len(call.keywords)):
        raise ValueError(expected)
    path = name if "." in name else f"lightning_bce.losses.{name}"
    load_class(path, BinaryLoss)
    return {"class_path": path, "init_args": arguments}


def _check_some(losses: Mapping[str, BinaryLoss]) -> None:
    if not losses:
        raise ValueError("There is no loss to draw. Give at least one, such as {'BCE': BCEWithLogitsLoss()}.")
