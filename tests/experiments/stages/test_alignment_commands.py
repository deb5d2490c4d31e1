"""Reward model, policy and A/B test as stages, on the shared tiny run."""

import copy
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.simulator.platform import compare
from experiments.common import played, scoring
from experiments.common.workdir import save_config
from experiments.stages import ab_test, evaluate, online, policy, reward, supervised
from experiments.stages.supervised import load_supervised
from onelive_jax.config import AlignmentConfig, RewardConfig
from onelive_jax.training import checkpoints, pace, stopping
from onelive_jax.training.metrics import read
from tests.experiments.stages import all_phases

PLAN = online.OnlinePlan(rounds=2, requests=80, steps=2, judged_hours=6.0)


@pytest.fixture(scope="module")
def aligned(finished, tmp_path_factory):
    """(config, workdir, log, tokenizer, reward report, policy report) of a tiny alignment."""
    workdir = tmp_path_factory.mktemp("aligned") / "w"
    shutil.copytree(finished.workdir, workdir)
    config = copy.deepcopy(finished.config)
    config.reward = RewardConfig(dim=16, mlp_dim=16, tower_dim=8, num_heads=2, candidates=6, steps=12, batch_size=16,
                                 warmup_steps=2, ippo_every=6, log_every=1, checkpoint_every=6)
    config.alignment = AlignmentConfig(share=1.0, rows=4, group_size=4, beams=4, steps=6, warmup_steps=0, sync_every=3,
                                       learning_rate=3e-3,
                                       eval_every=3, checkpoint_every=3)
    config.validate()
    log, tokenizer = finished.trained.log, finished.trained.tokenizer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward, "LEAST_POSITIVES", 2)  # there are few rows to balance objectives on
        _, _, reward_report = reward.train_reward(config, workdir, log, tokenizer)
    save_config(config, workdir)
    _, _, policy_report = policy.train_policy(config, workdir, log, tokenizer, workdir / "supervised")
    return config, workdir, log, tokenizer, reward_report, policy_report


def test_the_reward_report_has_every_objective_of_the_log(aligned):
    config, workdir, log, _, report, _ = aligned
    assert list(report["objectives"]) == ["click", "long_view", "watch", *[
        name for name in ("like", "comment", "follow", "share", "gift") if name in log.outcomes]]
    click = report["objectives"]["click"]
    assert 0 < click["auc"] < 1
    assert 0 < click["mean"] < 1
    assert click["rows"] > 50
    assert report == json.loads((workdir / "reward.json").read_text())
    steps = [line for line in read(workdir / "reward") if "validation/auc_click" in line]
    assert [line["step"] for line in steps] == [6, 12]
    assert np.mean(list(report["weights"].values())) == pytest.approx(1, abs=1e-5)
    assert np.std(list(report["weights"].values())) > 0


def clocked_out(folder: Path) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in pace.CLOCKED} for line in read(folder)]


@pytest.fixture(scope="module")
def rounds(aligned) -> dict:
    """The report of two online rounds, in the workdir of `aligned`."""
    config, workdir, *_ = aligned
    return online.online(config, workdir, workdir / "supervised", PLAN)


def stop_at(monkeypatch, step: int) -> None:
    """SIGTERM when the phase has taken so many steps."""
    tick, ticks = pace.Stopwatch.tick, []

    def tick_and_signal(clock, state):
        tick(clock, state)
        ticks.append(1)
        if len(ticks) == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(pace.Stopwatch, "tick", tick_and_signal)


def check_same(one: Path, two: Path) -> None:
    """The same metrics and, bit for bit, the same last checkpoint."""
    assert clocked_out(one) == clocked_out(two)
    last = max(int(entry.name) for entry in one.iterdir() if entry.name.isdigit())
    jax.tree.map(np.testing.assert_array_equal, *(checkpoints.read(folder, last) for folder in (one, two)))


@pytest.mark.parametrize(("phase", "step"), [("supervised", 8), ("reward", 12), ("policy", 2)])
def test_every_phase_stops_alike_and_resumes_bit_for_bit(aligned, tmp_path, monkeypatch, phase, step):
    """SIGTERM: the step is saved, and the exit code is 75. (At every step of the one loop: test_loop.py.)"""
    config, workdir, log, tokenizer, *_ = aligned
    copied = tmp_path / "w"
    shutil.copytree(workdir, copied, ignore=shutil.ignore_patterns(f"{phase}*"))
    monkeypatch.setattr(reward, "LEAST_POSITIVES", 2)
    run = {"supervised": lambda: supervised.train_supervised(config, copied, log, tokenizer),
           "reward": lambda: reward.train_reward(config, copied, log, tokenizer),
           "policy": lambda: policy.train_policy(config, copied, log, tokenizer, workdir / "supervised")}[phase]
    stop_at(monkeypatch, step)
    with pytest.raises(stopping.Stopped) as stopped:
        run()
    assert stopped.value.code == 75
    _, params, _ = run()
    check_same(workdir / phase, copied / phase)
    before, now = (json.loads((folder / f"{phase}.json").read_text()) for folder in (workdir, copied))
    for name in ("chosen_step", "validation", "objectives"):
        assert now.get(name) == before.get(name)
    jax.tree.map(np.testing.assert_array_equal, params,
                 checkpoints.restore_params(workdir / phase, step=before["chosen_step"]))


def test_a_policy_run_judges_syncs_and_hands_on(aligned):
    config, workdir, _, _, _, report = aligned
    assert [line["step"] for line in report["validation"]] == [0, 3, 6]
    assert {"hr@10", "hr@128", "ndcg@10", "predicted_reward"} <= report["validation"][0].keys()
    lines = [line for line in read(workdir / "policy") if "train/ratio_max" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        # At the first step, and at the first after the reference was renewed, policy and reference are one.
        same = abs(line["train/ratio_max"] - 1) < 1e-4
        assert same == (line["step"] in (1, 4)), (line["step"], line["train/ratio_max"])
    begun, first, ended = (policy.load_params(workdir / phase, step) for phase, step in (
        ("supervised", None), ("policy", 0), ("policy", config.alignment.steps)))
    jax.tree.map(np.testing.assert_array_equal, begun, first)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), begun, ended)
    assert max(jax.tree.leaves(moved)) > 0


def test_two_processes_do_what_one_does_stop_together_and_one_goes_on(aligned, tmp_path):
    """All phases in two processes (gloo), from the tokenizer on. The supervised phase, with parameters and moments
    split over both, goes on from what one process left half way. SIGTERM to one of the two stops both after the same
    step of the policy; one process alone resumes from there, and ends where the run of one process ended."""
    config, workdir, log, tokenizer, reward_report, _ = aligned
    copied = tmp_path / "w"
    shutil.copytree(workdir, copied, ignore=shutil.ignore_patterns("tokenizer*", "supervised*", "reward*", "policy*"))
    half, folder = config.training.steps // 2, copied / "supervised"
    shutil.copytree(workdir / "supervised", folder, ignore=shutil.ignore_patterns(
        "done.json", *(str(step) for step in range(half + 1, config.training.steps + 1))))
    assert sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())[-1] == half
    root = Path(__file__).resolve().parents[3]
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    processes = [subprocess.Popen(
        [sys.executable, "-m", "tests.experiments.stages.all_phases", f"--workdir={copied}", f"--process={number}",
         f"--config={root}/experiments/configs/saved.py:{workdir}", f"--coordinator=localhost:{port}",
         "--processes=2"], cwd=root, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for number in range(2)]
    try:
        said = [process.communicate(timeout=1500) for process in processes]
    finally:
        for process in processes:
            process.kill()  # one that waits for another for ever must not outlive the test
    assert [process.returncode for process in processes] == [75] * 2, said
    stopped = max(int(entry.name) for entry in (copied / "policy").rglob("[0-9]*") if entry.name.isdigit()
                  and entry.parent.name in ("policy", "pending_validation"))  # there where its validation is due
    assert all_phases.SIGNALLED <= stopped < config.alignment.steps
    assert f"saved at step {stopped}; run the same command to resume" in said[0][1]
    assert "2 processes, 2 devices" in said[0][1]
    assert f"resuming {folder} from step {half}" in said[0][1]
    # The other process says nothing, whatever libraries do.
    clocked = re.compile(r"^\d\d:\d\d:\d\d ", re.MULTILINE)  # how every line of the log begins
    assert len(clocked.findall(said[0][1])) > 3
    assert not clocked.findall(said[1][1])
    assert all(line.startswith("[Gloo]") for line in said[1][0].splitlines()), said[1][0]
    assert not (copied / "prepared").exists()

    for phase, steps in (("supervised", config.training.steps), ("reward", config.reward.steps), ("policy", stopped)):
        two, one = ({line["step"]: line["train/loss"] for line in read(folder / phase) if "train/loss" in line}
                    for folder in (copied, workdir))
        assert list(two) == list(range(1, steps + 1))  # by process 0 alone: every step once
        np.testing.assert_allclose([two[step] for step in two], [one[step] for step in two], rtol=1e-4)
    np.testing.assert_allclose(list(json.loads((copied / "reward.json").read_text())["weights"].values()),
                               list(reward_report["weights"].values()), rtol=0.02)
    policy.train_policy(config, copied, log, tokenizer, copied / "supervised")
    one, two = (checkpoints.read(folder / "policy", config.alignment.steps) for folder in (workdir, copied))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), two["params"], one["params"])
    assert two["data"] == one["data"]
    assert two["meta"]["key"] == one["meta"]["key"]


@pytest.fixture(scope="module")
def stage(aligned):
    config, _, log, tokenizer, *_ = aligned
    platform = played.make_platform(config, log)
    return platform, played.platform_arrays(config, log, platform, tokenizer)


def test_a_played_model_sees_what_evaluation_sees(aligned, stage):
    """At a moment of the log, features, codes and order are those that the model is evaluated with."""
    config, workdir, log, tokenizer, _, _ = aligned
    platform, arrays = stage
    maker = log.batch_maker(tokenizer.ids, config)
    task = scoring.targets(log, config, "test", "strict")
    r = np.arange(min(8, task.user.size))
    told = platform.rooms_for(platform.requests(0, 0)._replace(
        user=task.user[r].astype(np.int32), time_ms=task.time_ms[r], key=r.astype(np.uint64)))
    ours, theirs = arrays.rooms(told, r), maker.live_rooms(maker.on_air(task.user[r], task.time_ms[r]),
                                                           task.time_ms[r], arrays.slots)[0]
    for i in r:
        ours_at, theirs_at = np.argsort(ours.author[i][ours.mask[i]]), np.argsort(theirs.author[i][theirs.mask[i]])
        for name in ("author", "codes"):
            np.testing.assert_array_equal(getattr(ours, name)[i][ours.mask[i]][ours_at],
                                          getattr(theirs, name)[i][theirs.mask[i]][theirs_at])
        np.testing.assert_allclose(ours.features[i][ours.mask[i]][ours_at][:, 1],
                                   theirs.features[i][theirs.mask[i]][theirs_at][:, 1], rtol=1e-5)
    request = arrays.requests(told.log).request(told.user, told.time_ms)
    jax.tree.map(np.testing.assert_array_equal, request, maker.request(task.user[r], task.time_ms[r]))


def test_a_played_model_ranks_as_the_report_does(aligned, stage, finished):
    """Codes alone: ties are broken by the towers here as there."""
    config, workdir, log, tokenizer, _, _ = aligned
    platform, _ = stage
    config = dataclasses.replace(config, decoding=dataclasses.replace(config.decoding, identity_weight=0.0))
    model, params = finished.trained.model, finished.trained.params
    task, maker = scoring.targets(log, config, "test", "strict"), log.batch_maker(tokenizer.ids, config)
    score = scoring.score(scoring.make_ranker(model, config, tokenizer, log), params, maker, task)
    r = np.arange(min(8, task.user.size))
    told = platform.rooms_for(platform.requests(0, 0)._replace(
        user=task.user[r].astype(np.int32), time_ms=task.time_ms[r], key=r.astype(np.uint64)))
    shown = played.ranking(model, config, log, platform, tokenizer, k=6)(params)(told)
    for i in r:
        part = slice(task.offsets[i], task.offsets[i + 1])
        best = task.candidates[part][np.argsort(-score[part])][:6]
        assert platform.world.room_author[shown[i][shown[i] >= 0]].tolist() == best.tolist()


def test_codes_move_on_in_the_played_period(aligned, stage):
    _, _, log, tokenizer, _, _ = aligned
    platform, arrays = stage
    world = platform.world
    everyone = np.arange(log.num_authors)
    np.testing.assert_array_equal(arrays.ids.codes_at(everyone, world.end_ms - 1),
                                  tokenizer.ids.codes_at(everyone, world.end_ms - 1))
    late = arrays.ids.from_ms > world.end_ms
    assert late.any()
    moved = arrays.ids.codes[late] != tokenizer.ids.codes_at(arrays.ids.author[late], world.play_end_ms)
    assert moved.any()


def test_an_ab_test_of_two_phases(aligned):
    _, workdir, *_ = aligned
    report = ab_test.ab_test(str(workdir), str(workdir / "policy"), 150, 0)
    printed = ab_test.format_table(report["observed"])
    for label in ab_test.ROWS.values():
        assert f"\n{label} " in printed
    assert report["observed"]["utility"]["control"] > 0
    assert report["observed"]["utility"]["low"] <= report["observed"]["utility"]["lift"]
    with pytest.raises(ValueError, match="must be a trained workdir"):
        ab_test.ab_test("viewers", "random", 10, 0)
    with pytest.raises(FileNotFoundError, match="neither a trained workdir"):
        ab_test.ab_test("viewers", "nowhere", 10, 0)


def test_draws_log_the_policys_own_probabilities(stage, finished):
    platform, arrays = stage
    requests = platform.requests(80, seed=3)
    policy = played.drawer(arrays, finished.trained.model)(finished.trained.params)
    first, again = platform.play(policy, requests), platform.play(policy, requests)
    np.testing.assert_array_equal(first.room, again.room)
    there = first.room >= 0
    assert (first.propensity[there] < 1).mean() > 0.9
    assert (first.propensity[:, :6].sum(1) <= 6).all()
    part = type(requests)(*(column[10:20] for column in requests))
    np.testing.assert_array_equal(platform.play(policy, part).room, first.room[10:20])
    assert compare(first, again)["utility"].lift == 0


def test_a_policy_cannot_start_from_another_log_or_tokenizer(aligned, finished, tmp_path):
    config, workdir, log, tokenizer, *_ = aligned
    shutil.copytree(finished.workdir, tmp_path / "w2")
    folder = tmp_path / "w2" / "supervised"
    files = [folder / "done.json", *folder.glob("*/meta/metadata")]
    for name, value in (("log", "another"), ("tokenizer.steps", 31)):
        for file in files:
            file.write_text(re.sub(rf'"{name}": [^,]+,', f'"{name}": {json.dumps(value)},', file.read_text()))
        with pytest.raises(ValueError, match=rf"w2/supervised was trained with another log, .* workdir \(.*{name}: "):
            supervised.load_fitting(folder, config, log)
    with pytest.raises(ValueError, match="was trained with another log"):
        policy.train_policy(config, workdir, log, tokenizer, folder, "policy_other")
    trained_otherwise = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.0))
    supervised.load_fitting(workdir / "supervised", trained_otherwise, log)


def test_logged_feedback_can_be_the_reward(aligned, tmp_path):
    config, workdir, log, tokenizer, _, _ = aligned
    shutil.copytree(workdir, tmp_path / "w")
    config = copy.deepcopy(config)
    config.alignment = dataclasses.replace(config.alignment, loss="gbpo", reward="feedback", sampler="logged", steps=2,
                                           eval_every=2)
    _, _, report = policy.train_policy(config.validate(), tmp_path / "w", log, tokenizer, workdir / "supervised",
                                             "policy_logged")
    assert report["left_out"]["requests without a click"] > 0
    lines = [line for line in read(tmp_path / "w" / "policy_logged") if "train/groups" in line]
    assert lines[0]["train/groups"] > 0
    assert lines[0]["train/candidates"] > 1
    assert "predicted_reward" not in report["validation"][0]


def test_rounds_are_learned_from_and_logged(aligned, rounds):
    config, workdir, *_ = aligned
    report = rounds
    first, second = report["rounds"]
    assert first["lift"] == 0  # nothing has been learned yet: both arms draw the same rooms
    assert second["learning"] > 0
    # What was logged are the probabilities of the very policy that learns: at its first step every ratio is 1.
    steps = read(workdir / "online")
    assert steps[0]["train/ratio_max"] == pytest.approx(1, abs=1e-3)
    assert steps[0]["train/ratio_min"] == pytest.approx(1, abs=1e-3)
    assert abs(steps[1]["train/ratio_max"] - 1) > 1e-3
    # Each round's policy is judged on the same requests: what it is compared with is the same.
    assert len({line["control"] for line in report["judged"]}) == 1
    assert len({line["learning"] for line in report["judged"]}) == 2
    assert re.search(r"^2 ", online.format_rounds(report["rounds"]), re.MULTILINE)
    with pytest.raises(ValueError, match=r"requests: 80 then, 81 now"):
        online.online(config, workdir, workdir / "supervised", dataclasses.replace(PLAN, requests=81))


def test_a_mistyped_online_command_leaves_nothing_behind(aligned, tmp_path):
    config, workdir, *_ = aligned
    shutil.copytree(workdir, tmp_path / "w", ignore=shutil.ignore_patterns("online*"))
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no finished phase"):
        online.online(config, tmp_path / "w", tmp_path / "nowhere", PLAN)
    with pytest.raises(ValueError, match="leaves no time for rounds"):
        online.online(config, tmp_path / "w", workdir / "supervised", dataclasses.replace(PLAN, judged_hours=999.0))
    assert not (tmp_path / "w" / "online").exists()


def test_rounds_go_on_after_a_stop_and_a_kill(aligned, rounds, tmp_path, monkeypatch):
    config, workdir, *_ = aligned
    shutil.copytree(workdir, tmp_path / "w", ignore=shutil.ignore_patterns("online*"))
    folder, training_batches, made = tmp_path / "w" / "online", online.training_batches, []

    def run(plan=PLAN):
        return online.online(config, tmp_path / "w", workdir / "supervised", plan)

    def killed(*arguments):
        made.append(1)
        if len(made) == 2:
            raise InterruptedError
        return training_batches(*arguments)

    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        with pytest.raises(stopping.Stopped) as stopped:
            run()
    assert stopped.value.code == 75
    with monkeypatch.context() as patch:
        patch.setattr(online, "training_batches", killed)
        with pytest.raises(InterruptedError):  # when the second round has been shown, before its first step
            run()
    assert (folder / "shown_2.npz").is_file()
    with pytest.raises(ValueError, match=r"requests: 80 then, 81 now"):
        run(dataclasses.replace(PLAN, requests=81))
    assert run() == rounds
    assert [line["step"] for line in read(folder)] == [1, 2, 3, 4]
    check_same(workdir / "online", folder)


def test_judged_hours_leave_time_for_rounds(aligned):
    config, _, log, *_ = aligned
    platform = played.make_platform(config, log)
    assert online.edges_of(platform, PLAN)[0] == platform.world.end_ms
    assert online.edges_of(platform, PLAN)[-1] == platform.world.play_end_ms - 6 * 3_600_000
    plan = dataclasses.replace(PLAN, judged_hours=1000.0)
    with pytest.raises(ValueError, match=r"--judged_hours=1000 leaves no time for rounds: the played period has \d+ h"):
        online.edges_of(platform, plan)


def test_targets_can_weigh_as_much_as_they_were_watched(aligned):
    config, workdir, log, tokenizer, _, _ = aligned
    few = evaluate.weighted_lift(np.array([1.0, 0.0]), np.array([0.5, 0.5]), np.array([1.0, 3.0]))
    assert (few["control"], few["treatment"], few["lift"]) == (0.25, 0.5, 1.0)
    model, params, _ = load_supervised(config, workdir, log)
    figures = evaluate.compare_policies(log, config, scoring.make_ranker(model, config, tokenizer, log), params, params,
                                        log.batch_maker(tokenizer.ids, config), "test", "strict")
    assert figures["watch ndcg@10"]["lift"] == figures["watch ndcg@10"]["high"] == 0
    assert figures["watch ndcg@10"]["control"] != figures["ndcg@10"]["control"]
    assert "watch ndcg@10" in evaluate.format_policies(figures)
