"""What baselines are made of: runs that resume, packed rows, beam search over ids."""

import dataclasses

import numpy as np
import pytest

from experiments.baselines import encoder_decoder, histories
from tests.experiments.baselines.rings import AUTHORS, CODES, LOG, SHORT, TEST, VALIDATION, chains, made


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
