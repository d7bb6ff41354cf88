"""What every data module here promises: dict batches, repeatable loaders, checked arguments."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import lightning.pytorch as pl
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, DistributedSampler, Sampler

from lightning_bce.data.balanced import BalancedDraw, draw_chances
from lightning_bce.data.splits import Rows, fold_split, stratified_split
from lightning_bce.data.tensors import Batch, EpochShuffle, TensorRows, as_it_is
from lightning_bce.losses import LabelCounts
from lightning_bce.spec import with_own_containers

Part = Literal["train", "val", "test", "predict"]


class Loader(Protocol):
    """What hands out the batches of a part, and knows how many there are."""

    def __len__(self) -> int:
        """Return the number of batches."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of an epoch."""


class BinaryDataModule(pl.LightningDataModule, ABC):
    """Base of the data modules for binary and multi-label targets.

    A batch is a dict: ``inputs`` float32 (N, ...), ``target`` float32 (N, C) with NaN for unknown labels, where there
    are weights ``weight`` float32 (N,), and ``id``, an int64 tensor of row numbers or a list of strings. Predict
    batches have no ``target``.

    A subclass writes :meth:`rows` and the three properties, and calls ``self.save_hyperparameters()`` in its own
    ``__init__``. The properties must be true before ``setup``, because a command line sizes the model by them.

    The training rows are shuffled by seed and epoch; the global random state is neither used nor changed. The last
    batch is kept even if it has a single row, at which batch normalisation in training raises: choose another
    ``batch_size`` there.

    Args:
        batch_size: Rows in a batch, at least 1.
        num_workers: Processes that load batches. 0 loads in the main process, which is fast enough for tables in
            memory.
        seed: Decides the split and the order of the training rows; at least 0.
        val_fraction: Share of the rows to validate on, in [0, 1). With 0 there is no validation loader;
            Lightning then warns of zero length, unless the trainer has ``limit_val_batches=0``.
        test_fraction: Share of the rows to test on, in [0, 1). With 0 there is no test loader.
        positive_share: Share of positives, in (0, 1), among the rows that an epoch of training draws with replacement:
            0.5 is a balanced draw. With several labels a row is drawn for one of them, see :func:`draw_chances`.
            :class:`BinaryClassifier` corrects for it, so that its probabilities are those of the data: exactly with
            one label and a proper loss, roughly with several, which a calibration on validation rows makes up for.
            None takes each row once.

    Raises:
        ValueError: If an argument is out of its range, or nothing is left to train on.
        TypeError: If an argument is not of its type.

    Example:
        >>> class Coins(BinaryDataModule):
        ...     num_features, num_labels, class_names = 1, 1, ["heads"]
        ...     def rows(self, part):
        ...         return TensorRows({"inputs": torch.ones(4, 1), "target": torch.ones(4, 1)})
        >>> [len(batch["inputs"]) for batch in Coins(batch_size=3).train_dataloader()]
        [3, 1]
    """

    def __init__(
        self,
        *,
        batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        val_fraction: float = 0.15,
        test_fraction: float = 0.2,
        positive_share: float | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = whole("batch_size", batch_size, least=1)
        self.num_workers = whole("num_workers", num_workers, least=0)
        self.seed = whole("seed", seed, least=0)
        self.fractions = _fractions(val_fraction, test_fraction)
        self.positive_share = _share(positive_share)
        self._counts: LabelCounts | None = None
        self._fold: tuple[int, int] | None = None
        self._is_cut = False

    @property
    def trainer(self) -> pl.Trainer | None:
        """The trainer whose data module this is.

        Raises:
            TypeError: When a trainer of ``pytorch_lightning`` takes the data module.
        """
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        # Here, because that trainer would fail two steps later, with "Expected a parent".
        if type(trainer).__module__.partition(".")[0] == "pytorch_lightning":
            raise TypeError(
                f"{type(self).__name__} is a data module of `lightning.pytorch`, and this trainer is of "
                "`pytorch_lightning`, which takes its own classes only. Use `lightning.pytorch.Trainer`, or pass the "
                "loaders: `trainer.fit(module, data.train_dataloader(), data.val_dataloader())`. Callbacks, losses "
                "and metrics work with both."
            )
        self._trainer: pl.Trainer | None = trainer

    def _set_hparams(self, hp: Any) -> None:
        super()._set_hparams(with_own_containers(hp))

    def use_fold(self, fold: int, folds: int) -> None:
        """Cut the rows by a stratified cross-validation instead of by ``test_fraction``, before they are read.

        Every row is a test row in exactly one fold; ``val_fraction`` of all rows is taken from the others.

        Args:
            fold: Which one is tested on, from 0.
            folds: How many there are, at least 2.

        Raises:
            ValueError: If the number is out of its range, or the test rows come from a file of their own.
            RuntimeError: If the rows were read already.
        """
        if self._is_cut:
            raise RuntimeError("The rows were read and cut already: choose the fold of a new data module.")
        if self.fractions["test"] == 0:
            raise ValueError(
                "Folds cut test rows from the training file, and here there are none to cut (`test_path` is given, or "
                "`test_fraction` is 0). Compare over seeds instead."
            )
        if folds < 2 or not 0 <= fold < folds:
            raise ValueError(f"Fold {fold} of {folds} is none: there must be at least 2, numbered from 0.")
        self._fold = (fold, folds)

    def cut(self, target: npt.ArrayLike) -> dict[str, Rows]:
        """Return the rows of each part: by the fractions, or by the fold of :meth:`use_fold`."""
        self._is_cut = True
        if self._fold is None:
            return stratified_split(target, self.fractions, self.seed)
        return fold_split(target, *self._fold, self.fractions["val"], self.seed)

    @property
    @abstractmethod
    def num_features(self) -> int | None:
        """Numbers in one row of ``inputs``; None where that is no fixed number."""

    @property
    @abstractmethod
    def num_labels(self) -> int:
        """Columns of ``target``."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """A name for each column of ``target``."""

    @abstractmethod
    def rows(self, part: Part) -> TensorRows | None:
        """Return the rows of a part as a dataset.

        Args:
            part: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.

        Returns:
            The dataset, or None if this part is empty on purpose.
        """

    def label_counts(self) -> LabelCounts:
        """Return the counts of the training labels, with the weights of the rows; counted once."""
        if self._counts is None:
            rows = self._training_rows()
            self._counts = LabelCounts.of(rows.columns["target"], rows.columns.get("weight"))
        return self._counts

    def drawn_counts(self) -> LabelCounts | None:
        """Return what an epoch of ``positive_share`` draws of each label on average; None without."""
        if self.positive_share is None:
            return None
        rows = self._training_rows()
        target, weight = rows.columns["target"], rows.columns.get("weight")
        chances = torch.from_numpy(len(rows) * draw_chances(target, self.positive_share))
        return LabelCounts.of(target, chances if weight is None else chances * weight)

    def train_dataloader(self) -> Loader:
        """Return the loader of the training rows, shuffled or drawn anew in each epoch."""
        return self._loader(self._training_rows(), shuffle=True)

    def _training_rows(self) -> Any:
        rows = self.rows("train")
        if rows is None or not len(rows):
            raise ValueError(
                "There is no row to train on. Bring more rows, or lower `val_fraction` and `test_fraction`."
            )
        return rows

    def val_dataloader(self) -> Loader | list[Loader]:
        """Return the loader of the validation rows, or no loader if ``val_fraction`` is 0."""
        return self._in_order("val")

    def test_dataloader(self) -> Loader | list[Loader]:
        """Return the loader of the test rows, or no loader if ``test_fraction`` is 0."""
        return self._in_order("test")

    def predict_dataloader(self) -> Loader | list[Loader]:
        """Return the loader of the rows to predict, in their order."""
        return self._in_order("predict")

    def _in_order(self, part: Part) -> Loader | list[Loader]:
        rows = self.rows(part)
        return [] if rows is None else self._loader(rows, shuffle=False)

    def _loader(self, rows: TensorRows, *, shuffle: bool) -> DataLoader[Batch]:
        return DataLoader(
            rows,
            batch_size=self.batch_size,
            sampler=self._order(rows) if shuffle else self._one_for_each_rank(rows),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=as_it_is,
            # Without a generator of its own, each pass over a loader draws a number from the global random state.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _order(self, rows: TensorRows) -> Sampler[Any]:
        if self.positive_share is None:
            return EpochShuffle(rows, self.seed)
        chances = draw_chances(rows.columns["target"], self.positive_share)  # type: ignore[arg-type]
        return BalancedDraw(rows, chances, self.seed, *place(self.trainer))

    def _one_for_each_rank(self, rows: TensorRows) -> Sampler[Any] | None:
        """Return a sampler that gives every rank a row to predict where there are fewer rows than ranks.

        In all other cases Lightning's own is the better one. Here it would fail on the ranks without a row, and the
        others would wait for them. What is repeated does not count, see :func:`own_rows`.
        """
        trainer = self.trainer if self.trainer is not None and self.trainer.predicting else None
        ranks = None if trainer is None else trainer.distributed_sampler_kwargs
        if ranks is None or not 0 < len(rows) < ranks["num_replicas"]:
            return None
        return DistributedSampler(rows, shuffle=False, **ranks)


def place(trainer: Any) -> tuple[int, int]:
    """Return the rank of this process and the number of ranks."""
    if trainer is not None:
        return trainer.global_rank, trainer.world_size
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _share(value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`positive_share` is {value!r}, a {type(value).__name__}: a number in (0, 1) was expected.")
    if not 0 < value < 1:
        raise ValueError(f"`positive_share` is {value}: it must lie in (0, 1). For a balanced draw give 0.5.")
    return float(value)


def whole(name: str, value: int, *, least: int) -> int:
    """Return a whole number of at least ``least``, or refuse what is none.

    Args:
        name: The argument's name, for the message.
        value: What was given.
        least: The smallest that is allowed.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is too small.

    Example:
        >>> whole("batch_size", 7, least=1)
        7
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` is {value!r}, a {type(value).__name__}: it must be a whole number, such as {least}.")
    if value < least:
        raise ValueError(f"`{name}` is {value}: it must be at least {least}.")
    return value


def fraction_beside(part: str, path: object, fraction: float | None, default: float) -> float:
    """Return the share of the training file's rows that a part takes: none of them if it has a file of its own.

    Args:
        part: "val" or "test".
        path: The part's own file, or None.
        fraction: What was given; None takes ``default``.
        default: The share where nothing is said.

    Raises:
        ValueError: If both are given.

    Example:
        >>> fraction_beside("test", None, None, 0.2), fraction_beside("test", "test.csv", None, 0.2)
        (0.2, 0.0)
    """
    if path is None:
        return default if fraction is None else fraction
    if fraction is not None:
        raise ValueError(
            f"`{part}_fraction` is {fraction} and would have no effect, because `{part}_path` says which rows there "
            "are: give one of them."
        )
    return 0.0


def _fractions(val: float, test: float) -> dict[str, float]:
    for name, value in {"val_fraction": val, "test_fraction": test}.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"`{name}` is {value!r}, a {type(value).__name__}: it must be a number in [0, 1).")
        if not (math.isfinite(value) and 0 <= value < 1):
            raise ValueError(f"`{name}` is {value}: it must lie in [0, 1). For 15 per cent of the rows give 0.15.")
    if val + test >= 1:
        raise ValueError(
            f"`val_fraction` {val} and `test_fraction` {test} leave nothing to train on: their sum must be below 1."
        )
    return {"train": 1.0 - val - test, "val": float(val), "test": float(test)}
