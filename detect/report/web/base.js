// Shared helpers: elements, numbers as text, the tooltip, the theme.
// Text from the data is inserted as text nodes and attributes, never as markup.

export const UNKNOWN = "–";

export const byId = (id) => document.getElementById(id);

/**
 * Creates an HTML element.
 *
 * Attributes named `on…` are event listeners, `style` is an object of properties, and children may be strings.
 */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Creates an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([key, text]) => node.style.setProperty(key, text));
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && isKnown(value)) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter(isKnown));
  return node;
}

/** Creates an option of a select element. */
export const option = (value, text) => element("option", { value }, text);

export const isKnown = (value) => value !== null && value !== undefined;

/** Formats a share in per cent with one decimal, without the unit. */
export const percent = (share) => (isKnown(share) ? (100 * share).toFixed(1) : UNKNOWN);

/** Formats a share in per cent with the unit. */
export const percentSign = (share) => (isKnown(share) ? `${percent(share)} %` : UNKNOWN);

const thousands = new Intl.NumberFormat("en");

export const count = (number) => (isKnown(number) ? thousands.format(number) : UNKNOWN);

/** Formats a difference of two shares in percentage points: +1.2, −0.3, 0.0. */
export function signed(difference) {
  if (!isKnown(difference)) return UNKNOWN;
  const text = Math.abs(100 * difference).toFixed(1);
  if (text === "0.0") return text;
  return (difference > 0 ? "+" : "−") + text;
}

export const rangeText = ([low, high], format = percent) => `${format(low)} … ${format(high)}`;

export const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** Returns the item with the smallest absolute distance. */
export function nearest(items, distance) {
  let best;
  for (const item of items) if (best === undefined || Math.abs(distance(item)) < Math.abs(distance(best))) best = item;
  return best;
}

/** Returns the colour of a class or run: one of seven that everybody can distinguish, as on drawn images. */
export const colourOf = (label) => `var(--colour-${label % 7})`;

/** Shows lines of text near a point of the window. */
export function showTooltip(x, y, lines) {
  const tooltip = byId("tooltip");
  tooltip.replaceChildren(...lines.map((line) => element("div", {}, line)));
  tooltip.hidden = false;
  const { width, height } = tooltip.getBoundingClientRect();
  const left = x + 14 + width > innerWidth ? x - 14 - width : x + 14;
  tooltip.style.left = `${Math.max(4, left)}px`;
  tooltip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - height - 4))}px`;
}

export function hideTooltip() {
  byId("tooltip").hidden = true;
}

/** Removes an element, such as a section without data. */
export function remove(id) {
  byId(id)?.remove();
}

/** Enables the button that switches between light and dark theme; before its first use the system's theme applies. */
export function enableTheme() {
  const button = byId("theme");
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const setLabel = () => {
    button.textContent = isDark() ? "Light" : "Dark";
  };
  button.setAttribute("aria-label", "Switch between the light and the dark theme");
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    setLabel();
  });
  system.addEventListener("change", setLabel);
  setLabel();
}

/** Opens collapsed elements for printing and closes them afterwards. */
export function enablePrinting() {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const details of opened) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
  });
}

/** Returns a function that calls `draw` at most once per frame. */
export function oncePerFrame(draw) {
  let isWaiting = false;
  return () => {
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(() => {
      isWaiting = false;
      draw();
    });
  };
}
