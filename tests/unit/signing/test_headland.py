"""The managers' tool from the first key to a delisted release, as three people use it."""

import re
import shutil
from pathlib import Path

import pytest
from tuf.api.metadata import Targets

from protocol.objects import Conditions, ProductTerms
from protocol.release import parse_manifest
from signing.commands.activation import activation_lines, parse_moment, parse_window
from signing.events import open_events
from signing.metadata import parse, terms
from tests.fakes.managers_tool import ManagersTool


@pytest.fixture
def tool(tmp_path: Path) -> ManagersTool:
    return ManagersTool(tmp_path)


@pytest.fixture
def begun(tool: ManagersTool) -> ManagersTool:
    tool.begin()
    return tool


def test_three_managers_publish_a_release_that_two_of_them_signed(begun: ManagersTool) -> None:
    built = begun.build("1.0.0", 1)
    assert built["tried"] == ["leaf/onnx"]
    begun.sign("carol")
    begun.fail("release", "push", code=4)
    assert built["manifest_sha256"] not in begun.server.blobs, "nothing is uploaded below the threshold"
    begun.sign("bob")
    begun.push()
    assert parse_manifest(begun.server.blobs[built["manifest_sha256"]]).version == "1.0.0"
    shown = begun.run("release", "show", "1.0.0")
    assert shown["signed_by"] == ["bob", "carol"]
    assert shown["listed"] is True
    assert [each["version"] for each in begun.run("release", "list")["releases"]] == ["1.0.0"]


def test_one_manager_alone_may_work_with_a_threshold_of_one(tool: ManagersTool) -> None:
    tool.begin(managers=("alice",))
    tool.publish("1.0.0", 1, "alice")
    assert tool.run("release", "show", "1.0.0")["signed_by"] == ["alice"]


@pytest.mark.parametrize(("managers", "threshold"), [(1, 1), (2, 2), (3, 2), (4, 3)])
def test_a_majority_is_proposed(tool: ManagersTool, managers: int, threshold: int) -> None:
    for name in ("alice", "bob", "carol", "dora")[:managers]:
        tool.run("keys", "add", name)
    event = tool.run("keys", "init", "--product", "pest-detector", "--server", tool.operator_json)
    assert {need["threshold"] for need in event["needs"]} == {threshold}


def test_a_threshold_that_can_never_be_met_is_refused(tool: ManagersTool) -> None:
    tool.run("keys", "add", "alice")
    said = tool.fail(
        "keys", "init", "--product", "pest-detector", "--threshold", 2, "--server", tool.operator_json, code=6
    )
    assert "2 signatures of 1 managers" in said


def test_every_signer_sees_what_is_added_and_delisted_and_until_when(begun: ManagersTool) -> None:
    begun.build("1.0.0", 1)
    said = begun.invoke("release", "sign", "--as", "alice", "--yes").stderr
    assert "lists pest-detector 1.0.0 (counter 1)" in said
    assert "onnx: onnxruntime on cpu" in said
    assert "until 2026-10-31" in said
    begun.sign("bob")
    begun.push()
    begun.run("release", "delist", "1.0.0", "--floor", 2)
    said = begun.invoke("release", "sign", "--as", "alice", "--yes").stderr
    assert "delists pest-detector 1.0.0" in said
    assert "counter floor 0 -> 2" in said


def test_a_signer_who_says_no_has_not_signed(begun: ManagersTool) -> None:
    begun.build("1.0.0", 1)
    begun.invoke("release", "sign", "--as", "alice", answer="n\n")
    begun.invoke("release", "sign", "--as", "bob", answer="y\n")
    (need,) = begun.run("release", "show")["needs"]
    assert need["signed"] == ["bob"]


def test_a_release_that_was_not_tried_shows_its_reason_to_every_signer(begun: ManagersTool) -> None:
    built = begun.build("1.0.0", 1, "--untried", "the Edge TPU is in the barn")
    assert begun.checker.attempts == []
    assert built["untried"] == {"leaf/onnx": "the Edge TPU is in the barn"}
    for name in ("alice", "bob"):
        said = begun.invoke("release", "sign", "--as", name, "--yes").stderr
        assert "! " in said
        assert "golden inputs were not tried: the Edge TPU is in the barn" in said
    begun.push()
    assert begun.run("release", "show", "1.0.0")["untried"] == "the Edge TPU is in the barn"


def test_a_manifest_that_is_not_here_is_not_signed(begun: ManagersTool) -> None:
    built = begun.build("1.0.0", 1)
    begun.workspace.blob(built["manifest_sha256"]).unlink()
    said = begun.fail("release", "sign", "--as", "alice", "--yes", code=6)
    assert "not in this workspace" in said


def test_a_manifest_that_was_changed_in_the_workspace_is_not_signed(begun: ManagersTool) -> None:
    built = begun.build("1.0.0", 1)
    blob = begun.workspace.blob(built["manifest_sha256"])
    blob.write_bytes(blob.read_bytes() + b"\n")  # the same manifest to every reader, and another release
    assert "was changed" in begun.fail("release", "sign", "--as", "alice", "--yes", code=4)


def test_a_list_that_says_something_else_than_the_manifest_is_not_signed(begun: ManagersTool) -> None:
    begun.build("1.0.0", 1)
    (event,) = open_events(begun.workspace)
    payload = event.folder / "payload" / "image" / "pest-detector.json"
    payload.write_bytes(payload.read_bytes().replace(b'"release_counter":1', b'"release_counter":7'))
    assert "the list says 1.0.0 (counter 7)" in begun.fail("release", "sign", "--as", "alice", "--yes", code=4)


@pytest.mark.parametrize("change", [("--threshold", 4), ("--remove", "alice", "--remove", "bob")])
def test_a_rotation_that_leaves_a_threshold_which_nobody_could_meet_is_refused(
    begun: ManagersTool, change: tuple[object, ...]
) -> None:
    begun.fail("keys", "rotate", *change, code=6)
    assert begun.run("release", "list")["open"] == []


def test_a_floor_only_rises(begun: ManagersTool) -> None:
    begun.run("release", "delist", "--floor", 5)
    begun.sign("alice", "bob")
    begun.push()
    for floor in (4, 5):
        assert "only rises" in begun.fail("release", "delist", "--floor", floor, code=6)


def test_interlocks_are_shown_to_signers_and_outlast_releases_floors_and_delistings(begun: ManagersTool) -> None:
    def listed() -> tuple[str, ...]:
        role = parse(begun.workspace.need("image").delegated["pest-detector"], Targets, "product")
        return terms(role.signed, ProductTerms, "product").interlocks

    begun.run("release", "interlocks", "spraying", "driving")
    said = begun.invoke("release", "sign", "--as", "alice", "--yes").stderr
    assert "nothing is activated while driving is on" in said
    begun.sign("bob")
    begun.push()
    begun.build("1.0.0", 3)
    begun.sign("alice", "bob")
    begun.push()
    begun.run("release", "delist", "1.0.0", "--floor", 4)
    begun.sign("alice", "bob")
    begun.push()
    assert listed() == ("driving", "spraying")
    assert "already" in begun.fail("release", "interlocks", "driving", "spraying", code=6)
    begun.fail("release", "interlocks", "../driving", code=4)
    begun.run("release", "interlocks")
    said = begun.invoke("release", "sign", "--as", "alice", "--yes").stderr
    assert "! interlock REMOVED: releases may be activated while driving is on" in said


def test_control_characters_from_elsewhere_do_not_reach_the_terminal(begun: ManagersTool) -> None:
    folder = begun.describe("1.0.0", 1, top='notes = "\\u001b[2Kall is well"')
    begun.run("release", "build", folder)
    said = begun.invoke("release", "sign", "--as", "alice", "--yes").stderr
    assert "\x1b[2K" not in said
    assert "\\x1b[2Kall is well" in said


def test_one_event_at_a_time_is_open_for_a_product(begun: ManagersTool) -> None:
    begun.build("1.0.0", 1)
    tried = len(begun.checker.attempts)
    said = begun.fail("release", "build", begun.describe("1.1.0", 2), code=6)
    assert "is open" in said
    assert len(begun.checker.attempts) == tried, "it is told before any model is tried"
    begun.fail("keys", "rotate", "--threshold", 3, code=6)
    begun.run("release", "cancel", "--yes")
    begun.build("1.1.0", 2)


def test_two_products_have_events_of_their_own(begun: ManagersTool) -> None:
    begun.run("keys", "init", "--product", "weed-finder", "--threshold", 1, "--manager", "carol")
    begun.sign("alice", "bob", "carol")
    begun.push()
    begun.build("1.0.0", 1)
    begun.build("2.0.0", 1, product="weed-finder")
    begun.run("release", "sign", "--as", "carol", "--yes")
    assert [each["title"] for each in begun.push()["published"]] == ["release weed-finder 2.0.0"]
    assert [e["version"] for e in begun.run("release", "list", "--product", "weed-finder")["releases"]] == ["2.0.0"]
    assert "several products" in begun.fail("release", "list", code=6)


def test_a_manager_without_a_key_in_the_role_cannot_sign(begun: ManagersTool) -> None:
    begun.run("keys", "add", "dora")
    begun.build("1.0.0", 1)
    assert begun.run("keys", "sign", "--as", "dora", "--yes")["events"] == []
    begun.fail("keys", "sign", "--as", "nobody", "--yes", code=6)


def test_a_rotated_key_signs_and_the_old_one_no_longer_does(begun: ManagersTool) -> None:
    before = {m["name"]: m["keyid"] for m in begun.run("keys", "show")["managers"]}
    begun.run("keys", "rotate", "--manager", "bob")
    begun.sign("bob", "carol")
    begun.push()
    after = {m["name"]: m for m in begun.run("keys", "show")["managers"]}
    assert after["bob"]["keyid"] != before["bob"]
    assert after["alice"]["keyid"] == before["alice"]
    assert "image/root" in after["bob"]["roles"]
    assert all(before["bob"] not in role["keyids"] for role in begun.run("keys", "show")["roles"])
    begun.publish("1.0.0", 1, "alice", "bob")


def test_a_rotation_needs_the_old_roots_threshold_and_the_new_ones(begun: ManagersTool) -> None:
    begun.run("keys", "add", "dora")
    begun.run("keys", "rotate", "--remove", "alice", "--remove", "bob", "--add", "dora")
    begun.sign("dora", "carol")
    said = begun.fail("release", "push", code=4)
    assert "by the keys of the root before" in said
    begun.sign("alice")
    begun.push()
    begun.publish("1.0.0", 1, "carol", "dora")


def test_a_rotation_that_was_cut_after_the_key_was_made_takes_that_key(begun: ManagersTool) -> None:
    def proposed() -> str:
        begun.run("keys", "rotate", "--manager", "bob")
        return str(next(m["next_keyid"] for m in begun.run("keys", "show")["managers"] if m["name"] == "bob"))

    first = proposed()
    shutil.rmtree(begun.path / "events")
    assert proposed() == first
    assert len(list((begun.path / "keys").glob("bob-*.key"))) == 2


def test_a_cancelled_rotation_leaves_the_old_key(begun: ManagersTool) -> None:
    begun.run("keys", "rotate", "--manager", "bob")
    begun.run("release", "cancel", "--yes")
    (bob,) = (m for m in begun.run("keys", "show")["managers"] if m["name"] == "bob")
    assert bob["next_keyid"] is None
    begun.publish("1.0.0", 1, "alice", "bob")


def test_a_product_role_that_a_new_threshold_no_longer_vouches_for_is_signed_again(begun: ManagersTool) -> None:
    begun.publish("1.0.0", 1)
    event = begun.run("keys", "rotate", "--threshold", 3)
    assert "image/pest-detector" in {need["file"] for need in event["needs"]}
    begun.sign("alice", "bob", "carol")
    begun.push()
    assert [each["version"] for each in begun.run("release", "list")["releases"]] == ["1.0.0"]


def test_a_new_era_restarts_the_counter(begun: ManagersTool) -> None:
    begun.publish("9.0.0", 9)
    begun.run("keys", "rotate", "--new-era", "pest-detector")
    begun.sign("alice", "bob")
    begun.push()
    assert begun.build("9.1.0", 1)["era"] == 1


def test_the_servers_new_keys_are_taken_in_by_a_rotation(begun: ManagersTool, tmp_path: Path) -> None:
    fresh = ManagersTool(tmp_path).server
    keys = tmp_path / "online-keys.json"
    keys.write_bytes(fresh.online_keys)
    begun.run("keys", "rotate", "--online", keys)
    begun.sign("alice", "bob")
    begun.push()
    begun.server.keys = fresh.keys
    assert len([each for each in begun.run("keys", "due")["roles"] if each["online"]]) == 4


def test_push_again_restores_a_server_that_lost_everything(begun: ManagersTool) -> None:
    built = begun.publish("1.0.0", 1)
    begun.run("keys", "rotate", "--manager", "carol")
    begun.sign("alice", "bob")
    begun.push()
    sets, begun.server.sets, begun.server.blobs = begun.server.sets, {}, {}
    begun.run("release", "push", "--again")
    assert begun.server.sets == sets
    assert built["manifest_sha256"] in begun.server.blobs


def test_a_push_that_was_cut_after_the_server_took_it_is_finished_by_the_next(begun: ManagersTool) -> None:
    begun.build("1.0.0", 1)
    begun.sign("alice", "bob")
    publish = begun.server.publish

    def publish_and_die(files: object) -> None:
        publish(files)
        raise OSError(5, "the cable")

    begun.server.publish = publish_and_die
    begun.fail("release", "push", code=1)
    begun.sign("carol")  # a signature that comes late must not change the bytes that the server has
    begun.server.publish = publish
    begun.push()
    assert begun.run("release", "list")["open"] == []
    assert begun.workspace.current("image") == begun.server.sets["image"]


def test_due_marks_half_and_four_fifths_of_each_lifetime(begun: ManagersTool) -> None:
    def state(role: str) -> str:
        return str(next(e["state"] for e in begun.run("keys", "due")["roles"] if e["role"] == role))

    assert state("pest-detector") == "fresh"
    begun.later(days=91)
    assert state("pest-detector") == "due"
    begun.later(days=54)
    assert state("pest-detector") == "urgent"
    begun.later(days=36)
    assert state("pest-detector") == "expired"


def test_push_again_sends_what_was_signed_also_where_blobs_are_elsewhere_and_says_what_holds_it(
    begun: ManagersTool,
) -> None:
    built = begun.publish("1.0.0", 1)
    begun.server.sets.clear()
    (begun.path / "blobs" / built["manifest_sha256"]).unlink()
    begun.server.held = "machines trust what is not here: image/3.root.json"
    said = begun.run("release", "push", "--again")
    assert said["held"] == begun.server.held
    assert [line.split(":")[0] for line in said["missing"]] == ["pest-detector 1.0.0"]
    assert set(begun.server.sets) == {"image", "director"}
    told = begun.invoke("release", "push", "--again").stdout
    assert "restored from a backup" in told and f"this workspace is {said['workspace']} to the server" in told
    assert begun.server.again == [False, False, True, True]


def test_the_list_of_machines_says_which_ones_wait_for_a_person(begun: ManagersTool) -> None:
    begun.server.answers["/devices"] = {
        "devices": [
            {"device": "a", "returned": "enrolled after the backup"},
            {"device": "b", "set_apart": "twice"},
            {"device": "c", "revoked": True, "returned": "too"},
        ]
    }
    said = begun.invoke("device", "list").stdout
    for words in ("returned after a restore", "set apart", "revoked"):
        assert said.count(words) == 1


def test_a_person_vouches_for_a_machine_after_seeing_why_it_is_asked_for(begun: ManagersTool) -> None:
    begun.server.answers["/devices/tractor-1"] = {"device": "tractor-1", "returned": "enrolled after the backup"}
    result = begun.invoke("device", "readmit", "tractor-1", answer="n\n")
    assert result.exit_code == 1 and "enrolled after the backup" in result.stderr and not begun.server.posted
    begun.run("device", "readmit", "tractor-1", "--yes")
    assert begun.server.posted == [("/devices/tractor-1/readmit", {})]


def test_due_lists_all_that_ends_in_the_order_in_which_to_act(begun: ManagersTool) -> None:
    def life(kind: str, what: str, used: float, state: str, act: str) -> dict[str, object]:
        dates = {"expires": "2027-01-01T00:00:00+00:00", "half": "", "most": ""}
        return {"kind": kind, "what": what, "this": "1", "used": used, "state": state, "act": act, **dates} | {
            "by_itself": False
        }

    begun.server.answers["/status"] = {
        "lives": [
            life("authority", "ca", 0.55, "due", "headland-server ca rotate"),
            life("online-key", "director.clock", 0.9, "urgent", "headland-server keys rotate director.clock"),
            life("role", "image/root", 0.1, "fresh", "the workspace knows better"),
        ],
        "device_certificates": {"fresh": 2, "due": 1, "urgent": 0, "expired": 0},
    }
    begun.later(days=150)  # the product's role: 150 of 180 days
    told = begun.run("keys", "due")
    assert [(each["state"], each["what"]) for each in told["order"]][:3] == [
        ("urgent", "image/pest-detector"),
        ("urgent", "director.clock"),
        ("due", "ca"),
    ]
    assert [each["what"] for each in told["order"] if each["kind"] == "manager-key"] == ["alice", "bob", "carol"]
    assert [each["what"] for each in told["order"]].count("image/root") == 1
    assert told["device_certificates"]["due"] == 1
    assert "resign" in begun.invoke("keys", "due").stdout


def test_a_new_operator_file_is_taken_in(begun: ManagersTool, tmp_path: Path) -> None:
    other = tmp_path / "operator-2.json"
    other.write_bytes(begun.server.operator_json().replace(b"t0ken", b"t0ken-2"))
    assert begun.run("keys", "server", other)["server"] == "https://fake:1"
    before = begun.workspace.server_access()
    assert before.token == "t0ken-2"
    begun.run("keys", "server", other)  # the place keeps its name
    assert before.workspace is not None and before.workspace == begun.workspace.server_access().workspace
    (begun.workspace.path / "server.json").write_text('{"url": "https://typo')
    assert begun.run("keys", "server", other)["server"] == "https://fake:1"


def test_the_servers_next_keys_are_asked_of_the_server(begun: ManagersTool, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    begun.server.online_keys = ManagersTool(tmp_path / "other").server.online_keys
    begun.fail("keys", "rotate", "--online-of-server", "--online", begun.passphrase, code=6)
    event = begun.run("keys", "rotate", "--online-of-server")
    assert {need["file"] for need in event["needs"]} == {"image/root", "director/root", "director/targets"}


def test_resigning_gives_a_due_role_a_whole_lifetime_again(begun: ManagersTool) -> None:
    begun.publish("1.0.0", 1)
    begun.fail("keys", "resign", code=6)
    begun.later(days=100)
    event = begun.run("keys", "resign")
    assert {need["file"] for need in event["needs"]} == {"image/pest-detector"}
    begun.sign("alice", "carol")
    begun.push()
    assert {e["state"] for e in begun.run("keys", "due")["roles"] if not e["online"]} == {"fresh"}


def test_without_a_workspace_the_message_says_how_to_make_one(tool: ManagersTool) -> None:
    said = tool.fail("release", "list", code=6)
    assert "keys add" in said


def test_an_error_is_a_json_object_for_a_program(tool: ManagersTool) -> None:
    result = tool.invoke("release", "list", "--json")
    assert result.exit_code == 6
    assert '"error"' in result.stdout


def test_a_rollout_is_asked_of_the_server_in_its_words(begun: ManagersTool) -> None:
    begun.publish("1.0.0", 1)
    begun.server.answers["/rollouts"] = {"name": "spring"}
    begun.run(
        *("rollout", "create", "spring", "--release", "1.0.0", "--group", "north"),
        *("--phase", "count=1,success=100,error=0", "--phase", "devices=m1+m2", "--phase", "percent=100"),
        *("--window", "22:00-04:30", "--signal-clear", "driving"),
        *("--not-before", "2027-03-01", "--activate-before", "2027-03-31T18:00+02:00"),
    )
    assert begun.server.posted[-1] == (
        "/rollouts",
        {
            "name": "spring",
            "product": "pest-detector",
            "release": "1.0.0",
            "group": "north",
            "phases": [
                {"count": 1, "success_percent": 100, "error_percent": 0},
                {"devices": ["m1", "m2"]},
                {"percent": 100},
            ],
            "conditions": {
                "not_before_ms": 1803859200000,
                "activate_before_ms": 1806508800000,
                "window_utc": [1320, 270],
                "signals_clear": ["driving"],
            },
        },
    )


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--window", "120-300"),
        ("--window", "24:00-01:00"),
        ("--window", "22:00"),
        ("--window", "02:00-02:00"),
        ("--window", "02:00-03:00 "),
        ("--not-before", "tomorrow"),
        ("--not-before", "1803859200000"),
        ("--activate-before", "1969-12-31"),
    ],
)
def test_a_time_that_nobody_understands_is_refused_with_what_is_understood(
    begun: ManagersTool, option: str, said: str
) -> None:
    words = begun.fail("rollout", "create", "a", "--release", "1.0.0", "--group", "g", option, said, code=6)
    assert said in words


def test_what_a_release_waits_for_is_shown_as_it_was_asked_for() -> None:
    conditions = Conditions(
        not_before_ms=parse_moment("2027-03-01T08:00+02:00"),
        activate_before_ms=parse_moment("2027-03-31"),
        window_utc=parse_window("22:00-04:30"),
        signals_clear=("driving",),
    )
    assert activation_lines(conditions) == [
        "machines activate it from 2027-03-01 06:00 UTC",
        "machines activate it before 2027-03-31 00:00 UTC",
        "machines activate it between 22:00 and 04:30 UTC",
        "machines activate it while these are off: driving",
    ]


@pytest.mark.parametrize("phase", ["success=100", "count=1,percent=5", "count=x", "half=1"])
def test_a_phase_that_says_not_exactly_one_size_is_refused(begun: ManagersTool, phase: str) -> None:
    begun.fail("rollout", "create", "a", "--release", "1.0.0", "--group", "g", "--phase", phase, code=6)


@pytest.mark.parametrize(
    ("said", "budget"),
    [
        ((), None),
        (("none",), {}),
        (("release=40M",), {"release_bytes": 40_000_000}),
        (("cellular=5MB", "satellite=250k"), {"day_bytes": {"cellular": 5_000_000, "satellite": 250_000}}),
        (("release=0", "wifi=1G"), {"release_bytes": 0, "day_bytes": {"wifi": 1_000_000_000}}),
    ],
)
def test_a_budget_is_said_in_bytes_a_release_and_a_day(
    begun: ManagersTool, said: tuple[str, ...], budget: dict[str, object] | None
) -> None:
    begun.server.answers["/rollouts"] = {"name": "spring"}
    options = [word for spec in said for word in ("--budget", spec)]
    begun.run("rollout", "create", "spring", "--release", "1.0.0", "--group", "north", *options)
    assert begun.server.posted[-1][1].get("budget") == budget


@pytest.mark.parametrize("budget", [("40M",), ("release=",), ("release=4.5M",), ("release=-1",), ("none", "wifi=1")])
def test_a_budget_in_another_form_is_refused(begun: ManagersTool, budget: tuple[str, ...]) -> None:
    options = [word for spec in budget for word in ("--budget", spec)]
    result = begun.invoke("rollout", "create", "a", "--release", "1.0.0", "--group", "g", *options)
    assert result.exit_code in (4, 6)


def test_a_person_sees_a_machine_in_words(begun: ManagersTool) -> None:
    begun.server.answers["/devices/m1"] = {
        "device": "m1",
        "groups": ["north", "late"],
        "last_contact_ms": 1_790_000_000_000,
        "revoked": False,
        "report": {"release": "1.0.0", "manifest": "ab" * 32, "trial": None, "state": "idle"},
        "lanes": {"alarms": {"next_seq": 3, "queued": 0}},
        "statuses": [{"state": "check", "outcome": "refused", "reason": "golden", "detail": "[/far] off", "at_ms": 1}],
        "rollouts": {"spring": {"phase": 0, "outcome": "refused", "reason": "golden"}},
    }
    said = begun.invoke("device", "show", "m1").stdout
    for words in ("north, late", "2026-09-21", "revoked", "no", "alarms: next seq 3; queued 0", "[/far] off", "spring"):
        assert words in said
    assert not {"{", "_ms", "None", "False"} & set(re.findall(r"\{|_ms|None|False", said))


def test_a_person_sees_whom_a_phase_is_for_who_failed_and_why_it_stands(begun: ManagersTool) -> None:
    failed = {"outcome": "rolled-back", "reason": "trial-latency", "ended_ms": 1}
    waits = {"outcome": "deferred", "reason": "budget", "needs_bytes": 1234567}
    begun.server.answers["/rollouts/spring"] = {
        "name": "spring",
        "product": "pest-detector",
        "release": "1.0.0",
        "group": "north",
        "state": "paused",
        "why": "by operator",
        "halted": "",
        "budget": {"release_bytes": 1_000_000, "day_bytes": {"cellular": 50_000}},
        "transfer": {"delta_bytes": 4_321, "full_bytes": 0, "saved_bytes": 99_999},
        "phases": [
            {"count": 1, "places": 1, "contacted": 1, "failed": 1, "members": {"m1": failed}},
            {"percent": 100.0, "places": 2, "contacted": 1, "deferred": 1, "members": {"m2": waits}},
            {"devices": ["m8", "m9"], "members": {}},
        ],
    }
    said = " ".join(re.sub(r"[│┃]", " ", begun.invoke("rollout", "status", "spring").stdout).split())
    for words in ("count=1", "percent=100 ", "devices=m8+m9", "m1: trial-latency", "paused by operator"):
        assert words in said
    for words in ("1,000,000 for the release", "50,000 a day over cellular", "4,321 in patches", "99,999 saved"):
        assert words in said
    assert "needs 1,234,567" in said


def test_devices_are_shown_given_tokens_and_revoked(begun: ManagersTool) -> None:
    begun.server.answers |= {"/tokens": {"token": "HL1.abc"}, "/devices/m1": {"device": "m1"}}
    begun.server.answers["/devices"] = [{"device": "m1", "report": {"release": "1.0.0"}}]
    assert begun.run("device", "token", "m1", "--group", "north")["token"] == "HL1.abc"
    assert begun.run("device", "list")["devices"][0]["device"] == "m1"
    assert begun.run("device", "show", "m1")["device"] == "m1"
    begun.run("device", "revoke", "m1", "--yes")
    begun.run("device", "groups", "m1", "south")
    assert begun.server.posted == [
        ("/tokens", {"device": "m1", "product": "pest-detector", "groups": ["north"]}),
        ("/devices/m1/revoke", {}),
        ("/devices/m1/groups", {"groups": ["south"]}),
    ]


def test_patches_in_trouble_are_shown_and_lifted(begun: ManagersTool) -> None:
    key = "c0ffee" * 10 + "0000"
    trouble = {"patch": key, "base": "ba5e" * 16, "result": "feed" * 16, "state": "withheld", "why": "given up: [no]"}
    told = [{"device": "m1", "reason": "hash", "payload": "ab" * 32, "at_ms": 1}]
    begun.server.answers["/patches"] = {"patches": [{**trouble, "failures": told}]}
    shown = begun.run("patch", "list")
    assert shown["patches"][0]["patch"] == key
    said = re.sub(r"[│┃\s]", "", begun.invoke("patch", "list").stdout)
    for words in ("c0ffeec0ffee", "feedfeedfeed", "given", "m1(hash)"):
        assert words in said
    begun.server.answers[f"/patches/{key[:8]}/lift"] = {"patch": key, "state": "waiting"}
    assert "is waiting" in begun.invoke("patch", "lift", key[:8]).stdout
    assert begun.server.posted[-1] == (f"/patches/{key[:8]}/lift", {})
    begun.server.answers["/patches"] = {"patches": []}
    assert "No patch is in trouble" in begun.invoke("patch", "list").stdout


def test_what_a_new_rollout_will_not_do_is_said(begun: ManagersTool) -> None:
    begun.server.answers["/rollouts"] = {"name": "a", "warnings": ["no machine is in the group 'nroth'"]}
    result = begun.invoke("rollout", "create", "a", "--release", "1.0.0", "--group", "nroth")
    assert result.exit_code == 0
    assert "warning: no machine is in the group 'nroth'" in result.stderr
    assert "a: 1.0.0 goes to nroth" in result.stdout


def test_two_pushes_or_builds_at_once_do_not_write_into_each_other(begun: ManagersTool) -> None:
    source = begun.describe("1.0.0", 1)
    with begun.workspace.alone():
        for command in (("release", "build", source), ("release", "push"), ("keys", "resign", "image/root")):
            assert "another `headland`" in begun.fail(*command, code=6)
    begun.publish("1.0.0", 1)


def test_a_damaged_signature_file_is_named_and_can_be_made_again(begun: ManagersTool) -> None:
    begun.build("1.0.0", 1)
    begun.sign("alice", "bob")
    (damaged,) = begun.path.glob("events/*/signatures/alice.json")
    damaged.write_bytes(damaged.read_bytes()[:40])
    said = begun.fail("release", "push", code=4)
    assert str(damaged) in said and "alice signs again" in said
    damaged.unlink()
    begun.sign("alice")
    begun.push()
