"""The one HTTP door: bounded, plain, and clear about whose fault it was."""

import gzip

import pytest
from aiohttp import web

from device.link import Link
from protocol.errors import LinkError, Reason, Refused
from tests.fakes.cutting_proxy import CuttingProxy, serving


async def ask(handler, work, **options):
    async with serving(handler) as port:
        link = Link(f"http://127.0.0.1:{port}", None, **options)
        try:
            return await work(link)
        finally:
            await link.close()


async def read(link, first=0, length=10):
    return b"".join([chunk async for chunk in link.stream("/blob", first=first, length=length)])


def answering(body=b"", status=200, headers=None):
    async def handler(request):
        return web.Response(body=body, status=status, headers=headers)

    return handler


async def test_a_request_brings_status_and_body():
    async def handler(request):
        return web.Response(body=b"got " + await request.read(), headers={"X-Type": request.content_type})

    answer = await ask(handler, lambda link: link.post("/v1/sync", b"{}", limit=100))
    assert (answer.status, answer.content()) == (200, b"got {}")
    answer = await ask(answering(b"ca"), lambda link: link.get("/v1/ca", limit=100))
    assert answer.content() == b"ca"


async def test_an_answer_longer_than_allowed_is_refused():
    with pytest.raises(Refused) as refused:
        await ask(answering(b"x" * 101), lambda link: link.get("/a", limit=100))
    assert refused.value.reason is Reason.LENGTH


async def test_a_compressed_answer_is_refused_and_never_unpacked():
    bomb = gzip.compress(bytes(1 << 20))
    for work in (lambda link: link.get("/a", limit=10_000), read):
        with pytest.raises(Refused) as refused:
            await ask(answering(bomb, headers={"Content-Encoding": "gzip"}), work)
        assert refused.value.reason is Reason.METADATA


async def test_redirects_are_not_followed():
    handler = answering(status=302, headers={"Location": "http://127.0.0.1:1/elsewhere"})
    answer = await ask(handler, lambda link: link.get("/a", limit=100))
    with pytest.raises(LinkError) as failed:
        answer.content()
    assert failed.value.status == 302
    assert not failed.value.retryable


@pytest.mark.parametrize(("status", "retryable"), [(404, False), (400, False), (429, True), (500, True), (503, True)])
async def test_the_servers_own_words_and_whether_to_try_again(status, retryable):
    body = b'{"error": "no such blob", "hint": "push it again"}'
    answer = await ask(answering(body, status), lambda link: link.get("/a", limit=100))
    with pytest.raises(LinkError, match="no such blob") as failed:
        answer.content()
    assert (failed.value.retryable, failed.value.status, failed.value.hint) == (retryable, status, "push it again")
    with pytest.raises(LinkError) as failed:
        await ask(answering(body, status), read)
    assert (failed.value.retryable, failed.value.status) == (retryable, status)


async def test_a_revoked_machine_learns_that_it_is():
    body = b'{"error": "this device was revoked", "reason": "revoked"}'
    answer = await ask(answering(body, 403), lambda link: link.get("/a", limit=100))
    with pytest.raises(Refused) as refused:
        answer.content()
    assert refused.value.reason is Reason.REVOKED


async def test_an_error_page_of_something_in_between_is_a_link_error():
    answer = await ask(answering(b"<html>captive portal", 511), lambda link: link.get("/a", limit=100))
    with pytest.raises(LinkError) as failed:
        answer.content()
    assert failed.value.retryable


async def test_nobody_listening_is_a_link_error():
    link = Link("http://127.0.0.1:1", None)
    with pytest.raises(LinkError) as failed:
        await link.get("/a", limit=10)
    assert failed.value.retryable
    await link.close()


async def test_a_silent_server_is_dropped():
    async with serving(answering(b"x" * 100)) as port, CuttingProxy(port).running() as proxy:
        proxy.pause_s = 5.0
        proxy.chunk = 20
        link = Link(f"http://127.0.0.1:{proxy.port}", None, request_s=0.2, silence_s=0.2)
        with pytest.raises(LinkError):
            await link.get("/a", limit=1000)
        with pytest.raises(LinkError):
            await read(link, length=100)
        await link.close()


async def test_a_range_is_streamed_from_where_it_was_asked():
    async def handler(request):
        assert request.headers["Range"] == "bytes=5-14"
        return web.Response(body=b"0123456789", status=206, headers={"Content-Range": "bytes 5-14/100"})

    assert await ask(handler, lambda link: read(link, 5, 10)) == b"0123456789"


async def test_a_server_that_ignores_the_range_is_noticed_before_its_bytes_are_taken():
    for handler in (answering(b"x" * 100), answering(b"x" * 10, 206, {"Content-Range": "bytes 0-9/100"})):
        with pytest.raises(LinkError) as failed:
            await ask(handler, lambda link: read(link, 5, 10))
        assert not failed.value.retryable
    assert await ask(answering(b"x" * 10), read) == b"x" * 10


async def test_a_stream_that_ends_early_is_a_link_error():
    with pytest.raises(LinkError, match="3 bytes early"):
        await ask(answering(b"x" * 7), read)


async def test_after_closing_the_next_request_opens_a_new_session():
    async def twice(link):
        await link.get("/a", limit=100)
        await link.close()
        return await link.get("/a", limit=100)

    assert (await ask(answering(b"x"), twice)).body == b"x"
