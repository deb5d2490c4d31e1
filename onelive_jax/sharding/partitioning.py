"""Which device holds what: the mesh, one table of rules, and the shardings that follow from both.

Parameters name their axes once, where they are made (`nn.with_logical_partitioning`). `RULES` says on which mesh
axes such a name is split. Everything else (parameters, optimizer moments, batches) is derived from these two.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax.core import meta
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from onelive_jax.config import MeshConfig

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis → mesh axes. `embed` (the model width) is split over fsdp, wide inner axes over tensor, so that a
# matrix is split both ways; short axes stay whole.
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("data", "fsdp")),  # examples
    ("embed", "fsdp"),            # model width D
    ("mlp", "tensor"),            # hidden width of feed-forwards
    ("heads", "tensor"),          # query heads H
    ("groups", "tensor"),         # key/value groups
    ("codes", "tensor"),          # codes of a level K
    ("authors", ("fsdp", "tensor")),  # rows of the author table, by far the largest of a big platform
    ("layers", None),             # blocks of a scanned stack
    ("head_dim", None),
    ("features", None),           # inputs of a small projection
)

logger = logging.getLogger(__name__)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh of a run, with axes (data, fsdp, tensor).

    Args:
      config: sizes of the three axes; one of them may be -1 and takes the devices that are left.
      devices: devices to use; all devices of all processes when None.

    Returns:
      A mesh over all of `devices`. Its axes are of type Auto: the compiler places what no sharding pins down.

    Raises:
      ValueError: more than one -1, a size of 0, or sizes whose product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    named = ", ".join(f"config.mesh.{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise ValueError(f"{named}: a size is 1 or more, and at most one may be -1 (takes the devices that are left)")
    fixed = math.prod(size for size in sizes if size != -1)
    if len(devices) % fixed or (-1 not in sizes and fixed != len(devices)):
        raise ValueError(f"{named} asks for {'a multiple of ' if -1 in sizes else ''}{fixed} devices, but there are "
                         f"{len(devices)}; the product of the sizes must be the number of devices (-1 takes the rest)")
    shape = tuple(len(devices) // fixed if size == -1 else size for size in sizes)
    # New versions of jax make Explicit axes by default, under which plain einsums no longer type-check.
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)


def process_mesh(config: MeshConfig) -> Mesh | None:
    """The mesh for work that one process does by itself: all its devices, laid out by `config` or, where that is of
    another number of devices (a workdir of a larger machine), all on `data`.

    None where the process has one device, or is one of several (the others then wait: it works on its first device).
    """
    if jax.process_count() > 1 or jax.device_count() == 1:
        return None
    try:
        return make_mesh(config)
    except ValueError as misfit:
        logger.info("%s: all devices are on data for this", misfit)
        return make_mesh(MeshConfig())


def mesh_axes_of(names: Sequence[str | None], shape: Sequence[int], mesh: Mesh, where: str) -> PartitionSpec:
    """The partition of one array whose axes are called `names`.

    An axis whose length is not a multiple of its mesh axes is split over fewer of them or stays whole (and is
    logged): a catalogue of 5,673 authors must not stop a run on eight devices. A mesh axis is used once an array, by
    the first axis that asks for it.

    Raises:
      ValueError: a name that `RULES` does not list, or as many names as axes are not given; says where.
    """
    rules = dict(RULES)
    if len(names) != len(shape):
        raise ValueError(f"{where} has shape {tuple(shape)} but {len(names)} logical axes {tuple(names)}")
    spec, used = [], set()
    for name, size in zip(names, shape, strict=True):
        if name is not None and name not in rules:
            raise ValueError(f"{where} has the logical axis {name!r}, which RULES in onelive_jax/sharding/"
                             f"partitioning.py does not list; known: {', '.join(rules)}")
        wanted = () if name is None or rules[name] is None else rules[name]
        wanted = (wanted,) if isinstance(wanted, str) else wanted
        wanted = tuple(axis for axis in wanted if axis not in used and mesh.shape[axis] > 1 and size > 1)
        asked = wanted
        while size % math.prod(mesh.shape[axis] for axis in wanted):
            wanted = wanted[:-1]
        if wanted != asked:
            logger.warning("%s: axis %r of length %d is not a multiple of %d devices (%s); split over %s", where, name,
                           size, math.prod(mesh.shape[axis] for axis in asked), " x ".join(asked),
                           " x ".join(wanted) or "none, each device holds it whole")
        used.update(wanted)
        spec.append(wanted[0] if len(wanted) == 1 else (wanted or None))
    return PartitionSpec(*spec)


def logical_to_sharding(boxed_params: Any, mesh: Mesh) -> Any:
    """Shardings of parameters from the axis names that they carry.

    Args:
      boxed_params: parameters as `model.init` returns them, with `nn.with_logical_partitioning` boxes around arrays
        or `jax.ShapeDtypeStruct`s (from `jax.eval_shape`). A leaf without a box is replicated.
      mesh: the mesh of the run.

    Returns:
      A tree of `NamedSharding`, shaped like the *unboxed* parameters.

    Raises:
      ValueError: an axis name that `RULES` does not list, with the parameter that has it.
    """
    def sharding(path, leaf):
        if not isinstance(leaf, meta.Partitioned):
            return replicated(mesh)
        where = "parameter " + "/".join(str(getattr(entry, "key", entry)) for entry in path)
        return NamedSharding(mesh, mesh_axes_of(leaf.names, leaf.value.shape, mesh, where))

    return jax.tree_util.tree_map_with_path(sharding, boxed_params, is_leaf=lambda x: isinstance(x, meta.Partitioned))


def optimizer_sharding(tx: optax.GradientTransformation, abstract_params: Any, param_shardings: Any, mesh: Mesh) -> Any:
    """Shardings of `tx.init(params)`: moments lie like their parameters, counters on every device.

    Pass the result as out_shardings wherever the optimizer state is made: under Auto axes `jax.jit(tx.init)` alone
    gives every device a full copy of both moments.
    """
    abstract = jax.eval_shape(tx.init, abstract_params)
    return optax.tree_map_params(tx, lambda _, sharding: sharding, abstract, param_shardings,
                                 transform_non_params=lambda _: replicated(mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: rows (axis 0) over data and fsdp, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(dict(RULES)["batch"]))


def put_whole(tree: Any, shardings: Any) -> Any:
    """Puts arrays that every process holds whole (NumPy, or on its own devices) on the devices, each its own part.

    `jax.device_put` would first compare what the processes hold, all of it gathered on every device.
    """
    def put(x, sharding):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree, shardings)


def local_rows(mesh: Mesh, rows: int, accumulate: int = 1) -> np.ndarray:
    """int64, ascending: the rows of a batch of `rows` that this process's devices hold, so those that it has to make.

    Processes whose devices differ only in `tensor` hold the same rows.

    Args:
      accumulate: microbatches that the batch goes through in; each is split over the devices as the batch is.

    Raises:
      ValueError: `rows` is not a multiple of data x fsdp x accumulate.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % (parts * accumulate):
        each = f" in config.training.accumulate={accumulate} microbatches" if accumulate > 1 else ""
        raise ValueError(f"a batch of {rows} rows{each} cannot be split over config.mesh.data x config.mesh.fsdp = "
                         f"{parts} devices; set config.training.batch_size (of the reward model, config.reward."
                         f"batch_size) to a multiple of {parts * accumulate}")
    held = batch_sharding(mesh).addressable_devices_indices_map((rows,))
    return np.unique(np.concatenate([np.arange(rows)[index] for index in held.values()]))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts the rows that this process loaded on its devices, as its part of the global batch.

    Args:
      batch: tree of NumPy arrays, the rows `local_rows(mesh, B)` of a batch; with one process [B, ...].
      mesh: the mesh of the run.

    Returns:
      The same tree of `jax.Array` [B, ...] under `batch_sharding(mesh)`.

    Raises:
      ValueError: B is not a multiple of data x fsdp.
    """
    sharding, parts = batch_sharding(mesh), mesh.shape["data"] * mesh.shape["fsdp"]
    mine = local_rows(mesh, parts).size  # of `parts` equal parts, those held here

    def put(array):
        array = np.asarray(array)
        rows = array.shape[0] * parts // mine
        held = local_rows(mesh, rows)

        def part(index):
            low, high, _ = index[0].indices(rows)
            first = np.searchsorted(held, low)
            return array[first:first + high - low]

        return jax.make_array_from_callback((rows, *array.shape[1:]), sharding, part)

    return jax.tree.map(put, batch)
