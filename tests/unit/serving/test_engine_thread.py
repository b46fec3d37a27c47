"""The engine's thread: whatever the engine does, each request ends."""

import asyncio
import gc
import time

import pytest

from atoll.errors import AtollError, ClusterError, InternalError, NonFiniteError, ProgramFailed, SpecError
from atoll.workers.engine import Finish, Request, Sampling

pytestmark = pytest.mark.filterwarnings("error")


def request(name="a", most=3, prompt=(1, 2)):
    return Request(id=name, prompt=prompt, sampling=Sampling(max_tokens=most))


async def answer(outputs):
    """The tokens until the end, and how it ended."""
    tokens = []
    while True:
        output = await asyncio.wait_for(outputs.get(), 5)
        if isinstance(output, AtollError):
            return tokens, output
        tokens.append(output.token)
        if output.finish is not None:
            return tokens, output.finish


def ask(thread, *requests):
    async def all_of_them():
        waiting = [thread.submit(r) for r in requests]
        return await asyncio.gather(*(answer(w) for w in waiting))

    return asyncio.run(all_of_them())


def until(what):
    end = time.monotonic() + 5
    while not what():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_requests_get_their_tokens_and_their_end(scripted, engine_thread):
    thread = engine_thread(scripted())
    got = ask(thread, *(request(str(i)) for i in range(6)))
    assert got == [([97, 98, 99], Finish.LENGTH)] * 6


@pytest.mark.parametrize(("prompt", "error"), [((), SpecError), ((255,), InternalError)])
def test_request_that_the_engine_does_not_take_ends_with_the_reason(scripted, engine_thread, prompt, error):
    thread = engine_thread(scripted())
    (tokens, end), other = ask(thread, request(prompt=prompt), request("b"))
    assert (tokens, type(end)) == ([], error)
    assert other[1] is Finish.LENGTH


def test_second_request_of_one_id_is_refused_and_the_first_goes_on(scripted, engine_thread):
    engine = scripted()
    thread = engine_thread(engine)
    first, second = ask(thread, request("a"), request("a"))
    assert first == ([97, 98, 99], Finish.LENGTH)
    assert isinstance(second[1], SpecError)


def test_step_that_raises_ends_all_requests_with_an_error_and_the_engine_goes_on(scripted, engine_thread, capsys):
    engine = scripted(slots=2)
    engine.fail = [ZeroDivisionError("a bug of the model")]
    thread = engine_thread(engine)
    got = ask(thread, *(request(str(i)) for i in range(4)))
    failed = [end for _, end in got if isinstance(end, ProgramFailed)]
    assert failed
    assert all("ZeroDivisionError: a bug of the model" in str(e) for e in failed)
    assert len({id(e) for e in failed}) == len(failed)
    assert "a bug of the model" in capsys.readouterr().err
    assert thread.failure is None
    assert ask(thread, request("later")) == [([97, 98, 99], Finish.LENGTH)]


def test_engine_that_cannot_go_on_ends_the_thread_and_every_request_hears_of_it(scripted, engine_thread, capsys):
    engine = scripted()
    engine.broken = OSError("device lost")
    thread = engine_thread(engine)
    got = ask(thread, *(request(str(i)) for i in range(3)))
    assert all(isinstance(end, AtollError) and "device lost" in str(end) for _, end in got)
    until(lambda: thread.failure is not None)
    assert "device lost" in str(thread.failure)
    [(tokens, end)] = ask(thread, request("later"))
    assert (tokens, type(end)) == ([], ClusterError)
    assert "device lost" in str(end)
    thread.abort("later")


def test_fault_of_one_request_leaves_its_neighbours(scripted, engine_thread):
    engine = scripted()
    engine.bad = {"b": NonFiniteError("nan")}
    got = ask(engine_thread(engine), request("a"), request("b"), request("c"))
    assert [type(end) for _, end in got] == [Finish, NonFiniteError, Finish]


def test_close_ends_requests_in_hand_and_later_ones_with_an_error(scripted, engine_thread):
    engine = scripted()
    thread = engine_thread(engine)

    async def run():
        engine.go_on.clear()
        outputs = thread.submit(request(most=50))
        await asyncio.to_thread(engine.stepping.wait, 5)
        closing = asyncio.create_task(asyncio.to_thread(thread.close))
        await asyncio.to_thread(thread._closing.wait, 5)
        engine.go_on.set()
        await closing
        return await answer(outputs), await answer(thread.submit(request("b")))

    (_, first), (_, second) = asyncio.run(run())
    assert isinstance(first, ClusterError)
    assert "the replica is stopping" in str(first)
    assert isinstance(second, ClusterError)


def test_abort_takes_a_request_out_of_the_engine(scripted, engine_thread):
    engine = scripted(context=1 << 20)
    thread = engine_thread(engine)

    async def run():
        outputs = thread.submit(request(most=1 << 19))
        await outputs.get()
        thread.abort("a")

    asyncio.run(run())
    until(lambda: not engine.busy)
    assert engine.aborted == ["a"]


def test_asker_whose_event_loop_is_over_is_taken_out_and_the_thread_goes_on(scripted, engine_thread):
    engine = scripted(context=1 << 20)
    thread = engine_thread(engine)

    async def leave():
        thread.submit(request("gone", most=1 << 19))

    asyncio.run(leave())
    until(lambda: "gone" in engine.aborted)
    assert ask(thread, request("b")) == [([97, 98, 99], Finish.LENGTH)]


def test_idle_engine_is_not_stepped(scripted, engine_thread):
    engine = scripted()
    engine_thread(engine)
    assert not engine.stepping.wait(0.05)


def test_ended_requests_leave_nothing_behind(scripted, engine_thread):
    engine = scripted()
    thread = engine_thread(engine)
    ask(thread, *(request(str(i)) for i in range(20)))
    gc.collect()
    until(lambda: not thread._clients)
    assert thread._asked.empty()
