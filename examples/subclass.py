"""A classifier of one's own: one overridden hook, not a copy of the step. And a command of one's own around it.

From Python:            python examples/subclass.py fit --data DigitsDataModule --trainer.max_epochs 3
"""

from typing import Any

from torch import Tensor

from lightning_bce import Batch, BinaryClassifier
from lightning_bce.cli import main


class AugmentedClassifier(BinaryClassifier):
    """Shifts the images of a training batch by a pixel, so that it sees nothing twice the same way.

    Args:
        shift: Pixels that an image is moved by, to each side in turn.
        **options: See BinaryClassifier.
    """

    def __init__(self, shift: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.shift = shift

    def unpack_batch(self, batch: Any) -> Batch:
        """Return the parts of the batch, the images moved while training."""
        parts = super().unpack_batch(batch)
        if not self.training:
            return parts
        direction = 1 if self.global_step % 2 else -1
        inputs: Tensor = parts.inputs.roll(direction * self.shift, dims=-1)
        return parts._replace(inputs=inputs)


if __name__ == "__main__":
    main(model_class=AugmentedClassifier)
