"""Laws of sharing an engine: everybody gets their own answer, nobody waits for who is slow, broken or greedy."""

import asyncio
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from nanochat_pl.engine import Engine, Request
from nanochat_pl.serve import worker as worker_module
from nanochat_pl.serve.handle import EndReason, GenerationHandle, QueueFull, WorkerClosed
from nanochat_pl.serve.worker import Worker
from tests.integration.serving import TestEngine, tiny_model, tiny_tokenizer, wait_until

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17], [4], [18, 19, 20, 21, 22]]


@pytest.fixture(scope="module")
def model():
    return tiny_model(tiny_tokenizer())


@pytest.fixture
def engine(model) -> TestEngine:
    return TestEngine(model, [], None, "float32")


@pytest.fixture
def worker(engine) -> Iterator[Worker]:
    worker = Worker(engine, batch_size=2, queue_limit=8)
    yield worker
    engine.step_s = 0.0
    worker.close()


def asked(num_tokens: int = 4, prompt: int = 1) -> Request:
    return Request([prompt], num_tokens)


def tokens_of(handle: GenerationHandle) -> list[int]:
    return [event.token for event in iter(handle.events.get, None)]


def end_of(handle: GenerationHandle) -> EndReason:
    tokens_of(handle)
    return handle.end


def test_an_answer_does_not_depend_on_who_shares_the_batch(model, engine):
    worker = Worker(engine, batch_size=3, queue_limit=100)
    requests = [Request(prompt, 3 + 5 * i % 17, seed=i) for i, prompt in enumerate(PROMPTS * 3)]
    handles = [worker.submit([request], client=str(i % 5))[0] for i, request in enumerate(requests)]
    alone = Engine(model, [], None, "float32")
    for handle, request in zip(handles, requests, strict=True):
        assert tokens_of(handle) == alone.run([request], 1)[0].tokens
        assert handle.end is EndReason.length
    state = worker.state()
    assert (state.active, state.waiting, state.ended) == (0, 0, {"length": len(requests)})
    assert state.new_tokens == sum(len(alone.run([request])[0].tokens) for request in requests)
    assert state.prompt_tokens == sum(len(request.prompt) for request in requests)
    worker.close()


def test_a_handle_reads_the_same_in_asyncio_and_in_a_thread(worker):
    async def read() -> list[int]:
        (handle,) = worker.submit([asked(12)])
        return [event.token async for event in handle]

    assert asyncio.run(read()) == tokens_of(worker.submit([asked(12)])[0])


def test_a_full_queue_takes_all_requests_of_a_submit_or_none(worker, engine):
    engine.step_s = 0.05
    worker.submit([asked(100)] * 2)
    wait_until(lambda: worker.state().active == 2)
    worker.submit([asked()] * 6)
    with pytest.raises(QueueFull) as caught:
        worker.submit([asked()] * 3)
    assert 1 <= caught.value.retry_after_s <= 60
    assert worker.state().waiting == 6
    worker.submit([asked()] * 2)
    assert worker.state().waiting == 8


def test_one_client_cannot_fill_a_queue_that_is_shared(engine):
    engine.step_s = 0.05
    worker = Worker(engine, batch_size=1, queue_limit=8, client_limit=3)
    worker.submit([asked(100)])
    wait_until(lambda: worker.state().active == 1)
    worker.submit([asked()] * 3, "many")
    with pytest.raises(QueueFull, match="one client"):
        worker.submit([asked()], "many")
    worker.submit([asked()] * 3, "other")
    worker.close()


def test_a_single_request_does_not_wait_for_another_clients_many(worker):
    many = worker.submit([asked(20) for _ in range(8)], "many")
    (one,) = worker.submit([asked(20)], "one")
    assert end_of(one) is EndReason.length
    assert sum(handle.end is not None for handle in many) <= 4
    assert [end_of(handle) for handle in many] == [EndReason.length] * 8
    assert all(handle.entered <= later.entered for handle, later in pairwise(many))


def test_a_free_row_goes_to_the_client_with_the_fewest_rows(engine):
    engine.step_s = 0.02
    worker = Worker(engine, batch_size=4, queue_limit=20)
    worker.submit([asked(200)] * 3, "many")
    (short,) = worker.submit([asked(8)], "many")
    wait_until(lambda: worker.state().active == 4)
    more = worker.submit([asked(200)], "many")[0]
    other = worker.submit([asked(200)], "other")[0]  # came later, and holds nothing
    assert end_of(short) is EndReason.length
    wait_until(lambda: other.entered is not None)
    assert more.entered is None
    worker.close()


def test_a_cancelled_request_frees_its_row(worker, engine):
    engine.step_s = 0.01
    running = worker.submit([asked(200)] * 2)
    waiting = worker.submit([asked(3), asked(3)])
    wait_until(lambda: worker.state().active == 2)
    waiting[1].cancel()
    assert end_of(waiting[1]) is EndReason.cancelled
    running[0].cancel()
    assert end_of(waiting[0]) is EndReason.length
    assert running[1].end is None
    running[1].cancel()
    running[1].cancel()
    wait_until(lambda: worker.state().active == 0)
    assert end_of(running[0]) is EndReason.cancelled
    assert len(tokens_of(running[1])) < 200
    assert worker.state().ended == {"cancelled": 3, "length": 1}
    waiting[0].cancel()  # has ended: nothing happens
    assert end_of(worker.submit([asked()])[0]) is EndReason.length


def test_the_time_limit_holds_while_waiting_and_while_running(worker, engine):
    engine.step_s = 0.02
    running = worker.submit([asked(200)] * 2, time_limit_s=0.6)
    (waiting,) = worker.submit([asked(200)], time_limit_s=0.2)
    assert end_of(waiting) is EndReason.expired
    assert waiting.entered is None
    assert {end_of(handle) for handle in running} == {EndReason.expired}
    assert worker.state().active == 0


def test_a_refused_request_does_not_end_the_others(worker):
    good, bad, late = worker.submit([asked(30), Request([10**6], 5), asked(30)])
    assert end_of(bad) is EndReason.refused
    assert "1000000" in bad.message
    assert end_of(good) is end_of(late) is EndReason.length


def test_an_engine_fault_ends_running_requests_and_waiting_ones_go_on(worker, engine, caplog):
    engine.step_s = 0.05
    running = worker.submit([asked(200)] * 2)
    wait_until(lambda: worker.state().active == 2)
    waiting = worker.submit([asked(5)] * 2)
    engine.fails = 1
    assert [end_of(handle) for handle in running] == [EndReason.fault] * 2
    assert [end_of(handle) for handle in waiting] == [EndReason.length] * 2
    assert worker.state().faults == 1
    assert "the engine broke" in caplog.text
    assert tokens_of(worker.submit([asked(5)])[0]) == tokens_of(worker.submit([asked(5)])[0])


def test_an_unread_answer_delays_nobody(worker):
    unread = worker.submit([asked(100), asked(100)])
    assert len(tokens_of(worker.submit([asked(50)])[0])) == 50
    wait_until(lambda: worker.state().active == 0)
    assert [len(tokens_of(handle)) for handle in unread] == [100, 100]


def test_draining_lets_answers_finish_and_takes_no_more(worker, engine):
    engine.step_s = 0.01
    handles = worker.submit([asked(10)] * 3)
    worker.drain(30)
    with pytest.raises(WorkerClosed):
        worker.submit([asked()])
    assert [end_of(handle) for handle in handles] == [EndReason.length] * 3
    wait_until(lambda: not worker.state().alive)


def test_answers_end_when_the_grace_period_is_over(worker, engine):
    engine.step_s = 0.01
    handles = worker.submit([asked(200)] * 3)
    worker.close(0.1)
    assert {end_of(handle) for handle in handles} == {EndReason.shutdown}
    assert not worker.state().alive


@pytest.mark.parametrize("delay_s", [0.0, 0.001, 0.01, 0.03])
def test_a_worker_closed_at_once_ends_its_requests_with_shutdown(engine, delay_s):
    engine.step_s = 0.02
    worker = Worker(engine)
    handles = worker.submit([asked(200)] * 3)
    time.sleep(delay_s)
    worker.close()
    assert {end_of(handle) for handle in handles} == {EndReason.shutdown}
    assert worker.state().new_tokens < 30


def test_an_idle_worker_frees_the_caches_memory(monkeypatch, engine):
    monkeypatch.setattr(worker_module, "IDLE_S", 0.05)
    worker = Worker(engine)
    first = tokens_of(worker.submit([asked(5)])[0])
    wait_until(lambda: worker._session is None)
    assert tokens_of(worker.submit([asked(5)])[0]) == first
    worker.close()


def test_a_closed_event_loop_does_not_stop_the_worker(worker, engine):
    engine.step_s = 0.02

    async def leave() -> GenerationHandle:
        return worker.submit([asked(20)])[0]

    handle = asyncio.run(leave())
    assert end_of(worker.submit([asked(30)])[0]) is EndReason.length
    assert handle.end is EndReason.length


def test_many_threads_submit_and_cancel_at_once(engine):
    worker = Worker(engine, batch_size=4, queue_limit=1000)
    ends: list[EndReason] = []

    def client(number: int) -> None:
        for i in range(10):
            (handle,) = worker.submit([asked(1 + i, prompt=number + 1)], str(number))
            if i % 3 == 0:
                handle.cancel()
            ends.append(end_of(handle))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = worker.state()
    assert len(ends) == 80 and set(ends) <= {EndReason.length, EndReason.cancelled}
    assert (state.active, state.waiting, sum(state.ended.values())) == (0, 0, 80)
    worker.close()


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"queue_limit": 0}, {"client_limit": 0}])
def test_limits_below_one_are_refused(engine, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Worker(engine, **wrong)
