"""Every loss goes through `torch.export` with any number of samples: a part of the contract of both kinds of losses."""

import pytest
import torch
from torch.testing import assert_close

from lightning_bce import BCEWithLogitsLoss, DiceLoss


class Both(torch.nn.Module):
    """A loss and its sums in one graph, as a training step with a tracker has them."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, *batch):
        return self.loss(*batch), self.loss.sums(*batch)


def exported(module, batch):
    """Return the program for any number of samples, at least 2: torch takes one of them for a constant."""
    samples = torch.export.Dim("samples", min=2)
    shapes = tuple({0: samples} for _ in batch)
    return torch.export.export(module, batch, dynamic_shapes=(shapes,)).module()


@pytest.mark.parametrize("given", ["two arguments", "all options"])
def test_an_exported_loss_gives_the_same_for_another_number_of_samples(any_case, given):
    per_label = any_case.cls.per_element or any_case.rows == "label"
    takes_weight = any_case.cls.per_element or not (per_label or any_case.cls.couples_rows)
    options = {"ignore_index": -1} | ({"class_weight": [1.0, 0.1, 99.7]} if per_label else {})
    plain = given == "two arguments"
    module = Both(any_case.make(**({} if plain else options)))

    def batch(samples):
        outputs, target = any_case.batch(samples, 3)
        if plain:
            return outputs, target
        target[0, 1] = -1
        return outputs, target, *([torch.rand(samples, dtype=torch.float64)] if takes_weight else [])

    program = exported(module, batch(7))
    for samples in (33, 2):
        other = batch(samples)
        assert_close(program(*other), module(*other))


def test_an_exported_sum_of_losses_gives_the_same():
    module = Both(0.5 * BCEWithLogitsLoss(pos_weight=[1.0, 2.0, 3.0]) + DiceLoss())
    program = exported(module, (torch.randn(7, 3), torch.randint(0, 2, (7, 3))))
    batch = torch.randn(33, 3), torch.randint(0, 2, (33, 3))
    assert_close(program(*batch), module(*batch))


def test_a_loss_that_had_frozen_the_number_of_samples_would_be_found():
    with pytest.raises(Exception, match="specialized it to be a constant"):  # a type that torch keeps to itself
        exported(Frozen(), (torch.randn(7, 3),))


class Frozen(torch.nn.Module):
    def forward(self, *batch):
        return batch[0] + torch.ones(7, 3)
