// Images with their ground truths and detections, and the dialog that enlarges them.

import { byId, element, nearest, svg } from "./base.js";

export const KINDS = {
  Cls: "wrong class",
  Loc: "poorly localized",
  Both: "wrong class and poorly localized",
  Dupe: "duplicate",
  Bkg: "background",
  Miss: "missed",
};

export const NO_DETECTIONS = "no detections at this score";

/** Layers of a drawing from bottom to top, with their texts in the legend. */
const LAYERS = {
  crowd: "ground truth, ignored",
  matched: "ground truth, detected",
  ignored: "detection, ignored",
  correct: "detection, correct",
  wrong: "detection, wrong",
  missed: "ground truth, missed",
};

/** One image with the boxes of one detector. */
export class Picture {
  constructor(image, detections, names) {
    this.image = image;
    this.names = names;
    this.detections = detections.map(([x1, y1, x2, y2, label, score, kind, mask]) => ({
      box: [x1, y1, x2, y2],
      label,
      score,
      kind,
      mask,
    }));
    this.groundTruths = image.ground_truths.map(([x1, y1, x2, y2, label, state, mask]) => ({
      box: [x1, y1, x2, y2],
      label,
      state,
      mask,
      score: -1,
    }));
    this.match();
  }

  /** Gives each ground truth the score of its correct detection; at higher thresholds it is missed. */
  match() {
    const correct = this.detections.filter((detection) => detection.kind === "correct");
    for (const detection of correct.toSorted((a, b) => b.score - a.score)) {
      const free = this.groundTruths.filter(
        (object) => object.state !== "crowd" && object.score < 0 && object.label === detection.label,
      );
      const best = nearest(free, (object) => 1 - overlap(object.box, detection.box));
      if (best && overlap(best.box, detection.box) > 0) best.score = detection.score;
    }
  }

  /** Returns the boxes by layer at a score threshold. */
  layers(score) {
    const layers = Object.fromEntries(Object.keys(LAYERS).map((name) => [name, []]));
    for (const object of this.groundTruths) {
      if (object.state === "crowd") layers.crowd.push(object);
      else (object.score >= score ? layers.matched : layers.missed).push(object);
    }
    for (const detection of this.detections) {
      if (detection.score >= score) (layers[detection.kind] ?? layers.wrong).push(detection);
    }
    return layers;
  }

  /** Returns the errors at a score threshold: [{kind, label}]. */
  errors(score) {
    const { wrong, missed } = this.layers(score);
    return [...wrong, ...missed.map(({ label }) => ({ kind: "Miss", label }))];
  }

  /** Returns the thumbnail with an empty drawing of the image's size on top. */
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

  /** Draws each layer as one path, fast enough for all thumbnails to follow the slider. */
  drawSmall(score, shown) {
    const layers = this.visible(score, shown);
    const outline = ({ box: [x1, y1, x2, y2] }) => `M${x1} ${y1}H${x2}V${y2}H${x1}z`;
    const paths = Object.entries(layers).filter(([, boxes]) => boxes.length);
    const halo = paths.map(([, boxes]) => boxes.map(outline).join("")).join("");
    this.drawing.replaceChildren(
      ...maskPaths(paths),
      svg("path", { class: "box halo", d: halo }),
      ...paths.map(([name, boxes]) => svg("path", { class: `box ${name}`, d: boxes.map(outline).join("") })),
    );
  }

  /** Draws each box separately, with a label, which is always visible for errors, else on hover. */
  drawLarge(score, shown) {
    const layers = Object.entries(this.visible(score, shown));
    this.drawing.replaceChildren(
      ...maskPaths(layers),
      ...layers.flatMap(([layer, boxes]) => boxes.map((box) => this.labelledBox(box, layer))),
    );
  }

  labelledBox(object, layer) {
    const fontSize = Math.max(this.image.width, this.image.height) / 48;
    const [x1, y1, x2, y2] = object.box;
    const rectangle = { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1) };
    const isError = layer === "wrong" || layer === "missed";
    const isAtRight = x1 > 0.75 * this.image.width;
    const label = {
      class: `box-name ${layer}`,
      x: isAtRight ? x2 : x1,
      y: y1 > fontSize * 1.4 ? y1 - fontSize * 0.35 : y1 + fontSize * 1.1,
      "text-anchor": isAtRight ? "end" : "start",
      style: { "font-size": `${fontSize}px` },
    };
    return svg(
      "g",
      { class: isError ? "error" : null },
      svg("rect", { class: "box halo", ...rectangle }),
      svg("rect", { class: `box ${layer}`, ...rectangle }),
      svg("text", label, this.boxName(object, layer)),
    );
  }

  visible(score, { groundTruths, detections }) {
    const layers = this.layers(score);
    for (const name of ["crowd", "matched", "missed"]) if (!groundTruths) layers[name] = [];
    for (const name of ["ignored", "correct", "wrong"]) if (!detections) layers[name] = [];
    return layers;
  }

  boxName({ label, score, kind }, layer) {
    const name = this.names[label] ?? String(label);
    const prefixes = { missed: "missed", matched: "detected", crowd: "ignored" };
    if (layer in prefixes) return `${prefixes[layer]}: ${name}`;
    return `${name} ${score.toFixed(2)}${layer === "wrong" ? ` ${kind}` : ""}`;
  }

  hasDetections(score) {
    return this.detections.some((detection) => detection.score >= score);
  }

  summary(score) {
    const { correct, wrong, missed } = this.layers(score);
    const found = this.hasDetections(score) ? `${correct.length} correct, ${wrong.length} wrong` : NO_DETECTIONS;
    return `${found}, ${missed.length} missed`;
  }

  /** Returns the wrong detections by kind: "3 poorly localized (Loc), 1 background (Bkg)". */
  wrongByKind(score) {
    const { wrong } = this.layers(score);
    const numbers = Object.keys(KINDS).map((kind) => [kind, wrong.filter((detection) => detection.kind === kind).length]);
    return numbers
      .filter(([, number]) => number)
      .map(([kind, number]) => `${number} ${KINDS[kind]} (${kind})`)
      .join(", ");
  }
}

/** Returns a translucent area for each mask of the layers [[name, objects], …]. */
function maskPaths(layers) {
  return layers.flatMap(([layer, objects]) =>
    objects.filter(({ mask }) => mask).map(({ mask }) => svg("path", { class: `mask ${layer}`, d: mask })),
  );
}

/** Returns the IoU of two boxes x1, y1, x2, y2. */
function overlap(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return (width * height) / (area(a) + area(b) - width * height);
}

/** Draws the legend of the layers, ground truths first. */
export function drawLegend(container) {
  const order = ["matched", "missed", "crowd", "correct", "wrong", "ignored"];
  const patch = (layer) => {
    const line = svg("line", { x1: 1, x2: 23, y1: 6, y2: 6, class: `box ${layer}` });
    return element(
      "span",
      { class: "key" },
      svg("svg", { width: 24, height: 12, "aria-hidden": "true" }, line),
      LAYERS[layer],
    );
  };
  container.replaceChildren(...order.map(patch));
}

/** Returns which kinds of boxes are shown, from the two check boxes. */
export const shownBoxes = () => ({
  groundTruths: byId("show-ground-truths").checked,
  detections: byId("show-detections").checked,
});

/** Dialog that shows images one after another, each with one or more panels {title, picture}. */
export class Viewer {
  constructor(slider) {
    this.slider = slider;
    this.dialog = byId("viewer");
    byId("viewer-previous").addEventListener("click", () => this.go(-1));
    byId("viewer-next").addEventListener("click", () => this.go(1));
    byId("viewer-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close();
    });
    this.dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.go(-1);
      if (event.key === "ArrowRight") this.go(1);
    });
  }

  /** Opens the dialog with images {name, panels}, at this index. */
  open(images, index) {
    Object.assign(this, { images, index });
    this.dialog.showModal();
    this.draw();
  }

  go(step) {
    this.index = (this.index + step + this.images.length) % this.images.length;
    this.draw();
  }

  draw() {
    const { name, panels } = this.images[this.index];
    const { score } = this.slider;
    byId("viewer-name").textContent = `${name} (${this.index + 1} of ${this.images.length})`;
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
    const summaries = panels.map(({ title, picture }) => {
      const kinds = picture.wrongByKind(score);
      return element(
        "p",
        {},
        `${title ? `${title}; ` : ""}${picture.summary(score)}${kinds ? `. Wrong: ${kinds}` : ""}.`,
      );
    });
    byId("viewer-summary").replaceChildren(
      ...summaries,
      element("p", {}, `Score ≥ ${score.toFixed(2)}. Hover over a box to see its label.`),
    );
  }
}
