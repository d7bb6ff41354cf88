"""The recipe: what ``lightning-bce fit`` does where nothing else is said, and why, in lines that it prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning.pytorch.callbacks import EarlyStopping

# Chosen on five tables, three splits each: breast cancer, two digits, 6,512 rows of adult, and 9,343 of it with 6.7 %
# positives. There a rate of 0.003, a cosine schedule, dropout 0.3 and batches of 64 were better on some and worse on
# others, and so were widths from [32] to [256, 256]: none of them is worth a rule.
EPOCHS = 100
"""At most: training stops by itself. The best epoch was between the 8th and the 56th."""

LEARNING_RATE = 0.001
PATIENCE = 10
"""Epochs without a better validation loss until training stops: two cuts of the learning rate have had their chance."""

FEWEST_TO_CALIBRATE = 50
"""Positives, and negatives, on which a calibration of a proper loss is fitted at least.

With 26 to 32 positives to validate on (digits, breast cancer) Platt scaling of cross-entropy raised the log-loss of the
test rows from 0.041 to 0.048 and from 0.071 to 0.105, mean of three splits; with 94 it fell from 0.166 to 0.163 (adult,
6.7 % positives), and with 235 it stayed (adult). A focal loss it took from 0.073 to 0.025 with 26.
"""

SCHEDULER = {
    # Not one that ends at `max_epochs`: a run that stops early would never come to its end, and one that goes on for
    # more epochs would not be the uninterrupted one.
    "class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau",
    "init_args": {"factor": 0.3, "patience": 3},
}


class Choice(NamedTuple):
    """One thing that was decided for the user.

    Args:
        flag: By which it is decided otherwise.
        value: What was chosen.
        why: In a few words.
    """

    flag: str
    value: str
    why: str


def early_stopping() -> EarlyStopping:
    """Return the callback that stops where the validation loss has stopped falling."""
    # A loss that is no number is not the end of a good run, which it would look like: FiniteGuard says so.
    return EarlyStopping(monitor="val_loss", patience=PATIENCE, check_finite=False)


def shown(choices: Sequence[Choice]) -> str:
    """Return the choices as lines of text.

    Example:
        >>> print(shown([Choice("trainer.max_epochs", "60", "at most")]))
        The recipe, where nothing was said (each line is a flag):
          --trainer.max_epochs  60  at most
    """
    widths = [max(len(row[part]) for row in choices) for part in (0, 1)]
    lines = [f"  --{flag:<{widths[0]}}  {value:<{widths[1]}}  {why}" for flag, value, why in choices]
    return "\n".join(["The recipe, where nothing was said (each line is a flag):", *lines])


def short_name(path: Any) -> str:
    """Return the last part of a class path.

    Example:
        >>> short_name("torch.optim.AdamW")
        'AdamW'
    """
    return str(path).rpartition(".")[2]
