"""
The data sets of suite ``adroit``, made from what the authors of DAPG published (github.com/aravindr93/hand_dapg,
Apache-2.0; Rajeswaran et al., RSS 2018, arXiv:1709.10087): human demonstrations and trained policies.
"""

from __future__ import annotations

import io
import pickle
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
    :param file: Of the checkout, below ``dapg``
    :param noise: Standard deviation of the expert's action noise; ``None`` for human demonstrations
    """

    env: str
    steps: int
    file: str
    noise: float | None


DATASETS = {
    "adroit/door-human-v0": _Dataset("AdroitHandDoorSparse-v1", 300, "demonstrations/door-v0_demos.pickle", None),
    "adroit/door-expert-v0": _Dataset("AdroitHandDoorSparse-v1", 200, "policies/door-v0.pickle", 0.06),
    "adroit/pen-expert-v0": _Dataset("AdroitHandPenSparse-v1", 200, "policies/pen-v0.pickle", 0.3),
}


def how_to_make(dataset_id: str) -> str:
    """
    :param dataset_id: Minari id
    :return: What to do about its absence
    """
    return (
        f"no Minari data set {dataset_id!r}. Minari's server does not have it: make it by `git clone {_SOURCE}` and "
        "`python -m benchmarks demonstrations hand_dapg`, or set MINARI_DATASETS_PATH to the folder that holds it"
    )


def make_datasets(checkout: Path) -> list[str]:
    """
    Make those of ``DATASETS`` that Minari's store does not have, by replay and roll-outs in the simulator.

    The human demonstrations are replayed open loop; the experts act with autocorrelated Gaussian noise. Rewards are the
    sparse ones. With the versions of ``constraints.txt`` they come out equal to the data that the stored results were
    made with, to the last digit; another MuJoCo may part from it in the course of an episode.

    :param checkout: Of hand_dapg
    :return: What was done about each, a line
    :raises FileNotFoundError: if a file of the checkout is missing
    :raises ImportError: if Minari or gymnasium-robotics is
    :raises ValueError: if a file holds something else than expected
    """
    try:
        import gymnasium_robotics
        import minari
        from minari.storage.datasets_root_dir import get_dataset_path
    except ImportError as error:
        raise ImportError(f'{error}; the Adroit data needs: pip install "sb3-swfp[all]"') from error
    gym.register_envs(gymnasium_robotics)
    done = []
    for dataset_id, dataset in DATASETS.items():
        place = Path(get_dataset_path(dataset_id))
        if (place / "data").exists():
            done.append(f"{dataset_id}: is there already, {place}")
            continue
        env = gym.make(dataset.env, max_episode_steps=dataset.steps)
        source = read_pickle(checkout / "dapg" / dataset.file)
        episodes = _replay(env, source) if dataset.noise is None else _roll_out(env, expert(source), dataset.noise)
        buffers = list(_with_progress(episodes, dataset_id))
        solved = sum(max(buffer.rewards) > 0.0 for buffer in buffers)
        outcome = f"{len(buffers)} episodes, {solved} of which reach success"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*author_email")  # the authors name none
            minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                env=env,
                eval_env=env,
                algorithm_name="human demonstrations replayed" if dataset.noise is None else "DAPG expert with noise",
                author="hand_dapg",
                code_permalink=_SOURCE,
                description=f"{outcome}; sparse rewards",
            )
        done.append(f"{dataset_id}: {outcome}, {place}")
    return done


def read_pickle(path: Path) -> Any:
    """
    Unpickle arrays and what holds them, and nothing that could run code.

    :param path: A file of hand_dapg
    :return: Its content; objects of mjrl and of old PyTorch modules come as bare holders of their attributes
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is no pickle or asks for anything else
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: is that a checkout of {_SOURCE}?")
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


def _roll_out(env: gym.Env, policy: Callable[[np.ndarray], np.ndarray], deviation: float) -> Iterator[Any]:
    assert isinstance(env.action_space, gym.spaces.Box) and env.spec is not None
    steps, shape = env.spec.max_episode_steps, env.action_space.shape
    assert steps is not None
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
        observations=np.array(observations),
        actions=np.array(actions),
        rewards=rewards,
        terminations=[False] * steps,
        truncations=last.tolist(),
    )


def _with_progress(episodes: Iterator[Any], name: str) -> Iterator[Any]:
    from tqdm.auto import tqdm

    yield from tqdm(episodes, total=_EPISODES, desc=name, unit="episode")
