"""What a study keeps on disk while it goes on: settings, finished cells, and who is making what."""

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dreamloom.datasets.atomic import atomic_path, require_folder
from dreamloom.eval.provenance import provenance

Cell = tuple[str, str, str]  # environment, learner, arm


def compute_device() -> torch.device:
    """Where a study's networks are: the GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def clock() -> float:
    """Seconds; what a GPU was given to do before is then done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def cell_path(out: Path, cell: Cell) -> Path:
    """The file of a finished cell."""
    return out / "cells" / f"{'--'.join(cell)}.json"


def run_cells(
    out: Path, settings: dict[str, Any], cells: Sequence[Cell], measure: Callable[..., dict[str, Any]]
) -> dict[Cell, Any] | None:
    """Measures the cells that are not there yet.

    Args:
        out: the study's folder.
        settings: of the study.
        cells: in the order in which they are measured.
        measure: called with a cell's environment, learner and arm.

    Returns:
        What was found in every cell; None while other processes are at some.

    Raises:
        ValueError: `out` holds another study.
    """
    require_folder(out)
    note_settings(out / "settings.json", settings)
    for number, cell in enumerate(cells):
        path = cell_path(out, cell)
        with claimed(path) as mine:
            if mine and not path.exists():
                print(f"[{number + 1}/{len(cells)}] {' / '.join(cell)}", flush=True)
                write_json(path, {**measure(*cell), **provenance(compute_device())})
    missing = [cell for cell in cells if not cell_path(out, cell).exists()]
    if missing:
        print(f"{len(missing)} cells are being measured elsewhere; the process that ends last writes the report")
        return None
    return {cell: json.loads(cell_path(out, cell).read_text()) for cell in cells}


@contextmanager
def claimed(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process may make `path`; another that asks meanwhile is refused, or waits. Ends with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def note_settings(path: Path, settings: dict[str, Any]) -> None:
    """Keeps the settings; environments, learners and arms may be added to a study, nothing else may change.

    Raises:
        ValueError: `path` holds other settings.
    """
    settings = json.loads(json.dumps(settings))
    before = json.loads(path.read_text()) if path.exists() else settings
    changed = [key for key in {**before, **settings} if not _extends(settings.get(key), before.get(key))]
    if changed:
        raise ValueError(f"{path.parent}: holds a study with other {', '.join(changed)}; choose another --out, or delete it")
    write_json(path, settings)


def _extends(now: Any, before: Any) -> bool:
    if isinstance(now, dict) and isinstance(before, dict):
        return all(_extends(now[key], before[key]) for key in now.keys() & before.keys())
    return now == before


def write_json(path: Path, value: Any) -> None:
    """Writes a file of JSON whole, or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
