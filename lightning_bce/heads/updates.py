"""Optimizers that step within the walk over the labels, so that no gradient of all weights ever exists."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_bce.engine.memory import own_part
from lightning_bce.heads.precision import not_narrowed
from lightning_bce.losses.checks import check_number, check_whole
from lightning_bce.spec import Recorded

Rounding = Literal["nearest", "stochastic", "kahan"]


class ChunkUpdate(Recorded, nn.Module):
    """Base of the optimizers of a head's own weights, which step for each chunk of labels as soon as it has a gradient.

    The step is made in the forward pass of training, for an upstream gradient of 1. What needs the gradient of all
    weights before any of them moves cannot be combined with it: clipping by the global norm, accumulated batches, a
    GradScaler, and plain DDP, whose ranks would have to exchange it.

    Args:
        lr: Learning rate, at least 0. The attribute may be changed between steps.
        rounding: How weights in bfloat16 take a step that is computed in float32: to the "nearest" (a step of less than
            1/512 of the weight is lost), "stochastic" (right on average, no state), or "kahan" (what was rounded off is
            kept, in as much memory as the weights). Weights in float32 take "nearest" only.

    Raises:
        ValueError: If an option is out of range.
    """

    chunk_labels: int | None = None
    """Labels of each chunk but the last, where the state belongs to chunks; None where any cut will do."""

    def __init__(self, lr: float, *, rounding: Rounding = "nearest") -> None:
        super().__init__()
        check_number("lr", lr, at_least=0)
        if rounding not in get_args(Rounding):
            raise ValueError(f"`rounding` is {rounding!r}; expected one of {', '.join(get_args(Rounding))}.")
        self.lr = lr
        self.rounding: Rounding = rounding
        self.names: tuple[str, ...] = ()
        self._seed = 0

    def attach(self, **parameters: Tensor | None) -> None:
        """Make the state of parameters, by their names."""
        given = {name: value for name, value in parameters.items() if value is not None}
        self.names = tuple(given)
        for name, value in given.items():
            if self.rounding != "nearest" and name == "weight":
                if value.dtype != torch.bfloat16:
                    raise ValueError(
                        f"`rounding` is {self.rounding!r} and the weights are {value.dtype}: it has an effect on "
                        "bfloat16 only. Give the head `dtype=torch.bfloat16`, or leave `rounding` out."
                    )
                if self.rounding == "kahan":
                    self.register_buffer("weight_lost", torch.zeros_like(value))
            for state, shape in self._states(value).items():
                full = torch.float64 if value.dtype == torch.float64 else torch.float32
                self.register_buffer(f"{name}_{state}", torch.zeros(shape, dtype=full, device=value.device))

    def _states(self, value: Tensor) -> dict[str, torch.Size]:
        """Return name and shape of each state of a parameter."""
        return {}

    def shard(self, part: Callable[[Tensor], Tensor], size: int) -> None:
        """Keep of each state what belongs to this rank's labels.

        Args:
            part: Returns the part of a tensor whose first dimension is the labels, or chunks of them.
            size: Labels of each rank but the last.

        Raises:
            ValueError: If the state belongs to chunks, and a rank has no whole number of them.
        """
        if self.chunk_labels is not None and size % self.chunk_labels:
            raise ValueError(
                f"{type(self).__name__} has statistics of chunks of {self.chunk_labels} labels, and {size} labels, "
                "which each rank has, are no whole number of them. Give it `chunk_labels` that divide them."
            )
        for name, value in list(self._buffers.items()):
            if value is not None and value.ndim:
                self.register_buffer(name, part(value))

    def reset(self) -> None:
        """Forget the steps so far."""
        for state in self.buffers():
            own_part(state).zero_()

    def begin(self) -> None:
        """Take note of a step of all chunks that begins."""
        if self.rounding == "stochastic":
            # One number, however many labels there are: ranks that hold slices of them stay in step, dropout included.
            self._seed = int(torch.randint(2**40, (1,), device="cpu"))

    def step(self, name: str, value: Tensor, gradient: Tensor, begin: int, end: int) -> None:
        """Move the labels from ``begin`` to before ``end`` of a parameter."""
        full = gradient.dtype
        now = value[begin:end].to(full)
        self._move(name, now, gradient, begin, end)
        if value.dtype == full:
            return  # it was moved in its place
        if self.rounding == "nearest":
            value[begin:end] = now.to(value.dtype)
        elif self.rounding == "stochastic":
            noise = torch.Generator(now.device).manual_seed(self._seed + begin)
            value[begin:end] = stochastically_rounded(now, noise)
        else:
            lost = self._state("weight_lost", begin, end)
            wanted = now.add_(lost.to(full))
            value[begin:end] = wanted.to(value.dtype)
            lost.copy_(wanted - value[begin:end].to(full))

    def _move(self, name: str, value: Tensor, gradient: Tensor, begin: int, end: int) -> None:
        """Move a slice of a parameter, in float32 or better, in its place."""
        raise NotImplementedError

    def _state(self, name: str, begin: int, end: int) -> Tensor:
        state: Tensor = getattr(self, name)
        return own_part(state)[begin:end]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Moments keep their precision: in bfloat16 the mean of squares would stand still.
        return super()._apply(partial(not_narrowed, fn), recurse)  # type: ignore[no-untyped-call]


class ChunkSGD(ChunkUpdate):
    """Stochastic gradient descent within the walk, step by step that of :class:`torch.optim.SGD`.

    Args:
        lr: Learning rate, at least 0.
        momentum: In [0, 1). Above 0 it needs as much memory as the weights in float32.
        weight_decay: At least 0, added to the gradient.
        rounding: See :class:`ChunkUpdate`.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> from lightning_bce import MultiLabelHead
        >>> head = MultiLabelHead(4, 100, update=ChunkSGD(lr=0.1))
        >>> loss = head(torch.randn(2, 4), [[3], [5, 7]])  # the weights have moved
        >>> head.weight.grad is None
        True
    """

    def __init__(
        self, lr: float, *, momentum: float = 0.0, weight_decay: float = 0.0, rounding: Rounding = "nearest"
    ) -> None:
        super().__init__(lr, rounding=rounding)
        check_number("momentum", momentum, at_least=0, below=1)
        check_number("weight_decay", weight_decay, at_least=0)
        self.momentum = momentum
        self.weight_decay = weight_decay

    def _states(self, value: Tensor) -> dict[str, torch.Size]:
        return {"momentum": value.shape} if self.momentum else {}

    def _move(self, name: str, value: Tensor, gradient: Tensor, begin: int, end: int) -> None:
        if self.weight_decay:
            gradient.add_(value, alpha=self.weight_decay)
        if self.momentum:
            gradient = self._state(f"{name}_momentum", begin, end).mul_(self.momentum).add_(gradient)
        value.sub_(gradient, alpha=self.lr)


class _Counting(ChunkUpdate):
    """Base of those that know how many steps they have made."""

    steps: Tensor

    def __init__(self, lr: float, *, rounding: Rounding = "nearest") -> None:
        super().__init__(lr, rounding=rounding)
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))

    def begin(self) -> None:
        """Count the step."""
        super().begin()
        self.steps += 1


class ChunkAdamW(_Counting):
    """Adam with decoupled decay within the walk, step by step that of :class:`torch.optim.AdamW`.

    It keeps two moments in float32, each as large as the weights.

    Args:
        lr: Learning rate, at least 0.
        betas: Decay of the two moments, in [0, 1).
        eps: Added to the root, above 0.
        weight_decay: At least 0.
        rounding: See :class:`ChunkUpdate`.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> from lightning_bce import MultiLabelHead
        >>> sorted(MultiLabelHead(4, 100, update=ChunkAdamW(lr=0.1)).state_dict())[:2]
        ['bias', 'update.bias_mean']
    """

    def __init__(
        self,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        rounding: Rounding = "nearest",
    ) -> None:
        super().__init__(lr, rounding=rounding)
        for beta in betas:
            check_number("betas", beta, at_least=0, below=1)
        check_number("eps", eps, above=0)
        check_number("weight_decay", weight_decay, at_least=0)
        self.betas = (float(betas[0]), float(betas[1]))
        self.eps = eps
        self.weight_decay = weight_decay

    def _states(self, value: Tensor) -> dict[str, torch.Size]:
        return {"mean": value.shape, "square": value.shape}

    def _move(self, name: str, value: Tensor, gradient: Tensor, begin: int, end: int) -> None:
        first, second = self.betas
        mean, square = self._state(f"{name}_mean", begin, end), self._state(f"{name}_square", begin, end)
        mean.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        correction = (1 - second**self.steps).sqrt() / (1 - first**self.steps)
        root = square.sqrt() + (self.eps * (1 - second**self.steps).sqrt()).to(mean.dtype)
        value.mul_(1 - self.lr * self.weight_decay).sub_((mean / root).mul_((self.lr * correction).to(mean.dtype)))


class ChunkAdafactor(_Counting):
    r"""Adafactor within the walk, step by step that of :class:`torch.optim.Adafactor` with a parameter for each chunk.

    Its second moments are a number for each label and, for each chunk of labels, one for each input feature: for 3
    million labels of width 768 20 MiB in place of the 8.6 GiB of one moment of :class:`ChunkAdamW`. The bias has a
    number for each label.

    Adafactor divides by statistics of a whole matrix (the mean square of each column, the size of weights and step),
    which a walk that moves the first labels before it has seen the last cannot know. So every chunk has its own, and
    the chunks are the same in every step, whatever the size of the batch: with as many ``chunk_labels`` as labels it is
    Adafactor of the whole head, and a gradient of all weights exists.

    Args:
        lr: Largest relative step, at least 0: steps are ``min(lr, 1 / sqrt(t))`` times the size of the weights.
        chunk_labels: Labels that share the statistics of a column, which are also those of a chunk of the head.
        beta2_decay: The mean of squares forgets ``t ** beta2_decay``; below 0.
        eps: Least root of a mean square, None for the machine's epsilon; and least size of the weights.
        d: At least 1. A step, relative to the weights, whose root mean square is above it is made as small.
        weight_decay: At least 0.
        rounding: See :class:`ChunkUpdate`.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> from lightning_bce import MultiLabelHead
        >>> sorted(MultiLabelHead(4, 100, update=ChunkAdafactor(chunk_labels=50)).update.state_dict())
        ['bias_square', 'steps', 'weight_column', 'weight_row']

    References:
        Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, ICML 2018.
        https://arxiv.org/abs/1804.04235
    """

    chunk_labels: int

    def __init__(
        self,
        lr: float = 1e-2,
        *,
        chunk_labels: int = 1024,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        rounding: Rounding = "nearest",
    ) -> None:
        super().__init__(lr, rounding=rounding)
        check_whole("chunk_labels", chunk_labels, at_least=1)
        check_number("beta2_decay", beta2_decay, below=0)
        for least in eps:
            if least is not None:
                check_number("eps", least, above=0)
        check_number("d", d, at_least=1)
        check_number("weight_decay", weight_decay, at_least=0)
        self.chunk_labels = chunk_labels
        self.beta2_decay = beta2_decay
        self.eps = (eps[0], float(eps[1]))
        self.d = d
        self.weight_decay = weight_decay

    def _states(self, value: Tensor) -> dict[str, torch.Size]:
        if value.ndim == 1:
            return {"square": value.shape}
        chunks = -(-len(value) // self.chunk_labels)
        return {"row": value.shape[:1], "column": torch.Size([chunks, value.shape[1]])}

    def _move(self, name: str, value: Tensor, gradient: Tensor, begin: int, end: int) -> None:
        least = torch.finfo(value.dtype).eps if self.eps[0] is None else self.eps[0]
        forgotten = (self.steps**self.beta2_decay).to(value.dtype)
        rate = (self.steps**-0.5).clamp(max=self.lr).to(value.dtype) * _size(value).clamp(min=self.eps[1])
        if self.weight_decay:
            value.mul_(1 - self.lr * self.weight_decay)
        if gradient.ndim == 1:
            square = self._state(f"{name}_square", begin, end).lerp_(gradient.square(), forgotten).clone()
        else:
            chunk = begin // self.chunk_labels
            row = self._state(f"{name}_row", begin, end)
            column = self._state(f"{name}_column", chunk, chunk + 1)[0]
            row.lerp_(torch.linalg.vector_norm(gradient, dim=1).square_().div_(gradient.shape[1]), forgotten)
            column.lerp_(torch.linalg.vector_norm(gradient, dim=0).square_().div_(gradient.shape[0]), forgotten)
            square = torch.outer(row / row.mean().clamp(min=least), column)
        step = square.clamp_(min=least**2).rsqrt_().mul_(gradient)
        value.sub_(step.mul_(rate / (_size(step) / self.d).clamp(min=1)))


def _size(values: Tensor) -> Tensor:
    """Return the root of the mean square."""
    size: Tensor = torch.linalg.vector_norm(values) / values.numel() ** 0.5
    return size


def stochastically_rounded(values: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return float32 in bfloat16, rounded up as often as it lies near the next number: right on average.

    Args:
        values: Finite, float32.
        generator: Where the noise comes from. None is torch's own.

    Example:
        >>> stochastically_rounded(torch.tensor([1.0, -2.5]))
        tensor([ 1.0000, -2.5000], dtype=torch.bfloat16)
    """
    bits = values.float().view(torch.int32)
    noise = torch.randint(0, 2**16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    return (bits + noise).bitwise_and_(-(2**16)).view(torch.float32).bfloat16()
