"""A NumPyro script that does what ``ppvae train`` and ``ppvae evaluate`` do: train, measure each epoch, then log p(x) of test images.

It runs by itself, in NumPyro's environment; ``tasks/command.py`` times it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro.infer import SVI, Trace_ELBO

from benchmarks.architectures import ARCHITECTURES
from benchmarks.rivals.numpyro_svi import decoder, encoder, programs

MEASURED, CHUNK = 5_000, 1_000


def main() -> None:
    """Train and evaluate."""
    options = arguments()
    architecture = ARCHITECTURES["A1"]
    grey = jnp.asarray(np.load(options.images).astype(np.float32) / 255)
    test = jnp.asarray(np.load(options.test_images).astype(np.float32) / 255)
    key = random.PRNGKey(0)
    svi = SVI(*programs(architecture), numpyro.optim.Adam(1e-3), Trace_ELBO())
    state = svi.init(key, grey[: options.batch_size])
    shown = random.bernoulli(random.fold_in(key, 1), test[:MEASURED]).astype(grey.dtype)
    batches = len(grey) // options.batch_size

    @jax.jit
    def epoch(state, key, grey):
        order = random.permutation(random.fold_in(key, 0), len(grey))

        def body(i, carry):
            total, state = carry
            rows = lax.dynamic_slice_in_dim(order, i * options.batch_size, options.batch_size)
            batch = random.bernoulli(random.fold_in(key, i + 1), grey[rows]).astype(grey.dtype)
            state, loss = svi.update(state, batch)
            return total + loss, state

        return lax.fori_loop(0, batches, body, (0.0, state))

    evaluate = jax.jit(svi.evaluate)
    for number in range(options.epochs):
        total, state = epoch(state, random.fold_in(key, 2 + number), grey)
        elbo = -evaluate(state, shown) / len(shown)
        print(f"epoch {number + 1}: train {-total / batches / options.batch_size:.2f}, test ELBO {elbo:.2f}", flush=True)
    encode = encoder(architecture)[1]
    decode = decoder(architecture)[1]
    parameters = svi.get_params(state)

    def log_likelihood(x, key):
        loc, scale = encode(parameters["encoder$params"], x[None])

        def chunk(total, key):
            e = random.normal(key, (CHUNK, loc.shape[-1]))
            z = loc + scale * e
            log_p = dist.Bernoulli(logits=decode(parameters["decoder$params"], z)).log_prob(x).sum(-1)
            log_w = log_p - 0.5 * (z**2).sum(-1) + (0.5 * e**2 + jnp.log(scale)).sum(-1)
            return jnp.logaddexp(total, jax.nn.logsumexp(log_w)), None

        total, _ = lax.scan(chunk, -jnp.inf, random.split(key, options.num_particles // CHUNK))
        return total - jnp.log(options.num_particles)

    x = shown[: options.num_data]
    found = jax.jit(lambda x, keys: lax.map(lambda each: log_likelihood(*each), (x, keys)))(x, random.split(key, len(x)))
    print(f"log p(x) = {found.mean():.2f} nats (N={len(x)}, K={options.num_particles})")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--test-images", required=True)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--num-data", type=int, default=1000)
    parser.add_argument("--num-particles", type=int, default=5000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
