// Shows a sweep: the overview with plots and tables, and a task with its samples.

const TABS = ["Steps", "Messages", "Terminal", "Record"];
const SAMPLE_STEP = 60;
const state = { index: null, place: null, samples: [], sample: 0, tab: "Steps", asked: 0 };

// ---- the overview

function estimate(value) {
  if (!value) return element("td", "quiet", "–");
  const cell = element("td", "", number(value.value));
  if (typeof value.low === "number") cell.append(element("span", "interval", "[" + number(value.low, 2) + ", " + number(value.high, 2) + "]"));
  cell.title = value.tasks + " tasks; interval: " + value.method;
  return cell;
}

function money(arm) {
  if (typeof arm.cost_usd !== "number") return "–";
  return (arm.cost_complete ? "" : "≥ ") + "$" + arm.cost_usd.toLocaleString(undefined, { maximumFractionDigits: 4 });
}

function armsTable() {
  const most = Math.max(1, ...SWEEP.arms.flatMap((arm) => Object.keys(arm.pass_at).map(Number)));
  const same = SWEEP.arms.every((arm) => !arm.score || arm.pass_at[1].value === arm.score.value); // rewards of 0 and 1
  const ks = [...new Set([1, most])].filter((k) => k > 1 || !same);
  const heads = ["", "samples", "lost", "score", ...ks.map((k) => "pass@" + k), ...(most > 1 ? ["pass^" + most] : [])];
  heads.push("tokens in / out", "cost", "p50", "p95", "tool errors", "tried again");
  const body = SWEEP.arms.map((arm) => {
    const ended = count(arm.ended) + (arm.ended === arm.planned ? "" : " of " + count(arm.planned));
    const row = element("tr", "", element("td", "", arm.label), element("td", "", ended), element("td", arm.lost ? "warn" : "", count(arm.lost)));
    row.append(estimate(arm.score), ...ks.map((k) => estimate(arm.pass_at[k])));
    if (most > 1) row.append(estimate(arm.pass_hat[most]));
    for (const value of [count(arm.input_tokens) + " / " + count(arm.output_tokens), money(arm)]) row.append(element("td", "", value));
    for (const value of [seconds(arm.latency_p50_s) || "–", seconds(arm.latency_p95_s) || "–"]) row.append(element("td", "", value));
    row.append(element("td", "", count(arm.tool_errors) + " of " + count(arm.tool_calls)), element("td", "", count(arm.tried_again)));
    return row;
  });
  return grid(heads, body);
}

function grid(heads, body) {
  const head = element("tr", "", heads.map((name) => element("th", "", name)));
  return element("div", "scroll", element("table", "grid", element("thead", "", head), element("tbody", "", body)));
}

function pairsTable() {
  if (!SWEEP.pairs.length) return null;
  const signed = (value) => (value > 0 ? "+" : "") + number(value);
  const body = SWEEP.pairs.map((pair) => {
    const names = pair.arms.map((place) => SWEEP.arms[place].label).join(" → ");
    const interval = typeof pair.low === "number" ? "[" + signed(pair.low) + ", " + signed(pair.high) + "]" : "–";
    const chance = (value) => (typeof value === "number" ? value.toPrecision(3) : "–");
    const cells = [names, signed(pair.difference), interval, chance(pair.p_value), chance(pair.adjusted), pair.method, count(pair.tasks), count(pair.better), count(pair.worse)];
    return element("tr", "", cells.map((cell) => element("td", "", cell)));
  });
  const note = "Paired by task. Adjusted: for how many comparisons there are (Holm).";
  return element("div", "", element("h3", "", "Differences"), grid(["", "difference", "interval of 95 %", "p-value", "adjusted", "by", "tasks", "better", "worse"], body), element("p", "quiet", note));
}

function lostList() {
  const causes = SWEEP.arms.flatMap((arm) => arm.causes.map(([cause, times]) => [times + " × " + arm.label, cause]));
  if (!causes.length) return null;
  return element("div", "", element("h3", "", "Samples without a reward, which are in no score"), rows(causes));
}

async function overview() {
  const turn = ++state.asked;
  state.place = null;
  history.replaceState(null, "", "#");
  const tasks = element("div", "", element("p", "quiet", "Loading…"));
  const total = (name) => SWEEP.arms.reduce((sum, arm) => sum + arm[name], 0);
  show(
    element("h2", "", SWEEP.title),
    element("div", "quiet", SWEEP.folder),
    SWEEP.notes.map((note) => element("p", "note", note)),
    element("div", "cards", [["samples", count(total("ended"))], ["lost", count(total("lost"))], ["tokens", count(total("input_tokens") + total("output_tokens"))], ["models and settings", count(SWEEP.arms.length)]].map(([name, value]) => card(name, value))),
    armsTable(),
    element("div", "plots", scorePlot(), costPlot()),
    pairsTable(),
    lostList(),
    element("h3", "", "Tasks"),
    tasks,
    element("h3", "", "Configuration"),
    textBlock(SWEEP.config, "boxed"),
  );
  state.index = await failing(tasks, taskIndex);
  if (state.index && turn === state.asked) tasks.replaceChildren(taskTable(state.index));
}

/** What `work` gives; where it fails, `box` says why. */
async function failing(box, work) {
  try {
    return await work();
  } catch (error) {
    box.replaceChildren(element("p", "note", "It cannot be shown: " + error.message));
    return null;
  }
}

// ---- a task

async function openTask(place, sample = 0) {
  const turn = ++state.asked;
  const main = document.getElementById("main");
  main.replaceChildren(element("p", "quiet", "Loading…"));
  state.index = state.index || (await failing(main, taskIndex));
  if (!state.index || turn !== state.asked) return;
  if (!(place >= 0 && place < state.index.task.length)) return overview();
  const samples = await failing(main, () => samplesOf(state.index, place));
  if (!samples || turn !== state.asked) return;
  Object.assign(state, { place, samples, sample: Math.max(0, Math.min(samples.length - 1, sample)) });
  draw();
}

function draw() {
  const { index, place, samples } = state;
  history.replaceState(null, "", "#" + [place, state.sample, state.tab].join("/"));
  const chosen = samples[state.sample];
  const head = [
    element("p", "", button("more", overview, "‹ All tasks")),
    element("h2", "", index.name[place]),
    element("div", "quiet", index.sets[index.set[place]]),
    element("p", "", index.preview[place]),
  ];
  if (!chosen) return show(head, element("p", "quiet", "It was not tried yet."));
  const chips = portions(element("div", "chips"), samples, Math.max(SAMPLE_STEP, state.sample + 1), chip);
  show(head, chips, about(chosen), filesOf(chosen), chosen.trajectory ? [tabs(chosen.trajectory), VIEWS[state.tab](chosen.trajectory)] : element("p", "note", "Its trajectory is not in this file. Every trajectory: agentenv report --serve, with the folder " + SWEEP.folder));
}

function chip(sample, number_) {
  const value = typeof sample.score === "number" ? number(sample.score) : "no score";
  const which = "attempt " + sample.attempt + (sample.seed ? ", seed " + sample.seed : "");
  const node = button(
    "chip",
    () => {
      state.sample = number_;
      draw();
    },
    element("b", scoreClass(sample.score), value),
    element("small", "", SWEEP.arms[sample.arm].label),
    element("small", "", which),
  );
  return pressed(node, number_ === state.sample);
}

function about(sample) {
  const facts = [
    ["outcome", sample.outcome.replaceAll("_", " ")],
    ["ended by", sample.stop_reason.replaceAll("_", " ")],
    ["cause", sample.cause],
    ["rewards", sample.rewards],
    ["first score", typeof sample.first_score === "number" ? number(sample.first_score) : null],
    ["time", seconds(sample.seconds)],
    ["tokens", count(sample.tokens[0]) + " in, " + count(sample.tokens[1]) + " out"],
    ["cost", typeof sample.cost === "number" ? "$" + number(sample.cost, 5) : null],
    ["tries", sample.tries > 1 ? sample.tries : null],
    ["files", sample.output_dir],
  ];
  return factsLine(facts);
}

/** What it left in files, where somebody serves them: listed when they are asked for. */
function filesOf(sample) {
  if (!SWEEP.served || !sample.output_dir) return null;
  const box = element("div");
  const open = button("more", async () => {
    const found = await failing(box, () => asked("outputs/" + sample.sample));
    if (found) box.replaceChildren(portions(element("div", "files"), found.files, 200, ([name, size]) => fileLine(sample, name, size)), found.more ? element("p", "note", "There are more, in the folder.") : "");
  }, "Show its files");
  box.append(open);
  return box;
}

function fileLine(sample, name, size) {
  const link = element("a", "", name);
  link.href = "outputs/" + sample.sample + "/" + name.split("/").map(encodeURIComponent).join("/");
  link.target = "_blank";
  link.rel = "noopener noreferrer";
  return element("div", "", link, element("span", "quiet", " " + count(size) + " bytes"));
}

function tabs(one) {
  const sizes = { Steps: one.steps, Messages: one.messages, Terminal: one.terminals };
  return trajectoryTabs(TABS, sizes, state.tab, (name) => {
    state.tab = name;
    draw();
  });
}

const VIEWS = { Steps: stepsView, Messages: messagesView, Terminal: terminalView, Record: recordView };

// ---- the page

function move(by) {
  if (state.place === null) return;
  const order = view.order.length ? view.order : state.index.task.map((_, place) => place);
  const next = order[order.indexOf(state.place) + by];
  if (next !== undefined) openTask(next);
}

function turnTo(by) {
  if (state.place === null || !state.samples[state.sample + by]) return;
  state.sample += by;
  draw();
}

const KEYS = { j: () => move(1), k: () => move(-1), l: () => turnTo(1), h: () => turnTo(-1), Escape: overview };
const HINTS = [[["j", "k"], "task"], [["h", "l"], "sample"], [["esc"], "overview"]];

document.getElementById("top").replaceChildren(
  button("home", overview, element("h1", "", SWEEP.title)),
  listenToKeys(KEYS, HINTS),
);

/** `#task/sample/tab` opens a task. */
function followLink() {
  const [place, sample, tab] = location.hash.slice(1).split("/");
  if (TABS.includes(tab)) state.tab = tab;
  return place === "" || Number.isNaN(Number(place)) ? overview() : openTask(Number(place), parseInt(sample, 10) || 0);
}
followLink();
window.addEventListener("hashchange", followLink);
