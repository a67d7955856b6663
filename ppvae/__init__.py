"""Variational autoencoders as probabilistic programs: train a Pyro model and guide, then know how good they are.

Shapes, everywhere: K num_particles, N num_data, Z latent_dim, D data_dim, then event dims. Particles are leftmost: (K, N, *event).
Every log density and every result is in nats.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from ppvae.version import __version__ as __version__

if TYPE_CHECKING:
    from ppvae import analysis as analysis
    from ppvae import data as data
    from ppvae import errors as errors
    from ppvae import families as families
    from ppvae import guides as guides
    from ppvae import importance as importance
    from ppvae import models as models
    from ppvae import nn as nn
    from ppvae import objectives as objectives
    from ppvae import simulate as simulate
    from ppvae.check import check as check
    from ppvae.fit import fit as fit
    from ppvae.policy import compiling as compiling
    from ppvae.run import Run as Run
    from ppvae.run import load as load
    from ppvae.stream import log_weights as log_weights
    from ppvae.svi import SVI as SVI

_MODULES = ("analysis", "data", "errors", "families", "guides", "importance", "models", "nn", "objectives", "simulate")
_NAMES = {"SVI": "svi", "Run": "run", "check": "check", "compiling": "policy", "fit": "fit", "load": "run", "log_weights": "stream"}
__all__ = [*_MODULES, *_NAMES]


def __getattr__(name: str) -> Any:
    # Lazy, since torch and Pyro take two seconds to import and `ppvae --help` needs neither.
    if name in _NAMES:
        value = getattr(importlib.import_module(f"ppvae.{_NAMES[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"ppvae.{name}")
    else:
        raise AttributeError(f"module 'ppvae' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Package(types.ModuleType):
    """Importing the submodule ``ppvae.fit`` must not put the module where the function ``ppvae.fit`` belongs."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _NAMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
