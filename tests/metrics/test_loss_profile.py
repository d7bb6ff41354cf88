"""LossProfile: every element in its bin, the gradient of the loss itself, and no trace left in the loss."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lightning_bce import (
    BCELoss,
    BCEWithLogitsLoss,
    BinaryLoss,
    DiceLoss,
    FocalLoss,
    GHMCLoss,
    LossProfile,
    PairwiseLoss,
    SPLCLoss,
    ZLPRLoss,
)
from lightning_bce.engine import reason_against
from lightning_bce.metrics import hard_shares, losses_and_gradients, summed

LABELS, BINS = 3, 20


class Noisy(BinaryLoss):
    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)

    def elementwise(self, logits, target):
        return self.dropout((logits - target + torch.rand(())).square())


def batch(rows=33, labels=LABELS, dtype=torch.float64):
    shape = (rows, labels) if labels else (rows,)
    return 4 * torch.randn(shape, dtype=dtype), torch.randint(0, 2, shape)


def profiled(loss, *parts, labels=LABELS, **options):
    profile = LossProfile(loss, labels, **options)
    for part in parts:
        profile.update(*part)
    return profile.compute()


def flat(result):
    """Every tensor of a result."""
    return [*result.hardness, *(result.distribution or []), result.gradient]


def by_hand(logits, target, weight, valid):
    """Everything of BCE with a pos_weight of 3, one element after another."""
    hardness = torch.zeros(3, 2, BINS, dtype=torch.float64)
    edges = [0.0, *(10 ** (k / 16 - 9) for k in range(193)), math.inf]
    distribution = torch.zeros(2, 2, 194, dtype=torch.float64)
    gradient = torch.zeros(LABELS, 2, dtype=torch.float64)
    for i, j in valid.nonzero().tolist():
        x, side, factor = logits[i, j].item(), int(target[i, j]), weight[i].item()
        p = 1 / (1 + math.exp(-x))
        p_t, factor = (p, 3 * factor) if side else (1 - p, factor)
        loss, slope = -math.log(p_t) * factor, (p - side) * factor
        at = int(p_t * BINS)
        size = next(d for d in range(194) if edges[d] <= loss < edges[d + 1])
        hardness[:, side, at] += torch.tensor([1, loss, abs(slope)], dtype=torch.float64)
        distribution[:, side, size] += torch.tensor([1, loss], dtype=torch.float64)
        gradient[j, side] += slope
    return [hardness[0].long(), *hardness[1:], distribution[0].long(), distribution[1], gradient]


def test_every_element_is_in_its_bin(monkeypatch):
    logits, target = batch()
    weight, mask = torch.rand(33, dtype=torch.float64), torch.rand(33, LABELS) > 0.3
    expected = by_hand(logits, target, weight, mask)
    for size in (7, 2**16):  # in pieces, and at once
        monkeypatch.setattr(summed, "CHUNK", size)
        profile = LossProfile(BCEWithLogitsLoss(pos_weight=3.0), LABELS)
        profile.update(logits, target, weight, mask=mask)
        found = flat(profile.compute())
        assert_close([f for i, f in enumerate(found) if i not in (0, 4)], expected)


def test_the_bins_begin_and_end_where_they_should():
    logits = torch.tensor([0.0, -200.0, 200.0, -1e4, torch.nan])
    result = profiled(BCEWithLogitsLoss(), (logits, torch.ones(5)), labels=1)
    assert result.hardness.count[1].tolist() == [3] + [0] * 9 + [1] + [0] * 8 + [1]  # 0.5 is easy, 1 in the last
    assert result.hardness.loss[1, 0].isnan() and not result.hardness.loss[1, 1:].isnan().any()
    assert result.hardness.edges[10] == 0.5 and result.hardness.edges[-1] == 1
    count, edges = result.distribution.count[1], result.distribution.edges
    assert edges[0] == 0 and edges[-1] == torch.inf
    assert_close(edges[[1, 17, -2]].tolist(), [1e-9, 1e-8, 1e3])
    assert count[0] == 1 and count[-1] == 2 and count.sum() == 5  # e^-200 and the two beyond 1,000 nats
    assert len(edges) == len(count) + 1
    assert_close(edges[1:-1], torch.logspace(-9, 3, 193, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_target_of_one_half_is_a_negative():
    result = profiled(BCEWithLogitsLoss(), (torch.tensor([-1.0, 1.0]), torch.full((2,), 0.5)), labels=1, bins=2)
    assert result.hardness.count.tolist() == [[1, 1], [0, 0]]
    assert_close(result.gradient[0].tolist(), [0.0, 0.0])
    assert result.distribution.count.sum(1).tolist() == [2, 0]


def test_the_cumulative_loss_is_that_of_sorted_elements():
    logits, target = batch(2049)
    loss = FocalLoss(gamma=2.0)
    count, total = profiled(loss, (logits, target)).distribution[1:]
    losses = loss.losses(logits, target)
    for side in (0, 1):
        ordered = losses[target == side].sort().values
        exact = ordered.cumsum(0) / ordered.sum()
        at, curve = count[side].cumsum(0), total[side].cumsum(0) / total[side].sum()
        assert_close(curve[at > 0], exact[at[at > 0] - 1])
        between = np.interp(np.arange(1, len(exact) + 1), [0, *at.tolist()], [0, *curve.tolist()])
        assert np.abs(between - exact.numpy()).max() < 0.004  # losses of a bin differ by 15 %


@pytest.mark.parametrize(
    "loss",
    [
        FocalLoss(gamma=1.5, alpha=0.25, class_weight=[1.0, 5.0, 0.2]),
        BCELoss(),
        0.5 * BCEWithLogitsLoss() + FocalLoss(),
        GHMCLoss(momentum=0),
        ZLPRLoss(),
        DiceLoss(),
        PairwiseLoss(),
        BCEWithLogitsLoss() + ZLPRLoss(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_the_gradient_is_that_of_the_sums(loss, monkeypatch):
    monkeypatch.setattr(summed, "CHUNK", 7)
    loss.eval()
    logits, target = batch()
    x = logits.clone().requires_grad_()
    loss.sums(x if loss.input_space == "logits" else x.sigmoid(), target).loss.sum().backward()
    if type(loss).__name__ == "CombinedLoss" and not loss.num_rows(LABELS) == LABELS:
        # The terms' counts are those of a piece, in which each term is expressed per element.
        monkeypatch.setattr(summed, "CHUNK", 2**16)
    by_label = torch.stack([torch.where(target == side, x.grad, 0.0).sum(0) for side in (0, 1)], -1)
    result = profiled(loss, (logits, target))
    assert_close(result.gradient, by_label)
    assert_close(result.hardness.gradient.sum(1), torch.stack([x.grad[target == s].abs().sum() for s in (0, 1)]))
    assert_close(losses_and_gradients(loss, logits, target)[1], x.grad)


def test_a_loss_of_rows_has_no_loss_of_an_element():
    logits, target = batch()
    for loss in (ZLPRLoss(), BCEWithLogitsLoss() + DiceLoss()):
        result = profiled(loss, (logits, target))
        assert result.distribution is None and result.hardness.loss.isnan().all()
        assert result.hardness.count.sum() == logits.numel() and result.hardness.gradient.sum() > 0
        losses, gradient = losses_and_gradients(loss, logits, target)
        assert losses is None and gradient.shape == logits.shape


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.randoms())
@settings(max_examples=20, deadline=None)
def test_splits_and_merges_in_any_order_give_the_same(sizes, random):
    parts = [batch(size) for size in sizes]
    whole = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    profiles = []
    for part in parts:
        profiles.append(LossProfile(FocalLoss(), LABELS))
        profiles[-1].update(*part)
    random.shuffle(profiles)
    for other in profiles[1:]:
        profiles[0].merge_state(other)
    assert_close(flat(profiles[0].compute()), flat(profiled(FocalLoss(), whole)))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_it_works_without_a_graph_and_with_half_precision(guard, dtype):
    (logits, target), loss = batch(dtype=dtype), BCEWithLogitsLoss(class_weight=[1.0, 2.0, 3.0])
    expected = profiled(loss, (logits.float(), target))
    profile = LossProfile(loss, LABELS)
    with guard():
        loss.class_weight = loss.class_weight.clone()  # as `.to(device)` leaves it there
        profile.update(logits.clone(), target.clone(), torch.ones(33), mask=torch.ones(33, dtype=torch.bool))
        profile.reset()
        profile.update(logits.clone(), target.clone())
    profile.to(torch.bfloat16)
    profile.update(logits[:0], target[:0])
    assert_close(flat(profile.compute()), flat(expected))


def test_the_loss_is_left_as_it_was():
    part = batch()
    for loss in (GHMCLoss(), SPLCLoss(change_epoch=0), Noisy()):
        loss.train()
        loss.sums(*part)
        before, state = copy.deepcopy(loss.state_dict()), torch.get_rng_state()
        modes = [module.training for module in loss.modules()]
        profiled(loss, part)
        assert_close(loss.state_dict(), before, rtol=0, atol=0)
        assert torch.equal(torch.get_rng_state(), state)
        assert [module.training for module in loss.modules()] == modes
    learnt = SPLCLoss(change_epoch=0)
    assert_close(flat(profiled(learnt, part)), flat(profiled(learnt.eval(), part)))
    with pytest.raises(ValueError, match="they must be equal"):
        losses_and_gradients(learnt.train(), part[0], part[1][:1])
    assert learnt.training


def test_unknown_labels_count_nowhere():
    logits, target = batch()
    known = torch.rand(33, LABELS) > 0.4
    expected = LossProfile(BCEWithLogitsLoss(), LABELS)
    expected.update(logits, target, mask=known)
    unknown = torch.where(known, target, -1), torch.where(known, logits, torch.nan)
    for loss in (BCEWithLogitsLoss(ignore_index=-1), FocalLoss(gamma=0.0, ignore_index=-1)):
        assert_close(flat(profiled(loss, unknown[::-1])), flat(expected.compute()))
    probabilities = profiled(BCELoss(ignore_index=-1), unknown[::-1])
    assert not any(part.isnan().any() for part in flat(probabilities))


@pytest.mark.parametrize("loss", [FocalLoss(gamma=1.5), ZLPRLoss(), BCEWithLogitsLoss() + ZLPRLoss()], ids=type)
def test_losses_and_gradients_carry_weight_and_mask(loss):
    logits, target = batch()
    weight, known = torch.rand(33, dtype=torch.float64), torch.rand(33, LABELS) > 0.3
    x = logits.clone().requires_grad_()
    loss.sums(x, target, weight, mask=known).loss.sum().backward()
    losses, gradient = losses_and_gradients(loss, logits, target, weight, mask=known)
    assert_close(gradient, x.grad)
    assert gradient[~known].eq(0).all()
    if losses is not None:
        assert_close(losses, torch.where(known, weight[:, None] * loss.losses(logits, target), 0.0))


class Level(BinaryLoss):
    """The same for every element, whatever the logits."""

    def __init__(self, level):
        super().__init__()
        self.level = level

    def elementwise(self, logits, target):
        return self.level.expand(logits.shape).to(logits.dtype)


@pytest.mark.parametrize("learnt", [False, True])
def test_what_ignores_the_logits_has_a_gradient_of_0(learnt):
    level = torch.nn.Parameter(torch.tensor(2.0), requires_grad=learnt)
    losses, gradient = losses_and_gradients(Level(level), *batch(7))
    assert losses.eq(2).all() and gradient.shape == (7, LABELS) and gradient.eq(0).all()


def test_a_single_number_is_a_batch_of_one():
    x, y, w, known = torch.tensor(0.3), torch.tensor(1), torch.tensor(2.0), torch.tensor(True)
    for arguments in ((x, y), (x, y, w)):
        for options in ({}, {"mask": known}, {"mask": ~known}):
            rows = [t[None] for t in arguments], {name: t[None] for name, t in options.items()}
            one, expected = (LossProfile(BCEWithLogitsLoss()) for _ in range(2))
            one.update(*arguments, **options)
            expected.update(*rows[0], **rows[1])
            assert_close(flat(one.compute()), flat(expected.compute()))
            found = losses_and_gradients(BCEWithLogitsLoss(), *arguments, **options)
            for part, of_rows in zip(
                found, losses_and_gradients(BCEWithLogitsLoss(), *rows[0], **rows[1]), strict=True
            ):
                assert part.shape == () and part == of_rows[0]


class Below(BinaryLoss):
    """How far below the highest of its batch each one is, of which nothing has none."""

    def elementwise(self, logits, target):
        return logits.max() - logits


@pytest.mark.parametrize("shape", [(0, LABELS), (5, LABELS, 0)])
def test_a_batch_of_nothing_counts_nothing(shape):
    logits, target = torch.zeros(shape, dtype=torch.float16), torch.zeros(shape)
    for loss in (BCEWithLogitsLoss(), DiceLoss(), Below()):
        assert profiled(loss, (logits, target)).hardness.count.sum() == 0
        losses, gradient = losses_and_gradients(loss, logits, target)
        assert gradient.shape == shape and gradient.dtype == torch.float32
        assert losses is None if loss.per_element is False else losses.shape == shape


def test_positions_belong_to_their_label():
    logits, target = 3 * torch.randn(5, LABELS, 2, 3), torch.randint(0, 2, (5, LABELS, 2, 3))
    rows = [t.movedim(1, -1).reshape(-1, LABELS) for t in (logits, target)]
    assert_close(flat(profiled(BCEWithLogitsLoss(), (logits, target))), flat(profiled(BCEWithLogitsLoss(), rows)))


def test_a_constant_for_each_row_stays_with_its_row(monkeypatch):
    monkeypatch.setattr(summed, "CHUNK", 7)
    for rows in (2, 33):
        logits, target = batch(rows, 33)  # of which a piece holds one row
        weight = torch.rand(rows, 1)
        passed = LossProfile(BCEWithLogitsLoss(), 33)
        passed.update(logits, target, weight)
        constant = profiled(BCEWithLogitsLoss(weight=weight), (logits, target), labels=33)
        assert_close(flat(constant), flat(passed.compute()))


def test_one_row_beside_many_is_not_one_value_for_all(monkeypatch):
    monkeypatch.setattr(summed, "CHUNK", 1)
    logits, target = batch(4)
    weight = torch.rand(1, LABELS)
    assert_close(
        losses_and_gradients(BCEWithLogitsLoss(), logits, target, weight)[0],
        BCEWithLogitsLoss().losses(logits, target, weight),
    )


@pytest.mark.parametrize("coupled", [False, True])
def test_a_large_batch_is_asked_in_pieces_unless_its_samples_are_coupled(coupled, monkeypatch):
    monkeypatch.setattr(summed, "CHUNK", 7)
    rows = []

    class Asked(Noisy):
        couples_samples = coupled

        def elementwise(self, logits, target):
            rows.append(len(logits))
            return (logits - target).square()

    losses, _ = losses_and_gradients(Asked(), *batch())
    assert losses.shape == (33, LABELS)
    assert rows == ([33] if coupled else [9, 9, 9, 6])  # the most that fit into four times 7 elements


@pytest.mark.skipif(reason_against("cpu") is not None, reason=str(reason_against("cpu")))
def test_a_generated_kernel_gives_the_same():
    logits, target = batch(dtype=torch.float32)
    by_formula = profiled(FocalLoss(fused=False, ignore_index=-1), (logits, target))
    profile = LossProfile(FocalLoss(fused=True, ignore_index=-1), LABELS)
    with torch.inference_mode():
        profile.update(logits.clone(), target.clone())
    assert_close(flat(profile.compute()), flat(by_formula), rtol=1e-5, atol=1e-6)


def test_shares_of_the_hard_ones():
    logits, target = batch()
    profile = LossProfile(BCEWithLogitsLoss(), LABELS)
    profile.update(logits, target)
    losses, gradient = losses_and_gradients(BCEWithLogitsLoss(), logits, target)
    hard = torch.where(target == 1, logits, -logits) < 0
    expected = [(part * hard).sum() / part.sum() for part in (torch.ones_like(losses), losses, gradient.abs())]
    assert_close(list(profile.shares().values()), expected)
    assert list(profile.shares()) == ["hard_share", "hard_share_loss", "hard_share_gradient"]
    nothing = profiled(BCEWithLogitsLoss(), (logits[:0], target[:0]))
    assert all(share.isnan() for share in hard_shares(nothing.hardness).values())


def test_update_never_waits_for_the_device():
    profile = LossProfile(FocalLoss(ignore_index=-1), LABELS).to("meta")  # whose tensors have no value to wait for
    logits, target = (t.to("meta") for t in batch(dtype=torch.float32))
    profile.update(logits, target, mask=torch.ones(33, dtype=torch.bool, device="meta"))
    assert profile.count.is_meta
    result = profile.compute()
    assert result.hardness.edges.is_meta and result.distribution.edges.is_meta


def test_what_cannot_be_profiled_is_refused():
    with pytest.raises(TypeError, match="`loss` is Linear; a BinaryLoss was expected"):
        LossProfile(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="`num_labels`"):
        LossProfile(BCEWithLogitsLoss(), 0)
    with pytest.raises(ValueError, match="`bins`"):
        LossProfile(BCEWithLogitsLoss(), bins=0)
    with pytest.raises(ValueError, match="`bins` is 3; an even number"):
        LossProfile(BCEWithLogitsLoss(), bins=3)
    with pytest.raises(ValueError, match="3 label"):
        profiled(BCEWithLogitsLoss(), batch(), labels=2)
    with pytest.raises(ValueError, match="`mask` has shape"):
        LossProfile(BCEWithLogitsLoss(), LABELS).update(*batch(), mask=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="`weight` has shape"):
        LossProfile(BCEWithLogitsLoss(), LABELS).update(*batch(), torch.ones(2))
    with pytest.raises(ValueError, match="`weight` has shape"):
        losses_and_gradients(BCEWithLogitsLoss(), torch.tensor(0.3), torch.tensor(1), torch.ones(2))
    with pytest.raises(ValueError, match="not the same quantity"):
        LossProfile(FocalLoss()).merge_state(LossProfile(BCEWithLogitsLoss()))


def test_the_plot_says_what_it_shows():
    pytest.importorskip("matplotlib").use("agg")
    profile = LossProfile(ZLPRLoss(), LABELS)
    profile.update(*batch())
    figure, ax = profile.plot()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("probability of the true side, p_t", "share in the bin (%)")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["examples", "gradient"]
    assert profile.plot(ax=ax)[0] is figure
    import matplotlib.pyplot as plt

    plt.close(figure)


def test_the_plot_shows_the_share_of_each_bin():
    pytest.importorskip("matplotlib").use("agg")
    import matplotlib.pyplot as plt

    profile = LossProfile(FocalLoss(), LABELS, bins=4)
    profile.update(*batch())
    shown = profile.compute()
    profile.update(*batch())  # what is drawn is what was given
    figure, ax = plt.subplots()
    ax.set(xlim=(-9, 9), ylim=(-9, 90))
    assert profile.plot(shown, ax) == (figure, ax)
    curves, (middle,) = ax.patches, ax.get_lines()
    assert [curve.get_label() for curve in curves] == ["examples", "loss", "gradient"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["examples", "loss", "gradient"]
    for curve, part in zip(curves, shown.hardness[1:], strict=True):
        values, edges, _ = curve.get_data()
        assert edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
        assert_close(values.tolist(), (100 * part.double().sum(0) / part.sum()).tolist())
        assert sum(values) == pytest.approx(100)
    assert (ax.get_title(), ax.get_xlim(), ax.get_ylim()) == ("FocalLoss", (0, 1), (0, 90))
    # In print without colours the curves are told apart too, and from the line that parts hard from easy.
    assert len({str(curve.get_linestyle()) for curve in curves}) == 3
    assert list(middle.get_xdata()) == [0.5, 0.5] and middle.get_color() == "0.7"
    assert all(middle.get_zorder() < c.get_zorder() and middle.get_linewidth() < c.get_linewidth() for c in curves)
    plt.close(figure)
