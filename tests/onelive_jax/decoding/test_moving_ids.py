"""New segments, new codes, the same live index: from content to a search that sees it, and nothing compiled again."""

import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from onelive_jax.config import TokenizerConfig
from onelive_jax.decoding import beam_search
from onelive_jax.serving.catalogue import LiveCatalogue
from onelive_jax.tokenizer import residual_kmeans, semantic_ids, tower_training
from onelive_jax.tokenizer.encoder import Encoder, Towers
from onelive_jax.tokenizer.towers import TwoTowers

AUTHORS, LEVELS, CODES, DIM = 12, 3, 4, 6
CONFIG = TokenizerConfig(levels=LEVELS, codes=CODES, dim=DIM, hidden=8)


def test_a_search_sees_the_codes_of_new_segments_and_nothing_is_compiled_again(caplog):
    rng = np.random.default_rng(0)
    params = nn.unbox(tower_training.boxed_params(TwoTowers(AUTHORS, CONFIG), 0, 10))
    books = residual_kmeans.Codebooks(jnp.asarray(0.4 * rng.normal(size=(LEVELS, CODES, DIM)), jnp.float32))

    encode = Encoder(Towers(params, CONFIG, np.arange(AUTHORS)), books).codes

    def level_logits(level, state, previous, prefix):
        return 20.0 * jax.nn.one_hot(state["wanted"][..., level], CODES), state

    @jax.jit
    def search(index, wanted):
        return beam_search.decode(level_logits, {"wanted": jnp.broadcast_to(wanted, (1, 1, LEVELS))}, index,
                                  beam_search.Search(beams=8, k=AUTHORS), batch=1)

    everyone = np.arange(AUTHORS, dtype=np.int32)
    table = semantic_ids.IdTable.static(encode(everyone, rng.normal(size=(AUTHORS, 10))))
    catalogue = LiveCatalogue(AUTHORS, LEVELS, CODES, AUTHORS)
    for author in everyone.tolist():
        catalogue.put_on_air(author, author, table.codes[author])
    moved = 0
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for minute in range(12):
            if minute == 3:
                # By now every program has run once; `search` is compiled here, whatever ran before this test.
                assert any("Compiling" in record.getMessage() for record in caplog.records)
                caplog.clear()
            segments = rng.choice(AUTHORS, 5, replace=False).astype(np.int32)
            new = encode(segments, rng.normal(size=(5, 10)))
            table, late, changed = table.extend(segments, np.full(5, 60_000 * minute), new)
            assert late == 0
            moved += len(changed)
            for author, codes in zip(changed.tolist(), table.codes_at(changed, 60_000 * minute), strict=True):
                catalogue.change_codes(author, codes)
            wanted = new[0]
            best = search(catalogue.snapshot().index, jnp.asarray(wanted))
            assert bool(best.valid[0, 0])
            np.testing.assert_array_equal(best.codes[0, 0], wanted)
            found = set(np.asarray(best.author[0])[(np.asarray(best.codes[0]) == wanted).all(axis=1)].tolist())
            now = table.codes_at(everyone, 60_000 * minute)
            assert found == set(np.flatnonzero((now == wanted).all(axis=1)).tolist())
            assert int(segments[0]) in found
    assert moved > 20
    assert [record for record in caplog.records if "Compiling" in record.getMessage()] == []
