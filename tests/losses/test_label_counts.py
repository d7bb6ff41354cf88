"""Counts of labels: over batches, with weights, soft and unknown labels, and what a loss makes of them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import yaml
from torch import Tensor
from torch.testing import assert_close

from lightning_bce import (
    AsymmetricLoss,
    BCEWithLogitsLoss,
    BinaryLoss,
    DiceLoss,
    DistributionBalancedLoss,
    FocalLoss,
    LabelCounts,
    LogitAdjustedLoss,
    MarginBCELoss,
    PolyLoss,
    ZLPRLoss,
    effective_number_weight,
    inverse_frequency_weight,
    pos_weight_from_counts,
)
from lightning_bce.spec import build

NAN = math.nan


def labels(*shape: int) -> Tensor:
    return (torch.rand(shape) < 0.3).float()


# -- counting ---------------------------------------------------------------------------------------------------------


def test_counts_are_those_of_a_loop_over_the_elements():
    target, weight = torch.rand(33, 7).double(), torch.rand(33, 7).double()
    target[torch.rand(33, 7) < 0.2] = NAN
    mask = torch.rand(33, 7) < 0.8
    counts = LabelCounts.of(target, weight, mask=mask)
    for c in range(7):
        rows = [i for i in range(33) if mask[i, c] and not target[i, c].isnan()]
        positive = sum(weight[i, c] * target[i, c] for i in rows)
        assert counts.total[c] == len(rows)
        share = positive / sum(weight[i, c] for i in rows)
        assert_close(counts.positives[c], len(rows) * share)
        assert_close(counts.prior[c], share)


def test_counts_of_parts_add_up_to_the_counts_of_the_whole():
    target, weight = labels(257, 3), torch.rand(257)
    whole = LabelCounts.of(target, weight)
    first, rest = (LabelCounts.of(target[part], weight[part]) for part in (slice(7), slice(7, None)))
    assert_close((first + rest).positives, whole.positives)
    assert (first + rest).total.tolist() == [257.0] * 3
    assert LabelCounts.from_plain(whole.plain()).plain() == whole.plain()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_scale_of_the_weights_changes_nothing(scale):
    target, weight = labels(257), torch.rand(257).double()
    assert_close(LabelCounts.of(target, scale * weight).positives, LabelCounts.of(target, weight).positives)
    assert LabelCounts.of(target, scale * torch.ones(257)).positives.item() == pytest.approx(target.sum().item())


def test_a_label_without_one_side_has_the_prior_of_half_a_sample_and_an_unknown_one_no_opinion():
    target = torch.tensor([[0.0, 1.0, NAN], [0.0, 1.0, NAN]])
    assert LabelCounts.of(target).prior.tolist() == [0.25, 0.75, 0.5]
    assert LabelCounts.of(target).positives.tolist() == [0.0, 2.0, 0.5]


@pytest.mark.parametrize("shape", [(33,), (33, 1), (33, 3), (33, 3, 7, 5)])
def test_labels_are_in_dimension_one(shape):
    target = labels(*shape)
    counts = LabelCounts.of(target)
    by_label = target.reshape(33, -1) if len(shape) < 3 else target.transpose(0, 1).reshape(3, -1).T
    assert_close(counts.positives, by_label.sum(0).double())
    assert counts.total.tolist() == [float(len(by_label))] * counts.num_labels


def test_a_single_label_is_a_sample_and_empty_sets_have_their_labels():
    assert LabelCounts.of(torch.tensor(1.0), torch.tensor(0.3)).plain() == {
        "positives": [pytest.approx(0.3)],
        "negatives": [0.0],
        "known": [1.0],
        "positions": 0,
    }
    for shape, num_labels in (((0,), 1), ((0, 3), 3), ((7, 3, 0), 3), ((0, 3, 5), 3)):
        counts = LabelCounts.of(torch.zeros(shape))
        assert counts.plain()["known"] == [0.0] * num_labels
        assert counts.prior.tolist() == [0.5] * num_labels


def test_the_positions_behind_the_labels_are_remembered():
    masks = LabelCounts.of(labels(7, 3, 5, 5))
    assert [LabelCounts.of(labels(*shape)).positions for shape in ((7,), (7, 3), (7, 3, 5))] == [0, 0, 1]
    assert masks.positions == (masks + masks).positions == LabelCounts.from_plain(masks.plain()).positions == 2
    assert LabelCounts(1, 3).positions == 0


def test_counts_are_float64_whatever_they_are_given_as():
    for given in ([4, 5], torch.tensor([4, 5]), torch.tensor([4.0, 5.0])):
        counts = LabelCounts(given, given, given)
        assert counts.total.dtype == counts.positives.dtype == counts.prior.dtype == torch.float64


def test_a_label_that_always_occurs_has_as_many_positives_as_there_are():
    assert 0.3 * (7 / 0.3) > 7  # so that this test can fail
    counts = LabelCounts(0.3, 0, known=7)
    assert counts.positives.tolist() == counts.total.tolist() == [7.0]
    assert BCEWithLogitsLoss(pos_weight="auto").resolve(counts) == {"pos_weight": 1 / 13}


def test_a_target_that_is_no_label_is_refused():
    with pytest.raises(ValueError, match=r"-1 \(2 times\)"):
        LabelCounts.of(torch.tensor([0.0, 1.0, -1.0, -1.0]))


# -- what a loss makes of them ----------------------------------------------------------------------------------------

COUNTS = LabelCounts([200.0, 40.0, 3.0], [57.0, 217.0, 254.0])
POSITIVES, TOTAL = COUNTS.positives, COUNTS.total
SQRT = {"rule": "ratio", "power": 0.5, "cap": 2.0}
ODDS = pos_weight_from_counts(POSITIVES, TOTAL)
MILD = pos_weight_from_counts(POSITIVES, TOTAL, power=0.5, cap=2.0)
EFFECTIVE = (1 - 0.99 ** (TOTAL - POSITIVES)) / (1 - 0.99**POSITIVES)
LOSSES = [
    (BCEWithLogitsLoss, {"pos_weight": "auto"}, {"pos_weight": ODDS}),
    (BCEWithLogitsLoss, {"pos_weight": "sqrt"}, {"pos_weight": ODDS.sqrt()}),
    (BCEWithLogitsLoss, {"pos_weight": SQRT}, {"pos_weight": MILD}),
    (BCEWithLogitsLoss, {"pos_weight": {"rule": "effective_number", "beta": 0.99}}, {"pos_weight": EFFECTIVE}),
    (FocalLoss, {"alpha": "auto"}, {"alpha": 1 - POSITIVES / TOTAL}),
    (FocalLoss, {"alpha": SQRT}, {"alpha": MILD / (1 + MILD)}),
    (FocalLoss, {"alpha": SQRT, "soft_targets": "two_term"}, {"alpha": MILD / (1 + MILD), "soft_targets": "two_term"}),
    (PolyLoss, {"alpha": "auto"}, {"alpha": 1 - POSITIVES / TOTAL}),
    (LogitAdjustedLoss, {"prior": "auto"}, {"prior": POSITIVES / TOTAL}),
    (MarginBCELoss, {"counts": "auto"}, {"counts": POSITIVES}),
    (DistributionBalancedLoss, {"counts": "auto"}, {"counts": POSITIVES, "total": 257}),
    (AsymmetricLoss, {"class_weight": "auto"}, {"class_weight": inverse_frequency_weight(POSITIVES)}),
    (
        DiceLoss,
        {"class_weight": {"rule": "effective_number", "beta": 0.9}},
        {"class_weight": effective_number_weight(POSITIVES, beta=0.9)},
    ),
]
NAMED = pytest.mark.parametrize(
    ("cls", "auto", "given"), LOSSES, ids=[f"{cls.__name__}-{auto}" for cls, auto, _ in LOSSES]
)


@NAMED
def test_a_resolved_loss_is_the_one_made_with_the_numbers(cls, auto, given):
    loss, expected = cls(**auto), cls(**given)
    loss.resolve(COUNTS)
    logits, target = torch.randn(33, 3, dtype=torch.float64, requires_grad=True), labels(33, 3)
    assert_close(loss(logits, target), expected(logits, target))
    gradients = [torch.autograd.grad(made(logits, target), logits)[0] for made in (loss, expected)]
    assert_close(*gradients)
    assert loss.unresolved == () and loss.resolve(COUNTS) == {}


def test_a_rule_without_options_has_those_of_its_docstring():
    effective = (1 - 0.999 ** (TOTAL - POSITIVES)) / (1 - 0.999**POSITIVES)
    for options, expected in (({}, effective), ({"cap": 2.0}, effective.clamp(max=2.0))):
        rule = {"rule": "effective_number", **options}
        found = BCEWithLogitsLoss(pos_weight=rule).resolve(COUNTS)["pos_weight"]
        assert_close(torch.tensor(found).double(), expected)
    assert effective.max() > 2  # or a cap would not be seen
    found = BCEWithLogitsLoss(class_weight="effective_number").resolve(COUNTS)["class_weight"]
    assert_close(torch.tensor(found).double(), effective_number_weight(POSITIVES, beta=0.999))


def test_the_total_may_be_named_where_the_counts_are_counted():
    loss = DistributionBalancedLoss(counts="auto", total="auto")
    assert loss.resolve(COUNTS) == DistributionBalancedLoss(counts="auto").resolve(COUNTS)


@NAMED
def test_a_resolved_loss_is_written_down_in_numbers_for_generations(cls, auto, given):
    loss = cls(**auto)
    assert build(yaml.safe_load(yaml.safe_dump(loss.spec())), BinaryLoss).unresolved == loss.unresolved != ()
    found = loss.resolve(COUNTS)
    logits, target = torch.randn(7, 3), labels(7, 3)
    for _ in range(2):
        spec = yaml.safe_load(yaml.safe_dump(loss.spec()))
        assert {name: spec["init_args"][name] for name in found} == found
        again = build(spec, BinaryLoss)
        assert again.unresolved == ()
        assert_close(again(logits, target), loss(logits, target), rtol=0, atol=0)
        loss = again


@NAMED
def test_a_loss_that_waits_for_counts_says_what_to_do(cls, auto, given):
    loss = cls(**auto, validate="off")
    for use in (loss, loss.sums, loss.losses):
        with pytest.raises(RuntimeError, match=r"waits for the training data.*loss.resolve"):
            use(torch.zeros(7, 3), torch.zeros(7, 3))


@pytest.mark.parametrize(
    "auto",
    [
        {"cls": BCEWithLogitsLoss, "pos_weight": "auto"},
        {"cls": FocalLoss, "alpha": "auto"},
        {"cls": PolyLoss, "alpha": "auto"},
    ],
    ids=lambda a: a["cls"].__name__,
)
def test_one_pass_gives_what_the_formula_gives(auto):
    options = dict(auto)
    cls = options.pop("cls")
    loss, plain = cls(**options), cls(**options, fused=False)
    for made in (loss, plain):
        made.resolve(COUNTS)
    logits, target = torch.randn(2**16, 3), labels(2**16, 3)
    assert_close(loss(logits, target), plain(logits, target))
    assert_close(loss.sums(logits, target), plain.sums(logits, target))


def test_one_label_gets_a_number_and_a_schedule_can_move_its_alpha():
    counts = LabelCounts(1.0, 3.0)
    bce, focal = BCEWithLogitsLoss(pos_weight="auto"), FocalLoss(alpha="auto")
    assert (bce.resolve(counts), focal.resolve(counts)) == ({"pos_weight": 3.0}, {"alpha": 0.75})
    focal.alpha = 0.25
    assert_close(
        focal(torch.zeros(2), torch.tensor([0, 1])), FocalLoss(alpha=0.25)(torch.zeros(2), torch.tensor([0, 1]))
    )
    for shape in ((7,), (7, 1), (7, 1, 3, 3)):
        assert bce(torch.zeros(shape), torch.ones(shape)).item() == pytest.approx(3 * math.log(2))


def test_pos_weight_of_masks_is_one_for_each_channel():
    target = labels(7, 3, 5, 3)
    loss = BCEWithLogitsLoss(pos_weight="auto")
    loss.resolve(LabelCounts.of(target))
    weight = pos_weight_from_counts(target.sum((0, 2, 3)), 7 * 5 * 3).reshape(3, 1, 1)
    logits = torch.randn(7, 3, 5, 3)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, pos_weight=weight.float())
    assert_close(loss(logits, target), expected)
    assert_close(build(loss.spec(), BinaryLoss)(logits, target), expected)


def test_terms_of_a_sum_are_resolved_and_named():
    loss = 0.5 * BCEWithLogitsLoss(pos_weight="auto") + FocalLoss(alpha=SQRT) + ZLPRLoss()
    assert loss.unresolved == ("BCEWithLogitsLoss.pos_weight", "FocalLoss.alpha")
    with pytest.raises(RuntimeError, match="pos_weight waits"):
        loss(torch.zeros(7, 3), torch.zeros(7, 3))
    assert set(loss.resolve(COUNTS)) == {"BCEWithLogitsLoss.pos_weight", "FocalLoss.alpha"}
    again = build(loss.spec(), BinaryLoss)
    logits, target = torch.randn(7, 3), labels(7, 3)
    assert_close(again(logits, target), loss(logits, target), rtol=0, atol=0)


class Renamed(BCEWithLogitsLoss):
    """A loss with an argument of another name."""

    def __init__(self, balance: str = "auto") -> None:
        super().__init__(pos_weight=balance)


def test_a_subclass_that_names_its_argument_otherwise_is_resolved_and_keeps_its_spec():
    loss = Renamed()
    loss.resolve(COUNTS)
    assert_close(loss.pos_weight, ODDS)
    assert build(loss.spec(), BinaryLoss).unresolved == ("pos_weight",)


@pytest.mark.parametrize(("cls", "argument"), [(BCEWithLogitsLoss, "pos_weight"), (FocalLoss, "alpha")])
def test_the_numbers_come_to_where_the_loss_has_moved(cls, argument):
    loss = cls(**{argument: "auto"}).to("meta")
    loss.resolve(COUNTS)
    assert getattr(loss, argument).device.type == "meta"
    assert copy.deepcopy(loss).unresolved == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BCEWithLogitsLoss(pos_weight="autom"), "'autom'; a number, a list of numbers, or a rule"),
        (
            lambda: BCEWithLogitsLoss(pos_weight="n"),
            "'auto', 'ratio', 'sqrt', 'effective_number', or {'rule': name, ...}",
        ),
        (
            lambda: BCEWithLogitsLoss(pos_weight={"rule": "ratio", "gamma": 1, "beta": 1}),
            r"with beta, gamma; its options are: power, cap\.$",
        ),
        (lambda: BCEWithLogitsLoss(pos_weight={"rule": "sqrt", "power": 1}), "its options are: cap"),
        (lambda: BCEWithLogitsLoss(pos_weight={"rule": "ratio", "power": -1}), "`power` is -1"),
        (lambda: FocalLoss(alpha={"rule": "ratio", "cap": 0}), "`cap` is 0"),
        (lambda: FocalLoss(alpha={"power": 1}), "a rule was expected"),
        (lambda: FocalLoss(alpha=[0.5, 1.5]), "`alpha` is 1.5"),
        (lambda: DiceLoss(class_weight={"rule": "effective_number", "beta": 1}), "`beta` is 1"),
        (lambda: LogitAdjustedLoss(prior="ratio"), r"was expected: 'auto', 'frequency'\.$"),
        (lambda: LogitAdjustedLoss(prior={"rule": "frequency", "cap": 1}), r"with cap; its options are: none\.$"),
        (lambda: DistributionBalancedLoss(counts="auto", total="ratio"), "`total` is 'ratio'"),
        (lambda: DistributionBalancedLoss(counts=7, total="auto"), "`total` is auto and `counts` is given"),
        (lambda: DistributionBalancedLoss(counts="auto", total=7), "leave `total` out"),
        (lambda: DistributionBalancedLoss(counts=7), r"or give counts='auto'\.$"),
        (
            lambda: BCEWithLogitsLoss(class_weight="auto").resolve(LabelCounts(1, 9)),
            r"effect. To lift its positives use `pos_",
        ),
        (lambda: FocalLoss(alpha={"rule": "effective_number", "cap": -1}), "`cap` is -1"),
        (lambda: BCEWithLogitsLoss(pos_weight={"rule": "effective_number", "cap": float("nan")}), "`cap` is nan"),
        (lambda: BCEWithLogitsLoss(pos_weight={"rule": "effective_number", "cap": 0}), "`cap` is 0"),
        (lambda: LabelCounts([1, 2], [3]), r"^`positives` has shape \(2,\), `negatives` has shape \(1,\); one number"),
        (lambda: LabelCounts([1, 2], [3, 4], [10]), r"`negatives` has shape \(2,\), `known` has shape \(1,\)"),
        (lambda: LabelCounts([[1, 2]], [[3, 4]]), r"shape \(1, 2\)"),
        (lambda: LabelCounts([], []), r"shape \(0,\)"),
        (lambda: LabelCounts(-1, 2), "`positives` must be"),
        (lambda: LabelCounts(1, [NAN]), "`negatives` must be"),
        (lambda: LabelCounts(1, 2, -3), "`known` must be"),
        (
            lambda: LabelCounts([1, 2], [3, 4]) + LabelCounts(1, 2),
            r"of 2 and of 1 label.*of the same labels were expected\.$",
        ),
        (lambda: LabelCounts.of(labels(7, 3), -torch.ones(7)), "`weight` must be"),
        (lambda: LabelCounts.of(labels(7, 3), torch.ones(3)), r"`weight` has shape \(3,\).*`weight\[None\]`"),
        (
            lambda: LabelCounts.of(labels(7, 3), mask=torch.ones(3, dtype=torch.bool)),
            r"`mask` has shape .*`mask\[None\]`",
        ),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
