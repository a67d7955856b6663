"""Checks of numbers: the batch, supports, dependence between data, gradients, store names, modes of modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from ppvae import noise
from ppvae.batches import Batch, num_data, take, tensors
from ppvae.checks_look import Attempt, Kept, Statement, Statements, attempt, for_rows, looking
from ppvae.checks_report import Finding
from ppvae.checks_sites import failure_finding, raised_finding
from ppvae.errors import PpvaeError
from ppvae.modules import Program, modules_of
from ppvae.pair import Pair
from ppvae.support import RELAXED, check_support, unvalidated

ROWS = 1024  # rows a call where all data are looked at
NAMED = 5  # names that a finding lists


def batch_findings(x: Batch) -> list[Finding]:
    """A batch that is none: no tensors, no shared N, no rows, a lone row."""
    try:
        num_data(x)
    except PpvaeError as error:
        return [Finding.of(error)]
    if isinstance(x, Tensor) and x.dim() == 1:
        mend = "x[None] if it is a single datum, x[:, None] if it is N data of one number"
        return [Finding("error", f"x has shape {tuple(x.shape)}, needed (N, *event)", "x", mend)]
    return []


def finite_findings(x: Batch) -> list[Finding]:
    """NaN and infinite entries, by row and column."""
    found = []
    for name, part in tensors(x).items():
        bad = ~torch.isfinite(part)
        if bool(bad.any()):
            place = bad.nonzero()[0].tolist()
            column = "" if len(place) == 1 else f", column {place[1] if len(place) == 2 else tuple(place[1:])}"
            problem = f"{name} holds {int(bad.sum())} of {bad.numel()} entries that are not finite"
            where = f"row {place[0]}{column}: {part[tuple(place)].item()}"
            found.append(Finding("error", problem, where, "remove or impute them, or declare them missing with poutine.mask"))
    return found


def finite_rows(x: Batch) -> Tensor:
    """Numbers of the rows in which all is finite."""
    good = [torch.isfinite(part).reshape(len(part), -1).all(1).cpu() for part in tensors(x).values()]
    return torch.stack(good).all(0).nonzero()[:, 0]


def data_findings(model: Program, guide: Program, x: Batch) -> list[Finding]:
    """Data outside the support of an observed site, over all rows, a block at a time."""
    relaxed: set[str] = set()
    for block in noise.blocks(num_data(x), ROWS):
        rows = torch.arange(block.start, block.stop)
        part = take(x, rows)
        with looking(model, guide, x=x, purpose=f"data/{block.start}"):
            q = attempt("guide", for_rows(guide, rows), part)
            p = attempt("model", model, part, q.values)
            for run in (q, p):
                failed = failure_finding(run)
                if failed is not None:
                    return [failed]
        try:
            lenient = frozenset(name for name, site in p.sites.items() if site["is_observed"] and unvalidated(site))
            relaxed |= _outside(p, lenient, block)
        except PpvaeError as error:
            return [Finding.of(error)]
    return [
        Finding(
            "warning",
            f"data lie outside the support of site '{name}', built with validate_args=False: every result is {RELAXED}",
            f"site '{name}' of the model",
            "binarise the data, or choose a likelihood whose support holds them",
        )
        for name in sorted(relaxed)
    ]


def _outside(run: Attempt, lenient: frozenset[str], block: slice) -> set[str]:
    """The lenient sites whose data lie outside their support."""
    found = set()
    for name, site in run.sites.items():
        alone = Trace()
        alone.add_node(name, **site)
        if check_support(alone, lenient=lenient, first_row=block.start, num_data=run.n):
            found.add(name)
    return found


def dependence_findings(pair: Pair, x: Batch, rows: Tensor) -> list[Finding]:
    """Densities of a datum that move with other data: latents replayed, rows permuted, half of the rows replaced by others."""
    n = len(rows)
    if n < 2:
        return [Finding("note", "one datum came: whether data depend on each other was not looked at", "x")]
    with looking(pair.model, pair.guide, x=x, purpose="dependence"):
        values, _ = pair.draw(take(x, rows), rows, 1)
        base = _densities(pair, x, rows, values)
        torch.manual_seed(1)
        again = _densities(pair, x, rows, values)
        shifted = torch.arange(n).roll(1)  # of one cycle: no row stays in its place
        moved = _densities(pair, x, rows[shifted], _taken(pair, values, shifted))
        kept = torch.arange(n) < (n + 1) // 2
        swapped = torch.where(kept, torch.arange(n), torch.arange(n) - (n + 1) // 2)
        other = _densities(pair, x, rows[swapped], _taken(pair, values, swapped))
    found = []
    kinds = [part.dtype for part in tensors(x).values() if part.is_floating_point()] or [torch.get_default_dtype()]
    tolerance = 1e-8 if set(kinds) == {torch.float64} else 1e-4  # relative: a batched product rounds otherwise in another batch
    for (side, name), density in base.items():
        where = f"site '{name}' of the {side}"
        if _moved(again[side, name], density, tolerance).any():
            problem = f"the log density of site '{name}' is random where data and latents are held"
            found.append(Finding("error", problem, where, "draw all randomness in the program by pyro.sample"))
            continue
        finding = _dependence(density, moved[side, name], other[side, name], shifted, kept, tolerance, name, where)
        if finding is not None:
            found.append(finding)
    return found


def _dependence(
    base: Tensor, moved: Tensor, other: Tensor, shifted: Tensor, kept: Tensor, tolerance: float, name: str, where: str
) -> Finding | None:
    mend = "let each row of the network's output depend on the same row of x and z alone: no mean over the batch, no row number"
    by_others = _moved(other, base, tolerance) & kept
    if by_others.any():
        row = int(by_others.nonzero()[0])
        change = (other - base)[row].item()
        problem = f"site '{name}' makes data depend on each other: log density of row {row} moved by {change:.3g} nats with other rows"
        return Finding("error", problem, where, mend)
    by_place = _moved(moved, base[shifted], tolerance)
    if by_place.any():
        row = int(shifted[by_place][0])
        problem = f"site '{name}' depends on the order of the data: log density of row {row} moved when the batch was permuted"
        return Finding("error", problem, where, mend)
    return None


def _moved(a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    return ~torch.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def _densities(pair: Pair, x: Batch, rows: Tensor, values: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    """Log density by side and site, (n,)."""
    part = take(x, rows)
    log_q = pair.guide_score(part, rows, values)
    found = {("guide", name): density[0].cpu() for name, density in log_q.items()}
    return found | {("model", name): density[0].cpu() for name, density in pair.score(part, values).items()}


def _taken(pair: Pair, values: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: value.index_select(value.dim() - pair.event_dims[name] - 1, rows.to(value.device)) for name, value in values.items()}


def particle_finding(pair: Pair) -> Finding:
    """Which of the two ways particles take."""
    if pair.in_plate:
        return Finding("note", "particles are a plate of their own")
    return Finding("note", "particles are repeated batches, because the networks refuse leading dimensions")


UNREACHED = "receive no gradient from Trace_ELBO"


@dataclass(frozen=True)
class Held:
    """A parameter of a pair."""

    tensor: Tensor
    sides: tuple[str, ...]  # "model", "guide" or both
    root: Module | None  # the module by which it was found; None of a ``pyro.param`` statement
    certain: bool  # whether it is the program's for sure: not of a module that a function or object merely refers to


@dataclass(frozen=True)
class Reach:
    """The parameters of a pair by name, those that ask for a gradient, and of these those that one run's gradient does not reach."""

    held: dict[str, Held]
    asking: list[str]
    unreached: list[str]


def reach(
    model: Program, guide: Program, x: Batch, frozen: Iterable[Tensor] = (), loss_and_grads: Callable[..., Any] | None = None
) -> Reach:
    """Run a pair once and see which parameters the unweighted Trace_ELBO depends on, whatever number its gradient is.

    Args:
        model, guide: The programs, in the modes and the store that they are to be looked at in.
        x: A batch.
        frozen: Parameters that ask for no gradient, though a run of a ``PyroModule`` may give them one.
        loss_and_grads: Of another objective, which is to be seen to leave a gradient in them, and not what the ELBO depends on.
    """
    noted = {"model": Statements("model"), "guide": Statements("guide")}
    with torch.enable_grad():
        run = loss_and_grads or Trace_ELBO().differentiable_loss
        loss = run(_within(model, noted["model"]), _within(guide, noted["guide"]), x)
        held = parameters_of(model, guide, noted["guide"].found + noted["model"].found)
        still = {id(parameter) for parameter in frozen}
        asking = [name for name, one in held.items() if one.tensor.requires_grad and id(one.tensor) not in still]
        gradients: Sequence[Tensor | None] = (None,) * len(asking)
        if loss_and_grads is not None:
            gradients = [held[name].tensor.grad for name in asking]
        elif isinstance(loss, Tensor) and loss.requires_grad and asking:
            gradients = torch.autograd.grad(loss, [held[name].tensor for name in asking], allow_unused=True)
    return Reach(held, asking, [name for name, gradient in zip(asking, gradients, strict=True) if gradient is None])


def _within(program: Program, statements: Statements) -> Program:
    def run(x: Batch) -> Any:
        with statements:
            return program(x)

    run.__wrapped__ = program  # type: ignore[attr-defined]  # as training's own wrapping says
    return run


def gradient_findings(model: Program, guide: Program, x: Batch) -> list[Finding]:
    """Parameters that no gradient of Trace_ELBO reaches, and those that ask for none."""
    with looking(model, guide, x=x, purpose="gradient"):
        try:
            seen = reach(model, guide, x)
        except Exception as error:  # the objective meets what the programs' own runs did not
            mend = "train by an objective that takes the pair, and look at the gradients there"
            return [raised_finding("warning", "Trace_ELBO", error, "the pair", mend)]
    frozen = [name for name in seen.held if name not in seen.asking]
    found = []
    if seen.unreached:
        problem = f"{len(seen.unreached)} of {len(seen.asking)} parameters {UNREACHED}: {listed(seen.unreached)}"
        found.append(Finding("warning", problem, "the pair", "use them in the program, remove them, or look for .detach() and .item()"))
    if frozen:
        problem = f"{len(frozen)} of {len(seen.held)} parameters do not ask for a gradient: {listed(frozen)}"
        found.append(Finding("note", problem, "the pair", "requires_grad_(True), if they shall be trained"))
    return found


def parameters_of(model: Program, guide: Program, statements: Iterable[Statement] = ()) -> dict[str, Held]:
    """The parameters of a pair by name, tied ones once: of its modules, then of its ``pyro.param`` statements."""
    found: dict[str, Held] = {}
    names: dict[int, str] = {}  # of the tensors found so far

    def add(name: str, tensor: Tensor, side: str, root: Module | None, certain: bool) -> None:
        known = found.get(names.setdefault(id(tensor), name))
        sides = known.sides if known else ()
        sides = sides if side in sides else (*sides, side)
        root, certain = (known.root, known.certain or certain) if known else (root, certain)
        found[names[id(tensor)]] = Held(tensor, sides, root, certain)

    for side, program in (("model", model), ("guide", guide)):
        for root, module in modules_of(program).items():
            for name, parameter in module.named_parameters():
                key = ".".join(part for part in (side, root, name.removesuffix("_unconstrained")) if part)
                add(key, parameter, side, module, root == "")
    for statement in statements:
        if statement.stored is not None:
            add(f"param.{statement.name}", statement.stored, statement.side, None, True)
    return found


def listed(names: list[str]) -> str:
    """Up to five names, and how many more there are."""
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(f"'{name}'" for name in names[:NAMED]) + more


def mode_findings(kept: Iterable[Kept]) -> list[Finding]:
    """BatchNorm in training mode."""
    modules = [one for one in kept if isinstance(one.module, _BatchNorm) and one.training]
    if not modules:
        return []
    kinds = sorted({type(one.module).__name__ for one in modules})
    problem = f"{len(modules)} {' and '.join(kinds)} in training mode: training mixes the data of a batch, measurement (eval mode) does not"
    return [Finding("warning", problem, "the pair", "replace them by LayerNorm or GroupNorm, or trust only what is measured in eval mode")]


def name_clash_findings(statements: Iterable[Statement], before: dict[str, Tensor], kept: Iterable[Kept]) -> list[Finding]:
    """One store name for two tensors: within the pair, or between the pair and what the caller's store holds."""
    by_name: dict[str, list[Statement]] = {}
    for statement in statements:
        if isinstance(statement.init, Tensor):
            by_name.setdefault(statement.name, []).append(statement)
    within = {name: group for name, group in by_name.items() if _two_values(group)}
    stale = {name: group for name, group in by_name.items() if name not in within and name in before and _stale(group, before[name])}
    found = []
    if within:
        places = dict.fromkeys(f"{one.side}, {one.place}" if one.place else one.side for one in next(iter(within.values())))
        problem = (
            f"one store name stands for two tensors: {listed(list(within))}; pyro.infer.SVI trains the first and leaves the other, silently"
        )
        mend = "give the submodules of model and guide (or the pyro.param, pyro.module statements) names of their own"
        found.append(Finding("error", problem, " | ".join(list(places)[:2]), mend))
    if stale:
        problem = f"the param store holds other tensors under names of this pair: {listed(list(stale))}"
        group = next(iter(stale.values()))
        found.append(
            Finding(
                "error",
                problem,
                f"{group[0].side}{', ' * bool(group[0].place)}{group[0].place}",
                "pyro.clear_param_store() before this pair, or train it by ppvae.fit",
            )
        )
    taken = [name for name in _taken_over(kept) if name not in within and name not in stale]
    if taken:
        problem = f"a PyroParam was replaced by another tensor of its store name: {listed(taken)}"
        found.append(
            Finding("error", problem, "the pair", "pyro.clear_param_store() before this pair, and names of their own in model and guide")
        )
    return found


def _two_values(group: list[Statement]) -> bool:
    """Whether statements of one name bring different tensors: parameters by identity, initial values by value and statement."""
    first = group[0]
    for other in group[1:]:
        if isinstance(first.init, torch.nn.Parameter) or isinstance(other.init, torch.nn.Parameter):
            if other.init is not first.init:
                return True
        elif first.init.shape != other.init.shape or (other.place != first.place and not torch.equal(first.init, other.init)):
            return True
    return False


def _stale(group: list[Statement], held: Tensor) -> bool:
    init = group[0].init
    return init is not held if isinstance(init, torch.nn.Parameter) else init.shape != group[0].shape


def _taken_over(kept: Iterable[Kept]) -> list[str]:
    """Full names of the parameters that the runs replaced in their modules."""
    found = []
    for one in kept:
        for name, parameter in one.parameters.items():
            if one.module._parameters.get(name) is not parameter:
                prefix = getattr(one.module, "_pyro_name", "")
                found.append(".".join(part for part in (prefix, name.removesuffix("_unconstrained")) if part))
    return found
