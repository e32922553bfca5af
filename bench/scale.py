"""Trials per hour of a study, from 1 to 1,000 workers: measured costs, simulated crowd.

``python -m bench.scale --trial-seconds 600`` measures what one claim and one report cost as the journal grows
(the study's own code on this disk), then simulates workers that queue for the one lock.
"""

from __future__ import annotations

import argparse
import heapq
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from penjing.recipe import Recipe
from penjing.search.study import Outcome, Study, StudyConfig

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)


def measure(trials: int) -> list[tuple[int, float]]:
    """Seconds under the lock for one trial (claim and report) by the number of trials already there."""
    base = {"data": {"spec": "glyphs"}, "model": {"spec": "penjing:mlp"}, "prune": {"ratio": 0.5}}
    config = StudyConfig(recipe=Recipe.parse(base), trials=trials)
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        study = Study.create(Path(folder) / "study", config)
        for done in range(trials):
            start = time.perf_counter()
            claim = study.claim()
            assert claim is not None
            study.finish(claim, Outcome(done % 7 / 7, 1 + done % 5, 1 + done % 3))
            costs.append((done, time.perf_counter() - start))
    return costs


def simulate(
    workers: int, trial_seconds: float, cost: tuple[float, float], hours: float = 4.0, seed: int = 0
) -> float:
    """Trials per hour: each worker claims (under the lock), works, reports (under the lock).

    Args:
        workers: Processes.
        trial_seconds: Mean of a trial; trials vary by a quarter of it (standard deviation).
        cost: Seconds under the lock, as intercept and slope by trials already there.
        hours: Simulated time.
        seed: Draws the trials' lengths.
    """
    rng = np.random.default_rng(seed)
    end, free, done = hours * 3600, 0.0, 0
    waiting = [(0.0, index) for index in range(workers)]  # when each next wants the lock
    heapq.heapify(waiting)
    while waiting:
        now, index = heapq.heappop(waiting)
        if now > end:
            break
        free = max(free, now) + cost[0] + cost[1] * done  # claim and report of one trial, one after the other
        done += 1
        length = max(0.1 * trial_seconds, rng.normal(trial_seconds, trial_seconds / 4))
        heapq.heappush(waiting, (free + length, index))
    return done / hours


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trial-seconds", type=float, default=600.0)
    parser.add_argument("--trials", type=int, default=200, help="measured")
    options = parser.parse_args(argv)
    costs = measure(options.trials)
    x, y = np.array(costs).T
    slope, intercept = np.polyfit(x, y, 1)
    cost = (max(1e-4, float(intercept)), max(0.0, float(slope)))
    rows = [
        {"workers": n, "trials_per_hour": round(simulate(n, options.trial_seconds, cost), 1)} for n in WORKERS
    ]
    for row in rows:
        ideal = row["workers"] * 3600 / options.trial_seconds
        row["efficiency"] = round(row["trials_per_hour"] / ideal, 3)
    result = {
        "seconds_under_lock": cost[0],
        "more_for_each_trial": cost[1],
        "trial_seconds": options.trial_seconds,
        "rows": rows,
    }
    print(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    main()
