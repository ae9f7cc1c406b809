// Sends an image to the service and draws its detections. The score and the classes are chosen without a new request.

import { paint } from "./masks.js";

const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#0072b2"];
const LOWEST_SCORE = 0.05;
const MASK_OPACITY = 0.45;
const DRAWN_SIDE = 1000; // pixels

const byId = (id) => document.getElementById(id);
const state = { model: null, image: null, answer: null, hidden: new Set(), name: "image" };

function element(tag, attributes = {}, ...children) {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children);
  return node;
}

function say(text, bad = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", bad);
}

// ---- the request ----------------------------------------------------------------------------------------------------

async function describeModel() {
  const response = await fetch("model");
  state.model = await response.json();
  const { classes, score, masks, needs_key: needsKey } = state.model;
  const names = classes.slice(0, 12).join(", ") + (classes.length > 12 ? ", …" : "");
  byId("model").textContent = `${masks ? "Boxes and masks" : "Boxes"} of ${classes.length} class${classes.length === 1 ? "" : "es"}: ${names}`;
  byId("key-row").hidden = !needsKey;
  setScore(Math.max(score, 0.5));
}

const described = describeModel().catch(() => say("The service does not answer; reload the page.", true));
let latest = 0;

/** Detects in an image file. If several are given quickly, the last one is shown. */
async function detect(file) {
  const request = ++latest;
  await described;
  if (!state.model) return;
  say("Detecting …");
  const headers = { "Content-Type": file.type || "application/octet-stream" };
  if (byId("key").value) headers.Authorization = `Bearer ${byId("key").value}`;
  const lowest = Math.max(state.model.min_score, LOWEST_SCORE);
  const start = performance.now();
  try {
    const response = await fetch(`predict?score=${lowest}`, { method: "POST", body: file, headers });
    const answer = await response.json();
    if (request !== latest) return;
    if (!response.ok) throw new Error(answer.error);
    const image = await createImageBitmap(file);
    if (request !== latest) return;
    Object.assign(state, { answer, image, name: file.name || "image" });
    say(`${state.name}: ${answer.width} × ${answer.height} pixels, ${Math.round(performance.now() - start)} ms`);
    byId("result").hidden = false;
    listClasses();
    show();
  } catch (error) {
    if (request === latest) say(error.message, true);
  }
}

// ---- the picture and the lists --------------------------------------------------------------------------------------

const threshold = () => Number(byId("score").value);

function setScore(score) {
  byId("score").value = score;
  byId("score-value").textContent = threshold().toFixed(2);
}

/** Returns the detections at the chosen score and of the chosen classes, best first. */
function shown() {
  return state.answer.detections.filter(({ score, label }) => score >= threshold() && !state.hidden.has(label));
}

function show() {
  if (!state.answer) return;
  const detections = shown();
  draw(byId("picture"), detections);
  const rows = detections.map(({ name, score, box }) => {
    const corners = box.map((value) => value.toFixed(0)).join(", ");
    return element("tr", {}, ...[name, score.toFixed(2), corners].map((text) => element("td", {}, text)));
  });
  byId("rows").replaceChildren(...rows);
  const summary = `${detections.length} object${detections.length === 1 ? "" : "s"}`;
  byId("count").textContent = summary;
  byId("picture").ariaLabel = `${state.name} with ${summary} marked`;
  for (const label of byId("classes").children) {
    const count = state.answer.detections.filter(
      (one) => one.score >= threshold() && String(one.label) === label.dataset.label,
    ).length;
    label.querySelector("span").textContent = count;
  }
}

function listClasses() {
  const labels = [...new Set(state.answer.detections.map(({ label }) => label))].toSorted((a, b) => a - b);
  byId("classes").replaceChildren(
    ...labels.map((label) => {
      const box = element("input", { type: "checkbox", checked: !state.hidden.has(label) });
      box.addEventListener("change", () => {
        if (box.checked) state.hidden.delete(label);
        else state.hidden.add(label);
        show();
      });
      const swatch = element("i");
      swatch.style.background = colourOf(label);
      const row = element("label", {}, box, swatch, state.model.classes[label], element("span"));
      row.dataset.label = label;
      return row;
    }),
  );
}

const colourOf = (label) => COLOURS[label % COLOURS.length];

/** Draws at the resolution of the screen, where lines and text of a small image are legible. */
function draw(canvas, detections) {
  const { width, height } = state.answer;
  const scale = Math.max(1, DRAWN_SIDE / Math.max(width, height));
  Object.assign(canvas, { width: Math.round(scale * width), height: Math.round(scale * height) });
  const context = canvas.getContext("2d");
  context.drawImage(pictureWithMasks(detections), 0, 0, canvas.width, canvas.height);
  const unit = Math.max(canvas.width, canvas.height) / DRAWN_SIDE;
  context.lineWidth = 2 * unit;
  context.font = `600 ${14 * unit}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (const { box, label, name, score } of detections.toReversed()) {
    const [left, top, right, bottom] = box.map((value) => scale * value);
    context.strokeStyle = context.fillStyle = colourOf(label);
    context.strokeRect(left, top, right - left, bottom - top);
    const text = `${name} ${score.toFixed(2)}`;
    const textTop = Math.max(0, top - 18 * unit);
    context.fillRect(left, textTop, context.measureText(text).width + 8 * unit, 18 * unit);
    context.fillStyle = "#000000";
    context.fillText(text, left + 4 * unit, textTop + 2 * unit);
  }
}

function pictureWithMasks(detections) {
  const { width, height } = state.answer;
  const picture = element("canvas", { width, height });
  const context = picture.getContext("2d", { willReadFrequently: true });
  context.drawImage(state.image, 0, 0, width, height);
  const masks = detections.filter(({ segmentation }) => segmentation);
  if (masks.length) {
    const pixels = context.getImageData(0, 0, width, height);
    for (const { segmentation, label } of masks) {
      const colour = [1, 3, 5].map((start) => parseInt(colourOf(label).slice(start, start + 2), 16));
      paint(pixels.data, segmentation, colour, MASK_OPACITY);
    }
    context.putImageData(pixels, 0, 0);
  }
  return picture;
}

function download(blob, suffix) {
  const link = element("a", { href: URL.createObjectURL(blob), download: state.name.replace(/\.[^.]*$/, "") + suffix });
  link.click();
  URL.revokeObjectURL(link.href);
}

// ---- ways to give an image ------------------------------------------------------------------------------------------

byId("file").addEventListener("change", ({ target }) => {
  if (target.files.length) detect(target.files[0]);
  target.value = "";
});
byId("controls").addEventListener("submit", (event) => event.preventDefault());

addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files.length) detect(clipboardData.files[0]);
});

for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
}
addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) document.body.classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) detect(file);
  else say("Drop an image file.", true);
});

// ---- the camera, which browsers offer on https and on this machine ------------------------------------------------

byId("camera").hidden = !navigator.mediaDevices;
byId("camera").addEventListener("click", async () => {
  try {
    byId("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    await byId("video").play();
    byId("camera-view").hidden = false;
    byId("take").focus();
  } catch (error) {
    say(`The camera cannot be used: ${error.message}`, true);
  }
});
byId("stop").addEventListener("click", stopCamera);
byId("take").addEventListener("click", () => {
  const video = byId("video");
  const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  stopCamera();
  canvas.toBlob((blob) => detect(new File([blob], "camera.png", { type: "image/png" })));
});

function stopCamera() {
  for (const track of byId("video").srcObject?.getTracks() ?? []) track.stop();
  byId("video").srcObject = null;
  byId("camera-view").hidden = true;
  byId("camera").focus();
}

// ---- the other controls ---------------------------------------------------------------------------------------------

byId("score").addEventListener("input", () => {
  setScore(threshold());
  show();
});
byId("json").addEventListener("click", () => {
  const { height, width } = state.answer;
  const text = JSON.stringify({ height, width, detections: shown() }, null, 1);
  download(new Blob([text], { type: "application/json" }), ".json");
});
byId("png").addEventListener("click", () => byId("picture").toBlob((blob) => download(blob, "-detections.png")));

