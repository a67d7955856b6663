"""ppvae. Options: "pair" is "built-in" (its own parts) or "user" (a pair as Pyro's users write it); "compile" is True or False."""

from __future__ import annotations

import os
import unittest.mock
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import nn

import ppvae
from benchmarks import networks
from benchmarks.job import Job, Prepared
from benchmarks.rivals.hand import LEAPFROG_STEPS, TEMPERATURES
from benchmarks.rivals.pyro_pair import VAE
from ppvae import analysis, guides, models
from ppvae import refinement as refining
from ppvae.nn import MLP, ConvDecoder, ConvEncoder
from ppvae.pair import Pair
from ppvae.training import Training


def pair(job: Job) -> tuple[Any, Any]:
    """Model and guide."""
    if job.options.get("pair") == "user":
        vae = VAE(job)
        return vae.model, vae.guide
    torch.manual_seed(job.seed)
    architecture, z = job.architecture, job.architecture.latent_dim
    activation = networks.ACTIVATIONS[architecture.activation]
    encoder: nn.Module
    decoder: nn.Module
    if architecture.convolutional:
        encoder, decoder = ConvEncoder(28, 2 * z, activation=activation), ConvDecoder(z, 28, activation=activation)
    else:
        encoder = MLP(networks.PIXELS, architecture.hidden, 2 * z, activation)
        decoder = MLP(z, list(reversed(architecture.hidden)), networks.PIXELS, activation)
    model, guide = models.Bernoulli(decoder, latent_dim=z), guides.DiagonalNormal(encoder, latent_dim=z)
    networks.fill([*encoder.parameters(), *decoder.parameters()], job)
    return model.to(job.device), guide.to(job.device)


class BegunError(Exception):
    """Carries the loop of ``ppvae.fit`` out of it, before its first step."""

    def __init__(self, training: Training) -> None:
        super().__init__("the loop stands ready")
        self.training = training


def stepper(job: Job, model: Any, guide: Any) -> Callable[[], float]:
    """One step of ``ppvae.fit``: gather, binarise, gradients, update, bookkeeping; returns its loss per datum.

    The one place that knows the library's inside: fit is begun in earnest and left where its loop would start, so that its very step can be
    called as often as a block wants. Epochs follow each other without the measurement between them.
    """
    compiles = bool(job.options.get("compile", True))
    data = ppvae.data.Data.from_arrays(np.load(job.images), name="images", binarize="dynamic", levels=255)
    with unittest.mock.patch.object(Training, "loop", autospec=True, side_effect=_begun):
        try:
            ppvae.fit(
                model,
                guide,
                data,
                objective=objective(job),
                epochs=10_000,
                batch_size=job.batch_size,
                seed=job.seed,
                compile=compiles,
                device=job.device,
            )
        except BegunError as ready:
            training = ready.training
    pyro.enable_validation(False)  # as inside of fit, which was left
    position, whole = training.position, len(data) // job.batch_size

    def one() -> float:
        if position.batch >= whole:
            position.epoch, position.batch, position.loss_sum = position.epoch + 1, 0, 0.0
        before = position.loss_sum
        training._step()
        if compiles and not training.svi.engine.on:
            raise RuntimeError(f"the step was to be compiled and runs eagerly: {training.svi.engine.reason}")
        return (position.loss_sum - before) / job.batch_size

    return one


def _begun(training: Training) -> None:
    raise BegunError(training)


def objective(job: Job) -> Any:
    """The loss of a step."""
    if job.num_particles > 1:
        return RenyiELBO(alpha=0, num_particles=job.num_particles, vectorize_particles=True, max_plate_nesting=1)
    return Trace_ELBO()


def step(job: Job) -> Prepared:
    """Training steps."""
    return Prepared(networks.looped(stepper(job, *pair(job)), job))


def measurement_compiles(job: Job) -> None:
    """Rule whether log weights, refinement and annealing are compiled, whatever their size."""
    os.environ["PPVAE_COMPILE"] = "1" if job.options.get("compile", True) else "0"


def log_likelihood(job: Job) -> Prepared:
    """log p(x) of all data by streamed weights. An iteration is all data at all particles."""
    measurement_compiles(job)
    model, guide = pair(job)
    x = networks.binary(job)
    seeds = iter(range(10**9))

    def one() -> float:
        log_weights = ppvae.log_weights(model, guide, x, num_particles=job.num_particles, seed=next(seeds))
        return float((torch.logsumexp(log_weights, 0) - torch.tensor(float(job.num_particles)).log()).mean())

    return Prepared(networks.looped(one, job), units=job.num_data)


def refinement(job: Job) -> Prepared:
    """Refined posteriors of the option "family" for all data. A unit is a datum and step; the value is their ELBO by fresh draws."""
    measurement_compiles(job)
    model, guide = pair(job)
    x, steps = networks.binary(job), int(job.options["steps"])
    seeds = iter(range(10**9))

    def one() -> float:
        seed = next(seeds)
        fitted = refining.fit(
            Pair(model, guide, x, seed),
            x,
            family=job.options["family"],
            steps=steps,
            num_draws=job.num_particles,
            seed=seed,
            report=False,
        )
        last["guide"] = fitted.guide
        return 0.0

    last: dict[str, Any] = {}
    timed = networks.looped(one, job)

    def run(iterations: int) -> float:
        timed(iterations)
        if not job.options.get("valued"):
            return 0.0
        return float(ppvae.log_weights(model, last["guide"], x, num_particles=100, seed=1).mean())

    return Prepared(run, units=job.num_data * steps)


def leapfrog(job: Job) -> Prepared:
    """Annealed log p(x) from the guide, with step sizes given. A unit is a leapfrog step of one row (datum x chain)."""
    measurement_compiles(job)
    model, guide = pair(job)
    x = networks.binary(job)
    seeds = iter(range(10**9))

    def one() -> float:
        found = analysis.annealed_log_likelihood(
            model,
            x,
            guide=guide,
            start="guide",
            num_temperatures=TEMPERATURES - 1,
            num_chains=job.num_particles,
            num_leapfrog=LEAPFROG_STEPS,
            step_size=float(job.options["step_size"]),
            seed=next(seeds),
        )
        return float(found.pointwise.mean())

    return Prepared(networks.looped(one, job), units=job.num_data * job.num_particles * (1 + (TEMPERATURES - 2) * LEAPFROG_STEPS))
