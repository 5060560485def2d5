"""A cell of a benchmark: one task, one algorithm, one seed; and where its result is kept."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.digest import code_digest
from sb3_swfp.files import atomic_path

#: Which codes were found to do the same as a later one; under version control, as the results are
LEDGER = Path(__file__).resolve().parent / "results" / "same-code.json"
#: What a result depends on beside the algorithm's own code
_PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "stable-baselines3")


@dataclass(frozen=True)
class Cell:
    """
    One task, one algorithm, one seed.

    :param suite: Name of the suite
    :param task: Name of the task in it
    :param algo: Name of the algorithm
    :param seed: Seed of everything
    """

    suite: str
    task: str
    algo: str
    seed: int

    def folder(self, root: Path) -> Path:
        """
        :param root: Folder of all results
        :return: Folder of this cell's
        """
        return root / self.suite / self.task / f"{self.algo}-{self.seed}"


@dataclass(frozen=True)
class Result:
    """
    What a cell leaves behind, in ``result.json``.

    :param cell: The cell
    :param versions: What it ran with (:func:`versions`); as it is loaded, its code is the latest that does the same
    :param config: Settings of the run, whatever the suite calls them
    :param curve: Environment steps and score of each evaluation
    :param seconds: Wall-clock time
    :param peak_memory_mb: Largest resident memory of its process
    :param cpu_seconds: Processor time of its process; ``None`` in results from before it was kept
    :param details: Whatever else the suite keeps
    :param arithmetic: :func:`~benchmarks.arithmetic.arithmetic_digest` of its process, so the CPU's; ``None`` in
        results from before it was kept
    """

    cell: Cell
    versions: dict[str, str]
    config: dict[str, Any]
    curve: list[tuple[int, float]]
    seconds: float
    peak_memory_mb: float
    cpu_seconds: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    arithmetic: str | None = None

    def save(self, folder: Path) -> None:
        """
        :param folder: Folder of the cell; the file appears in it as a whole or not at all
        :raises FileNotFoundError: if somebody has removed the folder
        """
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is gone, so its result is not kept")
        with atomic_path(folder / "result.json") as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> Result | None:
        """
        :param folder: Folder of the cell
        :return: Its result, ``None`` while there is none
        :raises ValueError: if the file is damaged
        """
        path = folder / "result.json"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            curve = [(int(step), float(score)) for step, score in stored.pop("curve")]
            if not isinstance(stored.get("arithmetic"), str | None):
                raise TypeError(f"arithmetic is {stored['arithmetic']!r}")
            result = Result(cell=Cell(**stored.pop("cell")), curve=curve, **stored)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}): remove {folder} and run it again") from error
        if "code" in result.versions:
            result.versions["code"] = latest_code(result.versions["code"])
        return result


@cache
def latest_code(code: str) -> str:
    """
    :param code: Digest of the code that a result was made by
    :return: That of the latest code that was found to do the same (:mod:`benchmarks.same`, which makes no circles)
    :raises ValueError: if the file that says so is damaged
    """
    same = read_ledger()
    while code in same:
        code = same[code]["same_as"]
    return code


def read_ledger() -> dict[str, dict[str, Any]]:
    """
    :return: Each code that was found to do the same as another one: which, when, and what was compared
    :raises ValueError: if the file is damaged
    """
    try:
        found: dict[str, dict[str, Any]] = json.loads(LEDGER.read_text(encoding="utf-8"))
        if any(not isinstance(entry["same_as"], str) for entry in found.values()):
            raise TypeError("same_as is no code")
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{LEDGER} is damaged ({error!r}): get it back from version control") from error
    return found


def versions(module: str, modules: tuple[str, ...] = (), packages: tuple[str, ...] = ()) -> dict[str, str]:
    """
    :param module: Name of the module that a result depends on
    :param modules: Names of modules of this package that the suite uses beside it
    :param packages: Names of packages that the suite uses
    :return: Versions of the packages it depends on, and a digest of this package's code where it is used
    """
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in dict.fromkeys((*_PACKAGES, module.partition(".")[0].replace("_", "-"), *packages)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    if module.startswith("sb3_swfp."):
        found["code"] = code_digest(module, *modules)
    return found
