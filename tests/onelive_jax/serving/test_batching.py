"""Batches of what waits: their size, the bound of the queue, deadlines, errors, and an orderly end."""

import threading
import time

import pytest

from onelive_jax.serving.batching import Batcher, Full


class Held:
    """A batcher whose worker is held at its first batch until `go`."""

    def __init__(self, **how):
        self.go, self.started, self.batches, self.narrow = threading.Event(), threading.Event(), [], []
        options = dict(largest=4, queue_size=10, many=6) | how
        self.batcher = Batcher(self.answer, lambda asked: ("late", asked), **options)

    def answer(self, asked, many):
        self.batches.append(list(asked))
        self.narrow.append(many)
        self.started.set()
        self.go.wait(10)
        if "bad" in asked:
            raise ValueError("a bad one")
        return [("answer", each) for each in asked]

    def hold(self):
        first = self.batcher.ask(0, 60)
        assert self.started.wait(10)
        return first


def test_what_gathers_while_the_device_works_is_answered_together_in_order():
    held = Held()
    answers = [held.hold(), *(held.batcher.ask(i, 60) for i in range(1, 8))]
    held.go.set()
    assert [answer.result(10) for answer in answers] == [("answer", i) for i in range(8)]
    assert held.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
    assert held.narrow == [False, True, False]  # seven waited, then three
    held.batcher.close()


def test_a_full_queue_refuses_and_says_when_to_come_again():
    held = Held(queue_size=3)
    held.hold()
    for i in range(3):
        held.batcher.ask(i, 60)
    with pytest.raises(Full, match="3 requests are waiting") as refused:
        held.batcher.ask(9, 60)
    assert refused.value.retry_after >= 0.01
    held.go.set()
    held.batcher.close()


def test_who_would_be_late_gets_the_cheap_answer():
    held = Held()
    first = held.hold()
    soon, later = held.batcher.ask("soon", 0.0), held.batcher.ask("later", 60)
    held.go.set()
    assert (first.result(10), soon.result(10), later.result(10)) == (
        ("answer", 0), ("late", "soon"), ("answer", "later"))
    held.batcher.close()


def test_an_error_goes_to_those_of_its_batch_and_the_worker_goes_on():
    held = Held(largest=2)
    held.hold()
    pair, after = [held.batcher.ask(asked, 60) for asked in ("bad", "other")], held.batcher.ask("good", 60)
    held.go.set()
    for answer in pair:
        with pytest.raises(ValueError, match="a bad one"):
            answer.result(10)
    assert after.result(10) == ("answer", "good")
    held.batcher.close()


def test_tasks_run_in_the_worker_between_batches_in_order():
    held = Held()
    held.hold()
    order = []
    done = [held.batcher.run(lambda i=i: order.append((i, threading.current_thread().name))) for i in range(3)]
    answer = held.batcher.ask("x", 60)
    held.go.set()
    for task in done:
        task.result(10)
    assert order == [(i, "device") for i in range(3)]
    assert answer.result(10) == ("answer", "x")
    held.batcher.close()


def test_closing_answers_what_waits_and_takes_no_more():
    held = Held()
    answers = [held.hold(), held.batcher.ask(1, 60)]
    threading.Timer(0.05, held.go.set).start()
    held.batcher.close()
    assert [answer.result(0) for answer in answers] == [("answer", 0), ("answer", 1)]
    with pytest.raises(RuntimeError, match="shutting down"):
        held.batcher.ask(2, 60)
    assert not held.batcher._thread.is_alive()


def test_a_slow_batch_does_not_make_all_later_requests_late():
    held = Held()
    held.hold()
    time.sleep(0.3)
    held.go.set()
    kinds = [held.batcher.ask(i, 0.1).result(10)[0] for i in range(30)]
    assert kinds[-1] == "answer"
    held.batcher.close()
