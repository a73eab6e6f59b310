// A trajectory: its steps, messages and record. Built of `elements.js` alone.

const TURN_STEP = 100;

function turn(role, who, facts, ...body) {
  const known = ["user", "assistant", "tool"].includes(role) ? role : "system";
  const head = element("div", "head", element("span", "who", who), element("span", "facts", facts));
  return element("section", "turn " + known, head, element("div", "body", ...body));
}

function stepsView(one) {
  const box = element("div");
  const messages = one.messages || [];
  const first = messages.findIndex((message) => message.role === "assistant");
  for (const message of first < 0 ? messages : messages.slice(0, first)) box.append(messageTurn(message));
  return portions(box, one.steps || [], TURN_STEP, stepTurn);
}

function stepTurn(step) {
  const facts = "sampled in " + seconds(step.generation_s) + (step.tool_calls.length ? " · tools " + seconds(step.tools_s) : "");
  return turn("assistant", "Step " + step.step_number, facts, textBlock(step.assistant_text), step.tool_calls.map(callView));
}

function callView(call) {
  const verdict = call.success ? element("span", "good", "ok") : element("span", "bad", "failed");
  const took = seconds(call.duration_s);
  const single = Object.keys(call.arguments || {}).length === 1 && Object.values(call.arguments)[0];
  return element(
    "div",
    "call",
    element("div", "title", element("b", "", call.name), took ? " · " + took : ""),
    textBlock(typeof single === "string" ? single : call.arguments || {}, "boxed"),
    element("div", "title", "result ", verdict),
    call.output || !call.error ? textBlock(call.output || "", "boxed") : null,
    call.error ? textBlock(call.error, "boxed bad") : null,
    (call.images || []).map(picture),
    beside(call.metadata || {}),
  );
}

/** What a result holds beside its output, unless that is only how a command ended. */
function beside({ exit_code, ...more }) {
  return objectText(more);
}

function messageTurn(message) {
  const { role, content, ...rest } = message;
  const extra = Object.keys(rest).length ? textBlock(rest, "boxed") : null;
  return turn(String(role), String(role), "", textBlock(content ?? ""), extra);
}

function messagesView(one) {
  if (!one.messages || !one.messages.length) return element("p", "quiet", "No messages were recorded.");
  return portions(element("div"), one.messages, TURN_STEP, messageTurn);
}

/** What a verifier said: texts of several lines, as of a test's output, as they are; the rest as JSON. */
function notes(metadata) {
  const long = Object.entries(metadata).filter(([, value]) => typeof value === "string" && value.includes("\n"));
  const rest = Object.fromEntries(Object.entries(metadata).filter((entry) => !long.some(([name]) => name === entry[0])));
  if (!Object.keys(metadata).length) return element("p", "quiet", "None.");
  const texts = long.map(([name, value]) => [element("div", "call title", name), textBlock(value, "boxed")]);
  return element("div", "", objectText(rest), texts.flat());
}

function recordView(one) {
  const { messages, steps, sequences, terminals, ...rest } = one;
  return element(
    "div",
    "",
    element("h3", "", "Verifier's notes"),
    notes(one.score_metadata || {}),
    element("h3", "", "Final response"),
    textBlock(one.final_response || "", "boxed"),
    element("h3", "", "Everything else"),
    textBlock(rest, "boxed"),
  );
}
