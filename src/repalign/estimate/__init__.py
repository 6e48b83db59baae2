"""What a study needs before it runs: downloads, disk, memory and time, per model and in sum. No weight is loaded."""

from __future__ import annotations

from repalign.estimate._comparing import Comparison, comparing
from repalign.estimate._estimate import Estimate, estimate
from repalign.estimate._rates import Rates, measure_rates

__all__ = ["Comparison", "Estimate", "Rates", "comparing", "estimate", "measure_rates"]
