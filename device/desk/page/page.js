"use strict";
// The machine's page: asks the agent once a second while somebody looks, and shows what it says. No library, no network.

const LOOK_MS = 1000;
const STATES = {
  idle: "Nothing to do.",
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

const $ = (id) => document.getElementById(id);
const text = (id, words) => { $(id).textContent = words; };
let token = localStorage.getItem("headland") || "";
let offered = null; // what the dialog would force

async function ask(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: { Authorization: `Bearer ${token}`, ...(body === undefined ? {} : { "Content-Type": "application/json" }) },
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
  });
  const said = await answer.json().catch(() => ({}));
  if (answer.status === 401) {
    show("pairing");
    throw new Error("This browser is not paired.");
  }
  if (!answer.ok) throw new Error([said.error, said.hint].filter(Boolean).join("; ") || `status ${answer.status}`);
  return said;
}

function show(view) {
  for (const id of ["pairing", "machine"]) $(id).hidden = id !== view;
}

function element(name, words, className = "") {
  const made = document.createElement(name);
  made.textContent = words;
  made.className = className;
  return made;
}

function bytes(count) {
  for (const unit of ["B", "kB", "MB"]) {
    if (count < 1000) return `${count < 10 && unit !== "B" ? count.toFixed(1) : Math.round(count)} ${unit}`;
    count /= 1000;
  }
  return `${count.toFixed(1)} GB`;
}

function showRelease(status) {
  text("release", status.release ? `${status.product} ${status.release.version}` : "No release yet.");
  const models = Object.entries(status.models).map(([name, model]) =>
    element("li", `${name}${model.accelerator ? ` on ${model.accelerator}` : ""}`, "faint"));
  if (status.release && !status.serving) models.unshift(element("li", "The models do not serve now.", "error"));
  $("models").replaceChildren(...models);
}

function showUpdate(update) {
  const busy = update.state !== "idle";
  text("update", `${STATES[update.state] || update.state}${busy && update.release ? `: ${update.release}` : ""}`);
  text("why", update.why || update.damaged);
  const [done, whole] = update.state === "trial" ? [update.healthy_s, update.healthy_of_s]
    : update.state === "fetch" ? [update.bytes_done, update.bytes_total] : [0, 0];
  $("progress").hidden = !whole;
  $("progress").max = whole || 1;
  $("progress").value = Math.min(done, whole);
  text("progress-text", !whole ? ""
    : update.state === "trial" ? `${Math.floor(done)} of ${Math.ceil(whole)} healthy seconds`
      : `${bytes(done)} of ${bytes(whole)}`);
  $("force-update").hidden = !(update.state === "wait" && update.offer);
  $("force-update").onclick = () => openForce(update.offer, update.release);
}

function showKits(kits) {
  const cards = kits.map((kit) => {
    const card = element("div", "", "kit");
    card.append(element("h3", `${kit.kit}${kit.release ? `: ${kit.release}` : ""}`), element("p", kit.sentence));
    if (kit.can_apply) {
      const apply = element("button", "Apply");
      apply.onclick = () => act("kits-error", apply, () => ask("POST", `/api/kits/${kit.kit}/apply`, {}));
      const force = element("button", "Force", "danger");
      force.onclick = () => openForce(kit.kit, kit.release);
      card.append(apply, force);
    }
    return card;
  });
  $("kits").replaceChildren(...(cards.length ? cards : [element("p", "No stick with a kit is in this machine.", "faint")]));
}

function showLanes(lanes) {
  $("lanes").replaceChildren(...Object.entries(lanes).map(([name, lane]) => {
    const row = document.createElement("tr");
    row.append(...[name, lane.queued, lane.receipted, lane.lost].map((cell) => element("td", String(cell))));
    return row;
  }));
}

function showLast(last) {
  text("last", last ? `${last.release.version} ${OUTCOMES[last.outcome] || last.outcome}.` : "There was none yet.");
  text("last-why", last ? [last.reason, last.detail].filter(Boolean).join(": ") : "");
}

function showAll(status, kits) {
  text("device", status.device);
  text("product", `follows ${status.product}`);
  document.title = `${status.device} · Headland`;
  $("trouble-section").hidden = !status.trouble.length;
  $("trouble").replaceChildren(...status.trouble.map((words) => element("li", words)));
  showRelease(status);
  showUpdate(status.update);
  showLast(status.last_update);
  showLanes(status.lanes);
  // A card that is drawn anew under a finger would not be pressed.
  const drawn = JSON.stringify(kits.kits);
  if (drawn !== showAll.drawn) showKits(kits.kits);
  showAll.drawn = drawn;
  text("sticks", kits.results || "");
  show("machine");
}

async function act(where, button, work) {
  text(where, "");
  button.disabled = true;
  try {
    await work();
    await look();
    return true;
  } catch (error) {
    text(where, error.message);
    return false;
  } finally {
    button.disabled = false;
  }
}

function openForce(offer, release) {
  offered = offer;
  text("force-what", release || offer);
  text("force-error", "");
  $("passphrase").value = "";
  $("force").showModal();
}

async function force() {
  const key = await $("key").files[0].text();
  await ask("POST", "/api/force/with-key",
    { offer: offered, key, passphrase: $("passphrase").value, reason: $("reason").value });
}

async function look() {
  try {
    const [status, kits] = await Promise.all([ask("GET", "/api/status"), ask("GET", "/api/kits")]);
    $("link").hidden = true;
    showAll(status, kits);
  } catch (error) {
    $("link").hidden = !(error instanceof TypeError); // what fetch throws when nobody answers
  }
}

async function keepLooking() {
  if (!document.hidden && $("pairing").hidden) await look();
  setTimeout(keepLooking, LOOK_MS);
}

$("pair").addEventListener("submit", async (event) => {
  event.preventDefault();
  await act("pair-error", event.submitter, async () => {
    const answer = await fetch("/pair", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ code: $("code").value }),
    });
    const said = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(said.error || `status ${answer.status}`);
    token = said.token;
    localStorage.setItem("headland", token);
    $("code").value = "";
    $("pairing").hidden = true;
  });
});
$("force-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (await act("force-error", $("force-yes"), force)) $("force").close();
  $("passphrase").value = "";
});
$("force-no").addEventListener("click", () => $("force").close());
$("look").addEventListener("click", () => act("kits-error", $("look"), () => ask("POST", "/api/kits/look", {})));
$("export").addEventListener("click", () => act("export-error", $("export"), () => ask("POST", "/api/export", {})));

look().then(keepLooking);
