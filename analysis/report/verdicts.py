"""The verdict box: numbers -> a level and a sentence that gives its reason. Nothing here looks at a run.

Differences of log densities mean the same under any measure, so thresholds are in nats, in errors, or in shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GOOD, CARE, BAD, UNKNOWN = "good", "care", "bad", "unknown"
WORDS = {GOOD: "Good", CARE: "Take care", BAD: "Do not believe", UNKNOWN: "Not measured"}
QUESTIONS = {
    "convergence": "Has training converged?",
    "overfitting": "Is it overfitted?",
    "collapse": "Has the posterior collapsed?",
    "log p(x)": "Is log p(x) to be trusted?",
    "calibration": "Is the guide calibrated?",
    "the measure": "Is it a probability of the data?",
    "which is better": "Which is better?",
}
NOT_TO_BELIEVE = {
    "convergence": "that training has converged",
    "overfitting": "what is measured on training rows",
    "collapse": "that the latents say anything about the data",
    "log p(x)": "the value of log p(x)",
    "calibration": "what the guide says of z",
    "the measure": "that these are log probabilities",
}
SURE = 2.0  # standard errors
FLAT, STEEP = 0.1, 1.0  # nats over the last fifth of the epochs
LEAST_EPOCHS, LEAST_WINDOW = 10, 5
LOST = 0.25  # of what training gained on its own rows
EMPTY = 0.1  # nats: latents that carry less carry nothing
TRUSTED, DOUBTED = 0.95, 0.8  # shares of the data
OFF = 0.05  # of what a region of the guide should hold
FITS = 0.1  # by which the share of draws that fit x less well than the truth may leave a half


@dataclass(frozen=True)
class Finding:
    """One line of the verdict box.

    Attributes:
        topic: What it is about, a name of ``QUESTIONS``.
        level: "good", "care", "bad" or "unknown".
        answer: A few words.
        reason: Why, with the number.
        command: What measures it, where it was not, or mends it.
    """

    topic: str
    level: str
    answer: str
    reason: str
    command: str = ""

    def __str__(self) -> str:
        return f"{self.question} {self.answer}. {self.reason}" + (f" {self.advice}: {self.command}" if self.command else "")

    @property
    def question(self) -> str:
        """What was asked."""
        return QUESTIONS[self.topic]

    @property
    def advice(self) -> str:
        """What the command does."""
        return "To measure it" if self.level == UNKNOWN else "What helps"

    @property
    def word(self) -> str:
        """The level in words: colour is never alone."""
        return "Sure" if (self.topic, self.level) == ("which is better", GOOD) else WORDS[self.level]

    @property
    def short(self) -> str:
        """A few words for the summary: what not to believe, what is not measured, or the topic with its answer."""
        if self.level in (BAD, UNKNOWN):
            return NOT_TO_BELIEVE.get(self.topic, self.topic) if self.level == BAD else self.topic
        return f"{self.topic} ({self.answer[:1].lower()}{self.answer[1:]})"


def number(value: float, digits: int = 2) -> str:
    """A number with a minus sign, not a hyphen."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    text = f"{value:,.{digits}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.lstrip("-")


def small(error: float) -> str:
    """An error: two decimals, or two figures below 0.01; rounding is nothing."""
    return f"{error:.2g}" if 1e-9 < error < 0.01 else number(error)


def trend(values: Sequence[float]) -> tuple[float, float]:
    """What a straight line through the values gains from the first to the last, and its standard error by their scatter."""
    y = np.asarray(values, dtype=float)
    t = np.arange(len(y)) - (len(y) - 1) / 2
    slope = float(t @ y / (t @ t))
    left = y - y.mean() - slope * t
    error = math.sqrt(float(left @ left) / (len(y) - 2) / float(t @ t))
    return slope * (len(y) - 1), error * (len(y) - 1)


def times(n: int) -> str:
    """Once, twice, 3 times."""
    return {1: "once", 2: "twice"}.get(n, f"{n:,} times")


def converged(
    elbo: Sequence[float], *, held_out: bool, stopped: str, epochs: int, beta: float, rollbacks: int = 0, command: str = ""
) -> Finding:
    """Whether the ELBO still moves.

    Args:
        elbo: One value an epoch, nats per datum; of validation rows where there are some.
        held_out: Whether they are.
        stopped: How training ended, as ``Run.stopped`` says.
        epochs: How many were asked for.
        beta: Weight of the KL term at the end.
        rollbacks: How often the run diverged, and went back and on with half the learning rate.
        command: What goes on with an interrupted run.
    """
    topic, n = "convergence", len(elbo)
    if stopped == "diverged":
        return Finding(topic, BAD, "No, it diverged", f"Training met a loss that is not finite after {n:,} epochs.")
    if stopped in ("running", "interrupt", "unknown"):
        return Finding(topic, BAD, "No, it was interrupted", f"{n:,} of {epochs:,} epochs are done.", command)
    if n < LEAST_EPOCHS or not np.isfinite(np.asarray(elbo[-max(LEAST_WINDOW, n // 5) :], dtype=float)).all():
        return Finding(topic, CARE, "Too early to tell", f"{n:,} epochs are too few to see whether the ELBO still rises.")
    window = max(LEAST_WINDOW, n // 5)
    gain, error = trend(elbo[-window:])
    told = f"{number(gain)} ± {small(error)} nats over the last {window:,} of {n:,} epochs"
    which = "validation" if held_out else "training"
    clear = abs(gain) > SURE * error
    slower = f" It diverged {times(rollbacks)} on the way, and went on with {0.5**rollbacks:g} of the learning rate." if rollbacks else ""
    weighted = "" if beta == 1 else f" beta ended at {beta:g}, not at 1: what was trained is not the ELBO."
    level, answer = (CARE, "Of another objective") if weighted else (GOOD, "Yes")
    if clear and gain > FLAT:
        level, answer = (BAD, "No") if gain > STEEP else (CARE, "Nearly")
        reason = f"The {which} ELBO still rises, by {told}: more epochs would raise it."
    elif clear and gain < -FLAT and not held_out:
        level, answer = CARE, "It falls"
        reason = f"The training ELBO changed by {told}."
    elif clear and gain < -FLAT:
        reason = f"The validation ELBO is past its best, it changed by {told}."
    elif gain + SURE * error > STEEP:
        level, answer = CARE, "Too noisy to tell"
        reason = f"The {which} ELBO changed by {told}."
    else:
        reason = f"The {which} ELBO is flat: {told}."
    return Finding(topic, level, answer, reason + slower + weighted)


def overfitted(
    training: float | None, held_out: float | None, error: float, *, gained: float, which: str = "validation", command: str = ""
) -> Finding:
    """Whether training rows are fitted better than others.

    Args:
        training, held_out: ELBO of training and of other rows under the parameters that are used, nats per datum.
        error: Standard error of their difference.
        gained: What the training ELBO gained since the first epoch.
        which: The other rows.
        command: What measures them.
    """
    topic = "overfitting"
    if training is None or held_out is None or not all(map(math.isfinite, (training, held_out, error))):
        return Finding(topic, UNKNOWN, "Not measured", "No ELBO of rows that were not trained on.", command)
    gap = training - held_out
    told = f"ELBO {number(training)} on training and {number(held_out)} on {which} rows: {number(gap)} ± {small(error)} nats apart"
    if gap <= SURE * error and SURE * error > STEEP:
        return Finding(topic, CARE, "Too few rows to tell", f"{told}: less than {number(SURE * error)} nats could not be seen.", command)
    if gap <= SURE * error:
        return Finding(topic, GOOD, "No sign of it", f"{told}, within twice the error.")
    share = gap / gained if gained > 0 else math.inf
    part = f"{100 * share:.0f} % of what training gained is not passed on" if math.isfinite(share) else "training gained nothing"
    if share >= LOST:
        return Finding(topic, BAD, "Yes", f"{told}; {part}. Numbers of training rows say little about others.")
    return Finding(topic, CARE, "A little", f"{told}; {part}. Believe the numbers of rows that were not trained on.")


def collapsed(active: int | None, units: int | None, rate: float | None) -> Finding:
    """Whether the latents are used.

    Args:
        active: Units whose posterior mean varies over the data, Var_x(E_q[z_u]) > 0.01 (Burda et al. 2016, sec. 5.1.2).
        units: Of how many.
        rate: E_q[log q(z | x) - log p(z)], nats per datum.
    """
    topic = "collapse"
    if active is None or not units or rate is None or not math.isfinite(rate):
        return Finding(
            topic, UNKNOWN, "Not measured", "The history of this run holds no active units: its pair can be trained, not measured."
        )
    told = f"{active:,} of {units:,} latent units are active, and carry {number(rate)} nats per datum"
    if active == 0 or rate < EMPTY:
        return Finding(topic, BAD, "Yes", f"{told}: the model ignores its latents.")
    if active < units / 2:
        return Finding(topic, CARE, "In part", f"{told}: {units - active:,} units carry nothing.")
    return Finding(topic, GOOD, "No", f"{told}.")


def weights(
    trusted: float | None,
    *,
    num_data: int = 0,
    above: float = math.nan,
    threshold: float = math.nan,
    second: str | None = None,
    excess: float = 0.0,
    command: str = "",
) -> Finding:
    """Whether log p(x) is to be believed.

    Args:
        trusted: Share of the data whose number is trusted; None where log p(x) was not measured.
        num_data: Of how many data.
        above: Share with a k-hat above its threshold; nan where there is no k-hat.
        threshold: That of k-hat.
        second: The proposal that the numbers were held against; None for none.
        excess: By how much the second proposal's bounds lie above those not trusted, mean over all data, nats.
        command: What measures it, or better.
    """
    topic = "log p(x)"
    if trusted is None:
        return Finding(topic, UNKNOWN, "Not measured", "log p(x) was not measured.", command)
    tails = "k-hat is not defined below 25 particles" if math.isnan(above) else f"k-hat is above {threshold:.2f} at {100 * above:.1f} %"
    if second is None:
        reason = f"Nothing was held against a second proposal, so nobody knows how far below log p(x) the number is; {tails}."
        return Finding(topic, BAD, "Unchecked", reason, command)
    share = f"{100 * trusted:.1f} % of {num_data:,} data are trusted: held against a second proposal ({second}); {tails}"
    low = f". Where they are not, log p(x) is too low, over all data by at least {small(excess)} nats" if excess > 0 else ""
    if trusted >= TRUSTED:
        return Finding(topic, GOOD, "Yes", f"{share}{low}.")
    answer, level = ("Mostly", CARE) if trusted >= DOUBTED else ("No", BAD)
    return Finding(topic, level, answer, f"{share}{low}.", command)


def calibrated(
    faults: Sequence[str],
    *,
    num_tests: int,
    num_data: int,
    level: float,
    nominal: float = math.nan,
    coverage: float = math.nan,
    error: float = math.nan,
    fits: float = 0.5,
    command: str = "",
) -> Finding:
    """Whether the guide's draws are as a posterior's would be, on data drawn from the model.

    Args:
        faults: What was found, the least probable first; empty where chance explains all of it.
        num_tests: Quantities that were looked at.
        num_data: Simulated data.
        level: The chance that a posterior is called uncalibrated.
        nominal, coverage, error: A level, the share of truths in the guide's regions of that level, and its standard error; nan where the
            guide cannot tell its density.
        fits: Mean share of the guide's draws that fit x less well than the z that made x; of a posterior a half.
        command: What helps.
    """
    topic = "calibration"
    regions = f"{100 * nominal:.0f} % regions of q(z | x) hold the truth {100 * coverage:.1f} ± {100 * error:.1f} % of the time"
    regions = "" if math.isnan(coverage) else f"; {regions}"
    over = f"{num_data:,} data drawn from the model"
    if not faults:
        reason = f"None of {num_tests} quantities is off by more than chance explains, on {over}{regions}."
        return Finding(topic, GOOD, "No fault found", reason)
    more = f" and {len(faults) - 1} more of {num_tests} quantities" if len(faults) > 1 else ""
    reason = f"{faults[0]}{more}, on {over} (family-wise level {level:g}){regions}."
    far = abs(coverage - nominal) - SURE * error > OFF or abs(fits - 0.5) > FITS
    if far:
        return Finding(topic, BAD, "No", reason, command)
    return Finding(topic, CARE, "Not quite", reason, command)


def probability(measure: str | None, command: str = "") -> Finding:
    """Whether the likelihood is a probability of the data: ``Provenance.measure``, or None where nothing was measured."""
    topic = "the measure"
    if measure is None:
        return Finding(topic, UNKNOWN, "Not measured", "No result tells the measure.", command)
    if measure.startswith("relaxed"):
        reason = "Data lie outside the likelihood's support (validate_args=False): the numbers are a loss, not log densities."
        return Finding(topic, BAD, "No, relaxed", reason)
    kind = "probabilities of discrete data (counting measure)" if measure == "counting" else f"densities ({measure} measure)"
    return Finding(topic, GOOD, "Yes", f"All data lie in the support of the likelihood: {kind}.")


def better(
    value: float | None,
    error: float,
    names: tuple[str, str],
    *,
    trusted: Sequence[float | None] = (),
    what: str = "log p(x)",
    command: str = "",
) -> Finding:
    """Which of two runs is better, and whether that is sure.

    Args:
        value: Mean paired difference, first less second, nats per datum; None where there is no pair of results on the same data.
        error: Its standard error, both parts.
        names: Of the two.
        trusted: Share of trusted data of each, where log p(x) is compared.
        what: Which quantity.
        command: What measures it.
    """
    topic = "which is better"
    if value is None:
        return Finding(topic, UNKNOWN, "Not measured", "There are no two results on the same rows.", command)
    first = names[0] if value >= 0 else names[1]
    told = f"{what} of {first} is higher by {number(abs(value), 3)} ± {small(error)} nats per datum, a paired difference"
    if abs(value) <= SURE * error or value == 0:
        return Finding(topic, CARE, "Undecided", f"{told}, within twice its error.")
    doubts = [name for name, share in zip(names, trusted, strict=False) if share is None or share < TRUSTED]
    if doubts:
        return Finding(topic, CARE, f"{first}, by bounds", f"{told}; but log p(x) of {' and '.join(doubts)} is not trusted.", command)
    sure = abs(value) > 3 * error
    times = f"{abs(value) / error:,.0f} times its error" if error > 0 else "without error"
    return Finding(topic, GOOD if sure else CARE, first if sure else f"Likely {first}", f"{told}, {times}.")
