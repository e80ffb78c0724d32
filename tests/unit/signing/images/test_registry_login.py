"""Whom the credentials of a registry may be told, and where they come from."""

import base64
import json
import ssl
import stat
from pathlib import Path

import pytest

from protocol.errors import Reason, Refused, SettingsError, StateError
from signing.images import registry_login
from signing.images.credentials import Credentials, Logins
from signing.images.http import Answer, Origin, Url
from signing.images.reference import RegistryReference, parse_reference, parse_registry
from signing.images.registry import Registry

ALICE = Credentials("alice", "secret")


class Asked:
    """In the place of the network: what a token service was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.urls: list[str] = []
        self.authorizations: list[str | None] = []
        monkeypatch.setattr(registry_login, "ask", self)

    def __call__(self, url: Url, headers: dict[str, str], *, body: bytes | None, tls: ssl.SSLContext | None) -> "Asked":
        self.urls.append(f"{url}{url.target}")
        self.authorizations.append(headers.get("Authorization"))
        return self

    def __enter__(self) -> Answer:
        return Answer(200, {}, iter([b'{"token": "t"}']))

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("registry", "realm", "told"),
    [
        ("https://registry.example.org", "https://registry.example.org/token", True),
        ("https://registry-1.docker.io", "https://auth.docker.io/token", True),
        ("https://registry.local", "https://local/jwt", False),  # of one word there is no parent
        ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth", True),
        ("https://ghcr.io", "https://token.ghcr.io/token", True),
        ("https://ghcr.io", "https://evil.io/token", False),
        ("https://registry.example.org", "https://evil.org/token", False),
        ("https://registry.example.org", "https://evilexample.org/token", False),
        ("https://registry.example.org", "https://registry.example.org.evil.net/token", False),
        ("https://192.0.2.1", "https://198.0.2.1/token", False),
        ("http://localhost", "http://localhost/token", True),
        ("http://localhost", "https://evil.org/token", False),
        ("http://registry.lan", "http://registry.lan/token", False),
        ("http://registry.lan", "https://registry.lan/token", True),
    ],
)
def test_a_token_service_is_told_the_password_only_where_it_belongs_to_the_registry(
    monkeypatch: pytest.MonkeyPatch, registry: str, realm: str, told: bool
) -> None:
    asked = Asked(monkeypatch)
    scheme, _, host = registry.partition("://")
    login = registry_login.Login(Origin(scheme, host, 443), host, "app", lambda: ALICE, None)
    login.answer(f'Bearer realm="{realm}",service="s",scope="repository:app:pull,push"')
    assert asked.authorizations == [ALICE.basic() if told else None]
    assert "scope=repository%3Aapp%3Apull" in asked.urls[0] and "push" not in asked.urls[0]
    assert login.header == "Bearer t"


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("https://registry.example.org", "http://registry.example.org/token"),
        ("https://registry.example.org", "http://127.0.0.1/token"),
        ("http://registry.lan", "http://other.lan/token"),
        ("https://registry.example.org", "file:///etc/passwd"),
        ("https://registry.example.org", "/token"),
    ],
)
def test_a_token_service_in_the_open_is_not_asked(monkeypatch: pytest.MonkeyPatch, registry: str, realm: str) -> None:
    asked = Asked(monkeypatch)
    scheme, _, host = registry.partition("://")
    login = registry_login.Login(Origin(scheme, host, 443), host, "app", lambda: ALICE, None)
    with pytest.raises(Refused) as caught:
        login.answer(f'Bearer realm="{realm}"')
    assert caught.value.reason is Reason.LIMIT
    assert asked.urls == []


def test_a_password_is_not_told_over_plain_http_to_another_computer() -> None:
    login = registry_login.Login(Origin("http", "registry.lan", 80), "registry.lan", "app", lambda: ALICE, None)
    with pytest.raises(StateError, match="everybody can read"):
        login.answer('Basic realm="x"')
    assert login.header is None


def test_https_is_spoken_but_on_this_computer_or_where_the_description_says_otherwise() -> None:
    logins = Logins(Path("/nowhere/config.json"))

    def origin(host: str, *, plain: bool = False) -> Origin:
        return Registry(RegistryReference(host, None, "app", "1", ""), plain=plain, logins=logins)._origin

    assert origin("registry.example.org") == ("https", "registry.example.org", 443)
    assert origin("registry.example.org", plain=True) == ("http", "registry.example.org", 80)
    assert origin("localhost") == ("http", "localhost", 80)
    assert origin("docker.io") == ("https", "registry-1.docker.io", 443)
    assert origin("localhost.evil.org").scheme == "https"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("example.org/app", ("example.org", None, "app", "latest", "")),
        ("example.org:5000/a/b-c_d/e.f:1.0-x", ("example.org", 5000, "a/b-c_d/e.f", "1.0-x", "")),
        ("[::1]:5000/app@sha256:" + "0" * 64, ("::1", 5000, "app", "latest", "sha256:" + "0" * 64)),
        ("example.org/app:1@sha256:" + "0" * 64, ("example.org", None, "app", "1", "sha256:" + "0" * 64)),
    ],
)
def test_references_are_read(text: str, read: tuple[object, ...]) -> None:
    assert tuple(parse_registry(text)) == read


@pytest.mark.parametrize(
    "text",
    ["app", "example.org", "example.org/", "example.org/App", "example.org/../x", "example.org/a//b", "ex ample/app",
     "example.org/app:", "example.org/app@sha256:0", "example.org/app@sha512:" + "0" * 64, "example.org:0/app",
     "example.org:99999/app", "user@example.org/app", "example.org/app?x=1", "example.org/app\r\nX: y",
     "example.org/" + "a" * 2000],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        parse_registry(text)


def test_who_leaves_the_host_out_or_writes_a_name_large_is_told_so() -> None:
    with pytest.raises(SettingsError, match="'library' is no host") as caught:
        parse_registry("library/ubuntu:22.04")
    assert "registry:docker.io/library/ubuntu:22.04" in caught.value.hint
    with pytest.raises(SettingsError, match="in lower case"):
        parse_registry("ghcr.io/Farm/app")
    for text in ("localhost/app", "nas:5000/app", "[::1]/app", "a.b/app"):
        parse_registry(text)


@pytest.mark.parametrize("text", ["", "oci", "oci:", "docker:app", "/path", "https://example.org/app"])
def test_a_kind_that_is_not_known_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="cannot be looked for"):
        parse_reference(text)


def config(tmp_path: Path, **content: object) -> Logins:
    (tmp_path / "config.json").write_text(json.dumps(content))
    return Logins.usual({"DOCKER_CONFIG": str(tmp_path), "HOME": "/nowhere"}, 4711)


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_logins_are_found_as_docker_and_podman_write_them(tmp_path: Path) -> None:
    docker = config(
        tmp_path,
        auths={
            "example.org:5000": {"auth": b64("alice:a:b")},
            "https://index.docker.io/v1/": {"auth": b64("bob:b")},
            "plain.org": {"username": "carol", "password": "c"},
            "empty.org": {},
        },
        other={"ignored": 1},
    )
    assert docker.of("example.org:5000", "app") == Credentials("alice", "a:b")
    assert docker.of("docker.io", "app") == Credentials("bob", "b")
    assert docker.of("plain.org", "app") == Credentials("carol", "c")
    assert docker.of("empty.org", "app") is None
    assert docker.of("example.org", "app") is None, "another port is another registry"
    assert Logins.usual({"HOME": str(tmp_path / "nobody")}, 4711).of("example.org", "app") is None


def test_a_program_that_keeps_passwords_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "docker-credential-vault"
    program.write_text(
        "#!/bin/sh\nread host\n"
        '[ "$1 $host" = "get example.org" ] || { echo credentials not found in native keychain; exit 1; }\n'
        'echo \'{"Username": "<token>", "Secret": "t"}\'\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert config(tmp_path, credHelpers={"example.org": "vault"}).of("example.org", "app") == Credentials(token="t")
    assert config(tmp_path, credsStore="vault").of("example.org", "app") == Credentials(token="t")
    assert config(tmp_path, credsStore="vault").of("other.org", "app") is None
    program.write_text("#!/bin/sh\necho secret\n")
    with pytest.raises(StateError) as caught:
        config(tmp_path, credsStore="vault").of("example.org", "app")
    assert "secret" not in str(caught.value)
    with pytest.raises(StateError, match="cannot be asked"):
        config(tmp_path, credsStore="absent").of("example.org", "app")
    with pytest.raises(SettingsError, match="cannot name"):
        config(tmp_path, credsStore="../../bin/sh").of("example.org", "app")


def test_a_config_that_cannot_be_read_is_said_without_its_content(tmp_path: Path) -> None:
    for text in ('{"auths": {"example.org": {"auth": "c2VjcmV0!"}}}', '{"auths": {"example.org": "secret"}}', "secret"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(SettingsError) as caught:
            Logins(tmp_path / "config.json").of("example.org", "app")
        assert "secret" not in str(caught.value) and "c2Vj" not in str(caught.value)


def entry(name: str) -> dict[str, str]:
    return {"auth": b64(f"{name}:secret")}


def test_a_login_for_a_part_of_a_registry_is_for_that_part_alone(tmp_path: Path) -> None:
    logins = config(
        tmp_path,
        auths={
            "example.org/barn/app": entry("app"),
            "example.org/barn": entry("barn"),
            "example.org": entry("all"),
            "other.org/barn": entry("other"),
            "https://old.org/v1/": entry("old"),
            "docker.io/barn": entry("barn at the hub"),
            "https://index.docker.io/v1/": entry("hub"),
        },
    )

    def name(host: str, repository: str) -> str | None:
        found = logins.of(host, repository)
        return None if found is None else found.name

    assert name("example.org", "barn/app") == "app"
    assert name("example.org", "barn/apple") == "barn"
    assert name("example.org", "barn/app/deeper") == "app"
    assert name("example.org", "barns/app") == "all"
    assert name("other.org", "barn/app") == "other"
    assert name("other.org", "field/app") is None, "the password of one repository is not shown for another"
    assert name("old.org", "any") == "old"
    assert name("docker.io", "barn/app") == "barn at the hub"
    assert name("index.docker.io", "library/app") == "hub"


def test_hosts_are_the_same_in_upper_and_lower_case_and_six_numbers_have_brackets(tmp_path: Path) -> None:
    logins = config(tmp_path, auths={"Registry.Example.ORG:5000": entry("alice"), "[fd00::1]:5000": entry("bob")})
    reference = parse_registry("REGISTRY.example.org:5000/app")
    assert reference.host == "registry.example.org", "as addresses say it that a registry redirects to"
    assert logins.of(reference.address, "app") == Credentials("alice", "secret")
    assert logins.of(parse_registry("[FD00::1]:5000/app").address, "app") == Credentials("bob", "secret")
    assert str(Origin("https", parse_registry("[FD00::1]:5000/app").host, 5000)) == "[fd00::1]:5000"


def test_the_files_of_podman_and_of_docker_are_read_in_the_order_that_podman_reads_them(tmp_path: Path) -> None:
    places = {
        "run": tmp_path / "run/containers/auth.json",
        "settings": tmp_path / "settings/containers/auth.json",
        "home": tmp_path / "home/.config/containers/auth.json",
        "docker": tmp_path / "home/.docker/config.json",
    }
    for name, path in places.items():
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"auths": {"example.org": entry(name)}}))
    home = {"HOME": str(tmp_path / "home")}
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path / "run")}
    settings = {"XDG_CONFIG_HOME": str(tmp_path / "settings")}

    def found(environment: dict[str, str]) -> str:
        known = Logins.usual(environment, 4711).of("example.org", "app")
        return known.name if known else ""

    assert found(home | runtime | settings) == "run"
    assert found(home | settings) == "settings"
    assert found(home) == "home"
    places["home"].write_text(json.dumps({"auths": {"other.org": entry("home")}}))
    assert found(home) == "docker"
    only = tmp_path / "only/config.json"
    only.parent.mkdir()
    only.write_text("{}")
    assert found(home | runtime | {"DOCKER_CONFIG": str(only.parent)}) == "", "who names a file means that one"
    assert found(home | runtime | {"REGISTRY_AUTH_FILE": str(only)}) == ""
    assert found(home | {"DOCKER_CONFIG": str(only.parent), "REGISTRY_AUTH_FILE": str(places["run"])}) == "run"


def test_a_program_that_fails_to_give_a_password_is_not_taken_for_one_that_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "docker-credential-vault"
    program.write_text("#!/bin/sh\necho secret: the vault is locked >&2\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(StateError, match="docker-credential-vault fails with 1") as caught:
        config(tmp_path, credsStore="vault").of("example.org", "app")
    assert "echo example.org | docker-credential-vault get" in caught.value.hint
    assert "secret" not in str(caught.value)
    program.write_text('#!/bin/sh\nread server\necho "{\\"Username\\": \\"$server\\", \\"Secret\\": \\"s\\"}"\n')
    hub = config(tmp_path, credHelpers={"docker.io": "vault"}).of("docker.io", "library/app")
    assert hub == Credentials("https://index.docker.io/v1/", "s"), "as Docker calls the Hub there"


def test_credentials_do_not_show_what_they_hold() -> None:
    assert "secret" not in repr(Credentials("alice", "secret", "secret"))
