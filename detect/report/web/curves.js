// Precision against recall, and precision, recall and F1 against the score threshold.

import { UNKNOWN, byId, colourOf, isKnown, option, percentSign, remove } from "./base.js";
import { LineChart, shareAxis } from "./charts.js";
import { metricsAt } from "./score.js";

/** Maximum number of classes that have a colour each. */
const MAX_COLOURED = 7;

/** Draws the curves of all classes, and returns a function that chooses one class. */
export function drawCurves(data, names, slider) {
  if (!data.curves?.recall?.length || !names.length) {
    remove("curves");
    return () => {};
  }
  const section = new Curves(data, names, slider);
  return (label) => {
    section.choose(label);
    byId("curves").scrollIntoView({
      behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth",
    });
  };
}

/** The section of curves with its choice of a class and an IoU threshold. */
class Curves {
  constructor({ curves, thresholds }, names, slider) {
    Object.assign(this, { curves, thresholds, names, slider, label: null, iou: "0.50" });
    this.classSelect = byId("curve-class");
    this.classSelect.replaceChildren(option("", "all classes"), ...names.map((name, label) => option(label, name)));
    this.classSelect.addEventListener("change", ({ target }) =>
      this.choose(target.value === "" ? null : Number(target.value)),
    );
    const iouSelect = byId("curve-iou");
    const ious = Object.keys(curves.precision).toSorted();
    iouSelect.replaceChildren(...ious.map((iou) => option(iou, iou.replace(":", " … "))));
    iouSelect.value = this.iou;
    iouSelect.addEventListener("change", ({ target }) => {
      this.iou = target.value;
      this.draw();
    });
    this.chart = new LineChart(byId("curve-chart"), {
      label: "Precision against recall",
      x: { ...shareAxis("Recall"), exact: percentSign },
      y: { ...shareAxis("Precision"), exact: percentSign },
      note: (recall) => this.scoreNote(recall),
    });
    this.rates = drawRates(thresholds, slider);
    this.draw();
    slider.onChange(() => this.mark(), byId("curves"));
  }

  choose(label) {
    this.label = label;
    this.classSelect.value = label ?? "";
    this.draw();
  }

  draw() {
    const precision = this.curves.precision[this.iou];
    const isAll = this.label === null;
    const points = (row) => this.curves.recall.map((recall, i) => [recall, row?.[i] ?? null]);
    const mean = {
      name: "mean of the classes",
      colour: "var(--ink)",
      points: points(this.curves.mean?.[this.iou]),
      bold: isAll,
      dashed: !isAll,
    };
    const ofClass = (label) => ({
      name: this.names[label],
      colour: colourOf(label),
      points: points(precision[label]),
    });
    const style = this.names.length <= MAX_COLOURED ? {} : { quiet: true, colour: "var(--faint)" };
    const each = this.names.map((_, label) => ({ ...ofClass(label), ...style }));
    this.chart.set(isAll ? [...each, mean] : [mean, { ...ofClass(this.label), bold: true }]);
    this.rates?.set(this.label);
    this.mark();
  }

  /** Marks the classes at the score threshold; metrics at the threshold are known at IoU 0.50 only. */
  mark() {
    const labels = this.thresholds && this.iou === "0.50" ? this.colouredLabels() : [];
    const marks = labels.map((label) => {
      const { precision, recall } = metricsAt(this.thresholds, this.slider.index, label);
      return { x: recall, y: precision, colour: colourOf(label) };
    });
    this.chart.mark(marks.filter(({ x, y }) => isKnown(x) && isKnown(y)));
    const interpolation = "The curves show the highest precision at each recall or above, as in COCO";
    byId("curve-caption").textContent = labels.length
      ? `${interpolation}. The dots are the classes at score ≥ ${this.slider.score.toFixed(2)} and may lie below them.`
      : `${interpolation}.`;
    this.rates?.mark();
  }

  /** Returns the lines of the tooltip with the scores at a recall. */
  scoreNote(recall) {
    const scores = this.curves.scores?.[this.iou];
    if (!scores) return [];
    const at = this.curves.recall.indexOf(recall);
    return this.colouredLabels().map((label) => {
      const score = scores[label]?.[at];
      return `${this.names[label]}: score ${isKnown(score) ? score.toFixed(3) : UNKNOWN}`;
    });
  }

  /** Returns the chosen class, or all classes if each has a colour. */
  colouredLabels() {
    if (this.label !== null) return [this.label];
    return this.names.length <= MAX_COLOURED ? this.names.map((_, label) => label) : [];
  }
}

/** Draws precision, recall and F1 against the score threshold, for the chosen class. */
function drawRates(thresholds, slider) {
  if (!thresholds) {
    byId("threshold-chart").parentElement.remove();
    return null;
  }
  const chart = new LineChart(byId("threshold-chart"), {
    label: "Precision, recall and F1 against the score threshold",
    x: {
      name: "Score threshold",
      low: 0,
      high: 1,
      format: (score) => score.toFixed(1),
      exact: (score) => score.toFixed(2),
    },
    y: { ...shareAxis("Share"), exact: percentSign },
  });
  const kinds = [
    ["precision", "precision", 6],
    ["recall", "recall", 4],
    ["f1", "F1", 2],
  ];
  const set = (label) => {
    const rates = thresholds.scores.map((score, index) => [score, metricsAt(thresholds, index, label)]);
    const line = ([key, name, colour]) => ({
      name,
      colour: colourOf(colour),
      points: rates.map(([score, rate]) => [score, rate[key]]),
      bold: key === "f1",
    });
    chart.set(kinds.map(line));
  };
  return { set, mark: () => chart.mark([{ x: slider.score, y: null }]) };
}
