"""Every baseline learns what a tiny log has to teach, and never reads what it may not."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.log import tasks
from data_pipelines.log.presence import Lifetimes, Presence
from data_pipelines.log.split import Split
from data_pipelines.log.timelines import Timelines
from data_pipelines.tables import ReadReport, Tables
from experiments.baselines import encoder_decoder, fitting, histories, kuaiformer, lightgcn, sasrec
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
    import polars as pl

    p1, p2, end = (MINUTE * (length - 2), MINUTE * (length - 1), MINUTE * length)
    ids = np.arange(AUTHORS, dtype=np.int32)
    lifetimes = Lifetimes(ids, np.zeros(AUTHORS, np.int64), np.full(AUTHORS, end), ids)
    empty = pl.DataFrame()
    tables = Tables(empty, empty, pl.DataFrame({"author_id": ids}), empty, ReadReport("", 0, 0))
    return Log(tables, views, Presence.of(views, lifetimes, AUTHORS), Split(p1, p2, end), lifetimes)


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


@pytest.mark.parametrize("name", ["sasrec", "sampled", "kuaiformer", "tiger", "onerec"])
def test_a_sequence_model_learns_what_follows_what(name, tmp_path):
    baseline = made(name, tmp_path / name)
    baseline.fit(LOG, VALIDATION)
    places = fitting.judge(baseline.score, TEST)
    # Chance is 1 in 12. (Two codes an author are harder to learn in a few steps than one row of a table.)
    assert (places == 1).all(1).mean() > (0.95 if name in ("sasrec", "sampled", "kuaiformer") else 0.4)


def test_lightgcn_leaves_log_2_and_knows_who_is_like_whom(tmp_path):
    from onelive_jax.training import metrics

    baseline = made("lightgcn", tmp_path / "lightgcn")
    baseline.fit(LOG, VALIDATION)
    losses = [line["train/loss"] for line in metrics.read(tmp_path / "lightgcn") if "train/loss" in line]
    assert losses[0] > 0.66
    assert losses[-1] < 0.5
    # People who begin alike have the same edges, so their vectors rank alike.
    users, authors = baseline.vectors
    assert np.corrcoef(users[0] @ authors.T, users[AUTHORS] @ authors.T)[0, 1] > 0.9


@pytest.mark.parametrize("name", ["sasrec", "kuaiformer", "lightgcn"])
def test_nothing_is_learned_from_behind_the_training_period(name, tmp_path):
    """A log whose validation and test views are others gives the same parameters."""
    views = chains()
    late = views.start_ms >= LOG.split.p1_ms
    other = log_of(dataclasses.replace(views, author=np.where(late, 0, views.author).astype(np.int32)))
    few = dataclasses.replace(SHORT, steps=3, validate_every=3)
    scores = []
    for number, log in enumerate((LOG, other)):
        baseline = made(name, tmp_path / str(number) / name, few)
        baseline.fit(log, VALIDATION)
        baseline.views = LOG.views
        scores.append(baseline.score(TEST[0]))
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5, atol=1e-6)


def test_a_killed_run_resumes_to_the_same_parameters(tmp_path):
    whole, halves = made("sasrec", tmp_path / "whole"), made("sasrec", tmp_path / "halves")
    whole.fit(LOG, VALIDATION)
    stop, calls = RuntimeError("killed"), []
    make = histories.Epochs.batch

    def killed(self, step):
        calls.append(step)
        if len(calls) == 80:
            raise stop
        return make(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histories.Epochs, "batch", killed)
        with pytest.raises(RuntimeError):
            halves.fit(LOG, VALIDATION)
    halves.fit(LOG, VALIDATION)
    np.testing.assert_array_equal(whole.score(TEST[0]), halves.score(TEST[0]))
    with pytest.raises(ValueError, match="other settings.*training"):
        made("sasrec", tmp_path / "whole", dataclasses.replace(SHORT, steps=7)).fit(LOG, VALIDATION)


def test_packing_keeps_every_pair_once_and_keeps_people_apart():
    views = chains(people=7, length=9)
    rows = histories.pack(views, 5, np.random.default_rng(0))
    there = rows.weight > 0
    assert there.sum() == 7 * 8
    np.testing.assert_array_equal((rows.item[there] + 1) % AUTHORS, rows.target[there])
    assert ((rows.segment > 0) == there).all()
    # Within a row a sequence stands in one piece, its places counted from 0.
    for row in range(there.shape[0]):
        for segment in range(1, rows.segment[row].max() + 1):
            at = np.flatnonzero(rows.segment[row] == segment)
            assert (np.diff(at) == 1).all()
            assert rows.place[row, at].tolist() == list(range(at.size))


def test_a_person_beside_others_in_a_row_is_scored_as_alone(tmp_path):
    """What is packed beside a sequence has no influence on it: training and scoring see the same hidden states."""
    baseline = made("sasrec", tmp_path / "sasrec", dataclasses.replace(SHORT, steps=2, validate_every=2))
    baseline.fit(LOG, VALIDATION)
    rows = histories.pack(LOG.training_part().views, 8, np.random.default_rng(0))
    apply = baseline.model.apply
    together = apply({"params": baseline.params}, rows.item, rows.segment, rows.place)
    row, segment = 0, int(rows.segment[0, 0])
    at = np.flatnonzero(rows.segment[row] == segment)
    item = np.zeros((1, 8), np.int32)
    item[0, :at.size] = rows.item[row, at]
    there = (np.arange(8) < at.size).astype(np.int32)[None]
    alone = apply({"params": baseline.params}, item, there, np.arange(8)[None])
    np.testing.assert_allclose(together[row, at], alone[0, :at.size], rtol=1e-5, atol=1e-6)


def test_beam_search_over_ids_gives_the_teacher_forced_probabilities(tmp_path):
    """Beams wide enough: a candidate's score is log p of its codes over the ids on air, which here are all codes but
    those that no author has."""
    baseline = made("tiger", tmp_path / "tiger", dataclasses.replace(SHORT, steps=2, validate_every=2))
    baseline.settings = dataclasses.replace(baseline.settings, beams=AUTHORS)
    baseline.fit(LOG, VALIDATION)
    scores = baseline.score(TEST[0]).reshape(-1, AUTHORS)
    np.testing.assert_allclose(np.exp(scores).sum(1), 1.0, rtol=1e-5)
    at, there = histories.last_views(LOG.views, TEST[0].user, TEST[0].time_ms, 8)
    item, model = LOG.views.author[at], baseline.model
    for author in (0, 7):
        target = np.broadcast_to(CODES[author], (*item.shape, 2))
        levels = model.apply({"params": baseline.params}, CODES[item], target, there.astype(np.int32),
                             np.broadcast_to(np.arange(8), item.shape))
        last, expected = there.sum(1) - 1, 0.0
        for level, logits in enumerate(levels):
            logits = np.asarray(logits).reshape(*item.shape, -1)[np.arange(item.shape[0]), last][:, :(3, 4)[level]]
            expected = expected + logits[:, CODES[author, level]] - np.log(np.exp(logits).sum(1))
        np.testing.assert_allclose(scores[:, author], expected, rtol=1e-4, atol=1e-5)


def test_an_own_code_makes_every_id_the_only_one_of_its_kind():
    codes = np.array([[0, 1], [2, 2], [0, 1], [0, 1], [2, 2]])
    made_codes = encoder_decoder.with_own_code(codes)
    np.testing.assert_array_equal(made_codes[:, :2], codes)
    assert made_codes[:, 2].tolist() == [0, 0, 1, 2, 1]
