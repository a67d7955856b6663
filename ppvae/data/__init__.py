"""Data: what the model sees, what is stored, and where it comes from.

    digits = ppvae.data.load("digits")     # .train .validation .test, each a Data
    own = ppvae.data.Data.of(x)            # an array, a tensor, a tuple or dict of them

``load`` takes a name, a file, a folder of pictures or arrays and splits them; ``Data.of`` takes all rows as one set.
"""

from ppvae.data.data import Data
from ppvae.data.leakage import shared_rows
from ppvae.data.sources import load, names
from ppvae.data.splits import Splits, split

__all__ = ["Data", "Splits", "load", "names", "shared_rows", "split"]
