"""q(z | x): one amortized family a file."""

if __name__ != "ppvae.guides":
    raise ImportError("import ppvae.guides, not guides: a second copy of these classes would be unequal to the first")

from ppvae.guides.amortized import Amortized, DiagonalNormal, FullRankNormal
from ppvae.guides.annealed import Annealed
from ppvae.guides.autoregressive import InverseAutoregressive, MaskedAutoregressive
from ppvae.guides.categorical import Categorical, RelaxedCategorical
from ppvae.guides.delta import Delta
from ppvae.guides.flow import Flow
from ppvae.guides.from_model import for_model
from ppvae.guides.global_weights import GlobalWeights
from ppvae.guides.hierarchical import Hierarchical
from ppvae.guides.iterative import Iterative
from ppvae.guides.ladder import Ladder
from ppvae.guides.low_rank import LowRankNormal
from ppvae.guides.mixture import Mixture
from ppvae.guides.recurrent import Recurrent
from ppvae.guides.refined import Refined
from ppvae.guides.semi_amortized import SemiAmortized
from ppvae.guides.semi_supervised import SemiSupervised
from ppvae.guides.splines import Spline

__all__ = [
    "Amortized",
    "Annealed",
    "Categorical",
    "Delta",
    "DiagonalNormal",
    "Flow",
    "FullRankNormal",
    "GlobalWeights",
    "Hierarchical",
    "InverseAutoregressive",
    "Iterative",
    "Ladder",
    "LowRankNormal",
    "MaskedAutoregressive",
    "Mixture",
    "Recurrent",
    "Refined",
    "RelaxedCategorical",
    "SemiAmortized",
    "SemiSupervised",
    "Spline",
    "for_model",
]
