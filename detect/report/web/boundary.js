// Boundary IoU of matched masks, and the pairs with the worst boundaries.

import { byId, count, element, percent, percentSign, plural, remove, sum } from "./base.js";
import { bars, key } from "./charts.js";

/** Draws the distribution and the pictures, or removes the section if no masks match. */
export function drawBoundary(boundary) {
  if (!boundary) {
    remove("boundary");
    return;
  }
  const total = sum(boundary.bins.map((bin) => bin.count));
  const row = ({ low, high, count: number }) => ({
    name: `${(100 * low).toFixed(0)} – ${(100 * high).toFixed(0)} %`,
    value: number / total,
    texts: [percent(number / total), count(number)],
  });
  const high = Math.max(...boundary.bins.map((bin) => bin.count)) / total;
  byId("boundary-bars").replaceChildren(
    bars(boundary.bins.map(row), { high, label: "Pairs by Boundary IoU", heads: ["pairs %", "pairs"] }),
  );
  byId("boundary-caption").textContent =
    `Boundary IoU of ${plural(total, "pair")}: mean ${percentSign(boundary.mean)}, ` +
    `median ${percentSign(boundary.median)}.`;
  byId("boundary-legend").replaceChildren(
    key("missed pixels", "#f0e442"),
    key("extra pixels", "#d55e00"),
    key("outline of the ground truth", "#56b4e9"),
  );
  byId("boundary-pictures").replaceChildren(...boundary.worst.map(pairPicture));
}

function pairPicture(pair) {
  const title = `${pair.class} ${pair.score.toFixed(2)}`;
  const ious = `Boundary IoU ${percentSign(pair.boundary_iou)}, IoU ${percentSign(pair.iou)}`;
  const pixels = `${count(pair.missed)} pixels missed, ${count(pair.extra)} extra`;
  return element(
    "figure",
    {},
    element("img", { class: "difference", src: pair.picture, alt: `${title}: ${ious}`, decoding: "async" }),
    element(
      "figcaption",
      {},
      element("span", { class: "name", title: pair.name }, `${title} · ${pair.name}`),
      element("span", {}, ious),
      element("small", {}, pixels),
    ),
  );
}
