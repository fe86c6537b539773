"""d3rlpy's side of benchmarks/agents.py: runs in an environment of its own, where dreamloom is not installed.

Reads lines "ALGORITHM UPDATES" and answers each with the CPU-seconds that so many updates took.
"""

import logging
import sys
import time
import warnings

warnings.filterwarnings("ignore")

import d3rlpy  # noqa: E402
import numpy as np  # noqa: E402
import structlog  # noqa: E402
import torch  # noqa: E402

ROWS, OBSERVATION, ACTION, BATCH = 50_000, 17, 6, 256


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    random = np.random.default_rng(0)
    timeouts = np.arange(ROWS) % 1000 == 999
    data = d3rlpy.dataset.MDPDataset(
        random.normal(size=(ROWS, OBSERVATION)).astype(np.float32),
        random.uniform(-1, 1, (ROWS, ACTION)).astype(np.float32),
        random.normal(size=ROWS).astype(np.float32),
        np.zeros(ROWS, np.float32),
        timeouts.astype(np.float32),
    )
    scaler = d3rlpy.preprocessing.StandardObservationScaler
    algorithms = {
        "td3_bc": d3rlpy.algos.TD3PlusBCConfig(batch_size=BATCH, observation_scaler=scaler()).create(),
        "iql": d3rlpy.algos.IQLConfig(batch_size=BATCH, observation_scaler=scaler()).create(),
    }
    for algorithm in algorithms.values():
        algorithm.config.observation_scaler.fit_with_transition_picker(data.episodes, data.transition_picker)
        algorithm.build_with_dataset(data)
    print(f"ready {d3rlpy.__version__} {torch.__version__}", flush=True)
    for line in sys.stdin:
        name, updates = line.split()
        start = time.process_time()
        for _ in range(int(updates)):
            algorithms[name].update(data.sample_transition_batch(BATCH))
        print(time.process_time() - start, flush=True)


if __name__ == "__main__":
    main()
