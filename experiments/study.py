"""One case of a study: the learning rate is chosen on one seed, then runs of other seeds are trained with it."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.digits import Digits
from experiments.settings import GRID_SEED, Length
from experiments.training import DECAY_AFTER, DECAY_FACTOR, Runs, States, batches

# Entries of a result from trained states.
Measure = Callable[[States], dict[str, Any]]


def schedule(rates: list[float], steps: int) -> np.ndarray:
    """Learning rates ``[steps, r]``: constant for 60 % of the steps, a fifth of that from there on."""
    factors = np.where(np.arange(steps) < DECAY_AFTER * steps, 1.0, DECAY_FACTOR)
    return np.asarray(factors[:, None] * np.asarray(rates), np.float32)


def plan(
    members: np.ndarray, batch_size: int, seeds: list[int], rates: list[float], steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Batches ``[steps, r, batch_size]`` of the digits ``members`` and learning rates ``[steps, r]`` of each run."""
    indices = np.stack([batches(members, batch_size, steps, seed) for seed in seeds], axis=1)
    return indices, schedule(rates, steps)


def train(
    runs: Runs, members: np.ndarray, batch_size: int, seeds: list[int], rates: list[float], steps: int
) -> tuple[States, np.ndarray]:
    """Trains one run for each seed and its learning rate on the digits ``members``: states and losses ``[steps, r]``."""
    indices, scheduled = plan(members, batch_size, seeds, rates, steps)
    return runs.advance(runs.initial(seeds), indices, scheduled)


def choose_rate(runs: Runs, digits: Digits, batch_size: int, length: Length) -> tuple[float, dict[str, Any]]:
    """The learning rate of the highest validation accuracy, the lower loss among equals; all runs have ``GRID_SEED``.

    The runs train on the training digits outside ``digits.validation``.
    """
    rates = list(length.rates)
    seeds = [GRID_SEED] * len(rates)
    members = digits.train_without_validation
    states, losses = train(runs, members, batch_size, seeds, rates, length.steps)
    outcome = runs.evaluate(states, losses, digits.validation)
    accuracy, loss = outcome.accuracy(digits.validation), outcome.loss(digits.validation)
    order = sorted(range(len(rates)), key=lambda i: (-accuracy[i], loss[i] if math.isfinite(loss[i]) else math.inf))
    grid = {"rates": rates, "accuracy": accuracy.round(4).tolist(), "diverged": outcome.diverged.tolist()}
    return rates[order[0]], grid


def run_case(
    runs: Runs,
    digits: Digits,
    batch_size: int,
    length: Length,
    *,
    rate: float | None = None,
    train_members: np.ndarray | None = None,
    measure: Measure | None = None,
) -> dict[str, Any]:
    """Chooses the learning rate unless ``rate`` is given, trains the reported seeds, and returns one entry of a result.

    Args:
        runs: the network.
        digits: the data.
        batch_size: examples per step.
        length: steps, seeds and the grid of learning rates.
        rate: a learning rate that was chosen before.
        train_members: the digits on which training accuracy is measured, in evaluation mode; None for all of
            ``digits.train``.
        measure: maps the trained states to more entries.
    """
    start, cpu_start = time.perf_counter(), time.process_time()
    grid = None
    if rate is None:
        rate, grid = choose_rate(runs, digits, batch_size, length)
    seeds = length.reported_seeds
    train_members = digits.train if train_members is None else train_members
    states, losses = train(runs, digits.train, batch_size, seeds, [rate] * len(seeds), length.steps)
    outcome = runs.evaluate(states, losses, np.concatenate([train_members, digits.test]))
    return {
        "batch_size": batch_size,
        "rate": rate,
        "grid": grid,
        "train_accuracy": outcome.accuracy(train_members).round(4).tolist(),
        "test_accuracy": outcome.accuracy(digits.test).round(4).tolist(),
        "diverged": outcome.diverged.tolist(),
        **({} if measure is None else measure(states)),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu_start, 1),
    }
