"""Several processes on one job: which of them this is, and the few ways in which they speak to each other.

They are started by torchrun, or by hand with its four environment variables; or they are a process group of the caller's that is there
already. A lone process is a job of size 1, for which nothing here does anything.

What is learnt goes the way of torch's DistributedDataParallel, without its class: that one wraps a module whose forward computes the
loss, and a pair of Pyro programs has no such module; and it listens to autograd's hooks, which a compiled step does not fire. So the
gradients of a step are laid end to end in one tensor, and summed by one all_reduce. Buffers follow DDP's rule: before each step every
process gets those of the first, so that running statistics are those of the first process's share of the data.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree

from ppvae.errors import ProgramError, RunError, in_a_line

Item = TypeVar("Item")
Result = TypeVar("Result")

ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
# nccl does not see that a process has died, and waits. Numbers go by gloo, which does, just before: so that whoever then waits this
# long for gradients waits for nobody.
NCCL_TIMEOUT = datetime.timedelta(seconds=20)


class LostRankError(RunError):
    """Another process of the same job has ended, or cannot be reached."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a job, as one of them sees them.

    Attributes:
        rank: Which this is, from 0. The first alone prints and writes.
        size: How many there are.
        device: Where this one computes; None where nobody has said.
        control: The group that numbers and objects go through (gloo).
        tensors: The group that gradients and parameters go through (gloo, or nccl between GPUs).
    """

    rank: int = 0
    size: int = 1
    device: torch.device | None = None
    control: Any = None
    tensors: Any = None

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """The part of ``total`` rows that is this process's: consecutive, sizes that differ by one at most; none where rows are few."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def gathered(self, numbers: Sequence[float]) -> Tensor:
        """The numbers of every process, (size, len(numbers)), float64.

        Raises:
            LostRankError: Another process has ended.
        """
        mine = torch.tensor(numbers, dtype=torch.float64)
        if self.size == 1:
            return mine[None]
        found = [torch.empty_like(mine) for _ in range(self.size)]
        with self._speaking():
            dist.all_gather(found, mine, group=self.control)
        return torch.stack(found)

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums over all processes of tensors whose shapes are the same on all, by one exchange; the same bits everywhere.

        Raises:
            LostRankError: Another process has ended.
        """
        if self.size == 1 or not tensors:
            return list(tensors)
        dtype = max((t.dtype for t in tensors), key=lambda d: torch.finfo(d).bits)
        flat = torch.cat([t.detach().reshape(-1).to(dtype) for t in tensors])
        with self._speaking():
            dist.all_reduce(flat, group=self.tensors)
        parts = flat.split([t.numel() for t in tensors])
        return [part.view(t.shape).to(t.dtype) for part, t in zip(parts, tensors, strict=True)]

    def take_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors the values that they have on the first process, in place, by one exchange.

        Raises:
            LostRankError: Another process has ended.
        """
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([_bytes(t).to(tensors[0].device) for t in tensors])
        with self._speaking():
            dist.broadcast(flat, group_src=0, group=self.tensors)
        parts = flat.split([t.numel() * t.element_size() for t in tensors])
        with torch.no_grad():
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))

    def exchanged(self, value: Any) -> list[Any]:
        """The objects of every process, in their order. Tensors in tuples, lists and dicts keep every bit.

        Raises:
            LostRankError: Another process has ended.
        """
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with self._speaking():
            dist.all_gather_object(found, _pytree.tree_map_only(Tensor, _Sent.of, value), group=self.control)
        return [_pytree.tree_map_only(_Sent, lambda sent: sent.on(self.device), one) for one in found]

    def by_first(self, function: Callable[[], Result]) -> Result:
        """What a function gives on the first process, which alone calls it, on all of them; what it raises, all raise."""
        if self.size == 1:
            return function()
        found: Result = _opened(self.exchanged(_tried(function) if self.first else None)[0])
        return found

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.gathered([0.0])

    def check_same(self, value: Any, what: str) -> None:
        """Raise on all processes where a value, compared by ``repr``, is not the same on all.

        Raises:
            RunError: naming the process that differs.
        """
        if self.size == 1:
            return
        found = self.exchanged(value)
        other = next((rank for rank, one in enumerate(found) if repr(one) != repr(found[0])), None)
        if other is not None:
            raise RunError(
                f"{what} of process {other} are not those of process 0",
                where=_difference(found[0], found[other]),
                mend="start all processes by one command, with the same arguments, files and seeds",
            )

    def check_equal(self, tensors: Sequence[Tensor]) -> None:
        """Raise on all processes where parameters have gone apart: by the sum of their bits, read as whole numbers.

        Raises:
            RunError: naming a process.
        """
        if self.size == 1:
            return
        sums = torch.stack([_bytes(t).to(torch.int64).sum().cpu() for t in tensors]) if tensors else torch.zeros(1, dtype=torch.int64)
        found = self.gathered(sums.tolist())
        other = (found != found[0]).any(1).nonzero()[:, 0]
        if len(other):
            raise RunError(
                f"the parameters of process {int(other[0])} have gone apart from those of process 0",
                where=f"in {int((found[other[0]] != found[0]).sum())} of {len(tensors)} tensors",
                mend="an optimizer or a program that draws, or keeps numbers of its own, must do so alike in all processes",
            )

    def each(self, items: Iterable[Item], work: Callable[[Item], Result]) -> Iterator[tuple[Item, Result]]:
        """Every item with the result of work on it, in order, the same on all processes: each takes its turn in doing one.

        The work must depend on its item alone; it is itself not shared out any further. What it raises, all raise.

        Raises:
            LostRankError: Another process has ended.
        """
        if self.size == 1:
            for item in items:
                yield item, work(item)
            return
        left = iter(items)
        while turn := list(itertools.islice(left, self.size)):
            mine = None
            if self.rank < len(turn):
                with sharing(ALONE):
                    mine = _tried(functools.partial(work, turn[self.rank]))
            found = self.exchanged(mine)
            for item, one in zip(turn, found, strict=False):
                yield item, _opened(one)

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch's errors of communication are of this kind, and nothing else runs in here
            raise LostRankError(
                f"process {self.rank} of {self.size} has lost another process of this job, which ended or cannot be reached",
                where=in_a_line(error).split(". ")[0],
                mend="look for what the other process said last; a run goes on from its newest checkpoint with --resume (resume=True)",
            ) from error


ALONE = Ranks()
_current: ContextVar[Ranks | None] = ContextVar("ranks", default=None)
_sharing: ContextVar[Ranks] = ContextVar("sharing", default=ALONE)


def shared() -> Ranks:
    """The processes that measurement is shared out to; this one alone unless ``sharing`` says otherwise."""
    return _sharing.get()


@contextlib.contextmanager
def sharing(ranks: Ranks) -> Iterator[None]:
    """Share measurement out to the processes of a job inside: all of them must then measure the same things in the same order.

    Log weights, refinement and annealing cut their work into blocks that draw from seeds of their own, so every process ends with all
    numbers, and they are the same for any number of processes with equally many threads each.
    """
    token = _sharing.set(ranks)
    try:
        yield
    finally:
        _sharing.reset(token)


@contextlib.contextmanager
def started(device: str | torch.device = "cpu") -> Iterator[Ranks]:
    """The processes of this job: those that are known already, else those of the process group, else those that torchrun has started.

    Args:
        device: What to compute on; with "cuda" or "auto", where there are GPUs, each process of a machine has one of its own.
    """
    known = _current.get()
    if known is not None:
        yield known
        return
    there = dist.is_available() and dist.is_initialized()
    if not there and (not dist.is_available() or any(name not in os.environ for name in ENVIRONMENT) or os.environ["WORLD_SIZE"] == "1"):
        yield Ranks(device=_device(device))
        return
    if not there:
        dist.init_process_group("gloo")
    ranks = _ranks(_device(device))
    token = _current.set(ranks)
    try:
        yield ranks
    finally:
        _current.reset(token)
        if not there:
            with contextlib.suppress(RuntimeError):  # whoever goes by an error has said so
                dist.destroy_process_group()


def _ranks(device: torch.device) -> Ranks:
    rank, size = dist.get_rank(), dist.get_world_size()
    control = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
    if device.type != "cuda":
        return Ranks(rank, size, device, control, control)
    torch.cuda.set_device(device)
    # nccl refuses two processes on one GPU, which gloo serves, slowly
    own = int(os.environ.get("LOCAL_WORLD_SIZE", size)) <= torch.cuda.device_count()
    return Ranks(rank, size, device, control, dist.new_group(backend="nccl", timeout=NCCL_TIMEOUT) if own else control)


def _device(asked: str | torch.device) -> torch.device:
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(asked)
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ and torch.cuda.device_count():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return device


@dataclass(frozen=True)
class _Sent:
    """A tensor on its way: an array, which keeps the order of its dimensions in memory, and so the order of later sums."""

    array: np.ndarray[Any, Any]
    on_gpu: bool

    @classmethod
    def of(cls, tensor: Tensor) -> _Sent:
        return cls(tensor.detach().cpu().numpy(), tensor.is_cuda)

    def on(self, device: torch.device | None) -> Tensor:
        tensor = torch.from_numpy(self.array)
        return tensor.to(device) if self.on_gpu else tensor


@dataclass(frozen=True)
class _Done:
    value: Any


@dataclass(frozen=True)
class _Failed:
    error: Exception


_pytree.register_pytree_node(_Done, lambda done: ([done.value], None), lambda values, _: _Done(next(iter(values))))


def _tried(function: Callable[[], Any]) -> _Done | _Failed:
    try:
        return _Done(function())
    except Exception as error:  # all processes are to raise it
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # a user's exception may not travel
            return _Failed(ProgramError(f"{type(error).__name__}: {error}"))
        return _Failed(error)


def _opened(outcome: _Done | _Failed) -> Any:
    if isinstance(outcome, _Failed):
        raise outcome.error
    return outcome.value


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _difference(one: Any, other: Any) -> str:
    """Where two values differ, in words: by key where they are dicts."""
    if isinstance(one, dict) and isinstance(other, dict):
        unequal = [f"{key}: {one.get(key)!r} and {other.get(key)!r}" for key in {**one, **other} if one.get(key) != other.get(key)]
        return "; ".join(unequal[:4])
    return f"{one!r} and {other!r}"[:400]
