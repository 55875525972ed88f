// Curves over steps.
// Data: {panels: [{title, note, more, lines: [{name, colour, dash, x, y, smooth}]}]}.
// A span of steps is chosen in any panel, for all of them; the y axis follows what is in it.

const WIDTH = 420, HEIGHT = 240, LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 30;
const DASHES = ["", "7 4", "9 3 2 3", "2 3"];

WIDGETS.curves = (root, { panels }) => {
  const whole = reach(panels.flatMap((panel) => panel.lines.flatMap((line) => line.x)));
  if (whole[0] === whole[1]) whole[1] += 1; // a single step has no width
  const view = { span: whole, log: false };
  const drawn = panels.map((panel) => new Panel(panel, view, (span) => zoom(span)));

  const from = make("input", { type: "number", step: "any" });
  const to = make("input", { type: "number", step: "any" });
  const log = make("input", { type: "checkbox" });
  const reset = make("button", { type: "button" }, "Whole run");
  function zoom(span) {
    const [low, high] = span ?? whole;
    const least = (whole[1] - whole[0]) / 1e4;
    view.span = high - low > least ? [Math.max(low, whole[0]), Math.min(high, whole[1])] : view.span;
    refresh();
  }
  function refresh() {
    [from.value, to.value] = view.span.map((step) => Math.round(step));
    for (const panel of drawn) panel.draw();
  }
  const typed = () => zoom([Number(from.value), Number(to.value)]);
  from.addEventListener("change", typed);
  to.addEventListener("change", typed);
  reset.addEventListener("click", () => zoom(null));
  log.addEventListener("change", () => { view.log = log.checked; refresh(); });
  root.append(
    make("div", { class: "bar" }, make("label", {}, "Steps from", from), make("label", {}, "to", to),
      reset, make("label", {}, log, "logarithmic where all values are above 0")),
    make("p", { class: "hint" }, "Drag across a panel to zoom all of them, double-click to see the " +
      "whole run. Keys in a panel: arrows move the readout, Shift with arrows the span, + and - " +
      "zoom, 0 shows the whole run. Faint: as logged; strong: mean over neighbouring points."),
    grid(drawn.filter((panel, i) => !panels[i].more)),
  );
  const rest = drawn.filter((panel, i) => panels[i].more);
  if (rest.length) {
    root.append(make("details", {}, make("summary", {}, `${rest.length} more metrics`), grid(rest)));
  }
  refresh();
};

function grid(drawn) {
  return make("div", { class: "panels" }, ...drawn.map((panel) => panel.element));
}

/** Least and greatest of finite numbers; Math.min(...) of long lists overflows the stack. */
function reach(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

/** Round numbers in a span, about `count` of them; powers of ten where the axis is logarithmic. */
function ticks([low, high], count, log) {
  if (log && Math.log10(high / low) >= 2) {
    const first = Math.ceil(Math.log10(low)), last = Math.floor(Math.log10(high));
    const skip = Math.ceil((last - first + 1) / count);
    return Array.from({ length: last - first + 1 }, (_, i) => 10 ** (first + i))
      .filter((_, i) => i % skip === 0);
  }
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  const out = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) out.push(i * step);
  return out;
}

/** Ticks as short as they can be told apart: 1500 is 1.5k. */
function brief(value) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) return Number((value / size).toPrecision(4)) + unit;
  }
  return told(Number(value.toPrecision(4)));
}

class Panel {
  constructor(panel, view, zoom) {
    this.lines = panel.lines;
    this.view = view;
    this.zoom = zoom;
    this.steps = [...new Set(this.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    this.at = null; // the step that is read out
    this.svg = make("svg", {
      class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: 0, role: "application",
      "aria-roledescription": "chart", "aria-label": `${panel.title}, over steps`,
    });
    this.readout = make("output", { class: "readout", "aria-live": "polite" });
    const note = panel.note && panel.note !== panel.title;
    this.element = make("div", { class: "panel" }, make("h3", {}, panel.title),
      ...(note ? [make("p", { class: "hint" }, panel.note)] : []), this.svg,
      make("ul", { class: "legend" }, ...this.lines.map(legend)), this.readout);
    this.listen();
  }

  x(step) {
    const [low, high] = this.view.span;
    return LEFT + ((step - low) / (high - low)) * (WIDTH - LEFT - RIGHT);
  }

  step(event) {
    const box = this.svg.getBoundingClientRect(), [low, high] = this.view.span;
    const place = ((event.clientX - box.left) / box.width) * WIDTH;
    const share = (place - LEFT) / (WIDTH - LEFT - RIGHT);
    return low + Math.max(0, Math.min(1, share)) * (high - low);
  }

  /** Values in view, with a margin; a flat line gets some room. */
  range() {
    const [low, high] = this.view.span, seen = [];
    for (const line of this.lines) {
      line.x.forEach((step, i) => { if (step >= low && step <= high) seen.push(line.y[i]); });
    }
    const log = this.view.log && seen.length > 0 && reach(seen)[0] > 0;
    if (!seen.length) return { log: false, bottom: 0, top: 1 };
    const [least, most] = reach(seen).map((value) => (log ? Math.log10(value) : value));
    const margin = (most - least) * 0.06 || Math.abs(most) * 0.05 || 0.5;
    return { log, bottom: least - margin, top: most + margin };
  }

  draw() {
    const { log, bottom, top } = this.range();
    const scaled = (value) => (log ? Math.log10(value) : value);
    this.y = (value) =>
      TOP + (1 - (scaled(value) - bottom) / (top - bottom)) * (HEIGHT - TOP - BOTTOM);
    const ends = [bottom, top].map((value) => (log ? 10 ** value : value));
    const axes = make("g", { class: "axes" });
    for (const value of ticks(ends, 5, log)) {
      const y = this.y(value);
      axes.append(make("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }),
        make("text", { x: LEFT - 5, y: y + 4, "text-anchor": "end" }, brief(value)));
    }
    for (const step of ticks(this.view.span, 5, false)) {
      axes.append(make("line", { x1: this.x(step), x2: this.x(step), y1: TOP, y2: HEIGHT - BOTTOM }),
        make("text", { x: this.x(step), y: HEIGHT - 11, "text-anchor": "middle" }, brief(step)));
    }
    // What lies outside the span is cut off by a nested drawing area, not by hand.
    const area = make("svg", {
      x: LEFT, y: TOP, width: WIDTH - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM,
      viewBox: `${LEFT} ${TOP} ${WIDTH - LEFT - RIGHT} ${HEIGHT - TOP - BOTTOM}`,
    });
    for (const line of this.lines) area.append(...this.curve(line));
    this.mark = make("g", { class: "mark" });
    this.chosen = make("rect", { class: "chosen", y: TOP, height: HEIGHT - TOP - BOTTOM, width: 0 });
    this.svg.replaceChildren(axes, area, this.chosen, this.mark);
    this.read(this.at);
  }

  curve(line) {
    const path = (values) => values
      .map((value, i) => (i ? "L" : "M") + this.x(line.x[i]).toFixed(2) + " " +
        this.y(value).toFixed(2)).join("");
    const look = { class: `line c${line.colour % 7}`, "stroke-dasharray": DASHES[line.dash % 4] };
    const out = [];
    if (line.smooth) out.push(make("path", { class: `${look.class} faint`, d: path(line.y) }));
    out.push(make("path", { ...look, d: path(line.smooth ?? line.y) }));
    if (line.x.length < 20) {
      out.push(...line.x.map((step, i) => make("circle",
        { class: `dot c${line.colour % 7}`, cx: this.x(step), cy: this.y(line.y[i]), r: 2.5 })));
    }
    return out;
  }

  /** Tells the values at the logged step nearest to this one. */
  read(step) {
    this.at = step;
    this.mark.replaceChildren();
    if (step === null) {
      this.readout.textContent = "";
      return;
    }
    const x = this.x(step), words = [];
    const [low, high] = this.view.span;
    if (step >= low && step <= high) {
      this.mark.append(make("line", { x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }));
    }
    for (const line of this.lines) {
      const i = nearest(line.x, step);
      words.push(`${line.name} ${told(line.y[i])}` + (line.x[i] === step ? "" : ` (${line.x[i]})`));
    }
    this.readout.textContent = `step ${step}: ${words.join(", ")}`;
  }

  listen() {
    let start = null;
    this.svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      start = this.step(event);
      this.svg.setPointerCapture(event.pointerId);
    });
    this.svg.addEventListener("pointermove", (event) => {
      const now = this.step(event);
      if (start === null) return this.read(this.steps[nearest(this.steps, now)]);
      const [a, b] = [start, now].sort((p, q) => p - q).map((step) => this.x(step));
      this.chosen.setAttribute("x", a);
      this.chosen.setAttribute("width", b - a);
    });
    this.svg.addEventListener("pointerup", (event) => {
      if (start === null) return;
      const [low, high] = [start, this.step(event)].sort((p, q) => p - q);
      start = null;
      this.chosen.setAttribute("width", 0);
      const [from, to] = this.view.span;
      // Less than a fiftieth is a click, which reads.
      if (high - low > (to - from) / 50) this.zoom([low, high]);
      else this.read(this.steps[nearest(this.steps, high)]);
    });
    this.svg.addEventListener("pointercancel", () => { start = null; this.draw(); });
    this.svg.addEventListener("dblclick", () => this.zoom(null));
    this.svg.addEventListener("keydown", (event) => {
      if (!event.ctrlKey && !event.metaKey && !event.altKey && this.key(event)) {
        event.preventDefault();
      }
    });
  }

  /** What a key does; false where it is not one of ours. */
  key({ key, shiftKey }) {
    const [low, high] = this.view.span, width = high - low;
    const middle = this.at !== null && this.at >= low && this.at <= high ? this.at : (low + high) / 2;
    const inside = this.steps.filter((step) => step >= low && step <= high);
    const i = this.at === null ? -1 : nearest(inside, this.at);
    if (key === "+" || key === "=") this.zoom([middle - width / 4, middle + width / 4]);
    else if (key === "-") this.zoom([middle - width, middle + width]);
    else if (key === "0" || key === "Escape") this.zoom(null);
    else if (key.startsWith("Arrow") && shiftKey) this.pan(key === "ArrowLeft" ? -0.25 : 0.25);
    else if (key === "ArrowLeft") this.read(inside[Math.max(0, i - 1)] ?? null);
    else if (key === "ArrowRight") this.read(inside[Math.min(inside.length - 1, i + 1)] ?? null);
    else if (key === "Home") this.read(inside[0] ?? null);
    else if (key === "End") this.read(inside[inside.length - 1] ?? null);
    else return false;
    return true;
  }

  /** Moves the span by a share of its width, no further than the run goes. */
  pan(share) {
    const [low, high] = this.view.span, width = high - low;
    const first = this.steps[0], last = this.steps[this.steps.length - 1];
    const start = Math.max(first, Math.min(last - width, low + share * width));
    this.zoom([start, start + width]);
  }
}

function legend(line) {
  const stroke = make("svg", { viewBox: "0 0 28 8", width: 28, height: 8, "aria-hidden": "true" },
    make("path", { class: `line c${line.colour % 7}`, d: "M0 4H28",
      "stroke-dasharray": DASHES[line.dash % 4] }));
  return make("li", {}, stroke, line.name);
}

/** Index of the number nearest to a value in an ascending list; -1 of an empty one. */
function nearest(sorted, value) {
  let low = 0, high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle;
    else high = middle;
  }
  return high < 0 ? -1 : value - sorted[low] <= sorted[high] - value ? low : high;
}
