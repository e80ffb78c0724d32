"""Settings: what a person wrote wrongly is named with its line and the nearest right name."""

import pytest

from protocol.errors import SettingsError
from protocol.settings import Settings, parse_settings


class Link(Settings):
    server: str
    poll_s: float = 60.0


class Camera(Settings):
    folder: str = ""


class Machine(Settings):
    link: Link
    cameras: tuple[Camera, ...] = ()
    tags: dict[str, Camera] = {}


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
    with pytest.raises(SettingsError, match=r"m\.toml: line 4: .*float"):
        parse_settings(GOOD.replace("2.5", '"soon"'), Machine, source="m.toml")


def test_what_is_not_toml_is_refused():
    with pytest.raises(SettingsError, match="not valid TOML"):
        parse_settings("[link", Machine, source="m.toml")
