"""BinaryClassifier: a LightningModule for any model and any loss of this package."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric

from lightning_bce.checkpoints import check_finite, check_whole, trusted
from lightning_bce.data.own_rows import Stage, first_rows, own_rows
from lightning_bce.decision import Decision, prior_shift
from lightning_bce.engine.compiler import reason_against
from lightning_bce.exportable import Exportable
from lightning_bce.heads import MultiLabelHead, SparseTarget
from lightning_bce.losses import BCEWithLogitsLoss, BinaryLoss, CombinedLoss, LabelCounts, LossSums
from lightning_bce.losses.base import per_label
from lightning_bce.losses.stable import full_precision
from lightning_bce.metrics import LossTracker, evaluation_metrics
from lightning_bce.metrics.at_k import metrics_at_k
from lightning_bce.priors import Bias, counted, known_counts, moves_logits, output_layer, set_bias
from lightning_bce.spec import Recorded, Spec, SpecError, build, call_factory, factory_spec, is_spec, to_plain
from lightning_bce.window import Window

if TYPE_CHECKING:
    _of_the_class = classmethod
else:  # Lightning's, which refuses to be called on an instance: that would stay as it is
    _of_the_class = type(vars(pl.LightningModule)["load_from_checkpoint"])


class Batch(NamedTuple):
    """The parts of a batch.

    Args:
        inputs: What the model takes.
        target: Labels in [0, 1], (N,), (N, 1), (N, C) or (N, C, ...). None only in prediction.
        weight: Factors of the loss, (N,) or the shape of the target.
        mask: True where the label is known.
        id: The samples' names or numbers, handed through to the predictions.
    """

    inputs: Any
    target: Tensor | None = None
    weight: Tensor | None = None
    mask: Tensor | None = None
    id: Any = None


class BinaryClassifier(Recorded, pl.LightningModule):
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
        model: Backbone that returns logits: (N,) or (N, 1) for one label, (N, C) or (N, C, ...) for C.
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
        self.head = _head(head)
        _check_head(self.head, loss, num_labels, threshold, top_k, prior_bias, deployment_prior)
        if num_labels < 1:
            raise ValueError(f"`num_labels` is {num_labels}; at least 1 was expected.")
        if lr_scheduler_interval not in ("epoch", "step"):
            raise ValueError(f"`lr_scheduler_interval` is {lr_scheduler_interval!r}; expected 'epoch' or 'step'.")
        if lr_scheduler is None and lr_scheduler_interval != "epoch":
            raise ValueError("`lr_scheduler_interval` has no effect without an `lr_scheduler`.")
        if lr_scheduler is None and monitor != "val_loss":
            raise ValueError("`monitor` has no effect without an `lr_scheduler` that watches it.")
        self.model = _module(model, "model")
        if self.head is not None:
            num_labels, loss = self.head.num_labels, self.head.loss
        self.loss: BinaryLoss = BCEWithLogitsLoss() if loss is None else _loss(loss)
        self._written = self._plain_arguments()
        self.save_hyperparameters(self._written)
        self._optimizer = _factory(optimizer, Optimizer, "optimizer") or partial(torch.optim.AdamW, lr=1e-3)
        self._lr_scheduler = _factory(lr_scheduler, LRScheduler, "lr_scheduler")
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
        self.class_names = [] if unnamed else _names(class_names, num_labels)
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
            self.decision.set_shift(self._shift(LabelCounts([1.0] * num_labels, [1.0] * num_labels)))
        self.label_counts: LabelCounts | None = None
        self._loss_counts: LabelCounts | None = None
        self._untrained = True
        self._unproved: Bias | None = None
        self.register_buffer("_drawn", None, persistent=False)
        if isinstance(prior_bias, str) and prior_bias != "auto":
            output_layer(self.model, num_labels, prior_bias)
        _warn_of_double_sigmoid(self.model)

    # -- what a project overrides -------------------------------------------------------------------------------------

    def forward(self, inputs: Any) -> Tensor:
        """Return the logits of a batch of inputs; with a head what the head takes."""
        logits: Tensor = self.model(inputs)
        return logits

    def unpack_batch(self, batch: Any) -> Batch:
        """Return the parts of a batch. Override it for batches of another form.

        Accepted are a mapping with "inputs" and, as far as there are, "target", "weight", "mask" and "id"; a tuple
        (inputs, target) or (inputs, target, weight); and in prediction the inputs alone.

        Raises:
            TypeError: If the batch has none of these forms.
        """
        if isinstance(batch, Batch):
            return batch
        if isinstance(batch, Mapping) and "inputs" in batch:
            return Batch(batch["inputs"], *(batch.get(name) for name in Batch._fields[1:]))
        if isinstance(batch, Tensor):
            return Batch(batch)
        if isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 3:
            return Batch(*batch)
        came = (
            f"a mapping with {sorted(map(str, batch))}"
            if isinstance(batch, Mapping)
            else f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
        )
        raise TypeError(
            f"The batch is {came}; expected (inputs, target), (inputs, target, weight) or a mapping with 'inputs', "
            "'target' and optionally 'weight', 'mask', 'id'. For another form override `unpack_batch`."
        )

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
            _warn_of_probabilities(outputs["logits"])
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
        plain = type(self).forward is BinaryClassifier.forward
        return Exportable(self.model if plain else self, self.decision)

    def _step(self, batch: Any, stage: Stage, batch_idx: int, dataloader_idx: int) -> dict[str, Any]:
        inputs, target, weight, mask, _ = self.unpack_batch(batch)
        if target is None:
            raise TypeError(
                f"The batch has no target, which {stage} needs. Pass (inputs, target), or override `unpack_batch`."
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

    def _num_rows(self, loss: BinaryLoss) -> int:
        """Return the rows of the sums of a loss."""
        if self.head is not None:
            return self.num_labels if self.head.per_label else 1
        return loss.num_rows(self.num_labels)

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

    def on_fit_start(self) -> None:
        """Have the training labels decide what was left to them, and no checkpoint has brought.

        Raises:
            TypeError: If the training labels cannot be counted, with how to give their counts.
            ValueError: If the layer for ``prior_bias`` cannot be found.
        """
        drawn = getattr(getattr(self.trainer, "datamodule", None), "drawn_counts", None)
        seen: LabelCounts | None = drawn() if callable(drawn) else None
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
                f"`deployment_prior` is {self.deployment_prior}, and the checkpoint does not say how many positives "
                "the model was trained with. Load it without, and use `classifier.decision.set_shift(prior_shift("
                "training_prior, deployment_prior))`; a training with `deployment_prior` or `prior_bias` counts them."
            )
        numbers = torch.as_tensor(self.deployment_prior)
        if numbers.ndim > 1 or numbers.numel() not in (1, self.num_labels):
            raise ValueError(
                f"`deployment_prior` is {self.deployment_prior}; one number, or one for each of {self.num_labels} "
                "label(s), was expected."
            )
        return prior_shift(counts.prior, numbers).float()

    def _resolve(self, drawn: LabelCounts | None) -> None:
        """Fill in what the loss leaves to the training data, as they are drawn."""
        if self.loss.unresolved:
            self._loss_counts = self._counts() if drawn is None else drawn
            self._note(self.loss.resolve(self._loss_counts), self._loss_counts)

    def _counts(self) -> LabelCounts:
        """Return the counts of the training labels: given, known to the data module, or counted once."""
        if self.label_counts is None:
            plain = type(self).unpack_batch is BinaryClassifier.unpack_batch
            counts = known_counts(self.trainer) if plain else None
            self.label_counts = counted(self.trainer, self._counts_of, self.num_labels) if counts is None else counts
        if self.label_counts.num_labels != self.num_labels:
            raise ValueError(
                f"There are counts of {self.label_counts.num_labels} label(s) and `num_labels` is {self.num_labels}."
            )
        return self.label_counts

    def _counts_of(self, batch: Any) -> LabelCounts:
        _, target, weight, mask, _ = self.unpack_batch(batch)
        if target is None:
            raise TypeError("A training batch has no target, so that its labels cannot be counted.")
        return LabelCounts.of(target, weight, mask=self.loss.observed(target.float(), target, mask))

    def _note(self, found: Mapping[str, Any], counts: LabelCounts) -> None:
        """Write resolved values into the hyper-parameters, before loggers get them."""
        if "loss" in self._written:
            self._written["loss"] = to_plain(self.loss)
            self.save_hyperparameters({"loss": self._written["loss"]})
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

    # -- epochs -------------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Have the loss check the values of its first batch, and refuse what a head that steps cannot have."""
        if self.head is not None and self.head.update is not None:
            _check_update(self.trainer)
        self._recheck()
        self._window.forget()
        self._warn_of_stale_decision()

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
            _warn_of_cuts(self.loss)

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

    def on_fit_end(self) -> None:
        """Refuse a training in which there was nothing to train on, which Lightning ends normally."""
        trainer = self.trainer
        nothing_came = trainer.global_step == 0 and trainer.fit_loop.epoch_progress.total.ready > 0
        if (trainer.num_training_batches == 0 and trainer.limit_train_batches != 0) or nothing_came:
            raise ValueError(
                "The training loader has no batch: nothing was trained. Check its data, and with `drop_last` that "
                "there are as many rows as `batch_size`."
            )

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
            # In training mode, as all else is when Lightning looks for forgotten `eval()`s at the start of a fit.
            self._states[key] = nn.ModuleDict(parts).to(self.device).train()
        return self._states[key]

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
        # Every rank holds the same value, because the metrics have added up their states; the largest of them keeps it
        # to the last digit, which a mean of three does not, and tells Lightning that nothing is missing.
        self.log(
            name,
            value.float(),
            on_step=False,
            on_epoch=True,
            prog_bar=prog_bar,
            reduce_fx="max",
            sync_dist=self._distributed,
            batch_size=1,
            add_dataloader_idx=False,  # the name has it where there are several
        )

    @property
    def threshold(self) -> Tensor:
        """The thresholds that decisions are made by, (C,)."""
        return self.decision.threshold

    @property
    def _distributed(self) -> bool:
        return self.trainer.world_size > 1

    # -- checkpoints --------------------------------------------------------------------------------------------------

    @_of_the_class
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the classifier that a checkpoint holds; the arguments are Lightning's.

        A file of another machine (``https://``, ``s3://``) is read with ``weights_only=True`` like any other, unless
        it is said that it may run what it holds: ``weights_only=False``.

        Raises:
            DamagedCheckpointError: If the file is not whole.
            ValueError: If a weight is NaN or infinite.
        """
        check_whole(checkpoint_path)
        if len(args) < 4:  # else it is among them
            kwargs["weights_only"] = trusted(checkpoint_path, kwargs.get("weights_only"))
        found = super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        if "threshold" in kwargs:
            found.decision.keep_given()
        if "deployment_prior" in kwargs:
            found.decision.keep_shift(found._shift(found.label_counts))
        return found

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that are not numbers, and take over what the labels of that training have decided."""
        self._untrained = False
        if (plain := checkpoint.get("label_counts")) is not None:
            self.label_counts = LabelCounts.from_plain(plain)
        if self.loss.unresolved and (plain := checkpoint.get("loss_counts")) is not None:
            self._resolve(LabelCounts.from_plain(plain))
        # A strategy that shards the model has loaded it by now, and taken it out of the checkpoint.
        found = checkpoint.get("state_dict") or dict(self.named_parameters())
        check_finite(found, {name for name, _ in self.named_parameters()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down what a subclass added to its hyper-parameters as plain values, never as pickled objects.

        The constructor's arguments are in it too, whatever the subclass ignored or saved as objects: without them the
        file would be read with a default loss, and nobody would notice.
        """
        plain: dict[str, Any] = {}
        for name, value in checkpoint.get("hyper_parameters", {}).items():
            try:
                plain[name] = to_plain(value, name)
            except SpecError as error:
                if name not in self._written:
                    warnings.warn(f"{error} It is left out of the checkpoint.", stacklevel=2)
        checkpoint["hyper_parameters"] = {**self._written, **plain}
        for name, counts in (("label_counts", self.label_counts), ("loss_counts", self._loss_counts)):
            if counts is not None:
                checkpoint[name] = counts.plain()

    def _plain_arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values, those of a subclass if it is one."""
        given, defaults = self._arguments()
        from_command_line = _command_line_arguments()
        plain: dict[str, Any] = {}
        for name, value in {**defaults, **given}.items():
            try:
                base = _FACTORIES.get(name)
                plain[name] = to_plain(value, name) if base is None else factory_spec(value, base, name)
            except SpecError as error:
                if name in from_command_line:
                    plain[name] = to_plain(from_command_line[name], name)
                elif name == "model":
                    advice = "Until then checkpoints load with `load_from_checkpoint(path, model=...)` only."
                    warnings.warn(f"{error} {advice}", stacklevel=4)
                    plain[name] = dict(_UNWRITTEN)
                elif name in given:
                    raise  # a default need not be written down: it is there again when the module is built
        return plain


_FACTORIES: dict[str, type] = {"optimizer": Optimizer, "lr_scheduler": LRScheduler}
_ENOUGH_TO_JUDGE = 64  # outputs
_UNWRITTEN: Spec = {"class_path": "", "init_args": {}}


def _command_line_arguments() -> dict[str, Any]:
    """Return the arguments that LightningCLI is building a module from, as plain values; empty outside of it."""

    class Probe(HyperparametersMixin):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters()

    return {name: value for name, value in Probe().hparams.items() if not name.startswith("_")}


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


def _module(model: Any, name: str) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    if model == _UNWRITTEN:
        raise SpecError(
            "The checkpoint holds the weights and could not hold how the model was made. Pass it: "
            "`load_from_checkpoint(path, model=...)`."
        )
    if is_spec(model):
        built: nn.Module = build(model, nn.Module)
        return built
    raise TypeError(f"`{name}` is {type(model).__name__}; an nn.Module was expected.")


def _head(head: Any) -> MultiLabelHead | None:
    if head is None or isinstance(head, MultiLabelHead):
        return head
    if is_spec(head):
        built: MultiLabelHead = build(head, MultiLabelHead)
        return built
    raise TypeError(f"`head` is {type(head).__name__}; a MultiLabelHead was expected.")


def _check_head(
    head: MultiLabelHead | None,
    loss: Any,
    num_labels: int,
    threshold: Any,
    top_k: int | None,
    prior_bias: bool | str,
    deployment_prior: Any,
) -> None:
    """Refuse options that a head has itself, or that have no effect with or without one."""
    if head is None:
        if top_k is not None:
            raise ValueError("`top_k` has no effect without a `head`: predictions then are those of all labels.")
        return
    if loss is not None:
        raise ValueError("`loss` was given beside a `head`, which has a loss already. Give it to the head.")
    if num_labels not in (1, head.num_labels):
        raise ValueError(f"`num_labels` is {num_labels}, and the head has {head.num_labels} labels. Leave it out.")
    if threshold != 0.5:
        raise ValueError("`threshold` has no effect with a `head`, which predicts the most probable labels.")
    if prior_bias not in (False, "auto"):
        raise ValueError(f"`prior_bias` is {prior_bias!r}, and a `head` has the last bias: give it its `prior`.")
    if deployment_prior is not None:
        raise ValueError("`deployment_prior` has no effect with a `head`, which predicts the most probable labels.")
    if top_k is not None and not 1 <= top_k <= head.num_labels:
        raise ValueError(f"`top_k` is {top_k}; from 1 to the head's {head.num_labels} labels were expected.")


def _check_update(trainer: pl.Trainer) -> None:
    """Refuse what needs the gradient of all weights before any of them moves."""
    reasons = {
        f"`gradient_clip_val` is {trainer.gradient_clip_val}, and the norm of a gradient that never exists is not "
        "known": bool(trainer.gradient_clip_val),
        f"`accumulate_grad_batches` is {trainer.accumulate_grad_batches}, and each batch would move the weights": (
            trainer.accumulate_grad_batches > 1
        ),
        "the precision scales gradients, and the weights would have moved before they are unscaled": (
            getattr(trainer.precision_plugin, "scaler", None) is not None
        ),
        f"there are {trainer.world_size} ranks, which would have to exchange the gradients": trainer.world_size > 1,
    }
    for reason, given in reasons.items():
        if given:
            raise ValueError(
                f"The head has an `update` that steps chunk by chunk, and {reason}. Leave it out, or leave "
                "out `update`."
            )


def _loss(loss: Any) -> BinaryLoss:
    if isinstance(loss, BinaryLoss):
        built = loss
    elif is_spec(loss):
        built = build(loss, BinaryLoss)
    else:
        raise TypeError(
            f"`loss` is {type(loss).__module__}.{type(loss).__name__}; a BinaryLoss was expected. For one of torch "
            "use its equal here (`BCEWithLogitsLoss`, `BCELoss`); for your own derive from `lightning_bce.BinaryLoss` "
            "and write `elementwise`."
        )
    if built.reduction == "none":
        raise ValueError("The loss has reduction 'none', and training needs a scalar. Use 'mean' or another reduction.")
    return built


def _factory(value: Any, base: type, name: str) -> Callable[[Any], Any] | None:
    if is_spec(value):
        spec = factory_spec(value, base, name) or {}
        return partial(call_factory, spec, base)
    if value is not None and not callable(value):
        raise TypeError(
            f"`{name}` is {type(value).__name__}; a subclass of {base.__name__} or functools.partial of one was "
            "expected, because the parameters are known only later."
        )
    return value  # type: ignore[no-any-return]


def _names(class_names: Sequence[str] | None, num_labels: int) -> list[str]:
    names = [f"label_{i}" for i in range(num_labels)] if class_names is None else [str(name) for name in class_names]
    if len(names) != num_labels or len(set(names)) != num_labels:
        raise ValueError(
            f"`class_names` has {len(names)} names ({len(set(names))} different); one for each of {num_labels} "
            "label(s) was expected."
        )
    return names


def _shortened(value: Any) -> str:
    """Return numbers to four digits, the first of many."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shortened, value[:8]))}{', ...' if len(value) > 8 else ''}]"
    return f"{value:.4g}"


def _warn_of_cuts(loss: BinaryLoss) -> None:
    parts = loss.terms.values() if isinstance(loss, CombinedLoss) else [loss]
    names = sorted({type(part).__name__ for part in parts if isinstance(part, BinaryLoss) and part.couples_samples})
    rank_zero_warn(
        f"{', '.join(names)} looks at all samples of a batch together. Accumulated batches and several ranks give the "
        "mean of their gradients, each weighed by what it counts, and not the gradient of one large batch. Where that "
        "matters, enlarge `batch_size` instead.",
        stacklevel=2,
    )


def _warn_of_probabilities(logits: Tensor) -> None:
    """Warn of outputs that all lie between 0 and 1, as no logits of a trained model do, of a batch large enough."""
    if logits.numel() < _ENOUGH_TO_JUDGE:
        return
    least, most = logits.aminmax()
    if 0 < least and least < most and most < 1:
        warnings.warn(
            f"After an epoch all {logits.numel()} outputs of a batch lie between 0 and 1 ({least.item():.3g} to "
            f"{most.item():.3g}). If they are probabilities, return logits instead: the sigmoid is applied to them "
            "once more, and the loss of a positive cannot fall below 0.31.",
            stacklevel=3,
        )


def _warn_of_double_sigmoid(model: nn.Module) -> None:
    leaves = [module for module in model.modules() if not list(module.children())]
    if leaves and isinstance(leaves[-1], (nn.Sigmoid, nn.Softmax, nn.LogSoftmax, nn.LogSigmoid)):
        warnings.warn(
            f"The model ends in {type(leaves[-1]).__name__} and should return logits: the sigmoid would be applied "
            "twice, and the loss of a positive could not fall below 0.31. Remove the last layer.",
            stacklevel=3,
        )
