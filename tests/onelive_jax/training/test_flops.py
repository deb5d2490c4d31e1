"""Analytic FLOPs against a count by hand and against XLA's own."""

import dataclasses

import jax
import pytest

from onelive_jax import presets
from onelive_jax.config import DecodingConfig, ModelConfig
from onelive_jax.decoding import live_index
from onelive_jax.decoding.recommend import make_recommender
from onelive_jax.training import flops
from onelive_jax.training.supervised import losses
from tests.onelive_jax.random_batches import AUTHOR_DIM, OneLive, random_batch

PLAIN = ModelConfig(dim=4, num_layers=1, num_heads=1, num_groups=1, mlp_dim=8, gate=False, mtp=False, copy=False,
                    habits=False, item_time=False, request_time=False, author_items=False, identity=False)
SIZES = {"history": 2, "levels": 2, "codes": 5, "authors": 9, "author_dim": 3}


def test_a_tiny_model_by_hand():
    parts = flops.forward_flops(PLAIN, **SIZES)
    # cross q, out; self q, out, k, v: 6 of 4x4. SwiGLU: 3 of 4x8. Cross logits and mix: 2x4 each; self: 2x4 each.
    block = 6 * 16 + 3 * 32 + 2 * 2 * 4 + 2 * 2 * 4
    assert parts == {"decoder": 2 * 2 * block, "modules": 0, "heads": 2 * 2 * 4 * 5, "context": 2 * 2 * 16}
    assert flops.training_flops(PLAIN, **SIZES) == 3 * sum(parts.values())


@pytest.mark.parametrize("switch, part, products, data", [
    # Two items: habits 10 features to 4, then 4 to 4; times pick of 47 rows of 4, then 4 to 4.
    ("habits", "context", 2 * (10 * 4 + 4 * 4), 2 * 10 * 4),
    ("item_time", "context", 2 * (47 * 4 + 4 * 4), 2 * 47 * 4),
    ("author_items", "context", 2 * 3 * 4, 0),
    ("request_time", "request", 47 * 4 + 4 * 4, 47 * 4),
    # Keys of two items. Two states predict a code: query, score of two items, mass of five codes.
    ("copy", "copy", 2 * 4 * 32 + 2 * (4 * 32 + 2 * 32 + 2 * 5), 2 * 2 * 5),
    ("identity", "identity", 4 * 3 + 3 * 9, 0)])
def test_what_a_switch_adds_by_hand(switch, part, products, data):
    """`data`: products with data on one side, whose gradient is one product and not two."""
    config = dataclasses.replace(PLAIN, **{switch: True})
    before, after = flops.forward_flops(PLAIN, **SIZES), flops.forward_flops(config, **SIZES)
    assert after[part] - before.get(part, 0) == 2 * products
    assert sum(after.values()) - sum(before.values()) == 2 * products
    assert flops.training_flops(config, **SIZES) - flops.training_flops(PLAIN, **SIZES) == 6 * products - 2 * data


def test_copying_authors_and_drawing_them_by_hand():
    both = dataclasses.replace(PLAIN, copy=True, identity=True)
    # The identity head's own copy score: one query, scores and keys of two items.
    assert flops.forward_flops(both, **SIZES)["identity"] == 2 * (4 * 3 + 3 * 9 + 4 * 32 + 2 * 32 + 2 * 4 * 32)
    drawn = dataclasses.replace(PLAIN, identity=True, author_negatives=6)
    assert flops.forward_flops(drawn, **SIZES)["identity"] == 2 * (4 * 3 + 3 * 7)
    all_of_them = dataclasses.replace(drawn, author_negatives=9)
    assert flops.forward_flops(all_of_them, **SIZES)["identity"] == 2 * (4 * 3 + 3 * 9)


def counted(config: ModelConfig, batch: int, items: int, codes: int, authors: int) -> tuple[float, float]:
    """XLA's count over the formula, of the forward pass and of the gradient; nothing is compiled or run."""
    model = OneLive(config, 3, codes, authors, AUTHOR_DIM)
    example = random_batch(batch=batch, items=items, codes=codes, authors=authors)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), example)["params"])
    sizes = {"history": items, "levels": 3, "codes": codes, "authors": authors, "author_dim": AUTHOR_DIM}

    def forward(params, example):
        return model.apply({"params": params}, example)

    def loss(params, example):
        return losses(*forward(params, example), example, config)[0]

    def xla(function):
        return jax.jit(function).lower(params, example).cost_analysis()["flops"] / batch

    return (xla(forward) / sum(flops.forward_flops(config, **sizes).values()),
            xla(jax.grad(loss)) / flops.training_flops(config, **sizes))


@pytest.mark.parametrize("changes", [{}, {"mtp": False, "num_layers": 3}])
def test_xla_counts_the_same_within_five_percent_on_an_unscanned_model(changes):
    """Wide enough that element-wise work, which XLA counts and the formula does not, is small."""
    config = ModelConfig(**{"dim": 256, "num_layers": 2, "mlp_dim": 1024, "dropout": 0.0, **changes})
    assert counted(config, 64, 6, 64, 50) == pytest.approx((1.0, 1.0), rel=0.05)


def unscanned(name: str) -> ModelConfig:
    return dataclasses.replace(presets.preset(name).model, scan_layers=False, remat="none", dropout=0.0,
                               activation_dtype="float32")


def test_xla_counts_the_same_at_the_size_of_a_preset():
    """At T = 256 and K = 8192 copying matters. XLA counts element-wise work too, so its count is the larger one."""
    forward, gradient = counted(unscanned("0.04b"), 128, 256, presets.CODES, 20_000)
    assert 1.0 <= forward < 1.05
    assert 1.0 <= gradient < 1.05


@pytest.mark.parametrize("mtp", [True, False])
def test_xla_counts_the_same_of_decoding(mtp):
    config, batch, rooms, beams = dataclasses.replace(unscanned("0.04b"), mtp=mtp), 16, 256, 32
    model = OneLive(config, 3, presets.CODES, 300, AUTHOR_DIM)
    example = random_batch(batch=batch, items=256, codes=presets.CODES, authors=300, rooms=rooms)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), example)["params"])
    index = live_index.from_rooms(jax.tree.map(lambda x: x[0], example.live), presets.CODES)
    recommend = make_recommender(model, DecodingConfig(beams=beams, capacity=rooms))
    xla = recommend.lower(params, example.request, index).cost_analysis()["flops"] / batch
    want = flops.decoding_flops(config, history=256, levels=3, codes=presets.CODES, author_dim=AUTHOR_DIM, beams=beams,
                                rooms=rooms)
    assert 1.0 <= xla / want < 1.05


def test_utilisation():
    assert flops.utilisation(1e3, 989_000_000, 2, "NVIDIA H100 80GB HBM3") == pytest.approx(5e-4)
    assert flops.utilisation(1e3, 10**9, 1, "TPU v5 lite") == pytest.approx(1e12 / 197e12)
    assert flops.utilisation(1e3, 10**9, 1, "cpu") is None


@pytest.mark.parametrize("kind, tera", [
    ("TPU v4", 275), ("TPU v4 lite", 138), ("TPU v5", 459), ("TPU v5p", 459), ("TPU v5e", 197), ("TPU v5 lite", 197),
    ("TPU v6e", 918), ("TPU v6 lite", 918), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756),
    ("NVIDIA H100 NVL", 835), ("NVIDIA H200", 989), ("NVIDIA H200 NVL", 835), ("NVIDIA A100-SXM4-80GB", 312)])
def test_peaks_by_the_names_that_jax_gives(kind, tera):
    assert flops.peak_flops(kind) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize("kind", ["cpu", "TPU v3", "TPU7x", "Tesla V100-SXM2-16GB", "NVIDIA H20", "NVIDIA L4",
                                  "NVIDIA H100 80GB HBM3 MIG 1g.10gb"])
def test_devices_without_a_known_peak(kind):
    assert flops.peak_flops(kind) is None
