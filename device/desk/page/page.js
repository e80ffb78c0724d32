"use strict";
// The machine's page: asks the agent once a second while somebody looks, and shows what it says. No library, no network.

const LOOK_MS = 1000;
const LOOK_LIMIT_MS = 10_000;
const ACT_LIMIT_MS = 180_000; // a slow stick is read before it is answered
const READS = "The machine reads the sticks. Leave them in …";
const DAY_MS = 86_400_000;
const STATES = {
  idle: "Nothing to do",
  fetch: "Fetching",
  check: "Trying out the new models",
  wait: "Ready, and waiting for its moment",
  activate: "Switching over",
  trial: "On trial",
  commit: "Keeping it",
  rollback: "Going back to the release before",
  cleanup: "Tidying up",
};
const OUTCOMES = {
  committed: "was installed and runs",
  refused: "was refused before it ran",
  "rolled-back": "was on trial and taken back",
  unfinished: "could not be tried to the end",
  deferred: "waits",
};

class NobodyThere extends Error {}
class NotPaired extends Error {}

const $ = (id) => document.getElementById(id);
let token = recall();
let offered = null; // what the dialog would force
let seenAt = null; // when the machine answered last
const cards = new Map(); // by kit

function recall() {
  try {
    return localStorage.getItem("headland") || "";
  } catch {
    return ""; // a browser that keeps nothing pairs each time
  }
}

function keep() {
  try {
    localStorage.setItem("headland", token);
  } catch { /* as above */ }
}

function text(where, words) {
  const place = typeof where === "string" ? $(where) : where;
  if (place.textContent !== words) place.textContent = words; // what did not change is not read out again
}

function say(id, words, isError = false) {
  $(id).className = isError ? "error" : "";
  text(id, words);
}

async function ask(method, path, body) {
  let answer;
  let said;
  try {
    answer = await fetch(path, {
      method,
      headers: { Authorization: `Bearer ${token}`, ...(body === undefined ? {} : { "Content-Type": "application/json" }) },
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      signal: AbortSignal.timeout(method === "GET" ? LOOK_LIMIT_MS : ACT_LIMIT_MS),
    });
    said = await answer.text();
  } catch {
    throw new NobodyThere("The machine does not answer. Is it on, and are you in its network?");
  }
  try {
    said = JSON.parse(said);
  } catch {
    said = {};
  }
  if (answer.status === 401) throw new NotPaired("This browser is not paired any more.");
  if (!answer.ok) {
    const words = [said.error || `The machine answered ${answer.status}.`, said.hint].filter(Boolean).join("; ");
    throw new Error(words.replaceAll("`", ""));
  }
  return said;
}

function show(view) {
  if (!$(view).hidden) return;
  for (const id of ["pairing", "machine"]) $(id).hidden = id !== view;
  if (view === "pairing") $("code").focus();
}

function element(name, words) {
  const made = document.createElement(name);
  made.textContent = words;
  return made;
}

function list(id, lines) {
  const drawn = JSON.stringify(lines);
  if ($(id).dataset.drawn !== drawn) $(id).replaceChildren(...lines.map((words) => element("li", words)));
  $(id).dataset.drawn = drawn;
}

function bytes(count) {
  for (const unit of ["B", "kB", "MB"]) {
    if (count < 999.5) return `${count < 10 && unit !== "B" ? count.toFixed(1) : Math.round(count)} ${unit}`;
    count /= 1000;
  }
  return `${count.toFixed(1)} GB`;
}

function ago(ms) {
  if (ms < 90_000) return "a moment ago";
  if (ms < 90 * 60_000) return `${Math.round(ms / 60_000)} minutes ago`;
  if (ms < 36 * 3_600_000) return `${Math.round(ms / 3_600_000)} hours ago`;
  return `${Math.round(ms / DAY_MS)} days ago`;
}

const day = (ms) => new Date(ms).toISOString().slice(0, 10);

function showRelease(status) {
  text("release", status.release ? status.release.version : "No release yet");
  $("not-serving").hidden = !status.release || status.serving;
  list("models", Object.entries(status.models).map(([name, model]) =>
    [name, model.accelerator && `on ${model.accelerator}`, model.fallback && `(${model.fallback})`]
      .filter(Boolean).join(" ")));
  const { last_ms: lastMs, trouble } = status.contact;
  text("met", [lastMs ? `The server was met ${ago(status.time.ms - lastMs)}.` : "The server was not met yet.", trouble]
    .filter(Boolean).join(" "));
}

function showUpdate(update) {
  const busy = update.state !== "idle";
  text("update", `${STATES[update.state] || update.state}${update.release && busy ? `: ${update.release}` : ""}`);
  text("why", [update.why, update.damaged].filter(Boolean).join("; "));
  const [done, whole] = update.state === "trial" ? [update.healthy_s, update.healthy_of_s]
    : update.state === "fetch" ? [update.bytes_done, update.bytes_total] : [0, 0];
  $("progress").hidden = !whole;
  $("progress").max = whole || 1;
  $("progress").value = Math.min(done, whole);
  text("progress-text", !whole ? ""
    : update.state === "trial" ? `${Math.floor(done)} of ${Math.ceil(whole)} healthy seconds`
      : `${bytes(done)} of ${bytes(whole)}`);
  $("forced").hidden = !(busy && update.forced);
  $("force-update").hidden = !(update.state === "wait" && update.offer && !update.forced);
  $("force-update").onclick = () => openForce(update.offer, update.release);
}

function showLast(last) {
  text("last", last ? `${last.release.version} ${OUTCOMES[last.outcome] || last.outcome}.` : "there was none yet.");
  text("last-why", last ? [last.reason, last.detail].filter(Boolean).join(": ") : "");
}

function makeCard(name) {
  const card = $("kit").content.firstElementChild.cloneNode(true);
  const [apply, force] = card.querySelectorAll("button");
  apply.onclick = () => act("kits-said", apply, () => ask("POST", `/api/kits/${name}/apply`, {}), READS);
  force.onclick = () => openForce(name, card.dataset.release);
  apply.setAttribute("aria-label", `Apply ${name}`);
  force.setAttribute("aria-label", `Force ${name}`);
  return card;
}

// The button below it does what the command does.
function withoutCommand({ kit, hint }) {
  const command = `headland-device kit apply ${kit}`;
  return hint.endsWith(command) ? hint.slice(0, -command.length).replace(/: $/, "") : hint;
}

// Cards are kept and changed in place: one that is drawn anew under a finger or a cursor would not be pressed.
function showKits({ kits, troubles, results }, nowMs) {
  const names = kits.map((kit) => kit.kit);
  for (const [name, card] of cards) {
    if (!names.includes(name)) {
      card.remove();
      cards.delete(name);
    }
  }
  for (const kit of kits) {
    if (!cards.has(kit.kit)) cards.set(kit.kit, makeCard(kit.kit));
    const card = cards.get(kit.kit);
    const part = (name) => card.querySelector(name);
    card.dataset.release = kit.release;
    text(part("h3"), `${kit.kit}${kit.release ? `: ${kit.release}` : ""}`);
    text(part(".sentence"), kit.sentence);
    const hint = kit.can_apply ? withoutCommand(kit) : kit.hint;
    text(part(".hint"), hint && `What to do: ${hint}`);
    const expires = !kit.expires_ms ? "" : `${kit.expires_ms < nowMs ? "expired" : "good until"} ${day(kit.expires_ms)}`;
    text(part(".where"), [kit.sticks.join(", ") || "its stick is not in the machine", expires].filter(Boolean).join(" · "));
    part(".forced").hidden = !kit.forced;
    part(".apply").hidden = part(".force").hidden = !kit.can_apply;
  }
  const wanted = names.map((name) => cards.get(name));
  if (wanted.some((card, at) => $("kits").children[at] !== card)) $("kits").replaceChildren(...wanted);
  $("no-kits").hidden = kits.length > 0;
  list("stick-troubles", troubles);
  text("results", results);
}

function showLanes(lanes) {
  $("lanes").replaceChildren(...Object.entries(lanes).map(([name, lane]) => {
    const row = document.createElement("tr");
    row.append(...[name, lane.queued, lane.receipted, lane.lost].map((cell) => element("td", cell.toLocaleString("en"))));
    return row;
  }));
}

function showAll(status, kits) {
  text("device", status.device);
  text("product", status.product);
  document.title = `${status.device} · Headland`;
  $("trouble-section").hidden = !status.trouble.length;
  list("trouble", status.trouble);
  showRelease(status);
  showUpdate(status.update);
  showLast(status.last_update);
  showKits(kits, status.time.ms);
  showLanes(status.lanes);
  show("machine");
}

function lost(words) {
  if (words && seenAt !== null) words += ` What is shown here is of ${seenAt.toLocaleTimeString()}.`;
  text("link", words);
  $("link").hidden = !words;
  $("machine").classList.toggle("stale", Boolean(words));
}

async function act(where, button, work, meanwhile = "") {
  say(where, meanwhile);
  button.disabled = true;
  try {
    const words = await work();
    say(where, typeof words === "string" ? words : "");
    await look();
    return true;
  } catch (error) {
    say(where, error.message, true);
    if (error instanceof NotPaired) sendAway();
    return false;
  } finally {
    button.disabled = false;
  }
}

function sendAway() {
  token = "";
  keep();
  seenAt = null;
  lost("");
  $("force").close();
  show("pairing");
}

function openForce(offer, release) {
  offered = offer;
  text("force-what", release || offer);
  say("dialog-said", "");
  say("force-said", "");
  $("force").showModal();
}

async function pair() {
  ({ token } = await ask("POST", "/pair", { code: $("code").value }));
  keep();
  $("pair").reset();
}

async function force() {
  const key = await $("key").files[0].text().catch(() => { throw new Error("The key file cannot be read."); });
  const said = await ask("POST", "/api/force/with-key",
    { offer: offered, key, passphrase: $("passphrase").value, reason: $("reason").value });
  $("force").close();
  say("force-said", `${said.release} is forced by ${said.technician}.`);
}

async function look() {
  if (!token) return show("pairing");
  try {
    const [status, kits] = await Promise.all([ask("GET", "/api/status"), ask("GET", "/api/kits")]);
    seenAt = new Date();
    lost("");
    showAll(status, kits);
  } catch (error) {
    if (error instanceof NotPaired) sendAway();
    else lost(error.message);
  }
}

async function keepLooking() {
  if (!document.hidden && token) await look();
  setTimeout(keepLooking, LOOK_MS);
}

$("pair").addEventListener("submit", (event) => {
  event.preventDefault();
  act("pair-said", event.submitter, pair);
});
$("force-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  await act("dialog-said", $("force-yes"), force, "The machine opens your key, which takes a moment …");
  $("passphrase").value = "";
  if ($("force").open) $("passphrase").focus();
});
const hideOrShow = () => { $("passphrase").type = $("show-passphrase").checked ? "text" : "password"; };
$("show-passphrase").addEventListener("change", hideOrShow);
$("force").addEventListener("close", () => { // however it was closed
  $("force-form").reset();
  hideOrShow();
});
$("force-no").addEventListener("click", () => $("force").close());
$("look").addEventListener("click", () => act("kits-said", $("look"), () => ask("POST", "/api/kits/look", {}), READS));
// What came of it is the kits' `results`, which every look shows.
$("export").addEventListener("click", () => act("export-said", $("export"), () => ask("POST", "/api/export", {}),
  "The machine writes. Leave the stick in …"));

look().then(keepLooking);
