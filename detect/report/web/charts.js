// Charts: lines over two axes, rows of bars, an interval in a cell.

/** Round numbers from low to high, about `wanted` of them. */
function ticks(low, high, wanted = 5) {
  const rough = (high - low) / wanted;
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
}

/** An axis over shares, 0 … 100 %. */
const shareAxis = (name) => ({ name: `${name} (%)`, low: 0, high: 1, format: (share) => (100 * share).toFixed(0) });

/** An axis that holds all the numbers. */
function axisOver(name, numbers, { fromZero = false } = {}) {
  let low = fromZero ? 0 : Infinity;
  let high = -Infinity;
  for (const number of numbers) {
    low = Math.min(low, number);
    high = Math.max(high, number);
  }
  if (!(high > low)) [low, high] = Number.isFinite(high) ? [high - 1, high + 1] : [0, 1];
  const digits = Math.max(0, 1 - Math.floor(Math.log10(high - low)));
  const format = (number) => (digits > 6 ? number.toExponential(1) : shortened(number, digits));
  return { name, low, high, format };
}

/** 12000 as 12k, 0.5000 as 0.5. */
function shortened(number, digits) {
  if (Math.abs(number) >= 10000) return `${+(number / 1000).toFixed(1)}k`;
  return String(+number.toFixed(digits));
}

/**
 * Lines over two axes, redrawn at the width that the page gives them.
 *
 * A line is {name, colour, points: [[x, y], …], y may be null; quiet: true leaves it out of the tooltip, bold, dashed}.
 * A mark is {x, y, colour}; with y null it is an upright line. `note(x)` adds lines to the tooltip.
 */
class LineChart {
  constructor(place, { label, x, y, height = 320, note = () => [] }) {
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
    place.replaceChildren(this.node, this.legend);
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

  across(x) {
    const { left, right } = this.margin;
    return left + ((x - this.x.low) / (this.x.high - this.x.low)) * (this.width - left - right);
  }

  up(y) {
    const { top, bottom } = this.margin;
    return this.height - bottom - ((y - this.y.low) / (this.y.high - this.y.low)) * (this.height - top - bottom);
  }

  draw() {
    this.width = this.node.clientWidth || 560;
    this.node.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.cursor = svg("g");
    this.above = svg("g");
    this.node.replaceChildren(this.axes(), ...this.lines.map((line) => this.path(line)), this.above, this.cursor);
    this.drawMarks();
    const named = this.lines.filter((line) => !line.quiet);
    this.legend.replaceChildren(...named.map((line) => key(line.name, line.colour, line.dashed)));
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
      const step = known(y) ? `${pen}${this.across(x).toFixed(1)} ${this.up(y).toFixed(1)}` : "";
      pen = known(y) ? "L" : "M";
      return step;
    });
    const weight = ["line", line.bold && "bold", line.dashed && "dashed", line.quiet && "quiet"];
    return svg("path", { d: steps.join(""), class: weight.filter(Boolean).join(" "), style: { stroke: line.colour } });
  }

  drawMarks() {
    if (!this.above) return;
    const { top, bottom } = this.margin;
    this.above.replaceChildren(
      ...this.marks.map(({ x, y, colour }) => {
        const cx = this.across(x);
        if (!known(y)) return svg("line", { x1: cx, x2: cx, y1: top, y2: this.height - bottom, class: "slider-line" });
        return svg("circle", { cx, cy: this.up(y), r: 5.5, class: "mark", style: { fill: colour } });
      }),
    );
  }

  /** All x of the lines that are named, in order. */
  places() {
    const all = this.lines.filter((line) => !line.quiet).flatMap((line) => line.points.map(([x]) => x));
    return [...new Set(all)].sort((a, b) => a - b);
  }

  point(event) {
    const box = this.node.getBoundingClientRect();
    const pixel = ((event.clientX - box.left) / box.width) * this.width;
    const places = this.places();
    if (!places.length) return;
    const x = nearest(places, (place) => this.across(place) - pixel);
    this.show(x, event.clientX, event.clientY);
  }

  step(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1 };
    const places = this.places();
    if (!(event.key in steps) || !places.length) return;
    event.preventDefault();
    const at = this.at === undefined ? -1 : places.indexOf(this.at);
    const x = places[Math.max(0, Math.min(places.length - 1, at + steps[event.key]))];
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
    for (const line of this.lines.filter((one) => !one.quiet)) {
      const [at, y] = nearest(line.points, ([place]) => place - x) ?? [];
      if (at !== x || !known(y)) continue;
      const dot = { cx: across, cy: this.up(y), r: 3.5, style: { fill: line.colour } };
      this.cursor.append(svg("circle", dot));
      rows.push(key(`${line.name}: ${(this.y.exact ?? this.y.format)(y)}`, line.colour));
    }
    const head = `${this.x.name.replace(" (%)", "")} ${(this.x.exact ?? this.x.format)(x)}`;
    showTip(pageX, pageY, [element("b", {}, head), ...rows.slice(0, 12), ...this.note(x)]);
  }

  leave() {
    this.at = undefined;
    this.cursor?.replaceChildren();
    hideTip();
  }
}

function nearest(items, distance) {
  let best;
  for (const item of items) if (best === undefined || Math.abs(distance(item)) < Math.abs(distance(best))) best = item;
  return best;
}

/** A patch of colour and its name, for legends and tooltips. */
function key(name, colour, dashed = false) {
  const patch = element("i", { class: dashed ? "patch dashed" : "patch", style: { "--patch": colour } });
  return element("span", { class: "key" }, patch, name);
}

/** Rows of a name, a bar and numbers: [{name, meaning, value, texts, interval, quiet}]; `high` fills the track. */
function bars(rows, { high, label, heads, colour = "var(--colour-6)" }) {
  const line = ({ name, meaning, value, texts, interval, quiet }) => {
    const bar = element("i", { class: "bar", style: { width: share(value, 0, high), background: colour } });
    const whisker = interval ? range(interval, 0, high) : null;
    return element(
      "tr",
      { class: quiet ? "quiet" : null },
      element("th", { scope: "row" }, name, meaning ? element("small", {}, meaning) : null),
      element("td", { class: "bar-cell" }, element("span", { class: "track" }, known(value) ? bar : null, whisker)),
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

/** A value as a dot and its interval as a stroke, between low and high. */
function intervalBar(value, interval, low = 0, high = 1, colour = "var(--colour-6)") {
  if (!known(value)) return element("span", { class: "track" });
  const zero = low < 0 ? element("i", { class: "zero", style: { left: share(0, low, high) } }) : null;
  return element(
    "span",
    { class: "track thin", title: interval ? `95 %: ${span(interval, low < 0 ? signed : percent)}` : null },
    zero,
    interval ? range(interval, low, high) : null,
    element("i", { class: "dot", style: { left: share(value, low, high), background: colour } }),
  );
}

function range([from, to], low, high) {
  const left = share(from, low, high);
  const width = `calc(${share(to, low, high)} - ${left})`;
  return element("i", { class: "range", style: { left, width } });
}

/** Where a value lies between low and high, for CSS. */
function share(value, low, high) {
  const part = high > low ? (value - low) / (high - low) : 0;
  return `${(100 * Math.max(0, Math.min(1, part))).toFixed(2)}%`;
}
