// Report of one evaluation: each function draws a section, or removes it if it has no data.

import {
  byId,
  colourOf,
  count,
  element,
  enablePrinting,
  enableTheme,
  isKnown,
  percent,
  percentSign,
  plural,
  rangeText,
  remove,
  signed,
} from "./base.js";
import { drawBoundary } from "./boundary.js";
import { drawCalibration } from "./calibration.js";
import { LineChart, axisOver, bars, intervalBar, shareAxis } from "./charts.js";
import { Confusion } from "./confusion.js";
import { drawCurves } from "./curves.js";
import { findings } from "./findings.js";
import { drawGallery } from "./gallery.js";
import { ScoreSlider, hundredths, metricsAt } from "./score.js";
import { sortableTable } from "./table.js";

const data = JSON.parse(byId("data").textContent);
const classes = data.classes ?? [];
const names = classes.map(({ name }) => name);
const scores = data.thresholds?.scores?.length ? data.thresholds.scores : hundredths();
const slider = new ScoreSlider(scores, data.thresholds?.best);

function drawHeading() {
  const { images, crowds, detections, root, split, checkpoint, date, ...subject } = data.subject;
  byId("title").textContent = data.title;
  const classCount = subject.classes === 1 ? "1 class" : `${count(subject.classes)} classes`;
  const crowdRegions = crowds ? ` and ${plural(crowds, "crowd region")}` : "";
  const parts = [
    `${root}${split ? `, ${split}` : ""}: ${plural(images, "image")}`,
    `${plural(subject.ground_truths, "object")}${crowdRegions} in ${classCount}`,
    plural(detections, "detection"),
    checkpoint,
    date,
  ];
  byId("subject").textContent = parts.filter(Boolean).join(" · ");
}

/** Draws AP, AP50 and AP75 large, the other metrics small; those of masks below those of boxes. */
function drawMetrics() {
  const leading = new Set(["AP", "AP50", "AP75", "mask AP", "mask AP50", "mask AP75"]);
  const tile = ({ name, meaning, value, interval }) => {
    const isLarge = leading.has(name);
    const unit = isKnown(value) ? element("small", {}, " %") : null;
    return element(
      "div",
      { class: isLarge ? "tile large" : "tile", title: meaning },
      element("dt", {}, name, isLarge ? element("small", {}, meaning) : null),
      element(
        "dd",
        {},
        element("span", { class: "value" }, percent(value), unit),
        isLarge ? intervalBar(value, interval) : null,
        element("span", { class: "interval" }, interval ? rangeText(interval) : ""),
      ),
    );
  };
  const isMask = ({ name }) => name.startsWith("mask ");
  const large = data.metrics.filter(({ name }) => leading.has(name));
  byId("leading").replaceChildren(...large.filter((metric) => !isMask(metric)).map(tile));
  byId("leading-masks").replaceChildren(...large.filter(isMask).map(tile));
  if (!large.some(isMask)) remove("leading-masks");
  byId("others").replaceChildren(...data.metrics.filter(({ name }) => !leading.has(name)).map(tile));
}

function drawFindings() {
  const sentences = findings(data).map((text, i) => element("p", { class: i === 0 ? "first" : null }, text));
  byId("findings").replaceChildren(...sentences);
}

function drawThreshold() {
  if (!data.thresholds) {
    if (!data.gallery?.length && !data.confusion) remove("threshold");
    remove("best");
    remove("overall");
    return;
  }
  byId("best").addEventListener("click", () => slider.move(data.thresholds.best));
  const cells = { precision: element("dd"), recall: element("dd"), f1: element("dd") };
  const titles = Object.entries({ precision: "Precision", recall: "Recall", f1: "F1" });
  byId("overall").replaceChildren(
    ...titles.map(([key, title]) => element("div", {}, element("dt", {}, title), cells[key])),
  );
  slider.onChange(() => {
    const metrics = metricsAt(data.thresholds, slider.index);
    for (const [key, cell] of Object.entries(cells)) cell.textContent = percentSign(metrics[key]);
  });
}

function classColumns() {
  const number = (name, key, title) => ({
    name,
    title,
    value: (row) => row[key],
    show: (row) => count(row[key]),
  });
  const metric = (name, title) => ({
    name,
    title,
    unit: "%",
    value: (row) => row[name],
    show: (row) => percent(row[name]),
  });
  const live = (name, key) => {
    const value = ({ label }) => metricsAt(data.thresholds, slider.index, label)[key];
    return {
      name,
      title: `${name} at the score threshold and IoU 0.50`,
      unit: "%",
      value,
      show: (row) => percent(value(row)),
      live: true,
    };
  };
  return [
    { name: "Class", title: "Sort by name", value: (row) => row.name, show: (row) => row.name },
    number("Objects", "ground_truths", "Ground truths of this class, without crowd regions"),
    number("Detections", "detections", "Detections of this class"),
    metric("AP", "Average precision, mean over IoU 0.50 … 0.95"),
    {
      name: "95 %",
      title: "95 % confidence interval of AP",
      wide: true,
      value: (row) => row.AP_interval?.[0],
      show: (row) => intervalBar(row.AP, row.AP_interval),
    },
    metric("AP50", "Average precision at IoU 0.50"),
    metric("AP75", "Average precision at IoU 0.75"),
    metric("AR100", "Average recall with 100 detections per class and image"),
    metric("VOC", "Average precision of PASCAL VOC, area under the curve"),
    ...(data.masks ? maskColumns(metric) : []),
    ...(data.thresholds ? [live("Precision", "precision"), live("Recall", "recall"), live("F1", "f1")] : []),
  ];
}

const maskColumns = (metric) => [
  { ...metric("mask_AP", "Average precision of masks, mean over IoU 0.50 … 0.95"), name: "Mask AP" },
  { ...metric("mask_AP50", "Average precision of masks at IoU 0.50"), name: "Mask AP50" },
  { ...metric("boundary_IoU", "Mean Boundary IoU of the matched masks"), name: "Boundary" },
];

function drawClasses(pick) {
  if (!classes.length) {
    remove("classes");
    return;
  }
  const rows = classes.map((row, label) => ({ ...row, label }));
  const table = sortableTable(byId("class-table"), classColumns(), rows, {
    label: "Metrics by class",
    onPick: data.curves ? (row) => pick(row.label) : null,
  });
  slider.onChange(table.refresh, byId("classes"));
}

function drawConfusion() {
  if (!data.confusion || !classes.length) {
    remove("confusion");
    return;
  }
  const confusion = new Confusion(data.confusion, names);
  slider.onChange(() => confusion.draw(slider.score), byId("confusion"));
}

function drawErrors() {
  const { errors } = data;
  if (!errors?.main?.length) {
    remove("errors");
    return;
  }
  byId("errors-caption").textContent =
    `Gain of AP50 (${percentSign(errors.AP50)}) if one kind of error alone were corrected ` +
    "(dAP in points; TIDE, Bolya et al. 2020), and the number of errors.";
  byId("error-bars").replaceChildren(errorBars(errors, "dAP by kind of error"));
  if (!data.masks) {
    remove("mask-errors");
    return;
  }
  const { errors: ofMasks } = data.masks;
  byId("mask-errors-caption").textContent =
    `The same with the IoU of masks, AP50 ${percentSign(ofMasks.AP50)}: a mask that misses half of its object is ` +
    "poorly localized, even in a perfect box.";
  byId("mask-error-bars").replaceChildren(errorBars(ofMasks, "dAP of masks by kind of error"));
}

function errorBars(errors, label) {
  const row = ({ name, short, meaning, dAP, count: number }, quiet) => ({
    name: `${name} (${short})`,
    meaning,
    value: dAP,
    quiet,
    texts: [percent(dAP), count(number)],
  });
  const rows = [
    ...errors.main.map((error) => row(error, false)),
    ...(errors.special ?? []).map((error) => row(error, true)),
  ];
  const high = Math.max(...rows.map(({ value }) => value ?? 0));
  return bars(rows, { high, label, heads: ["dAP", "count"], colour: "var(--colour-4)" });
}

function drawSlices() {
  const slices = (data.slices ?? []).filter(({ rows }) => rows.length);
  if (!slices.length) {
    remove("slices");
    return;
  }
  const table = ({ name, meaning, rows }, title = `By ${name}`) => {
    const line = (row) => ({
      name: row.name,
      value: row.AP,
      interval: row.AP_interval,
      texts: [percent(row.AP), percent(row.AP50), percent(row.AR), count(row.ground_truths)],
    });
    const heads = ["AP %", "AP50 %", "AR %", "objects"];
    const chart = bars(rows.map(line), { high: 1, label: `AP by ${name}`, heads });
    return element("div", {}, element("h3", {}, title), element("p", {}, meaning), chart);
  };
  const tables = slices.map((slice) => table(slice));
  if (data.masks) {
    const sizes = { name: "size of masks", meaning: "AP of masks, by the area of the object", rows: data.masks.sizes };
    tables.push(table(sizes, "Masks by size"));
  }
  byId("slice-tables").replaceChildren(...tables);
}

function drawProposals() {
  const { proposals } = data;
  if (!proposals?.limits?.length) {
    remove("proposals");
    return;
  }
  const { limits } = proposals;
  const chart = new LineChart(byId("proposal-chart"), {
    label: "Recall against the number of proposals",
    x: { ...axisOver("Proposals per image", limits), ticks: limits, format: count },
    y: { ...shareAxis("Recall"), exact: percentSign },
  });
  const line = (name, values, colour, bold) => ({
    name,
    colour: colourOf(colour),
    bold,
    points: limits.map((limit, i) => [limit, values[i]]),
  });
  const order = [5, 6, 2, 4, 1];
  const lines = Object.entries(proposals.recall ?? {}).map(([iou, values], i) =>
    line(`recall at IoU ${iou}`, values, order[i % 5]),
  );
  chart.set([...lines, ...(proposals.AR ? [line("AR, mean over IoU", proposals.AR, 0, true)] : [])]);
  const overlaps = [
    ["ABO", "best IoU per object"],
    ["MABO", "mean over the classes"],
  ];
  const texts = overlaps
    .filter(([key]) => isKnown(proposals[key]))
    .map(([key, meaning]) => ` ${key} (${meaning}): ${percentSign(proposals[key])}.`);
  byId("proposal-caption").textContent = `Share of the objects covered by the first proposals.${texts.join("")}`;
}

function drawOracles() {
  const isEmpty = (steps) => !steps?.some(({ AP }) => isKnown(AP));
  if (isEmpty(data.oracles)) remove("oracles");
  else byId("oracle-bars").replaceChildren(oracleBars(data.oracles, "AP after each oracle"));
  if (isEmpty(data.masks?.oracles)) remove("mask-oracles");
  else byId("mask-oracle-bars").replaceChildren(oracleBars(data.masks.oracles, "AP of masks after each oracle"));
}

function oracleBars(steps, label) {
  const line = ({ name, AP, AP50, meaning }, i) => {
    const before = steps[i - 1]?.AP;
    const gain = isKnown(AP) && isKnown(before) ? signed(AP - before) : "";
    return { name, meaning, value: AP, texts: [percent(AP), gain, percent(AP50)] };
  };
  const heads = ["AP %", "gain", "AP50 %"];
  return bars(steps.map(line), { high: 1, label, heads, colour: "var(--colour-2)" });
}

/** Draws a chart for each group of series. */
function drawTraining() {
  const series = (data.training?.series ?? []).filter(({ points }) => points.length);
  if (!series.length) {
    remove("training");
    return;
  }
  const order = ["losses", "metrics", "learning rate"];
  const groups = [...new Set(series.map(({ group }) => group))].toSorted((a, b) => order.indexOf(a) - order.indexOf(b));
  const charts = groups.map((group) => {
    const members = series.filter((member) => member.group === group);
    const points = members.flatMap((member) => member.points);
    const container = element("div");
    byId("training-charts").append(element("figure", {}, element("h3", {}, group), container));
    const y =
      group === "metrics"
        ? { ...shareAxis("Metric"), exact: percentSign }
        : axisOver("", points.map((point) => point[1]).filter(isKnown), { fromZero: true });
    y.exact ??= (value) => value.toPrecision(3);
    const steps = points.map(([step]) => step);
    const x = axisOver(data.training.x, steps);
    const chart = new LineChart(container, { label: `${group} during training`, x, y, height: 260 });
    return () =>
      chart.set(
        members.map(({ name, points: own }, i) => ({ name, points: own, colour: colourOf(i + 4), dashed: i >= 7 })),
      );
  });
  // The widths are known only after all charts are in the page.
  charts.forEach((draw) => draw());
}

function drawConfig() {
  const { versions, command } = data.subject;
  const entries = Object.entries({ ...(command ? { command } : {}), ...versions });
  byId("versions").replaceChildren(
    ...entries.map(([name, version]) => element("div", {}, element("dt", {}, name), element("dd", {}, version))),
  );
  if (!data.config) {
    remove(entries.length ? "config-text" : "config");
    return;
  }
  const text = byId("config-text").querySelector("pre");
  text.textContent = data.config;
  byId("copy").addEventListener("click", async () => {
    // If the browser denies the clipboard to a local file, select the text instead.
    const isCopied = await navigator.clipboard?.writeText(data.config).then(
      () => true,
      () => false,
    );
    if (!isCopied) getSelection().selectAllChildren(text);
    byId("copy").textContent = isCopied ? "Copied" : "Selected";
  });
}

function drawContents() {
  const sections = [...document.querySelectorAll("section[data-name]")];
  byId("contents").replaceChildren(
    ...sections.map(({ id, dataset }) => element("a", { href: `#${id}` }, dataset.name)),
  );
}

enableTheme();
enablePrinting();
drawHeading();
drawMetrics();
drawFindings();
drawThreshold();
drawClasses(drawCurves(data, names, slider));
drawConfusion();
drawErrors();
drawBoundary(data.masks?.boundary);
drawSlices();
drawCalibration(data.calibration);
drawProposals();
drawOracles();
drawGallery(data.gallery, names, slider, Boolean(data.masks));
drawTraining();
drawConfig();
drawContents();
if (byId("score")) slider.notify();
