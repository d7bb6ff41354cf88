"""A data module that learns from its training rows: what it knows, keeps in a checkpoint, and compares."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning_bce.data.base import BinaryDataModule
from lightning_bce.data.cells import listed
from lightning_bce.data.columns import find_columns
from lightning_bce.data.preprocessing import TablePreprocessor
from lightning_bce.data.reading import Fingerprint


@dataclass(kw_only=True)
class Learnt:
    """What the training rows taught: all that other files are read by, and all that a checkpoint holds.

    Args:
        preprocessor: Makes the features.
        targets: The label columns.
        id_column: The column of names, or None.
        weight_column: The column of weights, or None.
        label_words: The words that labels say, with ``positive``.
        fingerprint: Of the training files.
    """

    preprocessor: TablePreprocessor
    targets: list[str]
    id_column: str | None
    weight_column: str | None
    label_words: list[str]
    fingerprint: Fingerprint


class LearningDataModule(BinaryDataModule):
    """A data module of tables whose features are made by what the training rows taught.

    A subclass writes ``_known``, which learns where nothing was restored, and names the dataclass of what it learns.
    """

    path: str
    target: int | str | list[int | str]
    _knowledge: ClassVar[type[Learnt]]
    _learnt: Any = None

    @property
    def num_features(self) -> int:
        """Columns of ``inputs``. Reads the training files, unless a state was restored."""
        return self._known().preprocessor.num_features

    @property
    def num_labels(self) -> int:
        """Columns of ``target``. Reads the training files, unless a state was restored."""
        return len(self._known().targets)

    @property
    def class_names(self) -> list[str]:
        """The names of the label columns. Reads the training files, unless a state was restored."""
        return list(self._known().targets)

    @property
    def feature_names(self) -> list[str]:
        """A name for each column of ``inputs``. Reads the training files, unless a state was restored."""
        return self._known().preprocessor.feature_names

    def state_dict(self) -> dict[str, Any]:
        """Return what the training rows taught, in plain values; empty if nothing was learnt yet."""
        if self._learnt is None:
            return {}
        return {**vars(self._learnt), "preprocessor": self._learnt.preprocessor.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what an earlier run learnt, in place of what the training files here would teach.

        Args:
            state_dict: What :meth:`state_dict` returned.

        Raises:
            ValueError: If the training files were read already and have other labels or lack features.

        Warns:
            UserWarning: If the training files were read already and are not those of that run.
        """
        if not state_dict:
            return
        preprocessor = TablePreprocessor()
        preprocessor.load_state_dict(state_dict["preprocessor"])
        self._learnt = self._knowledge(**{**state_dict, "preprocessor": preprocessor})
        self._counts = None
        self._restored()

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state before anything is read: sizes and names are then known without the training files.

        Lightning restores a data module after its ``setup``; a command line that sizes a model by
        :attr:`num_features` needs it earlier.

        Args:
            state: What :meth:`state_dict` returned; in a checkpoint it lies under the name of the class.
        """
        self.load_state_dict(state)

    @abstractmethod
    def _known(self) -> Learnt:
        """Return what was learnt, or restored; learn it now if nothing was."""

    def _restored(self) -> None:
        """Forget what an older state made of the files, and compare those that were read with the new one."""

    def _compare(self, names: list[str], fingerprint: Fingerprint | None) -> None:
        """Compare the columns and the fingerprint of training files with a restored state."""
        targets = find_columns(names, self.target, "target")
        if targets != self._learnt.targets:
            raise ValueError(
                f"The checkpoint knows the labels {listed(self._learnt.targets)}, and `target` now means "
                f"{listed(targets)}: use the target of the checkpoint, or train anew."
            )
        if fingerprint != self._learnt.fingerprint:
            warnings.warn(
                f"{self.path} is not what the checkpoint was trained on: {fingerprint} and not "
                f"{self._learnt.fingerprint}. Rows that were trained on may now be validation or test rows. Bring the "
                "old data back, or train anew.",
                stacklevel=2,
            )
