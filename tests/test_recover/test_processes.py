"""A process that ends takes the others with it, and they say so."""

from __future__ import annotations

import pytest
from torch import distributed

from penjing.errors import DataError, RecoverError
from penjing.recover.processes import Processes

CLOSED = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:4018"
)


def processes(world: int) -> Processes:
    made = Processes.__new__(Processes)
    made.rank, made.world = 0, world
    return made


@pytest.mark.parametrize("lost", [RuntimeError(CLOSED), distributed.DistBackendError("NCCL error\nmore")])
@pytest.mark.parametrize("within_a_forward", [False, True])
def test_a_lost_process_is_no_fault_of_this_one(lost: Exception, within_a_forward: bool) -> None:
    error = lost
    if within_a_forward:  # where buffers are exchanged, and a failure is taken for the model's
        error = DataError("the model does not take inputs", remedy="Check them")
        error.__cause__ = lost
    with pytest.raises(RecoverError) as raised, processes(2).together():
        raise error
    said = str(lost).splitlines()[0]
    assert raised.value.layer == "process 0"
    assert raised.value.cause == f"another of the 2 processes has ended ({said})"


@pytest.mark.parametrize(("world", "error"), [(2, RuntimeError("mine")), (1, RuntimeError(CLOSED))])
def test_other_errors_stay_what_they_are(world: int, error: Exception) -> None:
    with pytest.raises(RuntimeError) as raised, processes(world).together():
        raise error
    assert raised.value is error
