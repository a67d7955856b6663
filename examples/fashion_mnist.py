"""Fashion-MNIST thresholded at 0.5, 784-200-200-50, ELU, KL warm-up: test ELBO, log p(x) at K = 5,000, and the inference gaps.

The protocol is that of Cremer, Li, Duvenaud (2018), "Inference suboptimality in variational autoencoders", table 2, shortened: they
train 3,280 epochs with a warm-up of 400, we 300 with 100. Expected: an amortization gap of 3 to 5 nats on training images, larger on
test images; an approximation gap of about 3 on both. Published, training images, 3,280 epochs: log p(x) -97.47, L[q*] -100.53,
L[q] -104.75, approximation gap 3.06, amortization gap 4.22.

    python examples/fashion_mnist.py --out runs/fashion-mnist            # trains, or goes on; then evaluates
"""

import argparse
import functools
import json
from pathlib import Path

import pyro
import torch

import ppvae
from ppvae import analysis, guides, models, nn, objectives


def main() -> None:
    """Train where there is no finished run, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/fashion-mnist")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--images", type=int, default=1000, help="training and test images whose gaps are measured")
    parser.add_argument("--train-rows", type=int, default=None, help="train on the first so many images only (for a quick look)")
    parser.add_argument("--test-rows", type=int, default=None, help="evaluate log p(x) on the first so many test images only")
    options = parser.parse_args()

    data = ppvae.data.load("fashion-mnist", binarize="threshold")
    train = data.train if options.train_rows is None else data.train[: options.train_rows]
    test = data.test if options.test_rows is None else data.test[: options.test_rows]
    pyro.set_rng_seed(0)
    model = models.Bernoulli(nn.MLP(50, [200, 200], 784, activation=torch.nn.ELU), latent_dim=50)
    guide = guides.DiagonalNormal(nn.MLP(784, [200, 200], 100, activation=torch.nn.ELU), latent_dim=50)
    run = ppvae.fit(
        model,
        guide,
        train,
        epochs=options.epochs,
        batch_size=100,
        beta=objectives.linear(0.0, 1.0, fraction=1 / 3),
        optimizer=functools.partial(torch.optim.Adam, lr=1e-3),
        scheduler=functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.1 ** (1 / options.epochs)),
        seed=0,
        out=options.out,
        resume=True,
    )

    found = {
        "test ELBO": analysis.elbo(run.model, run.guide, test, num_particles=100),
        "test log p(x)": analysis.log_likelihood(run.model, run.guide, test, num_particles=5000),
        "gaps, training images": analysis.inference_gaps(run.model, run.guide, train[: options.images]),
        "gaps, test images": analysis.inference_gaps(run.model, run.guide, test[: options.images]),
    }
    for name, result in found.items():
        print(f"{name}: {result}")
        run.write_result(name.replace(",", "").replace("(x)", "").replace(" ", "-"), result.as_dict())
        if name.startswith("gaps"):
            print(f"    log p(x) {result.log_px.mean():.2f}  L[q*] {result.elbo_optimal.mean():.2f}  L[q] {result.elbo.mean():.2f}")
    usage = analysis.latent_usage(run.model, run.guide, test[:1000])
    print(usage)
    Path(options.out, "results", "usage.json").write_text(json.dumps(usage.as_dict()))


if __name__ == "__main__":
    main()
