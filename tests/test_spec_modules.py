"""Specs of other people's modules: read from their attributes, and refused where those do not tell."""

import io
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_bce import Recorded, TabularMLP
from lightning_bce.spec import SpecError, build, describe


class Honest(nn.Module):
    def __init__(self, width, depth=2):
        super().__init__()
        self.width, self.depth = width, depth
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))

    def forward(self, x):
        return self.layers(x)


class Doubles(Honest):
    """Its attribute is not what its constructor was given."""

    def __init__(self, width):
        super().__init__(2 * width)


class Forgets(nn.Module):
    """Keeps an argument that has a default under another name."""

    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(width, 1)


class Hides(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, 1)


class HidesInBuffer(nn.Module):
    """What differs is in no checkpoint, no shape and no repr."""

    def __init__(self, base=10.0):
        super().__init__()
        self.register_buffer("angles", torch.arange(3) / base, persistent=False)

    def forward(self, x):
        return x + self.angles


class HidesInShape(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))


class HidesInKind(nn.Module):
    def __init__(self, bounded=False):
        super().__init__()
        self.activation = nn.Tanh() if bounded else nn.Sigmoid()


class HidesInList(nn.Module):
    def __init__(self, factors=(1, 2)):
        super().__init__()
        self.by = list(factors)


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function


def round_trip(module):
    """Write a spec as a checkpoint does, read it back safely, and build."""
    file = io.BytesIO()
    torch.save(describe(module), file)
    file.seek(0)
    return build(torch.load(file, weights_only=True), nn.Module)


SHARED = nn.ReLU()

MODULES = [
    (nn.Linear(3, 5), (7, 3)),
    (nn.Linear(3, 5, bias=False), (7, 3)),
    (nn.Conv2d(1, 2, 3, stride=(2, 1), padding="valid", bias=False), (7, 1, 9, 9)),
    (nn.Conv1d(2, 4, 3, padding=1, dilation=2, groups=2, padding_mode="circular"), (7, 2, 9)),
    (nn.ConvTranspose2d(1, 2, 3, output_padding=0), (7, 1, 5, 5)),
    (nn.BatchNorm1d(3, eps=1e-3, momentum=None, affine=False), (7, 3)),
    (nn.LayerNorm((3, 5), bias=False), (7, 3, 5)),
    (nn.GroupNorm(1, 3), (7, 3)),
    (nn.Dropout(0.25), (7, 3)),
    (nn.GELU("tanh"), (7, 3)),
    (nn.PReLU(3, init=0.5), (7, 3)),
    (nn.Identity(), (7, 3)),
    (nn.MaxPool2d(2), (7, 1, 4, 4)),
    (nn.Sequential(), (7, 3)),
    (nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 1), nn.Flatten(0))), (7, 3)),
    (nn.Sequential(nn.Linear(3, 5), SHARED, nn.Linear(5, 1), SHARED), (7, 3)),
    (nn.Sequential(OrderedDict(first=nn.Linear(3, 5), last=nn.Linear(5, 1))), (7, 3)),
    (Honest(3, depth=3), (7, 3)),
    (HidesInBuffer(), (7, 3)),
    (nn.Sequential(TabularMLP(3, 2, hidden=(5,)), nn.Sigmoid()), (7, 3)),
]


@pytest.mark.parametrize(("module", "shape"), MODULES, ids=[type(m).__name__ for m, _ in MODULES])
def test_what_is_rebuilt_computes_the_same_with_the_same_weights(module, shape):
    twin = round_trip(module)
    twin.load_state_dict(module.state_dict())
    inputs = torch.randn(shape)
    assert repr(twin) == repr(module)
    assert_close(twin.eval()(inputs), module.eval()(inputs), rtol=0, atol=0)
    assert describe(twin) == describe(module)


def test_a_module_list_is_rebuilt():
    twin = round_trip(nn.ModuleList([nn.Linear(3, 1), nn.ReLU()]))
    assert [type(part) for part in twin] == [nn.Linear, nn.ReLU]


@pytest.mark.parametrize(
    "module",
    [
        Doubles(3),
        Forgets(5),
        Hides(3),
        HidesInShape(5),
        HidesInKind(True),
        HidesInBuffer(3.0),
        HidesInList((7, 8)),
        Calls(torch.relu),
        nn.TransformerEncoderLayer(8, 2, batch_first=True),
        nn.LSTM(3, 5),
        nn.Sequential(nn.ReLU(), Forgets(5)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_module_that_does_not_tell_how_it_was_made_is_refused(module):
    with pytest.raises(SpecError) as error:
        describe(module)
    assert "Recorded" in str(error.value) or "no plain form" in str(error.value)


def test_the_refused_module_is_accepted_when_it_tells():
    class_told = type("Told", (Recorded, Forgets), {"__init__": lambda self, width=3: Forgets.__init__(self, width)})
    globals()["Told"], class_told.__module__ = class_told, __name__
    assert round_trip(class_told(5)).layer.in_features == 5


def test_to_describe_draws_no_random_number():
    module = nn.Sequential(Honest(3), HidesInBuffer())
    before = torch.get_rng_state()
    describe(module)
    assert torch.equal(torch.get_rng_state(), before)


def test_tied_weights_are_refused_because_a_spec_would_untie_them():
    tied = nn.Linear(3, 3)
    with pytest.raises(SpecError, match="more than once"):
        describe(nn.Sequential(tied, nn.ReLU(), tied))
