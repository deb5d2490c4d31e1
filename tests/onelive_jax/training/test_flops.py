"""Analytic FLOPs against a count by hand and against XLA's own."""

import jax
import pytest

from onelive_jax.config import ModelConfig
from onelive_jax.training import flops
from onelive_jax.training.supervised import losses
from tests.onelive_jax.random_batches import AUTHOR_DIM, OneLive, random_batch


def test_a_tiny_model_by_hand():
    config = ModelConfig(dim=4, num_layers=1, num_heads=1, num_groups=1, mlp_dim=8, gate=False, mtp=False, copy=False,
                         habits=False, item_time=False, author_items=False, identity=False)
    parts = flops.forward_flops(config, history=2, levels=2, codes=5, authors=9, author_dim=3)
    # cross q, out; self q, out, k, v: 6 of 4x4. SwiGLU: 3 of 4x8. Cross logits and mix: 2x4 each; self: 2x4 each.
    block = 6 * 16 + 3 * 32 + 2 * 2 * 4 + 2 * 2 * 4
    assert parts == {"decoder": 2 * 2 * block, "modules": 0, "heads": 2 * 2 * 4 * 5, "context": 2 * 2 * 16}
    assert flops.training_flops(config, history=2, levels=2, codes=5, authors=9, author_dim=3) == 3 * sum(
        parts.values())


@pytest.mark.parametrize("changes", [{}, {"mtp": False, "num_layers": 3}])
def test_xla_counts_the_same_within_five_percent_on_an_unscanned_model(changes):
    """Wide enough that element-wise work, which XLA counts and the formula does not, is small."""
    config = ModelConfig(**{"dim": 256, "num_layers": 2, "mlp_dim": 1024, "dropout": 0.0, **changes})
    items, codes, authors, batch = 6, 64, 50, 64
    model = OneLive(config, 3, codes, authors, AUTHOR_DIM)
    example = random_batch(batch=batch, items=items, codes=codes, authors=authors)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), example)["params"])

    def forward(params):
        return model.apply({"params": params}, example)

    def loss(params):
        return losses(*forward(params), example, config)[0]

    want = sum(flops.forward_flops(config, history=items, levels=3, codes=codes, authors=authors,
                                   author_dim=AUTHOR_DIM).values())
    for function, passes in ((forward, 1), (jax.grad(loss), 3)):
        counted = jax.jit(function).lower(params).cost_analysis()["flops"] / batch
        assert counted == pytest.approx(passes * want, rel=0.05), (passes, counted / want)


def test_utilisation():
    assert flops.utilisation(1e3, 989_000_000, 2, "NVIDIA H100 80GB HBM3") == pytest.approx(5e-4)
    assert flops.utilisation(1e3, 10**9, 1, "TPU v5 lite") == pytest.approx(1e12 / 197e12)
    assert flops.utilisation(1e3, 10**9, 1, "cpu") is None
