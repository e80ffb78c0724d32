"""Images from registries: tags and digests, links that break, redirects, and whom passwords are told."""

import base64
import json
import logging
from collections.abc import Iterator

import pytest

from protocol.errors import HeadlandError, LinkError, Reason, Refused, StateError
from signing.images import registry as registry_room
from signing.images.http import parse_url
from tests.fakes.image_files import FOLDS, layer, make_image, sha256
from tests.fakes.intake import Taking
from tests.fakes.registry import Registry, serving

LOWER, UPPER = layer({"lib": b"library" * 1000}), layer({"app": b"program"})
ONE = make_image([LOWER, UPPER])
ARM = make_image([UPPER], architecture="arm64")


@pytest.fixture
def registry() -> Iterator[Registry]:
    with serving() as registry:
        yield registry


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)


def log_in(taking: Taking, registry: Registry, host: str = "", **other: str) -> None:
    secret = base64.b64encode(f"{registry.user}:{registry.password}".encode()).decode()
    folder = taking.folder / "home/.docker"
    folder.mkdir(parents=True, exist_ok=True)
    auth = {"auths": {host or registry.host: other or {"auth": secret}}}
    (folder / "config.json").write_text(json.dumps(auth))


def authorizations(registry: Registry) -> set[str]:
    return {header for _, header, _ in registry.asked if header}


def test_an_image_is_taken_by_its_tag_and_the_digest_behind_it_is_kept(taking: Taking, registry: Registry) -> None:
    digest = registry.tag("app", "1.0", [ONE])
    (image,) = taking.take(f"registry:{registry.host}/app:1.0")
    assert taking.is_whole(image, ONE)
    assert image.source == f"registry:{registry.host}/app:1.0 ({digest})"
    assert any(digest in line for line in taking.said), "a person sees it too"
    assert authorizations(registry) == set()


def test_an_image_is_taken_by_its_digest_whatever_its_tag_says_now(taking: Taking, registry: Registry) -> None:
    digest = registry.tag("group/app", "1.0", [ONE, ARM])
    registry.tag("group/app", "1.0", [ARM])
    images = taking.take(f"registry:{registry.host}/group/app:1.0@{digest}", "linux/amd64")
    assert taking.is_whole(images[0], ONE)
    assert images[0].source == f"registry:{registry.host}/group/app:1.0@{digest}"


def test_a_registry_that_answers_with_another_image_is_refused(taking: Taking, registry: Registry) -> None:
    digest = registry.tag("app", "1.0", [ONE])
    other = registry.tag("app", "2.0", [ARM])
    data = registry.blobs[other.removeprefix("sha256:")]
    registry.before = lambda path, headers: (200, {}, data) if "manifests" in path else None
    with pytest.raises(Refused) as caught:
        taking.take(f"registry:{registry.host}/app@{digest}")
    assert caught.value.reason is Reason.HASH
    registry.before = lambda path, headers: (
        (200, {"Docker-Content-Digest": digest}, data) if "manifests" in path else None
    )
    with pytest.raises(Refused):
        taking.take(f"registry:{registry.host}/app:1.0")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_layer_over_a_link_that_breaks_goes_on_where_it_was(taking: Taking, registry: Registry, ranges: bool) -> None:
    registry.tag("app", "1.0", [ONE], "")
    registry.ranges = ranges
    registry.cut_after = [len(ONE.config), 5_000, 6_000]
    (image,) = taking.take(f"registry:{registry.host}/app:1.0")
    assert taking.is_whole(image, ONE)
    asked = [span for path, _, span in registry.asked if sha256(LOWER) in path]
    assert asked[:2] == ["", "bytes=5000-"]


def test_a_link_that_never_comes_back_is_an_end_that_can_be_gone_on_from(taking: Taking, registry: Registry) -> None:
    registry.tag("app", "1.0", [ONE], "")
    registry.cut_after = [len(ONE.config), 10_000, *[0] * 100]
    with pytest.raises(LinkError):
        taking.take(f"registry:{registry.host}/app:1.0")
    assert len(taking.left_over()) == 1
    registry.cut_after = []
    registry.asked.clear()
    assert taking.is_whole(taking.take(f"registry:{registry.host}/app:1.0")[0], ONE)
    assert [span for path, _, span in registry.asked if sha256(LOWER) in path] == ["bytes=10000-"]


def test_a_busy_registry_is_asked_again_and_a_dead_one_is_said(taking: Taking, registry: Registry) -> None:
    registry.tag("app", "1.0", [ONE])
    busy: list[tuple[int, dict[str, str], bytes]] = [(503, {}, b""), (429, {}, b"")]
    registry.before = lambda path, headers: busy.pop() if busy else None
    assert taking.is_whole(taking.take(f"registry:{registry.host}/app:1.0")[0], ONE)
    with pytest.raises(LinkError, match="no answer"):
        taking.take("registry:127.0.0.1:1/app:1.0")


def test_what_is_not_there_is_said(taking: Taking, registry: Registry) -> None:
    with pytest.raises(StateError, match="no such image"):
        taking.take(f"registry:{registry.host}/app:1.0")
    digest = registry.tag("app", "1.0", [ONE])
    del registry.blobs[sha256(FOLDS["+gzip"](UPPER))]
    with pytest.raises(StateError, match=r"lacks sha256:.* of app") as caught:
        taking.take(f"registry:{registry.host}/app@{digest}")
    assert caught.value.hint == "push the image again"


def test_what_a_registry_answers_is_said_with_what_to_do(taking: Taking, registry: Registry) -> None:
    registry.tag("barn/app", "1.0", [ONE])
    log_in(taking, registry)
    body = b'{"errors": [{"code": "%s", "message": "\\u001b[2J"}]}'
    reference = f"registry:{registry.host}/barn/app:1.0"

    def failure(status: int, code: bytes = b"", body: bytes = body, **headers: str) -> HeadlandError:
        registry.before = lambda path, asked: (status, headers, body % code if b"%" in body else body)
        with pytest.raises(HeadlandError) as caught:
            taking.take(reference)
        said = f"{caught.value.message} {caught.value.hint}"
        assert registry.host in caught.value.message and said.isprintable()
        return caught.value

    absent = failure(404, b"MANIFEST_UNKNOWN")
    assert "barn/app, 1.0 (404, MANIFEST_UNKNOWN)" in absent.message
    closed = failure(403, b"DENIED")
    assert isinstance(closed, StateError)
    assert "does not let us read barn/app (403, DENIED)" in closed.message
    assert f"docker login {registry.host}`" in closed.hint, "with the port: another one is another registry"
    wrong = failure(401, b"UNAUTHORIZED", **{"WWW-Authenticate": 'Basic realm="here"'})
    assert isinstance(wrong, StateError)
    assert "(401, UNAUTHORIZED)" in wrong.message and "under a name that may read it" in wrong.hint
    often = failure(429, b"TOOMANYREQUESTS")
    assert isinstance(often, LinkError) and often.retryable and "asked too often (429, TOOMANY" in often.message
    assert f"docker login {registry.host}`" in often.hint
    broken = failure(502, body=b"<html>")
    assert isinstance(broken, LinkError) and "answers 502" in broken.message
    assert "answers 418" in failure(418, b"\\u001b[2J").message


def test_where_a_redirect_leads_is_said_when_it_gives_nothing(taking: Taking, registry: Registry) -> None:
    with serving() as store:
        registry.tag("app", "1.0", [ONE])
        registry.before = lambda path, headers: (
            (307, {"Location": f"http://{store.host}/blob?signature=1"}, b"") if "/blobs/" in path else None
        )
        store.before = lambda path, headers: (403, {}, b"")
        with pytest.raises(StateError, match=f"http://{store.host}/blob, where {registry.host} keeps it, answers 403"):
            taking.take(f"registry:{registry.host}/app:1.0")


@pytest.mark.parametrize("status", [403, 404, 418, 503])
def test_no_key_of_an_address_is_shown_also_where_a_registry_redirects_to_itself(
    taking: Taking, registry: Registry, status: int
) -> None:
    registry.tag("app", "1.0", [ONE])
    registry.before = lambda path, headers: (
        (307, {"Location": f"http://{registry.host}/store/blob?signature=secret"}, b"")
        if "/blobs/" in path
        else (status, {}, b"")
        if "/store/" in path
        else None
    )
    with pytest.raises(HeadlandError, match=f"/store/blob, where .* keeps it, answers {status}") as caught:
        taking.take(f"registry:{registry.host}/app:1.0")
    assert "secret" not in f"{caught.value.message} {caught.value.hint}"


def test_a_manifest_that_breaks_off_is_asked_for_again(taking: Taking, registry: Registry) -> None:
    digest = registry.tag("app", "1.0", [ONE])
    whole = registry.blobs[digest.removeprefix("sha256:")]
    broken = [(200, {"Content-Length": str(len(whole))}, whole[:100])] * 2
    registry.before = lambda path, headers: broken.pop() if "/manifests/1.0" in path and broken else None
    assert taking.is_whole(taking.take(f"registry:{registry.host}/app:1.0")[0], ONE)


def test_a_registry_of_six_numbers_is_spoken_to(taking: Taking) -> None:
    with serving("::1") as registry:
        registry.tag("app", "1.0", [ONE])
        registry.auth = "bearer"
        log_in(taking, registry)
        assert registry.host.startswith("[::1]:")
        assert taking.is_whole(taking.take(f"registry:{registry.host}/app:1.0")[0], ONE)


def test_a_registry_without_tls_is_said_to_have_none(taking: Taking) -> None:
    with serving("127.0.0.2") as registry:  # this computer, too, but not by a name that http is spoken to
        registry.tag("app", "1.0", [ONE])
        with pytest.raises(LinkError, match="does not speak TLS") as caught:
            taking.take(f"registry:{registry.host}/app:1.0")
        assert "registry+http:" in caught.value.hint and not caught.value.retryable
        assert taking.is_whole(taking.take(f"registry+http:{registry.host}/app:1.0")[0], ONE)


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_a_registry_that_asks_who_we_are_is_shown_the_credentials_of_its_login(
    taking: Taking, registry: Registry, auth: str
) -> None:
    registry.tag("app", "1.0", [ONE])
    registry.auth = auth
    with pytest.raises(StateError) as caught:
        taking.take(f"registry:{registry.host}/app:1.0")
    assert "docker login" in caught.value.hint
    log_in(taking, registry, host="registry.example.org")
    with pytest.raises(StateError):
        taking.take(f"registry:{registry.host}/app:1.0")
    assert all("Basic" not in header for header in authorizations(registry)), "another registry's are nobody else's"
    log_in(taking, registry)
    assert taking.is_whole(taking.take(f"registry:{registry.host}/app:1.0")[0], ONE)


def test_an_identity_token_stands_for_name_and_password(taking: Taking, registry: Registry) -> None:
    registry.tag("app", "1.0", [ONE])
    registry.auth = "bearer"
    log_in(taking, registry, identitytoken="the-identity", auth=base64.b64encode(b"<token>:").decode())
    assert taking.is_whole(taking.take(f"registry:{registry.host}/app:1.0")[0], ONE)


def test_no_secret_stands_in_any_message(taking: Taking, registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    registry.tag("app", "1.0", [ONE])
    registry.auth = "bearer"
    log_in(taking, registry)
    secrets = (registry.password, base64.b64encode(f"alice:{registry.password}".encode()).decode(), "the-token")
    ends: list[tuple[int, dict[str, str], bytes]] = [
        (403, {}, b""),
        (404, {}, b""),
        (500, {}, b""),
        (401, {"WWW-Authenticate": "Digest"}, b""),
        (307, {"Location": "ftp://x/?signature=the-token"}, b""),
        (307, {"Location": "http://203.0.113.1/?signature=the-token"}, b""),
    ]
    for end in ends:
        registry.before = lambda path, headers, end=end: end if "authorization" in headers and "v2" in path else None
        with pytest.raises(HeadlandError) as caught:
            taking.take(f"registry:{registry.host}/app:1.0")
        said = f"{caught.value} {caught.value.hint} {taking.said} {caplog.text}"
        assert not any(secret in said for secret in secrets), said


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_without_what_the_registry_was_told(
    taking: Taking, registry: Registry, status: int
) -> None:
    with serving() as store:
        store.blobs = registry.blobs
        registry.tag("app", "1.0", [ONE])
        registry.auth = "basic"
        log_in(taking, registry)

        def elsewhere(path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes] | None:
            if "/blobs/" not in path or "authorization" not in headers:
                return None
            return status, {"Location": f"http://{store.host}{path}?signature=1"}, b""

        registry.before = elsewhere
        assert taking.is_whole(taking.take(f"registry:{registry.host}/app:1.0")[0], ONE)
        assert len(store.asked) == 3
        assert authorizations(store) == set()


@pytest.mark.parametrize(
    "location",
    [
        "http://203.0.113.1/blob",
        "file:///etc/passwd",
        "ftp://example.org/blob",
        "//203.0.113.1/blob",
        "http://user:word@127.0.0.1/blob",
        "http://127.0.0.1:99999/",
        "http:///",
        "",
    ],
)
def test_a_redirect_to_what_nobody_asked_for_is_refused(taking: Taking, registry: Registry, location: str) -> None:
    registry.before = lambda path, headers: (307, {"Location": location}, b"")
    with pytest.raises(Refused) as caught:
        taking.take(f"registry:{registry.host}/app:1.0")
    assert caught.value.reason is Reason.LIMIT


def test_redirects_come_to_an_end(taking: Taking, registry: Registry) -> None:
    registry.before = lambda path, headers: (307, {"Location": path}, b"")
    with pytest.raises(Refused, match="more than"):
        taking.take(f"registry:{registry.host}/app:1.0")
    assert len(registry.asked) == registry_room.REDIRECTS + 1


def test_a_token_service_elsewhere_is_not_told_the_password(taking: Taking, registry: Registry) -> None:
    with serving() as other:
        registry.tag("app", "1.0", [ONE])
        registry.auth = "bearer"
        log_in(taking, registry)
        registry.realm = f"http://localhost:{other.host.rpartition(':')[2]}/token"
        with pytest.raises(StateError, match="was not told the password") as caught:
            taking.take(f"registry:{registry.host}/app:1.0")
        assert "engine:NAME" in caught.value.hint, "logging in again would change nothing"
        assert [path.partition("?")[0] for path, _, _ in other.asked] == ["/token"], "as for a public image"
        assert authorizations(other) == set()
    registry.realm = "http://203.0.113.1/token"
    with pytest.raises(Refused, match="not https"):
        taking.take(f"registry:{registry.host}/app:1.0")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"token": "a\\r\\nX-Evil: b"}', b'{"token": ""}', b"{" * 100_000, b" " * (1 << 20)]
)
def test_a_token_that_makes_no_sense_is_refused(taking: Taking, registry: Registry, data: bytes) -> None:
    registry.auth = "bearer"
    registry.before = lambda path, headers: (200, {}, data) if path.startswith("/token") else None
    with pytest.raises(Refused) as caught:
        taking.take(f"registry:{registry.host}/app:1.0")
    assert caught.value.reason is Reason.LIMIT


@pytest.mark.parametrize("what", ["manifests", "token"])
def test_an_endless_answer_is_not_read_to_its_end(taking: Taking, registry: Registry, what: str) -> None:
    registry.auth = "bearer"
    log_in(taking, registry)
    registry.before = lambda path, headers: (
        (200, {"Content-Length": str(1 << 40)}, b" " * (5 << 20))
        if what in path and (what == "token" or "authorization" in headers)
        else None
    )
    with pytest.raises(Refused, match="answers with more than") as caught:
        taking.take(f"registry:{registry.host}/app:1.0")
    assert caught.value.reason is Reason.LIMIT


def test_an_address_is_shown_without_its_query() -> None:
    assert str(parse_url("https://store.example.org/blob?signature=secret")) == "https://store.example.org:443/blob"


def test_odd_challenges_end_in_words(taking: Taking, registry: Registry) -> None:
    for challenge in ("", "Digest x", 'Bearer realm="', "Bearer", "Basic " * 10_000, 'Bearer realm=""'):
        registry.before = lambda path, headers, said=challenge: (401, {"WWW-Authenticate": said[:60_000]}, b"")
        with pytest.raises((StateError, Refused)):
            taking.take(f"registry:{registry.host}/app:1.0")
