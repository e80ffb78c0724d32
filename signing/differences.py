"""What an event would change, in words: what every signer looks at before signing.

Computed from the payload and the published files alone, never from what the event says of itself. Releases are opened:
the manifest's hash is checked and its content shown, so that nobody signs what they could not see.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from tuf.api.metadata import Root, Targets

from protocol import limits
from protocol.errors import Reason, Refused
from protocol.objects import DirectorTerms, ImageTerms, ProductTerms
from protocol.release import ReleaseManifest, parse_manifest
from protocol.wire import Message
from signing.containers_shown import container_lines
from signing.events import Event
from signing.managers import Register
from signing.metadata import parse, terms
from signing.repository import ListedRelease, RepositorySet, permits_of, releases_of
from signing.technicians_shown import day, technician_lines
from signing.workspace import Workspace

UNTRIED: Final = "golden inputs were not tried: "
"""How the builder notes in the manifest that nobody ran the golden inputs; the rest of the line is the reason."""


class Change(Message):
    """One line of the difference. `warning` marks what a signer should stop at."""

    file: str  # `REPOSITORY/ROLE`
    text: str
    warning: bool = False


def differences(workspace: Workspace, event: Event, now: datetime) -> tuple[Change, ...]:
    """Everything that the event would change.

    Raises:
        StateError: A manifest that it lists is not in this workspace.
        Refused: A manifest with another hash, or that says something else than the list.
    """
    found: list[Change] = []
    register = Register(workspace)
    for (kind, role), metadata in event.payload.items():
        file = f"{kind}/{role}"
        published = workspace.current(kind)
        signed = metadata.signed
        old = _published(published, role)
        lines = [(_expiry_line(old, signed, now), signed.expires <= now)]
        if isinstance(signed, Root):
            lines += _roles(register, _root_roles(old), _root_roles(signed))
        elif role == "targets":
            lines += _roles(register, _delegated_roles(old), _delegated_roles(signed))
            lines += _eras(old, signed) if kind == "image" else _sealing(old, signed)
        elif kind == "director":
            lines += technician_lines(old, signed, now)
        else:
            lines += _product(workspace, role, old, signed)
            lines += _permits(role, old, signed, now)
        found += [Change(file=file, text=printable(text), warning=warning) for text, warning in lines]
    return tuple(found)


def printable(text: str) -> str:
    """Text from elsewhere made safe for a terminal: control characters must not repaint what a signer reads."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def untried_reason(manifest: ReleaseManifest) -> str:
    """Why nobody ran golden inputs of this release where it was built; empty when all were run."""
    lines = [line for line in manifest.notes.splitlines() if line.startswith(UNTRIED)]
    return "; ".join(line.removeprefix(UNTRIED) for line in lines)


def open_manifest(workspace: Workspace, listed: ListedRelease) -> ReleaseManifest:
    """The manifest behind a listed release, checked against the list.

    Raises:
        StateError: It is not in this workspace.
        Refused: `HASH`, `MANIFEST`.
    """
    manifest = parse_manifest(workspace.read_blob(listed.manifest_sha256, limits.MANIFEST_BYTES))
    said = (manifest.product, manifest.version, manifest.release_counter, manifest.era)
    if said != (listed.product, listed.version, listed.release_counter, listed.era):
        raise Refused(
            Reason.MANIFEST,
            f"the manifest {listed.manifest_sha256[:12]} is of {manifest.product} {manifest.version} "
            f"(counter {manifest.release_counter}); the list says {listed.version} (counter {listed.release_counter})",
        )
    return manifest


Line = tuple[str, bool]
Roles = dict[str, tuple[int, tuple[str, ...]]]


def _published(published: RepositorySet | None, role: str) -> Root | Targets | None:
    if published is None:
        return None
    if role == "root":
        return parse(published.root(), Root, role).signed
    data = published.targets if role == "targets" else published.delegated.get(role)
    return parse(data, Targets, role).signed if data is not None else None


def _expiry_line(old: Root | Targets | None, new: Any, now: datetime) -> str:
    days = (new.expires - now).days
    before = f"version {old.version} until {old.expires:%Y-%m-%d}" if old is not None else "new"
    return f"{before} -> version {new.version} until {new.expires:%Y-%m-%d} ({days} days)"


def _root_roles(root: Any) -> Roles:
    if not isinstance(root, Root):
        return {}
    return {name: (role.threshold, tuple(role.keyids)) for name, role in root.roles.items()}


def _delegated_roles(targets: Any) -> Roles:
    if not isinstance(targets, Targets) or targets.delegations is None:
        return {}
    return {name: (role.threshold, tuple(role.keyids)) for name, role in (targets.delegations.roles or {}).items()}


def _roles(register: Register, old: Roles, new: Roles) -> Iterator[Line]:
    for name in sorted(set(old) | set(new)):
        old_threshold, old_keys = old.get(name, (0, ()))
        threshold, keys = new.get(name, (0, ()))
        who = [_owner(register, keyid) for keyid in keys]
        if name not in old:
            yield f"{name}: {threshold} of {', '.join(who)}", False
            continue
        if threshold != old_threshold:
            yield f"{name}: threshold {old_threshold} -> {threshold}", threshold < old_threshold
        for keyid in keys:
            if keyid not in old_keys:
                yield f"{name}: adds the key of {_owner(register, keyid)}", False
        for keyid in old_keys:
            if keyid not in keys:
                yield f"{name}: removes the key of {_owner(register, keyid)}", False


def _owner(register: Register, keyid: str) -> str:
    return f"{register.owner(keyid) or 'the server'} ({keyid[:8]})"


def _eras(old: Any, new: Targets) -> Iterator[Line]:
    before = terms(old, ImageTerms, "targets").eras if isinstance(old, Targets) else {}
    for product, era in terms(new, ImageTerms, "targets").eras.items():
        if era != before.get(product, 0):
            yield f"{product}: era {before.get(product, 0)} -> {era}: its release counter starts anew", True


def _sealing(old: Any, new: Targets) -> Iterator[Line]:
    before = terms(old, DirectorTerms, "targets").sealing_key if isinstance(old, Targets) else None
    after = terms(new, DirectorTerms, "targets").sealing_key
    if after != before:
        words = f"what machines give a stick is sealed to the server's key {(after or 'none')[:12]}"
        yield f"{words}; before: {before[:12]}" if before else words, after is None


def _skippable(before: set[str], after: set[str]) -> Iterator[Line]:
    for signal in sorted(after - before):
        yield f"a technician who forces an update may activate it while {signal} is on", True
    for signal in sorted(before - after):
        yield f"a technician may no longer activate anything while {signal} is on", False


def _interlocks(before: set[str], after: set[str]) -> Iterator[Line]:
    for signal in sorted(after - before):
        yield f"interlock added: nothing is activated while {signal} is on", False
    for signal in sorted(before - after):
        yield f"interlock REMOVED: releases may be activated while {signal} is on", True


def _product(workspace: Workspace, product: str, old: Any, new: Targets) -> Iterator[Line]:
    before = {release.version: release for release in releases_of(product, old)} if isinstance(old, Targets) else {}
    after = {release.version: release for release in releases_of(product, new)}
    said = terms(new, ProductTerms, product)
    told = terms(old, ProductTerms, product) if isinstance(old, Targets) else None
    yield from _interlocks(set(told.interlocks) if told is not None else set(), set(said.interlocks))
    yield from _skippable(set(told.skippable) if told is not None else set(), set(said.skippable))
    floor, old_floor = said.floor, told.floor if told is not None else 0
    if floor != old_floor:
        yield f"counter floor {old_floor} -> {floor}: machines refuse what lies below", floor < old_floor
    for version, release in before.items():
        if version not in after:
            yield (
                f"delists {product} {version} (counter {release.release_counter}): no machine installs it any more",
                False,
            )
    for version, release in after.items():
        present = before.get(version)
        if present is None:
            yield f"lists {product} {version} (counter {release.release_counter})", False
            yield from _release(open_manifest(workspace, release))
        elif present != release:
            yield f"{product} {version} becomes another release: {release.manifest_sha256[:12]}", True


def _permits(product: str, old: Any, new: Targets, now: datetime) -> Iterator[Line]:
    before = permits_of(product, old) if isinstance(old, Targets) else ()
    after = permits_of(product, new, now)
    for permit in after:
        if permit not in before:
            yield (
                f"permits {permit.device} to go back to {product} {permit.release}, once, until "
                f"{day(permit.expires_ms)}: {permit.reason}",
                True,
            )
    for permit in before:
        if permit not in after:
            over = "has ended" if permit.expires_ms <= now.timestamp() * 1000 else "is WITHDRAWN"
            yield f"the permit of {permit.device} to go back to {product} {permit.release} {over}", False


def _release(manifest: ReleaseManifest) -> Iterator[Line]:
    for model in manifest.models:
        labels = f"{len(model.labels)} labels" if len(model.labels) > 6 else ", ".join(model.labels)
        yield f"  model {model.name}: {model.task.__struct_config__.tag} ({labels})", False
        for variant in model.variants:
            artifact = variant.artifact
            yield (
                f"    {variant.name}: {variant.runtime} on {variant.accelerator}, {artifact.length_bytes:,} bytes, "
                f"{artifact.sha256[:12]}, {len(variant.golden)} golden inputs",
                False,
            )
    for container in manifest.containers:
        for text, warning in container_lines(container):
            yield f"  {text}", warning
    for config in manifest.configs:
        yield f"  config {config.name}: {config.artifact.length_bytes:,} bytes, {config.artifact.sha256[:12]}", False
    if manifest.frame_policy != "never":
        yield f"  frames may leave the machine: {manifest.frame_policy}", True
    for line in manifest.notes.splitlines():
        yield f"  {line}", line.startswith(UNTRIED)
