"""PyTorch written by hand, eagerly, with the fused Adam: the reference of every ratio. With the option "compiled" the loss is compiled."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import networks
from benchmarks.job import Job, Prepared

LEARNING_RATE = 1e-3
CHUNK_ROWS = 1000  # of log p(x): the logits of so many rows fit in the cache, and eager torch is fastest there
LEAPFROG_STEPS = 10
TEMPERATURES = 41


def built(job: Job) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder with the job's weights."""
    torch.manual_seed(job.seed)
    encoder, decoder = networks.encoder(job.architecture), networks.decoder(job.architecture)
    networks.fill([*encoder.parameters(), *decoder.parameters()], job)
    return encoder.to(job.device), decoder.to(job.device)


def elbo_loss(encoder: nn.Module, decoder: nn.Module, x: Tensor) -> Tensor:
    """Negative ELBO of a batch, summed, with the KL in closed form."""
    loc, log_scale = encoder(x).chunk(2, -1)
    z = loc + log_scale.exp() * torch.randn_like(loc)
    distortion = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
    kl: Tensor = (0.5 * (loc.square() + (2 * log_scale).exp() - 1) - log_scale).sum()
    return distortion + kl


def weighted_loss(encoder: nn.Module, decoder: nn.Module, x: Tensor, num_particles: int) -> Tensor:
    """Negative importance-weighted bound of a batch, summed."""
    loc, log_scale = encoder(x).chunk(2, -1)
    log_w = log_weights(loc, log_scale, decoder, x, num_particles)
    return -(torch.logsumexp(log_w, 0) - math.log(num_particles)).sum()


def log_weights(loc: Tensor, log_scale: Tensor, decoder: nn.Module, x: Tensor, num_particles: int) -> Tensor:
    """log p(x, z) - log q(z | x), (K, N); the constants of the two Normals cancel."""
    e = torch.randn(num_particles, *loc.shape, device=loc.device)
    z = loc + log_scale.exp() * e
    logits = decoder(z)
    log_likelihood = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
    found: Tensor = log_likelihood - 0.5 * z.square().sum(-1) + (0.5 * e.square() + log_scale).sum(-1)
    return found


def step(job: Job) -> Prepared:
    """Training steps by the ELBO, or with more than one particle by the importance-weighted bound."""
    encoder, decoder = built(job)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
    batches = networks.Batches(job)

    def loss_of(x: Tensor) -> Tensor:
        return elbo_loss(encoder, decoder, x) if job.num_particles == 1 else weighted_loss(encoder, decoder, x, job.num_particles)

    loss_function = torch.compile(loss_of, dynamic=False) if job.options.get("compiled") else loss_of

    def one() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_function(batches())
        loss.backward()
        optimizer.step()
        return loss.item() / job.batch_size

    return Prepared(networks.looped(one, job), parameters=lambda: [p.detach().cpu().numpy() for p in parameters])


def log_likelihood(job: Job) -> Prepared:
    """log p(x) of one datum after another, in chunks of particles under a running log-sum-exp. An iteration is a datum."""
    encoder, decoder = built(job)
    x = networks.binary(job)
    place = _turns(job.num_data)

    @torch.no_grad()
    def one() -> float:
        datum = x[next(place)][None]
        loc, log_scale = encoder(datum).chunk(2, -1)
        total = torch.full((1,), -math.inf, device=x.device)
        for first in range(0, job.num_particles, CHUNK_ROWS):
            k = min(CHUNK_ROWS, job.num_particles - first)
            total = torch.logaddexp(total, torch.logsumexp(log_weights(loc, log_scale, decoder, datum, k), 0))
        return total.item() - math.log(job.num_particles)

    return Prepared(networks.looped(one, job))


def refinement(job: Job) -> Prepared:
    """A Normal with diagonal covariance fitted by Adam, one datum at a time, as Cremer, Li, Duvenaud (2018) do; or, with the option
    "batched", to all data at once. A unit is a datum and step; the value is the ELBO of the last step."""
    encoder, decoder = built(job)
    decoder.requires_grad_(False)
    x = networks.binary(job)
    at_once = job.num_data if job.options.get("batched") else 1
    place = _turns(job.num_data // at_once)
    steps = int(job.options["steps"])

    def one() -> float:
        first = next(place) * at_once
        data = x[first : first + at_once]
        with torch.no_grad():
            row = encoder(data)
        row = row.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([row], lr=0.01)
        loss = torch.zeros(())
        for _ in range(steps):
            optimizer.zero_grad()
            loc, log_scale = row.chunk(2, -1)
            loss = -log_weights(loc, log_scale, decoder, data, job.num_particles).mean(0).sum()
            loss.backward()
            optimizer.step()
        return -loss.item() / at_once

    return Prepared(networks.looped(one, job), units=at_once * steps)


def leapfrog(job: Job) -> Prepared:
    """Annealed importance sampling from the guide by Hamiltonian Monte Carlo, all data and chains at once.

    A unit is a leapfrog step of one row (datum x chain). The value is log p(x) by the weights, as low as few temperatures leave it.
    """
    encoder, decoder = built(job)
    decoder.requires_grad_(False)
    x, chains = networks.binary(job), job.num_particles
    temperatures = torch.linspace(0, 1, TEMPERATURES, device=x.device).tolist()
    with torch.no_grad():
        loc, log_scale = encoder(x).chunk(2, -1)
    step_size = float(job.options["step_size"])

    def ends(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v = v.detach().requires_grad_(True)
        z = loc + log_scale.exp() * v
        logits = decoder(z)
        log_joint = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1) - 0.5 * z.square().sum(-1)
        (gradient,) = torch.autograd.grad(log_joint.sum(), v)
        return -0.5 * v.detach().square().sum(-1), log_joint.detach() + log_scale.sum(-1), gradient

    def one() -> float:
        v = torch.randn(chains, *loc.shape, device=x.device)
        log_base, log_joint, gradient = ends(v)
        log_w = (temperatures[1] - temperatures[0]) * (log_joint - log_base)
        for b, following in itertools.pairwise(temperatures[1:]):
            momentum = torch.randn_like(v)
            energy = 0.5 * momentum.square().sum(-1) - (1 - b) * log_base - b * log_joint
            proposal, momentum = v, momentum + step_size / 2 * (b * gradient - (1 - b) * v)
            for leap in range(LEAPFROG_STEPS):
                proposal = proposal + step_size * momentum
                base, joint, slope = ends(proposal)
                size = step_size if leap < LEAPFROG_STEPS - 1 else step_size / 2
                momentum = momentum + size * (b * slope - (1 - b) * proposal)
            proposed = 0.5 * momentum.square().sum(-1) - (1 - b) * base - b * joint
            accepted = torch.rand_like(energy) < (energy - proposed).exp()
            v, gradient = torch.where(accepted[..., None], proposal, v), torch.where(accepted[..., None], slope, gradient)
            log_base, log_joint = torch.where(accepted, base, log_base), torch.where(accepted, joint, log_joint)
            log_w = log_w + (following - b) * (log_joint - log_base)
        return (torch.logsumexp(log_w, 0) - math.log(chains)).mean().item()

    return Prepared(networks.looped(one, job), units=job.num_data * chains * (1 + (TEMPERATURES - 2) * LEAPFROG_STEPS))


def product(job: Job) -> Prepared:
    """The peak of the machine: square single-precision matrix products of the option "size". A unit is one operation."""
    size = int(job.options["size"])
    a, b = torch.rand(size, size, device=job.device), torch.rand(size, size, device=job.device)
    out = torch.empty_like(a)

    def one() -> float:
        torch.mm(a, b, out=out)
        return 0.0

    return Prepared(networks.looped(one, job), units=2.0 * size**3)


def _turns(n: int) -> Iterator[int]:
    while True:
        yield from range(n)
