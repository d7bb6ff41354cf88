"""What a checkpoint holds of the classifier, and how it comes back."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from lightning_bce.checkpoints import check_finite, check_whole, trusted
from lightning_bce.classifier.from_labels import LearnsFromLabels
from lightning_bce.losses import LabelCounts
from lightning_bce.releases import weights_only_option
from lightning_bce.spec import SpecError, to_plain

if TYPE_CHECKING:
    _of_the_class = classmethod
else:  # Lightning's, which refuses to be called on an instance: that would stay as it is
    _of_the_class = type(vars(pl.LightningModule)["load_from_checkpoint"])


class Saves(LearnsFromLabels):
    """The part of the classifier that is written down, with what the training labels decided."""

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
        safe = trusted(checkpoint_path, kwargs.pop("weights_only", None))
        with weights_only_option(safe) as option:
            if len(args) > 3:  # it is among them
                option = {}
            load: Any = super().load_from_checkpoint
            found = load(checkpoint_path, *args, **option, **kwargs)
        if "threshold" in kwargs:
            found.decision.keep_given()
        if "deployment_prior" in kwargs:
            found.decision.keep_shift(found._shift(found.label_counts))
        return found

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that are not numbers, and take over what the labels of that training have decided."""
        self._untrained = False
        if (plain := checkpoint.get("label_counts")) is not None:
            self.label_counts = self._found_counts = LabelCounts.from_plain(plain)
        if self.loss.unresolved and (plain := checkpoint.get("loss_counts")) is not None:
            self._resolve(LabelCounts.from_plain(plain))
        if self.deployment_prior is not None and self.label_counts is not None:
            # That of this module, which may have been made with another than the checkpoint's.
            self.decision.keep_shift(self._shift(self.label_counts))
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
