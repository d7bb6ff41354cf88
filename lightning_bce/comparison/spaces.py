"""Where each loss's own hyper-parameters are searched: all spaces in one place."""

from __future__ import annotations

from typing import Any, NamedTuple

from lightning_bce.spec import Spec


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``, by their logarithm if ``log``."""

    low: float
    high: float
    log: bool = False


Space = dict[str, Range]

LEARNING_RATE = "lr"
_RATE_FACTOR = 10.0

SPACES: dict[str, Space] = {
    "AUCMarginLoss": {"margin": Range(0.3, 2.0)},
    "AsymmetricLoss": {"gamma_neg": Range(0.0, 6.0), "gamma_pos": Range(0.0, 2.0), "clip": Range(0.0, 0.2)},
    "BCEFocalLoss": {"gamma": Range(0.0, 4.0), "alpha": Range(0.1, 0.9)},
    "BiTemperedLoss": {"t1": Range(0.3, 1.0), "t2": Range(1.0, 3.0)},
    "DiceLoss": {"smooth": Range(0.1, 10.0, True)},
    "DistributionBalancedLoss": {"mu": Range(0.1, 0.5), "lam": Range(1.0, 5.0), "kappa": Range(0.0, 0.2)},
    "FocalLoss": {"gamma": Range(0.0, 4.0)},
    "GHMCLoss": {"momentum": Range(0.0, 0.95)},
    "GeneralizedCELoss": {"q": Range(0.1, 1.0)},
    "HillLoss": {"lamb": Range(1.0, 2.5), "margin": Range(0.0, 2.0), "gamma": Range(0.0, 3.0)},
    "JaccardLoss": {"smooth": Range(0.1, 10.0, True)},
    "LargeLossBCELoss": {"rate_per_epoch": Range(0.0005, 0.02, True), "max_rate": Range(0.02, 0.3)},
    "LogitAdjustedLoss": {"tau": Range(0.25, 2.0)},
    "MarginBCELoss": {"max_margin": Range(0.1, 2.0), "scale": Range(1.0, 5.0)},
    "PartialLabelBCELoss": {},
    "PolyLoss": {"epsilon": Range(-0.9, 4.0)},
    "PositiveUnlabeledLoss": {"gamma": Range(0.1, 1.0)},
    "QualityFocalLoss": {"beta": Range(0.5, 4.0)},
    "SPLCLoss": {"threshold": Range(0.5, 0.95), "margin": Range(0.0, 2.0), "gamma": Range(0.0, 3.0)},
    "SmoothedBCELoss": {"smoothing": Range(0.0, 0.3)},
    "SoftF1Loss": {"beta": Range(1.0, 20.0, True), "eta": Range(-1.0, 1.0)},
    "SymmetricCELoss": {"ce_weight": Range(0.05, 5.0, True), "rce_weight": Range(0.1, 2.0, True)},
    "TverskyLoss": {"fp_weight": Range(0.1, 0.9), "fn_weight": Range(0.1, 0.9), "gamma": Range(0.75, 2.0)},
    "TwoWayLoss": {"pos_temperature": Range(1.0, 6.0), "neg_temperature": Range(0.5, 3.0)},
    "VarifocalLoss": {"negative_weight": Range(0.25, 1.0), "gamma": Range(0.0, 4.0)},
    "WeightedBCELoss": {"alpha": Range(0.1, 0.9)},
}
"""The ranges of the losses of this package, around what their papers use. A loss that is not named here, or has an
empty space, is searched by its learning rate alone, as plain BCE is."""


def space_of(loss: Spec, optimizer: Spec) -> Space:
    """Return what is searched for a loss: the learning rate, and what its space names and nobody gave.

    Args:
        loss: The loss as it was given. A parameter that was given stays.
        optimizer: The optimizer; the rate is searched from a tenth of its own to ten times as much.

    Example:
        >>> loss = {"class_path": "lightning_bce.losses.focal.FocalLoss", "init_args": {}}
        >>> space_of(loss, {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}})
        {'lr': Range(low=0.001, high=0.1, log=True), 'gamma': Range(low=0.0, high=4.0, log=False)}
    """
    found: Space = {}
    rate: Any = optimizer["init_args"].get(LEARNING_RATE)
    if rate:
        found[LEARNING_RATE] = Range(rate / _RATE_FACTOR, rate * _RATE_FACTOR, True)
    path = loss["class_path"]
    if path.startswith("lightning_bce."):
        own = SPACES.get(path.rpartition(".")[2], {})
        found.update({name: span for name, span in own.items() if name not in loss["init_args"]})
    return found
