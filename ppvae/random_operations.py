"""Random operations at the sites of a program: what each asks of torch's generator, by whatever name, and where the batch lies in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppvae.memory import NotInPieces
from ppvae.programs import in_data_plate
from ppvae.support import unwrapped

aten = torch.ops.aten
MAKES = {aten.rand.default, aten.randn.default, aten.rand.generator, aten.randn.generator}  # of a size
FILLS = {aten.normal_.default, aten.uniform_.default, aten.exponential_.default, aten.cauchy_.default}  # in the order of memory
NEW = {aten.empty.memory_format, aten.new_empty.default}  # whose memory is in the order of the batch
# As many random numbers by any parameters: elements that nobody looks at are drawn by these.
BY_ANY = {
    aten.bernoulli.default: (0.5,),
    aten.normal.Tensor_Tensor: (0.0, 1.0),
    aten.normal.Tensor_float: (0.0,),
    aten.normal.float_Tensor: (1.0,),
    aten.multinomial.default: (1.0,),
}
# As many as the parameters ask for, one element after the other in the order of the batch, however the parameters lie in memory.
BY_ALL = {aten._standard_gamma.default, aten._sample_dirichlet.default, aten.poisson.default, aten.binomial.default}
FLATTEN = {aten.view.default, aten._unsafe_view.default}
DECIDE = {aten.all.default, aten.any.default}


@dataclass(frozen=True)
class Asked:
    """Random numbers that a site asks for at once.

    Attributes:
        func: torch's operation.
        shape: Of the numbers, or of the parameters that they are drawn by; the batch lies somewhere in it.
        parameters: Tensors of this shape.
        fills: For elements that nobody looks at; None where these would change how many numbers are taken.
        run: The operation for a batch of another size, from shape and parameters; (*shape), or but for its last dimension.
        columns: Whether the numbers come column by column, as multinomial's do where its argument lies so in memory.
    """

    func: Any
    shape: tuple[int, ...]
    parameters: list[Tensor]
    fills: tuple[float, ...] | None
    run: Callable[[list[int], list[Tensor]], Tensor]
    columns: bool = False


@dataclass(frozen=True)
class Form:
    """What is asked of an operation for a batch of any size: numbers of shape (*before, *batch, *behind)."""

    func: Any
    before: tuple[int, ...]
    behind: tuple[int, ...]

    def fits(self, asked: Asked, batch: torch.Size) -> bool:
        """Whether this is asked by a batch of this shape."""
        return asked.func is self.func and asked.shape == (*self.before, *batch, *self.behind)


def form_of(one: Asked, wide: Asked, one_batch: torch.Size, wide_batch: list[int]) -> Form | None:
    """The form of what two batches ask for, one of a single datum and particle and one of several of each; None where there is none."""
    for start in range(len(one.shape) - len(one_batch) + 1):
        form = Form(one.func, one.shape[:start], one.shape[start + len(one_batch) :])
        if form.fits(one, one_batch) and form.fits(wide, torch.Size(wide_batch)):
            return form
    return None


def refused(site: Any) -> NotInPieces:
    """What is raised where the draws of a site cannot be cut."""
    return NotInPieces(f"those of site '{site['name']}' ({type(unwrapped(site['fn'])).__name__}) cannot be made in pieces")


def drawn_again(site: Any) -> None:
    """Call the site's distribution as Pyro does."""
    site["fn"](*site["args"], **site["kwargs"])


class Sites(Messenger):
    """Tells which site is drawn just now. Entered before all plates, so that it sees whole batch shapes."""

    def __init__(self, site: Any = None) -> None:
        super().__init__()
        self.site = site

    def _pyro_sample(self, msg: Any) -> None:
        given = msg["done"] or msg["is_observed"] or msg["value"] is not None
        if not given and in_data_plate(msg) and not site_is_subsample(msg):
            self.site = {key: msg[key] for key in ("name", "fn", "args", "kwargs")}

    def _pyro_post_sample(self, msg: Any) -> None:
        self.site = None


class Listening(TorchDispatchMode):
    """Answers what sites ask of the generator, and whether all elements of a tensor are true, or any.

    Raises:
        NotInPieces: Random numbers are asked for in a way that does not tell where the batch lies.
    """

    def __init__(self, sites: Sites) -> None:
        super().__init__()
        self.sites = sites
        self._new: Any = None
        self._flat: tuple[Any, tuple[int, ...]] = (None, ())  # the last tensor of another shape, and which it had

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler at the first operation: a second, and memory where there is none

    def answered(self, site: Any, asked: Asked) -> Tensor:
        """The random numbers."""
        raise NotImplementedError

    def decided(self, site: Any, func: Any, value: Tensor) -> Tensor:
        """Whether all or any elements are true, from whether they are here."""
        raise NotImplementedError

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, site = kwargs or {}, self.sites.site
        if torch.Tag.nondeterministic_seeded in func.tags:
            return self._drawn(site, func, args, kwargs)
        found = func(*args, **kwargs)
        if func in NEW or (func is aten.detach.default and args[0] is self._new):
            self._new = found
        elif func in FLATTEN:
            self._flat = found, tuple(args[0].shape)
        elif site is not None and func in DECIDE:
            found = self.decided(site, func, found)
        return found

    def _drawn(self, site: Any, func: Any, args: Any, kwargs: Any) -> Tensor:
        first, *rest = args
        if site is None:
            raise NotInPieces(f"those outside the sites of the data plate ({func}) cannot be made in pieces")
        if any(isinstance(arg, torch.Generator) for arg in (*args, *kwargs.values())):
            raise refused(site)
        if func in MAKES:
            return self.answered(site, Asked(func, tuple(first), [], (), lambda shape, _: func(shape, *rest, **kwargs)))
        if func in FILLS and first is self._new and first.is_contiguous():
            fill = Asked(func, tuple(first.shape), [], (), lambda shape, _: func(first.new_empty(shape), *rest, **kwargs))
            return first.copy_(self.answered(site, fill))  # type: ignore[no-any-return]
        if func is aten.multinomial.default and first.dim() == 2:
            return self._categories(site, first, *rest)
        parameters = [arg for arg in args if isinstance(arg, Tensor)]
        known = func in BY_ANY or func in BY_ALL
        on_gpu = func is aten.bernoulli.default and first.device.type != "cpu"  # there the order may be that of the chances' memory
        if not known or on_gpu or any(by.shape != parameters[0].shape for by in parameters):
            raise refused(site)

        def run(_: list[int], others: list[Tensor]) -> Tensor:
            given = iter(others)
            return func(*(next(given) if isinstance(arg, Tensor) else arg for arg in args), **kwargs)  # type: ignore[no-any-return]

        return self.answered(site, Asked(func, tuple(parameters[0].shape), parameters, BY_ANY.get(func), run))

    def _categories(self, site: Any, chances: Tensor, num_draws: int, replacement: bool = False) -> Tensor:
        """multinomial takes (rows, categories): where the batch lies is seen in what was flattened to it."""
        func, shape = aten.multinomial.default, tuple(chances.shape)
        if chances is self._flat[0] and self._flat[1][-1:] == shape[-1:]:
            shape = self._flat[1]

        def run(shape: list[int], others: list[Tensor]) -> Tensor:
            return func(others[0].reshape(-1, shape[-1]), num_draws, replacement).reshape(*shape[:-1], num_draws)  # type: ignore[no-any-return]

        filled = torch.empty_like(chances, device="meta").stride()  # as what multinomial fills with its random numbers
        asked = Asked(func, shape, [chances.reshape(shape)], BY_ANY[func], run, filled[0] < filled[1])
        return self.answered(site, asked).reshape(len(chances), num_draws)


class Looking(Listening):
    """Lets sites draw as they would, and keeps what they ask for.

    Args:
        sites: Of the program.
        once: Lead each loop of a sampler that goes on until all are done, or none is left, through it once, whatever it draws.
    """

    def __init__(self, sites: Sites, once: bool = False) -> None:
        super().__init__(sites)
        self.once = once
        self.asked: list[tuple[Any, Asked]] = []
        self._turns = dict.fromkeys(DECIDE, False)

    def answered(self, site: Any, asked: Asked) -> Tensor:
        """Random numbers as the generator gives them."""
        self.asked.append((site, asked))
        return asked.run(list(asked.shape), asked.parameters)

    def decided(self, site: Any, func: Any, value: Tensor) -> Tensor:
        """What it is here; or what begins a loop, then what ends it."""
        if not self.once:
            return value
        self._turns[func] = not self._turns[func]
        return torch.full_like(value, self._turns[func] is (func is aten.any.default))
