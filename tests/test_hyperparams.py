"""hyperparams/*.yml: every entry can be handed to its algorithm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="needs PyYAML")

from sb3_swfp.callbacks import PretrainCallback  # noqa: E402
from sb3_swfp.zoo.manager import hyperparameter_names  # noqa: E402
from sb3_swfp.zoo.registration import ALGORITHMS, algorithm_class  # noqa: E402

FOLDER = Path(__file__).parents[1] / "hyperparams"
FILES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yml"))}
ENTRIES = [(algorithm, env_id) for algorithm, entries in FILES.items() for env_id in entries]


def test_every_algorithm_has_a_file_and_a_default() -> None:
    assert FILES.keys() == ALGORITHMS.keys()
    assert all("default" in entries and "Pendulum-v1" in entries for entries in FILES.values())


@pytest.mark.parametrize(("algorithm", "env_id"), ENTRIES)
def test_entries_name_arguments_that_exist(algorithm: str, env_id: str) -> None:
    entry: dict[str, Any] = dict(FILES[algorithm][env_id])
    cls: Any = algorithm_class(algorithm)
    assert entry.pop("n_timesteps") > 0 and entry["policy"] in cls.policy_aliases
    for callback in entry.pop("callback", []):
        ((name, arguments),) = callback.items()
        assert name == "sb3_swfp.callbacks.PretrainCallback"
        PretrainCallback(**arguments).check(cls)
    for key in ("normalize", "n_envs", "noise_type", "noise_std"):  # for RL Zoo itself
        entry.pop(key, None)
    policy_kwargs = eval(entry.get("policy_kwargs", "{}"))  # RL Zoo evaluates this string, too
    assert set(policy_kwargs) <= hyperparameter_names(cls.policy_aliases[entry["policy"]])
    assert set(entry) <= hyperparameter_names(cls)
