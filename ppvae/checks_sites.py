"""Checks of sites: shapes against plates, plates against the batch, names and supports against each other."""

from __future__ import annotations

import difflib
import math
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin

from ppvae.checks_look import Attempt, innermost_user, place_of, traceback_of
from ppvae.checks_report import Finding, Severity
from ppvae.errors import PpvaeError
from ppvae.programs import is_deterministic
from ppvae.support import unwrapped

Shape = tuple[int, ...]
# What torch says where a float64 array, NumPy's default, meets a float32 network, or the other way round.
OTHER_DTYPE = ("must have the same dtype", "to have the same dtype", "expected scalar type", "should be the same", "same data type")


def plate_shape(frames: Any, n: int) -> list[int]:
    """The batch shape that the vectorised plates of a site explain; a refused site may not know its data plate yet."""
    dims = {-1: n, **{frame.dim: frame.size for frame in frames if frame.dim is not None}}
    return [dims.get(dim, 1) for dim in range(min(dims), 0)]


def fits(batch: Shape, plates: list[int]) -> bool:
    """Whether a batch shape broadcasts to the plates, with no dimension left over."""
    if len(batch) > len(plates):
        return False
    return all(size in (1, plate) for size, plate in zip(batch, plates[len(plates) - len(batch) :], strict=True))


def shape_finding(side: str, name: str, site: Any, n: int) -> Finding | None:
    """A site whose batch shape its plates do not explain: the number of dims that belong to the event, computed."""
    fn = site["fn"]
    batch, event, plates = tuple(fn.batch_shape), tuple(fn.event_shape), plate_shape(site["cond_indep_stack"], n)
    missing = next(k for k in range(len(batch) + 1) if fits(batch[: len(batch) - k], plates))
    if not missing:
        return None
    where = f"site '{name}' of the {side}"
    problem = f"site '{name}' has batch shape {batch} and event shape {event}, needed batch shape {tuple(plates)}"
    if sorted(batch) == sorted(plates):
        return Finding("error", problem, where, "bring the dims into the order of the plates, the data last")
    if site["is_observed"] and missing == len(batch) and len(batch + event) == site["value"].dim():
        return Finding("error", problem, where, f"let the network return {n} rows for {n} data, here it returned {batch[0]}")
    already = getattr(fn, "reinterpreted_batch_ndims", 0)
    return Finding("error", problem, where, f"end it with .to_event({already + missing})")


def plate_finding(side: str, name: str, site: Any, n: int) -> Finding | None:
    """A site whose data plate is missing, sequential, elsewhere, or not as long as the batch."""
    where = f"site '{name}' of the {side}"
    frames = site["cond_indep_stack"]
    frame = next((f for f in frames if f.dim == -1), None)
    line = f"with pyro.plate('data', len(x), dim=-1): pyro.sample('{name}', ...)"
    if frame is None:
        loop = loop_of(site)
        if loop is not None:
            return Finding("error", f"site '{name}' lies in the sequential plate '{loop}', needed a vectorised one", where, line)
        return _outside(name, site, n, where, line)
    if frame.size == n:
        return None
    other = next((f for f in frames if f.dim != -1 and f.size == n), None)
    if other is not None:
        problem = f"site '{name}': the plate '{other.name}' of the {n} data is at dim {other.dim}, needed dim -1"
        return Finding("error", problem, where, f"pyro.plate('{other.name}', len(x), dim=-1), and '{frame.name}' at dim {other.dim}")
    problem = f"site '{name}': the plate '{frame.name}' has size {frame.size}, needed {n}, the length of the batch"
    return Finding("error", problem, where, f"pyro.plate('{frame.name}', len(x), dim=-1): the batch is chosen outside")


def loop_of(site: Any) -> str | None:
    """The sequential plate that holds a site in place of a data plate."""
    frames = site["cond_indep_stack"]
    return None if any(f.dim == -1 for f in frames) else next((f.name for f in frames if f.dim is None), None)


def _outside(name: str, site: Any, n: int, where: str, line: str) -> Finding | None:
    shape = tuple(site["fn"].batch_shape)
    if site["is_observed"]:
        if is_deterministic(site):
            return None
        return Finding("error", f"the observed site '{name}' lies outside the data plate, with batch shape {shape}", where, line)
    if shape and shape[-1] == n:
        return Finding("error", f"site '{name}' has a value for each of the {n} data and lies outside the data plate", where, line)
    return None


def event_finding(side: str, name: str, first: Any, second: Any, sizes: tuple[int, int]) -> Finding | None:
    """A site whose event holds the data: its event shape changed with the size of the batch."""
    a, b = tuple(first["fn"].event_shape), tuple(second["fn"].event_shape)
    for place, pair in enumerate(zip(a, b, strict=False)):
        if pair == sizes and sizes[0] != sizes[1]:
            already = getattr(first["fn"], "reinterpreted_batch_ndims", 0)
            fewer = max(already - place - 1, 0)
            mend = f"end it with .to_event({fewer}) in place of .to_event({already})" if fewer else f"leave out .to_event({already})"
            problem = f"site '{name}' has event shape {a}, which holds the {sizes[0]} data, needed batch shape ({sizes[0]},)"
            return Finding("error", problem, f"site '{name}' of the {side}", mend if already else "make the data its batch shape")
    return None


def site_findings(first: Attempt, second: Attempt) -> list[Finding]:
    """Shapes and plates of every site of one program, run on two batches of different sizes so that no size coincides by chance."""
    found: dict[str, Finding] = {}
    loops: set[str | None] = set()  # a sequential plate has a site for each datum: the first tells of all
    for name, site in first.sites.items():
        other = second.sites.get(name)
        if other is not None and isinstance(site["fn"], TorchDistributionMixin):
            finding = event_finding(first.side, name, site, other, (first.n, second.n))
            if finding is not None:
                found[name] = finding
    for run in (first, second):
        for name, site in run.sites.items():
            if name in found or _coincidence(name, first, second) or loop_of(site) in loops:
                continue
            finding = _site_finding(run, name, site)
            if finding is not None:
                found[name] = finding
                loops |= {loop_of(site)} - {None}
        refused = _refused(run.error)
        finding = failure_finding(run) if refused is not None and refused["name"] not in found else None
        if refused is not None and finding is not None:
            found[refused["name"]] = finding
    return list(found.values())


def _site_finding(run: Attempt, name: str, site: Any) -> Finding | None:
    finding = plate_finding(run.side, name, site, run.n)
    if finding is not None or is_deterministic(site) or not any(frame.dim == -1 for frame in site["cond_indep_stack"]):
        return finding
    return shape_finding(run.side, name, site, run.n)


def _coincidence(name: str, first: Attempt, second: Attempt) -> bool:
    """Whether a site in no plate is global: as long as one of the two batches at most."""
    runs = [(run.n, run.sites[name]) for run in (first, second) if name in run.sites]
    if any(site["is_observed"] or site["cond_indep_stack"] for _, site in runs):
        return False
    return not all(tuple(site["fn"].batch_shape)[-1:] == (n,) for n, site in runs)


def failure_finding(run: Attempt) -> Finding | None:
    """What ended a run: a shape that Pyro refused, an error of ours, or an error of the user's network."""
    if run.error is None:
        return None
    msg = _refused(run.error)
    if msg is not None:
        frames = msg["cond_indep_stack"]
        finding = plate_finding(run.side, msg["name"], msg, run.n) if any(frame.dim == -1 for frame in frames) else None
        finding = finding or shape_finding(run.side, msg["name"], msg, run.n)
        if finding is not None:
            return finding
    mend = f"make {run.side}(x) run on a batch of {run.n} data, x as {run.side}'s only argument"
    return raised_finding("error", f"the {run.side}", run.error, f"the {run.side}", mend)


def raised_finding(severity: Severity, what: str, raised: Exception, where: str, mend: str) -> Finding:
    """An exception by its type, the first line of its message and the user's own line; never a traceback."""
    place = place_of(*innermost_user(iter(traceback_of(raised)))) or where
    error = _as_raised(raised)
    if isinstance(error, PpvaeError):
        return Finding(severity, f"{what} raised {type(error).__name__}: {error.problem}", place, "; or ".join(error.mend))
    line = (str(error).splitlines() or [""])[0].strip()
    if any(words in line for words in OTHER_DTYPE):
        mend = "give data of the programs' dtype: x.float(), x.astype(np.float32); or the programs that of the data: model.double()"
    return Finding(severity, f"{what} raised {type(error).__name__}: {line}", place, mend)


def _as_raised(error: BaseException) -> BaseException:
    """The error before Pyro's trace raised it again with the shapes of its sites."""
    while type(error.__cause__) is type(error) and str(error).startswith(str(error.__cause__)):
        error = error.__cause__
    return error


def _refused(error: Exception | None) -> Any:
    """The message of the site that Pyro could not broadcast to its plates, found in the traceback; None for another error."""
    for frame, _ in traceback_of(error) if error is not None else ():
        if frame.f_globals.get("__name__") == "pyro.poutine.broadcast_messenger" and "msg" in frame.f_locals:
            return frame.f_locals["msg"]
    return None


def name_findings(model: Attempt, guide: Attempt) -> list[Finding]:
    """A guide that misses a latent of the model, or draws one too many."""
    if any(loop_of(site) for run in (model, guide) for site in run.sites.values()):
        return []  # a site for each datum: the names follow the loop, and that is told
    latents = [name for name, site in model.sites.items() if not site["is_observed"]]
    drawn = [name for name, site in guide.sites.items() if not (site["is_observed"] or site["infer"].get("is_auxiliary"))]
    missing = [name for name in latents if name not in guide.sites] if guide.error is None else []
    extra = [name for name in drawn if name not in model.sites] if model.error is None else []
    found = []
    for name in missing:
        near = difflib.get_close_matches(name, [other for other in drawn if other not in model.sites], 1)
        mend = f"did you mean '{name}' where the guide says '{near[0]}'?" if near else f"add pyro.sample('{name}', ...) to the guide"
        where = f"the guide draws {drawn or 'nothing'}; the model draws {latents}"
        found.append(Finding("error", f"the guide misses the latent site '{name}' of the model", where, mend))
    for name in extra:
        if difflib.get_close_matches(name, missing, 1):
            continue  # told already, with the name that it should have
        where = f"the model draws {latents}" + (f" and observes '{name}'" if name in model.sites else "")
        mend = f"remove '{name}', or mark it infer={{'is_auxiliary': True}}"
        found.append(Finding("error", f"the guide draws '{name}', which the model does not", where, mend))
    if model.error is None and not any(site["is_observed"] and not is_deterministic(site) for site in model.sites.values()):
        found.append(Finding("error", "the model observes nothing", "the model", "give a site obs=: pyro.sample('x', ..., obs=x)"))
    return found


def support_findings(model: Attempt, guide: Attempt) -> list[Finding]:
    """Latents whose event shape or support is not the same in model and guide."""
    found = []
    for name, p in model.sites.items():
        q = guide.sites.get(name)
        if p["is_observed"] or q is None or q["is_observed"]:
            continue
        where = f"site '{name}' of the guide"
        shapes = tuple(q["fn"].event_shape), tuple(p["fn"].event_shape)
        if shapes[0] != shapes[1]:
            problem = f"site '{name}' has event shape {shapes[0]} in the guide and {shapes[1]} in the model"
            found.append(Finding("error", problem, where, "draw latents of the model's shape, with the same .to_event"))
            continue
        finding = _support_finding(name, p, q, where)
        if finding is not None:
            found.append(finding)
    return found


def _support_finding(name: str, p: Any, q: Any, where: str) -> Finding | None:
    kinds = [type(unwrapped(site["fn"])).__name__ for site in (q, p)]
    if not all(hasattr(type(site["fn"]), "support") or "support" in vars(site["fn"]) for site in (q, p)):
        return None  # asked of the class: an AttributeError inside of a support is its author's to see
    try:
        supports = [_told(site["fn"].support) for site in (q, p)]
        inside = bool(torch.as_tensor(p["fn"].support.check(q["value"])).all())
    except NotImplementedError:  # a distribution that declares no support
        return None
    if supports[0] == supports[1] or kinds[0] == "Delta":
        return None
    problem = f"site '{name}' is {kinds[0]} over {supports[0]} in the guide and {kinds[1]} over {supports[1]} in the model"
    if not inside:
        return Finding("error", problem, where, f"choose a guide over {supports[1]}: draws outside have probability 0 in the model")
    return Finding("warning", problem, where, f"choose a guide over {supports[1]}: what it never draws is missing from log p(x)")


def _told(support: Any) -> str:
    """A constraint in words, its event dims and the inclusion of its ends left out."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    text = str(support).replace("GreaterThanEq", "GreaterThan").replace("HalfOpenInterval", "Interval")
    return {"RealVector()": "Real()"}.get(text, text)


def scale_findings(run: Attempt) -> list[Finding]:
    """Sites whose density training would multiply: measurement reads it unscaled."""
    found = []
    for name, site in run.sites.items():
        plates = math.prod(f.full_size / f.size for f in site["cond_indep_stack"] if getattr(f, "full_size", None))
        scale = torch.as_tensor(site["scale"], dtype=torch.float64)
        where = f"site '{name}' of the {run.side}"
        if not torch.allclose(scale, torch.tensor(plates, dtype=torch.float64), rtol=1e-6, atol=0.0):
            factor = f"{(scale / plates).item():.6g}" if scale.numel() == 1 else "a tensor"
            problem = f"site '{name}' is scaled by {factor}: training weighs it so, measurement ignores it"
            found.append(Finding("note", problem, where, "remove poutine.scale, and hand beta or likelihood_weight to fit"))
        elif plates != 1.0:
            problem = f"site '{name}' lies in a subsampled plate: training scales it by {plates:.6g}, measurement ignores it"
            found.append(Finding("note", problem, where, "pyro.plate('data', len(x), dim=-1): the batch is chosen outside"))
    return found


def global_findings(model: Attempt) -> list[Finding]:
    """Latent sites outside the data plate."""
    return [
        Finding(
            "note",
            f"site '{name}' is global: measurement conditions on one draw of it, and fit scales the data terms by num_data / batch size",
            f"site '{name}' of the model",
        )
        for name, site in model.sites.items()
        if not site["is_observed"] and not any(frame.dim == -1 for frame in site["cond_indep_stack"])
    ]
