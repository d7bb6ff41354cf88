"""A sum of losses is the sum of its terms: in value, gradient, sums, logs and checkpoints."""

import sys

import lightning.pytorch as pl
import pytest
import sklearn.datasets  # noqa: F401  sets variables of the environment when first imported, which is no test's leak
import torch
import yaml
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import (
    BCELoss,
    BCEWithLogitsLoss,
    BinaryClassifier,
    BinaryLoss,
    CombinedLoss,
    DiceLoss,
    FocalLoss,
    LargeLossBCELoss,
    TabularMLP,
    UnobservedBCELoss,
    ZLPRLoss,
)
from lightning_bce.cli import main
from lightning_bce.spec import build


def data(rows=33, labels=3):
    return torch.randn(rows, labels, requires_grad=True), (torch.rand(rows, labels) < 0.3).long()


def test_a_sum_is_the_sum_of_its_terms_in_value_and_gradient():
    logits, target = data()
    loss = 0.5 * BCEWithLogitsLoss(pos_weight=3.0) + FocalLoss() * 2 + BCELoss()
    (gradient,) = torch.autograd.grad(loss(logits, target), logits)
    by_hand = (
        0.5 * BCEWithLogitsLoss(pos_weight=3.0)(logits, target)
        + 2 * FocalLoss()(logits, target)
        + BCELoss()(logits.sigmoid(), target)
    )
    assert_close(loss(logits, target), by_hand)
    assert_close(gradient, torch.autograd.grad(by_hand, logits)[0])


def test_a_term_of_probabilities_gets_those_of_full_precision():
    logits, target = data()
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        scores = logits.to(dtype)
        probabilities = scores.to(torch.promote_types(dtype, torch.float32)).sigmoid()
        assert_close((1 * BCELoss())(scores, target), BCELoss()(probabilities, target), rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
def test_terms_that_count_alike_keep_their_sums_by_label_and_side(reduction):
    logits, target = data()
    first, second = BCEWithLogitsLoss(reduction=reduction), FocalLoss(gamma=1.0, reduction=reduction)
    sums = (first + 3 * second).sums(logits, target)
    assert_close(sums.loss, first.sums(logits, target).loss + 3 * second.sums(logits, target).loss)
    assert torch.equal(sums.weight, first.sums(logits, target).weight)


@pytest.mark.parametrize(
    "loss",
    [
        BCEWithLogitsLoss() + ZLPRLoss(),
        2 * ZLPRLoss() + BCEWithLogitsLoss(reduction="batchmean"),
        BCEWithLogitsLoss(reduction="weighted_mean") + FocalLoss(),
        0.25 * FocalLoss(),
    ],
    ids=lambda loss: "+".join(loss.terms),
)
def test_the_mean_of_the_sums_is_the_loss(loss):
    logits, target = data()
    sums = loss.sums(logits, target)
    assert sums.loss.shape == (loss.num_rows(3), 2)
    assert_close(sums.mean(), loss(logits, target))


def test_terms_that_count_otherwise_have_one_row_with_the_counts_of_the_leading_one():
    logits, target = data()
    bce, focal = BCEWithLogitsLoss(), FocalLoss(reduction="batchmean")
    for loss, leading in ((ZLPRLoss() + bce, bce), (bce + focal, bce), (focal + bce, focal)):
        sums = loss.sums(logits, target)
        assert_close(sums.weight, leading.sums(logits, target).weight.sum(0, keepdim=True))
        assert loss.num_rows(3) == len(sums.loss) == 1
        assert_close(sums.mean(), loss(logits, target))
    of_rows = DiceLoss() + 2 * ZLPRLoss()  # none is by element: the first leads
    sums = of_rows.sums(logits, target)
    assert_close(sums.weight, DiceLoss().sums(logits, target).weight.sum(0, keepdim=True))
    assert_close(sums.mean(), of_rows(logits, target))


def test_weights_reach_every_term():
    logits, target = data()
    weight = torch.rand(33)
    for reduction in ("mean", "weighted_mean"):
        first, second = BCEWithLogitsLoss(reduction=reduction), FocalLoss(reduction=reduction)
        loss = first + 3 * second
        assert_close(loss(logits, target, weight), first(logits, target, weight) + 3 * second(logits, target, weight))
        assert_close(loss.sums(logits, target, weight).mean(), loss(logits, target, weight))
        terms = loss.term_sums(logits, target, weight)
        assert_close(tuple(terms["FocalLoss"]), tuple(second.sums(logits, target, weight)))


def test_a_batch_whose_rows_do_not_count_keeps_its_elements():
    logits, target = data()
    loss = DiceLoss(smooth=0.0) + BCEWithLogitsLoss()  # without smoothing a label counts that has a positive
    sums = loss.sums(logits, torch.zeros_like(target))
    assert_close(sums.mean(), BCEWithLogitsLoss()(logits, torch.zeros_like(target)))
    assert sums.weight.sum() == target.numel()


def test_masks_and_unknown_labels_reach_every_term():
    logits, target = data()
    mask = torch.rand(33) < 0.5
    loss = BCEWithLogitsLoss(ignore_index=-1) + FocalLoss(ignore_index=-1)
    unknown = torch.where(torch.rand(33, 3) < 0.3, -1, target)
    known = mask[:, None] & (unknown >= 0)
    expected = BCEWithLogitsLoss()(logits[known], target[known]) + FocalLoss()(logits[known], target[known])
    assert_close(loss(logits, unknown, mask=mask), expected)
    assert torch.equal(loss.valid(logits, unknown, mask), known)
    losses = loss.losses(logits, unknown, mask=mask)
    assert (losses[known] > 0).all() and not losses[~known].any()


def test_observed_is_what_every_term_finds_a_label_in():
    logits, target = data()
    hidden, mask = torch.rand(33, 3) < 0.3, torch.rand(33, 3) < 0.7
    marked = torch.where(hidden, -1, target)
    loss = BCEWithLogitsLoss() + UnobservedBCELoss()
    assert torch.equal(loss.observed(logits, marked), ~hidden)
    assert torch.equal(loss.observed(logits, marked, mask), ~hidden & mask)
    both = UnobservedBCELoss() + UnobservedBCELoss(unobserved=-2)
    assert torch.equal(both.observed(logits, torch.where(mask, marked, -2)), ~hidden & mask)
    assert (BCEWithLogitsLoss() + FocalLoss()).observed(logits, target) is None


def test_every_term_hears_of_the_epoch():
    loss = LargeLossBCELoss(rate_per_epoch=0.01) + LargeLossBCELoss(rate_per_epoch=0.02)
    loss.start_epoch(3)
    assert [term.rate.item() for term in loss.terms.values()] == [0.03, 0.06]


def test_nothing_to_average_is_zero_with_a_gradient_of_zeros():
    logits, target = data()
    value = (BCEWithLogitsLoss() + ZLPRLoss()).sums(logits, target, mask=torch.zeros(33, dtype=torch.bool)).mean()
    (gradient,) = torch.autograd.grad(value, logits)
    assert value == 0 and not gradient.any()


def test_sums_of_sums_are_flat_and_equal_names_are_numbered():
    loss = 2 * (FocalLoss(gamma=1.0) + 0.5 * FocalLoss(gamma=2.0)) + FocalLoss(gamma=3.0)
    assert loss.weights == {"FocalLoss": 2.0, "FocalLoss_2": 1.0, "FocalLoss_3": 1.0}
    assert [term.gamma for term in loss.terms.values()] == [1.0, 2.0, 3.0]
    assert CombinedLoss({"a": FocalLoss(), "b": FocalLoss()}, {"b": 0.5}).weights == {"a": 1.0, "b": 0.5}


def test_a_sum_comes_back_from_its_spec():
    loss = CombinedLoss({"bce": BCEWithLogitsLoss(pos_weight=[1.0, 2.0, 3.0]), "focal": FocalLoss()}, {"focal": 0.5})
    again = build(loss.spec(), BinaryLoss)
    logits, target = data()
    assert torch.equal(again(logits, target), loss(logits, target)) and again.fingerprint == loss.fingerprint
    assert loss.state_dict() == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CombinedLoss({}), "^`terms` is empty; at least one"),
        (lambda: BCEWithLogitsLoss(reduction="sum") + FocalLoss(), "reduction 'sum'.* mean, weighted_mean, batchmean"),
        (lambda: BCEWithLogitsLoss(ignore_index=-1) + FocalLoss(), "ignore different values: -1, None"),
        (
            lambda: CombinedLoss({"a": FocalLoss(), "b": FocalLoss()}, {"d": 1.0, "c": 1.0}),
            r"names c, d; .* are a, b\.",
        ),
        (lambda: CombinedLoss({"a": FocalLoss()}, {"a": -1.0}), r"`weights\[a\]` is -1.0; it must be .* at least 0"),
        (lambda: -1 * FocalLoss(), "`factor` is -1; it must be .* at least 0"),
        (lambda: 0 * FocalLoss(), "^All `weights` are 0: there is nothing to minimise"),
    ],
)
def test_what_is_no_sum_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_only_losses_are_added_and_only_numbers_multiply():
    with pytest.raises(TypeError):
        FocalLoss() + 1.0
    with pytest.raises(TypeError, match=r"`factor` is .* a number of at least 0"):
        FocalLoss() * torch.tensor(2.0)
    with pytest.raises(TypeError, match="'mse' is MSELoss; a BinaryLoss"):
        CombinedLoss({"mse": torch.nn.MSELoss()})


def test_each_term_checks_the_values_of_its_first_batch():
    loss = BCEWithLogitsLoss() + FocalLoss()
    logits, target = data()
    with pytest.raises(ValueError, match="outside"):
        loss(logits, target + 1)
    loss(logits, target)
    loss(logits, target + 1)
    loss.recheck()
    with pytest.raises(ValueError, match="outside"):
        loss(logits, target + 1)


@pytest.mark.parametrize("second", [FocalLoss(), ZLPRLoss()], ids=repr)
def test_the_classifier_logs_each_term_exactly_and_its_checkpoint_loads(second, tmp_path):
    x = torch.randn(33, 5)
    target = (x[:, :3] > 0.5).float()
    loss = CombinedLoss({"bce": BCEWithLogitsLoss(), "other": second}, weights={"bce": 0.25})
    classifier = BinaryClassifier(TabularMLP(5, 3), loss, num_labels=3)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(TensorDataset(x, target), batch_size=8)
    trainer.fit(classifier, loader, loader)
    logged = trainer.callback_metrics
    logits = classifier.eval()(x).detach()
    assert_close(logged["val_loss/bce"], BCEWithLogitsLoss()(logits, target))
    assert_close(logged["val_loss/other"], second(logits, target))
    assert_close(logged["val_loss"], loss(logits, target))
    assert_close(logged["train_loss"], 0.25 * logged["train_loss/bce"] + logged["train_loss/other"])
    again = BinaryClassifier.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    assert again.loss.fingerprint == loss.fingerprint


def test_a_sum_is_configured_by_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    terms = {
        "bce": {"class_path": "BCEWithLogitsLoss"},
        "focal": {"class_path": "FocalLoss", "init_args": {"gamma": 3}},
    }
    loss = {"class_path": "CombinedLoss", "init_args": {"terms": terms, "weights": {"focal": 0.5}}}
    configuration = {"data": {"class_path": "BreastCancerDataModule"}, "model": {"loss": loss}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(configuration))
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
    main(["fit", "--config=run.yaml", "--trainer.max_epochs=1", *quiet])
    (path,) = tmp_path.glob("runs/*/checkpoints/best.ckpt")
    assert BinaryClassifier.load_from_checkpoint(path).loss.terms["focal"].gamma == 3
    main(["test", f"--ckpt_path={path}", *quiet])


def test_the_losses_of_elements_are_those_of_the_terms():
    logits, target = data()
    terms = [FocalLoss(ignore_index=-1), BCELoss(ignore_index=-1)]
    target[0, 0] = -1
    weight = torch.rand(len(target))
    found = (terms[0] + 3 * terms[1]).losses(logits, target, weight)
    of_terms = terms[0].losses(logits, target, weight), terms[1].losses(logits.sigmoid(), target, weight)
    assert_close(found, of_terms[0] + 3 * of_terms[1])
    assert found[0, 0] == 0
    scores, hard = data()
    of_terms = terms[0].elementwise(scores, hard), terms[1].elementwise(scores.sigmoid(), hard)
    assert_close((terms[0] + 3 * terms[1]).elementwise(scores, hard), of_terms[0] + 3 * of_terms[1])


def test_a_term_of_rows_leaves_no_losses_of_elements():
    with pytest.raises(
        TypeError, match=r"DiceLoss, ZLPRLoss has no loss of a single.* the losses of the other terms\.$"
    ):
        (DiceLoss() + BCEWithLogitsLoss() + ZLPRLoss()).losses(*data())
