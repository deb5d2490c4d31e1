"""Shardings follow from axis names, rules and mesh; a step on eight devices gives what one device gives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from onelive_jax.config import MeshConfig, TrainingConfig
from onelive_jax.sharding import partitioning
from onelive_jax.training import checkpoints, train_state


def test_one_device_is_a_mesh_of_ones():
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert mesh.axis_types == (AxisType.Auto,) * 3


@pytest.mark.parametrize("config, words", [
    (MeshConfig(data=1, fsdp=1, tensor=2), ["config.mesh.tensor=2", "2 devices", "there are 1"]),
    (MeshConfig(data=-1, fsdp=3), ["config.mesh.fsdp=3", "a multiple of 3", "there are 1"]),
    (MeshConfig(data=-1, fsdp=-1), ["config.mesh.fsdp=-1", "at most one"]),
    (MeshConfig(data=0), ["config.mesh.data=0", "1 or more"]),
])
def test_a_mesh_that_does_not_fit_is_explained(config, words):
    with pytest.raises(ValueError, match="config.mesh") as error:
        partitioning.make_mesh(config, jax.devices()[:1])
    for word in words:
        assert word in str(error.value)


def test_every_rule_names_an_axis_of_the_mesh():
    names = [name for name, _ in partitioning.RULES]
    assert len(set(names)) == len(names)
    for _, axes in partitioning.RULES:
        for axis in (axes,) if isinstance(axes, str) else axes or ():
            assert axis in partitioning.MESH_AXES


def test_an_unknown_axis_name_is_told_with_its_parameter():
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    boxed = {"tower": {"w": nn.LogicallyPartitioned(jnp.ones((2, 2)), ("embed", "wdith"))}}
    with pytest.raises(ValueError, match="parameter tower/w has the logical axis 'wdith'.*RULES"):
        partitioning.logical_to_sharding(boxed, mesh)


def test_too_few_names_are_told_with_their_parameter():
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(ValueError, match=r"parameter w has shape \(2, 2\) but 1 logical axes"):
        partitioning.logical_to_sharding({"w": nn.LogicallyPartitioned(jnp.ones((2, 2)), ("embed",))}, mesh)


@pytest.mark.parametrize("names, shape, want", [
    (("embed", "mlp"), (8, 16), P("fsdp", "tensor")),
    (("embed", "heads", "head_dim"), (8, 4, 2), P("fsdp", "tensor", None)),
    (("authors", "embed"), (8, 8), P(("fsdp", "tensor"), None)),
    (("authors", "embed"), (6, 8), P("fsdp", None)),
    (("authors", "embed"), (7, 8), P(None, "fsdp")),
    ((None, "embed", "codes"), (3, 8, 9), P(None, "fsdp", None)),
    (("embed", "embed"), (8, 8), P("fsdp", None)),
    ((), (), P()),
])
def test_names_and_lengths_decide_the_partition(names, shape, want):
    mesh = AbstractMesh((2, 2, 2), partitioning.MESH_AXES)
    assert partitioning.mesh_axes_of(names, shape, mesh, "here") == want


def test_a_batch_that_cannot_be_split_is_told_with_the_settings():
    mesh = AbstractMesh((2, 2, 2), partitioning.MESH_AXES)
    with pytest.raises(ValueError, match=r"6 rows cannot be split over config.mesh.data x config.mesh.fsdp = 4 "):
        partitioning.local_rows(mesh, 6)
    # Each microbatch is split too: 12 rows would do on four devices, but not in two parts.
    with pytest.raises(ValueError, match=r"12 rows in config.training.accumulate=2 microbatches cannot be split .*"
                                         r"set config.training.batch_size .* to a multiple of 8"):
        partitioning.local_rows(mesh, 12, accumulate=2)
    one = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    np.testing.assert_array_equal(partitioning.local_rows(one, 6, accumulate=3), np.arange(6))


def test_a_batch_goes_to_one_device_unchanged():
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    batch = {"a": np.arange(6).reshape(3, 2), "mask": np.array([True, False, True])}
    placed = partitioning.put_batch(batch, mesh)
    np.testing.assert_array_equal(placed["a"], batch["a"])
    assert placed["mask"].sharding.spec == P(("data", "fsdp"))


def optimizer():
    return train_state.make_optimizer(TrainingConfig(steps=10, warmup_steps=0, learning_rate=0.1))


class Model(nn.Module):
    @nn.compact
    def __call__(self, x_BxD):
        def matrix(name, shape, names):
            init = nn.with_logical_partitioning(nn.initializers.normal(1.0), names)
            return self.param(name, init, shape)
        up_DxF = matrix("up", (8, 16), ("embed", "mlp"))
        down_FxD = matrix("down", (16, 8), ("mlp", "embed"))
        authors_AxD = matrix("author_table", (7, 8), ("authors", "embed"))
        both_DxD = matrix("both", (8, 8), ("embed", "embed"))
        scale_D = self.param("scale", nn.initializers.ones, (8,))
        y = jax.nn.gelu(x_BxD @ up_DxF) @ down_FxD @ both_DxD * scale_D
        return y @ authors_AxD.T


def init_params(key):
    return Model().init(key, jnp.ones((1, 8)))["params"]


def make_step(shardings, mesh):
    def step(state, x_BxD):
        def loss(params):
            return jnp.mean(Model().apply({"params": params}, x_BxD) ** 2)
        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = optimizer().update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), value
    return jax.jit(step, in_shardings=(shardings, partitioning.batch_sharding(mesh)),
                   out_shardings=(shardings, partitioning.replicated(mesh)), donate_argnums=0)


def start(config, devices=None):
    mesh = partitioning.make_mesh(config, devices)
    abstract = train_state.abstract_state(init_params, optimizer(), mesh)
    return mesh, abstract, train_state.init_state(init_params, optimizer(), mesh, jax.random.key(3))


X = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)


@pytest.mark.eight_devices
def test_parameters_moments_and_batch_are_split_as_the_rules_say(caplog):
    mesh, abstract, state = start(MeshConfig(data=2, fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    want = {"up": P("fsdp", "tensor"), "down": P("tensor", "fsdp"), "author_table": P(None, "fsdp"),
            "both": P("fsdp", None), "scale": P()}
    adam = next(part for part in jax.tree.leaves(state.opt_state, is_leaf=lambda part: hasattr(part, "mu"))
                if hasattr(part, "mu"))
    for tree in (abstract.params, state.params, adam.mu, adam.nu):
        for name, spec in want.items():
            assert tree[name].sharding.is_equivalent_to(NamedSharding(mesh, spec), tree[name].ndim), (name, tree[name])
    assert state.params["up"].addressable_shards[0].data.shape == (4, 8)
    assert adam.mu["up"].addressable_shards[0].data.shape == (4, 8)
    assert adam.count.sharding.is_fully_replicated
    assert state.step.sharding.is_fully_replicated
    batch = partitioning.put_batch({"x": X}, mesh)
    assert {shard.data.shape for shard in batch["x"].addressable_shards} == {(2, 8)}
    np.testing.assert_array_equal(batch["x"], X)
    with pytest.raises(ValueError, match="6 rows .*= 4 devices.*config.training.batch_size"):
        partitioning.put_batch({"x": X[:6]}, mesh)
    # Seven authors cannot be halved: kept whole, and told.
    assert "author_table: axis 'authors' of length 7 is not a multiple of 4 devices (fsdp x tensor)" in caplog.text


def test_a_process_by_itself_takes_all_its_devices(monkeypatch, caplog):
    caplog.set_level("INFO")
    assert partitioning.process_mesh(MeshConfig()) is None  # one device
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert dict(partitioning.process_mesh(MeshConfig()).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert not caplog.text
    # Settings of a larger machine.
    assert dict(partitioning.process_mesh(MeshConfig(-1, 4, 2)).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert "asks for a multiple of 8 devices, but there are 1" in caplog.text
    assert "all devices are on data for this" in caplog.text
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert partitioning.process_mesh(MeshConfig()) is None


@pytest.fixture
def compiled():
    """Names of the functions that have been compiled."""
    names = []

    def note(event, duration, **details):
        if event.endswith("backend_compile_duration"):
            names.append(details["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.mark.eight_devices
def test_eight_devices_learn_what_one_learns_and_the_step_compiles_once(compiled):
    def train(config, devices=None):
        compiled.clear()
        mesh, abstract, state = start(config, devices)
        step = make_step(train_state.shardings(abstract), mesh)
        first = jax.device_get(state.params)
        losses = []
        for _ in range(3):
            state, loss = step(state, partitioning.put_batch(X, mesh))
            losses.append(float(loss))
        assert compiled.count("jit(step)") == 1, compiled
        return first, losses, jax.device_get(state.params)

    first, losses, params = train(MeshConfig(data=1), jax.devices()[:1])
    assert losses[2] < losses[0]
    for config in (MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=1, fsdp=4, tensor=-1)):
        first_8, losses_8, params_8 = train(config)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), first, first_8)
        np.testing.assert_allclose(losses_8, losses, rtol=1e-4)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), params, params_8)


@pytest.mark.eight_devices
def test_a_checkpoint_is_restored_onto_another_mesh(tmp_path):
    mesh, abstract, state = start(MeshConfig(data=2, fsdp=2, tensor=2))
    state, _ = make_step(train_state.shardings(abstract), mesh)(state, partitioning.put_batch(X, mesh))
    with checkpoints.Checkpoints(tmp_path) as saver:
        saver.save(state, "here", {})
    saved = jax.device_get((state.params, state.opt_state))
    for config, devices in ((MeshConfig(data=2, fsdp=2, tensor=2), None), (MeshConfig(data=1, fsdp=4, tensor=2), None),
                            (MeshConfig(data=1), jax.devices()[:1])):
        target = train_state.abstract_state(init_params, optimizer(), partitioning.make_mesh(config, devices))
        with checkpoints.Checkpoints(tmp_path) as saver:
            restored, _ = saver.restore(target)
        jax.tree.map(np.testing.assert_array_equal, saved, jax.device_get((restored.params, restored.opt_state)))
        assert int(restored.step) == 1
        np.testing.assert_array_equal(jax.random.key_data(restored.key), jax.random.key_data(state.key))
        assert jax.tree.map(lambda x: x.sharding, restored) == train_state.shardings(target)
        params = checkpoints.restore_params(tmp_path, target.params)
        assert jax.tree.map(lambda x: x.sharding, params) == train_state.shardings(target.params)
    host = checkpoints.restore_params(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, saved[0], host)
