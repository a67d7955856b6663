"""Faults put into a copy of the code, one at a time: each must turn a test red. ``make mutants``; docs/testing.md has the table.

    python tests/mutants.py                  # all: minutes
    python tests/mutants.py verdict          # those whose fault or file holds the word

A test that no fault can turn red shows nothing. The copy is of the working tree; nothing is changed in place. Ends with 1 where a mutant
lives, or where the code that a mutant replaces is gone (then the mutant has to be written anew).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("ppvae", "models", "guides", "analysis", "tests", "examples", "pyproject.toml")


@dataclass(frozen=True)
class Mutant:
    """A fault: in ``file`` the one place that reads ``old`` becomes ``new``; ``tests`` are pytest's arguments, one of which turns red."""

    fault: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def of(fault: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    """With tests written as ``file.py`` or ``file.py -k words``."""
    return Mutant(fault, file, old, new, tests)


IMPORTANCE, ANNEALING, HMC, PATHS = "ppvae/importance.py", "ppvae/annealing.py", "ppvae/hmc.py", "ppvae/paths.py"
NATURAL, REFINEMENT, FAMILIES, QUADRATURE = "ppvae/natural.py", "ppvae/refinement.py", "ppvae/families.py", "ppvae/quadrature.py"
VERDICT, PROPOSALS, GAPS, PARETO = "analysis/verdict.py", "analysis/proposals.py", "analysis/inference_gaps.py", "ppvae/pareto.py"
TOLERANCE, BIDIRECTIONAL, CALIBRATION = "analysis/tolerance.py", "analysis/bidirectional.py", "analysis/calibration.py"
UNIFORMITY, CORRECTED, STREAM, ENUMERATION = "analysis/uniformity.py", "analysis/corrected.py", "ppvae/stream.py", "ppvae/enumeration.py"

ON_IMPORTANCE, ON_ANNEALING, ON_HMC, ON_REFINE = "test_importance.py", "test_annealing.py", "test_hmc.py", "test_refine.py"
ON_LIKELIHOOD, ON_PROGRAMS, ON_EXACT = "test_log_likelihood.py", "test_programs.py", "test_exact_log_likelihood.py"
SVI, BOUND, ON_BOUND = "ppvae/svi.py", "ppvae/gradient_bound.py", "test_gradient_bound.py"
PARTS, PAIR, SIMULATE, ON_PLACES = "ppvae/parts.py", "ppvae/pair.py", "ppvae/simulate.py", "test_memory_places.py"
TRAINING, RESUME, ROLLBACK, ON_ROLLBACK = "ppvae/training.py", "ppvae/resume.py", "ppvae/rollback.py", "test_rollback.py"
ON_CALIBRATION, ON_FAMILIES, ON_FAULTS, ON_GAPS = "test_calibration.py", "test_families.py", "test_faults.py", "test_inference_gaps.py"

MUTANTS = (
    # weights and their reductions
    of("sign of log q", STREAM, "sum(self.log_p.values()) - sum(self.log_q.values())", "sum(self.log_p.values()) + sum(self.log_q.values())", ON_PROGRAMS),
    of("log K missing", IMPORTANCE, "return torch.logsumexp(log_weights, dim) - math.log(log_weights.shape[dim])", "return torch.logsumexp(log_weights, dim)", ON_PROGRAMS, ON_IMPORTANCE),
    of("K off by one", IMPORTANCE, "- math.log(log_weights.shape[dim])", "- math.log(log_weights.shape[dim] + 1)", ON_PROGRAMS, ON_IMPORTANCE),
    of("mean of logs for log of mean", IMPORTANCE, "return torch.logsumexp(log_weights, dim) - math.log(log_weights.shape[dim])", "return log_weights.mean(dim)", ON_PROGRAMS, ON_IMPORTANCE),
    of("log K missing, streamed", IMPORTANCE, "return Reduced(log_sum - math.log(self.count),", "return Reduced(log_sum,", ON_IMPORTANCE),
    of("K off by one, streamed", IMPORTANCE, "log_sum - math.log(self.count)", "log_sum - math.log(self.count + 1)", ON_IMPORTANCE),
    of("mean of logs for log of mean, streamed", IMPORTANCE, "return Reduced(log_sum - math.log(self.count),", "return Reduced(self.mean,", ON_IMPORTANCE),
    of("truncation at mean(w) K", IMPORTANCE, "log_mean_exp(log_weights) + 0.5 * math.log(len(log_weights))", "log_mean_exp(log_weights) + math.log(len(log_weights))", ON_IMPORTANCE),
    of("truncation by the announced K", IMPORTANCE, "log_sum - 0.5 * math.log(self.count)", "log_sum - 0.5 * math.log(self.expected)", ON_IMPORTANCE),
    of("smoothing without a cap", PARETO, "torch.minimum(replaced, top[some])", "replaced", ON_IMPORTANCE),
    of("quantiles at i / M", PARETO, "torch.arange(0.5, count", "torch.arange(0.0, count", ON_IMPORTANCE),
    of("smoothing reversed", PARETO, "(_order_statistics(count, shape, scale) + cutoff[some]).log().flip(0)", "(_order_statistics(count, shape, scale) + cutoff[some]).log()", ON_IMPORTANCE),
    of("k-hat without its weak prior", PARETO, "return (m * shape + 10 * 0.5) / (m + 10)", "return shape", ON_IMPORTANCE),
    of("k-hat of a longer tail", PARETO, "3 * math.sqrt(num_particles)", "6 * math.sqrt(num_particles)", ON_IMPORTANCE),
    of("standard error x 0.87", IMPORTANCE, "(k / ess - 1).clamp(min=0)", "(0.757 * (k / ess - 1)).clamp(min=0)", ON_IMPORTANCE),
    # annealing
    of("last increment missing", ANNEALING, "log_weights = log_weights + _step(increments[t - 1 if backward else t], ends.energy)", "log_weights = log_weights + (_step(increments[t - 1 if backward else t], ends.energy) if t < len(temperatures) - 2 else 0)", ON_ANNEALING),
    of("increments of the reverse run shifted", ANNEALING, "increments[t - 1 if backward else t]", "increments[t]", ON_ANNEALING),
    of("transitions of the reverse run in forward order", ANNEALING, "for t in reversed(order) if backward else order:", "for t in order:", ON_ANNEALING),
    of("step-size table off by one", ANNEALING, "step_size=step_sizes[t - 1], num_leapfrog=num_leapfrog, noise=source)\n        v, ends = moved.state.position, Ends(*moved.state.aux)\n        log_weights", "step_size=step_sizes[-t], num_leapfrog=num_leapfrog, noise=source)\n        v, ends = moved.state.position, Ends(*moved.state.aux)\n        log_weights", ON_ANNEALING),
    of("step size adapted while annealing", ANNEALING, "        acceptance, num_nonfinite = acceptance + moved.acceptance, num_nonfinite + moved.num_nonfinite\n", "        acceptance, num_nonfinite = acceptance + moved.acceptance, num_nonfinite + moved.num_nonfinite\n        step_sizes = step_sizes * (2 * (moved.acceptance.mean(0) - 0.78)).exp()\n", ON_ANNEALING),
    of("every proposal accepted", HMC, "accepted = threshold < acceptance", "accepted = threshold < 2", ON_HMC),
    of("a full last kick", HMC, "(step if leap < num_leapfrog - 1 else step / 2)", "step", ON_HMC),
    of("a one-sided jitter", HMC, "1 + JITTER * (2 * noise.uniform(chains) - 1)", "1 + JITTER * noise.uniform(chains)", ON_HMC),
    of("energies that are not finite not counted", HMC, "return Moved(moved, acceptance, (~sound).sum(0))", "return Moved(moved, acceptance, 0 * (~sound).sum(0))", ON_HMC),
    of("momentum of the energy forgotten", HMC, "return 0.5 * momentum.double().square().sum(-1) - value.double()", "return -value.double()", ON_HMC),
    of("Jacobian missing in the prior's path", PATHS, "log_det.double())\n    return log_prior", "0 * log_det.double())\n    return log_prior", ON_ANNEALING),
    of("Jacobian missing in the whitening", PATHS, "return Ends(log_base, -v, log_joint.detach().double() + log_det, joint_gradient)", "return Ends(log_base, -v, log_joint.detach().double(), joint_gradient)", ON_ANNEALING),
    of("base density without its normaliser", PATHS, " - 0.5 * v.shape[-1] * math.log(2 * math.pi)", "", ON_ANNEALING),
    of("sign of the upper bound", BIDIRECTIONAL, "upper=-log_mean_exp(-backward.log_weights)", "upper=log_mean_exp(backward.log_weights)", ON_ANNEALING),
    of("reverse chains begin at the latents of another datum", BIDIRECTIONAL, "    return path, u, {", "    u = u.roll(1, 1)\n    return path, u, {", ON_ANNEALING),
    of("annealed guide: Jacobian missing", "guides/annealed.py", "last.ends.log_joint - log_jacobian - last.log_weights", "last.ends.log_joint - last.log_weights", "test_annealed.py"),
    # refinement and families
    of("natural step: residual without e", NATURAL, 'd = torch.einsum("nji,knj->kni", scale_tril, gradient) + e', 'd = torch.einsum("nji,knj->kni", scale_tril, gradient)', ON_REFINE),
    of("natural step: L not transposed", NATURAL, '"nji,knj->kni", scale_tril, gradient', '"nij,knj->kni", scale_tril, gradient', ON_REFINE),
    of("natural step: diagonal not halved", NATURAL, "shape = shape - torch.diag_embed(shape.diagonal(dim1=-2, dim2=-1)) / 2", "shape = shape", ON_REFINE, ON_FAULTS),
    of("natural step of a diagonal: not halved", NATURAL, "(d * e).mean(0) / 2", "(d * e).mean(0)", ON_FAULTS),
    of("log q of a Normal without its determinant", NATURAL, " - diagonal.double().log().sum(-1)\n", "\n", ON_REFINE),
    of("gain by other draws", REFINEMENT, "difference = last - fitting.value(index)", "difference = last.roll(1, 1) - fitting.value(index)", ON_FAULTS, ON_REFINE),
    of("a spoiled second half is kept", REFINEMENT, "        fitting.put_back(index[worse], half, worse)\n", "", ON_FAULTS),
    of("widened by adding", FAMILIES, "return torch.cat([loc, log_diagonal + math.log(factor), below * factor], -1)", "return torch.cat([loc, log_diagonal + math.log(factor), below], -1)", ON_FAMILIES, ON_FAULTS),
    of("affine map without its determinant", "ppvae/whitened.py", "return self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1).expand(x.shape[:-1])", "return 0 * self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1).expand(x.shape[:-1])", ON_FAMILIES),
    of("coupling without its determinant", "ppvae/whitened.py", "return self._scale_and_shift(x[..., : self.kept])[0].sum(-1)", "return 0 * self._scale_and_shift(x[..., : self.kept])[0].sum(-1)", ON_FAMILIES),
    # exact sums
    of("last block of states dropped", ENUMERATION, "return noise.blocks(self.num_states, at_once)", "return noise.blocks(self.num_states, at_once)[: max(1, -(-self.num_states // at_once) - 1)]", "test_enumeration.py"),
    of("particles repeated in the wrong order", ENUMERATION, "value.repeat(k, *[1] * (value.dim() - 1))", "value.repeat_interleave(k, 0)", "test_enumeration.py"),
    of("cubature: a hidden peak not looked for", QUADRATURE, "log_peak > log_f.amax(-1) + BETWEEN", "log_peak > log_f.amax(-1) + 1e9", ON_EXACT),
    of("cubature: volume of a cell wrong", QUADRATURE, "log_half = half.log().sum(-1)\n        log_integral", "log_half = half.log().mean(-1)\n        log_integral", ON_EXACT),
    of("cubature: bound / 1000", QUADRATURE, "-torch.log1p(-relative.clamp(max=1.0))", "-torch.log1p(-relative.clamp(max=1.0)) / 1000", ON_EXACT),
    of("cubature: tail left out of the bound", QUADRATURE, " + self._beyond(log_total).sum((1, 2))", "", ON_EXACT),
    of("cubature: kinks not looked for", QUADRATURE, "torch.maximum(_log_difference(log_integral, log_fine), log_integral + log_kink)", "_log_difference(log_integral, log_fine)", ON_EXACT),
    of("cubature: edges are no nodes", QUADRATURE, "nodes = torch.cat([inner.new_tensor([-1.0]), inner, inner.new_tensor([1.0])])", "nodes = torch.cat([inner.new_tensor([-0.95]), inner, inner.new_tensor([0.95])])", ON_EXACT),
    # gaps, comparisons, verdicts
    of("unpaired error of the amortization gap", GAPS, "amortization_se=difference_se", "amortization_se=(elbo_se**2 + optimal_se**2).sqrt()", ON_GAPS),
    of("unpaired draws of the gaps", GAPS, "zip(*(stream(p, x, num_particles=num_particles, seed=seed) for p in pairs), strict=True)", "zip(*(stream(p, x, num_particles=num_particles, seed=seed + i) for i, p in enumerate(pairs)), strict=True)", ON_GAPS),
    of("unpaired error of a comparison", "analysis/compare.py", "return mean_of(self.pointwise, self.pointwise_se)", "return mean_of(self.pointwise - self.pointwise.flip(0) / 2, self.pointwise_se)", "test_measurement.py"),
    of("pilot draws reused", TOLERANCE, "weighed_by_rows(pair, proposal.program, x, rows, count, answer_seed, seed, weights)", 'Weighed(*[v[rows] for v in vars(weighed(pair, x, count, noise.derived_seed(seed, "pilot"), weights)).values()])', ON_LIKELIHOOD),
    of("a run that chose its fineness is the answer", TOLERANCE, "    return answer, together & ", "    return trial, together & ", ON_LIKELIHOOD),
    of("a disagreement counts at the first look", VERDICT, "            suspect[rows] = exceeds(first, self.bound)[rows]\n", "", ON_LIKELIHOOD),
    of("the second look has the same draws", VERDICT, "            self.bound.put(rows, weighed_by_rows(self.pair, self.second.program, self.x, rows, k, seed, self.seed))\n", "", ON_LIKELIHOOD),
    of("sign of the excess", VERDICT, "suspect = self.bound.pointwise - first.pointwise > LEAST_EXCESS", "suspect = first.pointwise - self.bound.pointwise > LEAST_EXCESS", ON_LIKELIHOOD),
    of("unresolved is forgotten", VERDICT, "return ~verdict.unresolved & (sound | agree)", "return sound | agree", ON_LIKELIHOOD),
    of("no second proposal, trusted", VERDICT, "return torch.zeros_like(first.pointwise, dtype=torch.bool)", "return torch.ones_like(first.pointwise, dtype=torch.bool)", ON_LIKELIHOOD),
    of("agreement of two heavy tails", VERDICT, "agree = verdict.bound_sound & ", "agree = ", ON_LIKELIHOOD),
    of("a margin that noise widens without end", VERDICT, ".clamp(LEAST_EXCESS, LARGEST_MARGIN)", ".clamp(min=LEAST_EXCESS)", ON_LIKELIHOOD),
    of("mended without the old Normal", VERDICT, "both = pair_at(self.model, _mixture(parts), x_rows", "both = pair_at(self.model, _mixture(parts[-1:]), x_rows", ON_LIKELIHOOD),
    of("repaired from the best draw alone", PROPOSALS, "torch.log1p(-share.clamp(max=-1e-9).exp())", "0 * share", ON_LIKELIHOOD),
    of("cost of the second proposal not counted", "analysis/log_likelihood.py", "        evaluations = evaluations + cost\n", "", ON_LIKELIHOOD),
    of("a point of infinite density taken as start", PROPOSALS, "density.where(density.isfinite(), -torch.inf).argmax(0)", "density.argmax(0)", ON_LIKELIHOOD),
    of("global sites drawn twice", "analysis/weighed.py", "    pair.globals.update(globals_at)\n", "", ON_LIKELIHOOD),
    # calibration, corrected draws
    of("ranks reversed", CALIBRATION, "below += (found < truth - width).sum(0)", "below += (found > truth + width).sum(0)", ON_CALIBRATION),
    of("likelihood ranked by a constant", CALIBRATION, "log_q[..., None], likelihood[..., None]]", "log_q[..., None], 0 * likelihood[..., None]]", ON_CALIBRATION),
    of("no Bonferroni", CALIBRATION, "(self.p_value <= self.level / self.num_tests)", "(self.p_value <= self.level)", ON_CALIBRATION),
    of("no Bonferroni in the bands that are drawn", CALIBRATION, "bands(len(self.ranks), self.num_draws, self.level / self.num_tests)", "bands(len(self.ranks), self.num_draws, self.level)", ON_CALIBRATION),
    of("coverage from the wrong end", CALIBRATION, "coverage = (1 - pit[:, -2] <= nominal", "coverage = (pit[:, -2] <= nominal", ON_CALIBRATION),
    of("ties not broken", UNIFORMITY, "below + (chance * (equal + 1)).floor().to(below.dtype).minimum(equal)", "below", ON_CALIBRATION),
    of("resampling ignores the weights", CORRECTED, "cumulative = log_weights.exp().cumsum(0)", "cumulative = torch.ones_like(log_weights).cumsum(0)", "test_posterior.py"),
    of("chance not rescaled", CORRECTED, "chance[draw, datum_of] / share[datum_of])", "chance[draw, datum_of])", "test_posterior.py"),

    # rollbacks
    of("rollback: at the full rate", ROLLBACK, "training.svi.shortened = SLOWER ** len(training.position.rollbacks)", "training.svi.shortened = 1.0", ON_ROLLBACK),
    of("rollback: a rest whose first step was not sound", TRAINING, "            self._next_rest = resting(self)", "            self.rest = resting(self)", ON_ROLLBACK),
    of("rollback: trained on in place", ROLLBACK, 'copied = {part: copy.deepcopy(state[part]) for part in ("optimizer", "scheduler")}', 'copied = {}', ON_ROLLBACK),
    of("rollback: not in the checkpoint", RESUME, '"rest": training.rest,', '"rest": None,', ON_ROLLBACK),
    of("rollback: generators go on", ROLLBACK, "    generators.restore(state[\"generators\"], training.device)\n", "", ON_ROLLBACK),
    of("rollback: births stay", ROLLBACK, "    without_born_since(training, tensors)\n", "", ON_ROLLBACK),
    of("rollback: the best epoch stays", RESUME, '    training.best = state["best"]\n', "", ON_ROLLBACK),
    of("rollback: an update is taken whole", "ppvae/svi.py", "torch._foreach_lerp_(params, before, 1 - self.shortened)", "pass", ON_ROLLBACK),

    # the check before an update
    of("check: everything is proved finite", SVI, "found.bound.item() < LARGEST", "True", ON_BOUND),
    of("check: proved where a square overflows", BOUND, "LARGEST = 1e19", "LARGEST = math.inf", ON_BOUND),
    of("check: a factor in place of the other", BOUND, "tuple(norms[factor] for factor in factors)", "(norms[factors[0]], norms[factors[0]])", ON_BOUND),
    of("check: the last gradient alone", BOUND, "lambda a, b: graph.call_function(aten.add.Tensor, (a, b))", "lambda a, b: b", ON_BOUND),
    of("check: a sum no longer than a summand", BOUND, "math.sqrt(_size(summed) / _size(origin))", "1.0", ON_BOUND),
    of("check: divided and not looked at", SVI, "return not none.item()", "return True", "test_svi.py"),
    of("check: divided twice", SVI, "        elif divisor != 1.0 and gradients:", "        if divisor != 1.0 and gradients:", ON_BOUND),
    of("check: a divergence of both engines is a fault of one", "ppvae/engine.py", "if not (math.isfinite(norm) or _are_finite(found)):", "if False:", ON_BOUND),
    of("check: the history's mean over all steps", TRAINING, "math.ceil(self.steps_per_epoch / NORM_EVERY)", "self.steps_per_epoch", ON_BOUND),

    # want of memory
    of("memory: new data from a piece's own random numbers", PARTS, "    if piece.is_whole:\n", "    if True:\n", ON_PLACES),
    of("memory: columns of particles in the place of rows", PARTS, "torch.cat([part[name] for part in row], data_dim(name))", "torch.cat([part[name] for part in row][::-1], data_dim(name))", ON_PLACES),
    of("memory: a mean in closed form where some have none", PAIR, "torch.isfinite(means[name]).all()", "torch.isfinite(means[name]).any()", ON_PLACES),
    of("memory: a local posterior's first rows for every piece", PAIR, "rows if piece.is_whole else _part(rows, piece.rows)", "rows", "test_memory_places.py", "test_pieces.py"),
    of("memory: new data of all in every piece", PAIR, "some = values if piece.is_whole else self._some(values, piece.rows, piece.particles)", "some = values", ON_PLACES),
    of("memory: a failed try leaves its global draws", SIMULATE, '                outside[name] = site["value"]\n', '                outside[name] = shared[name] = site["value"]\n', ON_PLACES),
    of("memory: no mean in a piece for no mean at all", SIMULATE, "if name in self.without and torch.isnan(mean).all()", "if name in self.without", ON_PLACES),
    of("memory: moments of a piece about its own mean", "analysis/imputation.py", "about = before[0] if before else mean.mean(0)", "about = mean.mean(0)", ON_PLACES),
    of("memory: moments of the last piece alone", "analysis/imputation.py", "[a + b for a, b in zip(before[1:], terms, strict=True)] if before else terms", "terms", ON_PLACES),
    of("memory: moments drawn by the caller's generator", "analysis/imputation.py", '                with self._running("drawn for moments", particles.start):\n', "                if True:\n", ON_PLACES),
    of("memory: codes by the seed of a piece", "analysis/latents/space.py", 'noise.derived_seed(self.seed, "codes", int(rows[0]))', 'noise.derived_seed(self.seed, "codes", int(some[0]))', ON_PLACES),
    of("memory: a flow's noise anew in each piece", "ppvae/posteriors.py", "pushed, row[rows], e[particles, rows]", "pushed, row[rows], torch.randn_like(e[particles, rows])", ON_PLACES),
    of("memory: a flow's outer transforms alone", "ppvae/posteriors.py", "    e = _through(distribution.base_dist, e)\n", "", ON_PLACES),
    of("memory: one distribution told as its halves", "ppvae/memory.py", "if not is_out_of_memory(error) or halving():", "if not is_out_of_memory(error):", ON_PLACES),
    of("memory: every error is want of memory", "ppvae/memory.py", "if not is_out_of_memory(error) or halving():", "if halving():", ON_PLACES, "test_programs.py"),
    of("memory: the look told as a fault of the program", "ppvae/programs.py", "        if is_out_of_memory(error):\n            raise\n", "", ON_PLACES),
)  # fmt: skip


def killed(mutant: Mutant, copy: Path) -> str:
    """The test that turned red; "" where all stayed green.

    Raises:
        LookupError: The code that is replaced does not stand in its file once.
    """
    path = copy / mutant.file
    sound = path.read_text()
    if sound.count(mutant.old) != 1:
        raise LookupError(f"{mutant.file} holds {sound.count(mutant.old)} times {mutant.old!r}")
    path.write_text(sound.replace(mutant.old, mutant.new))
    try:
        tests = [str(copy / "tests" / name) for name in mutant.tests]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not statistical and not soak", *tests]
        environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        answer = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    finally:
        path.write_text(sound)
    if answer.returncode == 0:
        return ""
    failed = [line.split()[1] for line in answer.stdout.splitlines() if line.startswith("FAILED")]
    if not failed:
        raise LookupError(f"pytest ended with {answer.returncode} and no failed test:\n{answer.stdout[-2000:]}{answer.stderr[-2000:]}")
    return failed[0].rsplit("/", 1)[-1]


def main(words: list[str]) -> int:
    """Try the mutants that hold one of the words; 1 where one lives."""
    chosen = [m for m in MUTANTS if not words or any(word in m.fault or word in m.file for word in words)]
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / name)
        for mutant in chosen:
            try:
                test = killed(mutant, copy)
            except LookupError as error:
                test, wrong = f"NOT TRIED: {error}", wrong + 1
            else:
                wrong += not test
            print(f"{mutant.fault}: {test or 'LIVES'}", flush=True)
    print(f"{len(chosen) - wrong} of {len(chosen)} mutants were killed")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
