// Precision against recall, and both against the score. Of the report: `data`, `names`, `slider` and `choice`.

/** Curves of one class beside the mean, or of all; gives back what chooses a class. */
function drawCurves() {
  const { curves, thresholds } = data;
  if (!curves?.recall?.length || !classes.length) {
    drop("curves");
    return () => {};
  }
  const select = byId("curve-class");
  select.replaceChildren(option("", "all classes"), ...names.map((name, label) => option(label, name)));
  const ious = Object.keys(curves.precision).sort();
  byId("curve-iou").replaceChildren(...ious.map((iou) => option(iou, iou.replace(":", " … "))));
  byId("curve-iou").value = choice.iou;
  const few = names.length <= 7;
  const scoreNote = (recall) => {
    const scores = curves.scores?.[choice.iou];
    if (!scores || (choice.label === null && !few)) return [];
    const labels = choice.label === null ? names.map((_, label) => label) : [choice.label];
    const at = curves.recall.indexOf(recall);
    const told = (label) =>
      `${names[label]}: score ${known(scores[label]?.[at]) ? scores[label][at].toFixed(3) : NONE}`;
    return labels.map(told);
  };
  const chart = new LineChart(byId("curve-chart"), {
    label: "Precision against recall",
    x: { ...shareAxis("Recall"), exact: percentSign },
    y: { ...shareAxis("Precision"), exact: percentSign },
    note: scoreNote,
  });
  const rates = drawRates();

  const points = (row) => curves.recall.map((recall, i) => [recall, row[i] ?? null]);
  function draw() {
    const table = curves.precision[choice.iou];
    const all = choice.label === null;
    const average = points(curves.mean?.[choice.iou] ?? []);
    const mean = { name: "mean of the classes", colour: "var(--ink)", points: average, bold: all, dashed: !all };
    const one = (label) => ({ name: names[label], colour: colourOf(label), points: points(table[label] ?? []) });
    const look = few ? {} : { quiet: true, colour: "var(--faint)" };
    const each = names.map((_, label) => ({ ...one(label), ...look }));
    chart.set(all ? [...each, mean] : [mean, { ...one(choice.label), bold: true }]);
    rates?.set(choice.label);
    mark();
  }
  function mark() {
    const labels = choice.label !== null ? [choice.label] : few ? names.map((_, label) => label) : [];
    const shown = thresholds && choice.iou === "0.50" ? labels : [];
    const marks = shown.map((label) => {
      const { precision, recall } = ratesAt(thresholds, slider.at, label);
      return { x: recall, y: precision, colour: colourOf(label) };
    });
    chart.mark(marks.filter(({ x, y }) => known(x) && known(y)));
    const caption = shown.length
      ? `The dots are the classes at scores from ${slider.score.toFixed(2)}. ` +
        "The curves give the best precision at each recall or beyond, so a dot may lie beneath."
      : "Precision at each recall, the best from there on, as COCO takes it.";
    byId("curve-caption").textContent = caption;
    rates?.mark();
  }
  function pick(label) {
    choice.label = label;
    select.value = label ?? "";
    draw();
  }
  select.addEventListener("change", () => pick(select.value === "" ? null : Number(select.value)));
  byId("curve-iou").addEventListener("change", (event) => {
    choice.iou = event.target.value;
    draw();
  });
  draw();
  slider.onchange(mark, byId("curves"));
  return (label) => {
    pick(label);
    byId("curves").scrollIntoView({
      behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth",
    });
  };
}

/** Precision, recall and F1 over the score, for the chosen class. */
function drawRates() {
  const { thresholds } = data;
  if (!thresholds) {
    byId("threshold-chart").parentElement.remove();
    return null;
  }
  const chart = new LineChart(byId("threshold-chart"), {
    label: "Precision, recall and F1 against the least score",
    x: { name: "Score", low: 0, high: 1, format: (score) => score.toFixed(1), exact: (score) => score.toFixed(2) },
    y: { ...shareAxis("Share"), exact: percentSign },
  });
  const kinds = [
    ["precision", "precision", 6],
    ["recall", "recall", 4],
    ["f1", "F1", 2],
  ];
  const set = (label) => {
    const rates = thresholds.edges.map((edge, at) => [edge, ratesAt(thresholds, at, label)]);
    const line = ([key, name, colour]) => ({
      name,
      colour: colourOf(colour),
      points: rates.map(([edge, rate]) => [edge, rate[key]]),
      bold: key === "f1",
    });
    chart.set(kinds.map(line));
  };
  return { set, mark: () => chart.mark([{ x: slider.score, y: null }]) };
}
