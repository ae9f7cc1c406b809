// Images with the most errors, filtered by class and kind of error.

import { byId, element, option, plural, remove } from "./base.js";
import { KINDS, Picture, Viewer, drawLegend, shownBoxes } from "./pictures.js";

/** Draws the images, which follow the slider and the filters. */
export function drawGallery(images, names, slider, hasMasks) {
  if (!images?.length) {
    remove("gallery");
    return;
  }
  if (!hasMasks) remove("gallery-masks");
  const viewer = new Viewer(slider);
  const cards = images.map((image) => galleryCard(image, names, enlarge));
  const classFilter = byId("gallery-class");
  const kindFilter = byId("gallery-kind");
  classFilter.replaceChildren(option("", "all classes"), ...names.map((name, label) => option(label, name)));
  kindFilter.replaceChildren(
    option("", "all kinds"),
    ...Object.entries(KINDS).map(([kind, name]) => option(kind, `${kind}: ${name}`)),
  );

  function enlarge(card) {
    const visible = cards.filter(({ node }) => !node.hidden);
    // The dialog gets its own pictures, so that the thumbnails do not change.
    const enlarged = visible.map(({ image }) => ({
      name: image.name,
      panels: [{ title: null, picture: new Picture(image, image.detections, names) }],
    }));
    viewer.open(enlarged, visible.indexOf(card));
  }
  function draw() {
    const isMatch = ({ kind, label }) =>
      (!kindFilter.value || kind === kindFilter.value) && (!classFilter.value || label === Number(classFilter.value));
    const hasFilter = Boolean(kindFilter.value || classFilter.value);
    for (const { picture, caption, node } of cards) {
      node.hidden = hasFilter && !picture.errors(slider.score).some(isMatch);
      if (node.hidden) continue;
      picture.drawSmall(slider.score, shownBoxes());
      caption.textContent = picture.summary(slider.score);
    }
    const visible = cards.filter(({ node }) => !node.hidden).length;
    byId("gallery-count").textContent =
      `${visible} of ${plural(cards.length, "image")}${scoreNote(images, slider.score)}`;
  }
  for (const control of ["gallery-class", "gallery-kind", "show-ground-truths", "show-detections"]) {
    byId(control).addEventListener("change", draw);
  }
  drawLegend(byId("gallery-legend"));
  byId("gallery-pictures").replaceChildren(...cards.map(({ node }) => node));
  slider.onChange(draw, byId("gallery"));
}

/** Returns an image with its drawing, its caption and its element. */
function galleryCard(image, names, enlarge) {
  const picture = new Picture(image, image.detections, names);
  const caption = element("span", { class: "errors" });
  const card = { image, picture, caption };
  const button = element(
    "button",
    { type: "button", class: "enlarge", "aria-label": `Enlarge ${image.name}`, onclick: () => enlarge(card) },
    picture.frame(),
  );
  const name = element("span", { class: "name", title: image.name }, image.name);
  card.node = element("figure", {}, button, element("figcaption", {}, name, caption));
  return card;
}

/** Returns a note if the threshold is below the lowest score of the detections on the page. */
function scoreNote(images, score) {
  const lowest = Math.min(...images.flatMap(({ detections }) => detections.map((detection) => detection[5])));
  if (score >= lowest || !Number.isFinite(lowest)) return "";
  return `; detections with a score below ${lowest.toFixed(2)} are not included`;
}
