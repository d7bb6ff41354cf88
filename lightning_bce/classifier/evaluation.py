"""The exact losses and the metrics of an epoch: what is collected of each batch, and what is logged of it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_bce.decision import Decision
from lightning_bce.heads import MultiLabelHead
from lightning_bce.logged_alike import log_alike
from lightning_bce.losses import BCEWithLogitsLoss, BinaryLoss, CombinedLoss, LossSums
from lightning_bce.metrics import LossTracker


class Evaluates(pl.LightningModule):
    """The part of the classifier that collects and logs."""

    head: MultiLabelHead | None
    loss: BinaryLoss
    decision: Decision
    num_labels: int
    _log_loss: BCEWithLogitsLoss
    _metrics: Any
    _states: nn.ModuleDict
    _calibration: Tensor | None

    def _num_rows(self, loss: BinaryLoss) -> int:
        """Return the rows of the sums of a loss."""
        if self.head is not None:
            return self.num_labels if self.head.per_label else 1
        return loss.num_rows(self.num_labels)

    def on_validation_epoch_start(self) -> None:
        """Forget what an interrupted epoch left."""
        self._reset("val")
        self._note_calibration()

    def on_test_epoch_start(self) -> None:
        """Forget what an interrupted epoch left."""
        self._reset("test")
        self._note_calibration()

    def _note_calibration(self) -> None:
        calibration = self.decision.calibration
        self._calibration = None if calibration.method is None or self._in_fit() else calibration.scale

    def on_train_epoch_end(self) -> None:
        """Log the exact loss of the epoch."""
        state = self._state("train", 0)
        # An epoch that was saved after its last batch is ended by the run that goes on, without a batch.
        if state["loss"].update_called:
            self._log_loss_and_terms("train", state, "")

    def on_validation_epoch_end(self) -> None:
        """Log the exact loss, the log-loss and the metrics of the validation set."""
        if not self.trainer.sanity_checking:
            self._log_evaluation("val", len(self.trainer.num_val_batches))

    def on_test_epoch_end(self) -> None:
        """Log the exact loss, the log-loss and the metrics of the test set."""
        self._log_evaluation("test", len(self.trainer.num_test_batches))

    def _state(self, stage: str, dataloader_idx: int) -> Any:
        key = f"{stage}_{dataloader_idx}"
        if key not in self._states:
            parts: dict[str, nn.Module] = {"loss": LossTracker(num_labels=self._num_rows(self.loss))}
            for name, term in self._terms().items():
                parts[f"loss/{name}"] = LossTracker(num_labels=term.num_rows(self.num_labels))
            if stage != "train":
                for name in ("log_loss", "log_loss_calibrated"):
                    parts[name] = LossTracker(num_labels=self._num_rows(self._log_loss))
                parts["metrics"] = self._metrics.clone()
                if self.head is not None:
                    self._resolve_metrics(parts["metrics"])
            # In training mode, as all else is when Lightning looks for forgotten `eval()`s at the start of a fit.
            self._states[key] = nn.ModuleDict(parts).to(self.device).train()
        return self._states[key]

    def _resolve_metrics(self, metrics: Any) -> None:
        """Tell metrics how often each label occurs in the training data, where they wait for it."""
        waiting = [metric for metric in metrics.values() if getattr(metric, "unresolved", False)]
        occurrences = getattr(getattr(self._trainer, "datamodule", None), "occurrences", None)
        if waiting and callable(occurrences):
            counts, number = occurrences()
            for metric in waiting:
                metric.resolve(counts, number)

    def _reset(self, stage: str) -> None:
        for key, state in self._states.items():
            if key.startswith(f"{stage}_"):
                for metric in state.values():  # type: ignore[operator]
                    metric.reset()

    def _update_metrics(
        self,
        state: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        mask: Tensor | None,
        sums: LossSums,
    ) -> None:
        # Not `isinstance`: a subclass may have a formula of its own.
        plain = type(self.loss) is BCEWithLogitsLoss and self.loss.is_log_loss and weight is None
        observed = self.loss.observed(logits, target, mask)
        state["log_loss"].update(sums if plain else self._log_loss.sums(logits, target, mask=observed))
        probability, decision = self._judged(logits)
        state["metrics"].add(probability, decision, target, observed)
        if self._calibration is not None:
            calibrated = self.decision.calibration.logits(logits)
            state["log_loss_calibrated"].update(self._log_loss.sums(calibrated, target, mask=observed))

    def _in_fit(self) -> bool:
        return self._trainer is not None and self.trainer.state.fn == "fit"

    def _judged(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return probability and decision in the shape of the logits, within `fit` as the constructor says."""
        in_fit = self._in_fit()
        probability = torch.sigmoid(logits.float()) if in_fit else self.decision.calibration(logits)
        return probability, self.decision.decide(probability, as_given=in_fit)

    def _log_evaluation(self, stage: str, num_dataloaders: int) -> None:
        for index in range(num_dataloaders):
            suffix = f"/dataloader_idx_{index}" if num_dataloaders > 1 else ""
            state = self._state(stage, index)
            log_loss = state["log_loss"].compute()
            self._log_loss_and_terms(stage, state, suffix)
            self._log_value(f"{stage}_log_loss{suffix}", log_loss["loss"])
            # One that a callback has fitted in the meantime is its own to log.
            if self._calibration is not None and self._calibration is self.decision.calibration.scale:
                self._log_value(f"{stage}_log_loss_calibrated{suffix}", state["log_loss_calibrated"].compute()["loss"])
            if self.head is None:
                seen = (log_loss["negative_weight"] > 0, log_loss["positive_weight"] > 0)
                values = state["metrics"].means(*seen)
            else:
                values = state["metrics"].compute()
            for name, value in values.items():
                self._log_value(f"{stage}_{name}{suffix}", value)

    def _log_loss_and_terms(self, stage: str, state: Any, suffix: str) -> None:
        loss = state["loss"].compute()["loss"]
        terms = {name: state[f"loss/{name}"].compute()["loss"] for name in self._terms()}
        if isinstance(self.loss, CombinedLoss) and terms:
            # Exact over the set also where the terms count differently, which their common sums are not.
            loss = torch.stack([self.loss.weights[name] * value for name, value in terms.items()]).sum()
        self._log_value(f"{stage}_loss{suffix}", loss, prog_bar=stage != "test")
        for name, value in terms.items():
            self._log_value(f"{stage}_loss/{name}{suffix}", value)

    def _terms(self) -> dict[str, BinaryLoss]:
        # The head computes a sum of losses as one.
        terms = self.loss.terms if isinstance(self.loss, CombinedLoss) and self.head is None else None
        return {} if terms is None else dict(terms.items())  # type: ignore[arg-type]

    def _log_value(self, name: str, value: Tensor, prog_bar: bool = False) -> None:
        # Every rank holds the same value, because the metrics have added up their states.
        log_alike({name: value.float()}, self.trainer, self, prog_bar=prog_bar)

    @property
    def _distributed(self) -> bool:
        return self.trainer.world_size > 1
