"""Demonstrations: what is checked, what is refused and how the message reads, reading, writing and splitting."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_swfp.demonstrations import Demonstrations, Episode, load_demonstrations

OBSERVATION_SPACE = spaces.Box(-np.inf, np.inf, (3,))
ACTION_SPACE = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([4.0, 1.0], np.float32))
DICT_SPACE = spaces.Dict({"image": spaces.Box(0, 255, (8, 6, 3), np.uint8), "vector": spaces.Box(-1, 1, (2,))})


def make_episode(length: int = 5, seed: int = 0, success: bool | None = None, as_dict: bool = False) -> Episode:
    rng = np.random.default_rng(seed)
    observations: Any = rng.normal(size=(length + 1, 3))
    if as_dict:
        observations = {
            "image": rng.integers(0, 256, (length + 1, 8, 6, 3), dtype=np.uint8),
            "vector": rng.uniform(-1, 1, (length + 1, 2)).astype(np.float32),
        }
    ends = np.arange(length) == length - 1
    return Episode(
        observations=observations,
        actions=rng.uniform(ACTION_SPACE.low, ACTION_SPACE.high, (length, 2)).astype(np.float32),
        rewards=rng.normal(size=length),
        terminations=ends & bool(seed % 2),
        truncations=ends & (not seed % 2),
        success=success,
    )


def make_demonstrations(*lengths: int, as_dict: bool = False) -> Demonstrations:
    return Demonstrations([make_episode(length, seed, as_dict=as_dict) for seed, length in enumerate(lengths)])


def assert_same(a: Demonstrations, b: Demonstrations) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.success == other.success
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            mine, theirs = getattr(one, name), getattr(other, name)
            assert type(mine) is type(theirs)
            pairs = [(mine[key], theirs[key]) for key in mine] if isinstance(mine, dict) else [(mine, theirs)]
            for x, y in pairs:
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(x, y)


def test_sequence() -> None:
    demonstrations = make_demonstrations(3, 5, 2)
    assert len(demonstrations) == 3
    assert demonstrations.n_transitions == 10
    assert [len(episode) for episode in demonstrations] == [3, 5, 2]
    assert len(demonstrations[-1]) == 2
    assert [len(episode) for episode in demonstrations[1:]] == [5, 2]
    assert demonstrations.actions().shape == (10, 2)
    assert demonstrations.observations().shape == (10, 3)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="empty"):
        demonstrations[3:]


def test_observations_pair_with_next_observations() -> None:
    demonstrations = make_demonstrations(3, 4)
    before, after = demonstrations.observations(), demonstrations.next_observations()
    assert isinstance(before, np.ndarray) and isinstance(after, np.ndarray)
    np.testing.assert_array_equal(before[1:3], after[:2])
    np.testing.assert_array_equal(after[2], demonstrations[0].observations[3])  # type: ignore[index]
    np.testing.assert_array_equal(before[3], demonstrations[1].observations[0])  # type: ignore[index]


def test_returns() -> None:
    episode = replace(make_episode(3), rewards=np.array([1.0, 2.0, 4.0]))
    demonstrations = Demonstrations([episode, replace(episode, rewards=np.array([0, 0, 1]))])
    np.testing.assert_allclose(demonstrations.returns(), [7, 1])
    np.testing.assert_allclose(demonstrations.discounted_returns(0.5), [3, 4, 4, 0.25, 0.5, 1])
    np.testing.assert_allclose(demonstrations.discounted_returns(1.0)[[0, 3]], demonstrations.returns())


def test_success_rate() -> None:
    assert make_demonstrations(2, 2).success_rate() is None
    assert Demonstrations([make_episode(success=s) for s in (True, False, None)]).success_rate() == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": np.array([0, 1, np.nan, 0, 0])}, r"episode 1, step 2: rewards holds nan"),
        ({"actions": np.full((5, 2), np.inf)}, r"episode 1, step 0: actions holds inf"),
        ({"observations": np.vstack([np.zeros((5, 3)), [[0, 0, np.nan]]])}, r"episode 1, step 5: observations holds"),
        ({"observations": np.zeros((5, 3))}, r"episode 1: observations must have length 6 .*\(5, 3\)"),
        ({"rewards": np.zeros(4)}, r"episode 1: rewards must have length 5 .*\(4,\)"),
        ({"rewards": np.zeros((5, 1))}, r"rewards must have shape \(5,\), not \(5, 1\)"),
        ({"terminations": np.zeros(6, bool)}, r"terminations must have length 5"),
        ({"actions": np.zeros(5)}, r"actions must have shape"),
        ({"observations": np.full((6, 3), None)}, r"must hold numbers, not object"),
        ({"observations": {}}, r"dictionary of observations is empty"),
        ({"truncations": np.array([0, 1, 0, 0, 1], bool)}, r"episode 1 ends at step 1 but has 5 steps"),
        ({"observations": np.zeros((6, 4))}, r"episode 1 has shapes .*\(4,\).* episode 0 has .*\(3,\)"),
    ],
)
def test_bad_episode(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Demonstrations([make_episode(), replace(make_episode(), **change)])


def test_nan_in_dictionary_names_the_key() -> None:
    episode = make_episode(as_dict=True)
    assert isinstance(episode.observations, dict)
    episode.observations["vector"][3, 1] = np.nan
    with pytest.raises(ValueError, match="bag: episode 0, step 3: observations/vector holds nan"):
        Demonstrations([episode], source="bag")


@pytest.mark.parametrize("episodes", [[], [np.zeros(3)], 7, [{"actions": 1}]])
def test_not_episodes(episodes: Any) -> None:
    with pytest.raises(ValueError, match="no episodes|must be an"):
        Demonstrations(episodes)


@pytest.mark.parametrize("n", [0, -1, 4, 1.5, True])
def test_first_out_of_range(n: Any) -> None:
    demonstrations = make_demonstrations(2, 2, 2)
    for call in (demonstrations.first, lambda n: load_demonstrations(demonstrations, n)):
        with pytest.raises(ValueError, match="1 to 3"):
            call(n)
    assert len(demonstrations.first(3)) == 3


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=12), fraction=st.floats(0, 0.99), seed=st.integers(0, 99)
)
def test_split_is_a_partition(lengths: list[int], fraction: float, seed: int) -> None:
    demonstrations = make_demonstrations(*lengths)
    train, validation = demonstrations.split(fraction, seed)
    order = {id(episode): index for index, episode in enumerate(demonstrations)}
    parts = [[order[id(episode)] for episode in part] for part in (train, validation) if part is not None]
    assert sorted(sum(parts, [])) == list(range(len(lengths)))
    assert all(part == sorted(part) and part for part in parts)
    assert (validation is None) == (fraction == 0 or len(lengths) == 1)
    again = demonstrations.split(fraction, seed)[0]
    assert [order[id(episode)] for episode in again] == parts[0]


@pytest.mark.parametrize("fraction", [-0.1, 1, float("nan")])
def test_split_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        make_demonstrations(2, 2).split(fraction, 0)


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    success=st.sampled_from([None, True, False]),
    as_dict=st.booleans(),
    source=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
)
def test_npz_round_trip(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], success: bool | None, as_dict: bool, source: str
) -> None:
    episodes = [make_episode(length, seed, success, as_dict) for seed, length in enumerate(lengths)]
    saved = Demonstrations(episodes, source=source)
    path = tmp_path_factory.mktemp("npz") / "new folder" / "demonstrations.npz"
    saved.save(path)
    assert_same(saved, load_demonstrations(path))
    assert_same(saved.first(1), load_demonstrations(str(path), n_episodes=1))
    assert os.listdir(path.parent) == [path.name]


def test_interrupted_save_keeps_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "demonstrations.npz"
    former = make_demonstrations(3)
    former.save(path)

    def interrupted(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_demonstrations(4).save(path)
    assert_same(former, load_demonstrations(path))
    assert os.listdir(tmp_path) == [path.name]


def test_save_needs_npz(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.npz"):
        make_demonstrations(2).save(tmp_path / "demonstrations.pkl")


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "flipped", "pickle", "single array"])
def test_damaged_npz(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.npz"
    make_demonstrations(20).save(path)
    content = path.read_bytes()
    if damage == "pickle":
        np.savez(path, actions=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif damage == "single array":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    else:
        middle = len(content) // 3
        flipped = (
            content[:middle] + bytes(255 - byte for byte in content[middle : middle + 64]) + content[middle + 64 :]
        )
        path.write_bytes({"empty": b"", "truncated": content[:-50], "garbage": b"a" * 99, "flipped": flipped}[damage])
    with pytest.raises(ValueError, match=r"bad\.npz is not a readable \.npz file"):
        load_demonstrations(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": None}, r"lacks the arrays \['actions'\]"),
        ({"observations": None}, r"lacks the arrays \['observations'\]"),
        ({"episode_lengths": np.array([3, 3])}, r"must have length"),
        ({"episode_lengths": np.array([0, 5])}, r"whole numbers above 0"),
        ({"episode_lengths": np.array([2.5, 2.5])}, r"whole numbers above 0"),
        ({"success": np.array([1])}, r"success must have length 2 "),
        ({"rewards": np.full(5, np.nan)}, r"episode 0, step 0: rewards holds nan"),
    ],
)
def test_npz_of_another_content(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = {**make_demonstrations(2, 3)._to_arrays(), **change}
    path = tmp_path / "other.npz"
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(ValueError, match=message) as caught:
        load_demonstrations(path)
    assert "other.npz" in str(caught.value)


def test_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no demonstrations at .*missing\.npz"):
        load_demonstrations(tmp_path / "missing.npz")
    for source in ("data.csv", tmp_path / "data.csv", "word", ""):
        with pytest.raises(ValueError, match=r"\.npz \(the supported formats\)"):
            load_demonstrations(source)
    for other in (3, None, [make_episode()]):
        with pytest.raises(ValueError, match="cannot load demonstrations from a"):
            load_demonstrations(other)


def test_unknown_minari_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari", reason="Minari is not installed")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="minari download some/data-v0") as caught:
        load_demonstrations("some/data-v0")
    assert str(tmp_path) in str(caught.value)


def test_damaged_minari_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari", reason="Minari is not installed")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    (tmp_path / "some" / "data-v0" / "data").mkdir(parents=True)
    with pytest.raises(ValueError, match="cannot read the Minari dataset 'some/data-v0'"):
        load_demonstrations("some/data-v0")


def test_minari_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r'pip install "sb3-swfp\[minari\]"'):
        load_demonstrations("some/data-v0")


def test_minari_dataset_object() -> None:
    """By what it offers, so that filtered datasets work and Minari itself need not be installed."""
    items = [make_episode(3, seed) for seed in range(4)]

    def iterate(indices: list[int]) -> Any:
        infos = [{}, {"success": np.array([0, 1, 0, 0])}, {"is_success": np.array([0.0, np.nan])}, {}]
        return (SimpleNamespace(**vars(items[index]) | {"infos": infos[index]}) for index in indices)

    dataset = SimpleNamespace(
        spec=SimpleNamespace(dataset_id="a/b-v0"), episode_indices=np.array([1, 2, 3]), iterate_episodes=iterate
    )
    loaded = load_demonstrations(dataset)
    assert loaded.source == "a/b-v0"
    assert [episode.success for episode in loaded] == [True, False, None]
    np.testing.assert_array_equal(load_demonstrations(dataset, 1)[0].actions, items[1].actions)
    with pytest.raises(ValueError, match="a/b-v0 has 1 to 3"):
        load_demonstrations(dataset, 4)
    items[1] = replace(items[1], observations={"goal": {"nested": np.zeros(4)}})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="a/b-v0: episode 0 has nested"):
        load_demonstrations(dataset)


@pytest.mark.parametrize(
    ("dataset_id", "shapes", "transitions"),
    [
        ("adroit/door-expert-v0", ((39,), (28,)), 5000),
        ("adroit/pen-expert-v0", ((45,), (24,)), 5000),
        ("adroit/door-human-v0", ((39,), (28,)), 6729),
    ],
)
def test_recorded_demonstrations(
    shared_minari: Path, dataset_id: str, shapes: tuple[tuple[int, ...], ...], transitions: int
) -> None:
    demonstrations = load_demonstrations(dataset_id)
    assert len(demonstrations) == 25 and demonstrations.n_transitions == transitions
    assert len(load_demonstrations(dataset_id, n_episodes=10)) == 10
    observation_space = spaces.Box(-np.inf, np.inf, shapes[0], np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = demonstrations.for_spaces(observation_space, spaces.Box(-1, 1, shapes[1]))
    np.testing.assert_array_equal(fitted.actions(), demonstrations.actions())


def test_for_spaces_casts_and_leaves_the_original() -> None:
    demonstrations = make_demonstrations(4, 3)
    fitted = demonstrations.for_spaces(OBSERVATION_SPACE, ACTION_SPACE)
    assert fitted.observations().dtype == np.float32  # type: ignore[union-attr]
    assert fitted.actions().dtype == np.float32
    assert demonstrations.observations().dtype == np.float64  # type: ignore[union-attr]


def test_for_spaces_clips_with_one_warning() -> None:
    actions = np.array([[9.0, 0.5], [-9.0, 2.0], [0.0, 0.5], [4.0 + 1e-9, 1.0]])
    episode = replace(make_episode(4), actions=actions)
    with pytest.warns(UserWarning, match=r"clipped 6 of 16 action values") as caught:
        fitted = Demonstrations([episode, episode]).for_spaces(OBSERVATION_SPACE, ACTION_SPACE)
    assert len(caught) == 1
    np.testing.assert_array_equal(fitted[1].actions, np.array([[4, 0.5], [-2, 1], [0, 0.5], [4, 1]], np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.for_spaces(OBSERVATION_SPACE, ACTION_SPACE)


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (spaces.Box(-1, 1, (4,)), ACTION_SPACE, r"shape \(3,\), the environment's \(4,\)"),
        (OBSERVATION_SPACE, spaces.Box(-1, 1, (3,)), r"shape \(2,\), the environment's \(3,\)"),
        (OBSERVATION_SPACE, spaces.Discrete(2), r"continuous action space"),
        (OBSERVATION_SPACE, spaces.Box(-np.inf, np.inf, (2,)), r"finite action bounds"),
        (DICT_SPACE, ACTION_SPACE, r"\(3,\).* dictionary with keys \['image', 'vector'\]"),
        (spaces.Box(0, 255, (3,), np.uint8), ACTION_SPACE, r"float64, the environment's are uint8"),
    ],
)
def test_for_spaces_mismatch(observation_space: spaces.Space, action_space: spaces.Space, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_demonstrations(3).for_spaces(observation_space, action_space)


def test_for_spaces_dictionary_mismatch() -> None:
    demonstrations = make_demonstrations(3, as_dict=True)
    with pytest.raises(ValueError, match=r"keys \['image', 'vector'\], the environment's \['vector'\]"):
        demonstrations.for_spaces(spaces.Dict({"vector": DICT_SPACE["vector"]}), ACTION_SPACE)
    with pytest.raises(ValueError, match=r"keys \['image', 'vector'\], but the environment's are Box"):
        demonstrations.for_spaces(OBSERVATION_SPACE, ACTION_SPACE)
    other = spaces.Dict({"image": DICT_SPACE["image"], "vector": spaces.Box(-1, 1, (5,))})
    with pytest.raises(ValueError, match=r"observations/vector .*\(2,\), the environment's \(5,\)"):
        demonstrations.for_spaces(other, ACTION_SPACE)


def test_for_spaces_turns_images_channel_first() -> None:
    demonstrations = make_demonstrations(3, as_dict=True)
    channel_first = spaces.Dict({"image": spaces.Box(0, 255, (3, 8, 6), np.uint8), "vector": DICT_SPACE["vector"]})
    for space in (DICT_SPACE, channel_first):
        images = demonstrations.for_spaces(space, ACTION_SPACE).observations()["image"]
        assert images.dtype == np.uint8 and images.shape[1:] == space["image"].shape
    recorded = demonstrations.observations()["image"]
    np.testing.assert_array_equal(images, recorded.transpose(0, 3, 1, 2))


def test_import_is_light() -> None:
    """Reading data needs neither torch nor Stable-Baselines3, and Minari only when a Minari source is read."""
    code = (
        "import sys, sb3_swfp.demonstrations as d; d.Demonstrations, d.load_demonstrations\n"
        "print([m for m in ('torch', 'stable_baselines3', 'gymnasium', 'minari', 'h5py') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert result.stdout.strip() == "[]"
