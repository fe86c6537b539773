"""Writing transitions in the formats that people of the field read, and turning one format into another."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dreamloom.datasets.atomic import atomic_folder
from dreamloom.datasets.hdf5 import save_hdf5
from dreamloom.datasets.npz import save_npz
from dreamloom.datasets.shards import read_manifest, write_index, write_shard
from dreamloom.datasets.store import Dataset, open_dataset
from dreamloom.datasets.transitions import count_transitions, iter_transitions
from dreamloom.datasets.types import Transitions

_PIECE = 2**26  # bytes of rows that are in memory at a time
_SHARD = 2**27  # bytes of a shard
_OWN = ("format", "format_version")  # attributes that speak of the file, not of the data


@dataclass(frozen=True)
class Rows:
    """Transitions on their way: how many, how large, what is known of them, and how to go through them."""

    count: int
    row_bytes: int
    attrs: Mapping[str, Any]
    source: Transitions | Dataset

    def parts(self, nbytes: int = _PIECE) -> Iterator[Transitions]:
        """All rows, piece by piece, with a progress bar."""
        size = max(1, min(nbytes // max(1, self.row_bytes), 2**20))
        with tqdm(total=self.count, unit=" rows", unit_scale=True, delay=1.0) as progress:
            for part in _pieces(self.source, size):
                yield part
                progress.update(len(part))

    def discrete_actions(self) -> int:
        """How many discrete actions there are (Minari wants to know beforehand); 0 where actions are continuous."""
        actions = self.source.actions
        if actions is None or actions.ndim > 1:
            return 0
        named = len(self.attrs.get("action_names", []))
        blocks = (actions[start : start + 2**20] for start in range(0, len(actions), 2**20))
        return max([named, 1, *(int(block.max()) + 1 for block in blocks)])


def convert(src: str, *, to: str, max_episode_steps: int | None = None) -> None:
    """Turns a dataset into another format: D4RL's HDF5, a folder of shards, an archive as SynthER writes it, or Minari.

    Rows come out as transitions, in order and one by one, whatever their number; columns under `infos/` stay behind.

    Args:
        src: what `dreamloom data` reads: an HDF5 file, a folder of shards, an .npz archive, minari:NAME or d4rl:NAME.
        to: FILE.hdf5, FILE.npz, minari:NAMESPACE/NAME-v0, or a folder (a name without a suffix).
        max_episode_steps: the environment's step limit, for a D4RL file without timeouts.

    Examples:
        dreamloom data convert data/cheetah_synth --to data/cheetah_synth.hdf5
        dreamloom data convert data/cheetah_synth --to minari:cheetah/synth-v0

    Raises:
        ValueError: the source cannot be read, or the target exists or has no known form.
    """
    with open_dataset(src, max_episode_steps=max_episode_steps) as data:
        count = save_dataset(data, to)
    print(f"{to}: {count:,} transitions")


def save_dataset(data: Transitions | Dataset, to: str | Path, *, attrs: Mapping[str, Any] | None = None) -> int:
    """Writes transitions, whole or not at all; an open dataset is streamed and may be larger than memory.

    Args:
        data: transitions, or an open dataset, whose rows count by D4RL's rule (`iter_transitions`).
        to: "FILE.hdf5" (D4RL's own `qlearning_dataset` reads these very transitions from it), "FILE.npz", a folder (no
            suffix), or "minari:NAMESPACE/NAME-v0".
        attrs: what is known of the data, as JSON: `env`, `synthetic`, `source`, ...; it goes before what a dataset says itself.

    Returns:
        The number of transitions written.

    Raises:
        ValueError: `to` exists or has no known form, or the dataset has no actions or rewards.
    """
    rows = _rows(data, attrs or {})
    if str(to).startswith("minari:"):
        from dreamloom.datasets.minari_save import save_minari

        save_minari(str(to).removeprefix("minari:"), rows.parts(), rows.attrs, actions=rows.discrete_actions())
        return rows.count
    path = Path(to)
    if path.exists():
        raise ValueError(f"{path}: exists already; delete it, or choose another name")
    if path.suffix in (".hdf5", ".h5"):
        save_hdf5(path, rows.parts(), rows.attrs)
    elif path.suffix == ".npz":
        save_npz(path, rows.parts(), rows.count, rows.attrs)
    elif not path.suffix:
        _save_folder(path, rows)
    else:
        raise ValueError(f"{path}: no known format; expected FILE.hdf5, FILE.npz, minari:NAME, or a folder without a suffix")
    return rows.count


def _save_folder(folder: Path, rows: Rows) -> None:
    with atomic_folder(folder) as temporary:
        manifests = []
        for number, part in enumerate(rows.parts(_SHARD)):
            write_shard(temporary, number, part, rows.attrs)
            manifests.append(read_manifest(temporary, number) or {})
        write_index(temporary, manifests, rows.attrs)


def _rows(data: Transitions | Dataset, attrs: Mapping[str, Any]) -> Rows:
    known = {name: value for name, value in data.attrs.items() if name not in _OWN} if isinstance(data, Dataset) else {}
    count = count_transitions(data) if isinstance(data, Dataset) else len(data)
    row_bytes = 2 * data.observations[:1].nbytes + 64
    merged = {name: value for name, value in {**known, **attrs}.items() if value is not None}
    return Rows(count, row_bytes, merged, data)


def _pieces(source: Transitions | Dataset, size: int) -> Iterator[Transitions]:
    if isinstance(source, Dataset):
        yield from iter_transitions(source, size)
    else:
        yield from (source[start : start + size] for start in range(0, max(1, len(source)), size))
