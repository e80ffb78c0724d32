"""The machine's page in a real browser, over the real door; what lies behind that is put there by the test."""

import re
from pathlib import Path

import pytest

from device.desk.door import HARDENING
from device.desk.pairing import GUESSES, GUESSES_OVER_S, read_or_draw
from device.status import UpdateNow
from device.update.states import Ended, Held
from protocol.errors import LinkError, Reason, StateError
from signing.keyfile import generate, write_key_file
from tests.fakes.browser import DESKTOP, PHONE, open_browser
from tests.fakes.shown_desk import HOUR_MS, MANIFEST, NOW_MS, STATUS, ServedDesk

KIT = "kit-pest-detector-spring"
PASSPHRASE = "seven lean cows"
TRAP = '<img src=x onerror="document.title=1"><b>bold</b>'
# What chromium itself remarks on an answer that is an error, or on none.
REFUSED = "the server responded with a status of 4"
BUSY = "the server responded with a status of 503"
NOBODY = "net::ERR_"


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture
def desk(tmp_path, browser):
    served = ServedDesk(tmp_path)
    yield served
    browser.close_all()
    served.close()


def code(desk):
    return read_or_draw(desk.code_file).spelt()


def pair(visit, words):
    visit.page.get_by_label("Pairing code").fill(words)
    visit.page.get_by_role("button", name="Pair").click()


@pytest.fixture
def open_page(desk, browser):
    """Opens the page, paired."""

    def open_it(size=DESKTOP, scheme="light"):
        visit = browser.visit(desk.url, size, scheme)
        pair(visit, code(desk))
        visit.page.get_by_text("Runs now").wait_for()
        return visit

    return open_it


def key_file(folder: Path, desk, name="theo"):
    signer = generate("ed25519")
    write_key_file(folder / f"{name}.key", signer, PASSPHRASE, lambda count: b"7" * count, n=1 << 10)
    desk.names[signer.public_key.keyval["public"]] = name
    return folder / f"{name}.key"


def see(visit, words):
    visit.page.get_by_text(words).first.wait_for()


def read(visit, name):
    return visit.page.locator(name).inner_text()


# ---- who may look ----


def test_a_wrong_code_is_said_and_the_right_one_opens_the_page_for_good(desk, browser):
    visit = browser.visit(desk.url)
    pair(visit, "0000 0000" if code(desk) != "0000 0000" else "1")
    see(visit, "that is not the code; headland-device page shows it")
    pair(visit, code(desk))
    see(visit, "Runs now")
    assert visit.page.title() == "tractor-1 · Headland"
    visit.page.reload()
    see(visit, "Runs now")
    assert not visit.page.get_by_label("Pairing code").is_visible()
    visit.blame(expected=(REFUSED,))


def test_after_too_many_wrong_codes_the_right_one_waits_too(desk, browser):
    visit = browser.visit(desk.url)
    for guess in range(GUESSES):
        with visit.page.expect_response("**/pair") as answer:
            pair(visit, f"{guess}")
        assert answer.value.status == 403
    pair(visit, code(desk))
    see(visit, "too many wrong codes; wait a minute")
    desk.now_s += GUESSES_OVER_S
    pair(visit, code(desk))
    see(visit, "Runs now")
    visit.blame(expected=(REFUSED,))


def test_a_new_code_sends_an_open_page_away_in_the_middle_of_what_it_does(desk, open_page):
    desk.show(kit=KIT, release="1.2.0", can_apply=True)
    visit = open_page()
    visit.page.get_by_role("button", name=f"Force {KIT}").click()
    read_or_draw(desk.code_file, anew=True)
    visit.page.get_by_label("Pairing code").wait_for()
    assert not visit.page.get_by_role("dialog").is_visible()
    pair(visit, code(desk))
    see(visit, "Runs now")
    visit.blame(expected=(REFUSED,))


# ---- what it shows ----


def test_it_says_what_runs_what_waits_and_what_troubles_the_machine(desk, open_page):
    desk.set(
        trouble=("the disk is full",),
        serving=False,
        last_update=Ended(
            release=Held(digest=MANIFEST, version="1.1.5", release_counter=3),
            rollout="spring",
            outcome="rolled-back",
            reason=Reason.TRIAL_CRASH,
            detail="pests ended 3 times",
        ),
    )
    visit = open_page()
    see(visit, "the disk is full")
    see(visit, "The models do not serve now.")
    see(visit, "The server was met 5 hours ago.")
    assert read(visit, "#release") == "1.1.0"
    assert read(visit, "#last") == "1.1.5 was on trial and taken back."
    assert read(visit, "#last-why") == "trial-crash: pests ended 3 times"
    assert visit.page.get_by_role("row", name="results 1,250 39,062 0").is_visible()
    desk.set(trouble=(), release=None)
    see(visit, "No release yet")
    assert not visit.page.get_by_text("Trouble").is_visible()
    visit.blame()


def test_a_bar_follows_what_is_fetched_and_then_the_trial(desk, open_page):
    visit = open_page()
    bar = visit.page.get_by_role("progressbar")
    assert not bar.is_visible()
    desk.set(update=UpdateNow(state="fetch", release="1.2.0", bytes_done=3_400_000, bytes_total=12_000_000))
    see(visit, "3.4 MB of 12 MB")
    assert bar.evaluate("bar => bar.position") == pytest.approx(3.4 / 12)
    assert read(visit, "#update") == "Fetching: 1.2.0"
    desk.set(update=UpdateNow(state="trial", release="1.2.0", healthy_s=2.4, healthy_of_s=4.0, forced=True))
    see(visit, "2 of 4 healthy seconds")
    see(visit, "A technician forced it")
    assert bar.evaluate("bar => bar.position") == pytest.approx(0.6)
    desk.set(update=UpdateNow())
    see(visit, "Nothing to do")
    assert not bar.is_visible()
    visit.blame()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("check", "Trying out the new models"),
        ("wait", "Ready, and waiting for its moment"),
        ("activate", "Switching over"),
        ("commit", "Keeping it"),
        ("rollback", "Going back"),
        ("cleanup", "Tidying up"),
        ("novelty", "novelty"),
    ],
)
def test_each_step_of_an_update_has_words(desk, open_page, state, words):
    desk.set(update=UpdateNow(state=state, release="1.2.0", why="it drives"))
    visit = open_page()
    see(visit, words)
    assert read(visit, "#why") == "It drives"
    visit.blame()


def test_a_kit_tells_where_it_is_how_long_it_is_good_and_what_to_do(desk, open_page):
    desk.show(kit=KIT, release="1.2.0", sentence="it waits for a word", expires_ms=NOW_MS + HOUR_MS, can_apply=True)
    desk.show(kit="kit-old", state="expired", sentence="it is old", hint="ask for a newer one", expires_ms=1)
    desk.show(kit="kit-gone", state="applying", sentence="it is fetched", sticks=[], forced=True)
    desk.troubles = ("/media/broken cannot be read",)
    desk.results = "/media/stick: 3 pieces"
    visit = open_page()
    see(visit, "kit-gone")
    shown = [card.inner_text() for card in visit.page.get_by_role("article").all()]
    assert re.search(rf"{KIT}: 1.2.0\s+It waits for a word\s+/media/stick · good until 2026-09-21\s+Apply", shown[0])
    assert re.search(r"kit-old\s+It is old\s+What to do: ask for a newer one\s+/media/stick · expired 1970", shown[1])
    assert re.search(r"its stick is not in the machine\s+A technician forced it.", shown[2])
    assert "Apply" not in shown[1] + shown[2]
    see(visit, "/media/broken cannot be read")
    see(visit, "/media/stick: 3 pieces")
    desk.kits.clear()
    see(visit, "No stick with a kit is in this machine.")
    visit.blame()


def test_a_command_is_not_repeated_above_its_button(desk, open_page):
    command = f"headland-device kit apply {KIT}"
    desk.show(kit=KIT, release="1.2.0", hint=command, can_apply=True)
    visit = open_page()
    see(visit, KIT)
    hint = visit.page.locator("article .hint")
    assert hint.inner_text() == ""
    desk.show(kit=KIT, release="1.2.0", hint=f"a permit lets this machine go back to it: {command}", can_apply=True)
    see(visit, "What to do: a permit lets this machine go back to it")
    assert "headland-device" not in hint.inner_text()
    desk.show(kit=KIT, release="1.2.0", state="reading", hint=command)
    see(visit, f"What to do: {command}")
    visit.blame()


@pytest.mark.parametrize("where", ["kit", "update", "status", "error", "export"])
def test_whatever_a_name_or_a_reason_says_is_text(desk, open_page, where):
    match where:
        case "kit":
            desk.show(kit=KIT, release="1.2.0", sentence=TRAP, hint=TRAP, sticks=[TRAP], can_apply=True)
            desk.troubles, desk.results = (TRAP,), TRAP
        case "update":
            desk.set(update=UpdateNow(state=TRAP, release=TRAP, offer=TRAP, why=TRAP, damaged=TRAP))
        case "status":
            desk.set(device=TRAP, product=TRAP, trouble=(TRAP,), lanes={TRAP: STATUS.lanes["alarms"]})
        case "error":
            desk.error = StateError(TRAP, hint=TRAP)
        case "export":
            desk.words = TRAP
    visit = open_page()
    if where in ("error", "export"):
        visit.page.get_by_role("button", name="Write results").click()
    see(visit, TRAP)
    assert visit.page.locator("main img, main b, header b").count() == 0
    assert "onerror" in visit.page.title() or visit.page.title().startswith("tractor-1")
    visit.blame(expected=(REFUSED,))


# ---- what it does ----


def test_apply_look_and_export_reach_the_machine_and_their_errors_the_person(desk, open_page):
    desk.show(kit=KIT, release="1.2.0", can_apply=True)
    visit = open_page()
    visit.page.get_by_role("button", name=f"Apply {KIT}").click()
    visit.page.get_by_role("button", name="Look for sticks").click()
    visit.page.get_by_role("button", name="Write results").click()
    see(visit, "all that waited lies on the stick")
    assert sorted(desk.asked) == [f"apply {KIT}", "export", "look"]
    desk.error = LinkError("a stick keeps the agent busy", hint="look at `headland-device kit list` later")
    visit.page.get_by_role("button", name=f"Apply {KIT}").click()
    see(visit, "a stick keeps the agent busy; look at headland-device kit list later")
    visit.blame(expected=(BUSY,))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"Apply {KIT}", "The machine reads the sticks"),
        ("Look for sticks again", "The machine reads the sticks"),
        ("Write results to the stick now", "The machine writes"),
    ],
)
def test_what_takes_a_while_is_said_to_be_under_way(desk, open_page, name, words):
    desk.show(kit=KIT, release="1.2.0", can_apply=True)
    desk.slow_s = 2.0
    visit = open_page()
    button = visit.page.get_by_role("button", name=name)
    button.click()
    see(visit, words)
    assert button.is_disabled()
    visit.page.get_by_text(words).wait_for(state="hidden")
    assert button.is_enabled()
    visit.blame()


def test_a_passphrase_can_be_looked_at_until_the_dialog_closes(desk, open_page):
    desk.show(kit=KIT, release="1.2.0", can_apply=True)
    visit = open_page()
    page = visit.page
    page.get_by_role("button", name=f"Force {KIT}").click()
    field = page.get_by_label("Its passphrase")
    field.fill(PASSPHRASE)
    assert field.get_attribute("type") == "password"
    page.get_by_label("Show what I type").check()
    assert field.get_attribute("type") == "text"
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name=f"Force {KIT}").click()
    assert field.get_attribute("type") == "password"
    assert field.input_value() == ""
    visit.blame()


def test_on_a_phone_buttons_are_large_and_none_is_close_to_another(desk, open_page):
    desk.show(kit=KIT, release="1.2.0", can_apply=True)
    visit = open_page(PHONE)
    page = visit.page
    page.get_by_role("button", name=f"Force {KIT}").click()
    for one, other in ((f"[aria-label='Apply {KIT}']", f"[aria-label='Force {KIT}']"), ("#force-no", "#force-yes")):
        first, second = page.locator(one).bounding_box(), page.locator(other).bounding_box()
        across = second["x"] - (first["x"] + first["width"])
        down = second["y"] - (first["y"] + first["height"])
        assert max(across, down) >= 12
        assert min(first["height"], second["height"]) >= 56
        assert min(first["width"], second["width"]) >= 120
    assert page.locator("#force-yes").bounding_box()["y"] + 56 < PHONE[1]  # without scrolling
    visit.blame()


def test_a_button_under_a_finger_stays_while_its_kit_changes(desk, open_page):
    desk.show(kit=KIT, release="1.2.0", can_apply=True)
    visit = open_page()
    button = visit.page.get_by_role("button", name=f"Apply {KIT}")
    button.focus()
    desk.show(kit=KIT, release="1.2.0", can_apply=True, sentence="12 of 30 MB")
    see(visit, "12 of 30 MB")
    assert button.evaluate("button => document.activeElement === button")


def test_a_technician_forces_with_a_lent_key(desk, open_page, tmp_path, caplog):
    desk.show(kit=KIT, release="1.2.0", can_apply=True)
    file = key_file(tmp_path, desk)
    visit = open_page()
    page = visit.page
    page.get_by_role("button", name=f"Force {KIT}").click()
    page.get_by_label("Your key file").set_input_files(file)
    page.get_by_label("Its passphrase").fill("eight fat cows")
    page.get_by_label("Why").fill("harvest ends tonight")
    page.get_by_role("button", name="Force", exact=True).click()
    see(visit, re.compile("passphrase is wrong|does not open"))
    assert page.get_by_label("Its passphrase").input_value() == ""
    assert page.get_by_label("Why").input_value() == "harvest ends tonight"
    page.get_by_label("Its passphrase").fill(PASSPHRASE)
    page.keyboard.press("Enter")
    see(visit, "1.2.0 is forced by theo.")
    assert not page.get_by_role("dialog").is_visible()
    for name in ("Its passphrase", "Why", "Your key file"):
        assert page.get_by_label(name).input_value() == ""
    [(signed, request)] = desk.forced
    assert (request.offer, request.technician, request.reason) == (KIT, "theo", "harvest ends tonight")
    assert "cows" not in caplog.text + signed.request + page.content()
    visit.blame(expected=(REFUSED,))


def test_what_waits_can_be_forced_until_it_is(desk, open_page):
    waits = {"state": "wait", "release": "1.2.0", "offer": "spring", "why": "it drives"}
    desk.set(update=UpdateNow(**waits))
    visit = open_page()
    visit.page.get_by_role("button", name="Force this update").click()
    assert visit.page.get_by_role("dialog", name="Force 1.2.0").is_visible()
    visit.page.get_by_label("Its passphrase").fill("secret")
    with visit.page.expect_event("console", lambda message: message.text == "closed"):
        visit.page.evaluate("document.getElementById('force').addEventListener('close', () => console.log('closed'))")
        visit.page.keyboard.press("Escape")
    assert visit.page.get_by_label("Its passphrase").input_value() == ""
    desk.set(update=UpdateNow(**waits, forced=True))
    visit.page.get_by_role("button", name="Force this update").wait_for(state="hidden")
    visit.blame()


def test_a_machine_that_went_away_is_said_and_comes_back_by_itself(desk, open_page):
    visit = open_page()
    desk.go_away()
    see(visit, re.compile(r"The machine does not answer.* What is shown here is of \d"))
    visit.page.get_by_role("button", name="Look for sticks").click()
    visit.page.locator("#kits-said", has_text="The machine does not answer.").wait_for()
    desk.set(product="weed-detector")
    desk.come_back()
    see(visit, "weed-detector")
    assert not visit.page.locator("#link").is_visible()
    visit.blame(expected=(NOBODY,))


# ---- for whom ----


@pytest.mark.parametrize("size", [PHONE, DESKTOP, (320, 568)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_its_window_with_targets_for_fingers_and_colours_that_can_be_read(desk, open_page, size, scheme):
    desk.show(kit="kit-" + "x" * 56, release="1.2.0", sentence="y" * 300, hint="z z " * 50, can_apply=True)
    desk.set(trouble=("the disk is full",), update=UpdateNow(state="wait", release="1.2.0", offer="spring"))
    visit = open_page(size, scheme)
    see(visit, "xxxx")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    for button in visit.page.get_by_role("button").all():
        assert button.bounding_box()["height"] >= 44
    worst, words = visit.page.evaluate(CONTRASTS)
    assert worst >= 4.5, words
    visit.page.get_by_role("button", name="Force this update").click()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    worst, words = visit.page.evaluate(CONTRASTS)
    assert worst >= 4.5, words
    visit.blame()


# The worst contrast of any words on their ground: WCAG 2.2, 1.4.3.
CONTRASTS = """() => {
  const parts = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = (colour) => {
    const [r, g, b] = parts(colour).map((c) => c / 255)
      .map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (parts(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  let worst = [21, ""];
  for (const one of document.querySelectorAll("body *")) {
    const said = [...one.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join("").trim();
    if (!said || !one.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(one).color), light(ground(one))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < worst[0]) worst = [(a + .05) / (b + .05), said];
  }
  return worst;
}"""


def test_everything_is_done_by_keyboard_alone(desk, browser, tmp_path):
    desk.show(kit=KIT, release="1.2.0", can_apply=True)
    visit = browser.visit(desk.url)
    keys = visit.page.keyboard
    focused = "() => document.activeElement.getAttribute('aria-label') || document.activeElement.textContent"
    visit.page.locator("#code:focus").wait_for()
    keys.type(code(desk))
    keys.press("Enter")
    see(visit, "Runs now")

    def tab_to(name):
        for _ in range(20):
            keys.press("Tab")
            if visit.page.evaluate(focused) == name:
                return
        raise AssertionError(f"{name} is not reached")

    tab_to(f"Apply {KIT}")
    keys.press("Enter")
    tab_to(f"Force {KIT}")
    keys.press("Enter")
    assert visit.page.evaluate("document.activeElement.id") == "key"
    keys.press("Escape")
    assert visit.page.evaluate(focused) == f"Force {KIT}"
    tab_to("Write results to the stick now")
    keys.press("Space")
    see(visit, "all that waited lies on the stick")
    assert desk.asked == [f"apply {KIT}", "export"]
    visit.blame()


def test_each_field_button_section_and_cell_has_a_name_for_who_does_not_see(desk, open_page):
    desk.show(kit=KIT, release="1.2.0", can_apply=True)
    visit = open_page()
    see(visit, KIT)
    page = visit.page
    for region in ("Runs now", "Update", "Kits on sticks", "Results"):
        assert page.get_by_role("region", name=region).is_visible()
    assert page.get_by_role("heading", level=1).inner_text() == "tractor-1"
    assert page.get_by_role("columnheader").first.inner_text() == "Kind"
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, textarea')].filter((one) => !one.labels.length).map((one) => one.id)"
    )
    assert unnamed == []
    assert page.locator("html").get_attribute("lang") == "en"
    statuses = [one.get_attribute("id") for one in page.get_by_role("status").all()]
    assert "update" in statuses
    assert "progress-text" not in statuses  # a number a second is not read out
    visit.blame()


def test_what_did_not_change_is_not_drawn_again(desk, open_page):
    desk.show(kit=KIT, release="1.2.0", can_apply=True)
    visit = open_page()
    visit.page.evaluate(
        """() => { window.changes = 0; new MutationObserver((seen) => { window.changes += seen.length; })
        .observe(document.querySelector('main#machine section:nth-of-type(3)'),
          {subtree: true, childList: true, characterData: true}); }"""
    )
    visit.page.wait_for_timeout(2500)
    assert visit.page.evaluate("window.changes") == 0


def test_the_browser_holds_the_page_to_its_policy(desk, open_page):
    visit = open_page()
    broken = visit.page.evaluate(
        """() => new Promise((resolve) => {
          const seen = [];
          document.addEventListener('securitypolicyviolation', (event) => seen.push(event.effectiveDirective));
          const script = document.createElement('script');
          script.textContent = 'window.ran = true';
          document.body.append(script);
          const image = document.createElement('img');
          image.src = 'http://192.0.2.1/x.png';
          document.body.append(image);
          fetch('http://192.0.2.1/').catch(() => {});
          setTimeout(() => resolve([seen.sort(), window.ran]), 300);
        })"""
    )
    assert broken == [["connect-src", "img-src", "script-src-elem"], None]
    assert "unsafe" not in HARDENING["Content-Security-Policy"]
