"use strict";
// Building blocks. Whatever a model wrote reaches a page through `text` alone, as text nodes; there is no other way in.

const TEXT_STEP = 20000;

/** What a block of the page holds. */
const dataOf = (name) => JSON.parse(document.getElementById(name).textContent);

// ---- building blocks

function element(tag, classes, ...children) {
  const node = document.createElement(tag);
  if (classes) node.className = classes;
  for (const child of children.flat(2)) {
    if (child !== null && child !== undefined) node.append(child instanceof Node ? child : text(String(child)));
  }
  return node;
}

// Characters that hide, reorder or command: shown as their escape.
const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb]|[\u{e0000}-\u{e0fff}]/gu;

function text(value) {
  if (value.search(HIDDEN) < 0) return document.createTextNode(value);
  const whole = document.createDocumentFragment();
  let end = 0;
  for (const found of value.matchAll(HIDDEN)) {
    whole.append(document.createTextNode(value.slice(end, found.index)));
    const mark = document.createElement("span");
    mark.className = "escape";
    mark.textContent = escapeOf(found[0].codePointAt(0));
    whole.append(mark);
    end = found.index + found[0].length;
  }
  whole.append(document.createTextNode(value.slice(end)));
  return whole;
}

function escapeOf(code) {
  if (code < 0x100) return "\\x" + code.toString(16).padStart(2, "0");
  return code < 0x10000 ? "\\u" + code.toString(16).padStart(4, "0") : "\\u{" + code.toString(16) + "}";
}

function button(classes, action, ...children) {
  const node = element("button", classes, ...children);
  node.type = "button";
  node.addEventListener("click", action);
  return node;
}

/** Items a portion at a time, with a button for the next one. */
function portions(parent, items, step, render) {
  let next = 0;
  const more = button("more", show);
  function show() {
    more.remove();
    const part = document.createDocumentFragment();
    for (const end = Math.min(next + step, items.length); next < end; next++) part.append(render(items[next], next));
    parent.append(part);
    if (next < items.length) {
      more.replaceChildren("Show more (" + (items.length - next).toLocaleString() + " left)");
      parent.append(more);
    }
  }
  show();
  return parent;
}

/** A text of any length: its start, and the rest on demand. */
function textBlock(value, classes) {
  const whole = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  const box = element("pre", classes);
  const parts = [];
  for (let start = 0; start < whole.length; start += TEXT_STEP) parts.push(whole.slice(start, start + TEXT_STEP));
  if (!parts.length) return element("pre", classes, element("span", "quiet", "(empty)"));
  return portions(box, parts, 1, text);
}

function rows(entries) {
  const table = element("table");
  for (const [name, value] of entries) {
    if (value === null || value === undefined || value === "") continue;
    table.append(element("tr", "", element("td", "", name), element("td", "", value)));
  }
  return table;
}

function objectText(value) {
  return value && Object.keys(value).length ? textBlock(value, "boxed") : null;
}

const RASTER = ["image/png", "image/jpeg", "image/gif", "image/webp"];

/** An image out of the page's own data: the one thing the page loads. Of no type in which anything can run. */
function picture(image) {
  const shown = RASTER.includes(image.media_type) && /^[A-Za-z0-9+/]+=*$/.test(image.data || "");
  if (!shown) return element("p", "quiet", image.note || "An image that cannot be shown.");
  const node = element("img", "picture");
  node.alt = node.title = image.note || image.media_type;
  node.src = "data:" + image.media_type + ";base64," + image.data;
  return node;
}

// ---- numbers

const finite = (values) => values.filter((value) => typeof value === "number" && Number.isFinite(value));
const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);
const number = (value, digits = 3) => (typeof value === "number" ? String(+value.toFixed(digits)) : "–");
const percent = (value) => (typeof value === "number" ? Math.round(value * 100) + " %" : "–");
const count = (value) => (typeof value === "number" ? Math.round(value).toLocaleString() : "–");

function seconds(value) {
  if (typeof value !== "number") return "";
  if (value < 0.1) return Math.round(value * 1000) + " ms";
  return value.toFixed(value < 10 ? 2 : 0) + " s";
}

// ---- parts of a page

function choice(options, label, action) {
  const node = element("select");
  node.setAttribute("aria-label", label);
  for (const name of Object.keys(options)) node.append(element("option", "", name));
  node.addEventListener("change", action);
  return node;
}

/** Names and values in a line; what is empty is left out. */
function factsLine(facts) {
  const told = facts.filter(([, value]) => value);
  return element("div", "facts-line", told.map(([name, value]) => element("span", "", element("span", "", name), value)));
}

/** Buttons of which one is pressed. `label` gives the contents of a name's button. */
function tabBar(names, chosen, choose, label) {
  return element("div", "tabs", names.map((name) => pressed(button("tab", () => choose(name), label(name)), name === chosen)));
}

function pressed(node, on) {
  node.classList.toggle("on", on);
  node.setAttribute("aria-pressed", String(on));
  return node;
}

/** Tabs of a trajectory: how many each has, and none for a terminal that was not used. */
function trajectoryTabs(names, sizes, chosen, choose) {
  const shown = names.filter((name) => name !== "Terminal" || name === chosen || (sizes.Terminal || []).length);
  return tabBar(shown, chosen, choose, (name) => [name, sizes[name] ? element("span", "quiet", " " + sizes[name].length) : null]);
}

/** Keys act unless somebody types. `hints` are shown at the top: keys, and what they go through. */
function listenToKeys(actions, hints) {
  document.addEventListener("keydown", (event) => {
    const typing = ["INPUT", "SELECT"].includes(event.target.tagName);
    if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey && actions[event.key]) actions[event.key]();
  });
  const parts = hints.map(([keys, what]) => element("span", "", keys.map((key) => [element("kbd", "", key), " "]), what));
  return element("span", "keys quiet", parts);
}

function card(label, value) {
  return element("div", "card", element("div", "value", value), element("div", "label", label));
}

function shape(tag, classes, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  if (classes) node.setAttribute("class", classes);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function show(...children) {
  const main = document.getElementById("main");
  main.replaceChildren(...children.flat(2).filter((child) => child instanceof Node));
  main.scrollTop = 0;
}
