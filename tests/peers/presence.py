"""Which library has which of our losses, by what name."""

from __future__ import annotations

from discovery import concrete_losses
from peers.functions import FUNCTIONS
from peers.libraries import PEERS

# What is there in another form, and which. Read in the documentation of the versions in the table.
OTHER_FORMS: dict[str, dict[str, tuple[str, str]]] = {
    "AUCMarginLoss": {"MONAI": ("losses.AUCMLoss", "not compared")},
    "BrierLoss": {
        "torch": ("nn.functional.mse_loss", "of a sigmoid"),
        "keras": ("losses.MeanSquaredError", "of a sigmoid"),
    },
    "DiceLoss": {"kornia": ("losses.dice_loss", "softmax")},
    "GeneralizedCELoss": {"keras": ("losses.CategoricalGeneralizedCrossEntropy", "softmax")},
    "SoftF1Loss": {
        "MONAI": ("losses.DiceLoss", "as Dice"),
        "segmentation-models": ("losses.DiceLoss", "as Dice"),
        "keras": ("losses.Dice", "as Dice"),
    },
    "TverskyLoss": {"kornia": ("losses.tversky_loss", "softmax")},
}

NOBODYS = {
    "BiTemperedLoss",
    "GHMCLoss",
    "HillLoss",
    "LargeLossBCELoss",
    "LogitAdjustedLoss",
    "MarginBCELoss",
    "PairwiseLoss",
    "PartialLabelBCELoss",
    "PositiveUnlabeledLoss",
    "QualityFocalLoss",
    "SPLCLoss",
    "SymmetricCELoss",
    "UnobservedBCELoss",
    "VarifocalLoss",
    "WeightedBCELoss",
}
"""Losses that none of the libraries has. Some of the names are taken before their losses are there."""


def our_losses() -> list[str]:
    """Return the names of our losses; a new one is among them without an edit here."""
    return [cls.__name__ for cls in concrete_losses()]


def name_of(library: str, loss: str) -> tuple[str, str] | None:
    """Return a library's name of a loss and its form, "" for that of ours, or None where it has none."""
    for function in FUNCTIONS:
        if (function.library, function.loss) == (library, loss):
            return function.name, ""
    return OTHER_FORMS.get(loss, {}).get(library)


def shared_losses() -> list[str]:
    """Return those of our losses that some library has."""
    return [loss for loss in our_losses() if any(name_of(library, loss) for library in PEERS)]
