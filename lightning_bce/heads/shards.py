"""LabelShards: which labels each rank of a head holds, and the little that the ranks tell each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_bce.heads.targets import SparseTarget

if TYPE_CHECKING:
    from torch.distributed import Work
    from torch.distributed.device_mesh import DeviceMesh


class LabelShards:
    """A contiguous slice of the labels for each rank of a mesh, cut as DTensor cuts its first dimension.

    Args:
        mesh: Of one dimension; its process group is the only one that is used.
        num_labels: Number of labels C, of all ranks.

    Raises:
        TypeError: If it is no mesh.
        ValueError: If it has several dimensions, or a rank would have no label.
    """

    def __init__(self, mesh: DeviceMesh, num_labels: int) -> None:
        if not hasattr(mesh, "get_group"):
            raise TypeError(
                f"`mesh` is {type(mesh).__name__}; a DeviceMesh was expected: `self.device_mesh['tensor_parallel']` in "
                "`configure_model` under ModelParallelStrategy, or, once the process group is initialised, "
                "`torch.distributed.device_mesh.init_device_mesh('cuda', (ranks,))`."
            )
        if mesh.ndim != 1:
            raise ValueError(
                f"`mesh` has {mesh.ndim} dimensions, {mesh.mesh_dim_names}; one was expected, that of the ranks which "
                "share the labels and see the same batches, such as `mesh['tensor_parallel']`."
            )
        ranks = mesh.size()
        size = -(-num_labels // ranks)
        if size * (ranks - 1) >= num_labels:
            raise ValueError(
                f"{num_labels} labels over {ranks} ranks, {size} for each, leave a rank without any. Give a mesh of "
                "fewer ranks."
            )
        self.mesh = mesh
        self.size = size
        """Labels of each rank but the last, which may have fewer."""
        begin = mesh.get_local_rank() * size
        self.own = range(begin, min(begin + size, num_labels))
        """The labels of this rank."""
        self._compared = False

    def __deepcopy__(self, memo: dict[int, Any]) -> LabelShards:
        """Return itself: process groups cannot be copied, and a copy of a head has the same labels on each rank."""
        return self

    def part(self, whole: Tensor) -> Tensor:
        """Return a DTensor of which this rank holds its labels: those of rank 0's tensor, uninitialised if on meta."""
        from torch.distributed.tensor import DTensor, Shard, distribute_tensor

        whole = whole.detach()
        if not whole.is_meta:
            return distribute_tensor(whole, self.mesh, [Shard(0)])
        own = torch.empty(len(self.own), *whole.shape[1:], dtype=whole.dtype, device=self.mesh.device_type)
        shape, stride = whole.shape, whole.stride()
        made: Tensor = DTensor.from_local(own, self.mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
        return made

    def random(self, device: torch.device) -> torch.Generator:
        """Return a source of numbers that differ from rank to rank, whatever the ranks are seeded with."""
        seeds = self.beside(torch.randint(2**40, (1, 1), device="cpu").to(device))
        return torch.Generator(device).manual_seed(int(seeds[0, 0]) + self.mesh.get_local_rank())

    def check_held(self, parameter: Tensor) -> None:
        """Refuse a parameter that is not sharded by labels, or at this moment is by something else too."""
        found: Any = parameter
        mesh = getattr(found, "device_mesh", None)
        if mesh is None or mesh != self.mesh:
            came = "a plain tensor" if mesh is None else f"a DTensor on {mesh} with {found.placements}"
            raise RuntimeError(
                f"The head's labels are sharded over {self.mesh}, and its weights are {came}. After `shard_labels` "
                "replace no parameter; with `fully_shard(head)` in addition, register what is called beside `forward`: "
                "`torch.distributed.fsdp.register_fsdp_forward_method(head, 'loss_and_sums')`, and so for 'topk', "
                "'probability' and 'log_loss_sums'."
            )

    def add_up(self, tensor: Tensor) -> Tensor:
        """Return the sum over the ranks, in the place of the tensor."""
        torch.distributed.all_reduce(tensor, group=self.mesh.get_group())
        return tensor

    def begin_to_add_up(self, tensor: Tensor) -> Work:
        """Begin to add a tensor up over the ranks in its place; it is done after ``wait()``."""
        work: Any = torch.distributed.all_reduce(tensor, group=self.mesh.get_group(), async_op=True)
        return work  # type: ignore[no-any-return]

    def beside(self, tensor: Tensor) -> Tensor:
        """Return the tensors (N, K) of all ranks beside each other, (N, ranks * K)."""
        found = [torch.empty_like(tensor) for _ in range(self.mesh.size())]
        torch.distributed.all_gather(found, tensor.contiguous(), group=self.mesh.get_group())
        return torch.cat(found, 1)

    def compare(self, target: SparseTarget, always: bool) -> None:
        """Refuse ranks that see different batches, whose numbers would be of none: at the first batch, or always.

        It waits for the device once, as the check of a target's values does.
        """
        if self._compared and not always:
            return
        self._compared = True
        places = (target.labels + 1) * (target.rows + 1)
        seen = torch.tensor([len(target), len(target.labels)], device=target.device)
        seen = torch.cat([seen, torch.stack([target.labels.sum(), places.sum()])])
        by_rank = self.beside(seen[:, None])
        if not bool((by_rank == by_rank[:, :1]).all()):
            raise ValueError(
                f"The ranks that share the labels see different batches: {by_rank[0].tolist()} samples with "
                f"{by_rank[1].tolist()} labels, rank by rank. All of them need every sample and its target of all "
                "labels: under ModelParallelStrategy Lightning's sampler sees to it, elsewhere take the same sampler "
                "on each rank, or gather inputs and targets before."
            )
