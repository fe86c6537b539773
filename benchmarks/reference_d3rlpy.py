"""d3rlpy's side of benchmarks/reference_returns.py: trains on a recording and leaves policies as TorchScript.

Arguments: recording (HDF5), algorithm, updates, first seed, number of seeds, folder for the policies.
"""

import logging
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import d3rlpy  # noqa: E402
import h5py  # noqa: E402
import numpy as np  # noqa: E402
import structlog  # noqa: E402
import torch  # noqa: E402


def main() -> None:
    recording, name, updates, first, seeds, out = sys.argv[1:]
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with h5py.File(recording) as file:
        columns = ("observations", "actions", "rewards", "terminals", "timeouts")
        data = d3rlpy.dataset.MDPDataset(*(np.asarray(file[column], np.float32) for column in columns))
    config = {"td3_bc": d3rlpy.algos.TD3PlusBCConfig, "iql": d3rlpy.algos.IQLConfig}[name]
    for seed in range(int(first), int(first) + int(seeds)):
        d3rlpy.seed(seed)
        scaler = d3rlpy.preprocessing.StandardObservationScaler()
        scaler.fit_with_transition_picker(data.episodes, data.transition_picker)
        algorithm = config(batch_size=256, observation_scaler=scaler).create()
        algorithm.build_with_dataset(data)
        for _ in range(int(updates)):
            algorithm.update(data.sample_transition_batch(256))
        algorithm.save_policy(str(Path(out, f"{seed}.pt")))
        print(seed, flush=True)


if __name__ == "__main__":
    main()
