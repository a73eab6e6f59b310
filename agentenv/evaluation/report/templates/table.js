// Tasks x models: a table of any length, sorted and filtered in the page, of which the rows that are shown exist.

const ROW_STEP = 200;
const view = { wanted: "", filter: "All tasks", set: "All", sort: null, falling: false, order: [] };

const means = (index, place) => index.means.map((arm) => arm[place]);
const known = (index, place) => finite(means(index, place));
const TASK_FILTERS = {
  "All tasks": () => true,
  "Models differ": (index, place) => new Set(known(index, place)).size > 1,
  "All solved": (index, place) => known(index, place).length > 0 && known(index, place).every((value) => value >= SWEEP.success_at),
  "None solved": (index, place) => known(index, place).length > 0 && known(index, place).every((value) => value === 0),
  "Attempts differ": (index, place) => known(index, place).some((value) => value > 0 && value < SWEEP.success_at),
  "With lost samples": (index, place) => index.lost.some((arm) => arm[place] > 0),
};

function taskTable(index) {
  const body = element("tbody");
  const shown = element("span", "quiet");
  const search = element("input");
  search.type = "search";
  search.placeholder = "Find in tasks";
  search.setAttribute("aria-label", "Find in tasks");
  search.value = view.wanted;
  const filter = choice(TASK_FILTERS, "Filter", refresh);
  filter.value = view.filter;
  const sets = choice(Object.fromEntries(["All", ...index.sets].map((name) => [name, 1])), "Task set", refresh);
  sets.value = view.set;
  search.addEventListener("input", refresh);
  const sortable = [];
  const heads = element("tr", "", sorted("Task", "name"), element("th", "what", "Instruction"));
  SWEEP.arms.forEach((arm, place) => heads.append(sorted(arm.label, place)));
  function refresh() {
    Object.assign(view, { wanted: search.value, filter: filter.value, set: sets.value });
    view.order = orderOf(index);
    for (const [head, key] of sortable) head.ariaSort = view.sort !== key ? "none" : view.falling ? "descending" : "ascending";
    shown.replaceChildren(count(view.order.length) + " of " + count(index.task.length) + " tasks");
    body.replaceChildren();
    rowPortions(body, index, 0);
  }
  function sorted(label, key) {
    const head = element("th", "", button("", () => {
      Object.assign(view, { falling: view.sort === key ? !view.falling : key !== "name", sort: key });
      refresh();
    }, label));
    sortable.push([head, key]);
    return head;
  }
  refresh();
  const tools = element("div", "filters", search, filter, index.sets.length > 1 ? sets : null, shown);
  return element("div", "", tools, element("div", "scroll", element("table", "grid", element("thead", "", heads), body)));
}

function orderOf(index) {
  const wanted = view.wanted.toLowerCase();
  const keep = TASK_FILTERS[view.filter];
  const order = [];
  for (let place = 0; place < index.task.length; place++) {
    const set = index.sets[index.set[place]];
    if (view.set !== "All" && set !== view.set) continue;
    if (wanted && !(index.name[place] + " " + index.preview[place]).toLowerCase().includes(wanted)) continue;
    if (keep(index, place)) order.push(place);
  }
  if (view.sort === null) return order;
  const key = view.sort === "name" ? (place) => index.name[place] : (place) => index.means[view.sort][place] ?? -Infinity;
  const sign = view.falling ? -1 : 1;
  return order.sort((a, b) => (key(a) < key(b) ? -sign : key(a) > key(b) ? sign : a - b));
}

/** Rows a portion at a time: a table cannot hold the button of `portions` between its rows. */
function rowPortions(body, index, from) {
  const end = Math.min(from + ROW_STEP, view.order.length);
  const part = document.createDocumentFragment();
  for (let next = from; next < end; next++) part.append(taskRow(index, view.order[next]));
  body.append(part);
  if (end === view.order.length) return;
  const cell = element("td", "what");
  cell.colSpan = 2 + SWEEP.arms.length;
  const row = element("tr", "", cell);
  cell.append(button("more", () => {
    row.remove();
    rowPortions(body, index, end);
  }, "Show more (" + count(view.order.length - end) + " left)"));
  body.append(row);
}

function taskRow(index, place) {
  const row = element("tr", "task", element("td", "", button("link", () => {}, index.name[place])));
  row.append(element("td", "what", index.preview[place]));
  index.means.forEach((arm, number_) => row.append(scoreCell(arm[place], index.tried[number_][place], index.lost[number_][place])));
  row.addEventListener("click", () => openTask(place));
  return row;
}

function scoreCell(mean_, tried, lost) {
  const value = typeof mean_ === "number" ? number(mean_) : "–";
  const cell = element("td", scoreClass(mean_), value);
  if (tried > 1) cell.append(element("span", "interval", "× " + tried));
  if (lost) cell.append(element("span", "interval warn", lost + " lost"));
  return cell;
}

function scoreClass(score) {
  if (typeof score !== "number") return "quiet";
  return score >= SWEEP.success_at ? "good" : score > 0 ? "warn" : "bad";
}
