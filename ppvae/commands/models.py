"""``ppvae models``."""

from __future__ import annotations

from types import ModuleType

import ppvae.models
from ppvae.models import likelihoods, priors
from ppvae.options import Models
from ppvae.output import tell


def run(options: Models) -> int:
    """List the models, likelihoods and priors."""
    found = {"models": listed(ppvae.models), "likelihoods": listed(likelihoods), "priors": listed(priors)}
    tell("models", "\n\n".join(f"{kind}\n{lines(parts)}" for kind, parts in found.items()), found)
    return 0


def listed(module: ModuleType) -> dict[str, str]:
    """Public class or function -> the first sentence on it, for those that a module defines or hands on."""
    own = module.__name__.split(".")[1]
    names = getattr(module, "__all__", None) or [
        name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__ and name[0] != "_"
    ]
    parts = {name: vars(module)[name] for name in sorted(names)}
    return {name: first_line(part) for name, part in parts.items() if str(getattr(part, "__module__", "")).split(".")[1:2] == [own]}


def first_line(part: object) -> str:
    """The first line of a docstring."""
    return (part.__doc__ or "").strip().splitlines()[0] if part.__doc__ else ""


def lines(parts: dict[str, str]) -> str:
    """A line a part."""
    width = max(map(len, parts), default=0) + 2
    return "\n".join(f"  {name:{width}}{text}" for name, text in parts.items())
