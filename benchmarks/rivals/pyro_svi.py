"""Pyro as its example uses it: ``pyro.infer.SVI`` with ``pyro.optim.Adam`` and its checks on. Option "jit": with ``JitTrace_ELBO``."""

from __future__ import annotations

import math

import pyro
import pyro.optim
import torch
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, RenyiELBO, Trace_ELBO
from torch import Tensor

from benchmarks import networks
from benchmarks.job import Job, Prepared
from benchmarks.rivals.pyro_pair import VAE

CHUNK_PARTICLES, CHUNK_DATA = 100, 8


def objective(job: Job) -> object:
    """The loss of a step."""
    if job.num_particles > 1:
        return RenyiELBO(alpha=0, num_particles=job.num_particles, vectorize_particles=True, max_plate_nesting=1)
    return JitTrace_ELBO() if job.options.get("jit") else Trace_ELBO()


def step(job: Job) -> Prepared:
    """Training steps."""
    vae, batches = VAE(job), networks.Batches(job)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss=objective(job))
    return Prepared(networks.looped(lambda: svi.step(batches()) / job.batch_size, job))


def log_likelihood(job: Job) -> Prepared:
    """log p(x) by traces under a plate of 100 particles, eight data at a time. An iteration is these data at all particles."""
    vae, x = VAE(job), networks.binary(job)
    data = min(CHUNK_DATA, job.num_data)
    place = [0]

    @torch.no_grad()
    def one() -> float:
        first = place[0] % (job.num_data - data + 1)
        place[0] += data
        batch = x[first : first + data]
        total = torch.full((data,), -math.inf, device=x.device)
        for start in range(0, job.num_particles, CHUNK_PARTICLES):
            k = min(CHUNK_PARTICLES, job.num_particles - start)
            total = torch.logaddexp(total, torch.logsumexp(log_weights(vae, batch, k), 0))
        return (total - math.log(job.num_particles)).mean().item()

    return Prepared(networks.looped(one, job), units=data)


def log_weights(vae: VAE, x: Tensor, num_particles: int) -> Tensor:
    """(K, N)."""
    particles = pyro.plate("particles", num_particles, dim=-2)
    guide = poutine.trace(particles(vae.guide)).get_trace(x)
    model = poutine.trace(poutine.replay(particles(vae.model), trace=guide)).get_trace(x)
    model.compute_log_prob()
    guide.compute_log_prob()
    found: Tensor = model.nodes["latent"]["log_prob"] + model.nodes["obs"]["log_prob"] - guide.nodes["latent"]["log_prob"]
    return found
