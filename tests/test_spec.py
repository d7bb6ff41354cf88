"""Specs: what was written rebuilds the same object, on every machine, and nothing else can be built."""

import copy
import enum
import functools
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import lightning_bce
from lightning_bce import BCEWithLogitsLoss, BinaryLoss, FocalLoss, Recorded, TabularMLP
from lightning_bce.spec import SpecError, build, call_factory, class_path, factory_spec, is_spec, load_class, to_plain

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


class Color(str, enum.Enum):
    RED = "red"


# -- arguments --------------------------------------------------------------------------------------------------------


def test_the_arguments_are_those_that_were_written():
    assert Twice(1.5).spec()["init_args"] == {"half": 1.5}
    assert Scale(2.0).spec()["init_args"]["factor"] == Scale(factor=2.0).spec()["init_args"]["factor"] == 2.0
    assert Gathers(a=1, b=[2]).spec()["init_args"] == {"a": 1, "b": [2]}


@pytest.mark.parametrize(
    "module",
    [Scale(3.0, inner=nn.Linear(3, 1), kind=nn.Tanh, table={"a": [1, (2, 3)]}), Twice(1.5), Inherits(0.5)],
    ids=["arguments of all kinds", "other arguments passed on", "inherited constructor"],
)
def test_what_is_rebuilt_computes_the_same_with_the_same_weights(module):
    twin = build(module.spec(), Scale)
    twin.load_state_dict(module.state_dict())
    inputs = torch.randn(7, 3)
    assert type(twin) is type(module) and twin.spec() == module.spec()
    assert_close(twin(inputs), module(inputs), rtol=0, atol=0)


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
)
def test_the_plain_form_is_of_pythons_own_types(value, plain):
    found = to_plain(value)
    assert found == plain and repr(found) == repr(plain)  # the repr, because numpy's float equals Python's


@pytest.mark.parametrize("value", [len, object(), lambda: 0, torch.float32, Bomb, 1j, {1: 2}, {"a": [len]}])
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


# -- optimizers and schedulers, which are still to be built -----------------------------------------------------------

SGD = torch.optim.SGD


@pytest.mark.parametrize(
    "factory",
    [
        functools.partial(SGD, lr=numpy.float64(0.1), momentum=0.9),
        {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}},
        {"class_path": "torch.optim.sgd.SGD", "init_args": {"momentum": 0.9, "lr": 0.1}},
    ],
    ids=["partial", "spec", "canonical spec"],
)
def test_a_factory_is_written_down_and_called(factory):
    written = factory_spec(factory, torch.optim.Optimizer, "optimizer")
    before = copy.deepcopy(written)
    optimizer = call_factory(written, torch.optim.Optimizer, [nn.Parameter(torch.ones(1))])
    assert type(optimizer) is SGD and optimizer.defaults["momentum"] == 0.9
    assert repr(optimizer.defaults["lr"]) == "0.1" and written == before


def test_a_class_and_nothing_are_factories_too():
    assert factory_spec(SGD, torch.optim.Optimizer, "optimizer") == {"class_path": class_path(SGD), "init_args": {}}
    assert factory_spec(None, torch.optim.Optimizer, "optimizer") is None


@pytest.mark.parametrize(
    "factory",
    [
        lambda parameters: SGD(parameters),
        SGD([nn.Parameter(torch.ones(1))]),
        nn.Linear,
        functools.partial(SGD, [], lr=0.1),
        functools.partial(SGD, lr=len),
        functools.partial(os.system, command="exit 1"),
        {"class_path": "os.system"},
        {"class_path": "torch.nn.Linear"},
        "torch.optim.SGD",
    ],
)
def test_what_is_no_factory_is_refused(factory):
    with pytest.raises(SpecError, match=r"`optimizer`|optimizer\[|Optimizer"):
        factory_spec(factory, torch.optim.Optimizer, "optimizer")


def test_a_factory_in_a_checkpoint_cannot_call_anything_else():
    with pytest.raises(SpecError, match="should name a subclass of"):
        call_factory({"class_path": "os.system"}, torch.optim.Optimizer, "exit 1")
