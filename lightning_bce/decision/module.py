"""Decision: what a classifier does with logits: probabilities, and which of them are positive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_bce.decision.calibration import Calibration
from lightning_bce.decision.float32 import KeepsPrecision


class Decision(KeepsPrecision):
    """Probabilities and decisions from logits, by a calibration and a threshold for each label.

    Both are buffers: a checkpoint holds them, ``torch.export`` and ONNX take them along. A checkpoint from before there
    were such loads too, and leaves what the constructor was given. So is a shift of the log-odds after calibration, for
    data with another rate of positives than the model was trained and calibrated at: see :func:`prior_shift`.

    Args:
        num_labels: Number of labels C.
        threshold: A probability above it is a positive decision; in [0, 1], one for all labels or one for each.

    Raises:
        ValueError: If a threshold lies outside [0, 1], or there are not as many as labels.

    Example:
        >>> probability, decision = Decision(num_labels=2, threshold=[0.5, 0.2])(torch.tensor([[-1.0, -1.0]]))
        >>> probability, decision
        (tensor([[0.2689, 0.2689]]), tensor([[False,  True]]))
    """

    threshold: Tensor
    given: Tensor
    shift: Tensor

    def __init__(self, num_labels: int = 1, threshold: float | Sequence[float] = 0.5) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.calibration = Calibration(num_labels)
        self.register_buffer("threshold", _thresholds(threshold, num_labels))
        self.register_buffer("given", self.threshold.clone(), persistent=False)
        self._keeps_given = False
        self.register_buffer("shift", torch.zeros(num_labels))
        self._keeps_shift = False
        self._shifted = False  # beside the buffer, to be asked in a step without waiting for the device

    def set_threshold(self, threshold: float | Sequence[float] | Tensor) -> None:
        """Decide by other thresholds from now on.

        Raises:
            ValueError: As the constructor.
        """
        with torch.inference_mode(False):
            self.threshold = _thresholds(threshold, self.num_labels).to(self.threshold.device)
        self._keeps_given = False

    def keep_given(self) -> None:
        """Decide by the constructor's thresholds, also where a state is loaded later, until others are set."""
        self.set_threshold(self.given)
        self._keeps_given = True

    def set_shift(self, shift: Tensor) -> None:
        """Move the log-odds of every label, (C,), from now on; 0 takes the shift back.

        Raises:
            ValueError: If a number is not finite, or there is not one for each label.
        """
        values = shift.detach().float()
        if values.shape != (self.num_labels,) or not bool(values.isfinite().all()):
            raise ValueError(
                f"`shift` is {values.tolist()}; one finite number for each of {self.num_labels} label(s) was expected."
            )
        with torch.inference_mode(False):
            self.shift = values.clone().to(self.shift.device)
        self._shifted = bool((values != 0).any())
        self._keeps_shift = False

    def keep_shift(self, shift: Tensor) -> None:
        """Move the log-odds, also where a state is loaded later, until another shift is set."""
        self.set_shift(shift)
        self._keeps_shift = True

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probability in float32 and the decision; one label gives (N,), C labels (N, C, ...).

        Args:
            logits: (N,), (N, 1) or (N, C, ...).
        """
        if self.num_labels == 1 and logits.ndim == 2:
            logits = logits.squeeze(1)
        if self._shifted:
            log_odds = self.calibration.logits(logits)
            probability = torch.sigmoid(log_odds + self.shift.reshape(-1, *[1] * max(0, logits.ndim - 2)))
        else:
            probability = self.calibration(logits)
        return probability, self.decide(probability)

    def decide(self, probability: Tensor, *, as_given: bool = False) -> Tensor:
        """Return where a probability, (N,), (N, 1) or (N, C, ...), is above its threshold.

        Args:
            probability: Of each label.
            as_given: Whether by the constructor's thresholds, and not by those that are set.
        """
        threshold = self.given if as_given else self.threshold
        return probability > threshold.reshape(-1, *[1] * max(0, probability.ndim - 2))

    @property
    def is_tuned(self) -> bool:
        """Whether the thresholds are others than the constructor was given. Waits for the device."""
        return not torch.equal(self.threshold, self.given)

    def extra_repr(self) -> str:
        """Return what the representation shows."""
        return f"num_labels={self.num_labels}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        held = self.given if self._keeps_given else state_dict.get(f"{prefix}threshold", self.threshold)
        state_dict[f"{prefix}threshold"] = held
        held = self.shift if self._keeps_shift else state_dict.get(f"{prefix}shift", self.shift)
        state_dict[f"{prefix}shift"] = held
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._shifted = bool((self.shift != 0).any())


def prior_shift(training_prior: Any, deployment_prior: Any) -> Tensor:
    r"""Return what is added to log-odds where positives are as frequent as they were not in training.

    .. math:: \mathrm{logit}\,p' = \mathrm{logit}\,p + \mathrm{logit}\,\pi' - \mathrm{logit}\,\pi

    This is Bayes' rule, if positives look as they did, and negatives too, and only how many there are of each has
    changed. A deployment prior of 1/2 is the logit adjustment after training of Menon et al. (2021): decisions at 1/2
    are then the best for the balanced error.

    Args:
        training_prior: Frequency of the positives in (0, 1) that probabilities have learnt, one number or (C,).
        deployment_prior: Frequency where they are used, in (0, 1), one number or (C,).

    Returns:
        Differences of log-odds in float64, one number or (C,).

    Raises:
        ValueError: If a frequency lies outside (0, 1).

    Example:
        >>> torch.sigmoid(torch.tensor(0.0) + prior_shift(0.5, 0.01))
        tensor(0.0100, dtype=torch.float64)

    References:
        Saerens et al., Adjusting the Outputs of a Classifier to New a Priori Probabilities, Neural Computation 2002.
    """
    sides = []
    for name, value in (("training_prior", training_prior), ("deployment_prior", deployment_prior)):
        frequency = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
        if not bool(((frequency > 0) & (frequency < 1)).all()):
            raise ValueError(
                f"`{name}` is {value}; frequencies strictly between 0 and 1 were expected, percentages divided by 100."
            )
        sides.append(torch.logit(frequency))
    return sides[1] - sides[0]


def _thresholds(threshold: Any, num_labels: int) -> Tensor:
    try:
        values = torch.as_tensor(threshold, dtype=torch.float32).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`threshold` is {threshold!r}; a number or a list of numbers was expected.") from error
    if values.ndim > 1 or (values.ndim == 1 and len(values) != num_labels):
        raise ValueError(
            f"`threshold` has shape {tuple(values.shape)} and there are {num_labels} label(s); one number, or a list "
            "of one for each label was expected."
        )
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(f"`threshold` is {threshold}; a probability in [0, 1] was expected.")
    return values.expand(num_labels).clone()
