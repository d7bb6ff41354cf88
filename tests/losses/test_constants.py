"""Constants of a loss: plain numbers, one for each label, or a rule until the training labels are counted."""

import pytest
import torch

from lightning_bce import AsymmetricLoss, BCEWithLogitsLoss, FocalLoss, LabelCounts
from lightning_bce.losses.constants import WithConstants

ONE = LabelCounts.of(torch.tensor([[1.0], [0.0], [0.0], [0.0]]))
TWO = LabelCounts.of(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]))


def test_a_number_is_a_plain_attribute_and_several_are_a_buffer():
    assert FocalLoss(alpha=0.25).alpha == 0.25 and not list(FocalLoss(alpha=0.25).buffers())
    assert FocalLoss(alpha=None).alpha is None and "alpha" not in FocalLoss(alpha=None)._buffers
    several = FocalLoss(alpha=[0.25, 0.5])
    assert several._buffers["alpha"].dtype == torch.float64 and several.alpha.tolist() == [0.25, 0.5]


def test_a_rule_is_what_the_attribute_shows_until_it_is_resolved():
    loss = FocalLoss(alpha="auto")
    assert loss.alpha == "auto" and loss.unresolved == ("alpha",)
    assert loss.resolve(ONE) == {"alpha": loss.alpha} and isinstance(loss.alpha, float)
    assert loss.unresolved == () and loss.resolve(ONE) == {}


@pytest.mark.parametrize("counts", [ONE, TWO], ids=["one label", "two labels"])
def test_no_constant_is_in_a_checkpoint_before_and_after(counts):
    for loss in (FocalLoss(alpha="auto"), BCEWithLogitsLoss(pos_weight="auto")):
        assert loss.state_dict() == {}
        loss.resolve(counts)
        assert loss.state_dict() == {}


def test_one_label_gets_a_number_and_several_a_list():
    assert BCEWithLogitsLoss(pos_weight="auto").resolve(ONE) == {"pos_weight": 3.0}
    assert BCEWithLogitsLoss(pos_weight="auto").resolve(TWO) == {"pos_weight": pytest.approx([3.0, 1 / 3])}
    found = BCEWithLogitsLoss(class_weight="auto").resolve(TWO)["class_weight"]
    assert isinstance(found, list) and len(found) == 2
    with pytest.raises(ValueError, match="there is one label"):
        BCEWithLogitsLoss(class_weight="auto").resolve(ONE)


@pytest.mark.parametrize("name", ["pos_weight", "class_weight"])
def test_a_rule_that_cannot_be_meant_is_refused_by_the_arguments_name(name):
    with pytest.raises((TypeError, ValueError), match=f"`{name}"):
        BCEWithLogitsLoss(**{name: {"power": -1}})
    with pytest.raises((TypeError, ValueError), match="`alpha"):
        FocalLoss(alpha={"power": -1})


def test_what_waits_is_named_with_the_remedy():
    loss = BCEWithLogitsLoss(pos_weight="auto", class_weight="auto")
    with pytest.raises(RuntimeError) as caught:
        loss(torch.zeros(2, 1), torch.zeros(2, 1))
    said = str(caught.value)
    assert said.startswith("BCEWithLogitsLoss cannot be computed yet: class_weight, pos_weight waits for the training")
    assert "`loss.resolve(LabelCounts.of(target))` with the labels of the whole training set, or give numbers." in said


@pytest.mark.parametrize("move", [lambda m: m.to("meta", torch.bfloat16), lambda m: m.half().to("meta")])
def test_a_cast_and_a_move_keep_the_digits(move):
    loss = move(BCEWithLogitsLoss(pos_weight=[99.7, 1.0], class_weight=[0.1, 0.2]))
    for buffer in loss.buffers():
        assert buffer.is_meta and buffer.dtype == torch.float64


def test_parts_move_with_the_whole():
    whole = 0.5 * BCEWithLogitsLoss(pos_weight=[1.0, 2.0]) + AsymmetricLoss()
    assert all(buffer.is_meta for buffer in whole.to("meta").buffers()) and list(whole.buffers())


class Elsewhere:
    """What a cast makes of a tensor on a device without float64, as far as the base looks at it."""

    device = torch.device("mps")


def test_on_a_device_without_float64_constants_have_float32():
    class Held(WithConstants):
        def __init__(self):
            super().__init__()
            self._constant("factor", [1.5, 2.5])
            self._constant("nothing", None)
            self.register_buffer("count", torch.ones(2, dtype=torch.int64))

    asked, held = [], Held()

    def moved(tensor):
        asked.append(tensor.dtype)
        return Elsewhere() if len(asked) == 1 else tensor.clone()

    held._apply(moved)
    assert asked[1:] == [torch.float32, torch.int64]  # no float64 is handed over
    assert held.factor.dtype == torch.float32 and held.factor.tolist() == [1.5, 2.5]
    assert held.nothing is None and held.count.dtype == torch.int64
    held.to(torch.float64)
    assert held.factor.dtype == torch.float32  # what a cast makes of it is put back


def test_arguments_are_shown_in_order():
    assert repr(FocalLoss(gamma=1.0, alpha=0.5)) == "FocalLoss(gamma=1.0, alpha=0.5)"
