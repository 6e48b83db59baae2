"""Numbers that outside implementations gave on fixed inputs, and how ours are held against them.

`golden/dev/values.json` has one record per number, with its tolerance and where it comes from. A test maps records of one
measure to a score of ours, and asserts how many were mapped, so that a mapping cannot match none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]
Score = Callable[[np.ndarray, np.ndarray], float]

NORMALISE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda a: a,
    "l2_rows": lambda a: a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12),
    "centre_columns": lambda a: a - a.mean(axis=0),
    "centre_columns, unit Frobenius norm": lambda a: (a - a.mean(axis=0)) / np.linalg.norm(a - a.mean(axis=0)),
}


class Golden:
    """The records that can be tested, and their arrays."""

    def __init__(self, shared: Path) -> None:
        self.folder = shared / "golden/dev"
        everything = json.loads((self.folder / "values.json").read_text())
        self.records: list[dict] = [
            r
            for r in everything
            if r["testable"] in ("yes", "loose") and r["value"] is not None and not r.get("expected_to_differ")
        ]
        self.loaded: dict[str, dict[str, np.ndarray]] = {}

    def of(self, measure: str) -> list[dict]:
        return [r for r in self.records if r["measure"] == measure]

    def case(self, name: str) -> dict[str, np.ndarray]:
        """All arrays of an input."""
        if name not in self.loaded:
            with np.load(self.folder / f"inputs/{name}.npz") as f:
                self.loaded[name] = dict(f)
        return self.loaded[name]

    def arrays(self, record: dict) -> Arrays:
        """x and y of a record, normalised and in the order in which the source got them."""
        normalise = NORMALISE[record["parameters"].get("normalise", "none")]
        found = self.case(record["case"])
        x, y = normalise(found["x"]), normalise(found["y"])
        return (y, x) if record["parameters"].get("order") == "y,x" else (x, y)

    def check(self, measure: str, ours: Callable[[dict], Score | None], matched: int) -> None:
        """Every record of `measure` that `ours` maps to a score of ours agrees; there are `matched` of them."""
        failures, count = [], 0
        for record in self.of(measure):
            score = ours(record)
            if score is None:
                continue
            count += 1
            value = score(*self.arrays(record))
            if not off_by(value, float(record["value"]), record["tolerance"]) <= 1:
                failures.append((record["id"], record["case"], value, record["value"], record["source"]))
        assert not failures, failures
        assert count == matched, f"{count} records of {measure} were mapped, not {matched}"


def off_by(value: float, expected: float, tolerance: dict) -> float:
    """How far off, in units of what is allowed: above 1 is a failure."""
    return abs(value - expected) / max(tolerance["atol"], tolerance["rtol"] * abs(expected))
