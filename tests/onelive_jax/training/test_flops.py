"""Counted FLOPs against a count by hand and against XLA's own."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax.core import meta

from onelive_jax import presets
from onelive_jax.config import DecodingConfig, ModelConfig
from onelive_jax.decoding import live_index
from onelive_jax.decoding.recommend import make_recommender
from onelive_jax.training import flops
from onelive_jax.training.supervised import losses
from tests.onelive_jax.random_batches import AUTHOR_DIM, OneLive, random_batch


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, "float32")


def test_products_by_hand():
    a, b = shape(5, 2, 3), shape(5, 3, 7)
    assert flops.count(jnp.matmul, a, b) == 2 * 5 * 2 * 3 * 7
    assert flops.count(lambda x, y: jnp.einsum("bij,bjk->k", x, y), a, b) == 2 * 5 * 3 * 7  # i is summed beforehand
    # Of a gradient: the product itself is not needed, one product for each side is.
    gradient = jax.grad(lambda x, y: jnp.sum(x @ y), argnums=(0, 1))
    assert flops.count(gradient, shape(2, 3), shape(3, 7)) == 2 * 2 * (2 * 3 * 7)


def test_loops_branches_and_what_no_result_needs():
    square = shape(4, 4)
    once = 2 * 4**3
    power = lambda x: jax.lax.scan(lambda y, _: (y @ x, None), x, length=5)[0]  # noqa: E731
    assert flops.count(power, square) == 5 * once
    assert flops.count(jax.jit(jax.checkpoint(power)), square) == 5 * once
    branches = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)  # noqa: E731
    assert flops.count(branches, square) == 2 * once
    unused = lambda x: jax.lax.scan(lambda y, _: (y @ x, jnp.sum(x @ x)), x, length=5)[0]  # noqa: E731
    assert flops.count(lambda x: (x @ x, unused(x))[1], square) == 5 * once


def arguments(config: ModelConfig, items: int, codes: int, authors: int, **more):
    """(model, shapes of its parameters, an example)."""
    model = OneLive(config, 3, codes, authors, AUTHOR_DIM)
    example = random_batch(batch=1, items=items, codes=codes, authors=authors, **more)
    return model, jax.eval_shape(lambda: meta.unbox(model.init(jax.random.key(0), example)["params"])), example


def test_scanning_rematerialisation_and_dropout_change_no_count():
    small = ModelConfig(num_layers=3, mtp=False, dropout=0.0)
    scanned = dataclasses.replace(small, scan_layers=True, remat="full", attention="dot_product", dropout=0.2)
    assert flops.training_flops(*arguments(scanned, 6, 16, 50), 4) == flops.training_flops(
        *arguments(small, 6, 16, 50), 4)


def compared(config: ModelConfig, batch: int, items: int, codes: int, authors: int) -> tuple[float, float]:
    """XLA's count over ours, of the forward pass and of the gradient; nothing is compiled or run."""
    model, params, example = arguments(config, items, codes, authors)
    examples = flops.with_rows(example, batch)

    def forward(params, example):
        return model.apply({"params": params}, example)

    def loss(params, example):
        return losses(*forward(params, example), example, config)[0]

    def xla(function):
        return jax.jit(function).lower(params, examples).cost_analysis()["flops"]

    return (xla(forward) / flops.count(forward, params, examples),
            xla(jax.grad(loss)) / (batch * flops.training_flops(model, params, example, batch)))


@pytest.mark.parametrize("changes", [{}, {"mtp": False, "num_layers": 3}])
def test_xla_counts_the_same_within_five_percent_on_an_unscanned_model(changes):
    """Wide enough that element-wise work, which XLA counts and we do not, is small."""
    config = ModelConfig(**{"dim": 256, "num_layers": 2, "mlp_dim": 1024, "dropout": 0.0, **changes})
    assert compared(config, 64, 6, 64, 50) == pytest.approx((1.0, 1.0), rel=0.05)


def unscanned(name: str) -> ModelConfig:
    return dataclasses.replace(presets.preset(name).model, scan_layers=False, remat="none", dropout=0.0,
                               activation_dtype="float32")


def test_xla_counts_the_same_at_the_size_of_a_preset():
    """At T = 256 and K = 8192 copying matters. XLA counts element-wise work too, so its count is the larger one."""
    forward, gradient = compared(unscanned("0.04b"), 128, 256, presets.CODES, 20_000)
    assert 1.0 <= forward < 1.05
    assert 1.0 <= gradient < 1.05


@pytest.mark.parametrize("mtp", [True, False])
def test_xla_counts_the_same_of_decoding(mtp):
    config, batch, rooms, beams = dataclasses.replace(unscanned("0.04b"), mtp=mtp), 16, 256, 32
    model, params, example = arguments(config, 256, presets.CODES, 300, rooms=rooms)
    index = live_index.from_rooms(jax.tree.map(lambda x: x[0], example.live), presets.CODES)
    decoding = DecodingConfig(beams=beams, capacity=rooms)
    xla = make_recommender(model, decoding).lower(params, flops.with_rows(example.request, batch), index)
    xla = xla.cost_analysis()["flops"] / batch
    want = flops.decoding_flops(model, decoding, params, example.request, index, batch)
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
