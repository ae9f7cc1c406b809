// Score slider, and metrics at a score threshold.

import { byId, nearest, oncePerFrame, sum } from "./base.js";

/**
 * The slider for the score threshold.
 *
 * Visible sections are redrawn at most once per frame, others when the slider stops, when they become visible, or before
 * printing.
 */
export class ScoreSlider {
  constructor(scores, start = 0.5) {
    this.scores = scores;
    this.listeners = [];
    this.observer = new IntersectionObserver((entries) => this.onVisible(entries), { rootMargin: "200px" });
    addEventListener("beforeprint", () => this.listeners.forEach(update));
    this.input = byId("score");
    this.input.max = scores.length - 1;
    this.input.value = this.indexOf(start);
    this.input.addEventListener(
      "input",
      oncePerFrame(() => this.notify()),
    );
  }

  /** Index of the threshold among the scores. */
  get index() {
    return Number(this.input.value);
  }

  get score() {
    return this.scores[this.index];
  }

  indexOf(score) {
    return this.scores.indexOf(nearest(this.scores, (other) => other - score));
  }

  move(score) {
    this.input.value = this.indexOf(score);
    this.notify();
  }

  /** Calls `draw` after each move; with a section, only while the section is visible. */
  onChange(draw, section = null) {
    this.listeners.push({ draw, section, isVisible: section === null, isStale: true });
    if (section) this.observer.observe(section);
  }

  onVisible(entries) {
    for (const { target, isIntersecting } of entries) {
      for (const listener of this.listeners.filter(({ section }) => section === target)) {
        listener.isVisible = isIntersecting;
        if (isIntersecting) update(listener);
      }
    }
  }

  notify() {
    byId("score-value").textContent = this.score.toFixed(2);
    this.input.setAttribute("aria-valuetext", this.score.toFixed(2));
    for (const listener of this.listeners) {
      listener.isStale = true;
      if (listener.isVisible) update(listener);
    }
    clearTimeout(this.timeout);
    this.timeout = setTimeout(() => this.listeners.forEach(update), 200);
  }
}

function update(listener) {
  if (!listener.isStale) return;
  listener.isStale = false;
  listener.draw();
}

/** Returns the scores 0, 0.01 … 1, for data without thresholds. */
export const hundredths = () => Array.from({ length: 101 }, (_, step) => step / 100);

/** Returns precision, recall and F1 of a class, or of all objects if `label` is null; null where undefined. */
export function metricsAt(thresholds, index, label = null) {
  const total = (table) => (label === null ? sum(table.map((row) => row[index])) : table[label][index]);
  const truePositives = total(thresholds.true_positives);
  const detections = truePositives + total(thresholds.false_positives);
  const objects = label === null ? sum(thresholds.ground_truths) : thresholds.ground_truths[label];
  return {
    precision: detections ? truePositives / detections : null,
    recall: objects ? truePositives / objects : null,
    f1: objects ? (2 * truePositives) / (detections + objects) : null,
  };
}
