"""The classifier: its arguments and its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric

from lightning_bce.classifier.arguments import (
    built_factory,
    built_head,
    built_loss,
    built_model,
    check_head,
    label_names,
    plain_arguments,
)
from lightning_bce.classifier.batch import with_label_dimension
from lightning_bce.classifier.evaluation import Evaluates
from lightning_bce.classifier.mistakes import warn_of_cuts, warn_of_double_sigmoid, warn_of_probabilities
from lightning_bce.classifier.saving import Saves
from lightning_bce.data.own_rows import Stage, first_rows, own_rows
from lightning_bce.decision import Decision
from lightning_bce.engine.compiler import reason_against
from lightning_bce.exportable import Exportable
from lightning_bce.heads import MultiLabelHead, SparseTarget
from lightning_bce.losses import BCEWithLogitsLoss, BinaryLoss, CombinedLoss, LabelCounts, LossSums
from lightning_bce.losses.shapes import per_label
from lightning_bce.losses.stable import full_precision
from lightning_bce.metrics import evaluation_metrics
from lightning_bce.metrics.at_k import metrics_at_k
from lightning_bce.outputs import logits_of
from lightning_bce.priors import Bias, output_layer
from lightning_bce.spec import Recorded
from lightning_bce.window import Window


class BinaryClassifier(Recorded, Saves, Evaluates):
    """Trains, validates, tests and predicts a binary or multi-label model with a pluggable loss.

    It logs ``train_loss_step``, and once an epoch, exact over all samples and ranks: ``train_loss``, ``val_loss`` and
    ``test_loss`` (the loss that is trained), ``val_loss/<term>`` of a combined loss, ``val_log_loss`` (the plain
    cross-entropy in nats, comparable between losses) and ``val_<Metric>``. AUROC and AveragePrecision average over the
    labels that have both classes, other metrics by label over those that are known; without any they are NaN. Rows that
    a sampler repeats, so that every rank has as many, are left out of validation, test and prediction.

    A step of the optimizer follows the gradient of the mean over all that its accumulated batches and ranks count, as
    if they were one batch: however uneven they are, with weights, unknown labels and a last window that is cut short.
    With reduction "sum" it is the sum over all of them. ``train_loss_step`` is this mean, or sum. If nothing counts,
    nothing moves. A loss whose ``couples_samples`` is True takes statistics of its batch, and no weights make up for
    smaller batches: a warning says so. Nor can they for terms of a combined loss that count differently ("mean" beside
    "batchmean", elements beside rows) where labels are unknown: a batch then weighs what it counts for the leading one.

    Probabilities and decisions are those of :attr:`decision`: the calibration and the thresholds that
    ``ProbabilityCalibrator`` and ``ThresholdTuner`` fit on validation rows, and that a checkpoint keeps. Prediction,
    test, ``trainer.validate`` and :meth:`exportable` use them; metrics of decisions get decisions, the others
    calibrated probabilities, and where a calibration is fitted ``test_log_loss_calibrated`` (``val_...``) is logged
    beside the ``test_log_loss`` of the logits. Validation within ``fit`` does not use them, because they were fitted
    for the weights of an epoch before: it takes the sigmoid and the constructor's ``threshold``.

    The checkpoint holds what is needed to build the module again: ``BinaryClassifier.load_from_checkpoint(path)``. With
    ``threshold=...`` it takes that one in place of those that are stored.

    To adapt it, override one hook: :meth:`unpack_batch` for batches of another form, :meth:`forward` for a model that
    is called differently, ``configure_optimizers`` for anything that ``optimizer`` and ``lr_scheduler`` cannot say.

    Args:
        model: Backbone that returns logits: (N,) or (N, 1) for one label, (N, C) or (N, C, ...) for C; or a mapping
            or an object that has them as ``logits``, or as ``out``.
        loss: What is minimised. None is BCEWithLogitsLoss. A loss on probabilities receives the sigmoid of the logits.
            With reduction "sum" the sum is minimised and the mean logged.
        num_labels: Number of labels C.
        optimizer: A class of torch.optim, or functools.partial of one. None is AdamW with learning rate 0.001.
        lr_scheduler: A class of torch.optim.lr_scheduler, or functools.partial of one. None keeps the rate.
        lr_scheduler_interval: Whether the scheduler moves each "epoch" or each "step".
        monitor: The logged value that a ReduceLROnPlateau scheduler watches.
        metrics: Names of torchmetrics' classification metrics without the prefix Binary or Multilabel, or metric
            objects, which keep a threshold of their own. None takes Accuracy, AveragePrecision, AUROC, F1Score,
            MatthewsCorrCoef and, for one label, CalibrationError; an empty list none.
        threshold: A probability above it is a positive decision; in [0, 1], one for all labels or one for each.
        class_names: One name for each label, for logs and tables. None is label_0, label_1, ...
        head: A :class:`MultiLabelHead`, for 10^4 labels and more: the model then returns the head's inputs, (N, D), and
            the loss and ``num_labels`` are the head's. The target of a batch is what a head takes. Metrics are those of
            the first k labels, None takes precision at 1, 3 and 5 and nDCG at 5; ``predict_step`` returns the ``top_k``
            most probable labels.
        top_k: How many labels ``predict_step`` returns with a head. None is 5.
        compile_model: Whether torch.compile makes kernels of the model and of the loss when a trainer runs them; not of
            the classifier around them. The checkpoint is the same without it. The loss of a first batch is not
            compiled, because its values are checked, nor one with ``validate="always"``. Not worth it with a
            LossSchedule by step: each new value is compiled anew, until torch gives up.
        prior_bias: Whether the bias of the last layer starts at the log-odds of the training labels, so that the first
            loss is their entropy (0.056 at 1 % positives) and not log 2: True, or the layer's name in the model, such
            as "head.fc"; "auto" does it where the layer can be found. It is done once, before a training from scratch,
            not when a checkpoint is trained on. The default leaves the model as it came, because it may be trained
            already; the command takes "auto". A loss that is minimised elsewhere by a known shift (a ``pos_weight``,
            ``LogitAdjustedLoss``) starts there; focal and other losses start at the log-odds, below their optimum.
        deployment_prior: Frequency of the positives where predictions are used, in (0, 1), one for all labels or one
            for each, if it is not that of the training labels. Probabilities of prediction and :meth:`exportable` are
            moved by Bayes' rule, after the calibration: see :func:`prior_shift`; validation and test, whose rows have
            the rate of the training, are not. Thresholds stay: those for costs are still right, those that were tuned
            for F1 or a precision hold for the rate that they were tuned at. The shift takes probabilities for those of
            the training data; where a loss distorts them, calibrate. ``load_from_checkpoint`` takes it too.

    Raises:
        ValueError: If an option is out of range or has no effect.
        SpecError: If an argument cannot be kept in a checkpoint, with what to write instead.

    Example:
        >>> import torch
        >>> from lightning_bce import BinaryClassifier, FocalLoss, TabularMLP
        >>> classifier = BinaryClassifier(TabularMLP(5), FocalLoss(gamma=2.0))
        >>> classifier(torch.zeros(7, 5)).shape
        torch.Size([7, 1])
    """

    def __init__(
        self,
        model: nn.Module,
        loss: BinaryLoss | None = None,
        num_labels: int = 1,
        optimizer: Callable[[Iterable[Any]], Optimizer] | None = None,
        lr_scheduler: Callable[[Optimizer], LRScheduler | ReduceLROnPlateau] | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        monitor: str = "val_loss",
        metrics: Sequence[str | Metric] | None = None,
        threshold: float | Sequence[float] = 0.5,
        class_names: Sequence[str] | None = None,
        compile_model: bool = False,
        head: MultiLabelHead | None = None,
        top_k: int | None = None,
        prior_bias: bool | str = False,
        deployment_prior: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.head = built_head(head)
        check_head(self.head, loss, num_labels, threshold, top_k, prior_bias, deployment_prior)
        if num_labels < 1:
            raise ValueError(f"`num_labels` is {num_labels}; at least 1 was expected.")
        if lr_scheduler_interval not in ("epoch", "step"):
            raise ValueError(f"`lr_scheduler_interval` is {lr_scheduler_interval!r}; expected 'epoch' or 'step'.")
        if lr_scheduler is None and lr_scheduler_interval != "epoch":
            raise ValueError("`lr_scheduler_interval` has no effect without an `lr_scheduler`.")
        if lr_scheduler is None and monitor != "val_loss":
            raise ValueError("`monitor` has no effect without an `lr_scheduler` that watches it.")
        self.model = built_model(model)
        if self.head is not None:
            num_labels, loss = self.head.num_labels, self.head.loss
        self.loss: BinaryLoss = BCEWithLogitsLoss() if loss is None else built_loss(loss)
        self._written = plain_arguments(self)
        self.save_hyperparameters(self._written)
        self._optimizer = built_factory(optimizer, Optimizer, "optimizer") or partial(torch.optim.AdamW, lr=1e-3)
        self._lr_scheduler = built_factory(lr_scheduler, LRScheduler, "lr_scheduler")
        self._lr_scheduler_interval = lr_scheduler_interval
        self._monitor = monitor
        self.num_labels = num_labels
        # With a head nothing is decided about single labels.
        self.decision = Decision(num_labels if self.head is None else 1, threshold)
        # Nothing that the ranks would have to tell each other before each step.
        self._ddp_params_and_buffers_to_ignore = [f"decision.{name}" for name, _ in self.decision.named_buffers()]
        self._calibration: Tensor | None = None  # a part of the one that the epoch uses beside the plain probabilities
        self.top_k = min(5, num_labels) if top_k is None else top_k
        # A name for each of a million labels that nobody has named would be the largest part of the classifier.
        unnamed = self.head is not None and class_names is None
        self.class_names = [] if unnamed else label_names(class_names, num_labels)
        self._metrics: Any = (
            evaluation_metrics(metrics, num_labels) if self.head is None else metrics_at_k(metrics, num_labels)
        )
        # The plain cross-entropy of the validation set is not the one that is trained: it has no factors at all.
        self._log_loss = BCEWithLogitsLoss(ignore_index=self.loss.ignore_index, validate="off")
        self.compile_model = compile_model
        self._compiled = False
        self._first_batch = True
        self._states = nn.ModuleDict()
        self._window = Window()
        self._warned_of_cuts = False
        self.prior_bias = prior_bias
        self.deployment_prior = deployment_prior
        if deployment_prior is not None:  # refused now if it cannot be, and not after training
            self._shift(LabelCounts([1.0] * num_labels, [1.0] * num_labels))
        self.label_counts: LabelCounts | None = None
        self._found_counts: LabelCounts | None = None  # those, if nobody gave them
        self._loss_counts: LabelCounts | None = None
        self._untrained = True
        self._unproved: Bias | None = None
        self.register_buffer("_drawn", None, persistent=False)
        if isinstance(prior_bias, str) and prior_bias != "auto":
            output_layer(self.model, num_labels, prior_bias)
        warn_of_double_sigmoid(self.model)

    # -- what a project overrides -------------------------------------------------------------------------------------

    def forward(self, inputs: Any) -> Tensor:
        """Return the logits of a batch of inputs; with a head what the head takes."""
        return logits_of(self.model(inputs))

    def configure_optimizers(self) -> Any:
        """Return the optimizer and, if there is one, the scheduler."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("No parameter of the model requires a gradient: there is nothing to train.")
        optimizer = self._optimizer(parameters)
        if self._lr_scheduler is None:
            return optimizer
        scheduler: Any = self._lr_scheduler(optimizer)
        config = {"scheduler": scheduler, "interval": self._lr_scheduler_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            # Lightning's own subclass for the command line brings the name with it.
            config["monitor"] = getattr(scheduler, "monitor", self._monitor)
        return {"optimizer": optimizer, "lr_scheduler": config}

    # -- steps --------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Return the loss of a batch, and for callbacks its logits, target and sums."""
        outputs = self._step(batch, "train", batch_idx, 0)
        # After an epoch, when logits have left the interval in which they may begin.
        if batch_idx == 0 and self.head is None and self._trainer is not None and self.current_epoch == 1:
            warn_of_probabilities(outputs["logits"])
        if not self.automatic_optimization:  # no window then: a user's own loop decides what a step is
            self._log_step(outputs["loss"].detach())
        return outputs

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Weigh a batch by what it counts and, after the last of a window, divide by what all of them counted."""
        if not self.automatic_optimization:
            super().backward(loss, *args, **kwargs)
            return
        # Here and not in `on_before_optimizer_step`: unscaling, clipping and every hook see the finished gradient.
        mesh = self._data_mesh
        ranks = self.trainer.world_size if mesh is None else mesh.size()
        parts = self.trainer.accumulate_grad_batches * ranks
        super().backward(self._window.weigh(loss, parts, self._over_ranks), *args, **kwargs)
        if not self.trainer.fit_loop._should_accumulate():
            self._window.close(parts, self._over_ranks, self.trainer.optimizers)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the loss of the step, and skip it if its batches had nothing to learn from."""
        if not self.automatic_optimization:
            return
        loss = self._window.loss()
        if loss is not None:
            self._log_step(loss.float())
        self._window.skip_if_empty(optimizer, getattr(self.trainer.precision_plugin, "scaler", None) is not None)

    def _log_step(self, loss: Tensor) -> None:
        self.log("train_loss_step", loss, on_step=True, on_epoch=False, prog_bar=True)

    def _over_ranks(self, value: Tensor) -> Tensor:
        if not self._distributed:
            return value
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            mesh = self._data_mesh
            # `strategy.reduce` puts a barrier before it, for which the host waits.
            torch.distributed.all_reduce(value, group=None if mesh is None else mesh.get_group())
            return value
        summed: Tensor = self.trainer.strategy.reduce(value, reduce_op="sum")
        return summed

    @property
    def _data_mesh(self) -> Any:
        """The ranks that have batches of their own, where a strategy has others share one; None if all have."""
        return None if self.device_mesh is None else self.device_mesh["data_parallel"]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return what :meth:`training_step` returns, and add the batch to the metrics."""
        return self._step(batch, "val", batch_idx, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return what :meth:`training_step` returns, and add the batch to the metrics."""
        return self._step(batch, "test", batch_idx, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return the calibrated ``probability`` in float32, ``decision`` and, where the batch has it, ``id``.

        One label gives (N,), C labels (N, C, ...). With a head it is ``probability`` and ``label`` of the ``top_k``
        most probable labels, (N, top_k) both. Under several ranks ``trainer.predict`` returns to each the batches
        of its own rows: rank, rank + ranks, ... :class:`PredictionWriter` writes those of all, in order, once each.
        """
        self._check_shift()
        inputs, *_, identity = self.unpack_batch(batch)
        logits = self(inputs)
        if self.head is not None:
            own = self._own_rows("predict", batch_idx, dataloader_idx, logits)
            probability, labels = self.head.topk(logits[:own], self.top_k)
            found = {"probability": probability.float(), "label": labels}
            return found if identity is None else {**found, "id": identity[:own]}
        self._check_labels(logits)
        probability, decision = self.decision(logits)
        own = self._own_rows("predict", batch_idx, dataloader_idx, probability)
        outputs = {"probability": probability[:own], "decision": decision[:own]}
        return outputs if identity is None else {**outputs, "id": identity[:own]}

    def exportable(self) -> Exportable:
        """Return a copy of the trained model as a plain module: inputs in, ``(probability, decision)`` out.

        Both are those of :meth:`predict_step`, with its calibration and thresholds. For ``torch.export.export(module,
        (inputs,))``, ``torch.onnx.export`` or as it is; it needs no Lightning.
        """
        # The whole classifier only if a subclass calls the model in a way of its own.
        if self.head is not None:
            raise TypeError(
                "A classifier with a head has no probabilities of all labels to export. Export its `model`, and take "
                "the head's weights beside it."
            )
        self._check_shift()
        plain = type(self).forward is BinaryClassifier.forward
        return Exportable(self.model if plain else self, self.decision)

    def _step(self, batch: Any, stage: Stage, batch_idx: int, dataloader_idx: int) -> dict[str, Any]:
        inputs, target, weight, mask, _ = with_label_dimension(self.unpack_batch(batch), self.num_labels)
        if target is None:
            raise TypeError(
                f"The batch has no target, which {stage} needs. Pass (inputs, target), or override `unpack_batch`."
            )
        if self.head is None and isinstance(target, SparseTarget):
            raise TypeError(
                "The batch has a SparseTarget, and the classifier no `head` that takes one: BinaryClassifier(model, "
                "head=MultiLabelHead(64, num_labels)), or `--model.head MultiLabelHead --model.head.in_features 64`."
            )
        if self.head is not None:
            return self._step_of_head(self.head, self(inputs), target, weight, mask, stage, batch_idx, dataloader_idx)
        logits = self._match(self(inputs), target)
        own = self._own_rows(stage, batch_idx, dataloader_idx, target)
        logits, target = first_rows(logits, own), first_rows(target, own)
        weight, mask = first_rows(weight, own), first_rows(mask, own)
        seen = logits
        if stage == "train" and self._drawn is not None:
            # The loss sees the rates of the draw and the model those of the data, so that its sigmoid needs no mending.
            seen = full_precision(logits) + per_label("drawn", self._drawn, logits)
        scores = seen if self.loss.input_space == "logits" else torch.sigmoid(full_precision(seen))
        eager = not self._compiled or self._first_batch or self.loss.validate == "always"
        terms, sums = (_sums if eager else _compiled_sums())(self.loss, scores, target, weight, mask)
        self._first_batch = False
        loss = sums.loss.sum() if self.loss.reduction == "sum" else sums.mean()
        detached = sums.detach()
        if stage == "train":
            self._window.note(self.loss, detached, target, mask)
        if self._trainer is None or not self.trainer.sanity_checking:
            state = self._state(stage, dataloader_idx)
            state["loss"].update(detached)
            for name, term in terms.items():
                state[f"loss/{name}"].update(term.detach())
            if stage != "train":
                self._update_metrics(state, logits.detach(), target, weight, mask, detached)
        return {"loss": loss, "logits": logits.detach(), "target": target, "sums": detached}

    def _step_of_head(
        self,
        head: MultiLabelHead,
        inputs: Tensor,
        target: Any,
        weight: Tensor | None,
        mask: Tensor | None,
        stage: Stage,
        batch_idx: int,
        dataloader_idx: int,
    ) -> dict[str, Any]:
        if mask is not None:
            raise ValueError(
                "The batch has a `mask`, which would be as large as the logits that a head does without. Mark unknown "
                "labels in the target: `SparseTarget.from_lists(lists, num_labels, unknown=...)`."
            )
        target = SparseTarget.of(target, head.num_labels, self.loss.ignore_index)
        own = self._own_rows(stage, batch_idx, dataloader_idx, inputs)
        if own is not None and own < len(inputs):
            inputs, target, weight = inputs[:own], target.first_rows(own), first_rows(weight, own)
        loss, sums = head.loss_and_sums(inputs, target, weight)
        if stage == "train":
            self._window.note(self.loss, sums, target, target.values)  # values can be unknown, as under a mask
        if self._trainer is None or not self.trainer.sanity_checking:
            state = self._state(stage, dataloader_idx)
            state["loss"].update(sums)
            if stage != "train":
                plain = type(self.loss) is BCEWithLogitsLoss and self.loss.is_log_loss and weight is None
                inputs = inputs.detach()
                state["log_loss"].update(sums if plain else head.log_loss_sums(inputs, target))
                if len(state["metrics"]):
                    most = max(metric.k for metric in state["metrics"].values())
                    state["metrics"].update(head.topk(inputs, most)[1], target)
        return {"loss": loss, "target": target, "sums": sums}

    def _match(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return logits in the target's shape where the two differ by a last dimension of one only."""
        self._check_labels(logits)
        if logits.shape != target.shape and logits.numel() == target.numel():
            shapes = {tuple(logits.shape), tuple(target.shape)}
            if shapes == {(len(logits),), (len(logits), 1)}:
                return logits.reshape(target.shape)
        return logits

    def _own_rows(self, stage: Stage, batch_idx: int, dataloader_idx: int, rows: Tensor) -> int | None:
        """Return how many rows of a batch count; None if all do, as outside of a trainer."""
        size = len(rows) if rows.ndim else 0
        return None if self._trainer is None else own_rows(self.trainer, stage, batch_idx, dataloader_idx, size)

    def _check_labels(self, logits: Tensor) -> None:
        labels = 1 if logits.ndim == 1 else logits.shape[1] if logits.ndim > 1 else 0
        if labels == self.num_labels:
            return
        advice = "Set `num_labels`, or the width of the model's last layer."
        if labels == 2 and self.num_labels == 1:
            advice = "For one label the model needs one output, not one for each class: its sigmoid is the probability."
        raise ValueError(
            f"The model returned shape {tuple(logits.shape)} and `num_labels` is {self.num_labels}; expected (N,) or "
            f"(N, 1) for one label, (N, C) or (N, C, ...) for C. {advice}"
        )

    def setup(self, stage: str) -> None:
        """Compile the model where that was asked for, in place: its weights keep their names.

        Raises:
            RuntimeError: If there is no compiler for the device, with what is missing.
        """
        if not self.compile_model or self._compiled:
            return
        reason = reason_against(self.trainer.strategy.root_device.type)
        if reason is not None:
            raise RuntimeError(f"`compile_model` is True, and {reason}. Or leave it out: the results are the same.")
        self.model.compile()
        self._compiled = True

    # -- what the training labels decide ------------------------------------------------------------------------------

    # -- epochs -------------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Have the loss check the values of its first batch, and refuse what a head that steps cannot have."""
        if self.head is not None:
            self._check_head(self.head)
        self._recheck()
        self._window.forget()
        self._warn_of_stale_decision()

    def _check_head(self, head: MultiLabelHead) -> None:
        mesh = self._data_mesh if head.is_sharded else None
        ranks = self.trainer.world_size if mesh is None else mesh.size()
        if head.update is not None:
            _check_update(self.trainer, ranks)
        elif mesh is not None and ranks > 1 and self.automatic_optimization:
            from torch.distributed.fsdp import FSDPModule

            if not any(isinstance(module, FSDPModule) for module in (self, head)):
                raise ValueError(
                    f"The head's labels are sharded, and {ranks} ranks with batches of their own hold the same labels "
                    "and would not exchange their gradients. In `configure_model`, after `shard_labels`: "
                    "`fully_shard(self.head, mesh=self.device_mesh['data_parallel'])`; see `shard_labels`."
                )

    def _warn_of_stale_decision(self) -> None:
        fitted_again = {getattr(callback, "fits", None) for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        held = {"threshold": self.decision.is_tuned, "calibration": self.decision.calibration.method is not None}
        stale = [name for name, is_held in held.items() if is_held and name not in fitted_again]
        if stale:
            rank_zero_warn(
                f"The {' and the '.join(stale)} that came with the weights were fitted for them as they are, and the "
                "training changes them. Add ThresholdTuner or ProbabilityCalibrator to the trainer's callbacks.",
                stacklevel=2,
            )

    def on_validation_start(self) -> None:
        """Have the loss check the values of its first batch."""
        self._recheck()

    def on_test_start(self) -> None:
        """Have the loss check the values of its first batch."""
        self._recheck()

    def _recheck(self) -> None:
        self.loss.recheck()
        self._first_batch = True

    def on_train_epoch_start(self) -> None:
        """Forget what an interrupted epoch left, and tell the loss which one begins."""
        self._reset("train")
        self._window.reset()
        self.loss.start_epoch(self.current_epoch)
        cut = self.trainer.accumulate_grad_batches * self.trainer.world_size > 1
        if cut and self.loss.couples_samples and not self._warned_of_cuts:
            self._warned_of_cuts = True
            warn_of_cuts(self.loss)

    def on_fit_end(self) -> None:
        """Refuse a training in which there was nothing to train on, which Lightning ends normally."""
        trainer = self.trainer
        nothing_came = trainer.global_step == 0 and trainer.fit_loop.epoch_progress.total.ready > 0
        if (trainer.num_training_batches == 0 and trainer.limit_train_batches != 0) or nothing_came:
            raise ValueError(
                "The training loader has no batch: nothing was trained. Check its data, and with `drop_last` that "
                "there are as many rows as `batch_size`."
            )

    @property
    def threshold(self) -> Tensor:
        """The thresholds that decisions are made by, (C,)."""
        return self.decision.threshold


def _sums(
    loss: BinaryLoss, scores: Tensor, target: Tensor, weight: Tensor | None, mask: Tensor | None
) -> tuple[dict[str, LossSums], LossSums]:
    """Return the sums of each term of a combined loss, and of the loss."""
    if isinstance(loss, CombinedLoss):
        terms = loss.term_sums(scores, target, weight, mask=mask)
        return terms, loss.combine(terms)
    return {}, loss.sums(scores, target, weight, mask=mask)


@cache
def _compiled_sums() -> Callable[..., tuple[dict[str, LossSums], LossSums]]:
    # Not an attribute of the classifier, which a copy would share with the original and its loss.
    return torch.compile(_sums)


def _check_update(trainer: pl.Trainer, ranks: int) -> None:
    """Refuse what needs the gradient of all weights before any of them moves; ``ranks`` hold the same weights."""
    reasons = {
        f"`gradient_clip_val` is {trainer.gradient_clip_val}, and the norm of a gradient that never exists is not "
        "known": bool(trainer.gradient_clip_val),
        f"`accumulate_grad_batches` is {trainer.accumulate_grad_batches}, and each batch would move the weights": (
            trainer.accumulate_grad_batches > 1
        ),
        "the precision scales gradients, and the weights would have moved before they are unscaled": (
            getattr(trainer.precision_plugin, "scaler", None) is not None
        ),
        f"there are {ranks} ranks with the same labels, which would have to exchange the gradients": ranks > 1,
    }
    for reason, given in reasons.items():
        if given:
            raise ValueError(
                f"The head has an `update` that steps chunk by chunk, and {reason}. Leave it out, or leave "
                "out `update`."
            )
