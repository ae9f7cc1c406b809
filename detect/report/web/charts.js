// Charts: lines over two axes, rows of bars, intervals in table cells.

import { element, hideTooltip, isKnown, nearest, percent, rangeText, showTooltip, signed, svg } from "./base.js";

/** Returns about `target` round numbers between low and high. */
export function ticks(low, high, target = 5) {
  const rough = (high - low) / target;
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const numbers = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) numbers.push(n * step);
  return numbers;
}

/** Returns an axis for shares, 0 … 100 %. */
export const shareAxis = (name) => ({
  name: `${name} (%)`,
  low: 0,
  high: 1,
  format: (share) => (100 * share).toFixed(0),
});

/** Returns an axis that covers all the numbers. */
export function axisOver(name, numbers, { fromZero = false } = {}) {
  let low = fromZero ? 0 : Infinity;
  let high = -Infinity;
  for (const number of numbers) {
    low = Math.min(low, number);
    high = Math.max(high, number);
  }
  if (!(high > low)) [low, high] = Number.isFinite(high) ? [high - 1, high + 1] : [0, 1];
  const digits = Math.max(0, 1 - Math.floor(Math.log10(high - low)));
  const format = (number) => (digits > 6 ? number.toExponential(1) : shorten(number, digits));
  return { name, low, high, format };
}

/** Formats 12000 as 12k and 0.5000 as 0.5. */
function shorten(number, digits) {
  if (Math.abs(number) >= 10000) return `${Number((number / 1000).toFixed(1))}k`;
  return String(Number(number.toFixed(digits)));
}

/**
 * A chart of lines over two axes, redrawn when the width changes.
 *
 * A line is {name, colour, points: [[x, y], …], quiet, bold, dashed}; y may be null, and quiet lines are not in the
 * tooltip. A mark is {x, y, colour}, a dot, or a vertical line if y is null. `note(x)` adds lines to the tooltip.
 */
export class LineChart {
  constructor(container, { label, x, y, height = 320, note = () => [] }) {
    Object.assign(this, {
      x,
      y,
      height,
      note,
      lines: [],
      marks: [],
      margin: { left: 46, right: 12, top: 10, bottom: 40 },
    });
    this.node = svg("svg", { class: "chart", role: "img", "aria-label": label, tabindex: "0" });
    this.legend = element("div", { class: "legend" });
    container.replaceChildren(this.node, this.legend);
    this.node.addEventListener("pointermove", (event) => this.point(event));
    this.node.addEventListener("pointerleave", () => this.leave());
    this.node.addEventListener("blur", () => this.leave());
    this.node.addEventListener("keydown", (event) => this.step(event));
    new ResizeObserver(() => this.node.clientWidth !== this.width && this.draw()).observe(this.node);
  }

  set(lines) {
    this.lines = lines;
    this.draw();
  }

  mark(marks) {
    this.marks = marks;
    this.drawMarks();
  }

  /** Returns the horizontal position of x. */
  across(x) {
    const { left, right } = this.margin;
    return left + ((x - this.x.low) / (this.x.high - this.x.low)) * (this.width - left - right);
  }

  /** Returns the vertical position of y. */
  up(y) {
    const { top, bottom } = this.margin;
    return this.height - bottom - ((y - this.y.low) / (this.y.high - this.y.low)) * (this.height - top - bottom);
  }

  draw() {
    this.width = this.node.clientWidth || 560;
    this.node.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.cursor = svg("g");
    this.markLayer = svg("g");
    this.node.replaceChildren(this.axes(), ...this.lines.map((line) => this.path(line)), this.markLayer, this.cursor);
    this.drawMarks();
    this.legend.replaceChildren(...this.named().map((line) => key(line.name, line.colour, line.dashed)));
  }

  named() {
    return this.lines.filter((line) => !line.quiet);
  }

  axes() {
    const { left, right, top, bottom } = this.margin;
    const group = svg("g", { class: "axes" });
    const baseline = this.height - bottom;
    for (const tick of this.x.ticks ?? ticks(this.x.low, this.x.high, this.width < 420 ? 4 : 6)) {
      const x = this.across(tick);
      group.append(svg("line", { x1: x, x2: x, y1: top, y2: baseline }));
      group.append(svg("text", { x, y: baseline + 16, "text-anchor": "middle" }, this.x.format(tick)));
    }
    for (const tick of ticks(this.y.low, this.y.high)) {
      const y = this.up(tick);
      group.append(svg("line", { x1: left, x2: this.width - right, y1: y, y2: y }));
      group.append(svg("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, this.y.format(tick)));
    }
    const middle = (top + baseline) / 2;
    group.append(
      svg("text", { x: (left + this.width - right) / 2, y: this.height - 6, "text-anchor": "middle" }, this.x.name),
      svg("text", { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, this.y.name),
    );
    return group;
  }

  path(line) {
    let pen = "M";
    const steps = line.points.map(([x, y]) => {
      const step = isKnown(y) ? `${pen}${this.across(x).toFixed(1)} ${this.up(y).toFixed(1)}` : "";
      pen = isKnown(y) ? "L" : "M";
      return step;
    });
    const weight = ["line", line.bold && "bold", line.dashed && "dashed", line.quiet && "quiet"];
    return svg("path", { d: steps.join(""), class: weight.filter(Boolean).join(" "), style: { stroke: line.colour } });
  }

  drawMarks() {
    if (!this.markLayer) return;
    const { top, bottom } = this.margin;
    this.markLayer.replaceChildren(
      ...this.marks.map(({ x, y, colour }) => {
        const cx = this.across(x);
        return isKnown(y)
          ? svg("circle", { cx, cy: this.up(y), r: 5.5, class: "mark", style: { fill: colour } })
          : svg("line", { x1: cx, x2: cx, y1: top, y2: this.height - bottom, class: "slider-line" });
      }),
    );
  }

  /** Returns the x of all points of the named lines in ascending order. */
  positions() {
    const all = this.named().flatMap((line) => line.points.map(([x]) => x));
    return [...new Set(all)].toSorted((a, b) => a - b);
  }

  point(event) {
    const box = this.node.getBoundingClientRect();
    const pixel = ((event.clientX - box.left) / box.width) * this.width;
    const positions = this.positions();
    if (!positions.length) return;
    const x = nearest(positions, (at) => this.across(at) - pixel);
    this.show(x, event.clientX, event.clientY);
  }

  step(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1 };
    const positions = this.positions();
    if (!(event.key in steps) || !positions.length) return;
    event.preventDefault();
    const current = this.at === undefined ? -1 : positions.indexOf(this.at);
    const x = positions[Math.max(0, Math.min(positions.length - 1, current + steps[event.key]))];
    const box = this.node.getBoundingClientRect();
    this.show(x, box.left + (this.across(x) / this.width) * box.width, box.top + box.height / 2);
  }

  show(x, pageX, pageY) {
    this.at = x;
    const { top, bottom } = this.margin;
    const across = this.across(x);
    this.cursor.replaceChildren(
      svg("line", { x1: across, x2: across, y1: top, y2: this.height - bottom, class: "cursor" }),
    );
    const rows = [];
    for (const line of this.named()) {
      const [at, y] = nearest(line.points, (point) => point[0] - x) ?? [];
      if (at !== x || !isKnown(y)) continue;
      const dot = { cx: across, cy: this.up(y), r: 3.5, style: { fill: line.colour } };
      this.cursor.append(svg("circle", dot));
      rows.push(key(`${line.name}: ${(this.y.exact ?? this.y.format)(y)}`, line.colour));
    }
    const head = `${this.x.name.replace(" (%)", "")} ${(this.x.exact ?? this.x.format)(x)}`;
    showTooltip(pageX, pageY, [element("b", {}, head), ...rows.slice(0, 12), ...this.note(x)]);
  }

  leave() {
    this.at = undefined;
    this.cursor?.replaceChildren();
    hideTooltip();
  }
}

/** Returns a coloured patch with a name, for legends and tooltips. */
export function key(name, colour, dashed = false) {
  const patch = element("i", { class: dashed ? "patch dashed" : "patch", style: { "--patch": colour } });
  return element("span", { class: "key" }, patch, name);
}

/** Returns a table of bars: rows are {name, meaning, value, texts, interval, quiet}; a bar of `high` fills the width. */
export function bars(rows, { high, label, heads, colour = "var(--colour-6)" }) {
  const line = ({ name, meaning, value, texts, interval, quiet }) => {
    const bar = element("i", { class: "bar", style: { width: position(value, 0, high), background: colour } });
    const whisker = interval ? rangeBar(interval, 0, high) : null;
    return element(
      "tr",
      { class: quiet ? "quiet" : null },
      element("th", { scope: "row" }, name, meaning ? element("small", {}, meaning) : null),
      element("td", { class: "bar-cell" }, element("span", { class: "track" }, isKnown(value) ? bar : null, whisker)),
      texts.map((text) => element("td", { class: "number" }, text)),
    );
  };
  const head = element(
    "tr",
    {},
    element("td"),
    element("td"),
    heads.map((text) => element("th", { scope: "col" }, text)),
  );
  const parts = [element("thead", {}, head), element("tbody", {}, rows.map(line))];
  return element("table", { class: "bars", "aria-label": label }, parts);
}

/** Returns a value as a dot and its interval as a line, between low and high. */
export function intervalBar(value, interval, { low = 0, high = 1, colour = "var(--colour-6)" } = {}) {
  if (!isKnown(value)) return element("span", { class: "track" });
  const zero = low < 0 ? element("i", { class: "zero", style: { left: position(0, low, high) } }) : null;
  return element(
    "span",
    { class: "track thin", title: interval ? `95 %: ${rangeText(interval, low < 0 ? signed : percent)}` : null },
    zero,
    interval ? rangeBar(interval, low, high) : null,
    element("i", { class: "dot", style: { left: position(value, low, high), background: colour } }),
  );
}

function rangeBar([from, to], low, high) {
  const left = position(from, low, high);
  const width = `calc(${position(to, low, high)} - ${left})`;
  return element("i", { class: "range", style: { left, width } });
}

/** Returns the position of a value between low and high, as a CSS percentage. */
function position(value, low, high) {
  const part = high > low ? (value - low) / (high - low) : 0;
  return `${(100 * Math.max(0, Math.min(1, part))).toFixed(2)}%`;
}
