"""Settings: what a person wrote wrongly is named with its line and the nearest right name."""

from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import SettingsError
from protocol.settings import Settings, parse_settings
from protocol.wrong_values import find_wrong, name_path

KEYS = st.sampled_from(["link", "server", "sites", "name", "words", "alarms", "kind", "pin", "colour", "tags"])


class Link(Settings):
    server: str
    poll_s: float = 60.0


class Camera(Settings):
    folder: str = ""


class Wire(Settings, tag="wire", tag_field="kind"):
    pin: Annotated[int, msgspec.Meta(ge=1, le=40)]


class Mail(Settings, tag="mail", tag_field="kind"):
    to: str


Word = Annotated[str, msgspec.Meta(pattern=r"^[a-z]+\Z", description="a word in small letters")]


class Site(Settings):
    name: str
    words: Annotated[tuple[Word, ...], msgspec.Meta(max_length=2)] = ()
    alarms: tuple[Wire | Mail, ...] = ()
    colour: Literal["red", "green"] | None = None
    wait_s: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class Machine(Settings):
    link: Link
    cameras: tuple[Camera, ...] = ()
    tags: dict[Word, Camera] = {}
    sites: tuple[Site, ...] = ()


GOOD = '# a comment\n[link]\nserver = "https://x"\npoll_s = 2.5\n\n[[cameras]]\nfolder = "a"\n'


def test_a_right_file_becomes_one_frozen_record():
    settings = parse_settings(GOOD, Machine, source="m.toml")
    assert settings.link.poll_s == 2.5
    assert settings.cameras[0].folder == "a"
    with pytest.raises(AttributeError):
        settings.link.poll_s = 3


@pytest.mark.parametrize(
    ("text", "line", "near"),
    [
        (GOOD.replace("poll_s", "pol_s"), 4, "poll_s"),
        (GOOD.replace("folder", "foldr"), 7, "folder"),
        (GOOD.replace("[link]", "[link]\n").replace("server", "sever"), 4, "server"),
        ("lnk = 1\n" + GOOD, 1, "link"),
        (GOOD + "[tags.x]\nfoldre = 'b'\n", 9, "folder"),
    ],
)
def test_an_unknown_key_is_refused_with_its_line_and_the_nearest_right_name(text, line, near):
    with pytest.raises(SettingsError, match=rf"m\.toml, line {line}: .*'{near}'"):
        parse_settings(text, Machine, source="m.toml")


def test_a_wrong_value_is_refused_with_its_line():
    with pytest.raises(SettingsError, match=r"m\.toml, line 4: link\.poll_s: 'soon' .*allowed: a number"):
        parse_settings(GOOD.replace("2.5", '"soon"'), Machine, source="m.toml")


SITES = """
[[sites]]
name = "barn"
words = ["a"]
[[sites.alarms]]
kind = "wire"
pin = 3

[[sites]]   # the second
name = "field"
"""


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("words = ['A']", 11, "site field, words[0]: 'A' cannot stand there; allowed: a word in small letters"),
        ("words = [\n  'a',\n  'B',\n]", 13, "site field, words[1]: 'B' cannot stand there"),
        ("words = ['a', 'b', 'c']", 11, "words: ['a', 'b', 'c'] cannot stand there; allowed: a list of at most 2"),
        (
            "words = 'a'",
            11,
            "site field, words: 'a' cannot stand there; allowed: a list of at most 2 entries, each",
        ),
        ("colour = 'blue'", 11, 'site field, colour: \'blue\' cannot stand there; allowed: one of "red", "green"'),
        ("wait_s = 0", 11, "site field, wait_s: 0 cannot stand there; allowed: a number, above 0"),
        ("wait_s = true", 11, "true cannot stand there"),
        ("alarms = [{ pin = 1 }]", 11, 'site field, alarms[0]: \'kind\' is missing; allowed: one of "wire", "mail"'),
        ("alarms = [{ kind = 'bell' }]", 11, "alarms[0]: kind = 'bell' cannot stand there; allowed: one of"),
        ("alarms = [{ kind = 'mail' }]", 11, "site field, alarms[0]: 'to' is missing: text in quotes"),
        ("alarms = ['bell']", 11, "allowed: a table with kind = one of"),
        ("[[sites.alarms]]\nkind = 'wire'\npin = 41", 13, "pin: 41 cannot stand there; allowed: a whole number, at le"),
        (
            "[[sites.alarms]]\nkind = 'wire'\npn = 4",
            13,
            "unknown key 'pn' in site field, alarms[0]; did you mean",
        ),
        ("[[sites]]\nwords = []", 11, "sites[2]: 'name' is missing"),
        ("[tags.X]\nfolder = 'x'", 11, "tags: the name 'X' cannot stand there; allowed: a word in small letters"),
        ("[tags.x]\nfolder = 1", 12, "tags.x.folder: 1 cannot stand there"),
    ],
)
def test_what_is_wrong_is_said_with_its_line_the_name_of_its_table_and_what_is_allowed(text, line, said):
    with pytest.raises(SettingsError) as caught:
        parse_settings(f"link = {{ server = 'x' }}{SITES}{text}\n", Machine, source="m.toml")
    assert caught.value.message.startswith(f"m.toml, line {line}: "), caught.value.message
    assert said in caught.value.message


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=4) | st.just("wire"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=4),
)


@given(value=st.dictionaries(KEYS, VALUES))
def test_whatever_is_wrong_is_found(value):
    try:
        msgspec.convert(value, Machine, strict=True)
    except msgspec.ValidationError:
        wrong = find_wrong(Machine, value)
        assert ("allowed: " in wrong.text or "is missing" in wrong.text) and "\n" not in wrong.text
        found = value
        for step in wrong.path:
            found = found[step]
        assert found is wrong.value
        assert isinstance(name_path(wrong.path, value), str)


def test_what_is_not_toml_is_refused():
    with pytest.raises(SettingsError, match="not valid TOML"):
        parse_settings("[link", Machine, source="m.toml")
