"use strict";
(() => {
  const report = JSON.parse(document.getElementById("report-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const PAIRS = 100; // rows of the table of pairs
  const FEATURES = 6; // of a row, in a gallery; twice as many in a tooltip

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const significant = (number) => {
    if (number === null || !Number.isFinite(number)) return "";
    const rounded = Number(number.toPrecision(3));
    const size = Math.abs(rounded);
    if (size >= 1e3 && size < 1e6) return String(rounded);
    return size !== 0 && (size >= 1e6 || size < 1e-4) ? number.toExponential(2).replace(/e([+-])(\d)$/, "e$10$2") : number.toPrecision(3);
  };

  // ------------------------------------------------------------------------------------------------------------- tables

  const sorting = (cell) => {
    const exact = cell.dataset.value;
    return exact === undefined ? cell.textContent.trim() : Number(exact);
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return a === b ? 0 : null; // what is missing stays last
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  };
  const sort = (table, heading) => {
    const column = [...heading.parentNode.children].indexOf(heading);
    const falling = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentNode.children) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [row, sorting(row.cells[column])]);
    rows.sort(([, a], [, b]) => compare(a, b) === null ? (a === "") - (b === "") : (falling ? -1 : 1) * compare(a, b));
    body.append(...rows.map(([row]) => row));
  };
  const filter = (part) => {
    const word = (part.querySelector("input[type=search]")?.value || "").toLowerCase();
    const chosen = [...part.querySelectorAll("select[data-column]")].filter((choice) => choice.value !== "");
    const rows = [...part.querySelector("tbody").rows];
    let shown = 0;
    for (const row of rows) {
      const fits = chosen.every((choice) => row.cells[choice.dataset.column].textContent === choice.value);
      row.hidden = !(fits && row.textContent.toLowerCase().includes(word));
      shown += !row.hidden;
    }
    const count = part.querySelector(".count");
    if (count) count.textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
  };
  for (const part of document.querySelectorAll("div.table")) {
    const table = part.querySelector("table");
    for (const heading of table.tHead.rows[0].cells) heading.querySelector("button").addEventListener("click", () => sort(table, heading));
    part.querySelector(".filters")?.addEventListener("input", () => filter(part));
    filter(part);
  }

  // ----------------------------------------------------------------------------------------------------------- examples

  const features = (item, most) => {
    const names = report.examples.names[item.names];
    const list = make("dl");
    item.values.slice(0, most).forEach((value, j) => list.append(make("dt", { textContent: names[j], title: names[j] }), make("dd", { textContent: value })));
    const more = item.values.length - most;
    return make("div", {}, list, more > 0 ? make("p", { textContent: `… and ${more} more` }) : null);
  };
  const card = (number, title, influence, most = FEATURES) => {
    const item = number === null ? { title } : report.examples.items[number];
    const parts = [];
    if (item.image) parts.push(make("img", { src: item.image, alt: `image of ${item.title}` }));
    parts.push(make("strong", { textContent: item.title }));
    if (item.values) parts.push(features(item, most));
    if (item.text) parts.push(make("p", { textContent: item.text }));
    if (influence !== undefined) parts.push(make("span", { className: "influence", textContent: influence }));
    return make("div", { className: item.values || item.text ? "card wide" : "card" }, ...parts);
  };

  // ------------------------------------------------------------------------------------------------------------- charts

  const drawn = new Map();
  const theme = (width) => {
    const light = !dark.matches;
    const [text, soft, line] = [css("--text"), css("--soft"), css("--line")];
    const words = { $accent: css("--accent"), $ceiling: css("--ceiling"), $muted: soft, $text: text };
    const range = light
      ? ["#0072b2", "#b34700", "#00755a", "#8f3f86", "#7a6000", "#444c55", "#a3194d", "#2f5d00"]
      : ["#56b4e9", "#ff9a5c", "#3fcfa6", "#e3a1d8", "#e8cf4a", "#c3ccd5", "#ff8fb0", "#a5d86a"];
    const font = "system-ui, sans-serif";
    const config = {
      background: "transparent", font, view: { stroke: null }, range: { category: range },
      axis: { labelColor: text, titleColor: text, gridColor: line, domainColor: soft, tickColor: soft, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", gridOpacity: 0.7 },
      axisY: { labelLimit: Math.max(110, 0.42 * width) },
      legend: { labelColor: text, titleColor: text, labelFontSize: 12, labelLimit: 220 },
    };
    return { words, config };
  };
  const themed = (spec, words) => JSON.parse(JSON.stringify(spec), (_, value) => (typeof value === "string" && value in words ? words[value] : value));
  const draw = async (id, spec, formatTooltip) => {
    const { words, config } = theme(document.getElementById(id).clientWidth);
    drawn.get(id)?.result?.finalize();
    const tooltip = { id: "hover", disableDefaultStyle: true, ...(formatTooltip ? { formatTooltip } : {}) };
    const result = await vegaEmbed(`#${id}`, themed(spec, words), { actions: false, renderer: "svg", config, tooltip });
    drawn.set(id, { spec, formatTooltip, result });
    const picture = document.querySelector(`#${id} svg`); // named by the element around it
    picture.setAttribute("aria-hidden", "true");
    for (const part of picture.querySelectorAll("[role], [aria-label]")) for (const name of ["role", "aria-label", "aria-roledescription"]) part.removeAttribute(name);
  };
  const ready = Object.entries(report.charts).map(([id, spec]) => draw(id, spec));
  dark.addEventListener("change", () => { for (const [id, { spec, formatTooltip }] of [...drawn]) draw(id, spec, formatTooltip); });

  // --------------------------------------------------------------------------------------------------- one run at a time

  const place = (id) => document.getElementById(id);
  const rowsOf = (pairs) => pairs.predicted.map((predicted, row) => ({ predicted, actual: pairs.actual[row], row }));
  const leftOut = (run, row) => (run.pairs.single ? `training example ${run.pairs.removal[row]}` : `removal ${run.pairs.removal[row]}`);
  const tested = (run, row) => (run.pairs.test_index[row] < 0 ? "whole test set" : `test example ${run.pairs.test_index[row]}`);
  const numbers = (run, row) => {
    const { predicted, actual, actual_se } = run.pairs;
    const error = actual_se[row] === null ? "" : ` ± ${significant(actual_se[row])} (s.e. over seeds)`;
    return [["predicted", significant(predicted[row])], ["actual", significant(actual[row]) + error]];
  };
  const hover = (run) => ({ row }) => {
    const cards = make("div", { className: run.pairs.single ? "both" : "" }, card(run.pairs.train[row], leftOut(run, row), undefined, 2 * FEATURES), card(run.pairs.test[row], tested(run, row), undefined, 2 * FEATURES));
    const lines = numbers(run, row).map(([key, value]) => make("tr", {}, make("td", { className: "key", textContent: key }), make("td", { textContent: value })));
    return make("div", {}, cards, make("table", {}, make("tbody", {}, ...lines))).outerHTML;
  };
  const scatter = (run) => {
    place("pairs").hidden = !run.pairs;
    if (!run.pairs) return null;
    const spec = structuredClone(report.scatter[run.unit]);
    const rows = rowsOf(run.pairs);
    const { length } = rows;
    const lowest = Math.min(...rows.map(({ predicted }) => predicted)), highest = Math.max(...rows.map(({ predicted }) => predicted));
    const ends = run.calibrated ? [lowest, highest].map((value) => ({ predicted: value, actual: value })) : [];
    const sizes = rows.flatMap(({ predicted, actual }) => [Math.abs(predicted), Math.abs(actual)]).filter((size) => size > 0).sort((a, b) => a - b);
    const scale = place("pairs-scale").checked ? { type: "symlog", constant: sizes[Math.floor(sizes.length / 2)] || 1, nice: false } : {};
    for (const layer of spec.layer) {
      for (const side of ["x", "y"]) if (layer.encoding[side]?.scale) Object.assign(layer.encoding[side].scale, scale);
      if (layer.data.name === "pairs") layer.data.values = rows;
      if (layer.data.name === "identity") layer.data.values = ends;
    }
    const subset = length < run.pairs.total ? `${length} of ${run.pairs.total} pairs, drawn at random (seed 0)` : `all ${length} pairs`;
    const line = run.calibrated ? " Dashed: where both are equal." : " The estimate does not claim a scale, so there is no line of equality.";
    place("pairs-caption").textContent = `${run.label}: ${subset}, each one left-out ${run.pairs.single ? "training example" : "set"} and one test example.${line} Point at a pair to see the examples.`;
    place("pairs-chart").setAttribute("aria-label", `Scatter of predicted against actual change, ${run.label}. ${run.said}`);
    pairsTable(run);
    return draw("pairs-chart", spec, hover(run));
  };
  const pairsTable = (run) => {
    const order = run.pairs.predicted.map((_, row) => row).sort((a, b) => Math.abs(run.pairs.actual[b]) - Math.abs(run.pairs.actual[a])).slice(0, PAIRS);
    const title = (number, other) => (number === null ? other : report.examples.items[number].title);
    const rows = order.map((row) => {
      const [[, predicted], [, actual]] = numbers(run, row);
      const words = [title(run.pairs.train[row], leftOut(run, row)), title(run.pairs.test[row], tested(run, row)), predicted, actual];
      return make("tr", {}, ...words.map((word, j) => make("td", { textContent: word, className: j > 1 ? "number" : "" })));
    });
    const head = ["left out", "measured on", "predicted change", "actual change"].map((word) => make("th", { scope: "col" }, make("span", { textContent: word })));
    const caption = `the ${order.length} pairs of the chart whose actual change is largest`;
    place("pairs-table").replaceChildren(make("table", {}, make("caption", { textContent: caption }), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)));
  };
  const gallery = (run) => {
    place("gallery").hidden = run.gallery.length === 0;
    place("gallery-rows").replaceChildren(...run.gallery.map(({ test, title, sides }) => {
      const parts = sides.map(({ kind, items }, side) => {
        const order = ["first", "second"][side];
        const cards = items.map(([number, name, influence]) => make("li", {}, card(number, name, influence)));
        return make("div", { className: order }, make("h4", { textContent: `most ${kind}`, className: order }), make("ul", { className: cards.some((one) => one.querySelector(".wide")) ? "cards" : "cards small" }, ...cards));
      });
      return make("div", { className: "gallery-row" }, make("div", {}, make("h4", { textContent: "test example" }), card(test, title)), ...parts);
    }));
    place("gallery-note").textContent = run.gallery_note;
  };
  const choose = (number) => {
    const run = report.runs[number];
    place("run-said").replaceChildren(...run.lines.map((line) => make("p", { textContent: line })));
    place("run-warnings").replaceChildren(...run.warnings.map((line) => make("li", { textContent: line })));
    place("run-warned").hidden = run.warnings.length === 0;
    place("run-again").textContent = `${run.rerun}\n${run.words}`;
    gallery(run);
    return scatter(run);
  };
  const chooser = place("run-chooser");
  if (chooser) {
    chooser.addEventListener("change", () => choose(chooser.value));
    place("pairs-scale").addEventListener("change", () => scatter(report.runs[chooser.value]));
    ready.push(choose(chooser.value));
  }
  Promise.all(ready).then(() => document.documentElement.setAttribute("data-ready", "true"));
})();
