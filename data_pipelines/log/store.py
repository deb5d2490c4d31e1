"""The stored examples: one TFDS record (array_record) for each user, their watched views in order of time.

The history that a request saw is sliced when a batch is made, never stored once per example: the files do not grow
with the length of a history. Neither writing nor reading needs TensorFlow.
"""

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import tensorflow_datasets as tfds
from absl import logging

from data_pipelines.tables import Tables, validate
from onelive_jax.files import sha256

NAME = "viewing_timelines"
DTYPES = {
    "author": np.int32, "room": np.int32, "start_ms": np.int64, "stop_ms": np.int64, "like": np.int32,
    "comment": np.int32, "follow": np.int32, "share": np.int32, "gift_value": np.float32,
}

with tfds.core.registered.skip_registration():  # it is made from tables in hand, so tfds.load must not offer it

    class ViewingTimelines(tfds.core.GeneratorBasedBuilder):
        """One record a user: user_id and, for each of V_u watched views, the arrays of `DTYPES`, each [V_u]."""

        name = NAME
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # no checksums of downloads beside this file; TFDS's own search needs one more package

        def __init__(self, *, arrays: dict[str, np.ndarray], fingerprint: str, data_dir: str):
            self._arrays, self._fingerprint = arrays, fingerprint
            # The default format, TFRecord, cannot be written without TensorFlow.
            super().__init__(data_dir=data_dir, file_format="array_record")

        def _info(self) -> tfds.core.DatasetInfo:
            views = {name: tfds.features.Tensor(shape=(None,), dtype=dtype) for name, dtype in DTYPES.items()}
            return tfds.core.DatasetInfo(
                builder=self,
                description="Watched views of live rooms, one record a user, sorted by start.",
                features=tfds.features.FeaturesDict({"user_id": np.int32, **views}),
                metadata=tfds.core.MetadataDict(fingerprint=self._fingerprint, users=self._arrays["user_ptr"].size - 1,
                                                views=self._arrays["author"].size),
                disable_shuffling=True,  # record u is user u
            )

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict]]:
            ptr = self._arrays["user_ptr"]
            for user in range(ptr.size - 1):
                views = slice(ptr[user], ptr[user + 1])
                yield user, {"user_id": user, **{name: self._arrays[name][views] for name in DTYPES}}


def timeline_arrays(tables: Tables) -> dict[str, np.ndarray]:
    """The watched views (watch_ms > 0) of every user as concatenated arrays.

    Returns:
      user_ptr int64 [U + 1]: views of user u are user_ptr[u] … user_ptr[u + 1] − 1; and, each [V], author, room, like,
      comment, follow, share int32, start_ms, stop_ms int64, gift_value float32, sorted by (user, start_ms, stop_ms,
      room).
    """
    views = tables.interactions.filter(pl.col("watch_ms") > 0)
    views = views.with_columns((pl.col("start_ms") + pl.col("watch_ms")).alias("stop_ms"))
    views = views.rename({"author_id": "author", "room_id": "room"})
    counts = np.bincount(views["user_id"].to_numpy(), minlength=len(tables.users))
    user_ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return {"user_ptr": user_ptr, **{name: views[name].to_numpy().astype(dtype) for name, dtype in DTYPES.items()}}


def build(tables: Tables, folder: str | Path) -> None:
    """Writes the stored examples of a log under `folder`; does nothing where they are already complete.

    What an interrupted run has left behind is removed first: an example set is complete or absent.

    Raises:
      ValueError: if the tables are not valid, have no watched view, or `folder` holds the examples of another log.
    """
    arrays = timeline_arrays(validate(tables))
    if not arrays["author"].size:
        raise ValueError("no view of the log has watch_ms > 0: there is nothing to make examples from")
    fingerprint = _fingerprint(arrays)
    home = Path(folder) / NAME / str(ViewingTimelines.VERSION)
    if (home / "dataset_info.json").is_file():
        if _written_fingerprint(_stored(home)) != fingerprint:
            raise ValueError(f"{folder} holds the examples of another log: delete the folder or choose another")
        return
    for rest in home.parent.glob("*incomplete*"):
        shutil.rmtree(rest)
    # Nothing is downloaded; TFDS makes a folder for it nevertheless, which would stay behind in `folder`.
    with _quiet(), tempfile.TemporaryDirectory() as downloads:
        builder = ViewingTimelines(arrays=arrays, fingerprint=fingerprint, data_dir=str(folder))
        builder.download_and_prepare(download_dir=downloads,
                                     download_config=tfds.download.DownloadConfig(try_download_gcs=False))


def load_timelines(folder: str | Path) -> dict[str, np.ndarray]:
    """The arrays of `timeline_arrays`, read back from the stored examples.

    Raises:
      FileNotFoundError: if `folder` holds no complete examples.
      ValueError: if the files do not hold what was written.
    """
    home = Path(folder) / NAME / str(ViewingTimelines.VERSION)
    if not (home / "dataset_info.json").is_file():
        raise FileNotFoundError(f"{folder} holds no complete examples ({home / 'dataset_info.json'} is missing): "
                                "write them with data_pipelines.log.store.build(tables, folder)")
    damaged = f"{folder} is damaged: its records are not the ones that were written. Delete it and build again"
    try:
        builder = _stored(home)
        with _quiet():
            source = builder.as_data_source(split="train")
            records = source.__getitems__(range(len(source)))
    except (RuntimeError, OSError, ValueError, KeyError) as error:  # what array_record and TFDS raise for broken files
        raise ValueError(f"{damaged} ({error})") from error
    # A broken record can also come back with empty fields instead of an error.
    if not records or any(value is None for record in records for value in record.values()):
        raise ValueError(damaged)
    users = np.array([record["user_id"] for record in records], np.int64)
    counts = np.array([record["author"].size for record in records], np.int64)
    arrays = {"user_ptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)}
    for name, dtype in DTYPES.items():
        arrays[name] = np.concatenate([record[name] for record in records]).astype(dtype, copy=False)
    in_order = np.array_equal(users, np.arange(users.size))
    if not in_order or _fingerprint(arrays) != _written_fingerprint(builder):
        raise ValueError(damaged)
    return arrays


def _stored(home: Path) -> tfds.core.DatasetBuilder:
    try:
        with _quiet():
            return tfds.builder_from_directory(home)
    except Exception as error:  # TFDS lets through whatever its parsers raise, protobuf's own errors too
        raise ValueError(f"{home} is damaged ({error}): delete {home.parent.parent} and type the command again, which "
                         "builds it anew") from error


def _written_fingerprint(builder: tfds.core.DatasetBuilder) -> str | None:
    return (builder.info.metadata or {}).get("fingerprint")


def _fingerprint(arrays: dict[str, np.ndarray]) -> str:
    return sha256(*(arrays[name] for name in ("user_ptr", *DTYPES)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS from printing progress bars and notices; errors still come through."""
    tfds.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)
