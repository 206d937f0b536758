"""The layers of known networks on every implementation, by section.

    pytest bench --benchmark-only -k "dcn2 and cython"
    pytest bench --benchmark-only --section backward --threads 1,2 --peers torch
    pytest bench --benchmark-only --section scaling --impl "*.plan" -k channels

A test's name is made of workload, implementation and threads. `bench/conftest.py` tells how implementations are
timed in turn although pytest runs tests one after another.
"""


def test_forward(timed):
    assert timed["seconds_min"] > 0


def test_backward(timed):
    assert timed["seconds_min"] > 0


def test_overhead(timed):
    assert timed["seconds_min"] > 0


def test_first_call(timed):
    assert timed["seconds_min"] > 0


def test_scaling(timed):
    assert timed["seconds_min"] > 0
