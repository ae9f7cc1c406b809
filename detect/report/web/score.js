// The one slider: the least score of the detections that count, and what follows from it.

/**
 * Listens to the slider and tells the sections, at most once a frame: those in sight at once, the others when it has
 * come to rest, when they come into sight, or before printing.
 */
class ScoreSlider {
  constructor(edges, start = 0.5) {
    this.edges = edges;
    this.listeners = [];
    this.watch = new IntersectionObserver((entries) => this.seen(entries), { rootMargin: "200px" });
    addEventListener("beforeprint", () => this.listeners.forEach(update));
    this.input = byId("score");
    this.input.max = edges.length - 1;
    this.input.value = edges.indexOf(nearest(edges, (edge) => edge - start));
    this.input.addEventListener(
      "input",
      oncePerFrame(() => this.tell()),
    );
  }

  /** The place of the slider among the edges. */
  get at() {
    return Number(this.input.value);
  }

  get score() {
    return this.edges[this.at];
  }

  move(at) {
    this.input.value = at;
    this.tell();
  }

  /** Calls `draw` after each move; if it only concerns one section, then only while that is in sight. */
  onchange(draw, section = null) {
    this.listeners.push({ draw, section, inSight: section === null, stale: true });
    if (section) this.watch.observe(section);
  }

  seen(entries) {
    for (const { target, isIntersecting } of entries) {
      for (const listener of this.listeners.filter(({ section }) => section === target)) {
        listener.inSight = isIntersecting;
        if (isIntersecting) update(listener);
      }
    }
  }

  tell() {
    byId("score-value").textContent = this.score.toFixed(2);
    this.input.setAttribute("aria-valuetext", this.score.toFixed(2));
    for (const listener of this.listeners) {
      listener.stale = true;
      if (listener.inSight) update(listener);
    }
    clearTimeout(this.rest);
    this.rest = setTimeout(() => this.listeners.forEach(update), 200);
  }
}

function update(listener) {
  if (!listener.stale) return;
  listener.stale = false;
  listener.draw();
}

/** Scores from 0 to 1 in steps of 0.01, for data without its own. */
const hundredths = () => Array.from({ length: 101 }, (_, step) => step / 100);

/** Precision, recall and F1 of one class, or of all objects together where `label` is null; null where undefined. */
function ratesAt(thresholds, at, label = null) {
  const of = (table) => (label === null ? sum(table.map((row) => row[at])) : table[label][at]);
  const hits = of(thresholds.hits);
  const wrong = of(thresholds.false);
  const truths = label === null ? sum(thresholds.truths) : thresholds.truths[label];
  const found = hits + wrong;
  return {
    precision: found ? hits / found : null,
    recall: truths ? hits / truths : null,
    f1: truths ? (2 * hits) / (found + truths) : null,
  };
}

/** The place of the highest F1 over all objects; the highest score of several. */
function bestPlace(thresholds) {
  const all = thresholds.edges.map((_, at) => ratesAt(thresholds, at).f1 ?? 0);
  return all.lastIndexOf(Math.max(...all));
}
