"""Readers, one a format, all returning :class:`Demonstrations`. None of them ever unpickles anything."""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sb3_swfp.demonstrations.types import (
    OBSERVATION_PREFIX,
    Demonstrations,
    Episode,
    Observations,
    check_n_episodes,
    map_observations,
)

Reader = Callable[[Path, int | None], Demonstrations]

# "namespace/name-v0"; namespaces may be nested or absent
_MINARI_ID = re.compile(r"(?:[\w-][\w.-]*/)*[\w.-]+-v\d+")
# Keys under which environments report success in ``info``, in the order they are looked for
_SUCCESS_KEYS = ("success", "is_success")
# What NumPy, zipfile and zlib raise on files that are cut short, damaged, encrypted, or want to be unpickled
_DAMAGED = (OSError, EOFError, ValueError, KeyError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)


def load_demonstrations(source: Any, n_episodes: int | None = None) -> Demonstrations:
    """
    Load demonstrations from wherever they are.

    :param source: a Minari dataset id (``"adroit/door-expert-v0"``, from the local store that Minari's own
        ``MINARI_DATASETS_PATH`` names), a Minari dataset object, the path of a file in a supported format
        (``.npz`` as :meth:`Demonstrations.save` writes it), or :class:`Demonstrations`, which are returned as they are
    :param n_episodes: keep only the first so many episodes; all by default
    :return: the demonstrations, checked
    :raises FileNotFoundError: if there is no such file or local dataset
    :raises ImportError: with the pip command, if the source needs an optional package
    :raises ValueError: if the source or its content is not usable, or has fewer than ``n_episodes`` episodes
    """
    if isinstance(source, Demonstrations):
        return source if n_episodes is None else source.first(n_episodes)
    if hasattr(source, "iterate_episodes") and hasattr(source, "episode_indices"):
        return _read_minari(source, n_episodes)
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            f"cannot load demonstrations from a {type(source).__name__}; give a Minari id or dataset, a path, "
            "or Demonstrations (made from a list of Episode)"
        )
    text = os.fspath(source)
    path = Path(text).expanduser()
    reader = READERS.get(path.suffix.lower())
    if reader is not None:
        if not path.is_file():
            raise FileNotFoundError(f"no demonstrations at {path.absolute()}: there is no such file")
        return reader(path, n_episodes)
    if isinstance(source, str) and _MINARI_ID.fullmatch(source) and not path.exists():
        return _read_minari(_open_minari(source), n_episodes)
    raise ValueError(
        f"cannot tell what {text!r} is: neither a file ending in {', '.join(sorted(READERS))} (the supported formats) "
        'nor a Minari id such as "adroit/door-expert-v0"'
    )


def _read_npz(path: Path, n_episodes: int | None) -> Demonstrations:
    """
    :param path: file that :meth:`Demonstrations.save` wrote
    :param n_episodes: keep only the first so many
    :return: the demonstrations
    :raises ValueError: naming the file, if it is empty, cut short, damaged or of another content
    """
    try:
        with open(path, "rb") as handle:
            file = np.load(handle, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ValueError("it holds a single array")
            arrays = {name: file[name] for name in file.files}
    except _DAMAGED as error:
        raise ValueError(f"{path} is not a readable .npz file (empty, cut short or damaged?): {error}") from error
    required = {"episode_lengths", "actions", "rewards", "terminations", "truncations"}
    missing = sorted(required - set(arrays))
    keys = [name for name in arrays if name.startswith(OBSERVATION_PREFIX)]
    if not keys and "observations" not in arrays:
        missing.append("observations")
    if missing:
        raise ValueError(f"{path} lacks the arrays {missing}; it has {sorted(arrays)}")

    lengths = arrays["episode_lengths"]
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or lengths.size == 0 or (lengths < 1).any():
        raise ValueError(f"{path}: episode_lengths must be a non-empty list of whole numbers above 0")
    lengths = lengths.astype(np.int64)
    observations: Observations = arrays.get("observations", np.empty(0))
    if keys:
        observations = {name.removeprefix(OBSERVATION_PREFIX): arrays[name] for name in keys}
    success = arrays.get("success", np.full(len(lengths), -1))
    n_transitions, n_observations = int(lengths.sum()), int(lengths.sum()) + len(lengths)
    expected = {name: n_transitions for name in required - {"episode_lengths"}}
    expected.update({name: n_observations for name in keys or ["observations"]})
    for name, length in {**expected, "success": len(lengths)}.items():
        shape = arrays[name].shape if name in arrays else success.shape
        if shape[:1] != (length,):
            raise ValueError(f"{path}: {name} must have length {length} by episode_lengths, but its shape is {shape}")
    if n_episodes is not None:
        check_n_episodes(n_episodes, len(lengths), str(path))
        lengths = lengths[:n_episodes]

    ends = np.cumsum(lengths)
    episodes = []
    for index, (start, end) in enumerate(zip(ends - lengths, ends, strict=True)):
        # Each episode has one observation more than it has transitions
        rows = slice(start + index, end + index + 1)
        episodes.append(
            Episode(
                observations=map_observations(lambda array, rows=rows: array[rows], observations),  # type: ignore[misc]
                actions=arrays["actions"][start:end],
                rewards=arrays["rewards"][start:end],
                terminations=arrays["terminations"][start:end],
                truncations=arrays["truncations"][start:end],
                success=None if success[index] < 0 else bool(success[index]),
            )
        )
    return Demonstrations(episodes, source=str(path))


def _open_minari(dataset_id: str) -> Any:
    """
    :param dataset_id: such as ``"adroit/door-expert-v0"``
    :return: the Minari dataset, from the local store
    :raises FileNotFoundError: saying where it was looked for and how to download it
    :raises ImportError: if Minari or what it reads the data with is not installed
    :raises ValueError: if the dataset is there but cannot be read
    """
    try:
        import minari
        from minari.storage.datasets_root_dir import get_dataset_path
    except ImportError as error:
        raise _minari_missing(dataset_id) from error
    folder = Path(get_dataset_path(dataset_id))
    if not (folder / "data").exists():
        raise FileNotFoundError(
            f"no Minari dataset {dataset_id!r} at {folder}; download it with `minari download {dataset_id}`, "
            "or set MINARI_DATASETS_PATH to the folder that holds your datasets"
        )
    try:
        return minari.load_dataset(dataset_id)
    except ImportError as error:
        raise _minari_missing(dataset_id) from error
    except Exception as error:  # whatever the storage raises on damaged data
        raise ValueError(f"cannot read the Minari dataset {dataset_id!r} at {folder}: {error}") from error


def _minari_missing(what: str) -> ImportError:
    return ImportError(f'reading {what!r} needs Minari and h5py: pip install "sb3-swfp[minari]"')


def _read_minari(dataset: Any, n_episodes: int | None) -> Demonstrations:
    """
    :param dataset: a ``minari.MinariDataset``
    :param n_episodes: keep only the first so many
    :return: the demonstrations
    :raises ImportError: if what Minari reads the data with is not installed
    :raises ValueError: if the dataset is empty, damaged, or has nested observations
    """
    name = str(getattr(getattr(dataset, "spec", None), "dataset_id", "Minari dataset"))
    indices = np.asarray(dataset.episode_indices)
    if n_episodes is not None:
        check_n_episodes(n_episodes, len(indices), name)
        indices = indices[:n_episodes]
    try:
        recorded = list(dataset.iterate_episodes(indices.tolist()))
    except ImportError as error:
        raise _minari_missing(name) from error
    except Exception as error:  # whatever the storage raises on damaged data
        raise ValueError(f"cannot read the Minari dataset {name!r}: {error}") from error
    episodes = []
    for index, item in enumerate(recorded):
        parts = item.observations.values() if isinstance(item.observations, dict) else [item.observations]
        if not all(isinstance(part, np.ndarray) for part in [*parts, item.actions]):
            raise ValueError(
                f"{name}: episode {index} has nested or non-numeric observations or actions; "
                "only arrays and flat dictionaries of arrays are supported"
            )
        episodes.append(
            Episode(
                observations=item.observations,
                actions=item.actions,
                rewards=item.rewards,
                terminations=item.terminations,
                truncations=item.truncations,
                success=_success(item.infos),
            )
        )
    return Demonstrations(episodes, source=name)


def _success(infos: dict[str, Any] | None) -> bool | None:
    """
    :param infos: of one episode, arrays by key
    :return: whether any step reports success; ``None`` if the infos do not say
    """
    for key in _SUCCESS_KEYS:
        if infos and key in infos:
            return bool(np.any(np.nan_to_num(np.asarray(infos[key], dtype=np.float64)) > 0))
    return None


# Suffix -> reader: a new format is one function and one line here.
READERS: dict[str, Reader] = {".npz": _read_npz}
