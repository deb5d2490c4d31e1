"""Eight devices give what one gives, for everything that runs on a mesh: results, shardings, what travels.

Each step is a function (mesh) → tree of results; what it prepares must not depend on the mesh. Meshes in which an axis
is 1 are tried with one step each.

Gradients are read off Adam's first moment: after the first step it is (1 − b1) = 0.1 of them, as nothing is clipped.

Axes: R rows of a table. All sizes that the compiled program is searched for differ from each other.
"""

import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from onelive_jax.alignment.policy_step import make_policy_optimizer, make_policy_step, with_reference
from onelive_jax.batch import Feedback
from onelive_jax.config import (
    AlignmentConfig,
    Config,
    DecodingConfig,
    MeshConfig,
    RewardConfig,
    TokenizerConfig,
    TrainingConfig,
)
from onelive_jax.decoding.live_index import from_rooms
from onelive_jax.decoding.recommend import make_recommender
from onelive_jax.model.onelive import OneLive
from onelive_jax.reward.model import RewardModel
from onelive_jax.reward.reward_step import make_reward_optimizer, make_reward_step, with_objectives
from onelive_jax.reward.rewards import make_reward
from onelive_jax.sharding import partitioning
from onelive_jax.sharding.placement import on_mesh
from onelive_jax.tokenizer import kmeans
from onelive_jax.tokenizer.tower_training import ViewLog, train_towers
from onelive_jax.tokenizer.towers import TwoTowers, info_nce
from onelive_jax.training import supervised, train_state
from tests.onelive_jax.random_batches import random_batch, random_params, small_config

LEVELS, CODES, AUTHORS, AUTHOR_DIM, BATCH, DIM = 2, 40, 88, 8, 8, 16
UNCLIPPED = TrainingConfig(warmup_steps=0, clip_norm=1e9)


def supervised_step(mesh):
    """A whole step in two microbatches: loss, metrics, gradients, shardings."""
    # 48 rows: the 3, 6, 12 or 24 of them that a device or a microbatch holds are no size of a table.
    config = Config(model=small_config(scan_layers=True, num_layers=2, context_sets=2),
                    training=replace(UNCLIPPED, accumulate=2, batch_size=6 * BATCH))
    model = on_mesh(OneLive(config.model, LEVELS, CODES, AUTHORS, AUTHOR_DIM), mesh)
    rows = config.training.batch_size
    partitioning.local_rows(mesh, rows, config.training.accumulate)  # the batch can be split so
    batch, tx = random_batch(batch=rows, levels=LEVELS, codes=CODES, authors=AUTHORS), train_state.make_optimizer(
        config.training)

    def init_params(key):
        return model.init(key, batch)["params"]

    abstract = train_state.abstract_state(init_params, tx, mesh)
    shardings = train_state.shardings(abstract)
    params = random_params(model, batch)
    state = jax.device_put(train_state.TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jax.random.key(0)),
                           shardings)
    step = jax.jit(supervised.make_train_step(model, tx, config), donate_argnums=0,
                   in_shardings=(shardings, partitioning.batch_sharding(mesh)),
                   out_shardings=(shardings, partitioning.replicated(mesh)))
    placed = partitioning.put_batch(batch, mesh)
    compiled = step.lower(state, placed).compile()
    check_tables_stay_apart(compiled.as_text(), mesh)
    check_specs(abstract, init_params, mesh)
    check_examples(abstract, mesh)
    before = state
    state, metrics = jax.block_until_ready(compiled(state, placed))
    # Compiled once: this program refuses any other shape or sharding, and takes its own output.
    grads = gradients(state)
    state, _ = jax.block_until_ready(compiled(state, placed))
    assert jax.tree.map(lambda x: x.sharding, state) == shardings
    # The state is updated in place, on every device.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state)))
    aliased = compiled.memory_analysis().alias_size_in_bytes
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert aliased >= held, (aliased, held)
    return metrics, grads


def gradients(state):
    """The gradients of the first step, on the host."""
    return jax.tree.map(lambda mu: mu / np.float32(0.1), jax.device_get(optax.tree_utils.tree_get(state.opt_state,
                                                                                                  "mu")))


def check_tables_stay_apart(program: str, mesh, author_widths=(1, AUTHOR_DIM)) -> None:
    """No collective yields more rows of a table than a device has of its own: code table and heads (of one level or of
    all) are split over tensor, authors and their biases over fsdp and tensor. (Columns of codes are split over fsdp,
    and gathered.) author_widths: columns that a table of authors may have, beside none."""
    tensor, parts = mesh.shape["tensor"], mesh.shape["fsdp"] * mesh.shape["tensor"]
    if tensor == 1:
        return
    rows = {AUTHORS // k for k in range(1, parts) if parts % k == 0}
    widths, all_codes = {DIM, DIM // mesh.shape["fsdp"]}, {CODES, LEVELS * CODES}
    collectives = re.findall(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\(", program)
    assert collectives
    for result, kind in collectives:
        for shape in re.findall(r"\[([\d,]+)\]", result):
            sizes = [int(size) for size in shape.split(",")]
            pair = tuple(sizes[-2:])
            assert not (pair[0] in all_codes and pair[-1] in widths), (kind, result)
            assert not (pair[0] in widths and pair[-1] in all_codes), (kind, result)
            assert not (pair[0] in rows and pair[1:] in ((), *((width,) for width in author_widths))), (kind, result)


def check_specs(abstract, init_params, mesh) -> None:
    """Every parameter, and both moments of each, is split as RULES say of the names that its axes were given."""
    boxed = jax.tree.leaves(jax.eval_shape(init_params, jax.random.key(0)),
                            is_leaf=lambda x: isinstance(x, meta.Partitioned))
    trees = (abstract.params, optax.tree_utils.tree_get(abstract.opt_state, "mu"),
             optax.tree_utils.tree_get(abstract.opt_state, "nu"))
    several = 0
    for tree in trees:
        for (path, leaf), box in zip(jax.tree_util.tree_leaves_with_path(tree), boxed, strict=True):
            held = leaf.sharding.shard_shape(leaf.shape)
            names = box.names if isinstance(box, meta.Partitioned) else (None,) * leaf.ndim
            expected = NamedSharding(mesh, expected_spec(names, leaf.shape, mesh))
            assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), (path, names, leaf.sharding)
            assert leaf.sharding.mesh == mesh
            several += held != leaf.shape
    assert several or mesh.shape["fsdp"] * mesh.shape["tensor"] == 1
    for leaf in jax.tree.leaves(abstract):
        assert leaf.sharding.mesh == mesh


def expected_spec(names, shape, mesh) -> P:
    """What RULES say of one array: each axis takes the longest beginning of its mesh axes that divides its length,
    of those that no axis before it took."""
    spec, free = [], {axis for axis in partitioning.MESH_AXES if mesh.shape[axis] > 1}
    for name, size in zip(names, shape, strict=True):
        rule = dict(partitioning.RULES)[name] if name else None
        asked = [axis for axis in ([rule] if isinstance(rule, str) else rule or ()) if axis in free]
        taken = max((n for n in range(len(asked) + 1)
                     if size % np.prod([mesh.shape[axis] for axis in asked[:n]], initial=1) == 0), default=0)
        taken = asked[:taken] if size > 1 else []
        free -= set(taken)
        spec.append(tuple(taken) or None)
    return P(*spec)


def check_examples(abstract, mesh) -> None:
    """By hand, for the tables and for one matrix of each kind: what a wrong name would let pass above."""
    def split(spec: P) -> P:
        return P(*(_present(entry, mesh) for entry in spec))

    want = {"code_table": P(None, "tensor", "fsdp"), "heads": P(None, "fsdp", "tensor"), "bos": P("fsdp"),
            "author_table": P(("fsdp", "tensor"), None), "head_bias": P(None, "tensor"),
            "decoder/blocks/cross/query/w": P(None, "fsdp", "tensor", None),
            "decoder/blocks/self/output/out": P(None, "tensor", None, "fsdp"),
            "decoder/blocks/mlp/up": P(None, "fsdp", "tensor"), "decoder/blocks/mlp/down": P(None, "tensor", "fsdp"),
            "decoder/blocks/mlp_norm/scale": P(None, "fsdp"), "mtp_0/merge": P(None, "fsdp"),
            "context_projector/keys_values": P("fsdp", None, "tensor", None)}
    for tree in (abstract.params, optax.tree_utils.tree_get(abstract.opt_state, "mu"),
                 optax.tree_utils.tree_get(abstract.opt_state, "nu")):
        leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
                  for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for name, spec in want.items():
            expected = NamedSharding(mesh, split(spec))
            assert leaves[name].sharding.is_equivalent_to(expected, leaves[name].ndim), (name, leaves[name].sharding)


def _present(entry, mesh):
    axes = () if entry is None else (entry,) if isinstance(entry, str) else entry
    return tuple(axis for axis in axes if mesh.shape[axis] > 1) or None


def tower_step(mesh):
    """InfoNCE over the whole batch and its gradients."""
    config, rng = TokenizerConfig(dim=DIM, hidden=24, history_items=3, batch_size=BATCH), np.random.default_rng(0)
    model = TwoTowers(AUTHORS, config)

    def described(*shape):
        return {"author": rng.integers(0, AUTHORS, shape, dtype=np.int32),
                "views": rng.integers(0, 9, shape).astype(np.float32),
                "content": rng.normal(size=(*shape, 6)).astype(np.float32), "has_content": rng.random(shape) < 0.7}

    pair, history = described(BATCH), described(BATCH, 3) | {"mask": rng.random((BATCH, 3)) < 0.8}
    params = random_params(model, pair, history)
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), pair, history)["params"])
    shardings = partitioning.logical_to_sharding(boxed, mesh)

    def loss(params, pair, history):
        user, author, temperature = model.apply({"params": params}, pair, history)
        return info_nce(user, author, temperature, pair["author"], jnp.zeros(BATCH), jnp.ones(BATCH))

    step = jax.jit(jax.value_and_grad(loss), in_shardings=(shardings, *(partitioning.batch_sharding(mesh),) * 2),
                   out_shardings=(partitioning.replicated(mesh), shardings))
    arguments = jax.device_put(params, shardings), *partitioning.put_batch((pair, history), mesh)
    compiled = step.lower(*arguments).compile()
    check_tables_stay_apart(compiled.as_text(), mesh, (DIM,))
    return compiled(*arguments), tower_losses(mesh)


def tower_losses(mesh):
    """Losses of a few steps of `train_towers`. (Not its parameters: the first steps of Adam are the signs of gradients,
    and one that is all but zero may have either.)"""
    rng, people, each = np.random.default_rng(1), 12, 15
    config = TokenizerConfig(dim=DIM, hidden=24, history_items=3, batch_size=BATCH + 3, steps=4, learning_rate=1e-2)
    author = rng.integers(0, AUTHORS, people * each, dtype=np.int32)
    if mesh.size == 1:  # what other meshes have to round down to
        config.batch_size = BATCH
    log = ViewLog(np.arange(people + 1) * each, author, AUTHORS, content=rng.normal(size=(40, 6)).astype(np.float32),
                  content_row=rng.integers(-1, 40, people * each))
    result = train_towers(log, config, mesh=mesh)
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(result.towers.params))
    return result.losses


def reward_step(mesh):
    """A step of the reward model: losses, base rates and gradients."""
    config = Config(reward=RewardConfig(dim=DIM, num_heads=2, mlp_dim=24, tower_dim=6, dropout=0.0, warmup_steps=0),
                    training=UNCLIPPED)
    model = on_mesh(RewardModel(config.reward, LEVELS, CODES, AUTHORS, AUTHOR_DIM, ("click", "gift")), mesh)
    batch, rng = random_batch(batch=BATCH, levels=LEVELS, codes=CODES, authors=AUTHORS), np.random.default_rng(0)
    rooms, blank = batch.live, np.zeros(batch.live.mask.shape, np.float32)
    outcomes = (rng.random((*rooms.mask.shape, 2)) < 0.4).astype(np.float32)
    known = np.broadcast_to(rooms.mask[..., None], outcomes.shape)
    feedback = Feedback(request=batch.request, rooms=rooms, outcomes=outcomes * known, known=known, reward=blank,
                        rewarded=blank > 0, propensity=blank, weight=np.ones(BATCH, np.float32))
    tx = make_reward_optimizer(config)

    def init_params(key):
        return model.init(key, batch.request, rooms)["params"]

    state, metrics = one_step(make_reward_step(model, tx, config), init_params,
                              random_params(model, batch.request, rooms), tx, mesh, feedback,
                              extend=lambda state: with_objectives(state, 2))
    return metrics, gradients(state), state.base_rate_O


def policy_step(mesh):
    """A step of alignment, policy term included: metrics and gradients. The reference lies as the parameters do, and
    the reward model is split as they are."""
    # What the supervised step has tried is left out: compiling takes the time here.
    config = Config(model=small_config(mtp=False, copy=False, habits=False, seen=False, gate=False, item_time=False,
                                       request_time=False, room_features=False, author_negatives=12),
                    alignment=AlignmentConfig(share=1.0, group_size=3, beams=4, warmup_steps=0),
                    training=UNCLIPPED)
    model = on_mesh(OneLive(config.model, LEVELS, CODES, AUTHORS, AUTHOR_DIM), mesh)
    batch, tx = random_batch(batch=BATCH, levels=LEVELS, codes=CODES, authors=AUTHORS), make_policy_optimizer(
        config)
    scorer = on_mesh(RewardModel(RewardConfig(dim=DIM, num_heads=2, mlp_dim=24, tower_dim=6), LEVELS, CODES, AUTHORS,
                                 AUTHOR_DIM, ("click", "gift")), mesh)
    described = batch.request, batch.live
    where = partitioning.logical_to_sharding(jax.eval_shape(scorer.init, jax.random.key(0), *described)["params"], mesh)
    scorer_params = jax.device_put(random_params(scorer, *described), where)
    step = make_policy_step(model, tx, config, make_reward("model", scorer))

    def init_params(key):
        return model.init(key, batch)["params"]

    abstract = train_state.abstract_state(init_params, tx, mesh, with_reference)
    assert train_state.shardings(abstract.reference) == train_state.shardings(abstract.params)
    state, metrics = one_step(step, init_params, random_params(model, batch), tx, mesh, batch, (scorer_params, where),
                              extend=with_reference)
    assert metrics["policy_requests"] == BATCH
    return metrics, gradients(state)


def one_step(step, init_params, params, tx, mesh, batch, *more, extend=lambda state: state):
    """(state, metrics) after one step from `params`, sharded as a run shards it. more: further (argument, sharding).
    extend: adds the fields of a phase's own state."""
    abstract = train_state.abstract_state(init_params, tx, mesh, extend)
    check_specs(abstract, init_params, mesh)
    shardings = train_state.shardings(abstract)
    state = train_state.TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jax.random.key(0))
    state = jax.device_put(extend(state), shardings)
    places = partitioning.batch_sharding(mesh), *(where for _, where in more)
    step = jax.jit(step, donate_argnums=0, in_shardings=(shardings, *places),
                   out_shardings=(shardings, partitioning.replicated(mesh)))
    arguments = partitioning.put_batch(batch, mesh), *(value for value, _ in more)
    compiled = step.lower(state, *arguments).compile()
    check_tables_stay_apart(compiled.as_text(), mesh)
    state, metrics = compiled(state, *arguments)
    compiled(jax.tree.map(jnp.copy, state), *arguments)  # compiled once: the program takes its own output
    return state, metrics


def kmeans_step(mesh):
    """Three Lloyd iterations over points split over data and fsdp."""
    points = np.random.default_rng(0).normal(size=(203, DIM)).astype(np.float32)
    blocks = kmeans.make_blocks(points, 8, mesh=mesh)
    return kmeans.lloyd(blocks, jnp.asarray(points[:8]), 3)


def decoding_step(mesh):
    """Beam search over one catalogue shared by a batch that is split over devices."""
    config = small_config(scan_layers=True, num_layers=2, mtp=False)
    model = on_mesh(OneLive(config, LEVELS, CODES, AUTHORS, AUTHOR_DIM), mesh)
    batch = random_batch(batch=BATCH, levels=LEVELS, codes=CODES, authors=AUTHORS, rooms=24)
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), batch)["params"])
    params = jax.device_put(random_params(model, batch), partitioning.logical_to_sharding(boxed, mesh))
    rooms = jax.tree.map(lambda x: x[0], batch.live)
    index = jax.device_put(from_rooms(rooms, CODES), partitioning.replicated(mesh))
    recommend = make_recommender(model, DecodingConfig(beams=6, capacity=24), k=5)
    arguments = params, partitioning.put_batch(batch.request, mesh), index
    check_tables_stay_apart(recommend.lower(*arguments).compile().as_text(), mesh)
    found = recommend(*arguments)
    return found.slot, found.score, found.bound


STEPS = {"supervised": supervised_step, "towers": tower_step, "kmeans": kmeans_step, "decoding": decoding_step,
         "reward": reward_step, "policy": policy_step}


@functools.cache
def on_one_device(step: str):
    return jax.device_get(STEPS[step](partitioning.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])))


@pytest.mark.eight_devices
@pytest.mark.parametrize("step, mesh", [*((step, (2, 2, 2)) for step in STEPS), ("towers", (8, 1, 1)),
                                        ("reward", (1, 4, 2))])
def test_eight_devices_give_what_one_gives(step, mesh):
    one, eight = on_one_device(step), jax.device_get(STEPS[step](partitioning.make_mesh(MeshConfig(*mesh))))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(one)) > 0
    jax.tree_util.tree_map_with_path(lambda path, a, b: np.testing.assert_allclose(
        b, a, rtol=2e-4, atol=2e-5, err_msg=jax.tree_util.keystr(path)), one, eight)
