// A table that sorts by its headings and can be filtered by name.

/**
 * Builds the table into `place` and gives back {refresh}, which writes the columns marked `live` anew.
 *
 * A column is {name, title, unit, value: row => what to sort by, show: row => text or node, live}. The first one names
 * the row. `onpick(row)` is called for a click on a name.
 */
function sortableTable(place, columns, rows, { label, filterFrom = 12, onpick = null }) {
  const body = element("tbody");
  const lines = rows.map((row) => tableLine(columns, row, onpick));
  const headings = columns.map((column) => heading(column, () => sort(column)));
  let sorted = { column: null, falling: false };

  function sort(column) {
    // Numbers begin with the largest, names with A.
    const first = column !== columns[0];
    const falling = sorted.column === column ? !sorted.falling : first;
    sorted = { column, falling };
    lines.sort((a, b) => compared(column.value(a.row), column.value(b.row), falling));
    body.replaceChildren(...lines.map((line) => line.node));
    headings.forEach((node, i) => {
      if (columns[i] === column) node.setAttribute("aria-sort", falling ? "descending" : "ascending");
      else node.removeAttribute("aria-sort");
    });
  }

  function refresh() {
    for (const { row, cells } of lines)
      columns.forEach((column, i) => column.live && (cells[i].textContent = column.show(row)));
  }

  body.append(...lines.map((line) => line.node));
  const table = element(
    "table",
    { class: "data", "aria-label": label },
    element("thead", {}, element("tr", {}, headings)),
    body,
  );
  const frame = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, table);
  place.replaceChildren(...(rows.length >= filterFrom ? [filterBox(lines, columns[0])] : []), frame);
  return { refresh };
}

function heading(column, sort) {
  const unit = column.unit ? element("small", {}, ` ${column.unit}`) : null;
  const button = element("button", { type: "button", title: column.title, onclick: sort }, column.name, unit);
  return element("th", { scope: "col", class: column.wide ? "wide" : null }, button);
}

function tableLine(columns, row, onpick) {
  const [name, ...others] = columns;
  const shown = name.show(row);
  const pick = onpick ? element("button", { type: "button", class: "pick", onclick: () => onpick(row) }, shown) : shown;
  const cells = [
    element("th", { scope: "row" }, pick),
    ...others.map((column) => element("td", { class: column.wide ? "wide" : "number" }, column.show(row))),
  ];
  return { row, cells, node: element("tr", {}, cells) };
}

/** Unknown values come last, whichever way. */
function compared(a, b, falling) {
  if (!known(a) || !known(b)) return known(b) - known(a);
  const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  return falling ? -order : order;
}

function filterBox(lines, column) {
  const found = element("output");
  const input = element("input", {
    type: "search",
    placeholder: "Filter by name",
    "aria-label": "Filter by name",
    oninput: () => {
      const wanted = input.value.trim().toLowerCase();
      for (const line of lines) line.node.hidden = !column.value(line.row).toLowerCase().includes(wanted);
      const left = lines.filter((line) => !line.node.hidden).length;
      found.textContent = wanted ? `${left} of ${lines.length}` : "";
    },
  });
  return element("div", { class: "controls row filter" }, input, found);
}
