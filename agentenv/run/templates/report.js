// Shows a run: the list of groups, the overview, a group with its trajectories.

const RUN = dataOf("run");

const ENTRY_STEP = 200;
const TOKEN_STEP = 4000;
const TABS = ["Steps", "Messages", "Terminal", "Tokens", "Record"];
const state = { group: null, trajectory: 0, tab: "Steps", shown: [], limit: ENTRY_STEP };

// ---- scores

const SCALE = RUN.groups.reduce(
  (scale, group) => finite(group.scores).reduce((s, v) => [Math.min(s[0], v), Math.max(s[1], v)], scale),
  [0, 1],
);
const height = (score) => (score - SCALE[0]) / (SCALE[1] - SCALE[0] || 1);

function scoreClass(score) {
  if (typeof score !== "number") return "quiet";
  return height(score) >= 0.999 ? "good" : height(score) <= 0.001 ? "bad" : "warn";
}

const mixed = (group) => new Set(group.scores).size > 1;
const failures = (group) => Object.keys(group.outcomes).some((outcome) => outcome !== "scored");

// ---- the list of groups

const FILTERS = {
  "All groups": () => true,
  "Scores differ": mixed,
  "All solved": (group) => group.scores.length > 0 && group.scores.every((score) => scoreClass(score) === "good"),
  "None solved": (group) => !group.scores.some((score) => scoreClass(score) === "good"),
  "With failures": failures,
  "Trajectories in page": (group) => Boolean(group.block),
};
const ORDERS = {
  "In order": null,
  "Lowest mean first": (a, b) => (mean(a.scores) ?? 0) - (mean(b.scores) ?? 0),
  "Highest mean first": (a, b) => (mean(b.scores) ?? 0) - (mean(a.scores) ?? 0),
  "Longest first": (a, b) => (b.seconds ?? 0) - (a.seconds ?? 0),
};

function buildSide() {
  const search = element("input");
  search.type = "search";
  search.placeholder = "Find in tasks";
  search.setAttribute("aria-label", "Find in tasks");
  const filter = choice(FILTERS, "Filter", refresh);
  const order = choice(ORDERS, "Order", refresh);
  const list = element("div");
  search.addEventListener("input", refresh);
  function refresh() {
    const wanted = search.value.toLowerCase();
    const found = (group) => (group.preview + " " + group.item + " " + group.id).toLowerCase().includes(wanted);
    state.shown = RUN.groups.filter((group) => FILTERS[filter.value](group) && found(group));
    if (ORDERS[order.value]) state.shown = [...state.shown].sort(ORDERS[order.value]);
    list.replaceChildren();
    if (!state.shown.length) list.append(element("p", "quiet entry", "No group is like that."));
    portions(list, state.shown, ENTRY_STEP, entry);
    markEntry();
  }
  document.getElementById("side").replaceChildren(element("div", "tools", search, filter, order), list);
  refresh();
}

function entry(group) {
  const facts = group.scores.length ? "mean " + number(mean(group.scores), 2) : "no scores";
  const node = button(
    "entry",
    () => open(group),
    element("span", "name", "Group " + group.id, element("span", "quiet", " · " + facts)),
    bars(group.scores),
    element("span", "what", group.preview || group.item),
  );
  node.dataset.line = group.line;
  return node;
}

function bars(scores) {
  const node = element("span", "bars");
  node.title = "scores: " + scores.map((score) => number(score)).join(", ");
  for (const score of finite(scores)) {
    const bar = element("b", scoreClass(score));
    bar.style.height = Math.round(height(score) * 100) + "%";
    node.append(element("i", "", bar));
  }
  return node;
}

function markEntry() {
  for (const node of document.querySelectorAll(".entry")) {
    node.classList.toggle("on", state.group !== null && node.dataset.line === String(state.group.line));
  }
}

// ---- the first page

function overview() {
  state.group = null;
  history.replaceState(null, "", "#");
  markEntry();
  const totals = RUN.summary;
  const scores = RUN.groups.flatMap((group) => finite(group.scores));
  const cards = [
    ["groups", count(totals.groups ? totals.groups.written : RUN.groups.length)],
    ["mean score", number(totals.scores ? totals.scores.mean : mean(scores))],
    ["solved", percent(totals.scores ? totals.scores.solved_share : null)],
    ["groups with differing scores", percent(mean(RUN.groups.map((group) => (mixed(group) ? 1 : 0))))],
    ["sampled tokens", count(totals.sampled_tokens)],
    ["tool calls", count(totals.tool_calls)],
    ["groups dropped", count(totals.groups ? totals.groups.dropped : null)],
    ["time", seconds(totals.elapsed_s) || "–"],
  ];
  show(
    element("h2", "", RUN.title),
    element("div", "quiet", RUN.folder),
    RUN.notes.map((note) => element("p", "note", note)),
    element("div", "cards", cards.map(([label, value]) => card(label, value))),
    element("h3", "", "Scores by group"),
    chart(),
    causes("Rollouts failed because", totals.failures),
    causes("Groups were dropped because", totals.drops),
    element("h3", "", "Configuration"),
    RUN.config ? textBlock(RUN.config, "boxed") : element("p", "quiet", "No config.yaml was found."),
  );
}

function causes(label, counts) {
  if (!counts || !Object.keys(counts).length) return null;
  const entries = Object.entries(counts).sort((a, b) => b[1] - a[1]);
  return element("div", "", element("h3", "", label), rows(entries.map(([cause, times]) => [times + " ×", cause])));
}

/** Every score as a dot, groups from left to right, and the mean of each. */
function chart() {
  const [width, tall, left, low] = [1000, 190, 44, 22];
  const picture = shape("svg", "chart", { viewBox: "0 0 " + width + " " + tall, preserveAspectRatio: "none", role: "img" });
  picture.setAttribute("aria-label", "scores of every group");
  const step = (width - left - 14) / Math.max(RUN.groups.length, 1);
  const x = (index) => left + (index + 0.5) * step;
  const y = (score) => tall - low - height(score) * (tall - low - 16);
  for (const score of SCALE) {
    picture.append(shape("line", "rule", { x1: left, x2: width - 14, y1: y(score), y2: y(score) }));
    const label = shape("text", "", { x: left - 8, y: y(score) + 4, "text-anchor": "end" });
    label.textContent = number(score, 2);
    picture.append(label);
  }
  const skip = Math.max(1, Math.ceil(RUN.groups.length / 1500));
  const line = [];
  RUN.groups.forEach((group, index) => {
    if (index % skip) return;
    for (const score of finite(group.scores)) {
      const dot = shape("circle", "dot", { cx: x(index), cy: y(score), r: Math.max(2, Math.min(4.5, step / 3)) });
      dot.addEventListener("click", () => open(group));
      picture.append(dot);
    }
    const middle = mean(finite(group.scores));
    if (middle !== null) line.push(x(index) + "," + y(middle));
  });
  picture.append(shape("polyline", "mean", { points: line.join(" ") }));
  return picture;
}

// ---- a group

function open(group, trajectory = 0) {
  state.group = group;
  state.trajectory = trajectory;
  state.data = group.block ? dataOf(group.block) : null;
  markEntry();
  draw();
}

function draw() {
  const { group, data } = state;
  history.replaceState(null, "", "#" + [group.line, state.trajectory + 1, state.tab].join("/"));
  const facts = [group.item && "item " + group.item, seconds(group.seconds), "line " + group.line + " of groups.jsonl"];
  const head = [
    element("h2", "", "Group " + group.id),
    element("div", "quiet", facts.filter(Boolean).join(" · ")),
    element("p", "", group.preview),
  ];
  if (!data) {
    const where = "Its trajectories are not in this page: line " + group.line + " of groups.jsonl in " + RUN.folder;
    return show(head, bars(group.scores), element("p", "note", where));
  }
  const chosen = data.trajectories[state.trajectory] || data.trajectories[0];
  if (!chosen) return show(head, element("p", "quiet", "It has no trajectories."));
  show(head, element("div", "chips", data.trajectories.map(chip)), about(chosen), tabs(chosen), VIEWS[state.tab](chosen));
}

function chip(trajectory, index) {
  const node = button(
    "chip",
    () => {
      state.trajectory = index;
      draw();
    },
    element("b", scoreClass(trajectory.score), typeof trajectory.score === "number" ? number(trajectory.score) : "no score"),
    element("small", "", (trajectory.stop_reason || "").replaceAll("_", " ")),
  );
  return pressed(node, index === state.trajectory);
}

function about(one) {
  const timings = Object.entries(one.timings || {}).map(([name, value]) => name + " " + seconds(value));
  const facts = [
    ["outcome", (one.outcome || "").replaceAll("_", " ")],
    ["ended by", (one.stop_reason || "").replaceAll("_", " ")],
    ["cause", one.cause],
    ["attempt", one.attempt > 1 ? one.attempt : null],
    ["time", [seconds(one.duration_s), ...timings].filter(Boolean).join(" · ")],
    ["sampled tokens", count(one.sampled_tokens)],
  ];
  return factsLine(facts);
}

function tabs(chosen) {
  const sizes = { Steps: chosen.steps, Messages: chosen.messages, Terminal: chosen.terminals, Tokens: chosen.sequences };
  return trajectoryTabs(TABS, sizes, state.tab, (name) => {
    state.tab = name;
    draw();
  });
}

const VIEWS = { Steps: stepsView, Messages: messagesView, Terminal: terminalView, Tokens: tokensView, Record: recordView };

// Log-probs by shade: 90 %, 50 %, 20 %, 5 %, 1 % and less.
const SHADES = [0.9, 0.5, 0.2, 0.05, 0.01].map(Math.log);
const shade = (logprob) => {
  const place = SHADES.findIndex((limit) => logprob >= limit);
  return "lp" + (place < 0 ? SHADES.length : place);
};

function tokensView(one) {
  if (!one.sequences.length) return element("p", "quiet", "No token sequence of this trajectory is kept.");
  return element("div", "", legend(), one.sequences.map(sequenceView));
}

function legend() {
  const names = ["90 % and more", "50 %", "20 %", "5 %", "1 %", "less"];
  const swatches = names.map((name, index) => element("span", "", element("span", "swatch lp" + index, "token"), name));
  return element("div", "legend", element("b", "", "Trained on, by the policy's probability:"), swatches, element("span", "masked", "masked: not trained on"));
}

function sequenceView(sequence) {
  const flags = [];
  sequence.trained.forEach((length, index) => {
    for (let left = length; left > 0; left--) flags.push(index % 2 === 1);
  });
  const trained = flags.filter(Boolean).length;
  const facts = [
    sequence.row === null ? "not a row of the group" : "row " + sequence.row,
    count(sequence.tokens.length) + " tokens",
    count(trained) + " trained on",
    "mean log-prob " + number(mean(finite(sequence.logprobs))),
    sequence.versions.length ? "policy " + sequence.versions.join(", ") : null,
  ];
  let used = 0;
  const logprobs = flags.map((flag) => (flag ? sequence.logprobs[used++] : null));
  const box = portions(element("pre", "tokens"), sequence.tokens, TOKEN_STEP, (place, index) =>
    tokenView(place, flags[index], logprobs[index]),
  );
  return element("div", "", element("h3", "", facts.filter(Boolean).join(" · ")), box);
}

function tokenView(place, trained, logprob) {
  const { ids, texts } = state.data;
  const value = texts ? texts[place] : " " + ids[place];
  const node = element("span", trained ? shade(logprob) : "masked");
  value.split("\n").forEach((part, index) => {
    if (index) node.append(element("span", "return", "↵"), "\n");
    node.append(text(part));
  });
  node.title = "id " + ids[place] + (trained ? " · log-prob " + number(logprob, 4) + " · " + (Math.exp(logprob) * 100).toFixed(1) + " %" : " · masked");
  return node;
}

// ---- the page

function move(by) {
  const place = state.shown.indexOf(state.group);
  const next = state.shown[Math.max(0, Math.min(state.shown.length - 1, place + by))];
  if (next) open(next);
  const node = document.querySelector(".entry.on");
  if (node) node.scrollIntoView({ block: "nearest" });
}

function turnTo(by) {
  if (!state.data) return;
  state.trajectory = Math.max(0, Math.min(state.data.trajectories.length - 1, state.trajectory + by));
  draw();
}

const KEYS = { j: () => move(1), k: () => move(-1), l: () => turnTo(1), h: () => turnTo(-1), Escape: overview };
const HINTS = [[["j", "k"], "group"], [["h", "l"], "trajectory"], [["esc"], "overview"]];

document.getElementById("top").replaceChildren(
  button("home", overview, element("h1", "", RUN.title)),
  element("span", "quiet", count(RUN.groups.length) + " groups"),
  listenToKeys(KEYS, HINTS),
);
buildSide();
followLink();
window.addEventListener("hashchange", followLink);

/** `#line/trajectory/tab` opens a group. */
function followLink() {
  const [line, trajectory, tab] = location.hash.slice(1).split("/");
  const group = RUN.groups.find((one) => String(one.line) === line);
  if (!group) return overview();
  if (TABS.includes(tab)) state.tab = tab;
  open(group, Math.max(0, (parseInt(trajectory, 10) || 1) - 1));
}
