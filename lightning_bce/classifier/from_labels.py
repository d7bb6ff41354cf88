"""What the training labels decide before the first step: a loss that waits for them, the first bias, the shift."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_bce.classifier.batch import TakesBatches, with_label_dimension
from lightning_bce.decision import Decision, prior_shift
from lightning_bce.heads import MultiLabelHead
from lightning_bce.losses import BinaryLoss, LabelCounts
from lightning_bce.priors import Bias, counted, known_counts, moves_logits, output_layer, set_bias
from lightning_bce.spec import to_plain


class LearnsFromLabels(TakesBatches):
    """The part of the classifier that counts the training labels, once and only if something waits for them."""

    model: nn.Module
    head: MultiLabelHead | None
    loss: BinaryLoss
    decision: Decision
    num_labels: int
    prior_bias: bool | str
    deployment_prior: Any
    label_counts: LabelCounts | None
    _found_counts: LabelCounts | None
    _loss_counts: LabelCounts | None
    _written: dict[str, Any]
    _untrained: bool
    _unproved: Bias | None
    _drawn: Tensor | None

    def on_fit_start(self) -> None:
        """Have the training labels decide what was left to them, and no checkpoint has brought.

        Raises:
            TypeError: If the training labels cannot be counted, with how to give their counts.
            ValueError: If the layer for ``prior_bias`` cannot be found.
        """
        if self.trainer.ckpt_path is None and self.label_counts is self._found_counts:
            self.label_counts = None  # those of another training, whose data may have been others
        drawn = getattr(getattr(self.trainer, "datamodule", None), "drawn_counts", None)
        seen: LabelCounts | None = drawn() if callable(drawn) else None
        self._drawn = None
        if seen is not None:
            self._drawn = (torch.logit(seen.prior) - torch.logit(self._counts().prior)).float().to(self.device)
        self._resolve(seen)
        if self.deployment_prior is not None:
            self.decision.set_shift(self._shift(self._counts()))
        if self.prior_bias and self._untrained and self.head is None:  # which has a prior of its own
            self._start_at_the_prior()
        self._untrained = False

    def _shift(self, counts: LabelCounts | None) -> Tensor:
        """Return what takes log-odds from the rate of the training labels to that of the deployment."""
        if self.deployment_prior is None:
            return torch.zeros(self.num_labels)
        if counts is None:
            raise ValueError(
                f"`deployment_prior` is {self.deployment_prior}, and neither a training nor a checkpoint says how many "
                "positives the model was trained with. Make or load it without, and use `classifier.decision.set_shift("
                "prior_shift(training_prior, deployment_prior))`; a training with `deployment_prior` or `prior_bias` "
                "counts them."
            )
        numbers = torch.as_tensor(self.deployment_prior)
        if numbers.ndim > 1 or numbers.numel() not in (1, self.num_labels):
            raise ValueError(
                f"`deployment_prior` is {self.deployment_prior}; one number, or one for each of {self.num_labels} "
                "label(s), was expected."
            )
        return prior_shift(counts.prior, numbers).float()

    def _check_shift(self) -> None:
        """Refuse to predict for another rate where that of the training is not known."""
        if self.deployment_prior is not None and self.label_counts is None:
            self._shift(None)

    def _resolve(self, drawn: LabelCounts | None) -> None:
        """Fill in what the loss leaves to the training data, as they are drawn."""
        if self.loss.unresolved:
            self._loss_counts = self._counts() if drawn is None else drawn
            self._note(self.loss.resolve(self._loss_counts), self._loss_counts)

    def _counts(self) -> LabelCounts:
        """Return the counts of the training labels: given, known to the data module, or counted once."""
        if self.label_counts is None:
            plain = type(self).unpack_batch is TakesBatches.unpack_batch
            counts = known_counts(self.trainer) if plain else None
            self.label_counts = counted(self.trainer, self._counts_of, self.num_labels) if counts is None else counts
            self._found_counts = self.label_counts
        if self.label_counts.num_labels != self.num_labels:
            raise ValueError(
                f"There are counts of {self.label_counts.num_labels} label(s) and `num_labels` is {self.num_labels}."
            )
        return self.label_counts

    def _counts_of(self, batch: Any) -> LabelCounts:
        _, target, weight, mask, _ = with_label_dimension(self.unpack_batch(batch), self.num_labels)
        if target is None:
            raise TypeError("A training batch has no target, so that its labels cannot be counted.")
        return LabelCounts.of(target, weight, mask=self.loss.observed(target.float(), target, mask))

    def _note(self, found: Mapping[str, Any], counts: LabelCounts) -> None:
        """Write resolved values into the hyper-parameters, before loggers get them."""
        if "loss" in self._written:
            self._written["loss"] = to_plain(self.loss)
            # Not by `save_hyperparameters`, which up to Lightning 2.5 looks for a constructor among its callers.
            self.hparams.update({"loss": self._written["loss"]})
            self._hparams_initial = copy.deepcopy(self.hparams)
        shown = ", ".join(f"{name} = {_shortened(value)}" for name, value in found.items())
        rank_zero_info(f"{type(self.loss).__name__} of {int(counts.total.max())} training labels: {shown}")

    def _start_at_the_prior(self) -> None:
        try:
            name, layer = output_layer(
                self.model, self.num_labels, None if self.prior_bias in (True, "auto") else str(self.prior_bias)
            )
        except ValueError as error:
            if self.prior_bias != "auto":
                raise
            rank_zero_info(f"The bias stays as it is: {error}")
            return
        log_odds = torch.logit(self._counts().prior)
        shift = self.loss.log_odds_shift
        if shift is not None and shift.numel() not in (1, self.num_labels):
            raise ValueError(
                f"The loss has weights of {shift.numel()} labels and `num_labels` is {self.num_labels}: "
                f"{type(self.loss).__name__} needs one number, or one for each label."
            )
        self._unproved = set_bias(name, layer, log_odds if shift is None else log_odds + shift.cpu())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make sure, at the first batch, that the bias that was set is the one that is added to the logits.

        Raises:
            ValueError: If it is not, and ``prior_bias`` is not "auto".
        """
        bias, self._unproved = self._unproved, None
        if bias is None:
            return
        inputs = self.unpack_batch(batch).inputs
        training = {module: module.training for module in self.model.modules()}
        self.model.eval()
        with isolate_rng(), self.trainer.precision_plugin.forward_context():
            proved = moves_logits(bias, lambda: self(inputs))
        for module, was in training.items():
            module.training = was
        if proved:
            return
        with torch.no_grad():
            bias.layer.bias.copy_(bias.before)
        said = (
            f"The bias of {bias.name or 'the model'!r} is not what is added to the logits, so that it cannot start at "
            "the prior."
        )
        if self.prior_bias != "auto":
            raise ValueError(
                f"{said} Name the layer that makes the logits, `prior_bias='head.fc'`, or turn `prior_bias` off."
            )
        rank_zero_info(f"{said} It stays as it was.")


def _shortened(value: Any) -> str:
    """Return numbers to four digits, the first of many."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shortened, value[:8]))}{', ...' if len(value) > 8 else ''}]"
    return f"{value:.4g}"
