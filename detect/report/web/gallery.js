// The worst images, by class and by kind of mistake. Of the report: `data`, `names` and `slider`.

function drawGallery() {
  const images = data.gallery ?? [];
  if (!images.length) return drop("gallery");
  const viewer = new Viewer(slider);
  const lowest = Math.min(...images.flatMap(({ detections }) => detections.map(([, , , , , score]) => score)));
  const caption = () => element("span", { class: "mistakes" });
  const cards = images.map((image) => {
    const picture = new Picture(image, image.detections, names);
    const told = caption();
    const button = element(
      "button",
      { type: "button", class: "enlarge", "aria-label": `Enlarge ${image.name}`, onclick: () => enlarge(card) },
      picture.frame(),
    );
    const node = element(
      "figure",
      {},
      button,
      element("figcaption", {}, element("span", { class: "name", title: image.name }, image.name), told),
    );
    const card = { image, picture, told, node };
    return card;
  });
  const ofClass = byId("gallery-class");
  const ofKind = byId("gallery-kind");
  ofClass.replaceChildren(option("", "all classes"), ...names.map((name, label) => option(label, name)));
  ofKind.replaceChildren(
    option("", "all kinds"),
    ...Object.entries(KINDS).map(([kind, name]) => option(kind, `${kind}: ${name}`)),
  );

  function enlarge(card) {
    const listed = cards.filter(({ node }) => !node.hidden);
    // The dialog draws pictures of its own: the thumbnails stay as they are.
    const views = listed.map(({ image }) => ({
      name: image.name,
      panels: [{ title: null, picture: new Picture(image, image.detections, names) }],
    }));
    viewer.open(views, listed.indexOf(card));
  }
  function draw() {
    const shown = shownBoxes();
    const fits = ({ kind, label }) =>
      (!ofKind.value || kind === ofKind.value) && (!ofClass.value || label === Number(ofClass.value));
    let left = 0;
    for (const { picture, told, node } of cards) {
      const mistakes = picture.mistakes(slider.score);
      node.hidden = Boolean(ofKind.value || ofClass.value) && !mistakes.some(fits);
      if (node.hidden) continue;
      left += 1;
      picture.drawSmall(slider.score, shown);
      told.textContent = picture.summary(slider.score);
    }
    const warning =
      slider.score < lowest && Number.isFinite(lowest)
        ? `; detections below ${lowest.toFixed(2)} are not kept here`
        : "";
    byId("gallery-count").textContent = `${left} of ${plural(cards.length, "image")}${warning}`;
  }
  for (const id of ["gallery-class", "gallery-kind", "show-truths", "show-detections"])
    byId(id).addEventListener("change", draw);
  drawLegend(byId("gallery-legend"));
  byId("gallery-pictures").replaceChildren(...cards.map(({ node }) => node));
  slider.onchange(draw, byId("gallery"));
}
