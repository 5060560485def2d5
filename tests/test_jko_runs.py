"""The study of step sizes: what it measures is right where the answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from benchmarks.cells import Cell
from benchmarks.jko_runs import reward_of, step_size_run, step_size_settings
from benchmarks.suites import SUITES
from benchmarks.suites.step_size import epochs_that_rose
from sb3_swfp.envs import Bandit


def run(n_blocks: int, step_size: float, steps: int) -> dict[str, Any]:
    return step_size_run(step_size_settings(n_blocks, step_size), 0, steps, lambda step, divergence: None)


def test_reward_is_the_bandits() -> None:
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (20, 2))
    found = reward_of(Bandit())(th.as_tensor(actions, dtype=th.float32))
    np.testing.assert_allclose(found.numpy(), Bandit().reward(actions), atol=1e-5)


@pytest.mark.parametrize(("n_blocks", "step_size"), [(1, 0.01), (10, 0.003)])
def test_short_steps_follow_the_gradient_flow(n_blocks: int, step_size: float) -> None:
    # Its energy falls by twice what the trust region charges
    assert run(n_blocks, step_size, 300)["gain"] == pytest.approx(2.0, rel=0.05)


def test_epochs_that_rose() -> None:
    assert epochs_that_rose({"divergence": [5.0, 3.0, 3.005, 4.0, 3.9, 3.95]}) == 2


def test_steps_too_long_are_no_jko_steps() -> None:
    details = run(5, 3.0, 500)
    assert details["gain"] < 1.0 and epochs_that_rose(details) > 1


def test_divergence_of_the_first_iterate() -> None:
    # A new cascade is the identity, so its density is the standard Gaussian's by the bound's slope
    divergences: list[float] = []
    details = step_size_run(step_size_settings(3, 0.1), 1, 100, lambda step, divergence: divergences.append(divergence))
    assert details["divergence"] == divergences and len(details["moved"]) == 2
    x = np.random.default_rng(0).standard_normal((200_000, 2))
    excess = np.maximum(np.abs(x) - 0.8, 0.0) / 0.2
    actions = np.clip(x, -0.8, 0.8) + np.sign(x) * 0.2 * np.tanh(excess)
    log_density = (-0.5 * x**2 - 0.5 * np.log(2.0 * np.pi) + 2.0 * np.log(np.cosh(excess))).sum(axis=1)
    truth = (log_density - Bandit().log_boltzmann(actions, 0.1)).mean()
    assert divergences[0] == pytest.approx(truth, rel=0.05)


def test_a_cell_runs(tmp_path: Path) -> None:
    suite, cell = SUITES["step-size"], Cell("step-size", "3-blocks", "eta-0.1", 0)
    details = suite.run(cell, suite.settings(cell), 100, tmp_path)
    assert [step for step, _ in suite.curve(tmp_path)] == [0, 50, 100]
    assert all(np.isfinite(read(details)) for read in suite.columns.values())


def test_fewer_steps_than_an_epoch() -> None:
    with pytest.raises(ValueError, match="a JKO epoch is 50 gradient steps, got 20"):
        run(1, 0.1, 20)
