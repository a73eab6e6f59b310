"use strict";
// Asks what is new, again and again, and shows it. All that was told reaches the page as text nodes: elements.js.

const known = dataOf("watch");
const at = (id) => document.getElementById(id);
const PAUSE_MS = 250;
const HIDDEN_PAUSE_MS = 5000;
const SHOWN_ENTRIES = 300;
const trajectories = new Map();
const headers = { "x-watch-token": known.token };
let version = 0, shown = 0, seen = 0, armed = 0, over = false;
let asking = new AbortController();

// ---- controls

async function control(action, number) {
  const body = JSON.stringify({ action, number });
  try {
    const answer = await fetch("/control", { method: "POST", headers, body });
    if (!answer.ok && answer.status !== 409) say((await answer.json()).error.message, "over");
  } catch {
    say("The run is not reached.", "over");
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
  const before = trajectories.get(shown);
  if (before) pressed(before.node, false);
  shown = number;
  seen = 0;
  const { row, node } = trajectories.get(number);
  pressed(node, true);
  const cancel = button("cancel", () => control("cancel", number), "Cancel this one");
  cancel.id = "cancel";
  const head = element("div", "chosen", element("h2", "", row.task), cancel);
  show(head, element("p", "quiet facts"), element("div", "events"));
  describe(row);
  if (matchMedia("(max-width: 800px)").matches) at("main").scrollIntoView();
  asking.abort();
}

function describe(row) {
  if (row.number !== shown || !at("cancel")) return;
  at("cancel").disabled = over || row.outcome !== null;
  const facts = ["#" + row.number, row.label, stateOf(row), rewardOf(row) && "reward " + rewardOf(row), row.trajectory_id];
  at("main").querySelector(".facts").replaceChildren(text(facts.filter(Boolean).join(" · ")));
}

function update(row) {
  let entry = trajectories.get(row.number);
  if (!entry) {
    const node = pressed(button("entry", () => choose(row.number)), false);
    node.dataset.number = row.number;
    trajectories.set(row.number, (entry = { node }));
    at("running").append(node);
  }
  entry.row = row;
  const used = [times(row.steps, "step"), times(row.input_tokens + row.output_tokens, "token")];
  if (row.cost_usd !== null) used.push("$" + row.cost_usd.toFixed(4));
  entry.node.replaceChildren(
    element("span", "name", element("span", "quiet", "#" + row.number + " "), row.task),
    element("span", row.reward > 0 ? "good" : "quiet", rewardOf(row)),
    row.label ? element("span", "what", row.label) : text(""),
    element("span", "what", [stateOf(row), ...used].join(" · ")),
  );
  if (row.outcome !== null && entry.node.parentNode !== at("ended")) at("ended").prepend(entry.node);
  describe(row);
}

/** Leaves those that the board still has. `numbers` are told to a page that was away for long; null: none was missed. */
function prune(most, numbers) {
  const ended = at("ended");
  while (ended.children.length > most) drop(+ended.lastChild.dataset.number);
  if (numbers === null) return;
  const kept = new Set(numbers);
  for (const number of [...trajectories.keys()]) if (!kept.has(number)) drop(number);
}

function drop(number) {
  trajectories.get(number).node.remove();
  trajectories.delete(number);
}

const times = (value, what) => count(value) + " " + what + (value === 1 ? "" : "s");
const stateOf = (row) => (row.outcome === null ? row.state : row.outcome.replaceAll("_", " "));
const rewardOf = (row) => (row.reward === null ? "" : number(row.reward));

function append(entries) {
  const main = at("main"), events = main.querySelector(".events");
  // What runs is followed to its last entry, unless somebody scrolled up; what has ended is read from its start.
  const running = trajectories.get(shown)?.row.outcome === null;
  const follow = (running || seen) && atEnd(main);
  for (const entry of entries) {
    if (entry.number > seen + 1) events.append(element("p", "quiet", "Earlier entries are no longer kept here."));
    seen = entry.number;
    const time = new Date(entry.at * 1000).toLocaleTimeString();
    const title = element("div", "title", element("b", "", entry.title), " · " + time);
    const body = entry.text ? element("pre", "", entry.text) : null;
    const pictures = entry.pictures.map(placeFor);
    events.append(element("div", "event is-" + entry.kind + (entry.failed ? " failed" : ""), title, body, pictures));
    pictures.forEach((node) => appearing.observe(node));
  }
  while (events.children.length > SHOWN_ENTRIES) events.firstChild.remove();
  if (follow && entries.length) main.scrollTop = main.scrollHeight;
}

const atEnd = (box) => box.scrollTop + box.clientHeight >= box.scrollHeight - 40;

// ---- images, asked for when they come into view, one after the other

let fetching = Promise.resolve();
const places = new WeakMap();
const appearing = new IntersectionObserver((changes) => {
  for (const { target, isIntersecting } of changes) {
    if (!isIntersecting) continue;
    appearing.unobserve(target);
    fetching = fetching.then(() => fill(target, places.get(target)));
  }
});

function placeFor(told) {
  const node = element("p", "quiet", told.note);
  places.set(node, told);
  return node;
}

async function fill(node, told) {
  if (told.number === undefined || !node.isConnected) return;
  try {
    const answer = await fetch("/pictures/" + told.number, { headers });
    if (answer.ok) node.replaceWith(picture(await answer.json()));
    else node.append(" (no longer kept here)");
  } catch {
    node.append(" (not reached)");
  }
}

// ---- the whole

function totals(told) {
  const all = told.totals, slots = told.slots;
  const cards = [["running", count(all.running)], ["started", count(all.started)]];
  for (const [outcome, times] of Object.entries(all.outcomes)) cards.push([outcome.replaceAll("_", " "), count(times)]);
  if (slots) cards.push(["slots in use", slots[0] + " of " + slots[1]]);
  if (slots && slots[2]) cards.push(["wait for a slot", count(slots[2])]);
  cards.push(["steps", count(all.steps || 0)], ["tool calls", count(all.tool_calls || 0)]);
  if (all.tool_errors) cards.push(["tool errors", count(all.tool_errors)]);
  cards.push(["tokens in", count(all.input_tokens || 0)], ["tokens out", count(all.output_tokens || 0)]);
  if (all.cost_usd !== null) cards.push(["cost", "$" + all.cost_usd.toFixed(4)]);
  for (const part of ["running", "ended"]) at(part + "-count").textContent = count(at(part).children.length);
  at("totals").replaceChildren(...cards.map(([label, value]) => card(label, value)));
}

function apply(told) {
  version = told.version;
  told.trajectories.forEach(update);
  prune(told.kept_ended, told.kept);
  if (told.shown === shown && shown) append(told.entries);
  totals(told);
  pause.textContent = told.paused ? "Resume" : "Pause";
  say(told.closed ? "The run has ended." : told.paused ? "Paused" : "Live", told.closed ? "over" : told.paused ? "paused" : "live");
  if (told.closed) end();
}

/** Said once: a screen reader repeats what is written again. */
function say(words, kind) {
  if (at("state").textContent !== words) at("state").textContent = words;
  at("state").className = kind;
}

function end() {
  over = true;
  pause.disabled = cancelAll.disabled = true;
  if (at("cancel")) at("cancel").disabled = true;
}

let wake = () => {};
document.addEventListener("visibilitychange", () => wake());

function nextTurn() {
  return new Promise((done) => {
    wake = done;
    setTimeout(done, document.hidden ? HIDDEN_PAUSE_MS : PAUSE_MS);
  });
}

async function follow() {
  for (;;) {
    asking = new AbortController();
    try {
      // A trajectory just chosen must not wait for the next event.
      const since = seen || !shown ? version : Math.max(0, version - 1);
      // One that nobody looks at does not hold a connection, of which a browser has few.
      const query = "?since=" + since + "&show=" + shown + "&seen=" + seen + "&wait=" + (document.hidden ? 0 : 1);
      const answer = await fetch("/changes" + query, { headers, signal: asking.signal });
      if (answer.status === 403) {
        say("Another run is served here: load the page again.", "over");
        return end();
      }
      const told = await answer.json();
      apply(told);
      if (told.closed) return;
    } catch {
      if (asking.signal.aborted) continue;
      say("The run has ended, or is not reached.", "over");
    }
    await nextTurn();
  }
}

follow();
