"""Specs: what is written down rebuilds the same object, on every machine, and nothing else can be built."""

import copy
import enum
import io
import math
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import lightning_bce
from lightning_bce import BCEWithLogitsLoss, BinaryLoss, FocalLoss, Recorded, TabularMLP
from lightning_bce.spec import SpecError, build, class_path, describe, is_spec, load_class, to_plain

CALLS = []


class Bomb:
    """Tells when it is made: a class that no spec may name."""

    def __init__(self, *arguments):
        CALLS.append(arguments)


class BombModule(nn.Module):
    def __init__(self):
        super().__init__()
        CALLS.append("module")


class Scale(Recorded, nn.Module):
    """Keeps none of its arguments under their names."""

    def __init__(self, factor=1.0, *, inner=None, kind=nn.ReLU, table=None):
        super().__init__()
        self.by, self.inner, self.kind, self.table = factor, inner, kind(), table

    def forward(self, x):
        x = self.kind(x * torch.as_tensor(self.by))
        return x if self.inner is None else self.inner(x)


class Twice(Scale):
    """A subclass whose constructor passes something else on than it was given."""

    def __init__(self, half):
        super().__init__(2 * half)


class Inherits(Scale):
    """A subclass without a constructor."""


class Gathers(Recorded):
    def __init__(self, *parts, **options):
        self.parts, self.options = parts, options


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


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function


class Color(str, enum.Enum):
    RED = "red"


def round_trip(module):
    """Write a spec as a checkpoint does, read it back safely, and build."""
    file = io.BytesIO()
    torch.save(describe(module), file)
    file.seek(0)
    return build(torch.load(file, weights_only=True), nn.Module)


# -- modules of other people ------------------------------------------------------------------------------------------

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
    (nn.Sequential(TabularMLP(3, 2, hidden=(5,)), nn.Sigmoid()), (7, 3)),
    (Scale(3.0, inner=nn.Linear(3, 1), kind=nn.Tanh, table={"a": [1, (2, 3)]}), (7, 3)),
    (Twice(1.5), (7, 3)),
    (Inherits(0.5), (7, 3)),
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


def test_tied_weights_are_refused_because_a_spec_would_untie_them():
    tied = nn.Linear(3, 3)
    with pytest.raises(SpecError, match="more than once"):
        describe(nn.Sequential(tied, nn.ReLU(), tied))


# -- arguments --------------------------------------------------------------------------------------------------------


def test_the_arguments_are_those_that_were_written():
    assert Twice(1.5).spec()["init_args"] == {"half": 1.5}
    assert Scale(2.0).spec()["init_args"]["factor"] == Scale(factor=2.0).spec()["init_args"]["factor"] == 2.0
    assert Gathers(a=1, b=[2]).spec()["init_args"] == {"a": 1, "b": [2]}


def test_arguments_that_no_name_leads_to_are_refused():
    with pytest.raises(SpecError, match=r"\*parts"):
        Gathers(1, 2).spec()


def test_what_was_written_is_not_changed_afterwards():
    hidden, table = [5], {"rows": [1]}
    net, scale = TabularMLP(3, hidden=hidden), Scale(table=table)
    hidden.append(9)
    table["rows"].append(2)
    assert net.spec()["init_args"]["hidden"] == [5]
    assert scale.spec()["init_args"]["table"] == {"rows": [1]}


def test_a_factor_that_was_written_is_not_changed_afterwards():
    factor = torch.ones(3)
    loss = BCEWithLogitsLoss(pos_weight=factor)
    factor.mul_(9)
    assert loss.spec()["init_args"]["pos_weight"] == [1.0, 1.0, 1.0]


def test_a_spec_is_the_readers_own():
    loss = FocalLoss(class_weight=[1.0, 2.0])
    loss.spec()["init_args"]["class_weight"].append(3.0)
    assert loss.spec()["init_args"]["class_weight"] == [1.0, 2.0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_remembers_too(copied):
    module = Scale(2.0, inner=nn.Linear(3, 1))
    assert copied(module).spec() == module.spec()


def test_a_wrong_argument_fails_in_pythons_own_words():
    with pytest.raises(TypeError, match="unexpected keyword argument 'factr'"):
        Scale(factr=2.0)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (math.inf, math.inf),
        ("text", "text"),
        (Path("a") / "b", str(Path("a") / "b")),
        ((1, (2.0, "x")), [1, [2.0, "x"]]),
        ({"a": (1,)}, {"a": [1]}),
        ({"c", "a", "b"}, ["a", "b", "c"]),
        (torch.tensor([1.0, 0.1], dtype=torch.float64), [1.0, 0.1]),
        (torch.tensor(2), 2),
        (nn.Parameter(torch.ones(1)), [1.0]),
        (numpy.float64(0.1), 0.1),
        (numpy.int64(3), 3),
        (numpy.bool_(True), True),
        (numpy.str_("text"), "text"),
        (numpy.ones(2), [1.0, 1.0]),
        (Color.RED, "red"),
        (nn.ReLU, {"class": "torch.nn.modules.activation.ReLU"}),
    ],
    ids=repr,
)
def test_the_plain_form_is_of_pythons_own_types(value, plain):
    found = to_plain(value)
    assert found == plain and repr(found) == repr(plain)  # the repr, because numpy's float equals Python's


@pytest.mark.parametrize("value", [len, object(), lambda: 0, torch.float32, Bomb, 1j, {1: 2}, {"a": [len]}], ids=repr)
def test_what_has_no_plain_form_is_refused(value):
    with pytest.raises(SpecError):
        to_plain(value)


def test_a_refused_argument_is_named():
    with pytest.raises(SpecError, match=r"Scale\(table=\.\.\.\)\['f'\]"):
        Scale(table={"f": len}).spec()


# -- fingerprints -----------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_shared_by_equal_specs_only():
    losses = [FocalLoss(), FocalLoss(gamma=1.0), FocalLoss(alpha=0.25), BCEWithLogitsLoss(), FocalLoss(reduction="sum")]
    assert len({loss.fingerprint for loss in losses}) == len(losses)
    for loss in losses:
        assert loss.fingerprint == copy.deepcopy(loss).fingerprint == build(loss.spec(), BinaryLoss).fingerprint
    assert (
        FocalLoss(gamma=numpy.float64(2.0)).fingerprint == FocalLoss(gamma=2.0).fingerprint == FocalLoss().fingerprint
    )
    assert FocalLoss(gamma=1.0, alpha=0.5).fingerprint == FocalLoss(alpha=0.5, gamma=1.0).fingerprint


def test_a_fingerprint_is_the_same_in_every_process():
    code = (
        "from lightning_bce import *\n"
        "class Named(Recorded):\n    def __init__(self, names, table): pass\n"
        "print(Named({'ant', 'bee', 'cat', 'dog', 'elk'}, {'x': 1, 'y': 2}).fingerprint,"
        "BCEWithLogitsLoss(pos_weight=[0.1, 3.0], ignore_index=float('nan')).fingerprint)"
    )
    root = str(Path(lightning_bce.__file__).parents[1])
    told = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": root},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (process.communicate(timeout=60)[0].split() for process in told)
    assert first == second and len(first) == 2
    assert int(first[1]) == BCEWithLogitsLoss(pos_weight=[0.1, 3.0], ignore_index=math.nan).fingerprint


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [nn.Module, BinaryLoss])
@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.load",
        "torch.nn.Module.__init__",
        "torch.nn.functional.relu",
        "torch.nn",
        "collections.OrderedDict",
        f"{__name__}.Bomb",
    ],
)
def test_a_spec_names_a_subclass_of_what_it_stands_for_or_nothing_is_called(path, base):
    CALLS.clear()
    with pytest.raises(SpecError, match="should name a subclass of"):
        build({"class_path": path, "init_args": {"command": "exit 1"}}, base)
    with pytest.raises(SpecError, match="should name a subclass of"):
        build({"class_path": f"{__name__}.Scale", "init_args": {"inner": {"class_path": path}}}, nn.Module)
    with pytest.raises(SpecError, match="should name a subclass of"):
        build({"class_path": f"{__name__}.Scale", "init_args": {"kind": {"class": path}}}, nn.Module)
    assert CALLS == []


def test_a_module_is_not_made_where_a_loss_is_meant():
    CALLS.clear()
    spec = {"class_path": f"{__name__}.BombModule", "init_args": {}}
    with pytest.raises(SpecError, match="BinaryLoss"):
        build(spec, BinaryLoss)
    assert CALLS == []
    build(spec, nn.Module)  # where a module is meant it is made: the counter does count
    assert CALLS == ["module"]


@pytest.mark.parametrize(
    "path", ["", "Linear", "no.such.Thing", "torch.nn.NoSuch", "lightning_bce.nothing.At", None, 3]
)
def test_a_path_that_leads_nowhere_is_refused(path):
    with pytest.raises(SpecError):
        load_class(path, nn.Module)


@pytest.mark.parametrize(
    "spec",
    [None, "torch.nn.ReLU", [], {}, {"init_args": {}}, {"class_path": "torch.nn.ReLU", "init_arg": {}}],
    ids=repr,
)
def test_what_is_no_spec_is_refused(spec):
    assert not is_spec(spec)
    with pytest.raises(SpecError, match="A spec is"):
        build(spec, nn.Module)


def test_only_containers_have_children():
    with pytest.raises(SpecError, match="no container"):
        build({"class_path": "torch.nn.ReLU", "children": []}, nn.Module)


def test_a_local_class_is_refused_with_the_remedy():
    class Local(Recorded, nn.Module):
        pass

    with pytest.raises(SpecError, match="top level"):
        Local().spec()
    with pytest.raises(SpecError, match="top level"):
        class_path(Local)


def test_a_class_that_is_there_is_found():
    assert load_class(class_path(FocalLoss), BinaryLoss) is FocalLoss
    assert load_class("lightning_bce.FocalLoss", BinaryLoss) is FocalLoss
