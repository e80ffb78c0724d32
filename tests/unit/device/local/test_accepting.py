"""Connections at the local socket come in one by one, and none is left open by an end of the agent."""

import asyncio
import gc
import socket
import warnings

import pytest

from device.local.link import _next_connection


@pytest.fixture
def listener(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as made:
        made.bind(str(tmp_path / "s"))
        made.listen()
        yield made


async def test_a_connection_that_comes_while_nobody_waits_any_more_is_not_left_open(listener):
    waiting = asyncio.create_task(_next_connection(listener))
    await asyncio.sleep(0)
    with socket.socket(socket.AF_UNIX) as client, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        client.connect(listener.getsockname())
        asyncio.get_running_loop().call_soon(waiting.cancel)  # in the turn in which the connection is noticed
        await asyncio.wait({waiting})
        del waiting
        gc.collect()
    assert not [one for one in told if issubclass(one.category, ResourceWarning)]


async def test_the_next_one_is_waited_for_and_does_not_block(listener):
    waiting = asyncio.create_task(_next_connection(listener))
    await asyncio.sleep(0)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.getsockname())
        connection = await asyncio.wait_for(waiting, 5)
        with connection:
            assert not connection.getblocking()
