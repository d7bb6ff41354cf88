"""Thresholds and calibrations on two gloo ranks are those of one process: uneven, and with a rank that has no row."""

import os
import warnings
from functools import partial

import pytest
import sklearn.isotonic  # noqa: F401  sets variables of the environment when first imported, which is no test's leak
import torch
from foreign_lightning import a_trainer
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import BinaryClassifier, FocalLoss
from lightning_bce.callbacks import ProbabilityCalibrator, ThresholdTuner

FEATURES, LABELS, NAN = 5, 3, float("nan")


def a_loader(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, FEATURES, generator=generator)
    target = (torch.rand(rows, LABELS, generator=generator) < torch.sigmoid(inputs[:, :LABELS] * 2 - 1)).float()
    target[torch.rand(rows, LABELS, generator=generator) > 0.9] = NAN
    return DataLoader(TensorDataset(inputs, target, torch.rand(rows, generator=generator) + 0.5), 4)


def fitted(**options):
    """Return what two epochs of training and some validations fit and log."""
    found = []
    for rows, bins in ((37, None), (37, 512), (1, None)):
        torch.manual_seed(3)
        # The weights stay: two ranks take other steps than one process.
        options_of = {"num_labels": LABELS, "metrics": [], "optimizer": partial(torch.optim.SGD, lr=0.0)}
        classifier = BinaryClassifier(nn.Linear(FEATURES, LABELS), FocalLoss(ignore_index=NAN), **options_of)
        tuner = ThresholdTuner("youden", bins=bins, print_table=False)
        callbacks = [tuner, ProbabilityCalibrator("isotonic", bins=bins, print_table=False)]
        trainer = a_trainer(*callbacks, max_epochs=2, **options)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*(positives and negatives are needed|No known label)")
            trainer.fit(classifier, a_loader(40, 1), a_loader(rows))
        logged = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
        found.append((list(tuner.result), classifier.decision.state_dict(), logged))
    try:
        failing = ThresholdTuner("youden", class_names=["a", "b"])
        a_trainer(failing, **options).validate(classifier, a_loader(9), verbose=False)
    except (ValueError, RuntimeError) as error:
        found.append(str(error))
    return found


def on_this_rank(rank):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "test"}
    return fitted(strategy="ddp", devices=2)


def test_two_ranks_fit_what_one_process_fits(on_two_ranks):
    *expected, refused = fitted()
    for rank, (*result, told) in enumerate(on_two_ranks(on_this_rank)):
        assert refused in told and told.startswith("The first rank could not fit" if rank else "`class_names`")
        for (tuned, state, logged), (tuned_alone, state_alone, logged_alone) in zip(result, expected, strict=True):
            assert_close(tuned, tuned_alone, rtol=1e-4, atol=1e-5, equal_nan=True)
            assert_close(state, state_alone, rtol=1e-4, atol=1e-5)
            assert logged == pytest.approx(logged_alone, rel=1e-4, abs=1e-5)
