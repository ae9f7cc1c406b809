// Sentences about the largest losses. Each sentence follows from the metrics by arithmetic, or is left out.

import { count, isKnown, percent, percentSign } from "./base.js";

const LOSSES = {
  Cls: "objects classified wrongly",
  Loc: "poorly localized boxes",
  Both: "poorly localized boxes of the wrong class",
  Dupe: "duplicate detections",
  Bkg: "detections on background",
  Miss: "missed objects",
};
const MIN_OBJECTS = 20;
const MIN_GAP = 0.05;

/** Returns the sentences of a report, most important first. */
export function findings(data) {
  const { images, ground_truths: objects, detections } = data.subject;
  if (!images) return ["There are no images, so nothing was evaluated."];
  if (!objects) return ["The images contain no objects, so AP is undefined."];
  if (!detections) {
    const all = objects === 1 ? "the only object is" : `all ${count(objects)} objects are`;
    return [`There are no detections: ${all} missed.`];
  }
  const sentences = [
    apLoss(data.metrics),
    maskLoss(data.metrics, data.masks),
    errorLoss(data.errors),
    weakestSlice(data.slices),
    weakestClass(data.classes),
  ];
  return sentences.filter(Boolean);
}

/** Splits the difference of AP to 100 into points lost at IoU 0.50 and points lost at higher thresholds. */
function apLoss(metrics = []) {
  const { AP: ap, AP50: ap50 } = Object.fromEntries(metrics.map(({ name, value }) => [name, value]));
  if (!isKnown(ap) || !isKnown(ap50)) return null;
  if (percent(ap) === "100.0") return "All objects are detected, ahead of any false positive.";
  const atFifty = `${percent(1 - ap50)} are lost at IoU 0.50`;
  const above = `${percent(ap50 - ap)} at higher thresholds, where boxes are not tight enough`;
  return `AP is ${percent(1 - ap)} points below 100: ${atFifty}, ${above}.`;
}

/** Compares the AP of masks with that of boxes, and names the Boundary IoU of half of the pairs. */
function maskLoss(metrics = [], masks = null) {
  const { AP: ap, "mask AP": maskAp } = Object.fromEntries(metrics.map(({ name, value }) => [name, value]));
  if (!masks || !isKnown(ap) || !isKnown(maskAp)) return null;
  const difference = `${percent(Math.abs(maskAp - ap))} points ${maskAp < ap ? "below" : "above"} that of boxes`;
  const median = masks.boundary?.median;
  const boundaries = isKnown(median) ? `; the median Boundary IoU of the matched masks is ${percentSign(median)}` : "";
  return `AP of masks is ${percentSign(maskAp)}, ${difference}${boundaries}.`;
}

/** Names the kinds of error whose correction would raise AP50 most (TIDE). */
function errorLoss(errors) {
  const worst = (errors?.main ?? []).filter(({ dAP }) => dAP >= 0.0005).toSorted((a, b) => b.dAP - a.dAP);
  if (!worst.length) return null;
  const describe = ({ short, name, dAP }) => `${LOSSES[short] ?? name} (dAP ${percent(dAP)})`;
  const [first, second] = worst;
  if (!second) return `At IoU 0.50 all of the loss is due to ${describe(first)}.`;
  const isClose = second.dAP > 0.9 * first.dAP;
  return `At IoU 0.50 most is lost to ${describe(first)} ${isClose ? "and" : "and then to"} ${describe(second)}.`;
}

/** Names the slice with the lowest AP, if its interval does not touch the interval of the highest AP. */
function weakestSlice(slices) {
  const gaps = (slices ?? []).map(({ name, meaning, rows }) => ({ name, meaning, ...extremes(rows) }));
  const widest = gaps.filter(({ gap }) => gap >= MIN_GAP).toSorted((a, b) => b.gap - a.gap)[0];
  if (!widest) return null;
  const { name, meaning, low, high } = widest;
  const others = `${percentSign(high.AP)} for “${high.name}”`;
  return `By ${name} (${meaning}), AP is lowest for “${low.name}”: ${percentSign(low.AP)}, compared with ${others}.`;
}

function weakestClass(classes) {
  const { low, high, gap } = extremes(classes);
  if (!(gap >= MIN_GAP)) return null;
  const strongest = `the strongest is ${high.name} (AP ${percentSign(high.AP)})`;
  return `The weakest class is ${low.name} (AP ${percentSign(low.AP)}), ${strongest}.`;
}

/** Returns the rows with the lowest and the highest AP among those with enough objects; the gap is 0 if their intervals touch. */
function extremes(rows) {
  const reliable = (rows ?? [])
    .filter(({ AP, ground_truths: objects }) => isKnown(AP) && objects >= MIN_OBJECTS)
    .toSorted((a, b) => a.AP - b.AP);
  const [low, high] = [reliable[0], reliable.at(-1)];
  if (reliable.length < 2) return { low, high, gap: 0 };
  const isSeparate = !low.AP_interval || !high.AP_interval || low.AP_interval[1] < high.AP_interval[0];
  return { low, high, gap: isSeparate ? high.AP - low.AP : 0 };
}
