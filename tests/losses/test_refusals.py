"""What every loss refuses, when it looks, and what it says: shapes, target values, weights, hyper-parameters."""

import inspect
import math
import re

import pytest
import torch
from torch import nn

from lightning_bce import BCELoss, BCEWithLogitsLoss, BinaryLoss

# By the name of a constructor's parameter, so that a new loss with an old name is covered.
BAD_ARGUMENTS = {
    "gamma": [-1.0, math.nan, math.inf, -math.inf, "2", None, True],
    "alpha": [-0.1, 1.1, math.nan, math.inf, "0.5", True, [0.5, 1.1], torch.tensor([0.5, 1.1])],
    "eps": [-1e-5, math.nan, math.inf, "0", None],
    "weight": [-1.0, [1.0, math.nan], math.inf, "1", torch.tensor(-1.0)],
    "pos_weight": [-1.0, [1.0, math.nan], math.inf, "1", torch.tensor(-1.0)],
}
BAD_OPTIONS = {
    "reduction": [None, "avg", "", 1, "Mean"],
    "validate": [None, "never", True],
    "ignore_index": [0, 1, 0.5, "-1", True],
    "class_weight": [[-1.0, 1.0], [1.0, math.inf], [math.nan], "1", 2.0, [[1.0, 2.0]]],
}


# -- construction -----------------------------------------------------------------------------------------------------


def test_a_bad_option_is_refused_at_construction_by_its_name(case):
    arguments = inspect.signature(case.cls).parameters
    bad = BAD_OPTIONS | {name: values for name, values in BAD_ARGUMENTS.items() if name in arguments}
    for name, values in bad.items():
        for value in values:
            with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
                case.make(**{name: value})


def test_a_good_option_is_not_refused(case):  # the check above could refuse everything
    arguments = inspect.signature(case.cls).parameters
    good = {"gamma": 0, "alpha": 1, "eps": 0.0, "weight": 2.0, "pos_weight": [0.0, 1.0]}
    given = {name: value for name, value in good.items() if name in arguments}
    case.make(**given, reduction="sum", ignore_index=math.nan, class_weight=[1, 2], validate="off")


def test_a_misspelt_argument_is_refused_by_its_name(case):
    with pytest.raises(TypeError, match="gama"):
        case.make(gama=2.0)


def test_the_base_cannot_be_made():
    with pytest.raises(TypeError, match="elementwise"):
        BinaryLoss()


# -- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of_outputs", "of_target", "advice"),
    [
        ((7,), (7, 1), "view_as"),
        ((7, 1), (7,), "view_as"),
        ((1,), (), "view_as"),
        ((7, 3), (7,), "one_hot"),
        ((7, 3, 5, 5), (7, 5, 5), "one_hot"),
        ((7, 3), (1, 3), "Nothing is broadcast"),
        ((7, 3), (3, 7), "Nothing is broadcast"),
        ((7,), (6,), "Nothing is broadcast"),
        ((7, 3), (3,), "Nothing is broadcast"),
    ],
)
def test_a_target_of_another_shape_is_refused_with_both_shapes_and_a_remedy(case, of_outputs, of_target, advice):
    outputs, target = case.outputs(*of_outputs), torch.zeros(of_target)
    for call in (case.make(validate="off"), case.make().sums, case.function):
        with pytest.raises(ValueError, match=re.escape(str(of_outputs))) as error:
            call(outputs, target)
        assert str(of_target) in str(error.value) and advice in str(error.value)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (8,), (3, 7), (7, 2), (7, 3, 1), (2, 3)], ids=str)
def test_a_weight_or_mask_that_would_enlarge_or_be_misread_is_refused(case, shape):
    outputs, target = case.outputs(7, 3), torch.zeros(7, 3)
    for call in (case.make(), case.make().sums):
        with pytest.raises(ValueError, match="`weight` has shape"):
            call(outputs, target, torch.ones(shape))
        with pytest.raises(ValueError, match="`mask` has shape"):
            call(outputs, target, mask=torch.ones(shape, dtype=torch.bool))


def test_a_column_of_outputs_takes_no_square_of_weights(case):
    with pytest.raises(ValueError, match="`weight`"):
        case.make()(case.outputs(7), torch.zeros(7), torch.ones(7, 1))
    loss = case.make(reduction="none")(case.outputs(7, 1), torch.zeros(7, 1), torch.ones(7))
    assert loss.shape == (7, 1)


def test_class_weights_are_counted(case):
    for shape in ((7,), (7, 1), (7, 3), (7, 3, 2)):
        with pytest.raises(ValueError, match=r"`class_weight` has 2 numbers and the output (1|3) label"):
            case.make(class_weight=[1.0, 2.0])(case.outputs(*shape), torch.zeros(shape))


def test_what_is_no_tensor_of_scores_is_refused(case):
    loss = case.make()
    with pytest.raises(TypeError, match="floating-point"):
        loss(torch.ones(7, dtype=torch.int64), torch.ones(7))
    with pytest.raises(TypeError, match="`target` has dtype"):
        loss(case.outputs(7), torch.ones(7, dtype=torch.complex64))
    with pytest.raises(TypeError, match="takes tensors"):
        loss(case.outputs(2), [0.0, 1.0])
    with pytest.raises(TypeError, match=r"`mask`.*torch.bool"):
        loss(case.outputs(7), torch.ones(7), mask=torch.ones(7))
    with pytest.raises(TypeError, match="`weight`"):
        loss(case.outputs(1), torch.ones(1), 2.0)


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1, 2, 255, -100, math.nan, 1 + 1e-12, -1e-3, math.inf])
def test_a_target_outside_its_range_is_refused_with_what_was_found_and_how_often(case, value):
    target = torch.zeros(33, dtype=torch.float64)
    target[::5] = value
    for call in (case.make(), case.make().sums):
        with pytest.raises(ValueError, match=r" (\S+) \(7 times\)") as error:
            call(case.outputs(33), target)
        assert float(re.search(r" (\S+) \(7 times\)", str(error.value))[1]) == pytest.approx(
            value, rel=0, abs=0, nan_ok=True
        )


@pytest.mark.parametrize(
    ("value", "dtype"), [(255, torch.uint8), (2, torch.int64), (-1, torch.int8), (-100, torch.int32)]
)
def test_an_integer_target_is_looked_at_too(case, value, dtype):
    with pytest.raises(ValueError, match=re.escape(f"{value} (1 times)")):
        case.make()(case.outputs(2), torch.tensor([0, value], dtype=dtype))


@pytest.mark.parametrize("value", [-1, -100, 255, math.nan])
def test_the_refusal_names_the_option_that_would_accept_the_value(case, value):
    target = torch.tensor([0.0, 1.0, value])
    with pytest.raises(ValueError, match="ignore_index") as error:
        case.make()(case.outputs(3), target)
    ignore = re.search(r"ignore_index=(float\('nan'\)|-?\d+)`", str(error.value))[1]
    loss = case.make(ignore_index=math.nan if "nan" in ignore else int(ignore))
    assert loss(case.outputs(3), target).isfinite()


def test_labels_of_minus_one_and_one_get_the_advice_to_recode(case):
    with pytest.raises(ValueError, match=re.escape("(target + 1) / 2")):
        case.make()(case.outputs(2), torch.tensor([-1, 1]))


def test_many_wrong_values_are_cut_short(case):
    with pytest.raises(ValueError, match=r"\(1 times\) and 25 more values") as error:
        case.make()(case.outputs(33), torch.arange(2, 35))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(("validate", "refused"), [("first_batch", [1, 0]), ("always", [1, 1]), ("off", [0, 0])])
def test_when_values_are_looked_at(case, validate, refused):
    outputs, bad, good = case.outputs(7), torch.full((7,), 2.0), torch.zeros(7)

    def refuses(loss):
        try:
            loss(outputs, bad)
        except ValueError:
            return 1
        return 0

    assert refuses(case.make(validate=validate)) == refused[0]
    loss = case.make(validate=validate)
    loss(outputs, good)
    assert refuses(loss) == refused[1]
    loss.recheck()
    assert refuses(loss) == refused[0]


def test_a_refused_batch_was_not_the_first(case):
    loss = case.make()
    for _ in range(2):
        with pytest.raises(ValueError, match="2"):
            loss(case.outputs(1), torch.tensor([2]))


def test_an_empty_batch_was_not_the_first(case):
    loss = case.make()
    loss(case.outputs(0), torch.zeros(0))
    with pytest.raises(ValueError, match="2"):
        loss(case.outputs(1), torch.tensor([2]))


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_bad_weight_is_refused_unless_its_element_is_ignored(case, value):
    weight, outputs = torch.tensor([1.0, value]), case.outputs(2)
    with pytest.raises(ValueError, match="`weight` must be finite"):
        case.make()(outputs, torch.zeros(2), weight)
    assert case.make(ignore_index=-1)(outputs, torch.tensor([0, -1]), weight).isfinite()


def test_logits_are_refused_where_probabilities_are_meant(case):
    if case.on_logits:
        pytest.skip("takes logits")
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match=re.escape(f"{wrong:g}")) as error:
            case.make()(torch.tensor([0.5, wrong]), torch.zeros(2))
        assert "sigmoid" in str(error.value)
    assert case.make(ignore_index=-1)(torch.tensor([0.5, 7.0]), torch.tensor([0, -1])).isfinite()


# -- the contract of a user's own loss --------------------------------------------------------------------------------


class Returns(BinaryLoss):
    """A loss that returns what it is told to."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def elementwise(self, logits, target):
        return self.what(logits)


@pytest.mark.parametrize(
    "what",
    [
        lambda x: x.mean(),
        lambda x: x.sum(1),
        lambda x: {"loss": x},
        lambda x: 1.0,
        lambda x: x > 0,
        lambda x: x[..., None],
    ],
    ids=["scalar", "rows", "dictionary", "number", "bool", "enlarged"],
)
def test_a_loss_of_another_form_is_told_the_contract(what):
    with pytest.raises(TypeError, match=r"Returns\.elementwise returned .* was expected"):
        Returns(what)(torch.randn(7, 3), torch.zeros(7, 3))


def test_a_loss_of_the_right_form_needs_no_more():
    assert Returns(torch.square)(torch.full((7, 3), 2.0), torch.zeros(7, 3)) == 4


def test_arguments_are_shown_as_they_were_given():
    assert repr(BCELoss(reduction="sum")) == "BCELoss(reduction='sum')"
    assert "pos_weight=3.0" in repr(nn.Sequential(BCEWithLogitsLoss(pos_weight=3.0)))


def test_a_code_that_the_dtype_cannot_hold_ignores_nothing():  # torch compares uint8 with -1 as with 255
    target = torch.tensor([0, 1, 255], dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"255 \(1 times\)"):
        BCEWithLogitsLoss(ignore_index=-1)(torch.zeros(3), target)
    assert BCEWithLogitsLoss(ignore_index=255)(torch.zeros(3), target) == BCEWithLogitsLoss()(
        torch.zeros(2), target[:2]
    )
