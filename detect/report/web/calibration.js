// Are the scores what they promise? Of the report: `data`.

/** Precision against score in ten bins, and how many detections each bin holds. */
function drawCalibration() {
  const rows = data.calibration?.rows ?? [];
  if (!rows.some((row) => row.count > 0)) return drop("calibration");
  const most = Math.max(...rows.map((row) => row.count));
  const [width, height, left, bottom, hist] = [560, 400, 46, 40, 70];
  const across = (score) => left + score * (width - left - 10);
  const up = (share) => height - bottom - hist - share * (height - bottom - hist - 10);
  const node = svg("svg", {
    class: "chart",
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": "Precision against score",
  });
  const axes = svg("g", { class: "axes" });
  for (const tick of ticks(0, 1)) {
    const text = (100 * tick).toFixed(0);
    axes.append(
      svg("line", { x1: across(0), x2: across(1), y1: up(tick), y2: up(tick) }),
      svg("text", { x: left - 6, y: up(tick) + 4, "text-anchor": "end" }, text),
      svg("text", { x: across(tick), y: height - bottom + 16, "text-anchor": "middle" }, tick.toFixed(1)),
    );
  }
  axes.append(
    svg("text", { x: across(0.5), y: height - 6, "text-anchor": "middle" }, "Score; below, the number of detections"),
    svg(
      "text",
      { x: 12, y: up(0.5), "text-anchor": "middle", transform: `rotate(-90 12 ${up(0.5)})` },
      "Precision (%)",
    ),
  );
  node.append(
    axes,
    svg("line", {
      class: "line dashed",
      x1: across(0),
      y1: up(0),
      x2: across(1),
      y2: up(1),
      style: { stroke: "var(--quiet)" },
    }),
  );
  for (const row of rows) {
    if (!row.count) continue;
    const wide = across(row.high) - across(row.low) - 2;
    const tall = Math.max(1, ((hist - 12) * row.count) / most);
    const told = [
      element("b", {}, `scores ${row.low.toFixed(1)} … ${row.high.toFixed(1)}`),
      `mean score ${row.score.toFixed(3)}`,
      `precision ${percentSign(row.precision)}`,
      plural(row.count, "detection"),
    ];
    const base = up(0);
    node.append(
      svg(
        "g",
        {
          class: "bin",
          onpointermove: (event) => showTip(event.clientX, event.clientY, told),
          onpointerleave: hideTip,
        },
        svg("title", {}, ""),
        svg("rect", {
          class: "precision",
          x: across(row.low) + 1,
          y: up(row.precision),
          width: wide,
          height: base - up(row.precision),
        }),
        svg("line", {
          class: "gap",
          x1: across(row.score),
          x2: across(row.score),
          y1: up(row.precision),
          y2: up(row.score),
        }),
        svg("circle", { class: "mark", cx: across(row.score), cy: up(row.precision), r: 4.5 }),
        svg("rect", { class: "count", x: across(row.low) + 1, y: height - bottom - tall, width: wide, height: tall }),
      ),
    );
  }
  byId("calibration-chart").replaceChildren(node);
  const total = sum(rows.map((row) => row.count));
  const bias = sum(rows.filter((row) => row.count).map((row) => row.count * (row.score - row.precision))) / total;
  const side = bias > 0 ? "higher than the precision: over-confident" : "lower than the precision: under-confident";
  const way = Math.abs(bias) < 0.01 ? "as high as the precision" : `${percent(Math.abs(bias))} points ${side}`;
  byId("calibration-caption").textContent =
    "Of all detections of a score s, a share s should be right (dashed). " +
    `Expected calibration error ${percentSign(data.calibration.ece)}; on average the scores are ${way}.`;
}
