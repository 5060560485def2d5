"""RL Zoo's push_to_hub and load_from_hub: what is added to the Hugging Face packages, and only where it is missing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rl_zoo3", reason='needs RL Zoo: pip install "sb3-swfp[zoo]"')
requests = pytest.importorskip("requests")

from huggingface_hub.errors import EntryNotFoundError  # noqa: E402

from sb3_swfp.zoo.hub import complete_hub  # noqa: E402


def test_metadata_under_the_name_that_the_zoo_imports() -> None:
    import huggingface_sb3
    import rl_zoo3.push_to_hub as zoo
    from huggingface_sb3 import push_to_hub as function  # the module's name in the package is the function's

    assert callable(function) and huggingface_sb3.load_from_hub.__wrapped__
    card, metadata = zoo.generate_model_card("swfp", "SWFP", "me", "Pendulum-v1", -150.0, 10.0, {"gamma": 0.9}, {})
    assert "# **SWFP** Agent playing **Pendulum-v1**" in card
    assert metadata["library_name"] == "stable-baselines3" and "Pendulum-v1" in metadata["tags"]
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == "-150.00 +/- 10.00"


def test_what_is_there_already_stays() -> None:
    def download() -> None: ...

    package = SimpleNamespace(load_from_hub=download)
    pushing = SimpleNamespace(generate_metadata="theirs")
    complete_hub(package, pushing)
    once = package.load_from_hub
    complete_hub(package, pushing)
    assert pushing.generate_metadata == "theirs" and package.load_from_hub is once and once.__wrapped__ is download


def test_missing_files_raise_what_both_sides_catch() -> None:
    def download(name: str) -> str:
        if name == "vec_normalize.pkl":
            raise EntryNotFoundError("404: vec_normalize.pkl")
        if name == "down":
            raise ConnectionError("no network")
        return name

    package: Any = SimpleNamespace(load_from_hub=download)
    complete_hub(package, SimpleNamespace())
    assert package.load_from_hub("model.zip") == "model.zip"
    for kind in (requests.exceptions.HTTPError, EntryNotFoundError):
        with pytest.raises(kind, match="404: vec_normalize.pkl"):
            package.load_from_hub("vec_normalize.pkl")
    with pytest.raises(ConnectionError, match="no network"):
        package.load_from_hub("down")
