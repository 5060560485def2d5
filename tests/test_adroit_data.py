"""The Adroit data sets: what is read of DAPG's pickles, and that the same data comes out again."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from benchmarks import adroit_data
from benchmarks.__main__ import main
from benchmarks.adroit_data import DATASETS, make_datasets
from benchmarks.dapg import expert, read_pickle
from sb3_swfp import load_demonstrations

_HAND_DAPG = os.environ.get("SB3_SWFP_HAND_DAPG")


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def write_policy(path: Path, sizes: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch) -> th.nn.Sequential:
    """
    Write a policy as mjrl pickled its own.

    :return: The same network without the shifts and scales, which are 1, 2, 3 and 4
    """
    for name in ("mjrl", "mjrl.policies", "mjrl.policies.gaussian_mlp", "mjrl.utils", "mjrl.utils.fc_network"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    mlp = type("MLP", (), {"__module__": "mjrl.policies.gaussian_mlp"})
    network = type("FCNetwork", (), {"__module__": "mjrl.utils.fc_network"})
    sys.modules[mlp.__module__].MLP = mlp  # type: ignore[attr-defined]
    sys.modules[network.__module__].FCNetwork = network  # type: ignore[attr-defined]
    layers = [th.nn.Linear(size, next_size) for size, next_size in zip(sizes[:-1], sizes[1:], strict=True)]
    policy, model = mlp(), network()
    policy.model, policy.log_std_val = model, np.zeros(sizes[-1])
    policy.trainable_params = [parameter for layer in layers for parameter in layer.parameters()]
    policy.trainable_params.append(th.zeros(sizes[-1]))
    for value, name in enumerate(("in_shift", "in_scale", "out_shift", "out_scale"), start=1):
        setattr(model, name, th.full((sizes[0] if name.startswith("in") else sizes[-1],), float(value)))
    _write(path, policy)
    return th.nn.Sequential(layers[0], th.nn.Tanh(), layers[1], th.nn.Tanh(), layers[2]).double()


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # DAPG's files are of before NumPy 2
    path.write_bytes(pickle.dumps(content, protocol=3).replace(b"numpy._core", b"numpy.core"))


def test_expert_is_the_pickled_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = write_policy(tmp_path / "policy.pickle", (3, 5, 4, 2), monkeypatch)
    act = expert(read_pickle(tmp_path / "policy.pickle"))
    observation = np.array([0.3, -1.0, 2.5])
    with th.no_grad():
        reference = network(th.as_tensor((observation - 1.0) / (2.0 + 1e-8))) * 4.0 + 3.0
    np.testing.assert_allclose(act(observation), reference.numpy(), rtol=1e-12)


def test_pickles_cannot_run_code(tmp_path: Path) -> None:
    _write(tmp_path / "evil.pickle", [{"actions": _Evil()}])
    with pytest.raises(ValueError, match=r"evil.pickle: it asks for \w+.system, which is no array"):
        read_pickle(tmp_path / "evil.pickle")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pickle").write_text("not a pickle")
    with pytest.raises(ValueError, match="cannot read .*text.pickle"):
        read_pickle(tmp_path / "text.pickle")
    with pytest.raises(ValueError, match="not a policy of mjrl"):
        expert([1, 2])


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkout of hand_dapg, with two episodes of 5 steps to make, and an empty Minari store at ``root``."""
    pytest.importorskip("minari", reason="needs Minari")
    pytest.importorskip("gymnasium_robotics", reason="needs gymnasium-robotics")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    monkeypatch.setattr(adroit_data, "_EPISODES", 2)
    state = gym.make("AdroitHandDoorSparse-v1").unwrapped.get_env_state()  # type: ignore[attr-defined]
    human = {"init_state_dict": state, "actions": np.full((4, 28), 2.0), "rewards": np.zeros(4)}
    _write(tmp_path / "dapg" / DATASETS["adroit/door-human-v0"].file, [human, human, human])
    write_policy(tmp_path / "dapg" / DATASETS["adroit/door-expert-v0"].file, (39, 8, 8, 28), monkeypatch)
    write_policy(tmp_path / "dapg" / DATASETS["adroit/pen-expert-v0"].file, (45, 8, 8, 24), monkeypatch)
    for name, dataset in DATASETS.items():
        digest = hashlib.sha256((tmp_path / "dapg" / dataset.file).read_bytes()).hexdigest()
        monkeypatch.setitem(adroit_data.DATASETS, name, dataset._replace(steps=5, sha256=digest))
    return tmp_path


def test_made_data_are_read_and_not_made_twice(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["demonstrations", str(checkout)])
    assert capsys.readouterr().out.count("2 episodes, 0 reach success") == 3
    for name, steps in (("door-human", 4), ("door-expert", 5), ("pen-expert", 5)):
        demonstrations = load_demonstrations(f"adroit/{name}-v0")
        assert [len(episode.actions) for episode in demonstrations] == [steps, steps]
        assert all(episode.truncations[-1] and not episode.terminations.any() for episode in demonstrations)
        assert np.abs(demonstrations.actions()).max() <= 1.0
    main(["demonstrations", str(checkout)])
    assert capsys.readouterr().out.count("is there already") == 3
    assert sorted(path.name for path in (checkout / "root").iterdir()) == ["adroit"]


def test_other_checkouts_are_refused_before_anything_is_made(checkout: Path) -> None:
    with pytest.raises(SystemExit, match="is that a checkout of https"):
        main(["demonstrations", str(checkout / "elsewhere")])
    with (checkout / "dapg" / DATASETS["adroit/pen-expert-v0"].file).open("ab") as file:
        file.write(b"more")
    with pytest.raises(SystemExit, match=r"pen-v0.pickle is not the file that https.*SHA-256"):
        main(["demonstrations", str(checkout)])
    assert not (checkout / "root" / "adroit").exists()


def test_an_interrupted_run_leaves_nothing_half_made(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("minari.dataset._storages.hdf5_storage.HDF5Storage.update_episodes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(["demonstrations", str(checkout)])
    assert list((checkout / "root").iterdir()) == []
    main(["demonstrations", str(checkout)])
    assert len(load_demonstrations("adroit/pen-expert-v0")) == 2


def test_damaged_data_sets_are_named(checkout: Path) -> None:
    (checkout / "root" / "adroit" / "door-expert-v0" / "data").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"adroit/door-expert-v0.*delete it, and it is made anew"):
        main(["demonstrations", str(checkout)])


def test_what_stands_in_the_way_is_not_overwritten(checkout: Path) -> None:
    other = checkout / "root" / "adroit" / "door-human-v0" / "mine.txt"
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    with pytest.raises(SystemExit, match="door-human-v0"):
        main(["demonstrations", str(checkout)])
    assert other.read_text() == "mine" and [path.name for path in (checkout / "root").iterdir()] == ["adroit"]
    other.unlink()  # an empty folder is not in the way
    main(["demonstrations", str(checkout)])
    assert len(load_demonstrations("adroit/door-human-v0")) == 2


@pytest.mark.skipif(_HAND_DAPG is None, reason="needs a checkout of hand_dapg, named by SB3_SWFP_HAND_DAPG")
def test_the_same_data_come_out(shared_minari: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {name: load_demonstrations(name) for name in DATASETS}
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert _HAND_DAPG is not None
    assert len(list(make_datasets(Path(_HAND_DAPG)))) == 3
    for name, before in stored.items():
        after = load_demonstrations(name)
        assert len(after) == len(before)
        for mine, theirs in zip(after, before, strict=True):
            for field in ("observations", "actions", "rewards", "terminations", "truncations"):
                np.testing.assert_array_equal(getattr(mine, field), getattr(theirs, field))
