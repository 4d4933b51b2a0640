"""On a Ray cluster of several nodes: what a build loses when a node goes is done again elsewhere."""

import os
import signal
import subprocess
import time

import pytest
from conftest import cli, command, tree, write

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
    cluster.add_node(**small)
    yield cluster
    cluster.shutdown()


@pytest.mark.slow
def test_a_node_killed_while_building_costs_nothing(cluster, tmp_path):
    for number in range(48):
        write(tmp_path / f"in/dog {number}.wav", seconds=20, rate=44_100, hertz=200 + 10 * number)
    build = ("build-dataset", "folder", "--input", tmp_path / "in", "--part-rows", 2, "--out")
    cli(*build, tmp_path / "reference", "--workers", 0)
    line = command((*build, tmp_path / "out", "--ray-address", cluster.address))
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob("out/build/resample/*.journal")):
            time.sleep(0.05)
        (node,) = cluster.worker_nodes
        (raylet,) = node.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        _, said = process.communicate()
    assert process.returncode == 0, said
    assert tree(tmp_path / "out") == tree(tmp_path / "reference")
