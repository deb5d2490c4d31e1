"""A log becomes a folder of canonical tables on as many machines as there are: Apache Beam.

    pip install -r requirements/beam.txt
    python -m data_pipelines.beam --source=kuailive --data_dir=/data/KuaiLive --out_dir=/data/tables

This runs in one process. With --runner=DataflowRunner, FlinkRunner or SparkRunner the same command runs on a cluster,
and every option that is not named here is the runner's own (docs/data.md). Folders are addresses on any file system
that Beam knows (gs://…, s3://…, hdfs://…). The tables are those of `python -m data_pipelines.prepare`, row for row, but
stored in shards. The folder is whole once it holds report.json; after an interruption the same command begins again.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions

from data_pipelines.beam import kuaishou, views
from data_pipelines.beam.files import StoredFile, files_in, write_file
from data_pipelines.prepare import OPTION_FLAGS, SETTINGS, add_options, options_of
from data_pipelines.readers.rows import DEFAULTS, Options
from data_pipelines.tables import ReadReport

SOURCES = (*kuaishou.READERS, *views.SOURCES)
IN_PROCESS = "FnApiRunner"  # Beam's direct runner; under the name DirectRunner it looks for a program to download first
PART_BYTES = 64 * 2**20
# What a runner says when a worker has failed: the worker's own error, or a text with its traceback at the end.
WORKER_ERROR = r"^(?:\w+: )??(?:ValueError|FileNotFoundError): (.*?)(?: \[while running '.*)?$"


def run(source: str, data_dir: str, out_dir: str, shards: int | None = None, part_bytes: int = PART_BYTES,
        options: Options = DEFAULTS, beam_options: Sequence[str] = ()) -> list[str]:
    """Runs the pipeline and waits for its end; returns the lines of the summary.

    Args:
      source: one of SOURCES. data_dir: address of the log's folder, or of its file.
      out_dir: of the tables' folder, new or empty, or begun by the same call.
      shards: into which rooms and interactions are divided; None for one to each `part_bytes` of the log.
      part_bytes: how much of a file a worker reads at a time.
      options: what a person says of the log.
      beam_options: --runner=… and others of Beam's.

    Raises:
      FileNotFoundError: if the folder or a needed file is missing.
      ValueError: with file, line and column, as the readers on one machine; or if `out_dir` holds anything else. Where
        a log has several errors, one of them is named, and its rows are counted in one part of a file only.
    """
    if source not in SOURCES:
        raise ValueError(f"source={source} has no Beam path; there is one for {', '.join(SOURCES)}. Use python -m "
                         "data_pipelines.prepare")
    for name, value in (("shards", shards), ("part_bytes", part_bytes)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    data_dir, out_dir = data_dir.rstrip("/"), out_dir.rstrip("/")
    sizes = files_in(data_dir)
    if not sizes:
        raise FileNotFoundError(f"{data_dir} holds no file, or is not there: give the folder of the log")
    settings = {"engine": "beam", "source": source, "data_dir": data_dir, "bytes": sum(sizes.values()),
                "shards": shards, "part_bytes": part_bytes, "options": asdict(options)}
    if not _begin(out_dir, settings):
        return [f"{out_dir} is already made; its log:", *_summary(out_dir)]
    runner = [] if any(option.startswith("--runner") for option in beam_options) else [f"--runner={IN_PROCESS}"]
    running = PipelineOptions([*beam_options, *runner])
    running.view_as(SetupOptions).save_main_session = False
    pipeline = beam.Pipeline(options=running)
    builder = views if source in views.SOURCES else kuaishou
    builder.build(source, pipeline, data_dir, out_dir, shards, part_bytes, options)
    try:
        pipeline.run().wait_until_finish()
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        said = re.findall(WORKER_ERROR, f"{type(error).__name__}: {error}", re.MULTILINE)
        if not said:
            raise
        raise ValueError(said[-1]) from error
    return _summary(out_dir)


def _begin(out_dir: str, settings: dict) -> bool:
    """Marks the folder as begun with these settings; False if it is whole. Raises ValueError if it is another's."""
    found = files_in(out_dir)
    if found and SETTINGS not in found:
        raise ValueError(f"--out_dir={out_dir} holds other files ({', '.join(list(found)[:3])}, …): give a folder that "
                         "is new or empty")
    if found:
        with StoredFile(FileSystems.join(out_dir, SETTINGS)).open() as file:
            before = json.loads(file.read())
        changed = [f"{name}: {before.get(name)!r} then, {value!r} now" for name, value in settings.items()
                   if before.get(name) != value]
        if changed:
            raise ValueError(f"--out_dir={out_dir} was made from something else ({'; '.join(changed)}): give another "
                             "folder, or delete it")
        return "report.json" not in found
    if not FileSystems.exists(out_dir):
        FileSystems.mkdirs(out_dir)
    write_file(out_dir, SETTINGS, json.dumps(settings, indent=1).encode())
    return True


def _summary(out_dir: str) -> list[str]:
    with StoredFile(FileSystems.join(out_dir, "report.json")).open() as file:
        report = ReadReport(**json.loads(file.read())["report"])
    sizes = files_in(out_dir)
    return [*report.lines(), f"{out_dir}: {len(sizes)} files, {sum(sizes.values()) / 1e6:,.1f} MB"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Reads a log and writes it as canonical tables, with Apache Beam.",
                                     allow_abbrev=False,
                                     epilog="Any other option is Beam's, or its runner's.")
    parser.add_argument("--source", required=True, help=f"form of the log: {', '.join(SOURCES)}")
    parser.add_argument("--data_dir", required=True, help="the log: a folder, or a file (log, twitch)")
    parser.add_argument("--out_dir", required=True, help="folder for the tables; it must be new or empty")
    parser.add_argument("--shards", type=int, help="files of the interactions and of the rooms; else by size")
    parser.add_argument("--part_bytes", type=int, default=PART_BYTES, help="how much of a file is read at a time")
    add_options(parser)
    known, rest = parser.parse_known_args()
    said = vars(known)
    try:
        options = options_of(**{name: said.pop(name) for name in OPTION_FLAGS})
        print("\n".join(run(options=options, **said, beam_options=rest)))
    except (ValueError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
