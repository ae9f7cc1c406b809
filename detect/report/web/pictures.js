// Images with their truths and detections, and the dialog that enlarges them.

const KINDS = {
  Cls: "wrong class",
  Loc: "badly placed",
  Both: "wrong class, badly placed",
  Dupe: "second box",
  Bkg: "nothing there",
  Miss: "missed",
};

/** The layers of a drawing from the lowest up, with what the legend says of each. */
const LAYERS = {
  crowd: "crowd region",
  found: "truth, found",
  ignored: "detection, not counted",
  right: "detection, right",
  wrong: "detection, wrong",
  missed: "truth, missed",
};

/** One image with one detector's boxes. */
class Picture {
  constructor(image, detections, names) {
    this.image = image;
    this.names = names;
    this.detections = detections.map(([x1, y1, x2, y2, label, score, kind]) => ({
      box: [x1, y1, x2, y2],
      label,
      score,
      kind,
    }));
    this.truths = image.truths.map(([x1, y1, x2, y2, label, state]) => ({
      box: [x1, y1, x2, y2],
      label,
      state,
      foundAt: -1,
    }));
    this.pair();
  }

  /** Gives each truth the score of the right detection that found it, so that it is missed above that score. */
  pair() {
    const right = this.detections.filter((detection) => detection.kind === "right");
    for (const detection of right.sort((a, b) => b.score - a.score)) {
      const free = this.truths.filter(
        (truth) => truth.state !== "crowd" && truth.foundAt < 0 && truth.label === detection.label,
      );
      const best = nearest(free, (truth) => 1 - overlap(truth.box, detection.box));
      if (best && overlap(best.box, detection.box) > 0) best.foundAt = detection.score;
    }
  }

  /** The boxes by layer at a score. */
  layers(score) {
    const layers = Object.fromEntries(Object.keys(LAYERS).map((name) => [name, []]));
    for (const truth of this.truths) {
      if (truth.state === "crowd") layers.crowd.push(truth);
      else (truth.foundAt >= score ? layers.found : layers.missed).push(truth);
    }
    for (const detection of this.detections) {
      if (detection.score >= score) (layers[detection.kind] ?? layers.wrong).push(detection);
    }
    return layers;
  }

  /** Mistakes at a score: [{kind, label, score}], score null for the missed. */
  mistakes(score) {
    const { wrong, missed } = this.layers(score);
    return [...wrong, ...missed.map((truth) => ({ kind: "Miss", label: truth.label, score: null }))];
  }

  /** The thumbnail beneath an empty drawing of the image's size. */
  frame() {
    const { width, height, thumbnail, name } = this.image;
    this.drawing = svg("svg", {
      viewBox: `0 0 ${width || 1} ${height || 1}`,
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    });
    const picture = thumbnail ? element("img", { src: thumbnail, alt: name, decoding: "async" }) : null;
    return element(
      "span",
      { class: "picture", style: { "aspect-ratio": `${width || 1} / ${height || 1}` } },
      picture,
      this.drawing,
    );
  }

  /** All boxes of a layer as one path: quick enough to follow the slider on every thumbnail. */
  drawSmall(score, shown) {
    const layers = this.visible(score, shown);
    const outline = ({ box: [x1, y1, x2, y2] }) => `M${x1} ${y1}H${x2}V${y2}H${x1}z`;
    const paths = Object.entries(layers).filter(([, boxes]) => boxes.length);
    const halo = paths.map(([, boxes]) => boxes.map(outline).join("")).join("");
    this.drawing.replaceChildren(
      svg("path", { class: "box halo", d: halo }),
      ...paths.map(([name, boxes]) => svg("path", { class: `box ${name}`, d: boxes.map(outline).join("") })),
    );
  }

  /** Each box by itself, mistakes with their names, the others when pointed at. */
  drawLarge(score, shown) {
    const letters = Math.max(this.image.width, this.image.height) / 48;
    const one = (layer) => (box) => {
      const [x1, y1, x2, y2] = box.box;
      const place = { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1) };
      const mistake = layer === "wrong" || layer === "missed";
      const y = y1 > letters * 1.4 ? y1 - letters * 0.35 : y1 + letters * 1.1;
      const atRight = x1 > 0.75 * this.image.width;
      const text = {
        class: `box-name ${layer}`,
        x: atRight ? x2 : x1,
        y,
        "text-anchor": atRight ? "end" : "start",
        style: { "font-size": `${letters}px` },
      };
      return svg(
        "g",
        { class: mistake ? "mistake" : null },
        svg("rect", { class: "box halo", ...place }),
        svg("rect", { class: `box ${layer}`, ...place }),
        svg("text", text, this.told(box, layer)),
      );
    };
    const layers = Object.entries(this.visible(score, shown));
    this.drawing.replaceChildren(...layers.flatMap(([layer, boxes]) => boxes.map(one(layer))));
  }

  visible(score, { truths, detections }) {
    const layers = this.layers(score);
    for (const name of ["crowd", "found", "missed"]) if (!truths) layers[name] = [];
    for (const name of ["ignored", "right", "wrong"]) if (!detections) layers[name] = [];
    return layers;
  }

  told({ label, score, kind }, layer) {
    const name = this.names[label] ?? String(label);
    if (layer === "missed") return `missed: ${name}`;
    if (layer === "found" || layer === "crowd") return `${layer}: ${name}`;
    return `${name} ${score.toFixed(2)}${layer === "wrong" ? ` ${kind}` : ""}`;
  }

  summary(score) {
    const { right, wrong, missed } = this.layers(score);
    return `${right.length} right, ${wrong.length} wrong, ${missed.length} missed`;
  }

  /** The wrong detections by kind: "3 badly placed (Loc), 1 nothing there (Bkg)". */
  wrongByKind(score) {
    const { wrong } = this.layers(score);
    const numbers = Object.keys(KINDS).map((kind) => [kind, wrong.filter((one) => one.kind === kind).length]);
    return numbers
      .filter(([, number]) => number)
      .map(([kind, number]) => `${number} ${KINDS[kind]} (${kind})`)
      .join(", ");
  }
}

/** Intersection over union of two boxes x1, y1, x2, y2. */
function overlap(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return (width * height) / (area(a) + area(b) - width * height);
}

/** The legend of the layers, truths then detections. */
function drawLegend(place) {
  const order = ["found", "missed", "crowd", "right", "wrong", "ignored"];
  const patch = (layer) => {
    const line = svg("line", { x1: 1, x2: 23, y1: 6, y2: 6, class: `box ${layer}` });
    return element(
      "span",
      { class: "key" },
      svg("svg", { width: 24, height: 12, "aria-hidden": "true" }, line),
      LAYERS[layer],
    );
  };
  place.replaceChildren(...order.map(patch));
}

/** Which boxes the two check marks show. */
const shownBoxes = () => ({ truths: byId("show-truths").checked, detections: byId("show-detections").checked });

/** The dialog: images one after another, each as panels [{title, picture}] beside each other. */
class Viewer {
  constructor(slider) {
    this.slider = slider;
    this.dialog = byId("viewer");
    byId("viewer-previous").addEventListener("click", () => this.go(-1));
    byId("viewer-next").addEventListener("click", () => this.go(1));
    byId("viewer-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.go(-1);
      if (event.key === "ArrowRight") this.go(1);
    });
  }

  /** `views` are {name, panels}; `at` is the first to show. */
  open(views, at) {
    Object.assign(this, { views, at });
    this.dialog.showModal();
    this.draw();
  }

  go(step) {
    this.at = (this.at + step + this.views.length) % this.views.length;
    this.draw();
  }

  draw() {
    const { name, panels } = this.views[this.at];
    const { score } = this.slider;
    byId("viewer-name").textContent = `${name} (${this.at + 1} of ${this.views.length})`;
    byId("viewer-panels").replaceChildren(
      ...panels.map(({ title, picture }) => {
        const frame = picture.frame();
        const shape = picture.image.width / picture.image.height || 1;
        picture.drawLarge(score, shownBoxes());
        return element(
          "figure",
          { style: { "--shape": shape } },
          frame,
          title ? element("figcaption", {}, title) : null,
        );
      }),
    );
    const told = panels.map(({ title, picture }) => {
      const kinds = picture.wrongByKind(score);
      return element(
        "p",
        {},
        `${title ? `${title}; ` : ""}${picture.summary(score)}${kinds ? `. Wrong: ${kinds}` : ""}.`,
      );
    });
    byId("viewer-summary").replaceChildren(
      ...told,
      element("p", {}, `Scores from ${score.toFixed(2)}. Point at a box for its name.`),
    );
  }
}
