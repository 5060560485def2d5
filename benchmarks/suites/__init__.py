"""The suites: what each runs, and how one of its cells is run. A new suite is one file here and one line below."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.suites import adroit, fetch, scratch, shifting, step_size, studies
from benchmarks.suites.base import Curve, Suite

__all__ = ["MAIN_COMPARISON", "SUITES", "Curve", "Suite"]

SUITES: Mapping[str, Suite] = {
    **scratch.SUITES,
    **adroit.SUITES,
    **fetch.SUITES,
    **studies.SUITES,
    **step_size.SUITES,
    **shifting.SUITES,
}

#: Suites with the same settings for all algorithms, put together task by task
MAIN_COMPARISON = ("adroit", "fetch")
