"""AUC margin: loops over elements and pairs, and its variables: the saddle they reach, their steps, casts and ranks."""

import copy
import math
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from mpmath import mp, mpf
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import AUCMarginLoss, BCEWithLogitsLoss, BinaryClassifier, auc_margin_loss

NAMES = ("a", "b", "alpha")


def a_batch(labels=3, samples=33):
    logits, target = 2 * torch.randn(samples, labels, dtype=torch.float64), torch.randint(0, 2, (samples, labels))
    target[0], target[1] = 0, 1
    return logits.requires_grad_(), target


def a_loss(values, **options):
    """A loss with these variables, a list of numbers for each."""
    loss = AUCMarginLoss(num_labels=len(values[0]), **options)
    for name, numbers in zip(NAMES, values, strict=True):
        getattr(loss, name).data.copy_(torch.tensor(numbers))
    return loss


def scores(x, y, known, side):
    return [1 / (1 + math.exp(-z)) for z, label, there in zip(x, y, known, strict=True) if there and label == side]


def mean(values):
    return sum(values) / len(values)


def one_row(p, n, margin, a=None, b=None, alpha=None):
    if not p or not n:
        return 0.0
    a, b = mean(p) if a is None else a, mean(n) if b is None else b
    missed = margin + mean(n) - mean(p)
    alpha = max(0.0, missed) if alpha is None else alpha
    spread = mean([(value - a) ** 2 for value in p]) + mean([(value - b) ** 2 for value in n])
    return spread + 2 * alpha * missed - alpha**2


# -- the formula ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("given", [(), ("a",), ("b", "alpha"), NAMES], ids=str)
def test_it_is_the_papers_formula(given, margin):
    logits, target = 2 * torch.randn(33, 7, dtype=torch.float64), torch.randint(0, 2, (33, 7))
    mask, variables = torch.rand(33, 7) > 0.2, {name: torch.rand(33, dtype=torch.float64) for name in given}
    target[3], target[4] = 0, 1
    lists = [t.tolist() for t in (logits, target, mask)]
    expected = [
        one_row(*(scores(x, y, k, side) for side in (1, 0)), margin, **{n: v[i].item() for n, v in variables.items()})
        for i, (x, y, k) in enumerate(zip(*lists, strict=True))
    ]
    assert expected[3] == expected[4] == 0
    ours = auc_margin_loss(logits, target, margin=margin, mask=mask, **variables)
    assert_close(ours, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("margin", [1.0, 2.5])
def test_at_their_optimum_it_is_the_squared_margin_over_all_pairs(margin):
    logits, target = a_batch(1)
    p = logits[:, 0].sigmoid()
    pairs = (margin - p[target[:, 0] == 1][:, None] + p[target[:, 0] == 0]) ** 2
    loss = auc_margin_loss(logits.T, target.T, margin=margin).sum()
    assert_close(loss, pairs.mean())
    grads = [torch.autograd.grad(value, logits)[0] for value in (loss, pairs.mean())]
    assert_close(*grads)
    assert gradcheck(lambda x: auc_margin_loss(x.T, target.T, margin=margin), (logits,))
    assert gradgradcheck(lambda x: auc_margin_loss(x.T, target.T, margin=margin), (logits,))


def test_off_their_optimum_the_first_two_raise_it_and_the_third_takes_it_down_by_the_square():
    logits, target = (t.T for t in a_batch())
    p, positive = logits.sigmoid(), target == 1
    best = [torch.where(side, p, 0.0).sum(1) / side.sum(1) for side in (positive, ~positive)]
    best.append(1 + best[1] - best[0])
    off = torch.randn(3, 3, dtype=torch.float64)
    variables = dict(zip(NAMES, torch.stack(best) + off, strict=True))
    expected = auc_margin_loss(logits, target) + off[0] ** 2 + off[1] ** 2 - off[2] ** 2
    assert_close(auc_margin_loss(logits, target, **variables), expected)


def test_a_margin_that_is_kept_leaves_the_spread():
    target = torch.tensor([1, 1, 0, 0, 0])
    p = torch.tensor([0.9, 0.7, 0.1, 0.2, 0.3], dtype=torch.float64)
    expected = p[:2].var(correction=0) + p[2:].var(correction=0)
    assert_close(auc_margin_loss(p.logit(), target, margin=0.5), expected)
    assert auc_margin_loss(torch.tensor([90.0, 90.0, -90.0]), torch.tensor([1, 1, 0])) == pytest.approx(0, abs=1e-30)


def test_a_label_of_one_half_is_a_negative():
    logits = torch.randn(1, 5)
    soft, hard = torch.tensor([[0.51, 0.5, 0.5, 0.3, 1.0]]), torch.tensor([[1, 0, 0, 0, 1]])
    assert_close(auc_margin_loss(logits, soft), auc_margin_loss(logits, hard), rtol=0, atol=0)


def test_turning_both_sides_changes_nothing():
    logits, target = (t.T for t in a_batch())
    a, b, alpha = torch.rand(3, 3, dtype=torch.float64)
    assert_close(auc_margin_loss(-logits, 1 - target), auc_margin_loss(logits, target))
    turned = auc_margin_loss(-logits, 1 - target, a=1 - b, b=1 - a, alpha=alpha)
    assert_close(turned, auc_margin_loss(logits, target, a=a, b=b, alpha=alpha))


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("variables", [None, (0.75, 0.25, 0.5), (1.0, 0.0, 0.0)], ids=str)
def test_value_and_gradient_are_right_to_the_last_digits(exact, dtype, label, variables):
    other = -2.5 if label else 1.5  # the one element of the other side

    def reference(logit, label):
        with mp.workdps(50 + int(abs(logit))):
            x, u = (mpf(logit), mpf(other)) if label else (mpf(other), mpf(logit))
            p, n = 1 / (1 + mp.exp(-x)), 1 / (1 + mp.exp(-u))
            own = p if label else n
            rest = own * (1 - own)  # the slope of the probability
            missed = 1 + n - p
            if variables is None:  # of one pair the means leave no spread
                return missed**2, 2 * missed * rest * (-1 if label else 1), 2 * missed * rest, missed**2
            a, b, alpha = map(mpf, variables)
            value = [(p - a) ** 2, (n - b) ** 2, 2 * alpha * missed, -(alpha**2)]
            slopes = [2 * (own - (a if label else b)) * rest, 2 * alpha * rest * (-1 if label else 1)]
            return mp.fsum(value), mp.fsum(slopes), mp.fsum(map(abs, slopes)), mp.fsum(map(abs, value))

    given = {} if variables is None else {n: torch.tensor(v) for n, v in zip(NAMES, variables, strict=True)}

    def loss(logits, target):
        rows = torch.stack([logits, torch.full_like(logits, other)], -1)
        return auc_margin_loss(rows, torch.stack([target, 1 - target], -1), **given)

    # (p - a)^2 is a square of a difference: relative to its terms where a is no end of the sigmoid.
    assert exact.errors(loss, reference, label, dtype) < (2e-6 if dtype == torch.float32 else 4e-15)


# -- the variables ----------------------------------------------------------------------------------------------------


def test_the_module_is_the_function_at_its_variables_with_none_below_zero():
    logits, target = a_batch()
    loss = a_loss([[0.9, 0.5, 0.1], [0.2, 0.4, 0.6], [-0.7, 0.3, 1.5]], reduction="none")
    held = {"a": loss.a.double(), "b": loss.b.double(), "alpha": loss.alpha.double().clamp(min=0)}
    expected = auc_margin_loss(logits.T, target.T, **held)
    assert_close(loss(logits, target), expected)
    grads = [torch.autograd.grad(value.sum(), logits)[0] for value in (loss(logits, target), expected)]
    assert_close(*grads)


def test_at_first_the_variables_are_at_their_optimum_for_logits_of_0_and_the_sides_part():
    loss = AUCMarginLoss(num_labels=3, margin=1.5)
    assert set(loss.state_dict()) == set(NAMES)
    logits, target = torch.zeros(7, 3).requires_grad_(), torch.tensor([[1, 0, 1]] * 3 + [[0, 1, 0]] * 4)
    value = loss(logits, target)
    assert_close(value, torch.tensor(1.5**2))
    assert_close(value, auc_margin_loss(logits.T, target.T, margin=1.5).mean())
    gradients = torch.autograd.grad(value, [logits, *loss.parameters()])
    assert (gradients[0][target == 1] < 0).all() and (gradients[0][target == 0] > 0).all()
    assert all((gradient == 0).all() for gradient in gradients[1:])


def test_two_variables_descend_and_the_third_climbs():
    logits, target = a_batch()
    values = [[0.9, 0.5, 0.1], [0.2, 0.4, 0.6], [0.7, 0.3, 1.5]]
    loss = a_loss(values, reduction="sum")
    plain = [torch.tensor(v, requires_grad=True) for v in values]
    true = torch.autograd.grad(auc_margin_loss(logits.T, target.T, **dict(zip(NAMES, plain, strict=True))).sum(), plain)
    ours = torch.autograd.grad(loss(logits, target), [loss.a, loss.b, loss.alpha])
    assert_close(ours, (true[0], true[1], -true[2]))


@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=0.1), partial(torch.optim.Adam, lr=0.03)])
@pytest.mark.parametrize("margin", [0.3, 1.0])
def test_any_optimizer_brings_them_to_the_saddle(margin, optimizer):
    logits, target = a_batch()
    logits = (logits + 4 * target * torch.tensor([0, 1, 2])).detach()  # of the last label the margin of 0.3 is kept
    loss = AUCMarginLoss(num_labels=3, margin=margin, reduction="sum")
    steps = optimizer(loss.parameters())
    for _ in range(400):
        steps.zero_grad()
        loss(logits, target).backward()
        steps.step()
    p, positive = logits.sigmoid(), target == 1
    a, b = (torch.where(side, p, 0.0).sum(0) / side.sum(0) for side in (positive, ~positive))
    missed = margin + b - a
    assert (missed < 0).any() == (margin == 0.3)
    for variable, best in ((loss.a, a), (loss.b, b), (loss.alpha, missed)):  # below 0 it stands for 0
        assert_close(variable.detach().double(), best, rtol=0, atol=1e-4)
    best = auc_margin_loss(logits.T, target.T, margin=margin)
    assert_close(loss(logits, target), best.sum(), rtol=0, atol=1e-5)


def test_from_below_zero_alpha_comes_back():
    logits, target = torch.zeros(7), torch.tensor([1, 0, 0, 1, 0, 0, 0])
    loss = a_loss([[0.5], [0.5], [-3.0]])
    # Through a clamp it would not: its gradient is 0 there.
    clamped = loss.alpha.clamp(min=0)
    through = auc_margin_loss(logits[None], target[None], a=loss.a, b=loss.b, alpha=clamped).sum()
    assert torch.autograd.grad(through, loss.alpha)[0] == 0
    optimizer, way = torch.optim.SGD(loss.parameters(), lr=0.1), [loss.alpha.item()]
    for _ in range(40):
        optimizer.zero_grad()
        loss(logits, target).backward()
        optimizer.step()
        way.append(loss.alpha.item())
    assert way == sorted(way) and way[-1] == pytest.approx(1, abs=1e-3)


def test_a_label_with_one_side_leaves_its_variables_where_they_are():
    logits, target = a_batch()
    target[:, 1] = 0
    loss = a_loss([[0.9, 0.5, 0.1], [0.2, 0.4, 0.6], [0.7, 0.3, 1.5]])
    assert loss.sums(logits, target).weight.tolist() == [[0.0, 1.0], [0.0, 0.0], [0.0, 1.0]]
    alone = a_loss([[0.9, 0.1], [0.2, 0.6], [0.7, 1.5]])
    assert_close(loss(logits, target), alone(logits[:, [0, 2]], target[:, [0, 2]]))
    loss(logits, target).backward()
    for parameter in loss.parameters():
        assert (parameter.grad != 0).tolist() == [True, False, True]


def test_a_weight_of_a_label_reaches_its_variables():
    logits, target = a_batch()
    values = [[0.9, 0.5, 0.1], [0.2, 0.4, 0.6], [0.7, 0.3, 1.5]]
    plain, weighted = a_loss(values), a_loss(values, class_weight=[0.0, 1.0, 3.0])
    for loss in (plain, weighted):
        loss(logits, target).backward()
    for ours, theirs in zip(weighted.parameters(), plain.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad * torch.tensor([0.0, 1.0, 3.0]))


def test_a_copy_and_a_checkpoint_carry_them_and_a_spec_does_not():
    loss = a_loss([[0.9, 0.5], [0.2, 0.4], [0.7, -0.3]])
    twin = copy.deepcopy(loss)
    assert_close(twin.state_dict(), loss.state_dict(), rtol=0, atol=0)
    assert loss.fingerprint == AUCMarginLoss(num_labels=2).fingerprint
    with pytest.raises(RuntimeError, match="size mismatch"):
        AUCMarginLoss(num_labels=3).load_state_dict(loss.state_dict())


def test_a_part_of_a_combined_loss_has_them_too():
    both = BCEWithLogitsLoss() + 0.5 * AUCMarginLoss(num_labels=3)
    assert {name.split(".")[-1] for name, _ in both.named_parameters()} == set(NAMES)
    logits, target = a_batch()
    both(logits, target).backward()
    assert all((parameter.grad != 0).all() for parameter in both.parameters())


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cast", "expected"),
    [
        (lambda m: m.to(torch.bfloat16), torch.float32),
        (lambda m: m.half(), torch.float32),
        (lambda m: m.double(), torch.float64),
        (lambda m: m.double().half().float(), torch.float32),
    ],
)
def test_a_cast_to_half_precision_leaves_them_as_they_are(cast, expected):
    logits, target = torch.randn(7, 1), torch.tensor([[1], [0], [0], [1], [0], [0], [0]])
    model = torch.nn.ModuleList([torch.nn.Linear(3, 1), a_loss([[0.7003], [0.2001], [0.9007]], class_weight=[99.7])])
    loss = model[1]
    before = list(loss.parameters())
    loss(logits, target).backward()
    value, kept = loss(logits, target).detach(), [(p.detach().clone(), p.grad.clone()) for p in before]
    cast(model)
    for parameter, same, (number, gradient) in zip(loss.parameters(), before, kept, strict=True):
        assert parameter is same  # an optimizer that was made before goes on with it
        assert parameter.dtype == parameter.grad.dtype == expected
        assert_close(parameter.detach().float(), number, rtol=0, atol=0)
        assert_close(parameter.grad.float(), gradient, rtol=0, atol=0)
    assert_close(loss(logits, target), value)
    assert loss(logits, target).dtype == torch.float32


def test_in_a_run_of_half_precision_a_small_step_is_not_lost():
    data = TensorDataset(torch.randn(66, 5), (torch.rand(66, 1) < 0.3).float())
    classifier = BinaryClassifier(torch.nn.Linear(5, 1), AUCMarginLoss(), metrics=[])
    torch.nn.init.constant_(classifier.loss.a, 0.7)
    loader = DataLoader(data, batch_size=22)
    quiet_trainer(precision="bf16-true").fit(classifier, loader, loader)
    assert classifier.model.weight.dtype == torch.bfloat16 and classifier.loss.a.dtype == torch.float32
    assert 1e-3 < 0.7 - classifier.loss.a.item() < 5e-3  # three steps of 1e-3; in bfloat16 each would be 4e-3 or none


def test_a_move_takes_them_along_where_a_cast_leaves_them():
    for loss in (AUCMarginLoss().to("meta", torch.bfloat16), AUCMarginLoss().half().to("meta")):
        for parameter in loss.parameters():
            assert (parameter.device.type, parameter.dtype, parameter.shape) == ("meta", torch.float32, (1,))


def test_they_are_made_in_float32_whatever_the_default():
    torch.set_default_dtype(torch.bfloat16)
    try:
        loss = AUCMarginLoss()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in loss.parameters()} == {torch.float32}


# -- training ---------------------------------------------------------------------------------------------------------


def quiet_trainer(epochs=1, **options):
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def a_run(**options):
    x = torch.randn(66, 3, generator=torch.Generator().manual_seed(3))
    loader = DataLoader(TensorDataset(x, (x > 0.5).float()), batch_size=22)
    torch.manual_seed(7)
    classifier = BinaryClassifier(
        torch.nn.Linear(3, 3),
        AUCMarginLoss(num_labels=3, **options),
        num_labels=3,
        optimizer=partial(torch.optim.Adam, lr=0.1),
        metrics=["AUROC"],
    )
    return classifier, loader


def test_from_its_first_values_it_trains_and_resumes_as_if_nothing_had_happened(tmp_path):
    whole, loader = a_run()
    trainer = quiet_trainer(10)
    trainer.fit(whole, loader, loader)
    assert trainer.callback_metrics["val_AUROC"] > 0.95
    variables = whole.loss.state_dict()
    assert (variables["a"] > variables["b"]).all() and (variables["alpha"] > 0).all()

    first, loader = a_run()
    trainer = quiet_trainer(4)
    trainer.fit(first, loader, loader)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again = BinaryClassifier.load_from_checkpoint(tmp_path / "half.ckpt")
    assert_close(again.loss.state_dict(), first.loss.state_dict(), rtol=0, atol=0)
    second, loader = a_run()
    quiet_trainer(10).fit(second, loader, loader, ckpt_path=tmp_path / "half.ckpt")
    assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)


def step_on_this_rank(rank, parts):
    """Take two steps in which a label has both sides on no more than one rank, and then on none."""
    loss = AUCMarginLoss(num_labels=2)
    module = DistributedDataParallel(loss)
    optimizer, gradients = torch.optim.SGD(module.parameters(), lr=0.1), []
    for logits, target in parts[rank]:
        optimizer.zero_grad()
        module(logits, target).backward()
        gradients.append([parameter.grad.clone() for parameter in loss.parameters()])
        optimizer.step()
    return gradients, dict(loss.state_dict())


def test_ranks_stay_together_and_nobody_waits_for_an_absent_label(on_two_ranks):
    logits = torch.randn(2, 2, 7, 2)  # by rank and step
    target = torch.zeros(2, 2, 7, 2)
    target[:, 0, :3, 0] = 1  # the first label on both ranks,
    target[0, 0, :2, 1] = 1  # the second on one; in the second step neither on any
    parts = [list(zip(logits[rank], target[rank], strict=True)) for rank in range(2)]
    (first, one), (second, other) = on_two_ranks(step_on_this_rank, parts)
    assert_close(first, second, rtol=0, atol=0)
    assert_close(one, other, rtol=0, atol=0)
    single = [AUCMarginLoss(num_labels=2) for _ in range(2)]
    for loss, ((scores, labels), _) in zip(single, parts, strict=True):
        loss(scores, labels).backward()
    expected = [(p.grad + q.grad) / 2 for p, q in zip(*(loss.parameters() for loss in single), strict=True)]
    assert_close(first[0], expected)
    assert all((gradient == 0).all() for gradient in first[1])


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_an_output_with_another_number_of_labels_is_refused_with_the_remedy():
    for made, shape in ((1, (7, 3)), (3, (7,)), (3, (7, 1)), (2, (7, 3, 5))):
        count = 1 if len(shape) < 2 else shape[1]
        with pytest.raises(ValueError, match=rf"{count} label\(s\).* for {made}\..*`num_labels={count}`"):
            AUCMarginLoss(num_labels=made)(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize("name", NAMES)
def test_a_variable_of_another_shape_is_refused(name):
    for shape in ((2,), (7,), (3, 1)):
        with pytest.raises(ValueError, match=rf"`{name}` has shape .* shape \(3,\); one .* was expected\.$"):
            auc_margin_loss(torch.zeros(3, 7), torch.zeros(3, 7), **{name: torch.zeros(shape)})
    auc_margin_loss(torch.zeros(3, 7), torch.zeros(3, 7), **{name: torch.tensor(0.5)})
    auc_margin_loss(torch.zeros(2, 3, 7), torch.zeros(2, 3, 7), **{name: torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"rows of shape \(2, 3\)"):
        auc_margin_loss(torch.zeros(2, 3, 7), torch.zeros(2, 3, 7), **{name: torch.zeros(2, 3, 7)})


@pytest.mark.parametrize(
    ("name", "values"),
    [("num_labels", [0, -1, 1.0, True, None, "3"]), ("margin", [0, -1.0, math.nan, math.inf, "1", None, True])],
)
def test_an_option_out_of_range_is_refused_by_its_name(name, values):
    for value in values:
        with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
            AUCMarginLoss(**{name: value})
        if name == "margin":
            with pytest.raises((ValueError, TypeError), match="`margin`"):
                auc_margin_loss(torch.zeros(1, 2), torch.zeros(1, 2), margin=value)
