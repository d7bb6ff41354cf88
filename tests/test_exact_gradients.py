"""A step of the optimizer follows the mean over all that its batches and ranks count, whatever the cut."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from cuts import (
    CASES,
    LABELS,
    NAN,
    ONE_RANK,
    OPTIMIZERS,
    RATE,
    TWO_RANKS,
    Gradients,
    Unknown,
    a_classifier,
    a_trainer,
    as_a_rank,
    batches_of,
    by_hand,
    check,
    flat,
    samples,
    trained,
    with_nothing_known,
)
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from torch.testing import assert_close

from lightning_bce import (
    BCEWithLogitsLoss,
    BinaryClassifier,
    DiceLoss,
    DistributionBalancedLoss,
    GHMCLoss,
    LargeLossBCELoss,
    PartialLabelBCELoss,
    SPLCLoss,
    ZLPRLoss,
)
from lightning_bce.engine import reason_against
from lightning_bce.window import Window

pytestmark = [
    # Lightning asks torch's pytree in a way that torch has deprecated; nothing that we could change.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    # The data are in memory: worker processes would only cost.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`"),
]

# -- the same in every cut --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["64-true", "32-true"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cut", ONE_RANK)
def test_accumulated_batches_train_like_one(cut, case, precision):
    if "fused" in case and (reason := reason_against("cpu")):
        pytest.skip(f"no kernel can be generated: {reason}")
    check(trained(cut, case, precision), case, precision)


def on_a_rank(rank, wanted):
    as_a_rank(rank)
    return [trained(*arguments, rank=rank) for arguments in wanted]


def test_two_ranks_train_like_one(on_two_ranks):
    cases = [case for case in CASES if "fused" not in case]
    wanted = [(cut, case, precision) for cut in TWO_RANKS for case in cases for precision in ("64-true", "32-true")]
    found = on_two_ranks(on_a_rank, wanted)
    for results in found:
        for (_, case, precision), result in zip(wanted, results, strict=True):
            check(result, case, precision)
    for one, other in zip(*found, strict=True):
        assert one[1] == other[1]  # what is shown is the mean over both ranks


@pytest.mark.parametrize("cut", ["4 of 16", "2 uneven"])
def test_the_mean_of_the_batches_means_would_not_pass_this(cut, monkeypatch):  # so that the tests above can fail
    monkeypatch.setattr(BinaryClassifier, "backward", pl.LightningModule.backward)
    _, _, weights = trained(cut, "half unknown")
    _, _, after = by_hand(CASES["half unknown"][2], ("unknown",))
    assert (weights - after).norm() > 1e-3 * after.norm()


def test_the_accumulation_may_change_with_the_epoch():
    schedule = GradientAccumulationScheduler({0: 1, 1: 4, 2: 3})
    found, _, weights = trained("4 of 16", "half unknown", "64-true", 0, schedule, accumulate_grad_batches=1)
    windows = [16] * 10 + [64, 64, 32] + [48, 48, 48, 16]
    gradients, _, after = by_hand(CASES["half unknown"][2], ("unknown",), windows)
    assert len(found) == len(gradients)
    assert (weights - after).norm() <= 1e-12 * after.norm()


# -- what stands beside it --------------------------------------------------------------------------------------------


def clip_by_norm(parameters):
    torch.nn.utils.clip_grad_norm_(parameters, 0.05)


def clip_by_value(parameters):
    torch.nn.utils.clip_grad_value_(parameters, 0.01)


@pytest.mark.parametrize(("algorithm", "value", "clip"), [("norm", 0.05, clip_by_norm), ("value", 0.01, clip_by_value)])
def test_the_whole_gradient_is_clipped(algorithm, value, clip):
    options = {"gradient_clip_val": value, "gradient_clip_algorithm": algorithm}
    _, _, weights = trained("2 uneven", "half unknown", **options)
    gradients, _, after = by_hand(CASES["half unknown"][2], ("unknown",), before_step=clip)
    assert all(g.norm() > 0.05 and g.abs().max() > 0.01 for g in gradients)
    assert (weights - after).norm() <= 1e-12 * after.norm()


class Regularised(BinaryClassifier):
    """A user's module that adds to the loss of a batch, and looks at gradients without calling the base."""

    def training_step(self, batch, batch_idx):
        outputs = super().training_step(batch, batch_idx)
        return outputs | {"loss": outputs["loss"] + 0.1 * sum(p.square().sum() for p in self.parameters())}

    def on_before_optimizer_step(self, optimizer):
        pass


def test_what_is_added_to_the_loss_counts_once_a_step():
    classifier = Regularised(
        a_classifier().model, BCEWithLogitsLoss(ignore_index=NAN), LABELS, partial(torch.optim.SGD, **RATE), metrics=[]
    )
    trainer = a_trainer(precision="64-true", accumulate_grad_batches=2)
    trainer.fit(classifier, batches_of("2 uneven", 0, samples(("unknown",), torch.float64)))

    def decay(parameters):
        for p in parameters:
            p.grad += 0.2 * p.detach()

    _, _, after = by_hand(CASES["half unknown"][2], ("unknown",), before_step=decay)
    assert (flat(classifier.model.parameters()) - after).norm() <= 1e-12 * after.norm()


def test_each_group_of_parameters_keeps_its_rate():
    def groups(parameters):
        first, *others = parameters
        return torch.optim.SGD([{"params": [first], "lr": 0.05}, {"params": others, "weight_decay": 0.1}], **RATE)

    classifier = a_classifier(BCEWithLogitsLoss(ignore_index=NAN))
    classifier.configure_optimizers = lambda: groups(list(classifier.parameters()))
    _, _, weights = trained("2 uneven", "half unknown", classifier=classifier)
    _, _, after = by_hand(CASES["half unknown"][2], ("unknown",), optimizer=lambda p: groups(list(p)))
    assert (weights - after).norm() <= 1e-12 * after.norm()


def test_averaged_weights_are_those_of_one_batch():
    averaged = []
    for cut in ("64", "2 uneven"):
        average = StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1, annealing_epochs=1)
        averaged.append(trained(cut, "half unknown", "64-true", 0, average)[2])
    assert (averaged[0] - averaged[1]).norm() <= 1e-12 * averaged[0].norm()


def test_a_moving_average_is_that_of_one_batch():
    callbacks = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging", reason="since lightning 2.6")
    averaged = []
    for cut in ("64", "2 uneven"):
        averaged.append(trained(cut, "half unknown", "64-true", 0, callbacks.EMAWeightAveraging(decay=0.5))[2])
    assert (averaged[0] - averaged[1]).norm() <= 1e-12 * averaged[0].norm()
    assert (averaged[0] - trained("64", "half unknown")[2]).norm() > 1e-3  # the average was taken over


@pytest.mark.parametrize("cut", ["64", "4 of 16", "2 uneven"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_keeps_the_gradient_to_its_own(precision, cut):
    if precision == "16-mixed":  # which Lightning has for GPUs; the arithmetic is that of any device
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**12))
        found, shown, weights = trained(cut, "half unknown", None, plugins=[plugin])
    else:
        found, shown, weights = trained(cut, "half unknown", precision)
    gradients, losses, after = by_hand(CASES["half unknown"][2], ("unknown",))
    tolerance = 4 * torch.finfo(torch.bfloat16 if precision == "bf16-mixed" else torch.float16).eps
    assert shown == pytest.approx(losses, rel=tolerance)
    for gradient, right in zip(found, gradients, strict=True):  # rounding may turn a unit on or off
        assert (gradient - right).norm() <= 0.1 * right.norm()
    assert (weights - after).norm() <= tolerance * after.norm()


class ByHand(BinaryClassifier):
    """A user's own loop."""

    def __init__(self, **options):
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)["loss"]
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def test_a_loop_of_ones_own_is_left_alone():
    loss, options = BCEWithLogitsLoss(ignore_index=NAN), {"num_labels": LABELS, "metrics": []}
    classifier = ByHand(model=a_classifier().model, loss=loss, optimizer=partial(torch.optim.SGD, **RATE), **options)
    watch = Gradients()
    a_trainer(watch, precision="64-true").fit(classifier, batches_of("64", 0, samples(("unknown",), torch.float64)))
    _, losses, after = by_hand(CASES["half unknown"][2], ("unknown",))
    assert (flat(classifier.model.parameters()) - after).norm() <= 1e-12 * after.norm()
    assert watch.shown == pytest.approx(losses, rel=1e-6)


# -- nothing to learn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [False, True], ids=["", "GradScaler"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_of_which_nothing_is_known_moves_nothing(optimizer, scaled):
    if "fused" in optimizer and scaled:
        pytest.skip("A GradScaler has a fused optimizer step on zeros.")
    watch = Unknown()
    plugins = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0))] if scaled else []
    classifier = a_classifier(BCEWithLogitsLoss(ignore_index=NAN), OPTIMIZERS[optimizer])
    rows = with_nothing_known([2, 3, 4])  # the second step, and half of the third
    trainer = a_trainer(watch, plugins=plugins, max_epochs=1, accumulate_grad_batches=2)
    trainer.fit(classifier, batches_of("4 of 16", 0, rows))
    assert watch.moved == [True, False, True, True, True]
    assert watch.shown[1] == 0 and all(0 < loss < 2 for loss in watch.shown[:1] + watch.shown[2:])
    assert all(p.isfinite().all() for p in classifier.parameters())
    if scaled:
        assert plugins[0].scaler.get_scale() == 4.0  # nothing went wrong, so it does not back off


def fit_without_labels(rank, known):
    as_a_rank(rank)
    watch, gradients = Unknown(), Gradients()
    classifier = a_classifier(BCEWithLogitsLoss(ignore_index=NAN), OPTIMIZERS["AdamW"])
    rows = with_nothing_known([batch for batch in range(10) if not known[rank][batch]])
    options = {"strategy": "ddp", "devices": 2, "plugins": [TorchElasticEnvironment()]}
    options |= {"max_epochs": 1, "accumulate_grad_batches": 2, "use_distributed_sampler": False}
    a_trainer(watch, gradients, **options).fit(classifier, batches_of("4 of 16", 0, rows))
    return watch.moved, gradients.found, flat(classifier.parameters())


def test_a_step_is_taken_if_any_rank_knows_something(on_two_ranks):
    # By batch: both ranks; none; the second only; the first only; its second batch only.
    known = [[1, 1, 0, 0, 0, 0, 1, 1, 0, 1], [1, 1, 0, 0, 1, 1, 0, 0, 0, 0]]
    one, other = on_two_ranks(fit_without_labels, known)
    assert one[0] == other[0] == [True, False, True, True, True]
    assert torch.equal(one[2], other[2]) and one[2].isfinite().all()
    rows, net = samples(), a_classifier().model
    first = torch.arange(32)
    F.binary_cross_entropy_with_logits(net(rows["inputs"][first]), rows["target"][first]).backward()
    right = flat(p.grad for p in net.parameters())  # both ranks have the same rows
    assert (one[1][0] - right).norm() <= 1e-6 * right.norm()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("case", ["plain", "half unknown", "ranking"])
def test_a_window_does_not_wait_for_the_device(case, fused):
    if case != "plain" and not fused:
        pytest.skip("Where labels may be unknown the host asks once a step, unless the optimizer is fused.")
    meta = {"device": "meta", "requires_grad": True}
    logits, weights = torch.zeros(7, LABELS, **meta), torch.zeros(5, **meta)
    loss, window = CASES[case][0](), Window()
    optimizer = torch.optim.AdamW([weights], fused=fused)
    target = torch.zeros(7, LABELS, device="meta")
    for _ in range(2):  # a tensor on meta has no value: to look at one raises
        sums = loss.sums(logits + weights.sum(), target)
        window.note(loss, sums.detach(), target, None)
        window.weigh(sums.mean() / 2, 2, lambda value: value).backward()
    window.close(2, lambda value: value, [optimizer])
    window.skip_if_empty(optimizer, scaled=False)
    assert window.loss().is_meta and weights.grad.is_meta
    with pytest.raises(RuntimeError):
        bool(window.loss() == 0)


# -- what cannot be exact ---------------------------------------------------------------------------------------------


def test_a_loss_of_the_whole_batch_says_so_once(recwarn):
    batches = batches_of("4 of 16", 0, samples())
    for loss in (DiceLoss(), BCEWithLogitsLoss() + DiceLoss()):
        classifier = a_classifier(loss)
        with pytest.warns(UserWarning, match="^DiceLoss looks at all samples of a batch together"):
            a_trainer(accumulate_grad_batches=2).fit(classifier, batches)
        a_trainer(accumulate_grad_batches=2).fit(classifier, batches)
    a_trainer().fit(a_classifier(DiceLoss()), batches)  # one batch is one step
    a_trainer(accumulate_grad_batches=2).fit(a_classifier(DiceLoss(batch=False)), batches)


class Relabelled(BCEWithLogitsLoss):
    """A user's loss of which nobody knows what it looks at."""

    def context(self, logits, target, valid):
        return target.round(), None


def test_a_loss_with_a_context_says_whether_it_looks_at_other_samples():
    assert Relabelled().couples_samples
    assert GHMCLoss().couples_samples and LargeLossBCELoss().couples_samples
    assert not BCEWithLogitsLoss().couples_samples
    splc = SPLCLoss(change_epoch=1)
    splc.start_epoch(5)
    logits, target = 3 * torch.randn(33, LABELS).double(), (torch.rand(33, LABELS) > 0.7).double()
    target[torch.rand(33, LABELS) > 0.7] = NAN
    for loss in (splc, PartialLabelBCELoss(ignore_index=NAN), DistributionBalancedLoss(counts=[5, 9, 2], total=33)):
        labels = target if loss.ignore_index is not None else target.nan_to_num(0.0)
        whole = loss.sums(logits, labels)
        halves = loss.sums(logits[:7], labels[:7]).merge(loss.sums(logits[7:], labels[7:]))
        assert not loss.couples_samples
        assert_close(halves, whole, rtol=1e-12, atol=0)


def test_terms_that_count_differently_are_exact_only_where_all_is_known():  # as the docstring says
    mixed = BCEWithLogitsLoss(ignore_index=NAN) + ZLPRLoss(ignore_index=NAN)
    batches = batches_of("2 uneven", 0, samples(("unknown",), torch.float64))
    watch = Gradients()
    a_trainer(watch, precision="64-true", accumulate_grad_batches=2).fit(a_classifier(mixed), batches)
    whole = batches_of("64", 0, samples(("unknown",), torch.float64))
    right = Gradients()
    a_trainer(right, precision="64-true").fit(a_classifier(mixed), whole)
    error = (watch.found[0] - right.found[0]).norm() / right.found[0].norm()
    assert 1e-6 < error < 0.1
