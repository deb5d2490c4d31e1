"""A log in which everybody walks round a ring of authors, and every baseline at a size for tests."""

import numpy as np
import polars as pl

from data_pipelines.log import tasks
from data_pipelines.log.presence import Lifetimes, Presence
from data_pipelines.log.split import Split
from data_pipelines.log.timelines import Timelines
from data_pipelines.tables import ReadReport, Tables
from experiments.baselines import encoder_decoder, fitting, kuaiformer, lightgcn, sasrec
from experiments.common.log import Log

MINUTE = 60_000
AUTHORS, PEOPLE, LENGTH = 12, 40, 10


def chains(people: int = PEOPLE, length: int = LENGTH) -> Timelines:
    """Everybody walks round a ring of authors, one step a minute: author a is always followed by a + 1."""
    start = np.arange(people) % AUTHORS
    author = (start[:, None] + np.arange(length)) % AUTHORS
    time = np.broadcast_to(MINUTE * np.arange(length, dtype=np.int64), author.shape)
    return Timelines(np.arange(people + 1) * length, author.reshape(-1).astype(np.int32),
                     author.reshape(-1).astype(np.int32), time.reshape(-1).copy(), time.reshape(-1) + 1000)


def log_of(views: Timelines, length: int = LENGTH) -> Log:
    p1, p2, end = (MINUTE * (length - 2), MINUTE * (length - 1), MINUTE * length)
    ids = np.arange(AUTHORS, dtype=np.int32)
    lifetimes = Lifetimes(ids, np.zeros(AUTHORS, np.int64), np.full(AUTHORS, end), ids)
    empty = pl.DataFrame()
    tables = Tables(empty, empty, pl.DataFrame({"author_id": ids}), empty, ReadReport("", 0, 0))
    return Log(tables, views, Presence.of(views, lifetimes, AUTHORS), Split(p1, p2, end), lifetimes, None)


LOG = log_of(chains())
VALIDATION = tasks.full_ranking(LOG.views, AUTHORS, LOG.split.p1_ms, LOG.split.p2_ms)
TEST = tasks.full_ranking(LOG.views, AUTHORS, LOG.split.p2_ms, requests=16)
SHORT = fitting.Training(steps=120, validate_every=60, learning_rate=2e-2)
CODES = np.stack([np.arange(AUTHORS) // 4, np.arange(AUTHORS) % 4], 1).astype(np.int32)


def made(name, folder, training=SHORT):
    if name in ("sasrec", "sampled"):
        settings = sasrec.Settings(dim=16, layers=1, length=8, rows=8, dropout=0.0, training=training,
                                   sampled=6 if name == "sampled" else 0)
        return sasrec.SASRec(settings, folder)
    if name == "kuaiformer":
        return kuaiformer.KuaiFormer(kuaiformer.Settings(
            dim=16, layers=1, early=(4, 2), middle=(2, 2), latest=4, queries=2, batch=32, dropout=0.0,
            training=training), folder)
    if name == "lightgcn":
        return lightgcn.LightGCN(lightgcn.Settings(dim=8, layers=2, batch=64, training=training), folder)
    settings = encoder_decoder.Settings(dim=16, encoder_layers=1, decoder_layers=1, heads=2, length=8, rows=8, beams=8,
                                        dropout=0.0, token_a_code=name == "tiger", training=training)
    return encoder_decoder.EncoderDecoder(settings, folder, CODES, name=name)
