"""The recipe: what ``lightning-bce fit`` does where nothing else is said, and why, in lines that it prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import Any, NamedTuple

from lightning.pytorch.callbacks import EarlyStopping

from lightning_bce.losses import BinaryLoss, LabelCounts

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


def early_stopping(patience: int = PATIENCE) -> EarlyStopping:
    """Return the callback that stops where the validation loss has stopped falling.

    Args:
        patience: Epochs without a better validation loss until then.
    """
    # A loss that is no number is not the end of a good run, which it would look like: FiniteGuard says so.
    return EarlyStopping(monitor="val_loss", patience=patience, check_finite=False)


def helps_to_calibrate(loss: BinaryLoss, validation: LabelCounts) -> bool:
    """Return whether a calibration on the validation rows makes probabilities better, see FEWEST_TO_CALIBRATE.

    Args:
        loss: What the model was trained with. One that is not proper, or is minimised elsewhere, is always put right.
        validation: The counts of the validation labels.

    Example:
        >>> from lightning_bce.losses import BCEWithLogitsLoss, FocalLoss
        >>> few = LabelCounts(positives=20, negatives=400)
        >>> helps_to_calibrate(BCEWithLogitsLoss(), few), helps_to_calibrate(FocalLoss(), few)
        (False, True)
    """
    shift = loss.log_odds_shift
    if shift is None or bool((shift != 0).any()):
        return True
    positives = validation.positives.sum()
    return min(positives.item(), (validation.total.sum() - positives).item()) >= FEWEST_TO_CALIBRATE


def choices(
    config: Any, stated: Set[str], counts: LabelCounts | None, stopping: EarlyStopping | None, decides: bool
) -> Iterator[Choice]:
    """Yield what was decided for the user of a run from scratch, in the order of the flags.

    Args:
        config: The configuration of ``fit``.
        stated: Dotted names of all that the user said, without "init_args".
        counts: Of the training labels, where they are known.
        stopping: What ends the training, if the recipe added it.
        decides: Whether the recipe fits a calibration or thresholds.
    """
    model = config["model"]
    if not any(name == "data" or name.startswith("data.class") for name in stated):
        yield Choice("data", "TableDataModule", "--data.path is given")
    if "model.loss" not in stated and model["loss"] is not None:  # of a head
        why = "proper: its probabilities are right, and a threshold does what weights would"
        yield Choice("model.loss", _short_name(model["loss"]["class_path"]), why)
    if model.get("head") and "model.model" not in stated:
        yield Choice("model.model", _short_name(model["model"]["class_path"]), "takes sparse inputs, and dense ones")
    elif not stated & {"model.model", "model.model.hidden"}:
        why = "wider and narrower was better on some tables and worse on others"
        yield Choice("model.model.hidden", str(list(model["model"]["init_args"]["hidden"])), why)
    if "model.prior_bias" not in stated and model.get("prior_bias"):
        rates = [] if counts is None else [f"{rate:.2%}" for rate in counts.prior.tolist()[:3]]
        seen = f": positives {', '.join(rates)}{', ...' if counts is not None and counts.num_labels > 3 else ''}"
        why = f"the first loss is the entropy of the labels{seen if rates else ''}"
        yield Choice("model.prior_bias", str(model["prior_bias"]), why)
    if not any(name.startswith("model.optimizer") for name in stated):
        value = f"{_short_name(model['optimizer']['class_path'])}, lr {LEARNING_RATE}"
        yield Choice("model.optimizer", value, "higher rates were better on some tables and worse on others")
    if "model.lr_scheduler" not in stated and model.get("lr_scheduler"):
        arguments = model["lr_scheduler"]["init_args"]
        why = f"rate x {arguments['factor']} after {arguments['patience']} epochs without a better val_loss"
        yield Choice("model.lr_scheduler", "ReduceLROnPlateau", why)
    if "trainer.max_epochs" not in stated:
        yield Choice("trainer.max_epochs", str(EPOCHS), "at most")
    if stopping is not None:
        why = f"after {stopping.patience} epochs without a better val_loss; best.ckpt is the best"
        yield Choice("trainer.callbacks", "EarlyStopping", why)
    if decides and "decide" not in stated:
        reasons = {
            "both": "Platt calibration, and the threshold that is then best for F1, from validation rows",
            "calibration": "Platt calibration from validation rows; the threshold is yours",
            "threshold": "the best for F1; too few validation rows for a calibration to help",
        }
        yield Choice("decide", config["decide"], reasons[config["decide"]])


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


def _short_name(path: Any) -> str:
    """Return the last part of a class path.

    Example:
        >>> _short_name("torch.optim.AdamW")
        'AdamW'
    """
    return str(path).rpartition(".")[2]
