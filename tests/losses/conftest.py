"""Every loss of the library as a ``case``, found by itself: a new loss is under contract without an edit here."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from discovery import concrete_losses
from mpmath import mp, mpf
from torch import Tensor

from lightning_bce.losses import BinaryLoss, RowLoss

# Arguments of the losses that cannot be made without any.
REQUIRED: dict[str, dict[str, Any]] = {
    "DistributionBalancedLoss": {"counts": 40, "total": 257},
    # Its factors depend on the whole batch and on those before, unless all elements are in one bin and none is kept.
    "GHMCLoss": {"bins": 1, "momentum": 0.0},
    "LogitAdjustedLoss": {"prior": 0.2},
    "MarginBCELoss": {"counts": 40},
    # Its factor depends on which labels of a sample are known, which a loop over the elements cannot see.
    "PartialLabelBCELoss": {"slope": 0.0, "offset": 1.0},
    "PositiveUnlabeledLoss": {"prior": 0.2},
    "UnobservedBCELoss": {"unobserved": -2},  # -1, its default, is among the values that every loss has to refuse
}

# What a pure function is told and the module finds out by itself: here, that of a first epoch.
STATE: dict[str, dict[str, Any]] = {
    "LargeLossBCELoss": {"rate": 0.0},
    "SPLCLoss": {"correct": False},
}

# By the paper's own formula a wrong prediction costs no more than a finite value, on one side at least.
BOUNDED = {"AsymmetricLoss", "BiTemperedLoss", "BrierLoss", "GeneralizedCELoss", "HillLoss"}
# They count a hard label as a soft one: the minimum lies at a finite logit.
SOFTENING = {"SmoothedBCELoss"}


@dataclass(frozen=True)
class Case:
    """A loss class and the batches it takes."""

    cls: type[BinaryLoss]

    @property
    def on_logits(self) -> bool:
        return self.cls.input_space == "logits"

    @property
    def bounded(self) -> bool:
        return self.cls.__name__ in BOUNDED

    @property
    def softens(self) -> bool:
        return self.cls.__name__ in SOFTENING

    @property
    def function(self) -> Callable[..., Tensor]:
        """The pure function, named like the class without its "Loss"."""
        name = self.cls.__name__.lower().removesuffix("loss")
        named = [f for f in vars(sys.modules[self.cls.__module__]).values() if inspect.isfunction(f)]
        public = [f for f in named if f.__module__ == self.cls.__module__ and not f.__name__.startswith("_")]
        function = min(
            (f for f in public if f.__name__.replace("_", "").startswith(name)), key=lambda f: len(f.__name__)
        )

        @functools.wraps(function)  # its signature stays the one that was written
        def called(*args: Any, **options: Any) -> Tensor:
            given = STATE.get(self.cls.__name__, {}) | REQUIRED.get(self.cls.__name__, {})
            known = inspect.signature(function).parameters  # what a module remembers by is not among them
            return function(*args, **({name: v for name, v in given.items() if name in known} | options))

        return called

    def make(self, **options: Any) -> BinaryLoss:
        return self.cls(**(REQUIRED.get(self.cls.__name__, {}) | options))

    def outputs(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Random model outputs, probabilities not too near 0 and 1."""
        scores = 2 * torch.randn(shape, dtype=torch.float64)
        return (scores if self.on_logits else 0.02 + 0.96 * scores.sigmoid()).to(dtype)

    def batch(self, *shape: int) -> tuple[Tensor, Tensor]:
        """Model outputs and hard labels."""
        return self.outputs(*shape), torch.randint(0, 2, shape).double()

    def __str__(self) -> str:
        return self.cls.__name__

    def extremes(self, dtype: torch.dtype) -> Tensor:
        """The outputs at which a careless formula breaks."""
        return torch.tensor([-1e4, 0.0, 1e4] if self.on_logits else [0.0, 0.5, 1.0], dtype=dtype)


CASES = [Case(cls) for cls in concrete_losses() if cls.per_element]


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def cases() -> list[Case]:
    return CASES


# -- losses of rows ---------------------------------------------------------------------------------------------------

# Beside the defaults: the options that make a row something else, or the formula another one.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "DiceLoss": [{"smooth": 0.0}, {"batch": False}],
    "JaccardLoss": [{"smooth": 0.0, "batch": False}],
    "PairwiseLoss": [{"surrogate": "logistic"}, {"surrogate": "squared_hinge", "margin": 2.5, "batch": True}],
    "PositiveUnlabeledLoss": [{"non_negative": False}, {"non_negative": False, "surrogate": "logistic"}],
    "SoftF1Loss": [{"beta": 3.0, "eta": 0.5, "smooth": 1.0}],
    "TverskyLoss": [{"gamma": 0.75, "smooth": 0.0}, {"gamma": 1.5, "batch": False}],
}

# Parameters of a loss, which are in its checkpoints, away from their first values: at 0 a term of the formula vanishes.
VARIABLES: dict[str, dict[str, float]] = {
    "AUCMarginLoss": {"a": 0.6, "b": 0.3, "alpha": 0.8},
}
# Losses that may be below 0, where they have these attributes.
NEGATIVE: dict[str, dict[str, Any]] = {
    "AUCMarginLoss": {},  # the value of a saddle: a variable that is to be raised takes it down as far as it is off
    "PositiveUnlabeledLoss": {"non_negative": False},  # an unbiased estimate of what may be near 0
}
# Losses whose gradient is on purpose that of another function than their value, where they have these attributes. Their
# own tests say of which.
OTHER_GRADIENT: dict[str, dict[str, Any]] = {
    "PositiveUnlabeledLoss": {"non_negative": True},  # a step back where an estimate is below its bound
}


@dataclass(frozen=True)
class RowCase:
    """A class of RowLoss with some arguments."""

    cls: type[RowLoss]
    arguments: tuple[tuple[str, Any], ...] = ()

    @property
    def rows(self) -> str:
        return self.make().rows

    @property
    def needs_labels(self) -> bool:
        """Whether one label alone is refused."""
        return self.rows != "label" and self.cls.__name__ == "PairwiseLoss"

    @property
    def function(self) -> Callable[..., Tensor]:
        """The pure function, named like the class."""
        named = vars(sys.modules[self.cls.__module__])
        (function,) = [f for name, f in named.items() if name.replace("_", "") == self.cls.__name__.lower()]

        @functools.wraps(function)  # its signature stays the one that was written
        def called(*args: Any, **options: Any) -> Tensor:
            return function(*args, **(REQUIRED.get(self.cls.__name__, {}) | options))

        return called

    @property
    def variables(self) -> dict[str, float]:
        """The parameters of the loss, by name, and the values that they get here."""
        return VARIABLES.get(self.cls.__name__, {})

    @property
    def may_be_negative(self) -> bool:
        return self._has(NEGATIVE)

    @property
    def has_its_values_gradient(self) -> bool:
        return not self._has(OTHER_GRADIENT)

    def _has(self, declared: dict[str, dict[str, Any]]) -> bool:
        attributes = declared.get(self.cls.__name__)
        return attributes is not None and all(getattr(self.make(), name) == v for name, v in attributes.items())

    def make(self, labels: int = 3, **options: Any) -> RowLoss:
        """A loss for so many labels, which those have to know that have a variable for each."""
        fixed = {"num_labels": labels} if "num_labels" in inspect.signature(self.cls).parameters else {}
        loss = self.cls(**(REQUIRED.get(self.cls.__name__, {}) | fixed | dict(self.arguments) | options))
        for name, parameter in loss.named_parameters():
            torch.nn.init.constant_(parameter, self.variables[name])
        return loss

    def logits(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return 2 * torch.randn(shape, dtype=torch.float64).to(dtype)

    def target(self, *shape: int) -> Tensor:
        """Hard labels, both sides of which are in the first two of each row and of each column."""
        labels = torch.randint(0, 2, shape).double()
        labels[0] = 1 - labels[1]
        if len(shape) > 1 and shape[1] > 1:
            labels[:, 0] = 1 - labels[:, 1]
        return labels

    def batch(self, *shape: int) -> tuple[Tensor, Tensor]:
        """Logits and hard labels."""
        return self.logits(*shape), self.target(*shape)

    def __str__(self) -> str:
        return "-".join([self.cls.__name__, *(f"{name}={value}" for name, value in self.arguments)])


ROW_CASES = [
    RowCase(cls, tuple(arguments.items()))
    for cls in concrete_losses()
    if issubclass(cls, RowLoss)
    for arguments in [{}, *VARIANTS.get(cls.__name__, [])]
]


@pytest.fixture
def row_cases() -> list[RowCase]:
    return ROW_CASES


@pytest.fixture(params=ROW_CASES, ids=str)
def row_case(request: pytest.FixtureRequest) -> RowCase:
    return request.param


@pytest.fixture(params=[*CASES, *ROW_CASES], ids=str)
def any_case(request: pytest.FixtureRequest) -> Case | RowCase:
    """A loss of either kind, for what both promise."""
    return request.param


# -- references to 50 digits ------------------------------------------------------------------------------------------


class Exact:
    """Losses by mpmath: value, slope, and the size of the terms that the slope is the sum of.

    Where a soft target makes two terms cancel, no floating-point formula can be right to its last digit; what it
    promises is an error that is small against the terms.
    """

    @staticmethod
    def focal(logit: float, label: float, gamma: float) -> tuple[mpf, mpf, mpf]:
        with mp.workdps(50):
            z, t, g = mpf(logit), mpf(label), mpf(gamma)
            p, q = 1 / (1 + mp.exp(-z)), 1 / (1 + mp.exp(z))
            losses = t * mp.log1p(mp.exp(-z)) + (1 - t) * mp.log1p(mp.exp(z))
            miss = t * q + (1 - t) * p
            slopes = [-t * q * miss**g, (1 - t) * p * miss**g]
            if g:
                slopes.append(g * miss ** (g - 1) * (1 - 2 * t) * p * q * losses)
            return miss**g * losses, sum(slopes), sum(map(abs, slopes))

    @classmethod
    def bce(cls, logit: float, label: float) -> tuple[mpf, mpf, mpf]:
        return cls.focal(logit, label, 0)

    @staticmethod
    def worst(got: Tensor, exact: list[mpf], scale: list[mpf] | None = None) -> float:
        """The largest relative error where the exact value is no subnormal number."""
        tiny = 2 * torch.finfo(got.dtype).tiny
        errors = [abs(g - e) / s for g, e, s in zip(got.tolist(), exact, scale or exact, strict=True) if abs(e) > tiny]
        assert len(errors) > len(exact) / 4
        return float(max(errors))

    @staticmethod
    def sides(
        positive: Callable[[mpf], mpf], negative: Callable[[mpf], mpf], logit: float, label: float
    ) -> tuple[mpf, mpf, mpf]:
        """Value, slope and terms of ``label * positive(logit) + (1 - label) * negative(logit)``."""
        with mp.workdps(50 + int(abs(logit))):  # a slope of exp(-700) is the difference of two values near 1
            z, parts = mpf(logit), [(w, f) for w, f in ((mpf(label), positive), (1 - mpf(label), negative)) if w]
            slopes = [w * mp.diff(f, z) for w, f in parts]
            return mp.fsum(w * f(z) for w, f in parts), mp.fsum(slopes), mp.fsum(map(abs, slopes))

    @classmethod
    def errors(
        cls,
        loss: Callable[[Tensor, Tensor], Tensor],
        reference: Callable[[float, float], tuple[mpf, ...]],
        label: float,
        dtype: torch.dtype,
    ) -> float:
        """The worst relative error of value and gradient over all logits that matter.

        The reference gives value, slope and the slope's terms, and the value's too where it is itself a difference.
        """
        reach = 87.0 if dtype == torch.float32 else 700.0
        count = 129 if dtype == torch.float32 else 49  # to 700 digits the reference is slow
        logits = torch.cat([torch.linspace(-reach, reach, count), torch.linspace(-9, 9, count)])
        logits = logits.to(dtype).requires_grad_()
        target = torch.full_like(logits, label)
        losses = loss(logits, target)
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        exact = [reference(z, target[0].item()) for z in logits.tolist()]
        values, slopes, terms, *scale = zip(*exact, strict=True)
        return max(cls.worst(losses, values, *scale), cls.worst(gradient, slopes, terms))


@pytest.fixture
def exact() -> type[Exact]:
    return Exact
