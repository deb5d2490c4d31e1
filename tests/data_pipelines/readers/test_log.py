"""Anybody's log: one file or a folder, whatever its columns are called and its times written."""

import datetime

import polars as pl
import pytest

from data_pipelines import tables as tables_lib
from data_pipelines.prepare import options_of, read_source
from data_pipelines.readers.log import parse_columns, read_log
from data_pipelines.readers.rows import Options

T = 1_746_403_200_000  # Mon 5 May 2025 00:00 UTC
MIN = 60_000
WANTED = [("ann", "r1", "lee", T, 10 * MIN), ("ann", "r2", "kim", T + 120 * MIN, 20 * MIN),
          ("bob", "r1", "lee", T + 5 * MIN, 40 * MIN)]
HEADER = "user,room,streamer,start_ms,watch_ms"
ROWS = [f"{u},{r},{a},{s},{w}" for u, r, a, s, w in WANTED]


def write(folder, lines, name="views.csv"):
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def views(tables):
    log = tables.interactions.filter("click")
    names = [table[column].gather(log[key]) for table, column, key in (
        (tables.users, "source_id", "user_id"), (tables.rooms, "source_id", "room_id"),
        (tables.authors, "source_id", "author_id"))]
    return sorted(zip(*names, log["start_ms"], log["watch_ms"], strict=True))


def clock(ms, form="%Y-%m-%d %H:%M:%S"):
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).strftime(form)


FORMS = {
    "ms": (HEADER, lambda u, r, a, s, w: f"{u},{r},{a},{s},{w}"),
    "seconds": ("UID,Live ID,Anchor,Timestamp,Duration", lambda u, r, a, s, w: f"{u},{r},{a},{s // 1000},{w // 1000}"),
    "microseconds": ("viewer_id,sessionId,channel,ts,watch_s",
                     lambda u, r, a, s, w: f"{u},{r},{a},{s}000,{w // 1000}.0"),
    "clocks": ("user_id;stream_id;streamer_name;joined_at;left_at",
               lambda u, r, a, s, w: f"{u};{r};{a};{clock(s)};{clock(s + w)}"),
    "zones": ("user\troom_id\tauthor_id\tstart\tend", lambda u, r, a, s, w: "\t".join((
        u, r, a, clock(s + 480 * MIN, "%Y-%m-%dT%H:%M:%S+08:00"), clock(s + w, "%Y-%m-%dT%H:%M:%SZ")))),
    "minutes": ("user,room,author,start,minutes", lambda u, r, a, s, w: f"{u},{r},{a},{s}.0,{w // MIN}"),
    "lengths as clocks": ("user,room,author,started_at,watch_time", lambda u, r, a, s, w:
                          f"{u},{r},{a},{clock(s, '%Y/%m/%d %H:%M:%S')},{clock(w, '%H:%M:%S')}"),
}


@pytest.mark.parametrize("form", FORMS)
def test_columns_and_units_are_recognised(tmp_path, form):
    header, row = FORMS[form]
    options = Options(columns={"watch": "minutes"} if form == "minutes" else {})
    tables = read_log(write(tmp_path, [header, *(row(*view) for view in WANTED)]), options)
    assert views(tables) == WANTED
    assert tables.rooms.select("source_id", "start_ms", "end_ms").rows() == [
        ("r1", T, T + 45 * MIN), ("r2", T + 120 * MIN, T + 140 * MIN)]
    assert tables.rooms_are_true_lifetimes is False
    assert tables.report.about[0].startswith("columns: user ← ")


def test_a_folder_parquet_and_packed_files_are_one_log(tmp_path):
    write(tmp_path, [HEADER, ROWS[0]], "a[1].csv")
    write(tmp_path, ["start_ms,watch_ms,streamer,room,user", f"{T + 120 * MIN},{20 * MIN},kim,r2,ann"], "b.csv")
    pl.DataFrame([WANTED[2]], schema=["user", "room", "streamer", "start_ms", "watch_ms"], orient="row"
                 ).write_parquet(tmp_path / "c.parquet")
    (tmp_path / "notes.md").write_text("not a log")
    assert views(read_log(tmp_path)) == WANTED
    assert views(read_log(tmp_path / "a[1].csv")) == WANTED[:1]
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_log(tmp_path / "none.csv")


def test_columns_may_be_named_or_counted(tmp_path):
    rows = [f"{a},{s // 1000},{w / MIN},{u}" for u, _, a, s, w in WANTED]
    path = write(tmp_path, ["who,when,how_long,fan", *rows])
    tables = read_log(path, Options(parse_columns("user=fan,author=who,start=when:s,watch=how_long:min")))
    assert {(u, *view) for u, _, *view in views(tables)} == {(u, *view) for u, _, *view in WANTED}
    bare = write(tmp_path, rows, "bare.csv")
    counted = read_log(bare, Options(parse_columns("user=#4,author=#1,start=#2,watch=#3:min")))
    assert counted.interactions.equals(tables.interactions)
    with pytest.raises(ValueError, match=r"'viewer=x' is not FIELD=COLUMN; fields are user, author"):
        parse_columns("viewer=x")
    with pytest.raises(ValueError, match=r"watch=how_long:y: 'y' is not one of ms, s"):
        read_log(path, Options({"watch": "how_long:y"}))
    with pytest.raises(ValueError, match=r"has no column 'fans'.*it has who, when"):
        read_log(path, Options({"user": "fans"}))


def test_rooms_without_an_id_are_cut_at_gaps(tmp_path):
    rows = [f"1,lee,{T},{10 * MIN}", f"2,lee,{T + 39 * MIN},{60 * MIN}", f"1,lee,{T + 41 * MIN},{MIN}",
            f"1,lee,{T + 130 * MIN},{MIN}", f"1,kim,{T},{MIN}"]
    tables = read_log(write(tmp_path, ["user,author,start_ms,watch_ms", *rows]))
    assert tables.rooms.select("source_id", "start_ms", "end_ms").rows() == [
        ("kim/1", T, T + MIN), ("lee/1", T, T + 99 * MIN), ("lee/2", T + 130 * MIN, T + 131 * MIN)]
    reason = "row without a room: cut where its streamer pauses for 30 minutes (--room_gap_min)"
    assert tables.report.notes[reason] == 5
    shorter = read_log(tmp_path / "views.csv", Options(room_gap_min=28.9))
    assert shorter.rooms["source_id"].to_list() == ["kim/1", "lee/1", "lee/2", "lee/3"]


def test_some_rows_have_a_room_and_a_room_may_have_two_streamers(tmp_path):
    rows = [f"1,lee,r,{T},{MIN}", f"1,kim,r,{T},{MIN}", f"1,kim,,{T},{MIN}", f"2,lee,NULL,{T},{MIN}"]
    tables = read_log(write(tmp_path, ["user,author,room,start_ms,watch_ms", *rows]))
    assert tables.rooms["source_id"].to_list() == ["r", "r", "kim/1", "lee/1"]
    assert tables.rooms["author_id"].to_list() == [0, 1, 0, 1]
    assert tables.report.notes["room of several streamers (one room each)"] == 1


def test_rows_of_entering_and_leaving_are_paired_by_room(tmp_path):
    events = [("ann", "r1", T, "enter"), ("ann", "r2", T + MIN, "JOIN"), ("ann", "r1", T + 3 * MIN, "leave"),
              ("ann", "r2", T + 9 * MIN, "Exit"), ("ann", "r1", T + 9 * MIN, "enter"), ("bob", "r1", T, "leave"),
              ("bob", "r1", T + MIN, "enter"), ("bob", "r1", T + 2 * MIN, "like"), ("bob", "r1", T + 2 * MIN, "like"),
              ("bob", "r2", T + MIN, "dance"), ("bob", "r1", T + 4 * MIN, "leave"), ("bob", "r2", T, "impression")]
    lines = ["uid,room,channel,ts,event", *(f"{u},{r},{r}'s,{s},{e}" for u, r, s, e in events)]
    tables = read_log(write(tmp_path, lines))
    assert [(u, r, s - T, w) for u, r, _, s, w in views(tables)] == [
        ("ann", "r1", 0, 3 * MIN), ("ann", "r2", MIN, 8 * MIN), ("bob", "r1", MIN, 3 * MIN)]
    assert tables.interactions["like"].to_list() == [0, 0, 0, 2]
    assert tables.interactions.select("click", "watch_ms").rows()[2] == (False, 0)
    report = tables.report
    assert report.dropped == {"event is none of enter, leave, view, show, like, comment, follow, share, gift": 1,
                              "leaves a room that the person had not entered": 1,
                              "ts begins a view of unknown length (--default_watch_s gives it one)": 1}
    assert report.rows_read == 12 == report.rows_kept + sum(report.merged.values()) + sum(report.dropped.values())
    lengthy = read_log(tmp_path / "views.csv", Options(default_watch_s=30))
    assert ("ann", "r1", "r1's", T + 9 * MIN, 30_000) in views(lengthy)


def test_what_a_log_may_tell_more(tmp_path):
    lines = ["user,room,author,start_ms,watch_ms,likes,comment_cnt,followed,gift_value,rating,game,clicked,position,m",
             f"1,r,a,{T},5000,1,2.0,yes,3.5,4,chess,1,0,x", f"1,q,a,{T},,,,,,,go,0,1,x",
             f"1,q,b,{T + 1},7,0,0,no,0,,,1,,x"]
    tables = read_log(write(tmp_path, lines))
    assert tables.interactions.drop("user_id", "room_id", "author_id", "start_ms", "share", "negative").rows() == [
        (0, False, 0, 0, 0, 0.0, 1, None), (5000, True, 1, 2, 1, 3.5, 0, 4.0), (7, True, 0, 0, 0, 0.0, -1, None)]
    assert tables.rooms["category"].to_list() == [1, -1, 0]  # by the alphabet; the room q of b has none
    assert tables.report.about[1] == "columns not used: m"
    tables_lib.save(tables, tmp_path / "tables")
    assert tables_lib.load(tmp_path / "tables").interactions.equals(tables.interactions)


def test_true_lifetimes_and_views_that_lie_outside_of_them(tmp_path):
    header = "user,room,author,start_ms,watch_ms,room_start,room_end"
    lives = f"{T - 60 * MIN},{T + 60 * MIN}"
    tables = read_source("log", write(tmp_path, [header, *[f"{i},r,a,{T + i},{MIN},{lives}" for i in range(4)],
                                                 f"9,r,a,{T + 99 * MIN},{MIN},{lives}"]))
    assert tables.rooms.select("start_ms", "end_ms").rows() == [(T - 60 * MIN, T + 60 * MIN)]
    assert tables.rooms_are_true_lifetimes
    assert tables.report.notes["view that begins before its room does, or after its end"] == 1
    late = [f"{i},r,a,{T + 480 * MIN + i},{MIN},{lives}" for i in range(5)]
    with pytest.raises(ValueError, match=r"5 of 5 views lie outside their rooms' lives.*--utc_offset_hours"):
        read_source("log", write(tmp_path, [header, *late]))


def test_clocks_without_a_zone_are_local(tmp_path):
    path = write(tmp_path, ["user,author,start,stop", "1,a,2025-05-05 08:00:00,2025-05-05 08:10:00"])
    assert views(read_log(path, Options(utc_offset_hours=8.0))) == [("1", "a/1", "a", T, 10 * MIN)]
    assert views(read_log(path))[0][3] == T + 480 * MIN


def test_ids_are_strings_or_numbers_and_are_not_merged(tmp_path):
    rows = [f"{u},a,{T + i},{MIN}" for i, u in enumerate(("7", "7.0", "007", "10", "9"))]
    assert read_log(write(tmp_path, ["user,author,start_ms,watch_ms", *rows])).users["source_id"].to_list() == [
        "007", "10", "7", "9"]
    assert read_log(write(tmp_path, ["user,author,start_ms,watch_ms", *rows[:2], *rows[3:]])
                    ).users["source_id"].to_list() == ["7", "9", "10"]  # all are numbers: in their order


def test_limited_to_the_first_people(tmp_path):
    path = write(tmp_path, [HEADER, *ROWS])
    some = read_log(path, Options(limit_users=1))
    assert views(some) == WANTED[:2]
    assert some.users["source_id"].to_list() == ["ann"]
    assert some.report.dropped == {"row of a person beyond the first 1 (limit_users)": 1}
    read_source("log", path, Options(limit_users=1))  # most of the rows that are asked for are there


@pytest.mark.parametrize("lines, options, said", [
    (["user,start_ms,watch_ms", f"1,{T},5"], {}, ["lacks the column 'author'", "found user, start_ms", "--columns="]),
    (["user,author,start_ms", f"1,a,{T}"], {}, ["no column says how long a view is", "--default_watch_s=60"]),
    (["user,author,when,watch_s", "1,a,5,5"], {"columns": "start=when"}, ["column when: numbers like 5 are no date",
                                                                         "start=when:ms"]),
    (["user,author,start,watch_s", f"1,a,{T},5"], {"columns": "start=start:s"}, ["milliseconds since 1970, not sec"]),
    ([HEADER, ROWS[0], *[f"1,r,a,soon,{i}" for i in range(3)]], {}, ["only 1 of 4 rows", "start_ms is not a time",
                                                                   "line 3: soon; views.csv, line 4"]),
    ([HEADER, *[f"1,r,a,{T + i},5" for i in range(50)], *[f"1,r,a,{T // 1000 + i},5" for i in range(20)]], {},
     ["20 of 70 rows have a time in another unit", "line 52: 1746403200"]),
    ([HEADER, *[f"1,r,a,{T + i},{90_000_000 + i}" for i in range(5)]], {}, ["half of the views last 1.0 days", "unit"]),
    ([HEADER], {}, ["no row of the log can be used"]),
    (["user,author,start,watch_s", "1,a,1970-01-01 00:00:05,5"], {}, ["column start", "no log is from"]),
    (["user,author,start,watch_s", "1,a,2150-01-01,5"], {}, ["Thu 1 Jan 2150 00:00 UTC", "no log is from"]),
    ([HEADER, *ROWS, "1,r,a,soon,5"], {"bad_rows": "stop"}, ["views.csv, line 5, column start_ms: 'soon' is not a"]),
])
def test_what_cannot_be_understood_is_refused_with_the_remedy(tmp_path, lines, options, said):
    with pytest.raises(ValueError) as error:
        read_source("log", write(tmp_path, lines), options_of(**options))
    for part in said:
        assert part in str(error.value)


def test_one_far_date_is_left_out_and_named(tmp_path):
    tables = read_source("log", write(tmp_path, [HEADER, *ROWS, f"x,r1,lee,253402300799000,{MIN}",
                                                 f"x,r1,lee,{T},253402300799000"]))
    assert views(tables) == WANTED
    assert tables.report.examples == {
        "start_ms is in another unit than the column, or years from its other times": ["views.csv, line 5: "
                                                                                       "253402300799000"],
        "watch_ms is not a length of time, 0 or more": ["views.csv, line 6: 253402300799000"]}
