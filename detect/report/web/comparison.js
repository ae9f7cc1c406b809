// Comparison of runs on the same images: differences from the first run with intervals, and the images that differ most.

import {
  UNKNOWN,
  byId,
  colourOf,
  count,
  element,
  enablePrinting,
  enableTheme,
  isKnown,
  option,
  percent,
  percentSign,
  plural,
  rangeText,
  remove,
  signed,
} from "./base.js";
import { intervalBar, key } from "./charts.js";
import { NO_DETECTIONS, Picture, Viewer, drawLegend, shownBoxes } from "./pictures.js";
import { ScoreSlider, hundredths } from "./score.js";
import { sortableTable } from "./table.js";

const data = JSON.parse(byId("data").textContent);
const runs = data.runs ?? [];
const pairs = data.pairs ?? [];
const slider = new ScoreSlider(hundredths(), data.score);
const viewer = new Viewer(slider);
let redraw = () => {};

const metricOf = (metrics, name) => metrics.find((metric) => metric.name === name);

function drawHeading() {
  byId("title").textContent = data.title;
  const subject = runs[0]?.subject;
  byId("subject").textContent = subject
    ? `${subject.root}: ${plural(subject.images, "image")}, ${plural(subject.ground_truths, "object")}`
    : "There are no runs.";
  byId("runs").replaceChildren(...runs.map(runSummary));
}

function runSummary({ name, subject, metrics }, run) {
  const origin = [subject.checkpoint, plural(subject.detections, "detection"), subject.date];
  const ap = percent(metricOf(metrics, "AP")?.value);
  return element(
    "div",
    {},
    element("dt", {}, key(name, colourOf(run + 4)), run === 0 ? element("small", {}, "reference") : null),
    element(
      "dd",
      {},
      element("span", { class: "value" }, ap, element("small", {}, " % AP")),
      element("small", {}, origin.filter(Boolean).join(" · ")),
    ),
  );
}

/** Draws one sentence for each pair: better, worse, or no significant difference. */
function drawFindings() {
  const sentence = ({ run, metrics }) => {
    const ap = metricOf(metrics, "AP");
    if (!isKnown(ap?.difference)) return null;
    const both = `“${runs[run].name}” and “${runs[0].name}”`;
    if (!ap.interval) {
      return `The AP of ${both} differs by ${signed(ap.difference)} points; there are too few images for an interval.`;
    }
    const [low, high] = ap.interval;
    if (low <= 0 && high >= 0) {
      const interval = `95 % interval ${rangeText([low, high], signed)}`;
      return `No significant difference between ${both}: ${signed(ap.difference)} points of AP (${interval}).`;
    }
    // The interval belongs to the difference that the sentence states, better minus worse, so it is positive.
    const [better, worse, interval] = low > 0 ? [run, 0, [low, high]] : [0, run, [-high, -low]];
    const amount = `${percent(Math.abs(ap.difference))} points of AP (95 % interval ${rangeText(interval, signed)})`;
    return `“${runs[better].name}” is better than “${runs[worse].name}” by ${amount}.`;
  };
  const sentences = pairs.map(sentence).filter(Boolean);
  const without = runs.filter(({ masks }) => !masks).map(({ name }) => `“${name}”`);
  const onlyBoxes = `Only boxes are compared, because ${without.join(" and ")} has no masks.`;
  byId("findings").replaceChildren(
    ...sentences.map((text) => element("p", { class: "first" }, text)),
    ...(without.length && without.length < runs.length ? [element("p", {}, onlyBoxes)] : []),
  );
}

/** Returns the largest absolute value of the differences and their intervals. */
function largestDifference(rows) {
  const values = rows
    .flatMap(({ difference, interval }) => [difference, ...(interval ?? [])])
    .filter(isKnown)
    .map(Math.abs);
  return Math.max(0.001, ...values);
}

function differenceColumns(rows, colour) {
  const high = largestDifference(rows);
  return [
    {
      name: "Difference",
      title: "This run minus the reference",
      unit: "points",
      value: (row) => row.difference,
      show: (row) => signed(row.difference),
    },
    {
      name: `−${percent(high)} … +${percent(high)}`,
      title: "The difference and its 95 % interval",
      wide: true,
      value: (row) => row.difference,
      show: (row) => intervalBar(row.difference, row.interval, { low: -high, high, colour }),
    },
    {
      name: "95 %",
      title: "95 % interval of the difference",
      unit: "points",
      value: (row) => row.interval?.[0],
      show: (row) => (row.interval ? rangeText(row.interval, signed) : UNKNOWN),
    },
  ];
}

function drawMetrics({ run, metrics }) {
  const valueOf = (index, name) => metricOf(runs[index].metrics, name)?.value;
  const ofRun = (index) => ({
    name: runs[index].name,
    title: `Metrics of ${runs[index].name}`,
    unit: "%",
    value: (row) => valueOf(index, row.name),
    show: (row) => percent(valueOf(index, row.name)),
  });
  const columns = [
    {
      name: "Metric",
      title: "Sort by name",
      value: (row) => row.name,
      show: (row) => element("span", { title: metricOf(runs[0].metrics, row.name)?.meaning }, row.name),
    },
    ofRun(0),
    ofRun(run),
    ...differenceColumns(metrics, colourOf(run + 4)),
    {
      name: "p",
      title: "Share of the resamples in which the difference has the other sign or is 0",
      unit: "%",
      value: (row) => row.p,
      show: (row) => percent(row.p),
    },
  ];
  sortableTable(byId("metric-table"), columns, metrics, { label: "Metrics of both runs", filterFrom: Infinity });
}

function drawClasses({ run, classes }) {
  if (!classes?.length) {
    remove("classes");
    return;
  }
  const columns = [
    { name: "Class", title: "Sort by name", value: (row) => row.name, show: (row) => row.name },
    {
      name: "Objects",
      title: "Ground truths of this class, without crowd regions",
      value: (row) => row.ground_truths,
      show: (row) => count(row.ground_truths),
    },
    ...differenceColumns(classes, colourOf(run + 4)),
  ];
  sortableTable(byId("class-table"), columns, classes, { label: "Differences by class" });
}

/** Draws the images of a pair, the reference on the left, and returns a function that redraws their boxes. */
function drawGallery(run) {
  const images = (data.images ?? []).filter((image) => image.run === run);
  const names = (pairs[0]?.classes ?? []).map(({ name }) => name);
  const panels = (image) =>
    [0, run].map((index) => {
      const share = image.share_correct?.[index];
      return {
        title: `${runs[index].name}${isKnown(share) ? `: ${percentSign(share)} correct` : ""}`,
        picture: new Picture(image, image.detections[index] ?? [], names),
      };
    });
  const enlarge = (at) =>
    viewer.open(
      images.map((image) => ({ name: image.name, panels: panels(image) })),
      at,
    );
  const thumbnails = images.map((image) => panels(image).map((panel) => ({ ...panel, caption: element("span") })));
  const cards = images.map((image, at) => pairCard(image, thumbnails[at], () => enlarge(at)));
  const placeholder = element("p", {}, "The runs do not differ in any image.");
  byId("gallery-pictures").replaceChildren(...(cards.length ? cards : [placeholder]));
  return () => {
    for (const { title, picture, caption } of thumbnails.flat()) {
      picture.drawSmall(slider.score, shownBoxes());
      caption.textContent = picture.hasDetections(slider.score) ? title : `${title}; ${NO_DETECTIONS}`;
    }
  };
}

function pairCard(image, panels, enlarge) {
  const frames = panels.map(({ picture, caption }) => element("span", { class: "side" }, picture.frame(), caption));
  const button = element(
    "button",
    { type: "button", class: "enlarge sides", "aria-label": `Enlarge ${image.name}`, onclick: enlarge },
    frames,
  );
  const caption = element("figcaption", {}, element("span", { class: "name" }, image.name));
  return element("figure", { class: "double" }, button, caption);
}

function drawPair(pair) {
  drawMetrics(pair);
  if (byId("classes")) drawClasses(pair);
  if (byId("gallery")) redraw = drawGallery(pair.run);
  redraw();
}

enableTheme();
enablePrinting();
drawHeading();
drawFindings();
if (data.images?.length) {
  drawLegend(byId("gallery-legend"));
  slider.onChange(() => redraw(), byId("gallery"));
  for (const control of ["show-ground-truths", "show-detections"]) {
    byId(control).addEventListener("change", () => redraw());
  }
} else {
  remove("gallery");
}
if (pairs.length) {
  const select = byId("pair");
  select.replaceChildren(...pairs.map(({ run }, i) => option(i, runs[run].name)));
  select.addEventListener("change", () => drawPair(pairs[Number(select.value)]));
  if (pairs.length === 1) remove("pair-choice");
  drawPair(pairs[0]);
} else {
  for (const section of ["pair-choice", "metrics", "classes", "gallery"]) remove(section);
}
if (byId("score")) slider.notify();
