"""Draws of a block made piece by piece, from the very random numbers that the whole block draws from.

A program is run on some of the block's rows and particles. Each random number that a site of it asks for, (*batch, ...), is made for the
whole block and the piece's part is kept: the generator goes the block's way, and networks see the piece alone.

Where a sampler takes as many random numbers as its parameters ask for (Gamma, Dirichlet, Poisson, binomial), a piece cannot tell how many
the others take. It stops there, and so do the others; the operation is done once for the parameters of all, which are small beside the
activations of a network, and the pieces are run again with the result. Where a sampler tries until all elements are accepted (von Mises),
the pieces go on together until those of the block are. So a program is run once more for each such site, and a sampler within it anew for
each such operation.

The draws are the block's bit for bit where the parameters are. Networks may round otherwise on fewer rows: draws then differ by as little,
but for a rejection or a category that the last digit decides, some 1e-7 of them in float32, after which Gamma's and their like take other
random numbers.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ppvae import noise
from ppvae.memory import NotInPieces, is_out_of_memory
from ppvae.random_operations import Asked, Form, Listening, Looking, Sites, aten, drawn_again, form_of, refused

Drawn = TypeVar("Drawn")
States = tuple[Tensor, Tensor | None]  # of the generators: the CPU's and the GPU's


@dataclass(frozen=True)
class Piece:
    """Some rows and particles of a block.

    Attributes:
        rows, particles: Which.
        num_data, num_particles: Of the block.
        particle_dim: Of a batch, from the right; None where the batch is repeated and particles lie before the data in dim -1.
    """

    rows: slice
    particles: slice
    num_data: int
    num_particles: int
    particle_dim: int | None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and particles."""
        return self.rows.stop - self.rows.start, self.particles.stop - self.particles.start

    @property
    def is_whole(self) -> bool:
        """Whether it is the block."""
        return self.size == (self.num_data, self.num_particles)

    def widened(self, batch: torch.Size) -> list[int]:
        """The block's batch shape, from the piece's; empty where this is no batch of the piece."""
        rows, particles = self.size
        wide = list(batch)
        if self.particle_dim is None:
            if not wide or wide[-1] != rows * particles:
                return []
            wide[-1] = self.num_data * self.num_particles
        else:
            if len(wide) < -self.particle_dim or (wide[-1], wide[self.particle_dim]) != (rows, particles):
                return []
            wide[-1], wide[self.particle_dim] = self.num_data, self.num_particles
        return wide

    def of(self, block: Tensor, batch_dims: int) -> Tensor:
        """The piece of a tensor of the block, (*batch, ...)."""
        found = self._within(block, batch_dims)
        return found if self.particle_dim is not None else found.flatten(batch_dims - 1, batch_dims)

    def put(self, part: Tensor, block: Tensor, batch_dims: int) -> Tensor:
        """The block's tensor with the piece in its place."""
        place = self._within(block, batch_dims)
        place.copy_(part.reshape(place.shape))
        return block

    def _within(self, block: Tensor, batch_dims: int) -> Tensor:
        data, particles = batch_dims - 1, batch_dims + (self.particle_dim or 0)
        if self.particle_dim is None:
            block, data, particles = block.unflatten(data, (self.num_particles, self.num_data)), data + 1, data
        rows = block.narrow(data, self.rows.start, self.size[0])
        return rows.narrow(particles, self.particles.start, self.size[1])


def in_pieces(draw: Callable[[Piece], Drawn], pieces: list[Piece], device: torch.device) -> list[Drawn]:
    """The draws of a block; torch's generator ends where the whole block's draws would leave it.

    Args:
        draw: Runs a program on a piece, on K particles of n rows.
        pieces: Of the block.
        device: Of the program.

    Raises:
        NotInPieces: It does not show which of the block's random numbers are a piece's.
    """
    if len(pieces) == 1:
        return [draw(pieces[0])]
    with noise.forked(device):
        script = _Script(_look(draw, pieces[0]), device)
    with noise.forked(device):
        runs = [_Run(draw, piece, script) for piece in pieces]
        while not all(run.drawn for run in runs):
            before = len(script.steps)
            for run in runs:
                run.begin()
            _meet(runs, script)
            if len(script.steps) == before and not all(run.drawn for run in runs):
                raise _other(next(run for run in runs if run.waits).random.site)
        _hold_to_each_other([run.random for run in runs])
    script.put_back(runs[-1].end)
    return [run.drawn[0] for run in runs]


def _meet(runs: list[_Run[Drawn]], script: _Script) -> None:
    """Lead runs that wait for the others through the samplers in which they wait, as far as the others are there."""
    while any(run.waits for run in runs):
        behind = [run for run in runs if run.waits and run.random.met < len(script.steps)]
        for run in behind:
            run.go_on()
        if not behind:
            if not all(run.waits for run in runs):
                return  # the others have to come to it through the program
            script.join([run.random for run in runs])


def _hold_to_each_other(pieces: list[_Noise]) -> None:
    for piece in pieces[1:]:
        for one, other in itertools.zip_longest(pieces[0].taken, piece.taken):
            if one != other:
                raise _other((other or one)[0])


def _other(name: str) -> NotInPieces:
    return NotInPieces(f"those of site '{name}' take other random numbers from piece to piece")


def _stands(error: Exception) -> bool:
    """Whether an error is ours or memory's. Any other comes from a sampler that was led where it does not go alone: on when it is done."""
    return isinstance(error, NotInPieces) or is_out_of_memory(error)


@dataclass(frozen=True)
class _Known:
    """What sites ask for, by name, and what of it comes column by column."""

    forms: dict[str, list[Form]]
    columns: set[tuple[str, Form]]

    def form(self, site: Any, asked: Asked) -> Form:
        """The form of what is asked."""
        if site["name"] not in self.forms:
            raise _other(site["name"])
        fitting = [form for form in self.forms[site["name"]] if form.fits(asked, site["fn"].batch_shape)]
        if len(fitting) != 1:
            raise refused(site)
        return fitting[0]


def _look(draw: Callable[[Piece], Drawn], first: Piece) -> _Known:
    """What one datum and particle asks for: there no other dimension is as long as the batch, and cannot be taken for it."""
    one, sites = replace(first, rows=slice(0, 1), particles=slice(0, 1)), Sites()
    with sites, Looking(sites) as look:
        draw(one)
    known = _Known({site["name"]: _forms(site, one) for site in {site["name"]: site for site, _ in look.asked}.values()}, set())
    if any(form.func is aten.multinomial.default for forms in known.forms.values() for form in forms):
        _look_at_columns(draw, first, known)
    return known


def _forms(site: Any, one: Piece) -> list[Form]:
    """What a site's distribution asks for; nor can rows be taken for particles where it is expanded to another number of each."""
    wide = replace(one, num_data=2, num_particles=3).widened(site["fn"].batch_shape)
    if not wide:
        raise refused(site)
    both: list[list[Asked]] = []
    for again in (site, {**site, "fn": site["fn"].expand(wide)}):
        try:
            with Looking(Sites(again), once=True) as look:
                drawn_again(again)
        except Exception as error:
            if _stands(error):
                raise
            raise refused(site) from error
        both.append([asked for _, asked in look.asked])
    if len(both[0]) != len(both[1]):
        raise refused(site)
    forms = [form_of(narrow, broad, site["fn"].batch_shape, wide) for narrow, broad in zip(*both, strict=True)]
    if None in forms:
        raise refused(site)
    return list(dict.fromkeys(form for form in forms if form))


def _look_at_columns(draw: Callable[[Piece], Drawn], first: Piece, known: _Known) -> None:
    """The order in which parameters lie in memory: the block's is that of a piece which is longer than 1 where the block is."""
    rows, particles, sites = min(2, first.num_data), min(3, first.num_particles), Sites()
    try:
        with sites, Looking(sites) as look:
            draw(replace(first, rows=slice(0, rows), particles=slice(0, particles)))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        name = next(name for name, forms in known.forms.items() if any(form.func is aten.multinomial.default for form in forms))
        told = f"the order of those of site '{name}' is told by {rows} data and {particles} particles at once, which do not fit"
    else:
        orders: dict[tuple[str, Form], bool] = {}
        for site, asked in look.asked:
            if orders.setdefault((site["name"], known.form(site, asked)), asked.columns) != asked.columns:
                raise refused(site)
        known.columns.update(key for key, columns in orders.items() if columns)
        return
    raise NotInPieces(told)  # here, where the error is gone with its frames, which hold tensors


@dataclass(frozen=True)
class _Step:
    """What the whole block was asked for by which site, or decided; what came; and how the generators stood then."""

    site: str
    what: Any
    result: Tensor
    after: States


class _Script:
    """What the block's sites have done so far that needs more than a piece."""

    def __init__(self, known: _Known, device: torch.device) -> None:
        self.known, self.device = known, device
        self.steps: list[_Step] = []

    def states(self) -> States:
        """How the generators stand."""
        return torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    def put_back(self, states: States) -> None:
        """Let the generators stand so again."""
        torch.set_rng_state(states[0])
        if states[1] is not None:
            torch.cuda.set_rng_state(states[1], self.device)

    def join(self, pieces: list[_Noise]) -> None:
        """Do for the block what all pieces wait for."""
        first = pieces[0].wait
        for piece in pieces:
            if (piece.site, piece.wait.what) != (pieces[0].site, first.what):
                raise _other(piece.site)
        blocks = [by.new_empty(first.shape) for by in first.asked.parameters]
        for piece in pieces:
            for by, block in zip(piece.wait.asked.parameters, blocks, strict=True):
                piece.piece.put(by, block, first.batch_dims)
        result = first.asked.run(first.shape, blocks)  # the generators stand as the last of them has left them, which is as each did
        self.steps.append(_Step(pieces[0].site, first.what, result, self.states()))


@dataclass(frozen=True)
class _Wait:
    """What a piece waits for: for the block it has this shape, whose first dimensions end with the batch."""

    what: Any
    asked: Asked
    shape: list[int]
    batch_dims: int


class _Waits(BaseException):
    """Ends the run of a piece. No Exception: a program may catch those."""


class _Noise(Listening):
    """Random numbers of a piece, each the block's.

    Attributes:
        site: Where the piece waits.
        wait: For what, where ``waits``.
        met: Steps of the script that the piece has come through.
        taken: By site, what was taken from the generator.
        overruled: Whether the block decided otherwise than the piece would have.
    """

    site: str
    wait: _Wait

    def __init__(self, piece: Piece, sites: Sites, script: _Script, met: int = 0) -> None:
        super().__init__(sites)
        self.piece, self.script, self.met = piece, script, met
        self.waits = self.overruled = False
        self.taken: list[tuple[str, Form]] = []
        self.entered: tuple[Any, States, int] = None, script.states(), met  # the last site, and how all stood before it drew

    def answered(self, site: Any, asked: Asked) -> Tensor:
        """The piece's part of what the block is answered."""
        batch, form = site["fn"].batch_shape, self.script.known.form(site, asked)
        wide = self.piece.widened(batch)
        if not wide:
            raise refused(site)
        self._enter(site)
        shape, batch_dims = [*form.before, *wide, *form.behind], len(form.before) + len(batch)
        if asked.fills is None:
            block = self._from_script(site, form, asked, shape, batch_dims)
        else:
            columns = (site["name"], form) in self.script.known.columns
            blanks = [_blank(shape, by, fill, columns) for by, fill in zip(asked.parameters, asked.fills, strict=True)]
            block = asked.run(shape, [self.piece.put(by, blank, batch_dims) for by, blank in zip(asked.parameters, blanks, strict=True)])
        self.taken.append((site["name"], form))
        return self.piece.of(block, batch_dims).clone(memory_format=torch.contiguous_format)  # keeps no block alive, and may be written to

    def decided(self, site: Any, func: Any, value: Tensor) -> Tensor:
        """Whether all or any elements of the block are: as here, if this settles it."""
        self._enter(site)
        own, steps = bool(value), self.script.steps
        if self.met == len(steps) and own is (func is aten.any.default):
            steps.append(_Step(site["name"], func, value, self.script.states()))
        found = self._from_script(site, func, Asked(func, (), [], None, lambda *_: value), [], 0)
        self.overruled |= own is not bool(found)
        return found.clone()

    def _enter(self, site: Any) -> None:
        if site is not self.entered[0]:
            self.entered = site, self.script.states(), self.met

    def _from_script(self, site: Any, what: Any, asked: Asked, shape: list[int], batch_dims: int) -> Tensor:
        if self.met == len(self.script.steps):
            self.waits, self.site, self.wait = True, site["name"], _Wait(what, asked, shape, batch_dims)
            raise _Waits
        step = self.script.steps[self.met]
        if (step.site, step.what) != (site["name"], what):
            raise _other(site["name"])
        self.met += 1
        self.script.put_back(step.after)
        return step.result


def _blank(shape: list[int], like: Tensor, fill: float, columns: bool) -> Tensor:
    if columns:
        return like.new_full((shape[-1], math.prod(shape[:-1])), fill).T.view(shape)
    return like.new_full(shape, fill)


class _Run(Generic[Drawn]):
    """A piece's way through the program: as far as it is drawn, or waits at a site for the other pieces."""

    def __init__(self, draw: Callable[[Piece], Drawn], piece: Piece, script: _Script) -> None:
        self.draw, self.piece, self.script = draw, piece, script
        self.start = script.states()
        self.random = _Noise(piece, Sites(), script)
        self.drawn: list[Drawn] = []

    @property
    def waits(self) -> bool:
        """For the other pieces."""
        return self.random.waits

    def begin(self) -> None:
        """Run the program, unless it is done with."""
        if self.drawn:
            return
        sites = Sites()
        self.random = _Noise(self.piece, sites, self.script)
        self.script.put_back(self.start)
        with self._until_it_waits(), sites, self.random:
            drawn = self.draw(self.piece)
        if not self.waits:
            self.drawn, self.end = [drawn], self.script.states()

    def go_on(self) -> None:
        """Draw again from the distribution of the site where it waits: what it was made of need not be computed again."""
        site, states, met = self.random.entered
        self.random = _Noise(self.piece, Sites(site), self.script, met)
        self.script.put_back(states)
        with self._until_it_waits(), self.random:
            drawn_again(site)

    @contextlib.contextmanager
    def _until_it_waits(self) -> Iterator[None]:
        try:
            yield
        except _Waits:
            return
        except Exception as error:
            site = self.random.sites.site
            if site is None or not self.random.overruled or _stands(error):
                raise
            raise refused(site) from error
