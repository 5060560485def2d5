"""
Speed and memory of SWFP beside SB3's SAC, and of parallel beside sequential block training.

``python -m benchmarks.speed`` prints a table with the ratio beside its target; ``--out speed.json`` keeps every figure
with versions and machine. All algorithms take turns inside one process, so that a busy machine slows all of them, and
the figure is the median of many turns. Times are processor times (``time.process_time``); the wall-clock times of the
same turns are in the JSON file. Data are random: only their sizes matter, so MuJoCo isn't needed.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from tqdm import tqdm

from sb3_swfp import SWFP

#: Observation and action dimensions of MuJoCo's tasks
SIZES = {"Hopper": (11, 3), "Humanoid": (348, 17)}
ALGORITHMS = ("SWFP", "SAC", "SWFP sequential")
BATCH_SIZE = 256
#: Transitions in the replay buffer, the same for all: its memory is no algorithm's
BUFFER_SIZE = 5_000


@dataclass(frozen=True)
class Effort:
    """
    How long to measure.

    :param turns: Turns that each algorithm gets
    :param gradient_steps: Gradient steps in a turn
    :param predicts: Calls of ``predict`` in a turn
    :param memory_steps: Gradient steps, and calls of ``predict``, before peak memory is read
    """

    turns: int = 30
    gradient_steps: int = 10
    predicts: int = 20
    memory_steps: int = 200


QUICK = Effort(turns=2, gradient_steps=2, predicts=2, memory_steps=2)


@dataclass(frozen=True)
class Row:
    """
    One line of the table.

    :param what: What was measured, and its unit
    :param size: Task whose dimensions were used
    :param figures: Median of each contender
    :param wall_clock: The same in wall-clock time; empty for memory
    :param ratio: The first contender's figure by the second's
    :param target: Bound that the ratio is held to, as text; empty without one
    :param met: Whether it is; ``None`` without a target
    """

    what: str
    size: str
    figures: dict[str, float]
    wall_clock: dict[str, float]
    ratio: float
    target: str
    met: bool | None


class RandomEnv(gym.Env):
    """
    An environment of given dimensions, for the spaces alone.

    :param obs_dim: Dimension of the observations
    :param action_dim: Dimension of the actions
    """

    def __init__(self, obs_dim: int, action_dim: int):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (action_dim,), np.float32)


def make_model(name: str, size: str) -> OffPolicyAlgorithm:
    """
    :param name: One of ``ALGORITHMS``
    :param size: One of ``SIZES``
    :return: A model with default hyperparameters, whose replay buffer is full of random transitions
    """
    env = RandomEnv(*SIZES[size])
    common: dict[str, Any] = dict(buffer_size=BUFFER_SIZE, batch_size=BATCH_SIZE, device="cpu", seed=0)
    if name == "SAC":
        model: OffPolicyAlgorithm = SAC("MlpPolicy", env, **common)
    else:
        mode = "sequential" if name == "SWFP sequential" else "parallel"
        model = SWFP("MlpPolicy", env, block_training=mode, **common)
    model.set_logger(Logger(None, []))
    assert model.replay_buffer is not None
    random = np.random.default_rng(0)
    (obs_dim,), (action_dim,) = env.observation_space.shape, env.action_space.shape  # type: ignore[misc]
    for _ in range(BUFFER_SIZE):
        observation, next_observation = random.normal(size=(2, 1, obs_dim)).astype(np.float32)
        action = random.uniform(-1.0, 1.0, (1, action_dim)).astype(np.float32)
        reward, done = random.normal(size=1), random.random(1) < 0.001
        model.replay_buffer.add(observation, next_observation, action, reward, done, [{}])
    return model


def measure(
    contenders: Mapping[str, Callable[[], Any]], calls: int, turns: int, progress: tqdm
) -> list[dict[str, float]]:
    """
    Let the contenders take turns.

    :param contenders: What each does in one call
    :param calls: Calls in a turn
    :param turns: Turns for each, after one that doesn't count
    :param progress: Advanced by one at each turn
    :return: Median milliseconds per call, of processor time and of wall-clock time
    """
    clocks = (time.process_time, time.perf_counter)
    samples: dict[str, list[list[float]]] = {name: [] for name in contenders}
    for turn in range(turns + 1):
        for name, call in contenders.items():
            starts = [clock() for clock in clocks]
            for _ in range(calls):
                call()
            ends = [clock() for clock in clocks]
            if turn > 0:
                samples[name].append([(end - start) * 1e3 / calls for start, end in zip(starts, ends, strict=True)])
            progress.update()
    return [
        {name: float(np.median([sample[i] for sample in taken])) for name, taken in samples.items()}
        for i in range(len(clocks))
    ]


def compare(
    what: str,
    size: str,
    figures: dict[str, float],
    wall_clock: dict[str, float],
    bound: float | None,
    at_most: bool = True,
) -> Row:
    """
    :param what: What was measured, and its unit
    :param size: One of ``SIZES``
    :param figures: Figure of each contender; the ratio is the first's by the second's
    :param wall_clock: The same in wall-clock time, or empty
    :param bound: Target for the ratio, if there is one
    :param at_most: Whether the target is an upper bound, else it is a lower one
    """
    first, second, *_ = figures.values()
    ratio = first / second
    if bound is None:
        return Row(what, size, figures, wall_clock, ratio, "", None)
    target = f"{'<=' if at_most else '>='} {bound:g}"
    return Row(what, size, figures, wall_clock, ratio, target, ratio <= bound if at_most else ratio >= bound)


def benchmark_size(size: str, effort: Effort, progress: tqdm) -> list[Row]:
    """
    :param size: One of ``SIZES``
    :param effort: How long to measure
    :param progress: Advanced by one at each turn
    :return: Times of gradient steps, of block training alone and of ``predict``
    """
    models = {name: make_model(name, size) for name in ALGORITHMS}
    rows: list[Row] = []

    steps = {name: functools.partial(model.train, 1, BATCH_SIZE) for name, model in models.items()}
    cpu, wall = measure(steps, effort.gradient_steps, effort.turns, progress)
    rows.append(compare("gradient step, ms", size, cpu, wall, 1.0))
    order = ("SWFP sequential", "SWFP")
    cpu, wall = ({name: taken[name] for name in order} for taken in (cpu, wall))
    rows.append(compare("gradient step, sequential / parallel, ms", size, cpu, wall, None))

    blocks = {name: block_training(models[name]) for name in order}
    cpu, wall = measure(blocks, max(effort.gradient_steps // 2, 1), effort.turns, progress)
    rows.append(compare("block training alone, sequential / parallel, ms", size, cpu, wall, 2.0, at_most=False))

    observation = np.random.default_rng(1).normal(size=SIZES[size][0]).astype(np.float32)
    acting = {name: models[name] for name in ALGORITHMS[:2]}
    for ripe in (True, False):
        models["SWFP"].policy.critic_is_ripe.fill_(ripe)  # type: ignore[operator]
        for deterministic in (True, False):
            calls = {
                name: functools.partial(model.predict, observation, deterministic=deterministic)
                for name, model in acting.items()
            }
            cpu, wall = measure(calls, effort.predicts, effort.turns, progress)
            how = ("deterministic" if deterministic else "sampled") + (", critic picks" if ripe else ", critic unripe")
            rows.append(compare(f"predict ({how}), ms", size, cpu, wall, 1.5))
    return rows


def block_training(model: OffPolicyAlgorithm) -> Callable[[], Any]:
    """
    :param model: SWFP
    :return: One update of all its blocks on a fixed batch: no sampling, no critic update, no averages
    """
    assert isinstance(model, SWFP) and model.replay_buffer is not None
    batch = model.replay_buffer.sample(BATCH_SIZE)
    return lambda: model._train_actor(batch, model._current_ent_coef())


def peak_memory(name: str, size: str, steps: int) -> float:
    """
    Run an algorithm in a process of its own.

    :param name: One of ``ALGORITHMS``
    :param size: One of ``SIZES``
    :param steps: Gradient steps, and calls of ``predict``
    :return: Peak resident memory, in MiB
    :raises RuntimeError: if the process fails, with its messages
    """
    command = [sys.executable, "-m", "benchmarks.speed", "--memory-of", name, "--size", size, "--steps", str(steps)]
    root = Path(__file__).resolve().parent.parent
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"Measuring the memory of {name} failed:\n{result.stderr}")
    return float(result.stdout.split()[-1])


def print_own_peak_memory(name: str, size: str, steps: int) -> None:
    """
    What the process started by :func:`peak_memory` does.

    :param name: One of ``ALGORITHMS``
    :param size: One of ``SIZES``
    :param steps: Gradient steps, and calls of ``predict``
    """
    model = make_model(name, size)
    observation = np.zeros(SIZES[size][0], np.float32)
    for _ in range(steps):
        model.train(1, BATCH_SIZE)
        model.predict(observation)
    print(own_peak_memory())


def own_peak_memory() -> float:
    """
    :return: Peak resident memory of this process, in MiB
    """
    status = Path("/proc/self/status")
    if status.exists():
        # Linux's ru_maxrss would also count what the parent held when it started this process, which is often more
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def benchmark(effort: Effort, sizes: list[str]) -> list[Row]:
    """
    :param effort: How long to measure
    :param sizes: Some of ``SIZES``
    :return: All rows
    """
    rows: list[Row] = []
    # Three algorithms' gradient steps, two block trainings, four kinds of predict by two algorithms; and their memory
    total = len(sizes) * ((3 + 2 + 4 * 2) * (effort.turns + 1) + 2)
    with tqdm(total=total, desc="speed", unit="turn", disable=None) as progress:
        for size in sizes:
            rows += benchmark_size(size, effort, progress)
            peaks = {}
            for name in ALGORITHMS[:2]:
                peaks[name] = peak_memory(name, size, effort.memory_steps)
                progress.update()
            rows.append(compare("peak memory, MiB", size, peaks, {}, 1.1))
    return rows


def machine() -> dict[str, Any]:
    """:return: What the figures depend on: processor, load and versions"""
    packages = ("torch", "numpy", "stable-baselines3", "gymnasium")
    return {
        "machine": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "processors": os.cpu_count(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "threads": th.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def format_table(rows: list[Row]) -> str:
    """
    :param rows: The measurements
    :return: A table as text
    """
    lines = [f"{'task':9} {'what':48} {'ratio':>6} {'target':>7}      figures"]
    for row in rows:
        verdict = {True: "met", False: "NOT", None: ""}[row.met]
        figures = ", ".join(f"{name} {value:.4g}" for name, value in row.figures.items())
        lines.append(f"{row.size:9} {row.what:48} {row.ratio:6.2f} {row.target:>7} {verdict:4} {figures}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """
    :param arguments: Command line, ``sys.argv`` when omitted
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    parser.add_argument("--quick", action="store_true", help="a few calls only: the figures mean nothing")
    parser.add_argument("--size", choices=SIZES, help="only this task's dimensions")
    parser.add_argument("--memory-of", choices=ALGORITHMS, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    th.set_num_threads(1)
    if options.memory_of:
        print_own_peak_memory(options.memory_of, options.size, options.steps)
        return
    conditions = machine()
    rows = benchmark(QUICK if options.quick else Effort(), [options.size] if options.size else list(SIZES))
    print(format_table(rows))
    if options.out:
        report = {"conditions": conditions, "batch_size": BATCH_SIZE, "rows": [asdict(row) for row in rows]}
        options.out.write_text(json.dumps(report, indent=2) + "\n")
        print(f"Figures written to {options.out}")


if __name__ == "__main__":
    main()
