"""
The data sets of suite ``adroit``, made from what the authors of DAPG published (github.com/aravindr93/hand_dapg,
Apache-2.0; Rajeswaran et al., RSS 2018, arXiv:1709.10087): human demonstrations and trained policies.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from benchmarks.dapg import expert, read_pickle

_SOURCE = "https://github.com/aravindr93/hand_dapg"
_EPISODES = 25

#: Of the noise of each action dimension: correlation from step to step, so that it moves the hand instead of shaking it
_CORRELATION = 0.8
_NOISE_SEED = 7


class _Dataset(NamedTuple):
    """
    :param env: Environment id
    :param steps: Longest episode
    :param file: Path below the checkout's folder ``dapg``
    :param sha256: Of that file
    :param noise: Standard deviation of the expert's action noise; ``None`` for human demonstrations
    """

    env: str
    steps: int
    file: str
    sha256: str
    noise: float | None


DATASETS: dict[str, _Dataset] = {
    "adroit/door-human-v0": _Dataset(
        "AdroitHandDoorSparse-v1",
        300,
        "demonstrations/door-v0_demos.pickle",
        "d6ec9a090261f901e5c9bf10082799e30c8d34c3f28aef4026e492a1aefc96c3",
        None,
    ),
    "adroit/door-expert-v0": _Dataset(
        "AdroitHandDoorSparse-v1",
        200,
        "policies/door-v0.pickle",
        "288dd2131b905e40852d9eb032595bb9b3aa90b0502e9341e6b0e128b803478f",
        0.06,
    ),
    "adroit/pen-expert-v0": _Dataset(
        "AdroitHandPenSparse-v1",
        200,
        "policies/pen-v0.pickle",
        "061dba4907a76b83139ae5a8d0809faa9774dd028d12ce869036b620bd728740",
        0.3,
    ),
}


def how_to_make(dataset_id: str) -> str:
    """
    :param dataset_id: Minari id of a data set that is missing
    :return: How to get it, one line
    """
    return (
        f"no Minari data set {dataset_id!r}. Minari's server does not have it: make it by `git clone {_SOURCE} "
        "../hand_dapg` and `python -m benchmarks demonstrations ../hand_dapg`, or set MINARI_DATASETS_PATH to the "
        "folder that holds it"
    )


def make_datasets(checkout: Path) -> Iterator[str]:
    """
    Make those of ``DATASETS`` that Minari's store does not have, by replay and roll-outs in the simulator.

    The human demonstrations are replayed open loop; the experts act with autocorrelated Gaussian noise. Rewards are the
    sparse ones. With the versions of ``constraints.txt`` they come out equal to the data that the stored results were
    made with, to the last digit; another MuJoCo may part from it in the course of an episode.

    :param checkout: Folder of a checkout of hand_dapg
    :return: As each is done, a line that says what was done
    :raises FileNotFoundError: if a file of the checkout is missing, before anything is made
    :raises ImportError: if Minari or gymnasium-robotics is not installed
    :raises OSError: if a data set cannot be written, or something else stands in its place
    :raises ValueError: if a file is not the published one, or Minari's store has a data set that cannot be read
    """
    try:
        import gymnasium_robotics
        from minari.storage.datasets_root_dir import get_dataset_path
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(f'{error}; the Adroit data needs: pip install "sb3-swfp[all]"') from error
    gym.register_envs(gymnasium_robotics)
    missing = {name: Path(get_dataset_path(name)) for name in DATASETS if not _is_there(name)}
    sources = {name: _published(checkout, DATASETS[name]) for name in missing}
    for name in DATASETS:
        if name not in missing:
            yield f"{name}: is there already"
            continue
        dataset, place = DATASETS[name], missing[name]
        with contextlib.closing(gym.make(dataset.env, max_episode_steps=dataset.steps)) as env:
            if dataset.noise is None:
                episodes = _replay(env, sources[name])
            else:
                episodes = _roll_out(env, expert(sources[name]), dataset.noise, dataset.steps)
            buffers = list(tqdm(episodes, total=_EPISODES, desc=name, unit="episode"))
            outcome = f"{len(buffers)} episodes, {sum(max(buffer.rewards) > 0.0 for buffer in buffers)} reach success"
            acts = "human demonstrations replayed" if dataset.noise is None else "DAPG expert with correlated noise"
            _write(name, buffers, env, acts, f"{outcome}; sparse rewards", place)
        yield f"{name}: {outcome}, {place}"


def _is_there(name: str) -> bool:
    from sb3_swfp import load_demonstrations

    try:
        load_demonstrations(name, _EPISODES)
    except FileNotFoundError:
        return False
    except ValueError as error:
        raise ValueError(f"{error}; delete it, and it is made anew") from error
    return True


def _published(checkout: Path, dataset: _Dataset) -> Any:
    path = checkout / "dapg" / dataset.file
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: is that a checkout of {_SOURCE}?")
    if hashlib.sha256(path.read_bytes()).hexdigest() != dataset.sha256:
        raise ValueError(f"{path} is not the file that {_SOURCE} has: its SHA-256 differs")
    return read_pickle(path)


def _write(name: str, buffers: list[Any], env: gym.Env, acts: str, description: str, place: Path) -> None:
    """Write a data set beside Minari's store and move it there once it is whole."""
    import minari

    store = place.parents[1]
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix=".unfinished-") as folder, _minari_root(folder):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*author_email")  # the authors name none
            minari.create_dataset_from_buffers(
                name,
                buffers,
                env=env,
                eval_env=env,
                algorithm_name=acts,
                author="Rajeswaran et al.",
                code_permalink=_SOURCE,
                description=description,
            )
        made = Path(folder, name)
        if place.parent.exists():
            made.rename(place)
        else:
            made.parent.rename(place.parent)  # with what Minari notes of a new namespace


@contextlib.contextmanager
def _minari_root(folder: str) -> Iterator[None]:
    name = "MINARI_DATASETS_PATH"
    before = os.environ.get(name)
    os.environ[name] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _replay(env: gym.Env, demonstrations: list[dict[str, Any]]) -> Iterator[Any]:
    for seed, demonstration in enumerate(demonstrations[:_EPISODES]):
        # The first observation is from before the door is put where the person's was: so it is in the data that the
        # stored results were made with. Of 39 numbers the handle's three and its distance from the palm are concerned.
        first, _ = env.reset(seed=seed)
        env.unwrapped.set_env_state(demonstration["init_state_dict"])  # type: ignore[attr-defined]
        yield _episode(env, seed, first, len(demonstration["actions"]), _open_loop(demonstration["actions"]))


def _open_loop(actions: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    following = iter(actions)
    return lambda _: next(following)


def _roll_out(env: gym.Env, policy: Callable[[np.ndarray], np.ndarray], deviation: float, steps: int) -> Iterator[Any]:
    shape = env.action_space.shape
    assert shape is not None
    random = np.random.default_rng(_NOISE_SEED)
    innovation = deviation * np.sqrt(1.0 - _CORRELATION**2)
    for seed in range(_EPISODES):
        noise = np.zeros(shape)

        def act(observation: np.ndarray) -> np.ndarray:
            nonlocal noise
            noise = _CORRELATION * noise + innovation * random.standard_normal(shape)
            return policy(observation) + noise

        first, _ = env.reset(seed=seed)
        yield _episode(env, seed, first, steps, act)


def _episode(env: gym.Env, number: int, first: np.ndarray, steps: int, act: Callable[[np.ndarray], np.ndarray]) -> Any:
    from minari.data_collector import EpisodeBuffer

    observations, actions, rewards = [first], [], []
    for _ in range(steps):
        actions.append(np.clip(act(observations[-1]), -1.0, 1.0).astype(np.float32))
        observation, reward, *_ = env.step(actions[-1])
        observations.append(observation)
        rewards.append(float(reward))
    last = np.arange(steps) == steps - 1
    return EpisodeBuffer(
        id=number,
        seed=number,
        observations=np.array(observations),
        actions=np.array(actions),
        rewards=rewards,
        terminations=[False] * steps,
        truncations=last.tolist(),
    )
