"""ranks - the processes of one run on several GPUs: which share is whose, and how shares become one.

Idea      torchrun starts one process for each GPU, and all of them run the same program: each takes its share of the windows
          and of the rows, sums and shares are exchanged, so every process knows the whole and goes the same way. Rank 0 alone
          writes. One process is the case in which nothing is sent.
Traps     All ranks must call what exchanges in the same order, from one thread. All read the same folders.
"""

import itertools
import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def started() -> int:
    """Processes that torchrun has started, whether they have met or not."""
    return int(os.environ.get("WORLD_SIZE", "1")) if dist.is_available() else 1


def count() -> int:
    """Processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mine() -> int:
    """The number of this one."""
    return dist.get_rank() if dist.is_initialized() else 0


def begin(device: torch.device) -> torch.device:
    """Meet the other processes that torchrun started, if any; the device of this one."""
    if started() == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def share(total: int, step: int = 1) -> slice:
    """This rank's part of `total` things that stay together in `step`s."""
    return shares(total, step)[mine()]


def shares(total: int, step: int = 1) -> list[slice]:
    """The part of every rank, in order."""
    pieces, ranks = total // step, count()
    ends = [pieces * r // ranks * step for r in range(ranks)] + [total]
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def add(tensor: Tensor, greatest: bool = False) -> Tensor:
    """The sum of a tensor over all ranks, in place; or the greatest of each element."""
    if count() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX if greatest else dist.ReduceOp.SUM)
    return tensor


def total(numbers: Iterable[float], device: torch.device) -> list[float]:
    """The sums of some numbers over all ranks."""
    return list(numbers) if count() == 1 else add(torch.tensor([*numbers], dtype=torch.float64, device=device)).tolist()


def rows(tensor: Tensor, total: int, step: int = 1) -> Tensor:
    """The whole [total, ...] of which this rank has its `share` of rows."""
    if count() == 1:
        return tensor
    whole = tensor.new_empty(total, *tensor.shape[1:])
    for rank, part in enumerate(shares(total, step)):
        if rank == mine():
            whole[part] = tensor
        if part.stop > part.start:
            dist.broadcast(whole[part].view(torch.uint8), rank)
    return whole


def first(tensor: Tensor) -> Tensor:
    """What rank 0 has, of whatever shape."""
    if count() == 1:
        return tensor
    shape = told(tensor.shape)
    found = tensor.contiguous() if mine() == 0 else tensor.new_empty(shape)
    dist.broadcast(found.view(-1).view(torch.uint8), 0)
    return found


def agree(tensors: Iterable[Tensor]) -> None:
    """Give tensors that every rank has made what they hold on rank 0, in place."""
    for tensor in tensors if count() > 1 else ():
        flat = tensor.reshape(-1)
        dist.broadcast(flat.view(torch.uint8), 0)
        tensor.copy_(flat.view(tensor.shape))


def told(value: Any) -> Any:
    """The plain data that rank 0 has."""
    box = [value]
    if count() > 1:
        dist.broadcast_object_list(box, 0)
    return box[0]


def everyone(value: Any) -> list[Any]:
    """The plain data of every rank, in order."""
    found = [value] * count()
    if count() > 1:
        dist.all_gather_object(found, value)
    return found


def meet() -> None:
    """Wait until every rank is here."""
    if count() > 1:
        dist.barrier()
