"""Timing things beside each other: the machine's other work then slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved_medians(runs: Mapping[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Times every function once per round, in turns, for ``rounds`` rounds, after a call that is not timed.

    So neither what the others left in the caches nor their waiting threads count. Each function must return only when its
    work is done.

    Returns:
        The medians in milliseconds; the time of each first call, which compiles.
    """
    first: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():
        began = time.perf_counter()
        run()
        first[name] = (time.perf_counter() - began) * 1e3
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            began = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}, first
