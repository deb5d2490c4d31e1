"""The Beam pipeline makes the tables that the readers on one machine make."""

import dataclasses
import gzip
import sys

import numpy as np
import polars as pl
import pytest

from data_pipelines import tables as tables_lib
from data_pipelines.readers.kuailive import read_kuailive
from data_pipelines.readers.kuailive_m3 import read_kuailive_m3
from data_pipelines.simulator.formats import write_kuailive, write_kuailive_m3
from data_pipelines.tables import OPTIONAL, REQUIRED
from tests.data_pipelines.logs_in_form import CLICKS, ROOMS, simulated, write
from tests.data_pipelines.readers.test_kuailive_m3 import SEGMENTS
from tests.data_pipelines.readers.test_kuailive_m3 import write as write_m3

pytest.importorskip("apache_beam", reason="apache-beam is not installed (pip install -r requirements/beam.txt)")

from data_pipelines.beam import pipeline, steps
from data_pipelines.beam.files import Part, StoredFile, lines_of, parts_of
from data_pipelines.readers.forms import Column, form_of
from data_pipelines.readers.rows import Options

EVENT = "user_id,live_id,streamer_id,timestamp"
STOP = Options(stop=True)
# What real logs have and the simulator does not: rows that are dropped, merged or noted, and one of every reason.
T = 1_746_400_000_000
B = T // 10_000  # the log's own times, but for the last four digits
DIRT = {
    "room.csv": [f"20250504,700001,1,1,{B}5000,{B}5000,,"],
    "click.csv": [f"1,999999,1,{B}0005,1", f"1,700001,2,{B}4000,0", f"1,700001,1,{B}6000,7", f"1,700001,1,{B}6000,9"],
    "comment.csv": [f"1,700001,1,{B}6001", f"1,700001,1,{B}0100", f"12345678,700001,1,{B}7000"],
    "gift.csv": [f"1,700001,1,{B}6001,0.1", f"1,700001,1,{B}6001,0.2", f"1,700001,1,{B}6001,0.7",
                 f"1,700001,1,{B}6001,1e8"],
    "negative.csv": [f"1,700001,1,{B}6009", f"1,700001,1,{B}6010", f"1,700001,1,{B}6010", f"1,700001,1,{B}5010"],
    "user.csv": ["1,24-30,M" + "," * 18],
}


def same(ours, theirs):
    for name in REQUIRED + OPTIONAL:
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert (mine is None) == (other is None), name
        assert mine is None or (mine.schema == other.schema and mine.equals(other)), name
    reports = [dataclasses.asdict(tables.report) for tables in (ours, theirs)]
    for name in ("dropped", "notes", "merged", "examples"):  # here in the order of the alphabet, there of the files
        assert reports[0].pop(name) == reports[1].pop(name), name
    assert reports[0] == reports[1]
    assert ours.rooms_are_true_lifetimes == theirs.rooms_are_true_lifetimes


def test_the_tables_are_those_of_one_machine_row_for_row(tmp_path, monkeypatch, capsys):
    log, out = tmp_path / "log", tmp_path / "out"
    write_kuailive(simulated(), log)
    for name, rows in DIRT.items():
        with (log / name).open("a") as file:
            file.write("\n".join(rows) + "\n")
    monkeypatch.setattr(sys, "argv", ["beam", "--source=kuailive", f"--data_dir={log}", f"--out_dir={out}",
                                      "--shards=4", "--part_bytes=3000"])
    pipeline.main()
    local = read_kuailive(log)
    same(tables_lib.load(out), local)
    assert len(local.report.dropped) >= 4
    assert len(local.report.notes) >= 4
    files = sorted(path.name for path in out.iterdir())
    for table in ("interactions", "rooms"):
        shards = [name for name in files if name.startswith(table)]
        assert shards == [f"{table}-0000{i}-of-00004.parquet" for i in range(4)]
        assert all(len(pl.read_parquet(out / name)) > 1 for name in shards)
    assert not [name for name in files if "unfinished" in name]
    assert f"{local.report.rows_read:,} rows read" in capsys.readouterr().out

    some = Options(limit_users=4)
    pipeline.run("kuailive", str(log), str(tmp_path / "some"), 2, 9000, some)
    same(tables_lib.load(tmp_path / "some"), read_kuailive(log, some))
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    again = pipeline.run("kuailive", str(log), str(out), 4, 3000)
    assert "already made" in again[0]
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(ValueError, match="made from something else .*shards: 4 then, 5 now"):
        pipeline.run("kuailive", str(log), str(out), 5, 3000)


def test_kuailive_m3_too(tmp_path):
    log = tmp_path / "log"
    write_kuailive_m3(simulated(), log)
    room, author = pl.read_parquet(log / "live_room_meta.parquet").select("live_id", "author_id").row(0)
    with (log / "live_interaction.csv").open("a") as file:
        for live_id, by, start, watch in ((10**6, author, T + 5, 1), (room, author, T + 7, 1),
                                          (room, author, T + 7, 3), (room, 10**6, T + 8, 1)):
            file.write(f"77,{by},{live_id},{start},{start + 5000},{watch},0,0,0,0,0,0\n")
    rooms = pl.read_parquet(log / "live_room_meta.parquet")
    again = rooms.head(2).with_columns(pl.lit(10**9, pl.Int64).alias("live_duration"),
                                       pl.lit("other").alias("live_name"))
    pl.concat([rooms, again]).write_parquet(log / "live_room_meta.parquet", row_group_size=7)
    shard = log / "live_emb_128_ts" / "live_emb_128_ts_part01.parquet"
    content = pl.read_parquet(shard)
    pl.concat([content, content.tail(5), content.tail(5).with_columns(pl.lit(10**6, pl.Int64).alias("live_stream_id"))]
              ).write_parquet(shard, row_group_size=1000)
    videos = pl.read_parquet(log / "photo_play.parquet")
    strangers = videos.head(3).with_columns(pl.lit(10**6, pl.Int64).alias("user_id"))
    pl.concat([videos, strangers]).write_parquet(log / "photo_play.parquet", row_group_size=50)
    pl.DataFrame({"user_id": [77, 77, 10**7], "live_id": [room, room, room], "time": [T + 6, T + 900_000, T]}
                 ).write_csv(log / "live_comment.csv")
    pl.DataFrame({"user_id": [77, 77], "live_id": [room, 10**6], "score": [3, 4]}).write_csv(
        log / "live_questionnaire.csv")
    for options in (Options(), Options(limit_users=4)):
        name = f"out{options.limit_users}"
        pipeline.run("kuailive_m3", str(log), str(tmp_path / name), 4, 3000, options)
        same(tables_lib.load(tmp_path / name), read_kuailive_m3(log, options))
    out, local = tmp_path / "outNone", read_kuailive_m3(log)
    assert len(local.report.dropped) == 5
    assert len(local.report.notes) >= 6
    for table in ("interactions", "rooms", "segments", "videos"):
        shards = sorted(out.glob(f"{table}-*"))
        assert [path.name for path in shards] == [f"{table}-0000{i}-of-00004.parquet" for i in range(4)]
        assert all(len(pl.read_parquet(path)) > 1 for path in shards)


def test_kuailive_m3_by_hand_and_its_errors(tmp_path):
    log = write_m3(tmp_path / "log")
    pipeline.run("kuailive_m3", str(log), str(tmp_path / "out"), 5, 50)
    same(tables_lib.load(tmp_path / "out"), read_kuailive_m3(log))  # ranges without a room, a view or a segment
    bad = write_m3(tmp_path / "bad", segments=SEGMENTS | {"feature_128": [[1.0, 2.0], [1.0], [1.0, 2.0]]})
    with pytest.raises(ValueError, match=r"part0.parquet, row 2, column feature_128: 1 numbers are there") as local:
        read_kuailive_m3(bad, STOP)
    with pytest.raises(ValueError, match="part0.parquet, row 2, column feature_128: 1 numbers are there") as error:
        pipeline.run("kuailive_m3", str(bad), str(tmp_path / "to"), 2, 50, STOP)
    assert str(error.value) == str(local.value)
    (bad / "live_emb_128_ts" / "part0.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(ValueError, match="part0.parquet cannot be read"):
        pipeline.run("kuailive_m3", str(bad), str(tmp_path / "to2"))
    (bad / "live_room_meta.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"live_room_meta.csv \(or .parquet\) is missing"):
        pipeline.run("kuailive_m3", str(bad), str(tmp_path / "to3"))


def interrupt(*_):
    raise KeyboardInterrupt


def test_text_ids_more_shards_than_rows_and_going_on_after_an_interruption(tmp_path, monkeypatch):
    rooms = [ROOMS[0], "20250504,y,b,1,1000,9000,shop,0", "20250504,x,a,1,2000,,song,1"]
    write(tmp_path / "log", {"mapped_room.csv": rooms, "click.csv": [CLICKS[0], "u,y,b,1500,400", "t,x,a,2500,0"],
                             "gift.csv": [EVENT + ",gift_price", "u,y,b,1501,2", "u,z,b,1501,2"]})
    np.save(tmp_path / "log" / "title_embeddings.npy", np.eye(2))
    out = str(tmp_path / "out")
    with monkeypatch.context() as interrupted:
        interrupted.setattr(pipeline.kuaishou, "build", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run("kuailive", str(tmp_path / "log"), out, 5, 10)
    (tmp_path / "out" / "rooms-00000-of-00005.parquet").write_bytes(b"cut short")
    pipeline.run("kuailive", str(tmp_path / "log"), out, 5, 10)
    same(tables_lib.load(out), read_kuailive(tmp_path / "log"))


@pytest.mark.parametrize("files, said", [
    ({"click": [*CLICKS, "", "10,70,5,soon,400"]}, r"click.csv, line 6, column timestamp: 'soon'"),
    ({"room": [*ROOMS, "20250505,70,6,1,x,9000,,"]}, r"room.csv, line 4, column start_timestamp: 'x'"),
    ({"room": ROOMS[:1]}, r"room.csv: there is a header but no row"),
    ({"click": [CLICKS[0][1:], CLICKS[1]]}, r"click.csv, line 1: the header lacks the column 'user_id'"),
])
def test_errors_are_those_of_one_machine(tmp_path, files, said):
    folder = write(tmp_path / "log", **files)
    with pytest.raises(ValueError, match=said) as local:
        read_kuailive(folder, STOP)
    with pytest.raises(ValueError, match=said) as error:
        pipeline.run("kuailive", str(folder), str(tmp_path / "out"), 2, 40, STOP)
    assert str(error.value) == str(local.value)
    assert not (tmp_path / "out" / "report.json").exists()


def test_what_cannot_be_run_is_refused(tmp_path):
    folder, out = str(write(tmp_path / "log")), str(tmp_path / "out")
    with pytest.raises(ValueError, match="source=amazon has no Beam path"):
        pipeline.run("amazon", folder, out)
    with pytest.raises(ValueError, match="shards=0"):
        pipeline.run("kuailive", folder, out, shards=0)
    with pytest.raises(FileNotFoundError, match="nowhere holds no file"):
        pipeline.run("kuailive", str(tmp_path / "nowhere"), out)
    with pytest.raises(ValueError, match="holds other files"):
        pipeline.run("kuailive", folder, folder)
    (tmp_path / "log" / "click.csv").write_bytes(gzip.compress((tmp_path / "log" / "click.csv").read_bytes()))
    with pytest.raises(ValueError, match="click.csv is packed with gzip"):
        pipeline.run("kuailive", folder, out)


@pytest.mark.parametrize("end", ["\n", "", "\r\n", "\n\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 100])
def test_every_line_is_in_one_part(tmp_path, end, size):
    text = "head\n" + "\n".join(["a", "", "bcdefghijk", "l", "", "mn"]) + end
    path = StoredFile(str(tmp_path / "log.csv"))
    (tmp_path / "log.csv").write_bytes(text.encode())
    form = form_of(path, (Column("head", "text"),))
    parts = parts_of("log.csv", form, len(text.encode()), size)
    lines = [lines_of(path, part) for part in parts]
    assert b"".join(lines) == text.encode()[5:]
    assert all(part.endswith(b"\n") for part in lines[:-1] if part) or not end
    counts = [steps.count_lines(part, {"log.csv": form}) for part in parts]
    before = steps.lines_before(counts)
    for part in (part for part in parts if lines[part.number]):
        assert before["log.csv", part.number] == b"".join(lines[:part.number]).count(b"\n")
    assert lines_of(path, Part("log.csv", 0, 5, len(text.encode()), 1)) == text.encode()[5:]
