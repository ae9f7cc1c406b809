// Calibration: precision against score in ten bins.

import { byId, element, hideTooltip, percent, percentSign, plural, remove, showTooltip, sum, svg } from "./base.js";
import { ticks } from "./charts.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, HISTOGRAM] = [560, 400, 46, 40, 70];

/** Returns the horizontal position of a score. */
const across = (score) => LEFT + score * (WIDTH - LEFT - 10);

/** Returns the vertical position of a precision, above the histogram. */
const up = (share) => HEIGHT - BOTTOM - HISTOGRAM - share * (HEIGHT - BOTTOM - HISTOGRAM - 10);

/** Draws precision against score, and the number of detections in each bin. */
export function drawCalibration(calibration) {
  const rows = (calibration?.rows ?? []).filter(({ count }) => count > 0);
  if (!rows.length) {
    remove("calibration");
    return;
  }
  const maxCount = Math.max(...rows.map(({ count }) => count));
  const diagonal = { x1: across(0), y1: up(0), x2: across(1), y2: up(1) };
  const chart = svg(
    "svg",
    { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": "Precision against score" },
    axes(),
    svg("line", { class: "line dashed", ...diagonal, style: { stroke: "var(--quiet)" } }),
    ...rows.map((row) => bin(row, maxCount)),
  );
  byId("calibration-chart").replaceChildren(chart);
  byId("calibration-caption").textContent =
    "With calibrated scores, precision equals the score (dashed). " +
    `Expected calibration error ${percentSign(calibration.ece)}; ${bias(rows)}.`;
}

function axes() {
  const group = svg("g", { class: "axes" });
  for (const tick of ticks(0, 1)) {
    group.append(
      svg("line", { x1: across(0), x2: across(1), y1: up(tick), y2: up(tick) }),
      svg("text", { x: LEFT - 6, y: up(tick) + 4, "text-anchor": "end" }, (100 * tick).toFixed(0)),
      svg("text", { x: across(tick), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, tick.toFixed(1)),
    );
  }
  const middle = up(0.5);
  group.append(
    svg("text", { x: across(0.5), y: HEIGHT - 6, "text-anchor": "middle" }, "Score, with the number of detections"),
    svg("text", { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, "Precision (%)"),
  );
  return group;
}

/** Draws a bin: precision, mean score, the gap between them, and a bar of the histogram. */
function bin(row, maxCount) {
  const [x, width] = [across(row.low) + 1, across(row.high) - across(row.low) - 2];
  const [score, precision] = [across(row.score), up(row.precision)];
  const height = Math.max(1, ((HISTOGRAM - 12) * row.count) / maxCount);
  const lines = [
    element("b", {}, `Score ${row.low.toFixed(1)} … ${row.high.toFixed(1)}`),
    `mean score ${row.score.toFixed(3)}`,
    `precision ${percentSign(row.precision)}`,
    plural(row.count, "detection"),
  ];
  return svg(
    "g",
    {
      class: "bin",
      onpointermove: (event) => showTooltip(event.clientX, event.clientY, lines),
      onpointerleave: hideTooltip,
    },
    svg("title", {}, ""),
    svg("rect", { class: "precision", x, y: precision, width, height: up(0) - precision }),
    svg("line", { class: "gap", x1: score, x2: score, y1: precision, y2: up(row.score) }),
    svg("circle", { class: "mark", cx: score, cy: precision, r: 4.5 }),
    svg("rect", { class: "count", x, y: HEIGHT - BOTTOM - height, width, height }),
  );
}

function bias(rows) {
  const total = sum(rows.map(({ count }) => count));
  const difference = sum(rows.map(({ count, score, precision }) => count * (score - precision))) / total;
  if (Math.abs(difference) < 0.01) return "the mean score equals the precision";
  const side = difference > 0 ? "above the precision (over-confident)" : "below the precision (under-confident)";
  return `the mean score is ${percent(Math.abs(difference))} points ${side}`;
}
