// Several runs on the same images: differences to the first run with their intervals, and where they differ most.

const data = JSON.parse(byId("data").textContent);
const runs = data.runs ?? [];
const pairs = data.pairs ?? [];
const slider = new ScoreSlider(hundredths());

function drawHeading() {
  byId("title").textContent = data.title;
  const first = runs[0]?.subject;
  byId("subject").textContent = first
    ? `${plural(first.images, "image")}, ${plural(first.truths, "object")} of ${first.root}`
    : "There are no runs.";
  const entry = ({ name, subject, figures }, run) => {
    const ap = figures.find((figure) => figure.name === "AP");
    const made = [subject.checkpoint, plural(subject.detections, "detection"), subject.made]
      .filter(Boolean)
      .join(" · ");
    return element(
      "div",
      {},
      element("dt", {}, key(name, colourOf(run + 4)), run === 0 ? element("small", {}, "the reference") : null),
      element(
        "dd",
        {},
        element("span", { class: "value" }, percent(ap?.value), element("small", {}, " % AP")),
        element("small", {}, made),
      ),
    );
  };
  byId("runs").replaceChildren(...runs.map(entry));
}

/** One sentence a pair: better, worse, or not to be told apart. */
function drawFindings() {
  const sentence = ({ run, figures }) => {
    const ap = figures.find(({ name }) => name === "AP");
    if (!known(ap?.difference)) return null;
    const both = `“${runs[run].name}” and “${runs[0].name}”`;
    if (!ap.interval)
      return `${both} differ by ${signed(ap.difference)} points of AP; there is no interval to judge it by.`;
    const range = `95 % of the difference: ${span(ap.interval, signed)}`;
    if (ap.interval[0] <= 0 && ap.interval[1] >= 0)
      return `These images cannot tell ${both} apart: AP differs by ${signed(ap.difference)} points (${range}).`;
    const [better, worse] = ap.difference > 0 ? [run, 0] : [0, run];
    const amount = percent(Math.abs(ap.difference));
    return `“${runs[better].name}” is better than “${runs[worse].name}” by ${amount} points of AP (${range}).`;
  };
  const sentences = pairs.map(sentence).filter(Boolean);
  byId("findings").replaceChildren(...sentences.map((text) => element("p", { class: "first" }, text)));
}

/** The ends of an axis about 0 that holds all differences and intervals. */
function reach(rows) {
  const ends = rows
    .flatMap(({ difference, interval }) => [difference, ...(interval ?? [])])
    .filter(known)
    .map(Math.abs);
  return Math.max(0.001, ...ends);
}

const differenceColumns = (rows, colour) => {
  const far = reach(rows);
  return [
    {
      name: "Difference",
      title: "This run minus the first",
      unit: "points",
      value: (row) => row.difference,
      show: (row) => signed(row.difference),
    },
    {
      name: `−${percent(far)} … +${percent(far)}`,
      title: "The difference and its 95 % interval",
      wide: true,
      value: (row) => row.difference,
      show: (row) => intervalBar(row.difference, row.interval, -far, far, colour),
    },
    {
      name: "95 %",
      title: "The interval of the difference",
      unit: "points",
      value: (row) => row.interval?.[0],
      show: (row) => (row.interval ? span(row.interval, signed) : NONE),
    },
  ];
};

function drawFigures({ run, figures }) {
  const valueOf = (one, name) => runs[one].figures.find((figure) => figure.name === name)?.value;
  const meaningOf = (name) => runs[0].figures.find((figure) => figure.name === name)?.meaning;
  const ofRun = (one) => ({
    name: runs[one].name,
    title: `The figures of ${runs[one].name}`,
    unit: "%",
    value: (row) => valueOf(one, row.name),
    show: (row) => percent(valueOf(one, row.name)),
  });
  const columns = [
    {
      name: "Figure",
      title: "Sort by name",
      value: (row) => row.name,
      show: (row) => element("span", { title: meaningOf(row.name) }, row.name),
    },
    ofRun(0),
    ofRun(run),
    ...differenceColumns(figures, colourOf(run + 4)),
    {
      name: "Against",
      title: "Share of the resamples on the other side of 0",
      unit: "%",
      value: (row) => row.p,
      show: (row) => percent(row.p),
    },
  ];
  sortableTable(byId("figure-table"), columns, figures, { label: "Figures of both runs", filterFrom: Infinity });
}

function drawClasses({ run, classes }) {
  if (!classes?.length) return drop("classes");
  const columns = [
    { name: "Class", title: "Sort by name", value: (row) => row.name, show: (row) => row.name },
    { name: "Truths", title: "Objects of this class", value: (row) => row.truths, show: (row) => count(row.truths) },
    ...differenceColumns(classes, colourOf(run + 4)),
  ];
  sortableTable(byId("class-table"), columns, classes, { label: "Differences of each class" });
}

/** The images of a pair, the first run on the left and the other on the right. */
function drawGallery(run) {
  const images = (data.images ?? []).filter((image) => image.run === run);
  const panels = (image) =>
    [0, run].map((one) => ({
      title: `${runs[one].name}${known(image.scores?.[one]) ? `: ${percentSign(image.scores[one])} right` : ""}`,
      picture: new Picture(image, image.detections[one] ?? [], classNames()),
    }));
  const cards = images.map((image, at) => {
    const shown = panels(image);
    const frames = shown.map(({ title, picture }) =>
      element("span", { class: "side" }, picture.frame(), element("span", {}, title)),
    );
    const open = () =>
      viewer.open(
        images.map((one) => ({ name: one.name, panels: panels(one) })),
        at,
      );
    const button = element(
      "button",
      { type: "button", class: "enlarge sides", "aria-label": `Enlarge ${image.name}`, onclick: open },
      frames,
    );
    return {
      shown,
      node: element(
        "figure",
        { class: "double" },
        button,
        element("figcaption", {}, element("span", { class: "name" }, image.name)),
      ),
    };
  });
  const none = element("p", {}, "No image differs.");
  byId("gallery-pictures").replaceChildren(...(cards.length ? cards.map(({ node }) => node) : [none]));
  return () =>
    cards.forEach(({ shown }) => shown.forEach(({ picture }) => picture.drawSmall(slider.score, shownBoxes())));
}

/** The classes in label order, as every pair lists them. */
const classNames = () => (pairs[0]?.classes ?? []).map(({ name }) => name);

function drawPair(pair) {
  drawFigures(pair);
  if (byId("classes")) drawClasses(pair);
  if (byId("gallery")) redraw = drawGallery(pair.run);
  redraw();
}

let redraw = () => {};
const viewer = new Viewer(slider);

enableTheme();
enablePrinting();
drawHeading();
drawFindings();
if (!data.images?.length) drop("gallery");
else {
  drawLegend(byId("gallery-legend"));
  slider.onchange(() => redraw(), byId("gallery"));
  for (const id of ["show-truths", "show-detections"]) byId(id).addEventListener("change", () => redraw());
}
if (!pairs.length) ["pair-choice", "figures", "classes", "gallery"].forEach(drop);
else {
  const select = byId("pair");
  select.replaceChildren(...pairs.map(({ run }, i) => element("option", { value: i }, runs[run].name)));
  select.addEventListener("change", () => drawPair(pairs[Number(select.value)]));
  if (pairs.length === 1) drop("pair-choice");
  drawPair(pairs[0]);
}
if (byId("score")) slider.tell();
