"""Every loss of the library as a ``case``, found by itself: a new loss is under contract without an edit here."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

import lightning_bce
from lightning_bce.losses import BinaryLoss

PROGRAMS = ("lightning_bce.cli", "lightning_bce.__main__")  # they introduce parts to each other and hold no loss

# Arguments of the losses that cannot be made without any.
REQUIRED: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True)
class Case:
    """A loss class and the batches it takes."""

    cls: type[BinaryLoss]

    @property
    def on_logits(self) -> bool:
        return self.cls.input_space == "logits"

    @property
    def function(self) -> Callable[..., Tensor]:
        """The pure function that ``elementwise`` calls."""
        named = [vars(sys.modules[self.cls.__module__]).get(name) for name in self.cls.elementwise.__code__.co_names]
        (function,) = [f for f in named if inspect.isfunction(f)]
        return function

    def make(self, **options: Any) -> BinaryLoss:
        return self.cls(**(REQUIRED.get(self.cls.__name__, {}) | options))

    def outputs(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Random model outputs, probabilities not too near 0 and 1."""
        scores = 2 * torch.randn(shape, dtype=torch.float64)
        return (scores if self.on_logits else 0.02 + 0.96 * scores.sigmoid()).to(dtype)

    def extremes(self, dtype: torch.dtype) -> Tensor:
        """The outputs at which a careless formula breaks."""
        return torch.tensor([-1e4, 0.0, 1e4] if self.on_logits else [0.0, 0.5, 1.0], dtype=dtype)


def concrete_losses() -> list[type[BinaryLoss]]:
    """Return every class of the library that derives from BinaryLoss and can be made."""
    for module in pkgutil.walk_packages(lightning_bce.__path__, "lightning_bce."):
        if module.name in PROGRAMS:
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # an extra that is not installed; a hole in the library itself is an error
            if (error.name or "lightning_bce").startswith("lightning_bce"):
                raise
    return sorted(set(_below(BinaryLoss)), key=lambda cls: cls.__name__)


def _below(base: type[BinaryLoss]) -> Iterator[type[BinaryLoss]]:
    for cls in base.__subclasses__():
        if cls.__module__.startswith("lightning_bce.") and not inspect.isabstract(cls):
            yield cls
        yield from _below(cls)


CASES = [Case(cls) for cls in concrete_losses()]


@pytest.fixture(params=CASES, ids=lambda case: case.cls.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def cases() -> list[Case]:
    return CASES


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


@pytest.fixture
def exact() -> type[Exact]:
    return Exact
