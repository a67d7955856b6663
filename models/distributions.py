"""Distributions of single numbers that Pyro lacks, or that it computes by differences which float32 does not survive.

Each broadcasts its parameters, (...) -> batch shape (...), event shape (). A density is a sum of terms that are moderate where the
density is, so that it and its gradients stay finite whatever a network puts out.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

SERIES_BELOW = 0.1  # where a difference of nearly equal numbers gives way to its series: what is left out is below 1e-11
STIRLING_ABOVE = 16.0
Shape = Size | list[int] | tuple[int, ...]
NO_SHAPE = Size()


class OpenUnitInterval(constraints.Constraint):
    """Real numbers above 0 and below 1: at the ends a Beta density is 0 or infinite."""

    def check(self, value: Tensor) -> Tensor:
        """Elementwise."""
        return (value > 0) & (value < 1)

    def __str__(self) -> str:
        return "OpenInterval(lower_bound=0.0, upper_bound=1.0)"


class Levels(constraints.Constraint):
    """0, step, 2 step, ..., (num_levels - 1) step, each up to a thousandth of a step."""

    is_discrete = True

    def __init__(self, num_levels: int, step: float) -> None:
        self.num_levels, self.step = num_levels, step
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Elementwise."""
        level = value / self.step
        whole = level.round()
        return ((level - whole).abs() < 1e-3) & (whole >= 0) & (whole < self.num_levels)

    def __str__(self) -> str:
        return f"{self.num_levels} levels from 0 to {(self.num_levels - 1) * self.step:g}"


class Elementwise(TorchDistribution):
    """A distribution whose parameters broadcast against each other, number by number: what its ``arg_constraints`` name."""

    def __init__(self, *parameters: Tensor, validate_args: bool | None = None) -> None:
        parameters = torch.broadcast_tensors(*parameters)
        for name, parameter in zip(self.arg_constraints, parameters, strict=True):
            setattr(self, name, parameter)
        super().__init__(parameters[0].shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> Any:
        """The same distribution with its parameters expanded."""
        new = self._get_checked_instance(type(self), _instance)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(Elementwise, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _checked(self, value: Tensor) -> None:
        if self._validate_args:
            self._validate_sample(value)


class ContinuousBernoulli(Elementwise):
    """p(x) = exp(l x) l / (exp(l) - 1) on [0, 1], by its logit l.

    torch's own goes by the probability, which in float32 is 1 from logits of 17 on.

    References:
        Loaiza-Ganem, Cunningham (2019), The continuous Bernoulli, eq. 5 and 6.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True
    logits: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats, elementwise: l x - max(l, 0) - log((1 - exp(-|l|)) / |l|)."""
        self._checked(value)
        size = self.logits.abs()
        near = size < SERIES_BELOW
        a = torch.where(near, torch.ones_like(size), size)
        b = torch.where(near, size, torch.zeros_like(size))
        log_mass = torch.where(near, b * (-1 / 2 + b * (1 / 24 - b**2 / 2880)), torch.log(-torch.expm1(-a)) - a.log())
        return torch.where(self.logits > 0, self.logits * (value - 1), self.logits * value) - log_mass

    def rsample(self, sample_shape: Shape = NO_SHAPE) -> Tensor:
        """By the inverse of the distribution function, from the side where it does not overflow."""
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        size = self.logits.abs().clamp(min=1e-4)
        low = (-torch.log1p(uniform * torch.expm1(-size)) / size).clamp(0, 1)
        return torch.where(self.logits > 0, 1 - low, low)

    @property
    def mean(self) -> Tensor:
        """1 / (1 - exp(-l)) - 1 / l."""
        near = self.logits.abs() < SERIES_BELOW
        far = torch.where(near, torch.ones_like(self.logits), self.logits)
        series = 0.5 + self.logits / 12 - self.logits**3 / 720 + self.logits**5 / 30240
        return torch.where(near, series, -1 / torch.expm1(-far) - 1 / far)

    @property
    def variance(self) -> Tensor:
        """1 / l^2 - 1 / (2 sinh(l / 2))^2."""
        near = self.logits.abs() < SERIES_BELOW
        far = torch.where(near, torch.ones_like(self.logits), self.logits)
        series = 1 / 12 - self.logits**2 / 240 + self.logits**4 / 6048
        return torch.where(near, series, far**-2 - (2 * torch.sinh(far / 2)) ** -2)


class StudentT(dist.StudentT):  # type: ignore[misc]
    """Student's t, with the constant of its density computed without cancellation: it stays exact as df grows and Normal is reached."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats, elementwise."""
        if self._validate_args:
            self._validate_sample(value)
        y = (value - self.loc) / self.scale
        constant = log_gamma_ratio(self.df / 2, torch.full_like(self.df, 0.5)) - 0.5 * (self.df * math.pi).log() - self.scale.log()
        density: Tensor = constant - 0.5 * (self.df + 1) * torch.log1p(y**2 / self.df)
        return density


class Beta(dist.Beta):
    """Beta on the open interval: 0 and 1 are outside, since the density there is 0 or infinite."""

    support = OpenUnitInterval()  # type: ignore[assignment]

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats, elementwise."""
        if self._validate_args:
            self._validate_sample(value)
        a, b = self.concentration1, self.concentration0
        less, more = torch.minimum(a, b), torch.maximum(a, b)
        value = self._inside(value)  # where a mask hides a hole its gradient must be finite all the same
        return log_gamma_ratio(more, less) - torch.lgamma(less) + (a - 1) * value.log() + (b - 1) * torch.log1p(-value)

    def rsample(self, sample_shape: Shape = NO_SHAPE) -> Tensor:
        """A draw that rounding has not put on an end."""
        return self._inside(super().rsample(sample_shape))

    @staticmethod
    def _inside(value: Tensor) -> Tensor:
        limits = torch.finfo(value.dtype)
        return value.clamp(limits.tiny, 1 - limits.eps / 2)


class Poisson(Elementwise):
    """Poisson by the logarithm of its rate, which neither underflows nor needs a logarithm."""

    arg_constraints: ClassVar[dict[str, Any]] = {"log_rate": constraints.real}
    support = constraints.nonnegative_integer
    log_rate: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats, elementwise."""
        self._checked(value)
        return value * self.log_rate - self.log_rate.exp() - torch.lgamma(value + 1)

    def sample(self, sample_shape: Shape = NO_SHAPE) -> Tensor:
        """Counts, as floating point numbers."""
        with torch.no_grad():
            return torch.poisson(self.mean.expand(self._extended_shape(sample_shape)))

    @property
    def mean(self) -> Tensor:
        """The rate."""
        return self.log_rate.exp()

    @property
    def variance(self) -> Tensor:
        """The rate."""
        return self.log_rate.exp()


class NegativeBinomial(Elementwise):
    """Counts of mean m and variance m + m^2 / r, by log m and log r; r is the inverse dispersion, and Poisson its limit.

    log p(x) = log Gamma(x + r) - log Gamma(r) - log x! + r log(r / (r + m)) + x log(m / (r + m)).

    References:
        Lopez, Regier, Cole, Jordan, Yosef (2018), Deep generative modeling for single-cell transcriptomics, Methods.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"log_mean": constraints.real, "log_inverse_dispersion": constraints.real}
    support = constraints.nonnegative_integer
    log_mean: Tensor
    log_inverse_dispersion: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats, elementwise."""
        self._checked(value)
        value, log_mean, log_r = torch.broadcast_tensors(value, self.log_mean, self.log_inverse_dispersion)
        odds = log_mean - log_r
        large = log_r > math.log(STIRLING_ABOVE)
        r = torch.where(large, torch.ones_like(log_r), log_r).exp()
        small_form = torch.lgamma(value + r) - torch.lgamma(r) + r * logsigmoid(-odds) + value * logsigmoid(odds)
        # Stirling's terms of order r and x log r cancel against those of the last two on paper, not in float32
        r = torch.where(large, log_r, torch.full_like(log_r, 4.0)).exp()
        held = torch.where(large, odds, torch.zeros_like(odds))
        log_mean = torch.where(large, log_mean, torch.zeros_like(log_mean))
        correction = _stirling(r + value) - _stirling(r) - 0.5 * torch.log1p(value / r)
        large_form = value * log_mean - value + correction + (r + value) * (torch.log1p(value / r) + logsigmoid(-held))
        return torch.where(large, large_form, small_form) - torch.lgamma(value + 1)

    def sample(self, sample_shape: Shape = NO_SHAPE) -> Tensor:
        """A Poisson draw at a Gamma rate, as floating point numbers."""
        with torch.no_grad():
            r = self.log_inverse_dispersion.exp()
            rate = torch._standard_gamma(r.expand(self._extended_shape(sample_shape))) / r * self.mean
            return torch.poisson(rate)

    @property
    def mean(self) -> Tensor:
        """m."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """m + m^2 / r."""
        return self.mean + (2 * self.log_mean - self.log_inverse_dispersion).exp()


class DiscretizedLogisticMixture(TorchDistribution):
    """Levels 0, ..., L - 1: a mixture of logistics on [-1, 1], cut into L bins of width 2 / (L - 1); the outer two reach to infinity.

    A bin from a to b, in units of the scale from the location, has mass s(b) - s(a) = s(b) s(-a) (1 - exp(a - b)), s the logistic
    function. That form needs no fallback: each factor has a finite logarithm in float32. The masses sum to one exactly, since they
    telescope.

    Args:
        logits, locs, log_scales: (..., M) each; the last dimension is the mixture's.
        num_levels: L.
        step: Between two levels as the data hold them: 1 for whole numbers, 1 / (L - 1) for levels in [0, 1].
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "logits": constraints.real_vector,
        "locs": constraints.real_vector,
        "log_scales": constraints.real_vector,
    }
    logits: Tensor
    locs: Tensor
    log_scales: Tensor

    def __init__(
        self, logits: Tensor, locs: Tensor, log_scales: Tensor, num_levels: int = 256, step: float = 1.0, validate_args: bool | None = None
    ) -> None:
        self.logits, self.locs, self.log_scales = torch.broadcast_tensors(logits, locs, log_scales)
        self.num_levels, self.step = num_levels, step
        super().__init__(self.logits.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> Any:
        """The same distribution with its parameters expanded."""
        new = self._get_checked_instance(DiscretizedLogisticMixture, _instance)
        new.num_levels, new.step = self.num_levels, self.step
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(*batch_shape, self.logits.shape[-1]))
        super(DiscretizedLogisticMixture, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Levels:
        """The levels."""
        return Levels(self.num_levels, self.step)

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats, elementwise."""
        if self._validate_args:
            self._validate_sample(value)
        level = (value / self.step).round()[..., None]
        log_width = math.log(2 / (self.num_levels - 1)) - self.log_scales  # of a bin, in units of the scale
        width = log_width.exp()
        centre = (2 * level / (self.num_levels - 1) - 1 - self.locs) * torch.exp(-self.log_scales)
        first, last = level <= 0, level >= self.num_levels - 1
        near = width < SERIES_BELOW
        far = torch.where(near, torch.ones_like(width), width)
        series = log_width - width / 2 + width**2 / 24 - width**4 / 2880
        log_inner = torch.where(near, series, torch.log(-torch.expm1(-far)))
        zero = torch.zeros((), dtype=centre.dtype, device=centre.device)
        log_mass = torch.where(last, zero, logsigmoid(centre + width / 2)) + torch.where(first, zero, logsigmoid(width / 2 - centre))
        log_mass = log_mass + torch.where(first | last, zero, log_inner)
        return torch.logsumexp(torch.log_softmax(self.logits, -1) + log_mass, -1)

    def sample(self, sample_shape: Shape = NO_SHAPE) -> Tensor:
        """A level: the one whose bin a draw of the logistic of a drawn component falls into."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            component = torch.distributions.Categorical(logits=self.logits).sample(sample_shape)[..., None]
            loc = self.locs.expand(*shape, -1).gather(-1, component)[..., 0]
            scale = self.log_scales.expand(*shape, -1).gather(-1, component)[..., 0].exp()
            uniform = torch.rand(shape, dtype=loc.dtype, device=loc.device).clamp(
                torch.finfo(loc.dtype).tiny, 1 - torch.finfo(loc.dtype).eps
            )
            drawn = loc + scale * (uniform.log() - torch.log1p(-uniform))
            return ((drawn + 1) * ((self.num_levels - 1) / 2)).round().clamp(0, self.num_levels - 1) * self.step

    @property
    def mean(self) -> Tensor:
        """E[x] = step times the sum over k > 0 of P(level >= k), term by term so that memory does not grow with the levels."""
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """E[x^2] - E[x]^2, by E[k^2] = the sum over k > 0 of (2 k - 1) P(level >= k)."""
        first, second = self._moments()
        return second - first**2

    def _moments(self) -> tuple[Tensor, Tensor]:
        probs, inverse_scales = torch.softmax(self.logits, -1), torch.exp(-self.log_scales)
        first, second = torch.zeros_like(probs[..., 0]), torch.zeros_like(probs[..., 0])
        for k in range(1, self.num_levels):
            edge = (2 * k - 1) / (self.num_levels - 1) - 1
            above = (probs * torch.sigmoid((self.locs - edge) * inverse_scales)).sum(-1)
            first, second = first + above, second + (2 * k - 1) * above
        return first * self.step, second * self.step**2


def log_gamma_ratio(t: Tensor, x: Tensor) -> Tensor:
    """log Gamma(t + x) - log Gamma(t) for t > 0, x >= 0; by Stirling's series where t is large, since the difference cancels there.

    x log t + (t + x - 1/2) log(1 + x / t) - x + S(t + x) - S(t), with S(t) = 1 / (12 t) - 1 / (360 t^3) + ...
    """
    large = t > STIRLING_ABOVE
    far = torch.where(large, t, torch.full_like(t, STIRLING_ABOVE))
    near = torch.where(large, torch.ones_like(t), t)
    series = x * far.log() + (far + x - 0.5) * torch.log1p(x / far) - x + _stirling(far + x) - _stirling(far)
    return torch.where(large, series, torch.lgamma(near + x) - torch.lgamma(near))


def _stirling(t: Tensor) -> Tensor:
    """log Gamma(t) - (t - 1/2) log t + t - log(2 pi) / 2, for t above 16: what is left out is below 1e-14."""
    inverse = 1 / t
    square = inverse**2
    return inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))
