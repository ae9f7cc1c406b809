// Where the most is lost, in plain words. Each sentence is arithmetic on the figures, or is not said.

const LOSSES = {
  Cls: "objects given the wrong class",
  Loc: "boxes that are badly placed",
  Both: "boxes of the wrong class that are badly placed",
  Dupe: "second boxes on the same object",
  Bkg: "boxes where nothing is",
  Miss: "missed objects",
};

/** The sentences for a report, the most important first. */
function findings(data) {
  const { images, truths, detections } = data.subject;
  if (!images) return ["There are no images: nothing was measured."];
  if (!truths) return ["There are no objects in these images: nothing can be found, and AP is not defined."];
  if (!detections)
    return [`Nothing was detected: ${truths === 1 ? "the one object is" : `all ${count(truths)} objects are`} missed.`];
  return [
    tightness(data.figures),
    ...losses(data.errors),
    weakestSlice(data.slices),
    weakestClass(data.classes),
  ].filter(Boolean);
}

/** How the points that AP lacks divide: those lacking at IoU 0.50 already, and those lost from there to 0.95. */
function tightness(figures = []) {
  const named = Object.fromEntries(figures.map(({ name, value }) => [name, value]));
  const { AP: all, AP50: loose } = named;
  if (!known(all) || !known(loose)) return null;
  if (percent(all) === "100.0") return "Everything was found, and nothing else.";
  const atFifty = `${percent(1 - loose)} at IoU 0.50 already`;
  const beyond = `${percent(loose - all)} because boxes do not fit tightly enough for higher IoU`;
  const [more, less] = loose - all > 1 - loose ? [beyond, atFifty] : [atFifty, beyond];
  return `AP lacks ${percent(1 - all)} points: ${more}, and ${less}.`;
}

/** The kinds of mistake by what AP50 would gain without them (TIDE). */
function losses(errors) {
  const worst = (errors?.main ?? []).filter(({ dAP }) => dAP >= 0.0005).sort((a, b) => b.dAP - a.dAP);
  if (!worst.length) return [];
  const told = ({ short, name, dAP }) => `${LOSSES[short] ?? name} (dAP ${percent(dAP)})`;
  const [first, second] = worst;
  if (!second) return [`At IoU 0.50 only one kind of mistake costs anything: ${told(first)}.`];
  if (second.dAP > 0.9 * first.dAP)
    return [`At IoU 0.50 about equally much is lost to ${told(first)} and ${told(second)}.`];
  return [`At IoU 0.50 most is lost to ${told(first)}, then to ${told(second)}.`];
}

/** The kind of object that is found worst, if its interval is clear of that of the best. */
function weakestSlice(slices) {
  const gaps = (slices ?? []).map(({ name, meaning, rows }) => ({ name, meaning, ...extremes(rows) }));
  const widest = gaps.filter(({ gap }) => gap >= 0.05).sort((a, b) => b.gap - a.gap)[0];
  if (!widest) return null;
  const { name, meaning, low, high } = widest;
  const against = `against ${percentSign(high.AP)} for “${high.name}”`;
  return `By ${name} (${meaning}), “${low.name}” does worst: AP ${percentSign(low.AP)}, ${against}.`;
}

function weakestClass(classes) {
  const { low, high, gap } = extremes(classes);
  if (!(gap >= 0.05)) return null;
  const strongest = `the strongest ${high.name} (${percentSign(high.AP)})`;
  return `The weakest class is ${low.name} (AP ${percentSign(low.AP)}), ${strongest}.`;
}

/** The rows of the lowest and the highest AP among those of at least 20 truths; no gap where their intervals touch. */
function extremes(rows) {
  const enough = (rows ?? []).filter(({ AP, truths }) => known(AP) && truths >= 20).sort((a, b) => a.AP - b.AP);
  const [low, high] = [enough[0], enough.at(-1)];
  if (enough.length < 2) return { low, high, gap: 0 };
  const apart = !low.AP_interval || !high.AP_interval || low.AP_interval[1] < high.AP_interval[0];
  return { low, high, gap: apart ? high.AP - low.AP : 0 };
}
