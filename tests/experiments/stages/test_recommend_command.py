"""The commands that ask a finished run: which rooms now, and what its rankings are worth."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from experiments.common import scoring
from experiments.stages import evaluate, recommend
from onelive_jax.config import Config
from onelive_jax.decoding.recommend import make_recommender

ROOT = Path(__file__).resolve().parents[3]
ALL_ROOMS = 16


@pytest.fixture(scope="module")
def compiled():
    """Recommenders by their settings: they are pure, so one compilation serves all questions."""
    known = {}

    def compiled(model, config, k):
        key = (id(model), k, *vars(config).items())
        if key not in known:
            known[key] = make_recommender(model, config, k=k)
        return known[key]
    return compiled


@pytest.fixture
def ask(finished, compiled):
    """(user, time, settings) → the rooms that `recommend` returns."""
    def ask(user: int, time_ms: int, k: int = ALL_ROOMS, config=None):
        t = finished.trained
        config = config or finished.config
        rank = compiled(t.model, config.decoding, k)
        return recommend.recommend(config, t.log, t.tokenizer.ids, rank, t.params, user, time_ms)
    return ask


@pytest.fixture
def evening(finished) -> int:
    """A moment of the test period with many rooms on air."""
    log = finished.trained.log
    times = log.views.start_ms[log.views.start_ms >= log.split.p2_ms]
    on_air = log.presence.at(times, np.full(times.size, -1))
    return int(times[np.argmax(np.diff(on_air.offsets))])


@pytest.fixture
def answer(finished, monkeypatch, capsys):
    """Runs a command's main with these flags; returns what it printed."""
    def answer(command: str, config=None, **values) -> str:
        command = importlib.import_module(f"experiments.{command}")
        monkeypatch.setattr(command.absl_flags, "FLAGS", SimpleNamespace(**values))
        command.main(config or finished.config, finished.workdir)
        return capsys.readouterr().out
    return answer


def test_exactly_the_rooms_on_air_are_recommended_best_first(ask, evening, finished):
    log, ids = finished.trained.log, finished.trained.tokenizer.ids
    rooms = log.tables.rooms.filter((pl.col("start_ms") <= evening) & (evening < pl.col("end_ms")))
    views = log.tables.interactions.filter(pl.col("watch_ms") > 0)
    watching = views.filter((pl.col("start_ms") <= evening)
                            & (evening < pl.col("start_ms") + pl.col("watch_ms")))
    assert len(rooms) >= 4
    busiest = int(np.argmax(np.diff(log.views.user_ptr)))
    somebody = watching["user_id"][0]
    for user in (busiest, somebody):
        answer = ask(user, evening)
        assert [row["rank"] for row in answer] == list(range(1, len(answer) + 1))
        assert {row["author"] for row in answer} == set(map(str, rooms["author_id"]))
        assert len({row["author"] for row in answer}) == len(answer)
        scores = [row["score"] for row in answer]
        assert scores == sorted(scores, reverse=True)
        for row in answer:
            author, room = int(row["author"]), int(row["room"])
            assert (rooms.filter(pl.col("room_id") == room)["author_id"] == author).all()
            assert room in rooms["room_id"]
            assert row["codes"] == ids.codes_at(np.array([author]), np.array([evening]))[0].tolist()
            mine = views.filter((pl.col("user_id") == user) & (pl.col("author_id") == author))
            assert row["views"] == len(mine.filter(pl.col("start_ms") < evening))
            assert row["viewers"] == len(watching.filter((pl.col("author_id") == author)
                                                         & (pl.col("user_id") != user)))
    assert sum(row["views"] for row in ask(busiest, evening)) > 0


def test_k_is_a_limit_and_the_best_stay(ask, evening):
    assert ask(3, evening, k=2) == ask(3, evening)[:2]


def test_the_ranking_is_the_one_that_evaluation_scores(ask, finished):
    """Serving, with one catalogue in slots of its own, and evaluation, one catalogue a request, agree."""
    t = finished.trained
    maker = t.log.batch_maker(t.tokenizer.ids, finished.config)
    task = scoring.make_task(t.log, finished.config, "test", "strict")
    scores = scoring.score(scoring.make_ranker(t.model, finished.config, t.tokenizer, t.log), t.params, maker, task)
    for r in range(0, task.user.size, 20):
        part = slice(task.offsets[r], task.offsets[r + 1])
        expected = dict(zip(map(str, task.candidates[part]), scores[part].tolist(), strict=True))
        answer = {row["author"]: row["score"] for row in ask(int(task.user[r]), int(task.time_ms[r]))}
        assert answer.keys() == expected.keys()
        for author, score in answer.items():
            assert score == pytest.approx(expected[author], abs=2e-3)


def test_more_rooms_than_the_index_holds_is_refused(ask, evening, finished, make_config):
    with pytest.raises(ValueError, match=r"holds 2 rooms.*config.decoding.capacity"):
        ask(3, evening, config=make_config(decoding__capacity=2))


def test_nobody_on_air_is_an_empty_answer(ask, finished, answer, monkeypatch):
    log = finished.trained.log
    before = int(log.views.start_ms.min())
    quiet = int(log.lifetimes.end_ms.max()) + 1
    assert ask(3, quiet) == []
    assert ask(3, before)  # somebody watched something then, and this person had no history yet
    monkeypatch.setattr(recommend, "recommend", lambda *args: [])
    said = answer("recommend", user="3", at=before, k=3, json=False, phase="supervised")
    assert said == "no room is on air at that moment\n"
    assert answer("recommend", user="3", at=before, k=3, json=True, phase="supervised") == "[]\n"


def test_a_person_without_history_gets_rooms(ask, finished, evening):
    log = finished.trained.log
    user = int(np.argmin(log.views.start_ms[np.minimum(log.views.user_ptr[:-1], log.views.start_ms.size - 1)]))
    first = int(log.views.start_ms[log.views.user_ptr[user]])
    assert all(row["views"] == 0 for row in ask(user, first))


def test_tables_and_json_say_the_same(answer, ask, evening):
    rooms = ask(3, evening, k=3)
    assert json.loads(answer("recommend", user="3", at=evening, k=3, json=True, phase="supervised")) == rooms
    head, rule, *lines = answer("recommend", user="3", at=evening, k=3, json=False, phase="supervised").splitlines()
    assert head.split() == ["rank", "author", "room", "score", "codes", "own", "views", "viewers"]
    assert [line.split()[:3] for line in lines] == [[str(r["rank"]), r["author"], r["room"]] for r in rooms]
    assert len({len(line) for line in (head, rule, *lines)}) == 1


@pytest.mark.parametrize("user,at,sentence", [
    ("nobody", None, r"--user=nobody: the log has no such user; ids look like 0, 1, 2, 3, 4, …"),
    ("3", 5, r"--at=5 is outside the log, which runs from \d+ to \d+ milliseconds"),
    ("3", 10**14, r"--at=100000000000000 is outside the log"),
])
def test_unknown_people_and_times_are_told(answer, user, at, sentence):
    with pytest.raises(ValueError, match=sentence):
        answer("recommend", user=user, at=at, k=3, json=False, phase="supervised")


def test_moments_of_a_log_in_rounds(finished, make_config):
    log, round_ms = finished.trained.log, 600_000
    twitch = make_config(data__source="twitch", data__path="log.csv")
    now = log.split.p2_ms // round_ms
    assert recommend.moment(log, twitch, now) == now * round_ms
    assert recommend.moment(log, twitch, log.split.p2_ms) == log.split.p2_ms  # too large for a round: milliseconds
    assert recommend.moment(log, twitch, None) == log.split.end_ms - 1
    with pytest.raises(ValueError, match=rf"to {log.split.end_ms // round_ms} rounds"):
        recommend.moment(log, twitch, 7)


@pytest.mark.parametrize("split,protocol", [("test", "strict"), ("validation", "liverec")])
def test_evaluate_prints_the_table(answer, finished, split, protocol):
    printed = answer("evaluate", split=split, protocol=protocol, policy=None)
    assert f"tiny: {split} split, {protocol} protocol" in printed
    rows = {line.split()[0]: line for line in reversed(printed.splitlines()) if line}  # of the first table
    assert {"onelive", "viewers", "popularity", "own_counts", "own_counts_time", "own_counts_knn"} <= rows.keys()
    if (split, protocol) == ("test", "strict"):
        figures = finished.trained.report["protocols"]["strict"]
        assert f"{figures['all']['ndcg@10']:.3f}" in rows["onelive"]
        assert "/".join(str(figures[group]["n"]) for group in ("all", "repeat", "new")) in rows["onelive"]


def test_a_period_without_targets_is_told(finished):
    t = finished.trained
    log = SimpleNamespace(views=t.log.views, presence=t.log.presence,
                          split=t.log.split._replace(p2_ms=t.log.split.end_ms + 1))
    with pytest.raises(ValueError, match=r"the test period has no target .*config.data.test_hours longer"):
        evaluate.evaluate(finished.config, log, None, None, None, "test", "strict", None)


def test_the_command_line(finished, evening, ask, tmp_path):
    """A person's answers, and for every mistake one sentence and an exit code, from real processes side by side."""
    workdir = f"--workdir={finished.workdir}"
    commands = {
        "rooms": ["recommend", workdir, "--user=3", f"--at={evening}", "--k=3", "--json"],
        "nobody": ["recommend", workdir, "--user=nobody"],
        "late": ["recommend", workdir, "--user=3", "--at=99999999999999"],
        "small": ["recommend", workdir, "--user=3", f"--at={evening}", "--config.decoding.capacity=2"],
        "untrained": ["evaluate", f"--workdir={tmp_path}"],
    }
    running = {name: subprocess.Popen([sys.executable, "-m", f"experiments.{args[0]}", *args[1:]], cwd=ROOT, text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ))
               for name, args in commands.items()}
    ended = {name: (*process.communicate(timeout=300), process.returncode) for name, process in running.items()}
    out, err, code = ended.pop("rooms")
    assert code == 0, err
    assert json.loads(out) == ask(3, evening, k=3)
    for name, (words, expected_code) in {
            "nobody": ("--user=nobody: the log has no such user", 1), "late": ("is outside the log", 1),
            "small": ("config.decoding.capacity", 1), "untrained": ("config.json is missing: train first", 2)}.items():
        out, err, code = ended[name]
        assert (code, out) == (expected_code, ""), err
        assert words in err
        assert "Traceback" not in err
        assert err.startswith("experiments.")
        assert err.count("\n") == 1, err


def test_a_short_log_in_rounds_takes_milliseconds_too():
    rounds = 600_000
    log = SimpleNamespace(views=SimpleNamespace(start_ms=np.array([2 * rounds])),
                          split=SimpleNamespace(end_ms=9 * rounds))
    config = Config()
    assert recommend.moment(log, config, None) == 9 * rounds - 1
    assert recommend.moment(log, config, 5) == 5 * rounds
    assert recommend.moment(log, config, 5 * rounds) == 5 * rounds  # milliseconds, although the log is short
    for outside in (1, 10, 10 * rounds):
        with pytest.raises(ValueError, match=r"from 1200000 to 5400000 milliseconds \(day 1.*\), or 2 to 9 rounds"):
            recommend.moment(log, config, outside)
    config.data.source = "canonical"
    assert recommend.moment(log, config, 3 * rounds) == 3 * rounds
    with pytest.raises(ValueError, match=r"from 1200000 to 5400000 milliseconds \(day 1, 00:20 to day 1, 01:30\)$"):
        recommend.moment(log, config, 5)
