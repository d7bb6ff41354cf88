"""BCEClassifier: a network and any loss of this package, trained by the recipe, as an estimator of scikit-learn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_bce.callbacks import FiniteGuard
from lightning_bce.classifier import BinaryClassifier
from lightning_bce.data import BinaryDataModule
from lightning_bce.data.splits import stratified_split
from lightning_bce.data.tensors import TensorRows
from lightning_bce.decision import Objective, fit_calibration, fit_thresholds
from lightning_bce.decision.calibration import Method
from lightning_bce.decision.objective import ObjectiveName
from lightning_bce.losses import BCEWithLogitsLoss, BinaryLoss, LabelCounts
from lightning_bce.models import TabularMLP
from lightning_bce.plotting import loss_from_text
from lightning_bce.quiet import without_chatter
from lightning_bce.recipe import EPOCHS, LEARNING_RATE, PATIENCE, SCHEDULER, early_stopping, helps_to_calibrate
from lightning_bce.spec import build, is_spec

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.preprocessing import StandardScaler
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import type_of_target
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise ImportError(
        f"`lightning_bce.sklearn` needs scikit-learn 1.6 or later ({error}): pip install 'lightning_bce[sklearn]'."
    ) from error

Array = npt.NDArray[Any]

_ROWS = 2**14  # of a step of prediction


class BCEClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # it ships no types
    """A multilayer perceptron for tables with any binary loss: fit, predict, predict_proba, decision_function.

    It trains like ``lightning-bce fit`` where nothing is said: features are standardised, the last bias starts at the
    log-odds of the labels, part of the rows is held out, the learning rate falls and the training ends when the loss of
    these has stopped falling, the weights are those of the best epoch, and threshold and calibration are found on the
    same rows. Nothing is written to disk and nothing is printed. The global random states of torch and numpy are left
    as they were.

    The target is binary, two classes of any kind, of which the greater is the positive one, or for several labels an
    indicator matrix (N, C) of zeros and ones. Features are finite numbers; for words and missing values there are
    scikit-learn's own transformers, in a pipeline. A row of weight 0 is as good as not there; other weights multiply
    the loss, which is not the same as rows that are repeated, because these would fall into other batches.

    A ``predict`` is a ``decision_function`` above 0. With a tuned threshold this is not the more probable class.

    Args:
        loss: What is minimised: a text such as "FocalLoss(gamma=2)" or "BCEWithLogitsLoss(pos_weight='auto')", a loss,
            or class_path and init_args of one. None is BCEWithLogitsLoss. A loss that is given is copied, not changed.
        hidden: Width of each hidden layer. None is (128, 64).
        dropout: Probability in [0, 1) of leaving out a hidden unit in training. None is 0.1.
        model: What is called with the numbers of features and labels and returns a module of logits, (N, C), such as
            a class, in place of the perceptron.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        batch_size: Rows in a step.
        max_epochs: At most.
        patience: Epochs without a better validation loss until the training stops.
        validation_fraction: Share of the rows that is held out, by labels, in [0, 1). With 0 all ``max_epochs`` are
            trained at one learning rate, and what would be found on these rows is left out.
        threshold: What a probability has to exceed to be a positive decision: a number in (0, 1), or what is best on
            the held-out rows, of each label: an objective such as "mcc", or an :class:`Objective` with options. None
            is "fbeta", and 0.5 with nothing held out.
        calibration: How probabilities are put right on the held-out rows: "temperature", "platt", "vector",
            "isotonic", or None for not at all. "auto" is "platt" where that is known to help.
        accelerator: Of Lightning's Trainer, on which is trained; predictions are made on the CPU.
        random_state: Of weights, order, dropout and what is held out.

    Attributes:
        classes_: The two classes; with several labels their numbers.
        module_: The trained :class:`BinaryClassifier`, of standardised features.
        scaler_: What standardises them.
        threshold_: (C,) thresholds of calibrated probabilities.
        n_iter_: Epochs trained.
        best_epoch_: The one whose weights these are, from 1.
        n_features_in_: Features seen.
        feature_names_in_: Their names, where all have one that is a string.

    Raises:
        ValueError: By ``fit``, if an option is out of range or has no effect, or the rows cannot be learnt from.

    Example:
        >>> from sklearn.datasets import load_breast_cancer
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> classifier = BCEClassifier("FocalLoss(gamma=2)", max_epochs=3, random_state=0).fit(X, y)
        >>> classifier.predict_proba(X).shape, classifier.n_iter_
        ((569, 2), 3)
    """

    def __init__(
        self,
        loss: str | BinaryLoss | Mapping[str, Any] | None = None,
        *,
        hidden: Sequence[int] | None = None,
        dropout: float | None = None,
        model: Callable[[int, int], nn.Module] | None = None,
        learning_rate: float = LEARNING_RATE,
        weight_decay: float = 0.01,
        batch_size: int = 256,
        max_epochs: int = EPOCHS,
        patience: int = PATIENCE,
        validation_fraction: float = 0.15,
        threshold: float | ObjectiveName | Objective | None = None,
        calibration: Method | Literal["auto"] | None = "auto",
        accelerator: str = "cpu",
        random_state: Any = None,
    ) -> None:
        self.loss = loss
        self.hidden = hidden
        self.dropout = dropout
        self.model = model
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.threshold = threshold
        self.calibration = calibration
        self.accelerator = accelerator
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn may expect: two classes, or several labels."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.classifier_tags.multi_label = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> BCEClassifier:
        """Train a new model; what was trained before is forgotten.

        Args:
            X: Features (N, F), finite numbers.
            y: Two classes (N,), or an indicator matrix (N, C).
            sample_weight: Factors of the loss, (N,), at least 0. They count in validation too.
        """
        X, target, weight = self._checked(X, y, sample_weight)
        self._check_options()
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        parts = self._parts(target, seed)
        self.scaler_ = StandardScaler().fit(X[parts["train"]], sample_weight=weight[parts["train"]])
        columns = {"inputs": self._inputs(X).float(), "target": torch.from_numpy(target)}
        if sample_weight is not None:
            columns["weight"] = torch.from_numpy(weight).float()
        rows = {name: {key: value[part] for key, value in columns.items()} for name, part in parts.items()}
        with isolate_rng():
            torch.manual_seed(seed)
            self.module_ = self._train(rows, seed)
        self._decide(rows["val"])
        self.threshold_ = self.module_.decision.threshold.numpy().copy()
        return self

    def decision_function(self, X: Any) -> Array:
        """Return by how much the calibrated log-odds are above those of the threshold: (N,), or (N, C)."""
        log_odds, cut = self._log_odds(X), self.module_.decision.threshold.double()
        # Of a threshold of 0 or 1, which an objective may ask for, an infinity would leave no order.
        above = log_odds - torch.logit(cut, eps=np.finfo(np.float64).eps)
        return self._by_label(above)

    def predict(self, X: Any) -> Array:
        """Return the class of each row, (N,), or zeros and ones, (N, C)."""
        positive = self.decision_function(X) > 0
        found: Array = positive.astype(np.int64) if positive.ndim == 2 else self.classes_[positive.astype(np.int64)]
        return found

    def predict_proba(self, X: Any) -> Array:
        """Return the calibrated probabilities of both classes, (N, 2), or with several labels of each label, (N, C)."""
        log_odds = self._log_odds(X)
        if not self._binary:
            several: Array = torch.sigmoid(log_odds).numpy()
            return several
        both: Array = torch.sigmoid(torch.cat([-log_odds, log_odds], 1)).numpy()
        return both

    # -- rows -----------------------------------------------------------------------------------------------------

    def _checked(self, X: Any, y: Any, sample_weight: Any) -> tuple[Array, Array, Array]:
        """Return features in float64, target (N, C) in float32 and weights, without rows of weight 0."""
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True)
        kind = type_of_target(y, input_name="y", raise_unknown=True)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        counts = weight > 0
        if kind not in ("binary", "multilabel-indicator"):
            raise ValueError(
                f"Only binary classification is supported. The type of the target is {kind}. For several labels give "
                "an indicator matrix (N, C) of zeros and ones; for classes that exclude each other, "
                "`sklearn.multiclass.OneVsRestClassifier` trains one of these for each."
            )
        self._binary = kind == "binary"
        if self._binary:
            # Without the rows that do not count, of which a class may be the only one.
            self.classes_, codes = np.unique(column_or_1d(y, warn=True)[counts], return_inverse=True)
            if len(self.classes_) != 2:
                raise ValueError(
                    f"There is only one class in `y` (where `sample_weight` is above 0), {self.classes_.tolist()}; two "
                    "were expected."
                )
            target = codes.reshape(-1, 1).astype(np.float32)
        else:
            labels = np.asarray(y.toarray() if hasattr(y, "toarray") else y)[counts]
            if not np.isin(labels, (0, 1)).all():
                raise ValueError(
                    f"`y` has several labels and the values {np.unique(labels).tolist()[:5]}; an indicator matrix of "
                    "zeros and ones was expected."
                )
            self.classes_ = np.arange(labels.shape[1])
            target = labels.astype(np.float32)
        return X[counts], target, weight[counts]

    def _parts(self, target: Array, seed: int) -> dict[str, Array]:
        share = self.validation_fraction
        if share == 0:
            return {"train": np.arange(len(target)), "val": np.arange(0)}
        try:
            return stratified_split(target, {"train": 1 - share, "val": share}, seed)
        except ValueError as error:
            raise ValueError(
                f"`validation_fraction` is {share} and n_samples={len(target)} (those of weight 0 left out), which is "
                "no row to train or to validate on. Bring more rows, or give 0 to do without."
            ) from error

    def _inputs(self, X: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.scaler_.transform(X)))

    # -- training -------------------------------------------------------------------------------------------------

    def _check_options(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"`validation_fraction` is {self.validation_fraction}; it must lie in [0, 1).")
        if self.model is not None and (self.hidden is not None or self.dropout is not None):
            raise ValueError("`hidden` and `dropout` have no effect on a `model` of your own.")
        for name in ("batch_size", "max_epochs", "patience"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"`{name}` is {value!r}; a whole number of at least 1 was expected.")
        is_number = isinstance(self.threshold, Real)
        if not is_number:
            _objective(self.threshold)
        elif not 0 < self.threshold < 1:  # type: ignore[operator]
            raise ValueError(f"`threshold` is {self.threshold}; a number in (0, 1) or an objective was expected.")
        if self.validation_fraction == 0:
            for name, needs in (
                ("threshold", not (is_number or self.threshold is None)),
                ("calibration", self.calibration not in ("auto", None)),
                ("patience", self.patience != PATIENCE),
            ):
                if needs:
                    value = getattr(self, name)
                    raise ValueError(f"`{name}` is {value!r}, and with `validation_fraction=0` nothing is held out.")

    def _train(self, rows: Mapping[str, Mapping[str, Tensor]], seed: int) -> BinaryClassifier:
        features, labels = rows["train"]["inputs"].shape[1], rows["train"]["target"].shape[1]
        validates = len(rows["val"]["target"]) > 0
        module = BinaryClassifier(
            self._model(features, labels),
            _loss(self.loss),
            num_labels=labels,
            optimizer={  # type: ignore[arg-type]
                "class_path": "torch.optim.AdamW",
                "init_args": {"lr": float(self.learning_rate), "weight_decay": float(self.weight_decay)},
            },
            lr_scheduler=SCHEDULER if validates else None,  # type: ignore[arg-type]
            metrics=[],
            prior_bias="auto",
        )
        best = _BestWeights()
        data = _Rows(rows, batch_size=int(self.batch_size), seed=seed)
        with without_chatter():
            trainer = pl.Trainer(
                accelerator=self.accelerator,
                devices=1,
                max_epochs=int(self.max_epochs),
                callbacks=[*([early_stopping(int(self.patience)), best] if validates else []), FiniteGuard()],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                limit_val_batches=1.0 if validates else 0,
            )
            trainer.fit(module, datamodule=data)
        self.n_iter_ = trainer.current_epoch
        self.best_epoch_ = best.epoch if validates else self.n_iter_
        if validates:
            module.load_state_dict(best.state)
        module = module.cpu().eval()
        module.trainer = None  # which holds the rows, and would be pickled with them
        return module

    def _model(self, features: int, labels: int) -> nn.Module:
        if self.model is None:
            hidden = (128, 64) if self.hidden is None else tuple(int(width) for width in self.hidden)
            return TabularMLP(features, labels, hidden, 0.1 if self.dropout is None else self.dropout)
        model = self.model(features, labels)
        if not isinstance(model, nn.Module):
            raise TypeError(f"`model` returned {type(model).__name__}; an nn.Module of logits was expected.")
        return model

    def _decide(self, rows: Mapping[str, Tensor]) -> None:
        """Find calibration and thresholds on the rows that were held out."""
        decision, weight = self.module_.decision, rows.get("weight")
        if isinstance(self.threshold, Real):
            decision.set_threshold(float(self.threshold))
        if not len(rows["target"]):
            return
        logits = self._logits(rows["inputs"].double())
        helps = helps_to_calibrate(self.module_.loss, LabelCounts.of(rows["target"], weight))
        method: Any = ("platt" if helps else None) if self.calibration == "auto" else self.calibration
        if method is not None:
            decision.calibration.set(fit_calibration(logits, rows["target"], method, weight=weight))
        if not isinstance(self.threshold, Real):
            objective = _objective(self.threshold)
            decision.set_threshold(
                fit_thresholds(decision.calibration(logits), rows["target"], objective, weight=weight)
            )

    # -- prediction -----------------------------------------------------------------------------------------------

    def _log_odds(self, X: Any) -> Tensor:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self.module_.decision.calibration.logits(self._logits(self._inputs(X))).double()

    def _logits(self, inputs: Tensor) -> Tensor:
        # In float64, where a row has the same logit to the last digit that counts, whatever rows are beside it.
        model = copy.deepcopy(self.module_.model).double()
        with torch.no_grad():
            parts = [model(part) for part in torch.split(inputs, _ROWS)]
        return torch.cat(parts).reshape(len(inputs), -1)

    def _by_label(self, values: Tensor) -> Array:
        numbers: Array = values.numpy()
        return numbers[:, 0] if self._binary else numbers


class _Rows(BinaryDataModule):
    """Arrays that are cut already."""

    def __init__(self, parts: Mapping[str, Mapping[str, Tensor]], *, batch_size: int, seed: int) -> None:
        super().__init__(batch_size=batch_size, seed=seed, val_fraction=0.0, test_fraction=0.0)
        self._parts = parts

    @property
    def num_features(self) -> int:
        return self._parts["train"]["inputs"].shape[1]

    @property
    def num_labels(self) -> int:
        return self._parts["train"]["target"].shape[1]

    @property
    def class_names(self) -> list[str]:
        return [f"label_{i}" for i in range(self.num_labels)]

    def rows(self, part: str) -> TensorRows | None:
        columns = self._parts[part]
        return TensorRows(columns) if len(columns["target"]) else None


class _BestWeights(pl.Callback):
    """Keeps the weights of the epoch with the least validation loss, in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.least = float("inf")
        self.epoch = 0
        self.state: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss = trainer.callback_metrics["val_loss"].item()
        if loss < self.least or not self.state:
            self.least, self.epoch = loss, trainer.current_epoch + 1
            self.state = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}


def _loss(given: Any) -> BinaryLoss:
    if given is None:
        return BCEWithLogitsLoss()
    if isinstance(given, BinaryLoss):
        return copy.deepcopy(given)  # which the training may fill in, or train
    if isinstance(given, str):
        return loss_from_text(given)
    if is_spec(given):
        loss: BinaryLoss = build(given, BinaryLoss)
        return loss
    raise TypeError(
        f"`loss` is {given!r}; a text such as 'FocalLoss(gamma=2)', a loss, or class_path and init_args of one was "
        "expected."
    )


def _objective(given: Any) -> Objective:
    return given if isinstance(given, Objective) else Objective("fbeta" if given is None else given)
