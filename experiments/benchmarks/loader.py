"""How fast training batches are made from a large log (python -m experiments.benchmarks.data --what=loader).

Histories of 64 items in three sequences (live, gift, video), dynamic ids, true lifetimes of millions of rooms. Times
are CPU seconds of one thread, so that the figures are those of one core.
"""

import resource
import time
from pathlib import Path

import numpy as np

from data_pipelines.batches.loader import training_batches
from data_pipelines.log.timelines import Timelines
from experiments.common.log import Log, prepare
from onelive_jax.config import Config
from onelive_jax.tokenizer.semantic_ids import IdTable

ITEMS, SLOTS, BATCH, ROUNDS, BATCHES = 64, 128, 512, 5, 20
CODES, LEVELS = 512, 3
GOAL = 10_000


def large_config(tables: Path) -> Config:
    config = Config(name="loader")
    config.data.source, config.data.path = "canonical", str(tables)
    config.data.valid_hours = config.data.test_hours = 24.0
    config.data.sequences = ("live", "gift", "video")
    config.data.history_items, config.data.live_slots = ITEMS, SLOTS
    return config


def random_videos(log: Log, rng: np.random.Generator) -> Timelines:
    """As many short-video views as live views, by the same people at random moments (KuaiLive has none)."""
    views = log.views
    start = rng.integers(int(views.start_ms.min()), log.split.p1_ms, views.author.size)
    videos = Timelines(views.user_ptr, rng.permutation(views.author), np.full(views.author.size, -1, np.int32), start,
                       start + 15_000)
    return videos.sorted_by(start, start + 15_000)


def random_ids(log: Log, rng: np.random.Generator) -> IdTable:
    """An id an author, and another one from the start of each room that somebody watched."""
    rooms = np.unique(log.views.room)
    frame = log.tables.rooms
    author, start = (frame[name].to_numpy()[rooms] for name in ("author_id", "start_ms"))
    return IdTable.dynamic(rng.integers(CODES, size=(log.num_authors, LEVELS)), author, start,
                           rng.integers(CODES, size=(rooms.size, LEVELS)))


def cpu_rate(make, examples: int) -> float:
    """Examples a CPU second, the best of `ROUNDS`."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        make()
        best = min(best, time.process_time() - began)
    return examples / best


def benchmark_loader(tables: Path, workdir: Path) -> dict[str, float]:
    """Prints and returns examples a second on one core: requests alone, and whole batches through Grain."""
    config, rng = large_config(tables), np.random.default_rng(0)
    began = time.perf_counter()
    log = prepare(config, workdir)
    log.others["video"] = random_videos(log, rng)
    training = log.training_part()
    maker = training.batch_maker(random_ids(log, rng), config)
    shown = maker.shown_by_others(np.arange(training.views.author.size))
    maker.batch(np.arange(2), rng)  # looks up the codes of every view, once
    stored = sum(file.stat().st_size for file in (workdir / "examples").rglob("*") if file.is_file())
    print(f"{training.views.author.size:,} training views, {shown.mean():.1%} of a room known to be on air; "
          f"{len(log.tables.rooms):,} rooms, at most {maker.presence.largest_load:,} to look at for a moment; "
          f"ready after {time.perf_counter() - began:.0f} s")
    print(f"stored examples: {stored / 1e6:,.1f} MB, {stored / max(log.views.author.size, 1):.1f} bytes a view, "
          "whatever the length of a history")
    views = [rng.integers(training.views.author.size, size=BATCH) for _ in range(BATCHES)]
    users = training.views.users()
    rates = {"requests": cpu_rate(lambda: [maker.request(users[v], training.views.start_ms[v]) for v in views],
                                  BATCH * BATCHES)}
    batches = training_batches(maker, (np.arange(training.views.author.size),), (1.0,), BATCH, seed=0, workers=0)
    next(batches)
    rates["batches"] = cpu_rate(lambda: [next(batches) for _ in range(BATCHES)], BATCH * BATCHES)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    for name, what in (("requests", f"requests alone (3 x {ITEMS} history items)"),
                       ("batches", f"whole batches through Grain, with {SLOTS} rooms on air each")):
        verdict = "at least" if rates[name] >= GOAL else "below"
        print(f"{what}: {rates[name]:,.0f} examples/s per core ({verdict} {GOAL:,})")
    print(f"peak memory {peak:.1f} GB")
    return rates
