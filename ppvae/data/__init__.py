"""Data: what the model sees, what is stored, and where it comes from.

    digits = ppvae.data.load("digits")     # .train .validation .test, each a Data
    own = ppvae.data.Data.of(x)            # an array, a tensor, a tuple or dict of them

``load`` takes a name, a file, a folder of pictures or arrays and splits them; ``Data.of`` takes all rows as one set. ``sprites``,
``faces``, ``filaments``, ``lorenz``, ``linear_gaussian`` and ``simulate`` make data whose factors are known.
"""

from ppvae.data.data import Data
from ppvae.data.faces import faces
from ppvae.data.filaments import filaments
from ppvae.data.leakage import shared_rows
from ppvae.data.linear_gaussian import known_linear_gaussian, linear_gaussian
from ppvae.data.lorenz import lorenz
from ppvae.data.music import music
from ppvae.data.simulated import simulate
from ppvae.data.sources import load, names
from ppvae.data.splits import Splits, split
from ppvae.data.sprites import sprites
from ppvae.data.text import decoded, text

__all__ = [
    "Data",
    "Splits",
    "decoded",
    "faces",
    "filaments",
    "known_linear_gaussian",
    "linear_gaussian",
    "load",
    "lorenz",
    "music",
    "names",
    "shared_rows",
    "simulate",
    "split",
    "sprites",
    "text",
]
