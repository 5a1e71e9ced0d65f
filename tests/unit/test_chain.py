"""Chains: a stage gets the signals that its chain gets, and time to save."""

import os
import signal
import sys
import threading

import pytest

from nanochat_pl.cli.chain import run_command

SAVES = """
import signal, sys, time
def save(number, frame):
    time.sleep(0.6)  # longer than subprocess.run would wait
    sys.exit(number + 100)
signal.signal({number}, save)
time.sleep(30)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_gets_the_signal_and_time_to_save(number: signal.Signals):
    before = signal.getsignal(number)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), number))
    timer.start()
    assert run_command([sys.executable, "-c", SAVES.format(number=int(number))]) == number + 100
    assert signal.getsignal(number) is before
    timer.join()


def test_the_exit_code_of_a_killed_stage_is_a_shell_s():
    assert run_command([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137
