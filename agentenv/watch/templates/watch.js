"use strict";
// Asks what is new, again and again, and shows it. All that was told reaches the page as text nodes: elements.js.

const known = JSON.parse(document.getElementById("watch").textContent);
const at = (id) => document.getElementById(id);
const PAUSE_MS = 250;
const SHOWN_ENTRIES = 300;
const trajectories = new Map();
const headers = { "x-watch-token": known.token };
let version = 0, shown = 0, seen = 0, armed = 0;
let asking = new AbortController();

// ---- controls

async function control(action, number) {
  const body = JSON.stringify({ action, number });
  try {
    const answer = await fetch("/control", { method: "POST", headers, body });
    if (!answer.ok && answer.status !== 409) at("state").textContent = (await answer.json()).error.message;
  } catch {
    at("state").textContent = "The run is not reached.";
  }
}

const pause = button("pause", () => control(pause.textContent === "Pause" ? "pause" : "resume"), "Pause");
const cancelAll = button("cancel-all", () => {
  if (Date.now() - armed > 4000) {
    armed = Date.now();
    cancelAll.textContent = "Really cancel all?";
    setTimeout(() => (cancelAll.textContent = "Cancel all"), 4000);
  } else control("cancel_all");
}, "Cancel all");
at("controls").append(pause, cancelAll);

// ---- trajectories

function choose(number) {
  trajectories.get(shown)?.node.classList.remove("on");
  shown = number;
  seen = 0;
  const { row, node } = trajectories.get(number);
  node.classList.add("on");
  const cancel = button("cancel", () => control("cancel", number), "Cancel this one");
  cancel.id = "cancel";
  show(element("h2", "", row.task), element("p", "quiet", row.trajectory_id, " ", cancel), element("div", "events"));
  head(row);
  asking.abort();
}

function head(row) {
  if (row.number === shown) at("cancel").disabled = row.outcome !== null;
}

function update(row) {
  let entry = trajectories.get(row.number);
  if (!entry) {
    const node = button("entry", () => choose(row.number));
    node.dataset.number = row.number;
    trajectories.set(row.number, (entry = { node }));
    at("running").prepend(node);
  }
  entry.row = row;
  const used = [row.steps + " steps", row.tool_calls + " calls", count(row.input_tokens + row.output_tokens) + " tokens"];
  if (row.cost_usd !== null) used.push("$" + row.cost_usd.toFixed(4));
  const end = row.outcome === null ? row.state : row.outcome;
  const reward = row.reward === null ? "" : number(row.reward);
  entry.node.replaceChildren(
    element("span", "name", "#" + row.number + " ", row.task),
    element("span", row.outcome === "scored" ? "good" : "quiet", reward),
    element("span", "what", end + " · " + used.join(" · ")),
  );
  if (row.outcome !== null && entry.node.parentNode !== at("ended")) at("ended").prepend(entry.node);
  head(row);
}

function prune(kept) {
  const ended = at("ended");
  while (ended.children.length > kept) {
    trajectories.delete(+ended.lastChild.dataset.number);
    ended.lastChild.remove();
  }
}

function append(entries) {
  const main = at("main"), events = main.querySelector(".events");
  const follow = main.scrollTop + main.clientHeight >= main.scrollHeight - 40;
  for (const entry of entries) {
    if (entry.number > seen + 1) events.append(element("p", "quiet", "Earlier entries are no longer kept here."));
    seen = entry.number;
    const time = new Date(entry.at * 1000).toLocaleTimeString();
    const title = element("div", "title", entry.title, " · " + time);
    const body = entry.text ? element("pre", "", entry.text) : null;
    events.append(element("div", "event " + entry.kind + (entry.failed ? " failed" : ""), title, body));
  }
  while (events.children.length > SHOWN_ENTRIES) events.firstChild.remove();
  if (follow && entries.length) main.scrollTop = main.scrollHeight;
}

// ---- the whole

function totals(told) {
  const all = told.totals, slots = told.slots;
  const cards = [["running", count(all.running)], ["started", count(all.started)]];
  for (const [outcome, times] of Object.entries(all.outcomes)) cards.push([outcome, count(times)]);
  if (slots) cards.push(["slots in use", slots[0] + " of " + slots[1]]);
  if (slots && slots[2]) cards.push(["wait for a slot", count(slots[2])]);
  cards.push(["steps", count(all.steps || 0)], ["tool calls", count(all.tool_calls || 0)]);
  if (all.tool_errors) cards.push(["tool errors", count(all.tool_errors)]);
  cards.push(["tokens in", count(all.input_tokens || 0)], ["tokens out", count(all.output_tokens || 0)]);
  if (all.cost_usd !== null) cards.push(["cost", "$" + all.cost_usd.toFixed(4)]);
  at("totals").replaceChildren(...cards.map(([label, value]) => card(label, value)));
}

function apply(told) {
  version = told.version;
  told.trajectories.forEach(update);
  prune(told.kept_ended);
  if (told.shown === shown && shown) append(told.entries);
  totals(told);
  pause.textContent = told.paused ? "Resume" : "Pause";
  at("state").textContent = told.closed ? "The run has ended." : told.paused ? "Paused" : "Live";
}

async function follow() {
  for (;;) {
    asking = new AbortController();
    try {
      // A trajectory just chosen must not wait for the next event.
      const since = seen || !shown ? version : Math.max(0, version - 1);
      const query = "?since=" + since + "&show=" + shown + "&seen=" + seen;
      const answer = await fetch("/changes" + query, { headers, signal: asking.signal });
      if (answer.status === 403) return void (at("state").textContent = "Another run is served here: load the page again.");
      const told = await answer.json();
      apply(told);
      if (told.closed) return;
    } catch {
      if (asking.signal.aborted) continue;
      at("state").textContent = "The run has ended, or is not reached.";
    }
    await new Promise((done) => setTimeout(done, document.hidden ? 4 * PAUSE_MS : PAUSE_MS));
  }
}

follow();
