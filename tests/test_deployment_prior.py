"""A model that is used where positives are rarer or more frequent than in training: Bayes' rule gives the answer."""

from __future__ import annotations

import functools
import math
from typing import Any

import lightning.pytorch as pl
import pytest
import sklearn.isotonic  # noqa: F401  sets variables of the environment when first imported, which is no test's leak
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import BCEWithLogitsLoss, BinaryClassifier, LabelCounts
from lightning_bce.decision import Decision, fit_calibration, prior_shift

pytestmark = [
    # The fit is looked at; nothing is validated.
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`"),
]

# How often each of three words is seen among the negatives and among the positives, whatever their number.
OF_NEGATIVES, OF_POSITIVES = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.1, 0.3, 0.6])


def posterior(rate: float) -> Tensor:
    """P(positive | word) by Bayes' rule."""
    return rate * OF_POSITIVES / (rate * OF_POSITIVES + (1 - rate) * OF_NEGATIVES)


def rows(rate: float) -> TensorDataset:
    """Each word with each label, weighed by how often it is seen."""
    words, target = torch.eye(3).repeat(2, 1), (torch.arange(6) > 2).float()
    return TensorDataset(words, target[:, None], torch.cat([(1 - rate) * OF_NEGATIVES, rate * OF_POSITIVES]))


def fitted(folder: Any = None, **options: Any) -> BinaryClassifier:
    optimizer = functools.partial(torch.optim.Adam, lr=0.1)
    loss = BCEWithLogitsLoss(reduction="weighted_mean")
    classifier = BinaryClassifier(nn.Linear(3, 1), loss, optimizer=optimizer, metrics=[], **options)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=150, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(classifier, DataLoader(rows(0.2), 6))
    if folder is not None:
        trainer.save_checkpoint(folder / "a.ckpt")
    return classifier.eval()


def predicted(classifier: BinaryClassifier) -> Tensor:
    with torch.no_grad():
        return classifier.predict_step(torch.eye(3), 0)["probability"]


def test_probabilities_at_another_rate_are_those_of_bayes_rule_for_generations(tmp_path):
    classifier = fitted(tmp_path, deployment_prior=0.01)
    assert_close(predicted(classifier), posterior(0.01), rtol=0.02, atol=0)
    assert_close(classifier(torch.eye(3)).sigmoid().flatten(), posterior(0.2), rtol=0.02, atol=0)
    exported = torch.export.export(classifier.exportable(), (torch.eye(3),)).module()
    assert_close(exported(torch.eye(3))[0], predicted(classifier))

    again = BinaryClassifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    assert_close(predicted(again), predicted(classifier), rtol=0, atol=0)
    for rate in (0.5, 0.001, None):
        moved = BinaryClassifier.load_from_checkpoint(tmp_path / "a.ckpt", deployment_prior=rate).eval()
        assert_close(predicted(moved), posterior(0.2 if rate is None else rate), rtol=0.02, atol=0)


def test_a_training_that_counted_for_something_else_can_be_moved_later_and_no_other(tmp_path):
    fitted(tmp_path, prior_bias=True)
    moved = BinaryClassifier.load_from_checkpoint(tmp_path / "a.ckpt", deployment_prior=0.01).eval()
    assert_close(predicted(moved), posterior(0.01), rtol=0.02, atol=0)
    plain = fitted(tmp_path)
    with pytest.raises(ValueError, match=r"how many positives.*set_shift"):
        BinaryClassifier.load_from_checkpoint(tmp_path / "a.ckpt", deployment_prior=0.01)
    plain.decision.set_shift(prior_shift(0.2, 0.01).reshape(1))
    assert_close(predicted(plain), posterior(0.01), rtol=0.02, atol=0)


def test_a_trainer_that_loads_a_checkpoint_predicts_at_the_rate_of_the_module(tmp_path):
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    loader = DataLoader(torch.eye(3), 3)
    module = BinaryClassifier(nn.Linear(3, 1), metrics=[], deployment_prior=0.01)
    for trained_with in ({"prior_bias": True}, {"deployment_prior": 0.5}):
        fitted(tmp_path, **trained_with)
        (found,) = trainer.predict(module, loader, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
        assert_close(found["probability"], posterior(0.01), rtol=0.02, atol=0)


def test_a_module_that_knows_no_training_rate_predicts_for_no_other():
    module = BinaryClassifier(nn.Linear(3, 1), deployment_prior=0.01)
    for ask in (lambda: predicted(module), module.exportable):
        with pytest.raises(ValueError, match=r"neither a training nor a checkpoint.*set_shift"):
            ask()


def test_a_balanced_rate_decides_by_which_class_explains_the_row_better():
    balanced = Decision(1)
    balanced.set_shift(prior_shift([0.03], 0.5))
    _, decision = balanced(torch.logit(posterior(0.03)))
    assert decision.tolist() == (OF_POSITIVES > OF_NEGATIVES).tolist()


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_the_shift_comes_after_the_calibration(method):
    logits, target = torch.randn(512, 2), (torch.rand(512, 2) < 0.4).float()
    decision, plain = Decision(2), Decision(2)
    for module in (decision, plain):
        module.calibration.set(fit_calibration(logits, target, method=method))
    decision.set_shift(prior_shift([0.4, 0.3], [0.1, 0.6]))
    odds = [part.double() / (1 - part.double()) for part in (decision(logits)[0], plain(logits)[0])]
    between = (plain(logits)[0] > 0.01) & (plain(logits)[0] < 0.99)
    factor = torch.tensor([(0.1 / 0.9) / (0.4 / 0.6), (0.6 / 0.4) / (0.3 / 0.7)]).double()
    assert_close((odds[0] / odds[1])[between], factor.expand(512, 2)[between], rtol=1e-4, atol=0)
    decision.set_shift(torch.zeros(2))
    assert torch.equal(decision(logits)[0], plain(logits)[0])


def test_masks_are_moved_by_their_label_and_half_precision_keeps_the_shift():
    decision = Decision(2)
    decision.set_shift(torch.tensor([1.0, -1.0]))
    found, _ = decision.bfloat16()(torch.zeros(7, 2, 3, 5))
    expected = torch.tensor([1.0, -1.0]).sigmoid().reshape(1, 2, 1, 1).expand(7, 2, 3, 5)
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (0.0, "strictly between"),
        (2, "strictly between"),
        (math.nan, "strictly between"),
        ([0.1, 0.2], r"one for each of 1 label"),
    ],
)
def test_a_rate_that_cannot_be_is_refused_before_training(prior, message):
    with pytest.raises(ValueError, match=message):
        BinaryClassifier(nn.Linear(3, 1), deployment_prior=prior)


def test_counts_can_be_given_in_place_of_counting():
    classifier = BinaryClassifier(nn.Linear(3, 1), deployment_prior=0.01)
    classifier.label_counts = LabelCounts(1, 9)
    assert classifier._shift(classifier.label_counts).item() == pytest.approx(math.log(9 / 99))
