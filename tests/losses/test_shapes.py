"""A weight's shape has one meaning: what is refused, with which advice, and what the others become."""

import pytest
import torch

from lightning_bce import BCEWithLogitsLoss
from lightning_bce.losses.shapes import check_constant, fit_weight, part_of_row, per_label

OF_LABELS = "For one value per label use `class_weight`, or pass `mask[None]` if it repeats for every sample."


def logits(*shape, **options):
    return torch.zeros(shape, **options)


@pytest.mark.parametrize(
    ("shape", "of_output", "becomes"),
    [
        ((4,), (4,), (4,)),
        ((4,), (4, 3), (4, 1)),
        ((4,), (4, 3, 2, 2), (4, 1, 1, 1)),
        ((1, 3), (4, 3), (1, 3)),
        ((4, 1, 1), (4, 3, 2), (4, 1, 1)),
        ((4,), (4, 4), (4, 1)),  # of samples, and never of labels
        ((), (), ()),
    ],
)
def test_a_weight_of_samples_or_of_the_outputs_shape_fits(shape, of_output, becomes):
    weight = torch.arange(max(1, torch.Size(shape).numel())).reshape(shape)
    fitted = fit_weight("weight", weight, logits(*of_output))
    assert fitted.shape == becomes and torch.equal(fitted.flatten(), weight.flatten())


@pytest.mark.parametrize(
    ("shape", "of_output", "advice"),
    [
        (
            (3,),
            (4, 3),
            "For one value per label use `class_weight`, or pass `mask[None]` if it repeats for every sample.",
        ),
        ((3,), (4, 3, 2), "For one value per label use `class_weight`, or pass `mask[None]` if it repeats"),
        ((3,), (4,), "Nothing is enlarged."),
        ((2,), (4, 3), "Nothing is enlarged."),
        ((3, 1), (4, 3), "Nothing is enlarged."),
        ((4, 3, 1), (4, 3), "Nothing is enlarged."),
        ((3,), (), "Nothing is enlarged."),
    ],
)
def test_any_other_shape_is_refused_with_both_shapes_and_an_advice(shape, of_output, advice):
    with pytest.raises(ValueError) as caught:
        fit_weight("mask", logits(*shape), logits(*of_output))
    said = str(caught.value)
    assert said.startswith(
        f"`mask` has shape {shape} and the output {of_output}; expected (N,) for one value per sample"
    )
    assert advice in said


def test_what_is_no_tensor_is_named():
    with pytest.raises(TypeError, match=r"`weight` is list; a tensor was expected\."):
        fit_weight("weight", [1.0], logits(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_sample_of_known_labels_is_parted_in_full_precision(dtype):
    valid = torch.tensor([[[True], [False], [True]], [[False], [False], [False]]])
    full = torch.float64 if dtype == torch.float64 else torch.float32
    output = logits(2, 3, 5, dtype=dtype)
    for part, expected in (
        (part_of_row(output, None), [1 / 15, 1 / 15]),
        (part_of_row(output, valid), [1 / 10, 1.0]),  # of nothing it is 1: a row without labels counts as none
    ):
        assert part.dtype == full and part.shape == (2, 1, 1)
        torch.testing.assert_close(part.flatten(), torch.tensor(expected, dtype=full), rtol=1e-15, atol=0)


def test_it_lies_where_the_output_does():
    assert part_of_row(logits(2, 3, device="meta"), None).is_meta


@pytest.mark.parametrize(("of_output", "becomes"), [((4, 3), (3,)), ((4, 3, 2), (3, 1)), ((4, 3, 2, 5), (3, 1, 1))])
def test_one_number_for_each_label_stands_in_dimension_one(of_output, becomes):
    assert per_label("alpha", torch.ones(3), logits(*of_output)).shape == becomes
    assert per_label("alpha", torch.tensor(0.5), logits(*of_output)).ndim == 0


@pytest.mark.parametrize("of_output", [(), (4,)])
def test_without_labels_there_is_one(of_output):
    assert per_label("alpha", torch.ones(1), logits(*of_output)).ndim == 0


@pytest.mark.parametrize(
    ("shape", "of_output", "said"),
    [
        ((2,), (4, 3), "`alpha` has 2 numbers and the output 3 label(s)."),
        ((3,), (3,), "`alpha` has 3 numbers and the output 1 label(s)."),
        ((3, 1), (4, 3), "`alpha` has shape (3, 1) and the output 3 label(s)."),
        ((3, 3), (4, 3), "`alpha` has shape (3, 3) and the output 3 label(s)."),
    ],
)
def test_another_number_of_numbers_is_refused(shape, of_output, said):
    with pytest.raises(ValueError) as caught:
        per_label("alpha", torch.ones(shape), logits(*of_output))
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("shape", "fits"), [((), True), ((3,), True), ((4, 1), True), ((4,), False), ((1, 4, 3), False)]
)
def test_a_factor_of_the_constructor_broadcasts_from_the_right_as_in_torch(shape, fits):
    if fits:
        return check_constant("weight", torch.ones(shape), logits(4, 3))
    with pytest.raises(ValueError) as caught:
        check_constant("weight", torch.ones(shape), logits(4, 3))
    assert str(caught.value) == (
        f"`weight` has shape {shape}, which does not broadcast to the output's (4, 3) without enlarging it. For one "
        "value per label of (N, C, ...) outputs use shape (C, 1, ...)."
    )


def test_a_batchmean_divides_by_the_known_labels_of_a_row_in_the_precision_of_its_logits():
    loss = BCEWithLogitsLoss(reduction="batchmean", ignore_index=-1)
    output = torch.randn(2, 3, dtype=torch.float64)
    target = torch.tensor([[0, 1, 1], [1, -1, -1]])
    each = loss.losses(output, target)
    assert loss(output, target) == each.sum() / 2
    torch.testing.assert_close(loss.sums(output, target).mean(), each.sum() / 2, rtol=1e-15, atol=0)
