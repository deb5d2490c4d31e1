"""The Beam pipeline makes of anybody's log, and of Twitch's, the tables that the readers on one machine make."""

import numpy as np
import polars as pl
import pytest

from data_pipelines import tables as tables_lib
from data_pipelines.readers.log import parse_columns, read_log
from data_pipelines.readers.rows import Options
from data_pipelines.readers.twitch import read_twitch

pytest.importorskip("apache_beam", reason="apache-beam is not installed (pip install -r requirements/beam.txt)")

from data_pipelines.beam import pipeline
from tests.data_pipelines.beam.test_beam_pipeline import same

T = 1_746_403_200_000
BOTH = (Options(), Options(limit_users=7))
READERS = {"log": read_log, "twitch": read_twitch}


def random_views(rows, seed=0):
    """Columns of views in which people return, rooms have two streamers at times, and some have no id."""
    rng = np.random.default_rng(seed)
    author = rng.integers(9, size=rows)
    return {"user": [f"{'p' if u % 3 else ''}{u}" for u in rng.integers(1, 30, rows)],
            "room": ["" if a % 4 == 0 else f"{a}{n}" for a, n in zip(author, rng.integers(3, size=rows), strict=True)],
            "streamer": [f"s{a + (i % 50 == 0)}" for i, a in enumerate(author)],
            "start": T + rng.integers(3, size=rows) * 86_400_000 + rng.integers(200, size=rows) * 60_000,
            "watch_s": rng.integers(0, 4000, rows), "like": rng.integers(3, size=rows),
            "category": rng.choice(["music", "talk", "unknown", ""], rows),
            "satisfaction": rng.choice(["", "1", "5"], rows)}


def lines(columns):
    return [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]


def check(source, log, tmp_path, options=BOTH, shards=3, part_bytes=700):
    for i, option in enumerate(options):
        out = tmp_path / f"out{i}"
        pipeline.run(source, str(log), str(out), shards, part_bytes, option)
        same(tables_lib.load(out), READERS[source](log, option))
    return tables_lib.load(tmp_path / "out0")


def test_views_with_dirt_of_every_kind(tmp_path):
    text = lines(random_views(150))
    bad = ["ann,r,s1,soon,5,0,,", f",r,s1,{T},5,0,,", f"ann,r,s1,{T},-5,0,,", f"ann,r,s1,{T},5,0,,,9", text[7], text[7],
           f"ann,r,s1,{T + 10**12},5,0,,", ""]
    (tmp_path / "views.csv").write_text("\n".join([*text, *bad]) + "\n")
    made = check("log", tmp_path / "views.csv", tmp_path)
    assert len(made.report.dropped) == 6
    for word in ("row without a room", "room of several streamers"):
        assert any(reason.startswith(word) for reason in made.report.notes)
    assert made.rooms["source_id"].str.contains("/").any()
    assert made.rooms["category"].n_unique() == 3


def test_a_folder_of_files_that_differ_and_true_lifetimes(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    columns = random_views(60)
    columns["room"] = [f"r{room}" for room in columns["room"]]
    begins = (columns["start"] // 86_400_000 * 86_400_000 + 60_000).tolist()
    (folder / "a.csv").write_text("\n".join(lines(columns | {"room_start": begins, "room_end": [
        b + 86_000_000 for b in begins]})) + "\n")
    frame = pl.DataFrame(random_views(60, 1)).select("user", "room", "streamer", "start", "watch_s").with_columns(
        room=pl.format("r{}", "room"))
    frame.write_parquet(folder / "b.parquet", row_group_size=17)
    (folder / "notes.md").write_text("not a log")
    made = check("log", folder, tmp_path)
    assert made.rooms_are_true_lifetimes
    assert made.report.notes["view that begins before its room does, or after its end"] > 0
    assert made.report.about[-1].endswith("notes.md")


def test_rows_of_entering_and_leaving(tmp_path):
    columns, rng = random_views(80), np.random.default_rng(3)
    moves = []
    for user, room, author, start, watch, *_ in zip(*columns.values(), strict=True):
        moves += [(user, room, author, start, "enter"), (user, room, author, start + 1000 * watch, "leave")]
        moves += [(user, room, author, start + 500 * watch, word) for word in rng.choice(["like", "gift", "ping"], 1)]
    moves += [("nobody", "r", "s1", T, "like"), ("p1", "r", "s1", T + 5, "leave"), ("p1", "r", "s1", T + 6, "enter")]
    rows = [",".join(map(str, moves[i])) for i in rng.permutation(len(moves))]
    (tmp_path / "events.csv").write_text("\n".join(["user,room,streamer,time,event", *rows]) + "\n")
    made = check("log", tmp_path / "events.csv", tmp_path, (Options(), Options(limit_users=5, default_watch_s=30)))
    assert made.interactions["like"].sum() > 0
    assert any("ping" in example for examples in made.report.examples.values() for example in examples)


def test_without_a_header(tmp_path):
    columns = random_views(90)
    rows = [f"{u},{s},{a},{w}" for u, s, a, w in zip(columns["user"], columns["start"], columns["streamer"],
                                                     columns["watch_s"], strict=True)]
    (tmp_path / "bare.csv").write_text("\n".join(rows))
    said = parse_columns("user=#1,start=#2,author=#3,watch=#4:s")
    check("log", tmp_path / "bare.csv", tmp_path, (Options(said), Options(said, limit_users=4)))


@pytest.mark.parametrize("header", ["", "user,stream,streamer,start,stop\n"])
def test_twitch(tmp_path, header):
    rng = np.random.default_rng(0)
    start = rng.integers(400, size=120)
    rows = [f"{u},{a * 100 + s // 50},{a},{s},{s + n}" for u, a, s, n in zip(
        rng.integers(1, 20, 120), rng.integers(1, 9, 120), start, rng.integers(0, 4, 120), strict=True)]
    rows += [rows[5], "7,1,NULL,3,4", "7,1,3,4", "8,905,1,400,401"]
    (tmp_path / "log.csv").write_text(header + "\n".join(rows) + "\n")
    made = check("twitch", tmp_path / "log.csv", tmp_path)
    assert any("<= start" in reason for reason in made.report.dropped)


def test_what_one_machine_refuses_is_refused(tmp_path):
    def refused(source, text, said):
        (tmp_path / "bad.csv").write_text(text)
        for read in (READERS[source], lambda path: pipeline.run(source, str(path), str(tmp_path / f"to{hash(text)}"))):
            with pytest.raises(ValueError, match=said):
                read(tmp_path / "bad.csv")

    header = "user,room,streamer,start,watch_ms\n"
    refused("log", header + "".join(f"{u},r,a,{T + u},90000000\n" for u in range(5)), "last a day or longer")
    refused("log", "who,what\n1,2\n", "lacks the column 'user'")
    refused("twitch", "".join(f"{u},1,2,{u},{u + 600}\n" for u in range(5)), "in minutes or seconds")
    with pytest.raises(FileNotFoundError, match="holds no file, or is not there"):
        pipeline.run("log", str(tmp_path / "nowhere"), str(tmp_path / "to"))
