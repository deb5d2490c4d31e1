"""What the tokenizer costs: residual k-means beside faiss, segments a second (encoded, and from their content on), cost
against a matrix product.

    python -m experiments.benchmark --what=tokenizer                  500,000 x 64 points, 3 x 256 codes, with faiss
    python -m experiments.benchmark --what=tokenizer --size=large     4,000,000 x 64 points, 3 x 8192 codes, one pass

faiss is optional (requirements/bench.txt); without it only our own figures are printed, and the report says so. Both
sides fit one codebook a level on the residuals of the level before, with the same number of passes over all points;
they take turns, so that a busy moment of the machine hits both, and the best of the repeats counts.

Axes: N points, D width, L levels, K codes.
"""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from experiments.benchmarks.report import row
from onelive_jax.config import TokenizerConfig
from onelive_jax.tokenizer import kmeans, residual_kmeans, tower_training
from onelive_jax.tokenizer.encoder import Encoder, Towers
from onelive_jax.tokenizer.refresh import encode_sticky, refresh
from onelive_jax.tokenizer.semantic_ids import churn
from onelive_jax.tokenizer.towers import TwoTowers

try:
    import faiss
except ImportError:
    faiss = None

ENCODE_TARGET = 100_000.0  # segments a second
CONTENT_WIDTH = 128  # of a segment's embedding, as KuaiLive-M3 has it
MEMORY_TARGET = 8.0  # GiB
SHARE_TARGET = 0.5  # of the matrix-product rate, at 8192 codes
Q0_TARGET, ID_TARGET, DISTORTION_TARGET = 0.02, 0.10, 1.02  # of a daily refresh


@dataclass(frozen=True)
class PointSizes:
    """One problem. `clusters`: planted ones, N points around them with half their spread as noise."""

    points: int = 500_000
    dim: int = 64
    levels: int = 3
    codes: int = 256
    iterations: int = 25
    warm_iterations: int = 25
    warm_passes: int = 10
    clusters: int = 2000
    init: str = "k-means++"
    against_faiss: bool = True
    iteration_points: int = 2**16  # of the iteration that is timed beside its matrix product


SIZES = {
    "small": PointSizes(points=100_000),  # for a busy machine
    "normal": PointSizes(),
    # 2^20 points for the iteration: a fit streams its points from memory, 2^16 of them nearly stay in a cache.
    "large": PointSizes(points=4_000_000, codes=8192, iterations=1, clusters=20_000, init="sample", against_faiss=False,
                   iteration_points=2**20),
}


def planted_points(sizes: PointSizes, seed: int = 0) -> np.ndarray:
    """float32 [N, D], made in parts: no second copy of the points."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((sizes.clusters, sizes.dim), np.float32)
    points = np.empty((sizes.points, sizes.dim), np.float32)
    for first in range(0, sizes.points, 2**16):
        part = points[first:first + 2**16]
        part[:] = centre[rng.integers(0, sizes.clusters, len(part))]
        part += 0.5 * rng.standard_normal(part.shape, np.float32)
    return points


def fit_faiss(points: np.ndarray, sizes: PointSizes, seed: int, subsample: bool) -> np.ndarray:
    """float32 [L, K, D], by faiss.Kmeans a level; `subsample`: faiss' default of 256 points a code at most."""
    left, books = points.copy(), []
    limits = {} if subsample else {"min_points_per_centroid": 1, "max_points_per_centroid": len(points)}
    for _ in range(sizes.levels):
        level = faiss.Kmeans(sizes.dim, sizes.codes, niter=sizes.iterations, nredo=1, seed=seed, **limits)
        level.train(left)
        left -= level.centroids[level.index.search(left, 1)[1][:, 0]]
        books.append(level.centroids.copy())
    return np.stack(books)


def measure(size: str, repeats: int, say: Callable[[str], None]) -> dict:
    """All figures of one size; each is passed to `say` as soon as it is known."""
    sizes = SIZES[size]
    points = planted_points(sizes)
    say(f"{sizes.points:,} x {sizes.dim} points, {sizes.levels} x {sizes.codes} codes, {sizes.iterations} iterations, "
        f"{jax.devices()[0]}")
    report = {"rows": [], "sizes": asdict(sizes)}
    report["fits"] = _fits(points, sizes, repeats, say)
    report["iteration"] = _iteration_rate(points, sizes, repeats, say)
    report["encode"] = _encode_rate(points, sizes, repeats, say)
    report["segments"] = _segment_rate(points, sizes, repeats, say)
    report["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(f"peak memory of this process {report['peak_gib']:.2f} GiB")
    fits, rows = report["fits"], report["rows"]
    if "faiss" in fits:
        rows.append(row("seconds of ours / faiss, same passes", "<=", 1.0,
                         fits["ours"]["best_seconds"] / fits["faiss"]["best_seconds"]))
        rows.append(row("distortion of ours / faiss, same passes", "<=", 1.0,
                         fits["ours"]["distortion"][-1] / fits["faiss"]["distortion"][-1]))
    if size != "large":
        rows.append(row("segments encoded a second", ">=", ENCODE_TARGET, report["encode"]["per_second"]))
        rows.append(row("segments a second, tower and encoding", ">=", ENCODE_TARGET,
                         report["segments"]["per_second"]))
        report["refresh"] = measure_refresh(say)
        worst = {name: max(day[name] for day in report["refresh"]) for name in report["refresh"][0]}
        rows.append(row("worst daily churn of q0", "<=", Q0_TARGET, worst["q0"]))
        rows.append(row("worst daily churn of q0q1q2", "<=", ID_TARGET, worst["q0q1q2"]))
        rows.append(row("distortion after refreshes / fit from scratch", "<=", DISTORTION_TARGET, worst["distortion"]))
    else:
        rows.append(row("an iteration's share of the matrix-product rate", ">=", SHARE_TARGET,
                         report["iteration"]["share"]))
        rows.append(row("peak memory, GiB", "<=", MEMORY_TARGET, report["peak_gib"]))
    return report


def _fits(points: np.ndarray, sizes: PointSizes, repeats: int, say: Callable[[str], None]) -> dict:
    def ours(seed: int, **settings) -> np.ndarray:
        key = jax.random.key(seed)
        config = TokenizerConfig(levels=sizes.levels, codes=sizes.codes, kmeans_init=sizes.init,
                                 **{f"kmeans_{name}": value for name, value in settings.items()})
        return np.asarray(residual_kmeans.fit(points, config, key).centroids)

    fits = {"ours": lambda seed: ours(seed, iterations=sizes.iterations)}
    if sizes.against_faiss:
        fits["ours, warm start"] = lambda seed: ours(seed, iterations=sizes.warm_passes,
                                                     warm_iterations=sizes.warm_iterations)
        fits["ours, mini-batch"] = lambda seed: ours(seed, iterations=sizes.warm_passes, mode="minibatch")
        if faiss is None:
            say("faiss is not installed: no comparison (pip install -r requirements/bench.txt)")
        else:
            fits["faiss"] = lambda seed: fit_faiss(points, sizes, seed, subsample=False)
            fits["faiss, its default"] = lambda seed: fit_faiss(points, sizes, seed, subsample=True)
        for name, fit in fits.items():
            if not name.startswith("faiss"):
                fit(0)  # compiles
    seconds, cpu_seconds, distortions = ({name: [] for name in fits} for _ in range(3))
    for seed in range(1, (repeats if sizes.against_faiss else 1) + 1):
        for name, fit in fits.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            books = fit(seed)
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name].append(time.process_time() - cpu_start)
            distortions[name].append(_distortions(books, points))
    results = {}
    for name in fits:
        mean = np.mean(distortions[name], axis=0)
        results[name] = {"seconds": seconds[name], "best_seconds": min(seconds[name]),
                         "cpu_seconds": cpu_seconds[name], "distortion": mean.tolist(),
                         "distortions": [list(each) for each in distortions[name]]}
        say(f"  {name:<20} {min(seconds[name]):8.2f} s (best of {len(seconds[name])}; "
            f"{', '.join(f'{s:.2f}' for s in seconds[name])}; {min(cpu_seconds[name]):.2f} s of CPU)   distortion by "
            f"level, mean over seeds "
            f"{', '.join(f'{value:.4f}' for value in mean)}")
    return results


def _distortions(books: np.ndarray, points: np.ndarray) -> list[float]:
    """Mean squared length of the residual after each level; in parts."""
    codebooks, total = residual_kmeans.Codebooks(jnp.asarray(books)), 0.0
    for first in range(0, len(points), 2**18):
        part = points[first:first + 2**18]
        total = total + len(part) * np.square(np.asarray(residual_kmeans.residual_norms(codebooks, part), np.float64))
    return (total[1:] / len(points)).tolist()


def _iteration_rate(points: np.ndarray, sizes: PointSizes, repeats: int, say: Callable[[str], None]) -> dict:
    """One Lloyd iteration of one level against the product [C, D] x [D, K] alone, block after block, on some points."""
    part = points[:sizes.iteration_points]
    pairs = 3 + 2 * repeats if sizes.iteration_points <= 2**16 else 3  # ten seconds a run on two cores
    blocks = kmeans.make_blocks(part, sizes.codes)
    centroids_KxD = jnp.asarray(part[:sizes.codes])

    @jax.jit
    def product(points_MxCxD, centroids_KxD):
        def block(points_CxD):
            # The product's corner is read, so that it is computed; the rest of it is thrown away.
            scores_KxC = jnp.einsum("kd,cd->kc", centroids_KxD, points_CxD, precision=jax.lax.Precision.HIGHEST)
            return jax.lax.optimization_barrier(scores_KxC)[0, 0]
        return jax.lax.map(block, points_MxCxD)

    runs = {"product": lambda: product(blocks.points, centroids_KxD).block_until_ready(),
            "iteration": lambda: kmeans.lloyd(blocks, centroids_KxD, 1).block_until_ready()}
    seconds = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(pairs):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    flops = 2 * len(part) * sizes.codes * sizes.dim / 1e9
    share = statistics.median(p / i for p, i in zip(seconds["product"], seconds["iteration"], strict=True))
    ours, alone = (flops / min(seconds[name]) for name in ("iteration", "product"))
    say(f"  an iteration on {len(part):,} of the points: {ours:.0f} GFLOP/s, the product alone "
        f"({blocks.points.shape[1]} x {sizes.dim} x {sizes.codes}) {alone:.0f} GFLOP/s: {share:.0%} of its rate "
        f"(median of {len(seconds['product'])} pairs)")
    return {"seconds": seconds, "gflop": flops, "share": share}


def _encode_rate(points: np.ndarray, sizes: PointSizes, repeats: int, say: Callable[[str], None]) -> dict:
    """Points on the host in, codes on the host out."""
    part, rng = points[:500_000 if sizes.codes <= 1024 else 2**15], np.random.default_rng(1)
    books = residual_kmeans.Codebooks(jnp.asarray(rng.choice(part, (sizes.levels, sizes.codes))))
    np.asarray(residual_kmeans.encode(books, part))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        np.asarray(residual_kmeans.encode(books, part))
        seconds.append(time.perf_counter() - start)
    say(f"  {len(part) / min(seconds):,.0f} segments encoded a second (best of {repeats})")
    return {"seconds": seconds, "per_second": len(part) / min(seconds)}


def _segment_rate(points: np.ndarray, sizes: PointSizes, repeats: int, say: Callable[[str], None]) -> dict:
    """New segments from their content to codes: author tower, then encoding; content on the host in, codes out.

    As a served tokenizer does it: parameters, the table of authors among them, stay on the device between calls.
    """
    config = TokenizerConfig(levels=sizes.levels, codes=sizes.codes, dim=sizes.dim)
    authors, count = min(100_000, len(points)), min(2**17 if sizes.codes <= 1024 else 2**15, len(points))
    rng = np.random.default_rng(2)
    params = meta.unbox(tower_training.boxed_params(TwoTowers(authors, config), 0, 2 * CONTENT_WIDTH))
    views, author = rng.integers(0, 100, authors), rng.integers(0, authors, count).astype(np.int32)
    content = rng.standard_normal((count, 2 * CONTENT_WIDTH), np.float32)
    books = residual_kmeans.Codebooks(jnp.asarray(rng.choice(points, (sizes.levels, sizes.codes))))
    encoder = Encoder(Towers(params, config, views), books)

    def run() -> np.ndarray:
        return encoder.codes(author, content)

    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    say(f"  {count / min(seconds):,.0f} segments a second from content {CONTENT_WIDTH} wide (x_30s and x_pool) through "
        f"the author tower (a table of {authors:,} authors on the device) to codes (best of {repeats})")
    return {"seconds": seconds, "per_second": count / min(seconds), "authors": authors}


def measure_refresh(say: Callable[[str], None], authors: int = 24_000, dim: int = 32, codes: int = 64, levels: int = 3,
                    days: int = 4) -> list[dict]:
    """Daily refreshes on authors that move: churn of those whose content did not, distortion against a new fit.

    Every day a fifth of the authors are replaced and three tenths drift, and so do the clusters that the new ones come
    from; the other half does not move at all. Unit vectors, as the towers give.
    """
    rng = np.random.default_rng(0)
    clusters = 500
    centre = rng.normal(size=(clusters, dim))
    raw = centre[rng.integers(0, clusters, authors)] + 0.5 * rng.normal(size=(authors, dim))

    def unit() -> np.ndarray:
        return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)

    def distortion(books, points, ids=None) -> float:
        return float(residual_kmeans.residual_norms(books, points, ids)[-1]) ** 2

    config = TokenizerConfig(levels=levels, codes=codes)
    books = residual_kmeans.fit(unit(), config, jax.random.key(0))
    ids, figures = np.asarray(residual_kmeans.encode(books, unit())), []
    for day in range(days):
        draw = rng.random(authors)
        new, drifting = draw < 0.2, (draw >= 0.2) & (draw < 0.5)
        centre = centre + 0.05 * rng.normal(size=centre.shape)
        weight = rng.dirichlet(np.full(clusters, 2.0))
        raw[new] = centre[rng.choice(clusters, new.sum(), p=weight)] + 0.5 * rng.normal(size=(new.sum(), dim))
        raw[drifting] += 0.1 * rng.normal(size=(drifting.sum(), dim))
        points, before = unit(), np.where(new[:, None], -1, ids)
        books = refresh(books, points, before)
        after = np.asarray(encode_sticky(books, points, before))
        scratch = residual_kmeans.fit(points, config, jax.random.key(day + 1))
        share = distortion(books, points, after) / distortion(scratch, points)
        figures.append(churn(ids, after, unchanged=~new & ~drifting) | {"distortion": share})
        say(f"  refresh of day {day + 1}: churn of authors whose content did not change "
            + ", ".join(f"{name} {value:.2%}" for name, value in figures[-1].items() if name != "distortion")
            + f"; distortion {share:.3f} of a fit from scratch")
        ids = after
    return figures
