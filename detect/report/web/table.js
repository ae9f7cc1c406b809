// A table that can be sorted by its columns and filtered by name.

import { element, isKnown } from "./base.js";

/**
 * Builds the table in `container` and returns {refresh}, which updates the columns marked `live`.
 *
 * A column is {name, title, unit, value: row => sort key, show: row => text or node, live}. The first column names the
 * row. `onPick(row)` is called for a click on a name.
 */
export function sortableTable(container, columns, rows, { label, filterFrom = 12, onPick = null }) {
  const body = element("tbody");
  const lines = rows.map((row) => tableLine(columns, row, onPick));
  const headings = columns.map((column) => heading(column, () => sort(column)));
  let sorted = { column: null, isDescending: false };

  function sort(column) {
    // The first click sorts numbers in descending, names in ascending order.
    const isDescending = sorted.column === column ? !sorted.isDescending : column !== columns[0];
    sorted = { column, isDescending };
    lines.sort((a, b) => compare(column.value(a.row), column.value(b.row), isDescending));
    body.replaceChildren(...lines.map((line) => line.node));
    headings.forEach((node, i) => {
      if (columns[i] === column) node.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
      else node.removeAttribute("aria-sort");
    });
  }

  function refresh() {
    for (const { row, cells } of lines) {
      columns.forEach((column, i) => {
        if (column.live) cells[i].textContent = column.show(row);
      });
    }
  }

  body.append(...lines.map((line) => line.node));
  const table = element(
    "table",
    { class: "data", "aria-label": label },
    element("thead", {}, element("tr", {}, headings)),
    body,
  );
  const frame = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, table);
  container.replaceChildren(...(rows.length >= filterFrom ? [filterBox(lines, columns[0])] : []), frame);
  return { refresh };
}

function heading(column, sort) {
  const unit = column.unit ? element("small", {}, ` ${column.unit}`) : null;
  const button = element("button", { type: "button", title: column.title, onclick: sort }, column.name, unit);
  return element("th", { scope: "col", class: column.wide ? "wide" : null }, button);
}

function tableLine(columns, row, onPick) {
  const [name, ...others] = columns;
  const text = name.show(row);
  const pick = onPick ? element("button", { type: "button", class: "pick", onclick: () => onPick(row) }, text) : text;
  const cells = [
    element("th", { scope: "row" }, pick),
    ...others.map((column) => element("td", { class: column.wide ? "wide" : "number" }, column.show(row))),
  ];
  return { row, cells, node: element("tr", {}, cells) };
}

/** Compares two sort keys; unknown values come last in both orders. */
function compare(a, b, isDescending) {
  if (!isKnown(a) || !isKnown(b)) return isKnown(b) - isKnown(a);
  const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  return isDescending ? -order : order;
}

function filterBox(lines, column) {
  const matches = element("output");
  const input = element("input", {
    type: "search",
    placeholder: "Filter by name",
    "aria-label": "Filter by name",
    oninput: () => {
      const pattern = input.value.trim().toLowerCase();
      for (const line of lines) line.node.hidden = !column.value(line.row).toLowerCase().includes(pattern);
      const visible = lines.filter((line) => !line.node.hidden).length;
      matches.textContent = pattern ? `${visible} of ${lines.length}` : "";
    },
  });
  return element("div", { class: "controls row filter" }, input, matches);
}
