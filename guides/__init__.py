"""q(z | x): one amortized family a file."""

if __name__ != "ppvae.guides":
    raise ImportError("import ppvae.guides, not guides: a second copy of these classes would be unequal to the first")

from ppvae.guides.amortized import Amortized, DiagonalNormal, FullRankNormal
from ppvae.guides.annealed import Annealed
from ppvae.guides.flow import Flow
from ppvae.guides.refined import Refined

__all__ = ["Amortized", "Annealed", "DiagonalNormal", "Flow", "FullRankNormal", "Refined"]
