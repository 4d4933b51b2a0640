"""Search among a million vectors: milliseconds a query and recall against brute force, on the cores at hand.

    python benchmarks/search.py --rows 1000000

The vectors are synthetic: around each of ROWS / 100 random centres, which themselves lie around 50 topics, the noise
as long as the centre, at unit length, 512 numbers in float16 as an index keeps them. Two kinds of queries: "near" is a
vector of the set with noise half its length, as a sound like one in the index, and "far" a topic's direction with as
much noise, which is near no vector in particular, as the embedding of a text is. Half of each kind choose how many
cells are looked into, the other half, never seen before, are measured, one at a time.
"""

import argparse
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from clap.search import vectors

TOPICS = 50


def unit(x: np.ndarray) -> np.ndarray:
    """Rows at length 1, float32."""
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def synthesise(path: Path, rows: int, dim: int, queries: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Vectors (rows, dim) float16 in a memory-mapped file, and {kind: queries}."""
    rng = np.random.default_rng(0)
    topics = unit(rng.standard_normal((TOPICS, dim)))
    centres = unit(topics[rng.integers(TOPICS, size=rows // 100)] + unit(rng.standard_normal((rows // 100, dim))))
    found = np.lib.format.open_memmap(path, "w+", np.float16, (rows, dim))
    for start in range(0, rows, 50_000):
        n = min(50_000, rows - start)
        noise = unit(rng.standard_normal((n, dim), dtype=np.float32))
        found[start : start + n] = unit(centres[rng.integers(len(centres), size=n)] + noise)
    origin = found[np.sort(rng.choice(rows, queries, replace=False))].astype(np.float32)
    near = unit(origin + 0.5 * unit(rng.standard_normal((queries, dim))))
    far = unit(topics[rng.integers(TOPICS, size=queries)] + unit(rng.standard_normal((queries, dim))))
    return found, {"near": near, "far": far}


def measure(ivf: object, found: np.ndarray, queries: np.ndarray, how: dict, keep: np.ndarray | None = None) -> str:
    """Recall@10 and what a query takes, one at a time: milliseconds by the clock, and of the processor."""
    rows = None if keep is None else np.flatnonzero(keep)
    truth = vectors.top(found, queries, 10, rows)[1]
    spent, got = [], []
    for query in queries:
        start, cpu = time.perf_counter(), time.process_time()
        got.append(vectors.search_ivf(ivf, found, query[None], 10, how["nprobe"], keep)[1][0])
        spent.append((1000 * (time.perf_counter() - start), 1000 * (time.process_time() - cpu)))
    (median, busy), (most, busiest) = np.percentile(spent, [50, 95], axis=0)
    recall = vectors.recalled(np.array(got), truth)
    return (
        f"recall@10 {recall:.3f}, {median:.2f} ms a query (p95 {most:.2f}), {busy:.2f} CPU ms (p95 {busiest:.2f}), "
        f"{1000 / np.mean(spent, axis=0)[0]:.0f} a second"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=400)
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        found, queries = synthesise(Path(folder) / "vectors.npy", given.rows, given.dim, given.queries)
        half = given.queries // 2
        start, cpu = time.perf_counter(), time.process_time()
        how = vectors.build_ivf(found, Path(folder) / "ivf", {name: each[:half] for name, each in queries.items()})
        print(f"built in {time.perf_counter() - start:.0f} s, {time.process_time() - cpu:.0f} CPU s: {how}")
        size = (Path(folder) / "ivf").stat().st_size
        print(f"{size / 2**20:.0f} MiB beside {found.nbytes / 2**20:.0f} MiB of vectors")
        start = time.perf_counter()
        ivf = vectors.open_ivf(Path(folder) / "ivf")
        print(f"opened in {1000 * (time.perf_counter() - start):.0f} ms")
        for name, each in queries.items():
            print(f"{name:5} {measure(ivf, found, each[half:], how)}")
        for share in (0.5, 0.2):
            keep = np.random.default_rng(1).random(given.rows) < share
            print(f"near, of a filter that keeps {share:.0%}: {measure(ivf, found, queries['near'][half:], how, keep)}")
        start = time.perf_counter()
        vectors.top(found, queries["near"][half : half + 1], 10)
        print(f"brute force: {1000 * (time.perf_counter() - start):.0f} ms a query")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB, mapped files included")


if __name__ == "__main__":
    main()
