// The words that all the rest is written in: elements, numbers, the tooltip, the theme.
// Text from the data only ever becomes text nodes and attributes, never markup.

const NONE = "–";

const byId = (id) => document.getElementById(id);

/** An HTML element. `on…` attributes are listeners, `style` is an object, strings among the children become text. */
function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([key, one]) => node.style.setProperty(key, one));
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const known = (value) => value !== null && value !== undefined;

/** A share in per cent with one decimal; the unit is written beside it or in the heading. */
const percent = (share) => (known(share) ? (100 * share).toFixed(1) : NONE);

const percentSign = (share) => (known(share) ? `${percent(share)} %` : NONE);

const thousands = new Intl.NumberFormat("en");

const count = (number) => (known(number) ? thousands.format(number) : NONE);

/** A difference of two shares in points: +1.2, −0.3, 0.0. */
function signed(difference) {
  if (!known(difference)) return NONE;
  const text = Math.abs(100 * difference).toFixed(1);
  if (text === "0.0") return text;
  return (difference > 0 ? "+" : "−") + text;
}

const span = ([low, high], format = percent) => `${format(low)} … ${format(high)}`;

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** The colour of a class or a run: seven that anyone can tell apart, the same as on the drawn pictures. */
const colourOf = (label) => `var(--colour-${label % 7})`;

/** Shows lines of text near a place of the window. */
function showTip(x, y, lines) {
  const tip = byId("tooltip");
  tip.replaceChildren(...lines.map((line) => element("div", {}, line)));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 14 + width > innerWidth ? x - 14 - width : x + 14;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - height - 4))}px`;
}

function hideTip() {
  byId("tooltip").hidden = true;
}

/** Takes a section away, for data that has nothing for it. */
function drop(id) {
  byId(id)?.remove();
}

/** Switches between light and dark; until the first click the system decides. */
function enableTheme() {
  const button = byId("theme");
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const label = () => (button.textContent = isDark() ? "Light" : "Dark");
  button.setAttribute("aria-label", "Switch between light and dark");
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    label();
  });
  system.addEventListener("change", label);
  label();
}

/** Printing shows what is folded, and folds it again. */
function enablePrinting() {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((details) => (details.open = true));
  });
  addEventListener("afterprint", () => opened.forEach((details) => (details.open = false)));
}

/** Calls `draw` at most once a frame, however often it is asked to. */
function oncePerFrame(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
}
