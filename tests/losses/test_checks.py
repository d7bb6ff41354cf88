"""What a check says: what came, what was expected and what to do; and what it lets pass, at its bounds too."""

import math

import pytest
import torch

from lightning_bce.losses.checks import (
    check_factor,
    check_flag,
    check_number,
    check_probabilities,
    check_shapes,
    check_target_values,
    check_unit,
    check_whole,
)


def said(error, check, *args, **options):
    with pytest.raises(error) as caught:
        check(*args, **options)
    return str(caught.value)


def test_a_number_is_held_by_each_of_its_bounds_and_by_no_other():
    for bound, inside, outside in (
        ({"at_least": 1}, 1, 0.5),
        ({"above": 1}, 1.5, 1),
        ({"at_most": 1}, 1.0, 1.5),
        ({"below": 1}, 0.5, 1.0),
        ({"at_least": -1, "below": 1}, -1, 1),
    ):
        check_number("gamma", inside, **bound)
        words = " and ".join(f"{name.replace('_', ' ')} {value}" for name, value in bound.items())
        expected = f"`gamma` is {outside}; it must be finite and {words}."
        assert said(ValueError, check_number, "gamma", outside, **bound) == expected
        for value in (math.nan, math.inf, -math.inf):
            assert "must be finite" in said(ValueError, check_number, "gamma", value, **bound)
    assert said(ValueError, check_number, "q", 2, at_most=1, advice=" Halve it.").endswith("at most 1. Halve it.")
    for value in ("2", None, True, [1.0]):
        expected = f"`gamma` is {value!r}; a number of at least 0 and below 1 was expected."
        assert said(TypeError, check_number, "gamma", value, at_least=0, below=1) == expected


def test_a_share_lies_between_zero_and_one_or_is_left_out():
    for value in (None, 0, 1, 0.5):
        check_unit("alpha", value)
    for value in (-0.1, 1.5):
        expected = f"`alpha` is {value}; it must be finite and at least 0 and at most 1."
        assert said(ValueError, check_unit, "alpha", value).startswith(expected)
    assert said(ValueError, check_unit, "alpha", 3).endswith("To multiply the positives only, use `pos_weight`.")


def test_a_flag_is_true_or_false():
    check_flag("batch", True), check_flag("batch", False)
    for value in (1, None, "True"):
        assert said(TypeError, check_flag, "batch", value) == f"`batch` is {value!r}; True or False was expected."


def test_a_whole_number_has_a_least():
    check_whole("bins", 1, at_least=1)
    assert said(ValueError, check_whole, "bins", 0, at_least=1) == "`bins` is 0; it must be at least 1."
    for value in (2.0, True, "2", None):
        expected = f"`bins` is {value!r}; a whole number of at least 1 was expected."
        assert said(TypeError, check_whole, "bins", value, at_least=1) == expected


def test_a_factor_is_finite_and_not_negative():
    for value in (None, 0, 2.5, [0.0, 1.0], torch.tensor([3.0]), torch.tensor(-1.0, device="meta")):
        check_factor("weight", value)
    message = said(ValueError, check_factor, "weight", [[1.0, -1.5], [math.inf, 0.0]])
    assert message == "`weight` must be finite and at least 0; got [-1.5, inf]."
    message = said(ValueError, check_factor, "weight", -torch.arange(1.0, 34.0))
    assert message.endswith(f"got {[-float(n) for n in range(1, 9)]}.")  # and no more
    for value in ("1", [None], {"a": 1.0}, 1j):
        message = said(TypeError, check_factor, "weight", value)
        assert message == f"`weight` is {value!r}; a number, a list of numbers or a tensor was expected."


def test_probabilities_are_refused_with_the_range_that_was_found():
    check_probabilities(torch.tensor([0.0, 1.0, math.nan]), None)
    check_probabilities(torch.zeros(0), None)
    known = torch.tensor([[True], [False]])
    check_probabilities(torch.tensor([[0.5, 0.5], [7.0, -3.0]]), known)
    for wrong in ([0.5, 1.5], [0.5, -0.5]):
        low, high = min(wrong), max(wrong)
        message = said(ValueError, check_probabilities, torch.tensor(wrong), None)
        assert f"takes probabilities in [0, 1]; got values from {low:g} to {high:g}. Apply `torch.sigmoid`" in message
        assert message.endswith(" use the loss on logits, such as `BCEWithLogitsLoss` or `FocalLoss`.")


def test_tensors_of_one_shape_pass_and_what_is_no_tensor_is_named():
    check_shapes(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    message = said(TypeError, check_shapes, torch.zeros(2), [0, 1])
    assert message == "A loss takes tensors; got Tensor and list. Use `torch.as_tensor(...)` on lists and arrays."
    assert "got list and Tensor" in said(TypeError, check_shapes, [0.0], torch.zeros(1))
    message = said(TypeError, check_shapes, torch.zeros(1), torch.zeros(1, dtype=torch.complex64))
    assert message == "`target` has dtype torch.complex64; bool, integer or floating point was expected."


@pytest.mark.parametrize(
    ("of_logits", "of_target", "advice"),
    [
        ((7, 1), (7,), "Use `target.view_as(logits)`, or `logits.squeeze(-1)` in the model."),
        ((7,), (7, 1), "Use `target.view_as(logits)`, or `logits.squeeze(-1)` in the model."),
        (
            (7, 3),
            (7,),
            "For class indices: `torch.nn.functional.one_hot(target, num_classes)`. For one label the model",
        ),
        (
            (7, 2, 5),
            (7, 5),
            "For class indices: `torch.nn.functional.one_hot(target, num_classes)`. For one label the model "
            "needs one output, not one for each class.",
        ),
        ((7, 1, 5), (7, 3), "Nothing is broadcast: give one target for each logit."),  # one output has no classes
        ((7, 3), (6,), "Nothing is broadcast: give one target for each logit."),
        ((7, 3, 5), (7,), "Nothing is broadcast: give one target for each logit."),
        ((2, 6), (3, 4), "Nothing is broadcast: give one target for each logit."),
        ((6,), (1, 2, 3), "Nothing is broadcast: give one target for each logit."),
    ],
)
def test_shapes_that_differ_get_the_advice_for_their_reason(of_logits, of_target, advice):
    message = said(ValueError, check_shapes, torch.zeros(of_logits), torch.zeros(of_target))
    assert message.startswith(f"`target` has shape {of_target} and `logits` {of_logits}: they must be equal. {advice}")


@pytest.mark.parametrize(
    ("values", "found", "advice"),
    [
        ([0.0, math.nan], "nan (1 times)", "If NaN marks an unknown label, say so: `ignore_index=float('nan')`."),
        ([0, 1, -1, -1], "-1 (2 times)", "If -1 marks an unknown label, say so: `ignore_index=-1`."),
        ([1, -1], "-1 (1 times)", "If the labels are coded -1 and 1, pass `(target + 1) / 2`; if -1 is unknown,"),
        ([0, -100], "-100 (1 times)", "If it marks an unknown label, say so: `ignore_index=-100`."),
        ([255, 0, 255], "255 (2 times)", "If it marks an unknown label, say so: `ignore_index=255`."),
        ([2, 0], "2 (1 times)", "Pass 0 and 1 (or probabilities), or mark unknown labels and say so with"),
        ([math.nan, -1.0], "nan (1 times), -1 (1 times)", "If the labels are coded"),
        ([2.0, math.nan, math.nan], "nan (2 times), 2 (1 times)", "Pass 0 and 1 (or probabilities)"),
        ([1 + 1e-12], "1.000000000001 (1 times)", "Pass 0 and 1"),  # and not 1, which is allowed
        (list(range(2, 10)), ", ".join(f"{n} (1 times)" for n in range(2, 10)), "Pass"),
        (list(range(2, 11)), ", ".join(f"{n} (1 times)" for n in range(2, 10)) + " and 1 more values", "Pass"),
    ],
)
def test_target_values_are_refused_with_their_counts_and_the_likely_remedy(values, found, advice):
    dtype = torch.float64 if any(isinstance(value, float) for value in values) else torch.int64
    message = said(ValueError, check_target_values, torch.tensor(values, dtype=dtype), None)
    assert message.startswith(f"`target` has values outside [0, 1]: {found}. {advice}")


def test_labels_pass_and_so_does_what_is_unknown():
    for target in (torch.tensor([True, False]), torch.tensor([0, 1]), torch.tensor([0.0, 0.3, 1.0]), torch.zeros(0)):
        check_target_values(target, None)
    check_target_values(torch.tensor([[0.0, 1.0], [7.0, math.nan]]), torch.tensor([[True], [False]]))
