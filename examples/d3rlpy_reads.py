"""Trains d3rlpy on data that dreamloom wrote: real or synthetic, as D4RL HDF5 or as Minari.

d3rlpy pins gymnasium 1.0.0, so it wants an environment of its own, without dreamloom:

    uv venv d3 && uv pip install --python d3 d3rlpy "minari[hdf5]"
    dreamloom data convert data/cheetah_synth --to data/cheetah_synth.hdf5
    d3/bin/python examples/d3rlpy_reads.py data/cheetah_synth.hdf5
    d3/bin/python examples/d3rlpy_reads.py minari:cheetah/synth-v0

Prefer the HDF5 file: d3rlpy drops the last step of every episode that does not end terminated, and in the file that is the
closing row, no transition. From Minari the same rule would drop real rows (of synthetic data all that are not terminal),
so a step that repeats the final observation is added to every such episode here. (`d3rlpy.datasets.get_minari` of 2.8.1
does neither: it needs the environment, and puts T + 1 observations beside T actions.)
"""

import sys
from collections.abc import Iterator
from typing import Any

import d3rlpy
import h5py
import numpy as np


def from_hdf5(path: str) -> d3rlpy.dataset.MDPDataset:
    """The arrays as they lie in the file."""
    with h5py.File(path) as file:
        names = ("observations", "actions", "rewards", "terminals", "timeouts")
        columns = {name: file[name][:] for name in names}
    terminals = columns.pop("terminals").astype(np.float32)
    return d3rlpy.dataset.MDPDataset(**columns, terminals=terminals)


def from_minari(name: str) -> d3rlpy.dataset.ReplayBuffer:
    """Episodes as minari gives them."""
    import minari

    return d3rlpy.dataset.ReplayBuffer(d3rlpy.dataset.InfiniteBuffer(), episodes=list(episodes(minari.load_dataset(name))))


def episodes(dataset: Any) -> Iterator[d3rlpy.dataset.Episode]:
    """d3rlpy's episodes of a Minari dataset, none of whose transitions is lost."""
    for found in dataset.iterate_episodes():
        columns = [found.observations, found.actions.reshape(len(found.rewards), -1), found.rewards.reshape(-1, 1)]
        ended = bool(found.terminations[-1])
        if ended:
            columns[0] = columns[0][:-1]
        else:
            columns[1:] = [np.concatenate([rows, np.zeros_like(rows[:1])]) for rows in columns[1:]]
        yield d3rlpy.dataset.Episode(*columns, terminated=ended)


if __name__ == "__main__":
    source = sys.argv[1]
    data = from_minari(source.removeprefix("minari:")) if source.startswith("minari:") else from_hdf5(source)
    print(f"{source}: {data.transition_count} transitions in {data.size()} episodes")
    discrete = data.dataset_info.action_space.name == "DISCRETE"
    learner = (d3rlpy.algos.DiscreteCQLConfig if discrete else d3rlpy.algos.TD3PlusBCConfig)(batch_size=64).create()
    learner.fit(data, n_steps=20, n_steps_per_epoch=10, show_progress=False, logger_adapter=d3rlpy.logging.NoopAdapterFactory())
