"""
The data sets of suite ``adroit``, made from what the authors of DAPG published (github.com/aravindr93/hand_dapg,
Apache-2.0; Rajeswaran et al., RSS 2018, arXiv:1709.10087): human demonstrations and trained policies.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

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
    :raises ValueError: if a file is not the published one, or Minari's store has a data set that cannot be read
    """
    try:
        import gymnasium_robotics
        from minari.storage.datasets_root_dir import get_dataset_path
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
            buffers = list(_with_progress(episodes, name))
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
        place.parent.mkdir(exist_ok=True)
        for made in Path(folder, place.parent.name).iterdir():  # the data set, and what Minari notes of its namespace
            if not (place.parent / made.name).exists():
                made.rename(place.parent / made.name)


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


def read_pickle(path: Path) -> Any:
    """
    Unpickle arrays and what holds them; no function of the file's choice is called. (NumPy trusts the bytes that it
    makes arrays of, so the file should be a known one.)

    :param path: A file of hand_dapg
    :return: Its content; objects of mjrl and of old PyTorch modules come as bare holders of their attributes
    :raises ValueError: if it is no pickle or asks for anything else
    """
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file).load()
    except Exception as error:  # damaged pickles raise whatever their bytes lead to
        raise ValueError(f"cannot read {path}: {error}") from error


def expert(policy: Any) -> Callable[[np.ndarray], np.ndarray]:
    """
    The mean of a policy of mjrl: two layers of tanh between shifted and scaled observations and actions.

    :param policy: As ``read_pickle`` gives it
    :return: Observation ``[obs_dim]`` to action ``[action_dim]``, not clipped, in double precision
    :raises ValueError: if it is another kind of policy
    """
    try:
        first, first_bias, second, second_bias, last, last_bias = (
            parameter.detach().double().numpy() for parameter in policy.trainable_params[:6]
        )
        names = ("in_shift", "in_scale", "out_shift", "out_scale")
        in_shift, in_scale, out_shift, out_scale = (getattr(policy.model, name).double().numpy() for name in names)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"not a policy of mjrl with two hidden layers: {error}") from error

    def act(observation: np.ndarray) -> np.ndarray:
        hidden = np.tanh((observation - in_shift) / (in_scale + 1e-8) @ first.T + first_bias)
        hidden = np.tanh(hidden @ second.T + second_bias)
        return (hidden @ last.T + last_bias) * out_scale + out_shift

    return act


class _Holder:
    """In place of a class that is not needed: takes any arguments and keeps the attributes."""

    def __init__(self, *arguments: Any) -> None:
        pass


class _ArraysOnly(pickle.Unpickler):
    """Knows arrays and tensors; takes ``_Holder`` for modules of networks, and refuses all else."""

    _ALLOWED = {
        "collections": ("OrderedDict",),
        "numpy": ("ndarray", "dtype"),
        "numpy.core.multiarray": ("_reconstruct", "scalar"),
        "torch._utils": ("_rebuild_tensor_v2", "_rebuild_parameter"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if name in self._ALLOWED.get(module, ()):
            return super().find_class(module, name)
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _load_storage
        # The non-linearity is stored as getattr(torch._C._VariableFunctions, "tanh")
        if module.startswith(("mjrl.", "torch.nn.")) or (module, name) in (
            ("builtins", "getattr"),
            ("torch._C", "_VariableFunctions"),
        ):
            return _Holder
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")


def _load_storage(data: bytes) -> Any:
    import torch as th

    return th.load(io.BytesIO(data), weights_only=True)


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


def _with_progress(episodes: Iterator[Any], name: str) -> Iterator[Any]:
    from tqdm.auto import tqdm

    yield from tqdm(episodes, total=_EPISODES, desc=name, unit="episode")
