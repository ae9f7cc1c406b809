// The report of one evaluation: each function fills one section, or takes it away where the data has nothing for it.

const data = JSON.parse(byId("data").textContent);
const classes = data.classes ?? [];
const names = classes.map(({ name }) => name);
const slider = new ScoreSlider(data.thresholds?.edges?.length ? data.thresholds.edges : hundredths());
const choice = { label: null, iou: "0.50" };

function drawHeading() {
  const { images, truths, crowds, detections, classes: number, root, split, checkpoint, made } = data.subject;
  byId("title").textContent = data.title;
  const crowd = crowds ? ` and ${plural(crowds, "crowd region")}` : "";
  const parts = [
    `${plural(images, "image")} of ${split ? `${split} of ` : ""}${root}`,
    `${plural(truths, "object")}${crowd} of ${number === 1 ? "1 class" : `${count(number)} classes`}`,
    plural(detections, "detection"),
    checkpoint,
    made,
  ];
  byId("subject").textContent = parts.filter(Boolean).join(" · ");
}

/** AP, AP50 and AP75 large, the others small. */
function drawFigures() {
  const leading = ["AP", "AP50", "AP75"];
  const tile = ({ name, meaning, value, interval }) => {
    const large = leading.includes(name);
    const unit = known(value) ? element("small", {}, " %") : null;
    return element(
      "div",
      { class: large ? "tile large" : "tile", title: meaning },
      element("dt", {}, name, large ? element("small", {}, meaning) : null),
      element(
        "dd",
        {},
        element("span", { class: "value" }, percent(value), unit),
        large ? intervalBar(value, interval) : null,
        element("span", { class: "interval" }, interval ? span(interval) : ""),
      ),
    );
  };
  byId("leading").replaceChildren(...data.figures.filter(({ name }) => leading.includes(name)).map(tile));
  byId("others").replaceChildren(...data.figures.filter(({ name }) => !leading.includes(name)).map(tile));
}

function drawFindings() {
  const [first, ...others] = findings(data);
  const rest = others.map((sentence) => element("p", {}, sentence));
  byId("findings").replaceChildren(...(first ? [element("p", { class: "first" }, first), ...rest] : []));
}

function drawThreshold() {
  if (!data.thresholds) {
    if (!data.gallery?.length && !data.confusion) return drop("threshold");
    drop("best");
    return drop("overall");
  }
  byId("best").addEventListener("click", () => slider.move(bestPlace(data.thresholds)));
  const places = { precision: element("dd"), recall: element("dd"), f1: element("dd") };
  const pairs = Object.entries({ precision: "Precision", recall: "Recall", f1: "F1" });
  byId("overall").replaceChildren(
    ...pairs.map(([key, name]) => element("div", {}, element("dt", {}, name), places[key])),
  );
  slider.onchange(() => {
    const rates = ratesAt(data.thresholds, slider.at);
    for (const [key, place] of Object.entries(places)) place.textContent = percentSign(rates[key]);
  });
}

function drawClasses(pick) {
  if (!classes.length) return drop("classes");
  const rows = classes.map((row, label) => ({ ...row, label }));
  const number = (name, title) => ({
    name,
    title,
    value: (row) => row[name.toLowerCase()],
    show: (row) => count(row[name.toLowerCase()]),
  });
  const figure = (name, title) => ({
    name,
    title,
    unit: "%",
    value: (row) => row[name],
    show: (row) => percent(row[name]),
  });
  const live = (name, key) => {
    const value = ({ label }) => ratesAt(data.thresholds, slider.at, label)[key];
    return {
      name,
      title: `${name} at the score of the slider, IoU 0.50`,
      unit: "%",
      value,
      show: (row) => percent(value(row)),
      live: true,
    };
  };
  const columns = [
    { name: "Class", title: "Sort by name", value: (row) => row.name, show: (row) => row.name },
    number("Truths", "Objects of this class"),
    number("Detections", "Detections of this class"),
    figure("AP", "Average precision, mean over IoU 0.50 … 0.95"),
    {
      name: "95 %",
      title: "Interval of AP",
      wide: true,
      value: (row) => row.AP_interval?.[0],
      show: (row) => intervalBar(row.AP, row.AP_interval),
    },
    figure("AP50", "Average precision at IoU 0.50"),
    figure("AP75", "Average precision at IoU 0.75"),
    figure("AR100", "Average recall with 100 detections an image"),
    figure("VOC", "PASCAL VOC's average precision"),
    ...(data.thresholds ? [live("Precision", "precision"), live("Recall", "recall"), live("F1", "f1")] : []),
  ];
  const table = sortableTable(byId("class-table"), columns, rows, {
    label: "Figures of each class",
    onpick: data.curves ? (row) => pick(row.label) : null,
  });
  slider.onchange(table.refresh, byId("classes"));
}

function drawConfusion() {
  if (!data.confusion || !classes.length) return drop("confusion");
  const confusion = new Confusion(data.confusion, names);
  slider.onchange(() => confusion.draw(slider.score), byId("confusion"));
}

function drawErrors() {
  const { errors } = data;
  if (!errors?.main?.length) return drop("errors");
  byId("errors-caption").textContent =
    `What AP50 (${percentSign(errors.AP50)}) would gain if this kind of mistake alone were mended ` +
    "(dAP, in points; TIDE, Bolya et al. 2020), and how many there are.";
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
  byId("error-bars").replaceChildren(
    bars(rows, { high, label: "What each kind of mistake costs", heads: ["dAP", "count"], colour: "var(--colour-4)" }),
  );
}

function drawSlices() {
  const slices = (data.slices ?? []).filter(({ rows }) => rows.length);
  if (!slices.length) return drop("slices");
  const table = ({ name, meaning, rows }) => {
    const line = (row) => ({
      name: row.name,
      value: row.AP,
      interval: row.AP_interval,
      texts: [percent(row.AP), percent(row.AP50), percent(row.AR), count(row.truths)],
    });
    const heads = ["AP %", "AP50 %", "AR %", "truths"];
    const drawn = bars(rows.map(line), { high: 1, label: `AP by ${name}`, heads });
    return element("div", {}, element("h3", {}, `By ${name}`), element("p", {}, meaning), drawn);
  };
  byId("slice-tables").replaceChildren(...slices.map(table));
}

function drawProposals() {
  const { proposals } = data;
  if (!proposals?.limits?.length) return drop("proposals");
  const { limits } = proposals;
  const x = { ...axisOver("Proposals an image", limits), ticks: limits, format: count };
  const chart = new LineChart(byId("proposal-chart"), {
    label: "Recall against the number of proposals",
    x,
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
    ["ABO", "mean best overlap of the objects (ABO)"],
    ["MABO", "of the classes (MABO)"],
  ];
  const told = overlaps
    .filter(([key]) => known(proposals[key]))
    .map(([key, name]) => `${name} ${percentSign(proposals[key])}`);
  byId("proposal-caption").textContent =
    `Share of the objects that the proposals cover${told.length ? `; ${told.join(", ")}` : ""}.`;
}

function drawOracles() {
  const ladder = data.oracles ?? [];
  if (!ladder.some(({ AP }) => known(AP))) return drop("oracles");
  const line = ({ name, AP, AP50, meaning }, rung) => {
    const before = ladder[rung - 1]?.AP;
    const gain = known(AP) && known(before) ? signed(AP - before) : "";
    return { name, meaning, value: AP, texts: [percent(AP), gain, percent(AP50)] };
  };
  byId("oracle-bars").replaceChildren(
    bars(ladder.map(line), {
      high: 1,
      label: "The ladder of oracles",
      heads: ["AP %", "gain", "AP50 %"],
      colour: "var(--colour-2)",
    }),
  );
}

/** A chart for each group of series. */
function drawTraining() {
  const series = (data.training?.series ?? []).filter(({ points }) => points.length);
  if (!series.length) return drop("training");
  const order = ["losses", "figures", "learning rate"];
  const groups = [...new Set(series.map(({ group }) => group))].sort((a, b) => order.indexOf(a) - order.indexOf(b));
  const charts = groups.map((group) => {
    const members = series.filter((one) => one.group === group);
    const all = members.flatMap(({ points }) => points);
    const place = element("div");
    byId("training-charts").append(element("figure", {}, element("h3", {}, group), place));
    const y =
      group === "figures"
        ? { ...shareAxis("Figure"), exact: percentSign }
        : axisOver("", all.map(([, y]) => y).filter(known), { fromZero: true });
    y.exact ??= (value) => value.toPrecision(3);
    const chart = new LineChart(place, {
      label: `${group} during training`,
      x: axisOver(
        data.training.x,
        all.map(([x]) => x),
      ),
      y,
      height: 260,
    });
    return () =>
      chart.set(members.map(({ name, points }, i) => ({ name, points, colour: colourOf(i + 4), dashed: i >= 7 })));
  });
  charts.forEach((draw) => draw());
}

function drawConfig() {
  const { versions, command } = data.subject;
  const entries = Object.entries({ ...(command ? { command } : {}), ...(versions ?? {}) });
  byId("versions").replaceChildren(
    ...entries.map(([name, version]) => element("div", {}, element("dt", {}, name), element("dd", {}, version))),
  );
  if (!data.config) return entries.length ? drop("config-text") : drop("config");
  const text = byId("config-text").querySelector("pre");
  text.textContent = data.config;
  byId("copy").addEventListener("click", async () => {
    // Where the browser keeps the clipboard from a file, the text is selected instead.
    const done = await navigator.clipboard?.writeText(data.config).then(
      () => true,
      () => false,
    );
    if (!done) getSelection().selectAllChildren(text);
    byId("copy").textContent = done ? "Copied" : "Selected";
  });
}

function drawContents() {
  const sections = [...document.querySelectorAll("section[data-name]")];
  byId("contents").replaceChildren(
    ...sections.map(({ id, dataset }) => element("a", { href: `#${id}` }, dataset.name)),
  );
}

const option = (value, text) => element("option", { value }, text);

enableTheme();
enablePrinting();
drawHeading();
drawFigures();
drawFindings();
drawThreshold();
drawClasses(drawCurves());
drawConfusion();
drawErrors();
drawSlices();
drawCalibration();
drawProposals();
drawOracles();
drawGallery();
drawTraining();
drawConfig();
drawContents();
if (byId("score")) slider.tell();
