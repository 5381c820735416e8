"""Signals: where they raise and where they wait, once, and what the limit of time does."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from harness.process import preemption
from harness.process.preemption import Preempted, interruptible, listening, raise_if_preempted, received


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def listen():
    with listening(60.0, lambda: None):
        yield


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_phase_that_may_be_left_is_left_at_once(listen, number):
    with pytest.raises(Preempted), interruptible():
        send(number)
        pytest.fail("the phase went on")
    assert received() == number.name


def test_elsewhere_a_signal_waits(listen):
    done = []
    send()
    done.append("a critical section")
    with pytest.raises(Preempted):
        raise_if_preempted()
    with pytest.raises(Preempted), interruptible():
        done.append("the next phase begins")
    assert done == ["a critical section"]


def test_a_phase_within_a_phase_does_not_close_it(listen):
    with pytest.raises(Preempted), interruptible():
        with interruptible():
            pass
        send()
        pytest.fail("the phase went on")


def test_a_second_signal_does_not_hit_what_the_first_one_began(listen):
    """Neither where it is caught, nor on the way there: helpers are stopped in `finally`."""
    steps = []
    try:
        with interruptible():
            try:
                send()
            finally:
                send()
                steps.append("stopped")
    except Preempted:
        send()
        steps.append("saved")
    assert steps == ["stopped", "saved"]


def test_a_wait_for_a_thread_is_left(listen):
    """As a run waits for its sampler."""
    event = threading.Event()
    threading.Timer(0.1, send).start()
    started = time.monotonic()
    with pytest.raises(Preempted), interruptible():
        event.wait(30)
    assert time.monotonic() - started < 10


def test_other_threads_have_no_phases(listen):
    raised = []

    def work() -> None:
        try:
            with interruptible():
                pass
        except BaseException as error:
            raised.append(error)

    send()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert raised == []


def test_afterwards_all_is_as_before():
    before = [signal.getsignal(number) for number in preemption.SIGNALS]
    with listening(60.0, lambda: None):
        send()
    assert [signal.getsignal(number) for number in preemption.SIGNALS] == before
    assert received() is None
    raise_if_preempted()


def test_the_limit_ends_the_process_with_75():
    script = (
        "import os, signal, time\n"
        "from harness.process.preemption import listening\n"
        "with listening(0.2, lambda: print('given up', flush=True)):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (os.EX_TEMPFAIL, "given up\n")
