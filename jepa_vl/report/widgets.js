// What all parts that the reader moves share. The page wraps this file and those of its widgets
// into one function; startWidgets() is called last.

const WIDGETS = {};
const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; strings become text, never markup. */
function make(name, attributes = {}, ...children) {
  const svg = SVG_NAMES.has(name);
  const element = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}
const SVG_NAMES = new Set(["svg", "g", "path", "line", "rect", "circle", "text"]);

/** A select with its label; `changed` receives the index that was chosen. */
function choice(label, names, changed) {
  const options = names.map((name, i) => make("option", { value: i }, name));
  const select = make("select", {}, ...options);
  select.addEventListener("change", () => changed(select.selectedIndex));
  return { element: make("label", {}, label, select), select };
}

/** A number as a reader wants it: four digits, no tail of zeros. */
function told(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

/** Draws each widget in front of its still picture, which goes where that worked. */
function startWidgets() {
  for (const root of document.querySelectorAll(".widget")) {
    const data = JSON.parse(root.querySelector("script").textContent);
    const shown = make("div");
    WIDGETS[root.dataset.kind](shown, data);
    root.prepend(shown);
    root.querySelector(".still").hidden = true;
  }
}
