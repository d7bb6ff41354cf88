"""Two small data sets that come with scikit-learn, for first steps and for tests: no download."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_bce.data.base import BinaryDataModule, Part
from lightning_bce.data.cells import require
from lightning_bce.data.splits import Rows, warn_about_labels
from lightning_bce.data.tensors import TensorRows


class DigitsDataModule(BinaryDataModule):
    """Handwritten digits: 1,797 grey images of 8 x 8 pixels, one digit against the others or all ten at once.

    ``inputs`` are (N, 1, 8, 8) in [0, 1]; ``target`` is (N, 1), or (N, 10) with ``digit=None``. About a tenth of the
    images show any one digit. The test rows are predicted, with their row numbers as ids.

    Args:
        digit: The digit that is positive, from 0 to 9. None asks for ten labels, one for each digit.
        batch_size: Rows in a batch, at least 1.
        num_workers: Processes that load batches; 0 loads in the main process.
        seed: Decides the split and the order of the training rows.
        val_fraction: Share of the rows to validate on, in [0, 1).
        test_fraction: Share of the rows to test on, in [0, 1).
        positive_share: Share of positives among the rows that an epoch draws, in (0, 1); 0.5 is a balanced draw. None
            takes each row once. See :class:`BinaryDataModule`.

    Raises:
        ValueError: If ``digit`` is not a digit.
        ImportError: If scikit-learn is not installed.

    Example:
        >>> digits = DigitsDataModule(digit=8)
        >>> batch = next(iter(digits.test_dataloader()))
        >>> digits.class_names, batch["inputs"].shape[1:], batch["target"].shape[1:]
        (['digit 8'], torch.Size([1, 8, 8]), torch.Size([1]))
    """

    def __init__(
        self,
        digit: int | None = 8,
        *,
        batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        val_fraction: float = 0.15,
        test_fraction: float = 0.2,
        positive_share: float | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            positive_share=positive_share,
        )
        if digit is not None and digit not in range(10):
            raise ValueError(f"`digit` is {digit!r}: it must be a whole number from 0 to 9, or None for all ten.")
        self.save_hyperparameters()
        self.digit = digit

    @property
    def num_features(self) -> int:
        """The 64 pixels."""
        return 64

    @property
    def num_labels(self) -> int:
        """1, or 10 with ``digit=None``."""
        return len(self.class_names)

    @property
    def class_names(self) -> list[str]:
        """``"digit 8"`` and the like."""
        return [f"digit {digit}" for digit in (range(10) if self.digit is None else [self.digit])]

    def rows(self, part: Part) -> TensorRows | None:
        """Return the images of a part; to predict, those of the test part.

        Args:
            part: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.

        Returns:
            The dataset, or None if the part is empty.
        """
        images, target, parts = self._data
        return _rows(images, target, parts, part)

    @cached_property
    def _data(self) -> tuple[Tensor, Tensor, dict[str, Rows]]:
        require("sklearn", "scikit-learn")
        from sklearn.datasets import load_digits

        found = load_digits()
        shown = np.arange(10) if self.digit is None else np.array([self.digit])
        target = (found.target[:, None] == shown).astype(np.float32)
        parts = _split(self, target)
        # The scans count 16 dots per pixel.
        images = torch.from_numpy((found.images / 16).astype(np.float32)).unsqueeze(1)
        return images, torch.from_numpy(target), parts


class BreastCancerDataModule(BinaryDataModule):
    """Breast tumours: 569 cases, 30 measurements of cell nuclei each, 37 % malignant, which is the positive class.

    ``inputs`` are (N, 30), standardised by the mean and standard deviation of the training rows; ``target`` is
    (N, 1). The test rows are predicted, with their row numbers as ids. In scikit-learn's own labels 1 is benign; here
    1 is malignant.

    Args:
        batch_size: Rows in a batch, at least 1.
        num_workers: Processes that load batches; 0 loads in the main process.
        seed: Decides the split and the order of the training rows.
        val_fraction: Share of the rows to validate on, in [0, 1).
        test_fraction: Share of the rows to test on, in [0, 1).
        positive_share: Share of positives among the rows that an epoch draws, in (0, 1); 0.5 is a balanced draw. None
            takes each row once. See :class:`BinaryDataModule`.

    Raises:
        ImportError: If scikit-learn is not installed.

    Example:
        >>> cancer = BreastCancerDataModule()
        >>> batch = next(iter(cancer.train_dataloader()))
        >>> cancer.class_names, batch["inputs"].shape
        (['malignant'], torch.Size([256, 30]))
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
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            positive_share=positive_share,
        )
        self.save_hyperparameters()

    @property
    def num_features(self) -> int:
        """The 30 measurements."""
        return 30

    @property
    def num_labels(self) -> int:
        """One label."""
        return 1

    @property
    def class_names(self) -> list[str]:
        """``["malignant"]``."""
        return ["malignant"]

    def rows(self, part: Part) -> TensorRows | None:
        """Return the cases of a part; to predict, those of the test part.

        Args:
            part: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.

        Returns:
            The dataset, or None if the part is empty.
        """
        inputs, target, parts = self._data
        return _rows(inputs, target, parts, part)

    @cached_property
    def _data(self) -> tuple[Tensor, Tensor, dict[str, Rows]]:
        require("sklearn", "scikit-learn")
        from sklearn.datasets import load_breast_cancer

        found = load_breast_cancer()
        target = (1 - found.target[:, None]).astype(np.float32)
        parts = _split(self, target)
        known = found.data[parts["train"]]
        inputs = ((found.data - known.mean(axis=0)) / known.std(axis=0)).astype(np.float32)
        return torch.from_numpy(inputs), torch.from_numpy(target), parts


def _split(data: BinaryDataModule, target: npt.NDArray[np.float32]) -> dict[str, Rows]:
    parts = data.cut(target)
    warn_about_labels({name: target[rows] for name, rows in parts.items()}, data.class_names)
    return parts


def _rows(inputs: Tensor, target: Tensor, parts: dict[str, Rows], part: Part) -> TensorRows | None:
    numbers = torch.from_numpy(parts["test" if part == "predict" else part])
    if not len(numbers):
        return None
    columns = {"inputs": inputs[numbers], "target": target[numbers], "id": numbers}
    if part == "predict":
        del columns["target"]
    return TensorRows(columns)
