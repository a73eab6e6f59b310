// A recorded terminal: its screens, played or stepped through. Rows reach the page through `text`, like all else.

const SPEEDS = { "1×": 1, "2×": 2, "4×": 4, "8×": 8, "½×": 0.5 };
const LONGEST_PAUSE_MS = 2000;

function terminalView(one) {
  const casts = one.terminals || [];
  if (!casts.length) return element("p", "quiet", "This trajectory used no persistent shell and no terminal.");
  const box = element("div");
  const chips = casts.map((cast, index) => button("chip", () => choose(index), element("b", "", cast.session)));
  function choose(index) {
    chips.forEach((node, place) => pressed(node, place === index));
    box.replaceChildren(player(casts[index]));
  }
  choose(0);
  return element("div", "", casts.length > 1 ? element("div", "chips", chips) : null, box);
}

/** Frames hold only the rows that changed; screens hold them all, sharing what is equal. */
function screensOf(frames) {
  let [size, rows] = [[80, 24], []];
  return frames.map((frame) => {
    rows = frame.size ? [] : [...rows];
    size = frame.size || size;
    for (const [row, value] of Object.entries(frame.rows)) rows[row] = value;
    return { t: frame.t, at: frame.at, size, rows };
  });
}

function player(cast) {
  const screens = screensOf(cast.frames);
  const last = screens.length - 1;
  const notes = cast.notes.map((note) => element("p", "note", note));
  const where = cast.path
    ? element("p", "quiet", cast.path + " beside this page plays it in colour, in the asciinema player.")
    : null;
  if (last < 0) return element("div", "", notes, where);
  const screen = element("pre", "screen");
  screen.tabIndex = 0;
  const slider = element("input");
  Object.assign(slider, { type: "range", min: 0, max: last, step: 1 });
  slider.setAttribute("aria-label", "Moment");
  const speed = choice(SPEEDS, "Speed", () => {});
  const play = button("more play", toggle);
  const clock = element("span", "quiet clock");
  let [at, timer] = [last, null];

  function draw(next) {
    at = Math.max(0, Math.min(last, next));
    slider.value = at;
    const time = (index) => (screens[index].t / 1000).toFixed(1);
    clock.replaceChildren(time(at) + " of " + time(last) + " s · screen " + (at + 1) + " of " + (last + 1));
    screen.style.width = "calc(" + screens[at].size[0] + "ch + 30px)";
    screen.replaceChildren(...screenLines(screens[at]));
  }
  function pause() {
    clearTimeout(timer);
    timer = null;
    play.replaceChildren("▶ Play");
  }
  function toggle() {
    if (timer !== null) return pause();
    if (at === last) draw(0);
    play.replaceChildren("❚❚ Pause");
    goOn();
  }
  function goOn() {
    if (at === last) return pause();
    const gap = Math.min(screens[at + 1].t - screens[at].t, LONGEST_PAUSE_MS);
    timer = setTimeout(() => {
      if (!screen.isConnected) return;
      draw(at + 1);
      goOn();
    }, gap / SPEEDS[speed.value]);
  }
  function jump(to) {
    pause();
    draw(to);
  }
  slider.addEventListener("input", () => jump(Number(slider.value)));
  const step = (label, name, by) => {
    const node = button("more", () => jump(at + by), label);
    node.setAttribute("aria-label", name);
    return node;
  };
  pause();
  draw(last);
  const controls = element("div", "player", step("‹", "One screen back", -1), play, step("›", "One screen on", 1), slider, speed, clock);
  return element("div", "", notes, controls, screen, where);
}

function screenLines({ size, rows, at }) {
  const nodes = [];
  for (let row = 0; row < size[1]; row++) {
    const line = rows[row] || "";
    if (at && at[1] === row) nodes.push(...lineWithCursor(line, at[0]));
    else nodes.push(text(line));
    nodes.push("\n");
  }
  return nodes;
}

function lineWithCursor(line, column) {
  const cells = Array.from(line.padEnd(column + 1));
  const [before, under, after] = [cells.slice(0, column), cells[column] ?? " ", cells.slice(column + 1)];
  return [text(before.join("")), element("span", "cursor", under), text(after.join(""))];
}
