"""A recommender that was exported answers as the one it was made of, and decoding lowers for every platform."""

import numpy as np
import pytest
from jax import export

from onelive_jax.decoding import exporting, live_index
from onelive_jax.decoding.recommend import make_recommender
from tests.onelive_jax.decoding.test_recommend import ALL, K, model_and_arrays

pytest.importorskip("flatbuffers", reason="needs requirements/serve.txt")


def test_an_artefact_for_three_platforms_answers_as_its_recommender():
    model, params, request, rooms = model_and_arrays()
    recommend, index = make_recommender(model, ALL), live_index.from_rooms(rooms, K)
    blob, inputs = exporting.export_recommender(recommend, params, request, rooms, K)
    loaded = export.deserialize(blob)
    assert loaded.platforms == ("cpu", "cuda", "tpu")
    assert len({name for name, _ in inputs}) == len(inputs)
    assert {name.split("/")[0] for name, _ in inputs} == {"params", "request", "rooms"}
    want, got = recommend(params, request, index), loaded.call(*(value for _, value in inputs))
    for name, value in zip(exporting.OUTPUTS, got, strict=True):
        np.testing.assert_allclose(value, getattr(want, name), rtol=1e-4, atol=1e-5)
