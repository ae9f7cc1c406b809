// Confusion matrix at a score threshold; after the classes follow background (a row) and missed (a column).

import { byId, count, element, hideTooltip, percentSign, showTooltip, sum, svg } from "./base.js";

export class Confusion {
  constructor({ scores, events, ground_truths: groundTruths }, names) {
    Object.assign(this, { scores, events, groundTruths, names });
    this.size = names.length + 1;
    const room = Math.min(740, byId("confusion").clientWidth - 160);
    this.cell = Math.max(3, Math.min(76, Math.floor(room / this.size)));
    const longest = Math.max(10, ...names.map((name) => shortName(name).length));
    this.font = Math.max(8, Math.min(13, this.cell - 1));
    this.margin = this.cell >= 8 ? longest * this.font * 0.62 + 12 : 24;
    const overhang = this.cell >= 8 ? 5 * this.font : 4; // of the last, slanted name
    const side = this.margin + this.size * this.cell + overhang;
    this.node = svg("svg", {
      class: "matrix",
      role: "img",
      "aria-label": "Confusion matrix; use the arrow keys to move between cells",
      tabindex: "0",
      viewBox: `0 0 ${side} ${side}`,
      width: side,
    });
    this.cells = svg("g");
    this.cross = svg("g");
    this.node.append(this.axes(), this.cells, this.cross);
    this.node.addEventListener("pointermove", (event) => this.point(event));
    this.node.addEventListener("pointerleave", () => this.leave());
    this.node.addEventListener("blur", () => this.leave());
    this.node.addEventListener("keydown", (event) => this.step(event));
    byId("confusion-matrix").replaceChildren(element("div", { class: "scroll" }, this.node));
  }

  draw(score) {
    this.count(score);
    this.cells.replaceChildren(...this.patches(), ...(this.cell >= 24 ? this.numbers() : []));
    this.list();
  }

  /** Sums the events of at least this score into `matrix`, in row-major order, and the rows into `totals`. */
  count(score) {
    const { size } = this;
    const first = this.scores.findIndex((threshold) => threshold >= score);
    const { bin, predicted, true: actual, count: counts } = this.events;
    this.matrix = new Float64Array(size * size);
    for (let i = 0; i < bin.length; i++) {
      if (first >= 0 && bin[i] >= first) this.matrix[actual[i] * size + predicted[i]] += counts[i];
    }
    this.totals = [...this.groundTruths];
    this.groundTruths.forEach((objects, row) => {
      const detected = sum(this.row(row).subarray(0, size - 1));
      this.matrix[row * size + size - 1] = objects - detected;
    });
    this.totals.push(sum(this.row(size - 1)));
  }

  row(row) {
    return this.matrix.subarray(row * this.size, (row + 1) * this.size);
  }

  share(row, column) {
    return this.totals[row] ? this.matrix[row * this.size + column] / this.totals[row] : 0;
  }

  /** Draws cells of similar colour as one path, so that 300 classes are drawn as fast as 3. */
  patches() {
    const paths = new Map();
    for (let row = 0; row < this.size; row++) {
      for (let column = 0; column < this.size; column++) {
        const share = this.share(row, column);
        if (share <= 0) continue;
        const level = Math.min(20, Math.ceil(Math.sqrt(share) * 20)); // the square root makes small shares visible
        const name = `${row === column ? "correct" : "wrong"} ${level}`;
        const { x, y } = this.corner(row, column);
        const side = this.cell - (this.cell > 5 ? 1 : 0);
        paths.set(name, `${paths.get(name) ?? ""}M${x} ${y}h${side}v${side}h${-side}z`);
      }
    }
    return [...paths].map(([name, d]) => {
      const [kind, level] = name.split(" ");
      return svg("path", { d, class: `cell ${kind}`, "fill-opacity": level / 20 });
    });
  }

  numbers() {
    const texts = [];
    const hasRoom = this.cell >= 48;
    for (let row = 0; row < this.size; row++) {
      for (let column = 0; column < this.size; column++) {
        const number = this.matrix[row * this.size + column];
        if (!number) continue;
        const share = this.share(row, column);
        const corner = this.corner(row, column);
        const [x, y] = [corner.x + this.cell / 2, corner.y + this.cell / 2];
        const style = { x, "text-anchor": "middle", class: share > 0.5 ? "on-dark" : null };
        texts.push(svg("text", { ...style, y: y + (hasRoom ? -2 : 4) }, count(number)));
        if (hasRoom) {
          texts.push(svg("text", { ...style, y: y + 15, style: { "font-size": "11px" } }, percentSign(share)));
        }
      }
    }
    return texts;
  }

  corner(row, column) {
    return { x: this.margin + column * this.cell, y: this.margin + row * this.cell };
  }

  axes() {
    const { margin, cell, size, font } = this;
    const end = margin + size * cell;
    const group = svg("g", { class: "axes" });
    for (let i = 0; i <= size; i++) {
      if (cell < 20 && i % (size - 1) && i !== size) continue;
      const at = margin + i * cell - 0.5;
      group.append(
        svg("line", { x1: margin, x2: end, y1: at, y2: at }),
        svg("line", { x1: at, x2: at, y1: margin, y2: end }),
      );
    }
    if (cell >= 8) {
      for (let i = 0; i < size; i++) {
        const middle = margin + (i + 0.5) * cell;
        const row = { x: margin - 6, y: middle + font / 3, "text-anchor": "end", style: { "font-size": `${font}px` } };
        const column = {
          style: { "font-size": `${font}px` },
          transform: `translate(${middle + font / 3} ${margin - 6}) rotate(-60)`,
        };
        group.append(svg("text", row, shortName(this.rowName(i))), svg("text", column, shortName(this.columnName(i))));
      }
    }
    return group;
  }

  rowName(row) {
    return this.names[row] ?? "background";
  }

  columnName(column) {
    return this.names[column] ?? "missed";
  }

  point(event) {
    const box = this.node.getBoundingClientRect();
    const scale = this.node.viewBox.baseVal.width / box.width;
    const at = (pixel) => Math.floor((pixel * scale - this.margin) / this.cell);
    this.show(at(event.clientY - box.top), at(event.clientX - box.left), event.clientX, event.clientY);
  }

  step(event) {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const [row, column] = this.at ?? [0, -1];
    const clamp = (index) => Math.max(0, Math.min(this.size - 1, index));
    const next = [clamp(row + steps[event.key][0]), clamp(column + steps[event.key][1])];
    const box = this.node.getBoundingClientRect();
    const scale = box.width / this.node.viewBox.baseVal.width;
    const { x, y } = this.corner(...next);
    this.show(...next, box.left + (x + this.cell) * scale, box.top + (y + this.cell) * scale);
  }

  show(row, column, pageX, pageY) {
    if (!this.matrix || Math.min(row, column) < 0 || Math.max(row, column) >= this.size) {
      this.leave();
      return;
    }
    this.at = [row, column];
    const { x, y } = this.corner(row, column);
    const end = this.size * this.cell;
    this.cross.replaceChildren(
      svg("rect", { x: this.margin, y, width: end, height: this.cell }),
      svg("rect", { x, y: this.margin, width: this.cell, height: end }),
    );
    showTooltip(pageX, pageY, this.description(row, column));
  }

  description(row, column) {
    const last = this.size - 1;
    if (row === last && column === last) return ["background without detections: not counted"];
    const number = count(this.matrix[row * this.size + column]);
    const title = element("b", {}, `${this.rowName(row)} → ${this.columnName(column)}`);
    const share = `${number} of ${count(this.totals[row])}, ${percentSign(this.share(row, column))}`;
    return [title, `${share} of the ${row === last ? "detections on background" : `${this.rowName(row)} objects`}`];
  }

  leave() {
    this.at = undefined;
    this.cross.replaceChildren();
    hideTooltip();
  }

  /** Lists the most frequent confusions, misses and detections on background. */
  list() {
    const { size, matrix } = this;
    const last = size - 1;
    const confused = [];
    const missed = [];
    const background = [];
    for (let row = 0; row < size; row++) {
      for (let column = 0; column < size; column++) {
        if (row === column || !matrix[row * size + column]) continue;
        const entry = { number: matrix[row * size + column], share: this.share(row, column), row, column };
        if (row === last) background.push(entry);
        else (column === last ? missed : confused).push(entry);
      }
    }
    const mostFrequent = (entries) => entries.toSorted((a, b) => b.number - a.number).slice(0, 8);
    const pair = ({ row, column }) => `${this.rowName(row)} → ${this.columnName(column)}`;
    byId("confusion-lists").replaceChildren(
      ranking("Most confused", mostFrequent(confused), pair),
      ranking("Most missed", mostFrequent(missed), ({ row }) => this.rowName(row)),
      ranking("Most detected on background", mostFrequent(background), ({ column }) => this.columnName(column)),
    );
  }
}

const shortName = (name) => (name.length > 18 ? `${name.slice(0, 17)}…` : name);

function ranking(title, entries, name) {
  const item = (entry) =>
    element(
      "li",
      {},
      element("span", {}, name(entry)),
      element("b", {}, count(entry.number)),
      element("small", {}, percentSign(entry.share)),
    );
  const items = entries.length ? entries.map(item) : [element("li", {}, "none")];
  return element("div", {}, element("h3", {}, title), element("ol", { class: "ranking" }, items));
}
