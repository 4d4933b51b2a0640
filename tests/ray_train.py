"""A command of ours in two workers of Ray Train: `ray_train.py FOLDER COMMAND...`; the folder is Ray Train's own."""

import sys

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def loop(line: list[str]) -> None:
    """What each worker does."""
    import cli

    cli.app(line, standalone_mode=False)


if __name__ == "__main__":
    folder, *line = sys.argv[1:]
    ray.init("local", num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False)
    TorchTrainer(
        loop,
        train_loop_config=line,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=folder),
    ).fit()
