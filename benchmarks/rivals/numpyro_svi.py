"""NumPyro as its own examples/vae.py does it: ``SVI.update`` inside one ``lax.fori_loop``, batches gathered and binarised there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from jax.example_libraries import stax
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO

from benchmarks.architectures import PIXELS, Architecture
from benchmarks.job import Job, Prepared


def encoder(architecture: Architecture) -> object:
    """(B, 784) -> loc and scale."""
    activation = stax.Tanh if architecture.activation == "tanh" else stax.Relu
    if architecture.convolutional:
        image = (lambda key, shape: ((shape[0], 28, 28, 1), ()), lambda params, x, **_: x.reshape(-1, 28, 28, 1))
        conv = [stax.Conv(channels, (4, 4), strides=(2, 2), padding="SAME") for channels in (32, 64)]
        body = [image, conv[0], activation, conv[1], activation, stax.Flatten]
    else:
        body = [layer for width in architecture.hidden for layer in (stax.Dense(width), activation)]
    heads = stax.parallel(stax.Dense(architecture.latent_dim), stax.serial(stax.Dense(architecture.latent_dim), stax.Exp))
    return stax.serial(*body, stax.FanOut(2), heads)


def decoder(architecture: Architecture) -> object:
    """(B, Z) -> logits (B, 784)."""
    activation = stax.Tanh if architecture.activation == "tanh" else stax.Relu
    if not architecture.convolutional:
        body = [layer for width in reversed(architecture.hidden) for layer in (stax.Dense(width), activation)]
        return stax.serial(*body, stax.Dense(PIXELS))
    image = (lambda key, shape: ((shape[0], 7, 7, 64), ()), lambda params, x, **_: x.reshape(-1, 7, 7, 64))
    back = [stax.ConvTranspose(channels, (4, 4), strides=(2, 2), padding="SAME") for channels in (32, 1)]
    return stax.serial(stax.Dense(7 * 7 * 64), image, activation, back[0], activation, back[1], stax.Flatten)


def programs(architecture: Architecture) -> tuple[object, object]:
    """Model and guide."""

    def model(x):
        decode = numpyro.module("decoder", decoder(architecture), (x.shape[0], architecture.latent_dim))
        with numpyro.plate("batch", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([architecture.latent_dim]).to_event(1))
            numpyro.sample("obs", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x):
        encode = numpyro.module("encoder", encoder(architecture), (x.shape[0], PIXELS))
        loc, scale = encode(x)
        with numpyro.plate("batch", x.shape[0]):
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide


def step(job: Job) -> Prepared:
    """Training steps; an iteration is one turn of the loop."""
    grey = jnp.asarray(np.load(job.images)).astype(jnp.float32) / 255
    objective = Trace_ELBO() if job.num_particles == 1 else RenyiELBO(alpha=0, num_particles=job.num_particles)
    svi = SVI(*programs(job.architecture), numpyro.optim.Adam(1e-3), objective)
    key, start_key, order_key = random.split(random.PRNGKey(job.seed), 3)
    state = svi.init(start_key, grey[: job.batch_size])
    order = random.permutation(order_key, len(grey))
    whole = len(grey) // job.batch_size

    @jax.jit
    def loop(state, key, first, iterations, order, grey):
        def body(i, carry):
            total, state = carry
            rows = lax.dynamic_slice_in_dim(order, (first + i) % whole * job.batch_size, job.batch_size)
            batch = random.bernoulli(random.fold_in(key, first + i), grey[rows]).astype(grey.dtype)
            state, loss = svi.update(state, batch)
            return total + loss / job.batch_size, state

        return lax.fori_loop(0, iterations, body, (0.0, state))

    kept = {"state": state, "first": 0}

    def run(iterations: int) -> float:
        total, kept["state"] = loop(kept["state"], key, kept["first"], iterations, order, grey)
        kept["first"] += iterations
        jax.block_until_ready(kept["state"])
        return float(total) / iterations

    return Prepared(run)
