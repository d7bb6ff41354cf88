"""MultiLabelHead: the last linear layer and its loss in one, for so many labels that (N, C) must not exist."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_bce.engine import sum_dtype
from lightning_bce.engine.memory import own_part
from lightning_bce.heads.backward import HeadFunction
from lightning_bce.heads.formula import HeadFormula
from lightning_bce.heads.precision import full_dtype, not_narrowed
from lightning_bce.heads.prediction import best_labels, scores_of
from lightning_bce.heads.shards import LabelShards
from lightning_bce.heads.targets import SparseTarget
from lightning_bce.heads.updates import ChunkUpdate
from lightning_bce.heads.walk import Counts, Walk, can_compile, chunk_size
from lightning_bce.losses import BCEWithLogitsLoss, BinaryLoss, LossSums
from lightning_bce.losses.checks import check_factor, check_unit, check_whole
from lightning_bce.losses.sums import safe_ratio
from lightning_bce.spec import Recorded

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class MultiLabelHead(Recorded, nn.Module):
    r"""The last linear layer and its loss in one, for 10^4 to 10^7 labels.

    The numbers are those of ``loss(nn.Linear(in_features, num_labels)(inputs), dense_target)``, the memory is not:
    neither logits nor dense targets of (N, C) exist, in training, evaluation or prediction. The labels go by in chunks,
    of each the logits, the loss and all gradients are computed at once, and the gradient of the weights is written
    where the optimizer finds it, and handed over without a copy.

    Called with inputs (N, D) and a target it returns the reduced loss; :meth:`loss_and_sums` returns the
    :class:`LossSums` too, :meth:`topk` and :meth:`probability` predict.

    The gradients are computed in the forward pass, for an upstream gradient that is one number: a second backward and
    ``create_graph`` raise :class:`HeadBackwardError`. Whatever the dtype of the weights, logits, loss, gradients of the
    logits and the sum of the inputs' gradient are in float32 or better.

    Args:
        in_features: Width D of the inputs.
        num_labels: Number of labels C.
        loss: By element, with one formula for all labels or constants of one number for each. None is
            BCEWithLogitsLoss.
        bias: Whether each label has a bias.
        prior: Frequency of the positives in (0, 1) at which the biases begin. None begins them as nn.Linear does. With
            few positives the first steps then do not go into the bias.
        chunk_labels: Labels in a chunk. None takes as many as have 4 MiB of logits, on a GPU 32 MiB.
        per_label: Whether the sums are by label, (C, 2), or of all, (1, 2).
        update: Steps each chunk within the walk, so that the gradient of the weights never exists: :class:`ChunkSGD`,
            :class:`ChunkAdamW` or :class:`ChunkAdafactor`. The parameters then require no gradient, and a call in
            training mode with gradients enabled moves them. None leaves them to an ordinary optimizer.
        device: Where the parameters are made.
        dtype: Of the weights, also as a name such as "bfloat16". None is torch's default. The bias stays in float32 if
            they have fewer digits.

    Raises:
        ValueError: If an option is out of range, or the loss cannot be computed label by label, with the reason.
        TypeError: If an option is of another type.

    Example:
        >>> head = MultiLabelHead(16, 1000)
        >>> inputs = torch.randn(2, 16, requires_grad=True)
        >>> loss = head(inputs, [[3, 999], []])  # the labels of the first sample; the second has none
        >>> loss.backward()
        >>> head.weight.grad.shape
        torch.Size([1000, 16])
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        num_labels: int,
        loss: BinaryLoss | None = None,
        *,
        bias: bool = True,
        prior: float | None = None,
        chunk_labels: int | None = None,
        per_label: bool = False,
        update: ChunkUpdate | None = None,
        device: Any = None,
        dtype: torch.dtype | str | None = None,
    ) -> None:
        super().__init__()
        dtype = _dtype(dtype)
        check_whole("in_features", in_features, at_least=1)
        check_whole("num_labels", num_labels, at_least=1)
        if chunk_labels is not None:
            check_whole("chunk_labels", chunk_labels, at_least=1)
        check_unit("prior", prior)
        if prior is not None and not (bias and 0 < prior < 1):
            raise ValueError(
                f"`prior` is {prior}; a frequency strictly between 0 and 1 was expected, and `bias=True`, which it "
                "sets."
            )
        own = None if update is None else update.chunk_labels
        if own is not None and chunk_labels not in (None, own):
            raise ValueError(
                f"`chunk_labels` is {chunk_labels}, and {type(update).__name__} has statistics of chunks of {own} "
                "labels. Leave it out here."
            )
        self.in_features = in_features
        self.num_labels = num_labels
        self.chunk_labels = own or chunk_labels
        self.per_label = per_label
        self.prior = prior
        self.loss: BinaryLoss = BCEWithLogitsLoss() if loss is None else loss
        self._formula = HeadFormula(self.loss, num_labels)
        self._plain: HeadFormula | None = None
        self.weight = nn.Parameter(torch.empty(num_labels, in_features, device=device, dtype=dtype))
        kept = full_dtype(self.weight.dtype)
        self.bias = nn.Parameter(torch.empty(num_labels, device=device, dtype=kept)) if bias else None
        self.dense_part: float | None = None
        """Of the last training pass, the part whose products backward were whole: docs/howto/many-labels.md"""
        self.update = update
        self._shards: LabelShards | None = None
        self.reset_parameters()
        if update is not None:
            for parameter in self.parameters():
                parameter.requires_grad_(False)
            update.attach(weight=self.weight, bias=self.bias)

    def reset_parameters(self) -> None:
        """Draw the parameters as nn.Linear does, set the biases to the prior if there is one, and begin anew."""
        bound = 1 / math.sqrt(self.in_features)
        weight, bias = own_part(self.weight.detach()), None if self.bias is None else own_part(self.bias.detach())
        random = None if self._shards is None else self._shards.random(weight.device)
        weight.uniform_(-bound, bound, generator=random)
        if bias is not None and self.prior is None:
            bias.uniform_(-bound, bound, generator=random)
        elif bias is not None:
            assert self.prior is not None
            bias.fill_(math.log(self.prior) - math.log1p(-self.prior))
        if self.update is not None:
            self.update.reset()

    # -- labels over ranks --------------------------------------------------------------------------------------------

    def shard_labels(self, mesh: DeviceMesh) -> None:
        """Keep of the labels only this rank's: a contiguous slice of weights, biases and the optimizer's state.

        Every rank of the mesh then needs every sample of a batch, with its target of all labels, as Lightning's sampler
        deals them out under ModelParallelStrategy. Losses, sums, gradients of the inputs, :meth:`topk` and
        :meth:`probability` are those of the whole head, the same on all ranks. The ranks add up the gradient of the
        inputs and the sums of the loss; predicting, they exchange the k best of each. Nothing else is communicated.

        The parameters become DTensors, which begin as the whole head of the mesh's first rank; a head made with
        ``device="meta"`` exists nowhere as a whole, and each rank draws its own labels. Call it before the optimizer is
        made, in Lightning in ``configure_model``: ``self.head.shard_labels(self.device_mesh["tensor_parallel"])``. A
        second call with the same mesh does nothing, because Lightning calls that hook before every run.

        Where a second dimension of the mesh has batches of its own, FSDP2 exchanges the gradients over it. It watches
        `forward` alone: ``fully_shard(self.head, mesh=self.device_mesh["data_parallel"])``, then
        ``register_fsdp_forward_method(self.head, name)`` for "loss_and_sums", "log_loss_sums" and "topk". Needs torch
        2.5, for FSDP2 2.6. torch does not clip by norm where some weights are sharded and others whole.

        Whole state dicts, which fit any head, are those of ``torch.distributed.checkpoint.state_dict`` with
        ``full_state_dict=True``, which Lightning takes with ``save_distributed_checkpoint=False``.

        Args:
            mesh: Of one dimension.

        Raises:
            TypeError: If it is no mesh.
            ValueError: If it has several dimensions, or a rank would have no label.
            RuntimeError: If the head is sharded already.
        """
        shards = LabelShards(mesh, self.num_labels)
        if self._shards is not None and self._shards.mesh == mesh:
            return
        if self._shards is not None or any(hasattr(p, "device_mesh") for p in self.parameters()):
            raise RuntimeError(
                "The head's parameters are sharded already, over another mesh. Call `shard_labels` with one mesh, and "
                "before `fully_shard`."
            )
        if self.update is not None:
            self.update.shard(shards.part, shards.size)
        drawn = self.weight.is_meta
        for name, parameter in list(self.named_parameters(recurse=False)):
            setattr(self, name, nn.Parameter(shards.part(parameter), requires_grad=parameter.requires_grad))
        self._shards = shards
        if drawn:
            self.reset_parameters()

    @property
    def is_sharded(self) -> bool:
        """Whether :meth:`shard_labels` was called."""
        return self._shards is not None

    @property
    def own_labels(self) -> range:
        """The labels that this rank computes: all of them, unless :meth:`shard_labels` was called."""
        return range(self.num_labels) if self._shards is None else self._shards.own

    def _held(self) -> tuple[Tensor, Tensor | None]:
        """Return weights and biases of this rank's labels, differentiable."""
        if self._shards is None:
            return self.weight, self.bias
        self._shards.check_held(self.weight)
        return own_part(self.weight), None if self.bias is None else own_part(self.bias)

    def _of_all(self, losses: Tensor) -> Tensor:
        """Return the sums of the loss over the labels of all ranks."""
        if self._shards is None:
            return losses
        whole = losses
        if self.per_label:
            whole = losses.new_zeros(self.num_labels, 2)
            whole[self.own_labels.start : self.own_labels.stop] = losses
        return self._shards.add_up(whole)

    def _arguments(self) -> tuple[dict[str, Any], dict[str, Any]]:
        # A checkpoint names the dtype, and a module that is built from it goes to the device that is there then.
        given, defaults = super()._arguments()
        given.pop("device", None)
        if isinstance(given.get("dtype"), torch.dtype):
            given["dtype"] = str(given["dtype"]).removeprefix("torch.")
        return given, defaults

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"in_features={self.in_features}, num_labels={self.num_labels}, bias={self.bias is not None}"

    # -- loss ---------------------------------------------------------------------------------------------------------

    def forward(self, inputs: Tensor, target: Any, weight: Tensor | None = None) -> Tensor:
        """Return the reduced loss in nats; see :meth:`loss_and_sums`."""
        return self.loss_and_sums(inputs, target, weight)[0]

    def loss_and_sums(self, inputs: Tensor, target: Any, weight: Tensor | None = None) -> tuple[Tensor, LossSums]:
        """Return the reduced loss, differentiable, and its sums by side, which are not.

        Args:
            inputs: (N, D), floating point.
            target: A :class:`SparseTarget`, or what :meth:`SparseTarget.of` takes: lists of labels, padded lists
                (N, K), a sparse tensor (N, C). Made in the collate function, it costs the training nothing.
            weight: Factors of at least 0: (N,) one for each sample, or (1, C) one for each label.

        Returns:
            The loss in float32 or better, and the sums, (1, 2), or (C, 2) with ``per_label``.

        Raises:
            ValueError: If shapes do not fit.
        """
        target = self._target(inputs, target)
        row, label = self._weights(inputs, weight)
        counts = self._counts(target, row, label)
        walk = self._walk(inputs, target, Counts(row, self._class_weight(label)))
        wide = sum_dtype(inputs)
        counted = self._counted(target, counts, wide)
        total_weight = counted.sum()
        if self.loss.reduction != "sum":
            walk = walk._replace(scale=1 / torch.where(total_weight == 0, 1.0, total_weight))
        # [needs_input_grad] Under `no_grad` autograd.Function still says that inputs need gradients, and validation
        # would pay for them. So it is asked here.
        learning = torch.is_grad_enabled()
        weight, bias = walk.weight, walk.bias
        wanted = tuple(learning and t is not None and t.requires_grad for t in (inputs, weight, bias))
        if learning and self.update is not None and self.training:
            walk, wanted = walk._replace(step=self._step), (wanted[0], True, self.bias is not None)
            self.update.begin()
        if any(wanted):
            loss, losses = HeadFunction.apply(inputs, weight, bias, walk, wanted, self)  # type: ignore[no-untyped-call]
        else:
            losses = self._of_all(walk.run((False, False, False))[0])
            loss = losses.sum()
            loss = (loss if self.loss.reduction == "sum" else safe_ratio(loss, total_weight)).to(self._full)
        return loss, LossSums(losses.to(self._full), counted.to(self._full))

    def _step(self, begin: int, end: int, of_weight: Tensor, of_bias: Tensor | None) -> None:
        assert self.update is not None
        self.update.step("weight", own_part(self.weight.data), of_weight, begin, end)
        if self.bias is not None and of_bias is not None:
            self.update.step("bias", own_part(self.bias.data), of_bias, begin, end)

    # -- prediction ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def topk(self, inputs: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k most probable labels of each sample, chunk by chunk.

        Args:
            inputs: (N, D).
            k: How many, from 1 to C.

        Returns:
            Probabilities in float32 or better and labels, (N, k) both, the most probable first.

        Raises:
            ValueError: If ``k`` is out of range or the inputs have another width.
        """
        self._check_inputs(inputs)
        if not 1 <= k <= self.num_labels:
            raise ValueError(f"`k` is {k}; from 1 to the head's {self.num_labels} labels were expected.")
        scores, labels = best_labels(inputs, *self._held(), min(k, len(self.own_labels)), self._chunk(inputs))
        if self._shards is not None:
            missing = k - scores.shape[1]  # where a rank holds fewer than k labels
            scores = self._shards.beside(F.pad(scores, (0, missing), value=-math.inf))
            labels = self._shards.beside(F.pad(labels + self.own_labels.start, (0, missing)))
            scores, kept = scores.topk(k, dim=1)
            labels = labels.gather(1, kept)
        return torch.sigmoid(scores), labels

    @torch.no_grad()
    def probability(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the probabilities of chosen labels.

        Args:
            inputs: (N, D).
            labels: (K,) for the same labels of every sample, or (N, K).

        Returns:
            (N, K) in float32 or better.

        Raises:
            ValueError: If shapes do not fit.
        """
        self._check_inputs(inputs)
        if labels.ndim not in (1, 2) or (labels.ndim == 2 and len(labels) != len(inputs)):
            raise ValueError(
                f"`labels` has shape {tuple(labels.shape)}; (K,) for all samples or ({len(inputs)}, K) was expected."
            )
        weight, bias = self._held()
        if self._shards is None:
            return torch.sigmoid(scores_of(inputs, weight, bias, labels))
        if bool(((labels < 0) | (labels >= self.num_labels)).any()):
            raise ValueError(
                f"`labels` lie from {labels.min()} to {labels.max()}; 0 to {self.num_labels - 1} were expected."
            )
        held = (labels >= self.own_labels.start) & (labels < self.own_labels.stop)
        scores = scores_of(inputs, weight, bias, torch.where(held, labels - self.own_labels.start, 0))
        return torch.sigmoid(self._shards.add_up(torch.where(held, scores, 0.0)))

    def _check_inputs(self, inputs: Any) -> None:
        if not isinstance(inputs, Tensor) or inputs.ndim != 2 or inputs.shape[1] != self.in_features:
            came = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise ValueError(
                f"`inputs` is {came}; (N, {self.in_features}) was expected, what the layer before the head returns. "
                "Flatten other dimensions into the first."
            )

    def _chunk(self, inputs: Tensor) -> int:
        # A step within the walk holds the gradient of a chunk's weights too.
        numbers = len(inputs) if self.update is None else max(len(inputs), self.in_features)
        chunk = self.chunk_labels or chunk_size(numbers, self.weight.dtype, inputs.device)
        return min(chunk, len(self.own_labels))

    @torch.no_grad()
    def log_loss_sums(self, inputs: Tensor, target: Any) -> LossSums:
        """Return the sums of the plain cross-entropy, whatever the loss is; the arguments are those of :meth:`forward`.

        Comparable between heads of different losses; (1, 2), or (C, 2) with ``per_label``.
        """
        target = self._target(inputs, target)
        if self._plain is None:
            self._plain = HeadFormula(BCEWithLogitsLoss(fused=self.loss.fused), self.num_labels)
        nothing = Counts(None, None)
        losses, *_ = self._walk(inputs, target, nothing)._replace(formula=self._plain).run((False, False, False))
        losses = self._of_all(losses)
        return LossSums(losses.to(self._full), self._counted(target, nothing, losses.dtype).to(self._full))

    @property
    def _full(self) -> torch.dtype:
        return full_dtype(self.weight.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # The bias stays in float32: to the nearest in bfloat16 most of its steps are lost, and it is small.
        kept = () if self.bias is None else (self.bias, self.bias.grad)

        def keeping(tensor: Tensor) -> Tensor:
            return not_narrowed(fn, tensor, copy=True) if any(tensor is one for one in kept) else fn(tensor)

        return super()._apply(keeping, recurse)  # type: ignore[no-untyped-call]

    def _target(self, inputs: Tensor, target: Any) -> SparseTarget:
        self._check_inputs(inputs)
        found = SparseTarget.of(target, self.num_labels, self.loss.ignore_index).to(inputs.device)
        if len(found) != len(inputs):
            raise ValueError(f"There are {len(inputs)} inputs and targets of {len(found)} samples: one for each.")
        if self._shards is not None and self.loss.validate != "off":
            self._shards.compare(found, always=self.loss.validate == "always")
        return found

    def _weights(self, inputs: Tensor, weight: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the weights of samples and of labels that also count, of the call and of the loss."""
        row = label = None
        own = self.loss._buffers.get("weight")
        if own is not None:
            label = own.flatten().expand(self.num_labels)
        if weight is None:
            return row, label
        if not isinstance(weight, Tensor):
            raise TypeError(f"`weight` is {type(weight).__name__}; a tensor was expected.")
        if self.loss.validate != "off" and weight.device.type == "cpu":  # elsewhere the host would wait
            check_factor("weight", weight)
        weight = weight.detach()
        if tuple(weight.shape) in ((len(inputs),), (len(inputs), 1)):
            row = weight.flatten()
        elif tuple(weight.shape) == (1, self.num_labels):
            label = weight[0] if label is None else label * weight[0]
        else:
            raise ValueError(
                f"`weight` has shape {tuple(weight.shape)}; expected ({len(inputs)},) for one value per sample or (1, "
                f"{self.num_labels}) for one per label. One for each element would be as large as the logits."
            )
        return row, label

    def _class_weight(self, label: Tensor | None) -> Tensor | None:
        own = self.loss.class_weight
        if own is None:
            return label
        return own if label is None else own * label

    def _counts(self, target: SparseTarget, row: Tensor | None, label: Tensor | None) -> Counts:
        reduction = self.loss.reduction
        if reduction == "weighted_mean":
            return Counts(row, label)
        if reduction == "batchmean":
            known = torch.full((len(target),), self.num_labels, dtype=self._full, device=target.device)
            if target.values is not None:
                known.index_add_(0, target.rows, -target.values.isnan().to(known.dtype))
            return Counts(1 / known.clamp(min=1), None)
        return Counts(None, None)

    def _counted(self, target: SparseTarget, counts: Counts, dtype: torch.dtype) -> Tensor:
        """Return what the elements count by side, (rows, 2)."""
        of_entries = counts.of_entries(target, dtype)
        positive = gone = of_entries
        if target.values is not None:
            positive = torch.where(target.values > 0.5, of_entries, 0.0)
            gone = torch.where(target.values.isnan(), of_entries, positive)  # what is unknown counts on no side
        if not self.per_label:
            return torch.stack([counts.total(target, dtype) - gone.sum(), positive.sum()])[None]
        negatives = counts.by_label(target, dtype).index_add_(0, target.labels, -gone)
        return torch.stack([negatives, torch.zeros_like(negatives).index_add_(0, target.labels, positive)], 1)

    def _walk(self, inputs: Tensor, target: SparseTarget, factors: Counts) -> Walk:
        """Return a walk over the labels that this rank holds; target and factors are of all."""
        one = torch.ones((), dtype=sum_dtype(inputs), device=inputs.device)
        own = self.own_labels
        if self._shards is not None:
            target = target.of_labels(own.start, own.stop)
            label = None if factors.label is None else factors.label[own.start : own.stop]
            factors = Counts(factors.row, label)
        weight, bias = self._held()
        return Walk(
            self._formula,
            inputs,
            weight,
            bias,
            target,
            factors,
            one,
            self._chunk(inputs),
            can_compile(self._formula, inputs.device, target.numel()),
            self.per_label,
            own.start,
        )


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found is not None and (not isinstance(found, torch.dtype) or not found.is_floating_point):
        raise ValueError(f"`dtype` is {dtype!r}; a floating-point dtype was expected, such as 'bfloat16'.")
    if found is None and dtype is not None:
        raise ValueError(f"`dtype` is {dtype!r}, which torch does not have. Write 'bfloat16' or 'float32'.")
    return found
