"""How good are our own numbers? Every estimator of log p(x) against the best reference that can be had, on a trained 50-D pair.

The pair is examples/inference_suboptimality.py's (Fashion-MNIST thresholded at 0.5, 784-200-200-50, ELU). Expected:
(1) bidirectional Monte Carlo on simulated data, from refined posteriors at 100 temperatures: |mean width| below 0.05 nats, every datum
below 0.2; (2) ``log_likelihood(tolerance=0.05)`` on test images: root mean square distance to annealing (300 temperatures, 32 chains)
at most 0.07 nats with no more than 3,000 evaluations of the decoder per datum, refinement and the second proposal included, where 5,000
particles from the encoder cost more and are more than a nat low; its 95 % intervals cover 90 to 98 %; (3) the inference gaps of as many
images with Monte Carlo errors below 0.02 nats, each part timed.

    python examples/estimators.py --run runs/fashion-mnist --out runs/estimators
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import ppvae
from ppvae import analysis

COVERED = 1.96  # standard errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/fashion-mnist")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--out", default="runs/estimators")
    parser.add_argument("--num-data", type=int, default=1000)
    parser.add_argument("--simulated", type=int, default=100)
    parser.add_argument("--part", choices=["all", "width", "tolerance", "gaps"], default="all")
    options = parser.parse_args()
    run = ppvae.load(options.run)
    x = ppvae.data.load(options.data, binarize="threshold").test[: options.num_data]
    parts = {"width": lambda: width(run, x, options.simulated), "tolerance": lambda: to_tolerance(run, x), "gaps": lambda: gaps(run, x)}
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        if options.part not in ("all", name):
            continue
        found = part()
        print(name)
        for what, value in found.items():
            print(f"    {what}: {value:.4g}" if isinstance(value, float) else f"    {what}: {value}", flush=True)
        (folder / f"{name}.json").write_text(json.dumps(found, indent=1))


def width(run: ppvae.Run, x: Any, num_data: int) -> dict[str, Any]:
    """The sandwich of forward and reverse annealing on simulated data."""
    started = time.perf_counter()
    found = analysis.bidirectional(
        run.model, guide=run.guide, template=x[:1], num_data=num_data, start="refined", num_temperatures=100, num_chains=32, seed=1
    )
    w = found.width
    return {
        "sentence": str(found),
        "mean width": w.mean().item(),
        "its standard error": (w.std() / len(w) ** 0.5).item(),
        "largest width": w.abs().max().item(),
        "seconds": time.perf_counter() - started,
    }


def to_tolerance(run: ppvae.Run, x: Any) -> dict[str, Any]:
    """Distance to annealing, cost and coverage of the answer to a tolerance, and of the encoder's 5,000 particles."""
    found: dict[str, Any] = {}
    reference = analysis.annealed_log_likelihood(
        run.model, x, guide=run.guide, start="refined", num_temperatures=300, num_chains=32, seed=11
    )
    found["reference"] = str(reference)
    for name, how in {"tolerance 0.05": {"tolerance": 0.05}, "tolerance 0.02": {"tolerance": 0.02}, "encoder, K = 5,000": {}}.items():
        started = time.perf_counter()
        second = None if not how else "auto"  # the encoder's cost is then that of its own particles
        estimate = analysis.log_likelihood(run.model, run.guide, x, second=second, seed=5, **how)
        error = estimate.pointwise - reference.pointwise
        spread = (estimate.pointwise_se.square() + reference.pointwise_se.square()).sqrt()
        found |= {
            f"{name}: sentence": str(estimate),
            f"{name}: mean error": error.mean().item(),
            f"{name}: root mean square": error.square().mean().sqrt().item(),
            f"{name}: largest": error.abs().max().item(),
            f"{name}: share within 0.1": (error.abs() < 0.1).double().mean().item(),
            f"{name}: evaluations, mean": estimate.num_evaluations.double().mean().item(),
            f"{name}: evaluations, 95th percentile": estimate.num_evaluations.double().quantile(0.95).item(),
            f"{name}: evaluations, largest": estimate.num_evaluations.max().item(),
            f"{name}: 95 % intervals cover": (error.abs() < COVERED * spread).double().mean().item(),
            f"{name}: seconds": time.perf_counter() - started,
        }
    return found


def gaps(run: ppvae.Run, x: Any) -> dict[str, Any]:
    """Gaps with an importance-weighted and with an annealed reference, timed."""
    found: dict[str, Any] = {"threads": torch.get_num_threads()}
    for reference in ("auto", "annealed"):
        started = time.perf_counter()
        measured = analysis.inference_gaps(run.model, run.guide, x, reference=reference, seed=3)
        found |= {
            f"{reference}: sentence": str(measured),
            f"{reference}: log p(x)": measured.log_px.mean().item(),
            f"{reference}: largest Monte Carlo error": max(measured.mean(g).mc_se for g in ("approximation", "amortization", "inference")),
            f"{reference}: seconds": time.perf_counter() - started,
        }
    return found


if __name__ == "__main__":
    main()
