"""Which layers of an older image a new layer is taken to come from."""

from collections.abc import Sequence

from protocol.artifact import Artifact
from protocol.container import CONFIG_MEDIA_TYPE, LAYER_MEDIA_TYPE, Container, Image, Layer, RunSpec
from protocol.ids import digest
from protocol.release import ReleaseManifest
from server.parts import likely, parts_of
from server.storage.records import Likeness

Spelt = Sequence[str]
"""Layers as `CONTENT` or `CONTENT@STEP`, lowest first."""


def sha(text: str) -> str:
    return digest(text.encode())


def layer(text: str) -> Layer:
    content, _, step = text.partition("@")
    artifact = Artifact(sha256=sha(content), length_bytes=1, media_type=LAYER_MEDIA_TYPE)
    return Layer(artifact=artifact, origin=sha(step)[:16] if step else "")


def manifest(*layers: str, name: str = "app") -> ReleaseManifest:
    config = Artifact(sha256=sha(" ".join(layers)), length_bytes=1, media_type=CONFIG_MEDIA_TYPE)
    image = Image(platform="linux/arm64", config=config, layers=tuple(map(layer, layers)))
    container = Container(name=name, images=(image,), run=RunSpec(command=("/app",)))
    return ReleaseManifest(
        format=1, product="p", version="1.0.0", release_counter=1, created_ms=0, models=(), containers=(container,)
    )


def bases(old: ReleaseManifest, new: ReleaseManifest) -> dict[str, set[str]]:
    """What each new layer may be patched from, by the contents; a machine holds all of the old release."""
    before, after = parts_of(old), parts_of(new)
    alike = [
        Likeness("old", "new", part, before[part], result, before[part] in after.values(), 1)
        for part, result in after.items()
        if part in before and before[part] != result and result not in before.values()
    ]
    names = {
        layer.artifact.sha256: layer.artifact.sha256
        for release in (old, new)
        for layer in release.containers[0].images[0].layers
    }
    found: dict[str, set[str]] = {}
    for base, result in likely(alike):
        if base in names and result in names:
            found.setdefault(result, set()).add(base)
    return found


def expect(old: Spelt, new: Spelt, /, **expected: str) -> None:
    """Each result with its bases, separated by spaces."""
    said = {sha(result): {sha(base) for base in those.split()} for result, those in expected.items()}
    assert bases(manifest(*old), manifest(*new)) == said


def test_a_layer_of_the_same_step_comes_from_there_wherever_it_stands() -> None:
    expect(["os@1", "deps@2", "app@3"], ["os@1", "deps@2", "app2@3"], app2="app")
    expect(["os@1", "deps@2", "app@3"], ["os@1", "app2@3", "deps2@2"], app2="app", deps2="deps")


def test_a_layer_that_was_inserted_takes_nobody_s_base_away() -> None:
    expect(["os@1", "deps@2", "app@3"], ["os@1", "new@9", "deps2@2", "app2@3"], new="deps", deps2="deps", app2="app")


def test_layers_of_one_step_are_told_apart_by_their_order() -> None:
    expect(["os@1", "a@2", "b@2"], ["os@1", "a2@2", "b2@2"], a2="a", b2="b")
    expect(["os@1", "a@2", "b@2"], ["os@1", "new@9", "a2@2", "b2@2"], new="a", a2="a", b2="b")


def test_without_steps_the_place_counts_from_both_ends() -> None:
    expect(["os", "deps", "app"], ["os", "deps", "app2"], app2="app")
    expect(["os", "deps", "app"], ["os", "new", "deps2", "app2"], new="deps", deps2="app deps", app2="app")
    expect(["os", "deps", "app"], ["os2", "app2"], os2="os deps", app2="deps app")


def test_a_layer_that_the_new_release_keeps_is_no_base_by_its_place() -> None:
    expect(["os", "deps", "app"], ["os", "deps", "new", "app"])
    expect(["os", "deps"], ["os", "new", "deps"])


def test_images_of_other_containers_and_machines_are_not_mixed() -> None:
    assert bases(manifest("os", "app"), manifest("os", "app2", name="other")) == {}


def test_the_config_is_a_part_of_its_own() -> None:
    old, new = manifest("os"), manifest("os2")
    part = "image/app/linux-arm64//config"
    assert parts_of(old)[part] == sha("os")
    alike = [Likeness("old", "new", part, parts_of(old)[part], parts_of(new)[part], goes_on=False, machines=3)]
    assert likely(alike) == {(parts_of(old)[part], parts_of(new)[part]): 3}
