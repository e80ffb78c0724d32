"""Retry or clone: every pattern of lost, repeated and late messages, against every way in which a disk is copied."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from server import sync_token
from server.storage.records import Device
from server.sync_token import REMEMBERED, Standing

DEVICE = Device(id="tractor-1", product="p", groups=(), public_key=b"", certificate_pem="", enrolled_ms=0)


@dataclass(frozen=True)
class Server:
    """What the server keeps of the machine, and whether it took it for two."""

    device: Device = DEVICE
    clones: int = 0

    def take(self, request: "Request") -> tuple["Server", int]:
        """Answers as `Contacts` does, with the number of the token."""
        token = None if request.token is None else "some"
        standing = sync_token.judge(self.device, request.token, token, request.contact)
        number = sync_token.number_to_give(self.device, standing, request.token, request.contact)
        device = sync_token.answered(self.device, standing, number, request.contact)
        return Server(device, self.clones + (standing is Standing.CLONE)), number


@dataclass(frozen=True)
class Request:
    token: int | None
    contact: str


@dataclass(frozen=True)
class Machine:
    """What the machine keeps: the last token, and the contact that was begun and not answered."""

    name: str
    token: int | None = None
    pending: str | None = None
    begun: int = 0
    done: int = 0

    def begin(self) -> tuple["Machine", Request]:
        machine = self
        if self.pending is None:
            machine = replace(self, pending=f"{self.name}{self.begun}", begun=self.begun + 1)
        assert machine.pending is not None
        return machine, Request(machine.token, machine.pending)

    def hear(self, number: int) -> "Machine":
        return replace(self, token=number, pending=None, done=self.done + 1)


CONTACTS = 4
World = tuple[Server, Machine, frozenset[Request]]


def honest_steps(world: World) -> Iterator[World]:
    """A try whose request or answer is lost, or that succeeds; and any earlier request that arrives once more."""
    server, machine, sent = world
    begun, request = machine.begin()
    yield server, begun, sent | {request}
    heard_by, number = server.take(request)
    yield heard_by, begun, sent | {request}
    yield heard_by, begun.hear(number), sent | {request}
    for late in sent:
        yield server.take(late)[0], machine, sent


def play(server: Server, machine: Machine, tries: tuple[str, ...]) -> tuple[Server, Machine]:
    for how in tries:
        machine, request = machine.begin()
        if how != "t":
            server, number = server.take(request)
            if how == "k":
                machine = machine.hear(number)
    return server, machine


def taken_anew(server: Server) -> Server:
    """A person readmitted the machine, or it was enrolled anew: whatever it shows next counts."""
    counter = -abs(server.device.token_counter) - 1
    return replace(server, device=replace(server.device, token_counter=counter, contact_id=None))


def beginnings() -> Iterator[World]:
    """A new machine; and one that is taken anew, in the middle of a contact or not, whatever token it kept."""
    yield Server(), Machine("a"), frozenset()
    known, machine = play(Server(), Machine("a"), ("k", "k"))
    returned = Server(replace(DEVICE, token_counter=-1))  # by a server out of a backup that does not know it
    for tries, token in itertools.product(("", "t", "r"), (None, 1, 2, 9)):
        server, kept = play(known, machine, tuple(tries))
        kept = replace(kept, token=token, done=0)
        sent = frozenset([kept.begin()[1]] if tries else [])
        yield taken_anew(server), kept, sent
        yield returned, kept, sent


def test_no_pattern_of_lost_late_and_repeated_messages_is_taken_for_a_clone():
    worlds = list(beginnings())
    seen = set()
    finished = steps = 0
    while worlds:
        fresh = []
        for world in worlds:
            for after in honest_steps(world):
                server, machine, sent = after
                steps += 1
                assert not server.clones, (machine, sent)
                key = (server.device.token_counter, server.device.contact_id, *server.device.recent, machine, sent)
                if key not in seen:
                    seen.add(key)
                    finished += machine.done == CONTACTS
                    if machine.done < CONTACTS or machine.pending is None:
                        fresh.append(after)
        worlds = [world for world in fresh if world[1].done <= CONTACTS]
    assert finished
    assert steps > 60, "from each state of both, everything that can happen next"


# What the copy, and the original until the copy speaks, may do: `t` a try whose request is lost, `r` one whose reply is
# lost, `k` one that succeeds.
TRIES = [tries for length in range(3) for tries in itertools.product("trk", repeat=length)]


@pytest.mark.parametrize("before", TRIES, ids="".join)
def test_a_copied_disk_is_noticed_once_both_have_spoken_twice(before):
    """Whatever happened before the copy was made, and to the messages of both after it."""
    server, original = play(Server(), Machine("a"), ("k", *before))
    copy = replace(original, name="b")
    for one, other in itertools.product(TRIES, TRIES):
        first_server, first = play(server, original, one)
        second_server, second = play(first_server, copy, other)
        # Each makes two contacts more, in any order.
        for order in ("abab", "aabb", "bbaa", "baba", "abba", "baab"):
            last, a, b = second_server, first, second
            for who in order:
                if who == "a":
                    last, a = play(last, a, ("k",))
                else:
                    last, b = play(last, b, ("k",))
            assert last.clones, (before, one, other, order)


def test_a_copy_without_its_state_looks_like_a_lost_token_until_the_original_speaks_again():
    for before in TRIES:
        server, original = play(Server(), Machine("a"), ("k", *before))
        server, _ = play(server, Machine("b"), ("k",))
        assert not server.clones
        assert play(server, original, ("k", "k"))[0].clones


def test_a_request_older_than_what_is_remembered_is_the_limit():
    server, machine = play(Server(), Machine("a"), ("k",))
    machine, oldest = machine.begin()
    server, machine = play(server, machine, ("k",) * (REMEMBERED + 1))
    assert not server.take(oldest)[0].clones
    server, machine = play(server, machine, ("k",))
    assert server.take(oldest)[0].clones


def test_a_lost_token_is_renewed_and_repeated_as_any_other():
    server, machine = play(Server(), Machine("a"), ("k", "k"))
    server, machine = play(server, replace(machine, token=None, pending=None), ("r", "r", "k", "k"))
    assert not server.clones
    assert machine.token == server.device.token_counter


def test_a_retry_gets_the_number_of_the_last_answer_also_where_no_contacts_are_remembered():
    server, machine = play(Server(), Machine("a"), ("k", "r"))
    forgetful = replace(server, device=replace(server.device, recent={}))
    _, number = forgetful.take(machine.begin()[1])
    assert number == server.device.token_counter


def test_a_request_that_was_held_up_while_a_machine_called_every_few_seconds_is_late_and_no_clone():
    server, machine = play(Server(), Machine("a"), ("k",))
    machine, held_up = machine.begin()
    server, number = server.take(held_up)
    server, _ = play(server, machine.hear(number), ("k",) * 30)

    assert not server.take(held_up)[0].clones
