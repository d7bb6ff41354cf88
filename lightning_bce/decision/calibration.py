r"""Calibration: a map of the logits after which a probability of 0.8 comes true in 80 of 100 cases.

Temperature, Platt and vector scaling are :math:`p = \sigma(a x + b)`, and isotonic regression a monotone curve.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_bce.decision.float32 import KeepsPrecision
from lightning_bce.decision.rows import Rows, rows_of

Method = Literal["temperature", "platt", "vector", "isotonic"]
_METHODS: tuple[str, ...] = get_args(Method)
_LEAST_SCALE = 1e-4
_ELEMENTS = 2**20
_EVALUATIONS = 200
_LARGEST = 1e4


class Calibration(KeepsPrecision):
    r"""A map from logits to calibrated probabilities, one for each label; nothing is changed until it is fitted.

    Made by :func:`fit_calibration`. It is :math:`\sigma(a x + b)` for labels with a scale and a bias, and for those
    with a curve the straight lines between its knots, level outside of them. Everything is in buffers, which a
    checkpoint holds, ``torch.export`` and ONNX take along, and half precision leaves in float32. It never turns the
    order of two logits around; isotonic regression makes some equal.

    Args:
        num_labels: Number of labels C.

    Example:
        >>> calibration = Calibration(num_labels=1)
        >>> calibration(torch.tensor([-1.0, 0.0])), calibration.method
        (tensor([0.2689, 0.5000]), None)
    """

    scale: Tensor
    bias: Tensor
    curved: Tensor
    knots: Tensor
    values: Tensor
    kind: Tensor

    def __init__(self, num_labels: int = 1) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.register_buffer("scale", torch.ones(num_labels))
        self.register_buffer("bias", torch.zeros(num_labels))
        self.register_buffer("curved", torch.zeros(num_labels, dtype=torch.bool))
        # Of no width until a curve is fitted; shorter ones are filled up with their last knot.
        self.register_buffer("knots", torch.zeros(num_labels, 0))
        self.register_buffer("values", torch.zeros(num_labels, 0))
        self.register_buffer("kind", torch.zeros((), dtype=torch.uint8))
        # Beside the buffer, to be asked in a step without waiting for the device.
        self.method: Method | None = None

    def set(self, other: Calibration) -> None:
        """Take over another calibration of as many labels.

        Raises:
            ValueError: If it is of another number of labels.
        """
        if other.num_labels != self.num_labels:
            raise ValueError(f"A calibration of {other.num_labels} label(s) came; {self.num_labels} were expected.")
        device = self.scale.device
        with torch.inference_mode(False):  # or nothing could ever write into them outside of it
            for name, buffer in other.named_buffers():
                setattr(self, name, buffer.detach().clone().to(device))
        self.method = other.method

    def forward(self, logits: Tensor) -> Tensor:
        """Return calibrated probabilities in float32, in the shape of the logits.

        Args:
            logits: (N,) or (N, 1) for one label, (N, C) or (N, C, ...) for C.
        """
        return _probability(self, logits.float())

    def logits(self, logits: Tensor) -> Tensor:
        """Return the log-odds of the calibrated probabilities in float32, in the shape of the logits, always finite."""
        logits = logits.float()
        affine = _affine(self, logits)
        if not self.knots.shape[1]:
            return affine
        return torch.where(_by_label(self.curved, logits), torch.logit(_curve(self, logits)), affine)

    def extra_repr(self) -> str:
        """Return what the representation shows."""
        return f"num_labels={self.num_labels}, method={self.method!r}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, own in self.named_buffers():
            held = state_dict.setdefault(prefix + name, own)  # a checkpoint from before there was a calibration
            if name in ("knots", "values") and held.shape != own.shape and held.shape[:1] == own.shape[:1]:
                setattr(self, name, own.new_zeros(held.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
        code = int(self.kind)
        self.method = _METHODS[code - 1] if code else None  # type: ignore[assignment]


def _by_label(values: Tensor, logits: Tensor) -> Tensor:
    """Return values of labels, (C,), so that they broadcast with logits; (N,) is one label."""
    return values if logits.ndim < 3 else values.reshape(-1, *[1] * (logits.ndim - 2))


def _affine(calibration: Calibration, logits: Tensor) -> Tensor:
    return logits * _by_label(calibration.scale, logits) + _by_label(calibration.bias, logits)


def _probability(calibration: Calibration, logits: Tensor) -> Tensor:
    affine = torch.sigmoid(_affine(calibration, logits))
    if not calibration.knots.shape[1]:
        return affine
    return torch.where(_by_label(calibration.curved, logits), _curve(calibration, logits), affine)


def _curve(calibration: Calibration, logits: Tensor) -> Tensor:
    """Return the curve of each label at its logits.

    The knot below is found by halving, in gathers: `torch.searchsorted` has no counterpart in ONNX, and a comparison
    with all knots would need memory for each.
    """
    knots, values = calibration.knots.reshape(-1), calibration.values.reshape(-1)
    width = calibration.knots.shape[1]
    offset = _by_label(torch.arange(calibration.num_labels, device=logits.device) * width, logits)
    low = torch.zeros_like(logits, dtype=torch.int64) + offset
    step = 1
    while 2 * step < width:  # not `bit_length`, which torch.export of torch 2.4 does not know
        step *= 2
    last = offset + width - 1
    while step:
        trial = torch.minimum(low + step, last)
        low = torch.where(knots[trial] <= logits, trial, low)
        step //= 2
    high = torch.minimum(low + 1, last)
    left, right = knots[low], knots[high]
    gap = right - left
    part = torch.where(gap > 0, (logits - left) / torch.where(gap > 0, gap, 1.0), 0.0).clamp(0.0, 1.0)
    return values[low] + part * (values[high] - values[low])


# -- fitting ----------------------------------------------------------------------------------------------------------


def fit_calibration(
    logits: Any,
    target: Any,
    method: Method = "temperature",
    *,
    weight: Any = None,
    mask: Any = None,
    per_label: bool | None = None,
    names: Sequence[str] | None = None,
) -> Calibration:
    r"""Return the calibration that minimises the log-loss (isotonic: the squared error) of logits on labels.

    - ``"temperature"``: :math:`\sigma(a x)`, one number for all labels, or one for each. :math:`1 / a` is the
      temperature (Guo et al., 2017).
    - ``"platt"``: :math:`\sigma(a x + b)`, one pair for all labels, or one for each (Platt, 1999).
    - ``"vector"``: a pair for each label, which is Guo et al.'s vector scaling, and "platt" with ``per_label``.
    - ``"isotonic"``: the best monotone curve (scikit-learn's), one for each label, or for all.

    The first three are fitted in float64 by Newton's method with a line search. The labels are moved as Platt does,
    positives to :math:`(N_+ + 1) / (N_+ + 2)` and negatives to :math:`1 / (N_- + 2)`: also where the scores part the
    classes the best scale is finite. A scale that would come out below 0.0001, of scores that say the opposite of the
    labels or nothing, is 0.0001, which leaves their order. A curve stays between :math:`1 / (N + 2)` and
    :math:`1 - 1 / (N + 2)`: that something was never seen in N rows is no certainty, and the log-loss stays finite.

    A label of one class only keeps its probabilities, with a warning. Where all labels share one map, it is that of all
    of them.

    Args:
        logits: (N,), (N, 1), (N, C) or (N, C, ...), a tensor or an array, of rows that the model was not trained on.
        target: Labels in [0, 1] in the same shape; NaN is unknown. For "isotonic" too they may lie between.
        method: See above.
        weight: How many rows a row or element stands for, (N,) or the shape of ``logits``.
        mask: True where the label is known, likewise.
        per_label: Whether each label has its own map. None is the method's own: one for all under "temperature" and
            "platt", one for each under "vector" and "isotonic".
        names: Of the labels, for warnings.

    Raises:
        ValueError: If an option is unknown or has no effect, shapes do not fit, or a logit is NaN.
        ImportError: If "isotonic" is asked for without scikit-learn.

    Example:
        >>> logits = torch.tensor([-4.0, -4.0, -4.0, -4.0, 4.0, 4.0, 4.0, 4.0])
        >>> calibration = fit_calibration(logits, torch.tensor([0, 0, 0, 1, 1, 1, 1, 0]))
        >>> calibration(torch.tensor([-4.0, 0.0, 4.0]))
        tensor([0.3333, 0.5000, 0.6667])

    References:
        Platt, Probabilistic Outputs for Support Vector Machines, 1999.
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017. https://arxiv.org/abs/1706.04599
        Zadrozny and Elkan, Transforming Classifier Scores into Accurate Multiclass Probability Estimates, KDD 2002.
    """
    check_method(method, per_label)
    if per_label is None:
        per_label = method in ("vector", "isotonic")
    rows = rows_of(logits, target, weight, mask)
    rows = rows._replace(score=rows.score.float().clamp(-_LARGEST, _LARGEST))
    labels = rows.score.shape[1]
    calibration = Calibration(labels)
    sides = _side_weights(rows)
    fits = (sides > 0).all(1) if per_label else (sides.sum(0) > 0).all().expand(labels)
    if not bool(fits.all()):
        shown = [f"label {i}" for i in range(labels)] if names is None else list(names)
        left = [name for name, fit in zip(shown, fits.tolist(), strict=True) if not fit]
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        warnings.warn(
            f"Nothing can be calibrated for {', '.join(left[:5])}{more}: positives and negatives are needed. Their "
            "probabilities stay as they are.",
            stacklevel=2,
        )
    if bool(fits.any()):
        if method == "isotonic":
            _fit_curves(calibration, rows, fits, per_label)
        else:
            scale, bias = _fit_affine(rows, fits, with_bias=method != "temperature", per_label=per_label)
            calibration.scale, calibration.bias = scale.float(), bias.float()
    calibration.kind.fill_(_METHODS.index(method) + 1)
    calibration.method = method
    return calibration


def check_method(method: str, per_label: bool | None) -> None:
    """Refuse a method that there is not, or that is not what ``per_label`` says.

    Raises:
        ValueError: If so.
    """
    if method not in _METHODS:
        raise ValueError(f"`method` is {method!r}; expected one of {', '.join(_METHODS)}.")
    if method == "vector" and per_label is False:
        raise ValueError("'vector' is a scale and a bias for each label. One pair for all of them is 'platt'.")


def _side_weights(rows: Rows) -> Tensor:
    """Return what negatives and positives of each label weigh, (C, 2); soft labels are shared out."""
    sides = torch.zeros(rows.score.shape[1], 2, dtype=torch.float64)
    for part in _blocks(rows):
        positive = part.weight * part.target
        sides += torch.stack([(part.weight - positive).sum(0), positive.sum(0)], 1)
    return sides


def _blocks(rows: Rows) -> Iterator[Rows]:
    """Yield the rows in float64, so many at a time that the temporaries stay small."""
    step = max(1, _ELEMENTS // max(1, rows.score.shape[1]))
    for start in range(0, len(rows.score), step):
        yield Rows(*(part[start : start + step].double() for part in rows))


class _Point(NamedTuple):
    """Loss, gradient and second derivatives by scale and bias, each (C,), or (1,) for a shared map."""

    loss: Tensor
    by_scale: Tensor
    by_bias: Tensor
    scale_scale: Tensor
    scale_bias: Tensor
    bias_bias: Tensor


def _fit_affine(rows: Rows, fits: Tensor, *, with_bias: bool, per_label: bool) -> tuple[Tensor, Tensor]:
    sides = _side_weights(rows)
    sides = sides if per_label else sides.sum(0, keepdim=True)
    # Platt's labels: N+ of N+ + 1 positives in a uniform prior, and so the scale of separable scores is finite.
    high, low = (sides[:, 1] + 1) / (sides[:, 1] + 2), 1 / (sides[:, 0] + 2)
    total = sides.sum(1)
    total = torch.where(total > 0, total, 1.0)

    def at(scale: Tensor, bias: Tensor) -> _Point:
        sums = torch.zeros(6, rows.score.shape[1], dtype=torch.float64)
        for part in _blocks(rows):
            x, w, t = part.score, part.weight, low + part.target * (high - low)
            z = scale * x + bias
            p = torch.sigmoid(z)
            error, slope = w * (p - t), w * p * (1 - p)
            loss = w * (z.clamp_min(0) + torch.log1p((-z.abs()).exp()) - t * z)
            for i, term in enumerate((loss, error * x, error, slope * x * x, slope * x, slope)):
                sums[i] += term.sum(0)
        return _Point(*((sums if per_label else sums.sum(1, keepdim=True)) / total))

    # From a flat start, where the second derivative is that of the labels and never 0.
    scale = torch.zeros_like(total)
    prior = sides[:, 1] / sides.sum(1)
    bias = torch.where(fits[: len(total)], torch.logit(prior), 0.0) if with_bias else torch.zeros_like(total)
    scale, bias = _minimum(at, scale, bias, fits[: len(total)], with_bias)
    wrong = fits[: len(total)] & (scale < _LEAST_SCALE)
    if bool(wrong.any()):
        # Convex: under the bound the best scale is the bound, and the bias that goes with it is found alone.
        scale = torch.where(wrong, _LEAST_SCALE, scale)
        if with_bias:
            scale, bias = _minimum(at, scale, bias, wrong, with_bias, with_scale=False)
    labels = rows.score.shape[1]
    scale, bias = scale.expand(labels), bias.expand(labels)
    return torch.where(fits, scale, 1.0), torch.where(fits, bias, 0.0)


def _minimum(
    at: Any, scale: Tensor, bias: Tensor, moves: Tensor, with_bias: bool, with_scale: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the minimum by Newton's method, for all labels at once; those that do not move stay."""
    point = at(scale, bias)
    step = torch.ones_like(scale)
    by_scale, by_bias = _newton(point, with_scale, with_bias)
    for _ in range(_EVALUATIONS):
        gain = by_scale * point.by_scale + by_bias * point.by_bias
        if not bool((moves & (gain > 1e-22)).any()):
            break
        trial = scale - torch.where(moves, step * by_scale, 0.0), bias - torch.where(moves, step * by_bias, 0.0)
        there = at(*trial)
        # Armijo's rule, and where the loss no longer shows a difference the full step.
        better = there.loss <= point.loss - 1e-4 * step * gain + 1e-15 * point.loss.abs()
        scale, bias = (torch.where(better, new, old) for new, old in zip(trial, (scale, bias), strict=True))
        point = _Point(*(torch.where(better, new, old) for new, old in zip(there, point, strict=True)))
        step = torch.where(better, 1.0, step / 2)
        by_scale, by_bias = _newton(point, with_scale, with_bias)
    return scale, bias


def _newton(point: _Point, with_scale: bool, with_bias: bool) -> tuple[Tensor, Tensor]:
    """Return the step in scale and bias, to be subtracted."""
    none = torch.zeros_like(point.loss)
    if not with_bias:
        return _over(point.by_scale, point.scale_scale), none
    if not with_scale:
        return none, _over(point.by_bias, point.bias_bias)
    determinant = point.scale_scale * point.bias_bias - point.scale_bias**2
    # Where all scores are the same there is no scale to find, only a bias.
    regular = determinant > 1e-14 * point.scale_scale * point.bias_bias
    divisor = torch.where(regular, determinant, 1.0)
    scale = (point.bias_bias * point.by_scale - point.scale_bias * point.by_bias) / divisor
    bias = (point.scale_scale * point.by_bias - point.scale_bias * point.by_scale) / divisor
    return torch.where(regular, scale, 0.0), torch.where(regular, bias, _over(point.by_bias, point.bias_bias))


def _over(slope: Tensor, curvature: Tensor) -> Tensor:
    return torch.where(curvature > 0, slope / curvature, 0.0)


def _fit_curves(calibration: Calibration, rows: Rows, fits: Tensor, per_label: bool) -> None:
    labels = rows.score.shape[1]
    columns = [slice(i, i + 1) for i in range(labels)] if per_label else [slice(None)]
    curves: list[tuple[Tensor, Tensor] | None] = [
        _curve_of(*(part[:, column].flatten() for part in rows)) if fit else None
        for column, fit in zip(columns, fits.tolist(), strict=False)
    ]
    curves = curves if per_label else curves * labels
    width = max(len(curve[0]) for curve in curves if curve)
    calibration.knots, calibration.values = torch.zeros(2, labels, width)
    calibration.curved = fits.clone()
    for label, curve in enumerate(curves):
        if curve:
            for held, found in zip((calibration.knots, calibration.values), curve, strict=True):
                held[label] = found[-1]
                held[label, : len(found)] = found


def _curve_of(score: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return knots and values of one isotonic curve."""
    try:
        from sklearn.isotonic import IsotonicRegression
    except ImportError as error:
        raise ImportError(
            "Isotonic calibration is scikit-learn's: pip install 'lightning_bce[data]', or take another method."
        ) from error
    known = weight > 0
    fitter = IsotonicRegression(out_of_bounds="clip")
    fitter.fit(
        *(part[known].double().numpy() for part in (score, target)), sample_weight=weight[known].double().numpy()
    )
    least = 1 / (float(weight.double().sum()) + 2)
    values = torch.from_numpy(fitter.y_thresholds_).clamp(least, 1 - least)
    return torch.from_numpy(fitter.X_thresholds_).float(), values.float()
