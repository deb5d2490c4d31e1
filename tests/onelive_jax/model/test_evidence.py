"""The evidence head against hand-worked inputs, and the shared catalogue against one given to every request."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onelive_jax.batch import HABIT_FEATURES, ROOM_FEATURES
from onelive_jax.model.evidence import RATE, EvidenceHead
from onelive_jax.model.layers import NEG_INF, Context
from tests.onelive_jax.random_batches import AUTHORS, BATCH, random_batch, random_params, small_config

DATA = random_batch(3)
HISTORY = DATA.request.histories["live"]
CONTEXT = Context(None, None, None, HISTORY.author, HISTORY.codes, HISTORY.habits, HISTORY.mask)


@pytest.fixture(scope="module")
def head():
    module = EvidenceHead(small_config(), AUTHORS)
    params = random_params(module, DATA.request, CONTEXT, DATA.live)
    return params, jax.jit(lambda rooms: module.apply({"params": params}, DATA.request, CONTEXT, rooms))


def by_hand(params, rooms, b: int, n: int) -> float:
    """Score of one room from what the arrays say of it."""
    author, features = rooms.author[b, n], rooms.features[b, n]
    items = [t for t in range(HISTORY.author.shape[1]) if HISTORY.mask[b, t] and HISTORY.author[b, t] == author]
    habits = HISTORY.habits[b, items[-1]] if items else np.zeros(len(HABIT_FEATURES))
    begun = features[ROOM_FEATURES.index("log_age")]
    seen = bool(items) and habits[HABIT_FEATURES.index("log_gap")] <= begun + 1e-5
    place = np.flatnonzero(DATA.request.related[b] == author)
    similarity = DATA.request.similarity[b, place[0]] if place.size else np.zeros(DATA.request.similarity.shape[-1])
    x = (features @ params["room"] + np.append(bool(items), habits) @ params["habits"] + seen * params["seen"][0]
         + similarity @ params["similar"] + params["bias"])
    silu = lambda x: RATE * x / (1 + np.exp(-RATE * x))  # noqa: E731
    return float((RATE * silu(silu(x) @ params["hidden"] + params["hidden_bias"]) @ params["out"])[0])


def test_scores_by_hand(head):
    params, score = head
    made, cases = np.asarray(score(DATA.live)), set()
    for b, n in np.ndindex(*DATA.live.author.shape):
        if not DATA.live.mask[b, n]:
            assert made[b, n] == np.float32(NEG_INF)
            continue
        np.testing.assert_allclose(made[b, n], by_hand(params, DATA.live, b, n), rtol=1e-3, atol=1e-3)
        author = DATA.live.author[b, n]
        cases.add((author in HISTORY.author[b][HISTORY.mask[b]], author in DATA.request.related[b]))
    assert len(cases) == 4  # watched or not, related or not


def test_a_shared_catalogue_scores_as_one_given_to_every_request(head):
    """Every room of a catalogue [1, N], also of authors whom only some of the histories name."""
    _, score = head
    one = jax.tree.map(lambda x: x[:1], DATA.live)
    each = jax.tree.map(lambda x: np.repeat(x[:1], BATCH, 0), DATA.live)
    made = score(one)
    assert made.shape == each.author.shape
    np.testing.assert_allclose(made, score(each), rtol=1e-4, atol=1e-4)
    assert np.ptp(np.asarray(made), axis=0).max() > 1e-2


def test_who_has_no_history_is_told_by_the_rooms_alone(head):
    _, score = head
    nobody = DATA.request.replace(related=np.full_like(DATA.request.related, -1),
                                  similarity=np.zeros_like(DATA.request.similarity))
    module_context = CONTEXT.replace(mask=np.zeros_like(HISTORY.mask))
    params = head[0]
    made = EvidenceHead(small_config(), AUTHORS).apply({"params": params}, nobody, module_context,
                                                       jax.tree.map(lambda x: jnp.asarray(x[:1]), DATA.live))
    assert np.isfinite(made).all()
    np.testing.assert_array_equal(made[0], made[1])
