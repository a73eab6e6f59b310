// Plots, as shapes: scores with their intervals, and what they cost.

const PLOT_WIDTH = 560;

/** An axis that ends at round numbers. */
function scaleOf(values, from, to) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (low === high) high = low + (Math.abs(low) || 1);
  const least = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(least));
  const step = power * [1, 2, 5, 10].find((times) => times * power >= least * 0.999);
  const [first, last] = [Math.floor(low / step + 0.001), Math.ceil(high / step - 0.001)];
  const place = (value) => from + ((value / step - first) / (last - first)) * (to - from);
  const marks = [];
  for (let mark = first; mark <= last; mark++) marks.push(mark * step);
  return { place, marks };
}

function picturePlot(height, name) {
  const plot = shape("svg", "chart sweep", { viewBox: "0 0 " + PLOT_WIDTH + " " + height, role: "img" });
  plot.setAttribute("aria-label", name);
  return plot;
}

function label(plot, classes, value, attributes) {
  const node = shape("text", classes, attributes);
  node.append(text(value));
  plot.append(node);
}

const brief = (value) => (value.length > 26 ? value.slice(0, 25) + "…" : value);
const scored = () => SWEEP.arms.filter((arm) => arm.score);

/** One line an arm: its score, and the interval as a whisker. */
function scorePlot() {
  const arms = scored();
  if (!arms.length) return null;
  const height = 44 + arms.length * 26;
  const ends = arms.flatMap((arm) => finite([arm.score.low, arm.score.high, arm.score.value]));
  const axis = scaleOf([...ends, 0], 190, PLOT_WIDTH - 24);
  const plot = picturePlot(height, "score of each model, with its interval");
  for (const mark of axis.marks) {
    const x = axis.place(mark);
    plot.append(shape("line", "rule", { x1: x, x2: x, y1: 10, y2: height - 26 }));
    label(plot, "", number(mark, 6), { x, y: height - 10, "text-anchor": "middle" });
  }
  arms.forEach((arm, row) => {
    const y = 24 + row * 26;
    label(plot, "name", brief(arm.label), { x: 180, y: y + 4, "text-anchor": "end" });
    const { value, low, high } = arm.score;
    if (typeof low === "number") {
      plot.append(shape("line", "whisker", { x1: axis.place(low), x2: axis.place(high), y1: y, y2: y }));
    }
    plot.append(shape("circle", "dot spot", { cx: axis.place(value), cy: y, r: 4.5 }));
  });
  return figure(plot, "Score: mean reward over tasks, with an interval of 95 %.");
}

/** One dot an arm: what a sample costs, and what it scores. Tokens, where nobody told a cost. */
function costPlot() {
  const priced = scored().filter((arm) => typeof arm.cost_usd === "number" && arm.cost_usd > 0);
  const arms = priced.length ? priced : scored();
  if (!arms.length) return null;
  const tokens = (arm) => (arm.input_tokens + arm.output_tokens) / Math.max(1, arm.ended);
  const paid = priced.length ? (arm) => arm.cost_usd / Math.max(1, arm.ended) : tokens;
  const height = 300;
  const x = scaleOf([...arms.map(paid), 0], 54, PLOT_WIDTH - 60);
  const y = scaleOf([...arms.flatMap((arm) => finite([arm.score.low, arm.score.high, arm.score.value])), 0], height - 40, 16);
  const plot = picturePlot(height, "score against cost");
  for (const mark of y.marks) {
    const at = y.place(mark);
    plot.append(shape("line", "rule", { x1: 54, x2: PLOT_WIDTH - 20, y1: at, y2: at }));
    label(plot, "", number(mark, 6), { x: 46, y: at + 4, "text-anchor": "end" });
  }
  for (const mark of x.marks) label(plot, "", number(mark, 9), { x: x.place(mark), y: height - 22, "text-anchor": "middle" });
  for (const arm of arms) {
    const [cx, cy] = [x.place(paid(arm)), y.place(arm.score.value)];
    if (typeof arm.score.low === "number") {
      plot.append(shape("line", "whisker", { x1: cx, x2: cx, y1: y.place(arm.score.low), y2: y.place(arm.score.high) }));
    }
    plot.append(shape("circle", "dot spot", { cx, cy, r: 4.5 }));
    const right = cx > PLOT_WIDTH / 2;
    label(plot, "name", brief(arm.label), { x: right ? cx - 8 : cx + 8, y: cy - 7, "text-anchor": right ? "end" : "start" });
  }
  const unit = priced.length ? "US dollars" : "tokens";
  return figure(plot, "Score against " + unit + " a sample.");
}

function figure(plot, caption) {
  return element("figure", "", plot, element("figcaption", "", caption));
}
