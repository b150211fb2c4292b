// Draws numbers as text, lines, bars and heat. It gets them from its caller.
const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);

function node(kind, attributes = {}, ...children) {
  const isSvg = ["path", "rect", "text"].includes(kind);
  const made = isSvg ? document.createElementNS(SVG, kind) : document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A number in 3 or 4 digits, with k, M or G. */
function short(value) {
  if (!Number.isFinite(value)) return "–";
  for (const [from, letter, unit = from] of [[1e9, "G"], [1e6, "M"], [1e4, "k", 1e3]]) {
    if (value >= from) return digits(value / unit) + letter;
  }
  return value >= 10 ? Math.round(value).toLocaleString("en") : String(Math.round(10 * value) / 10);
}

const digits = (value) =>
  Number.isInteger(value) ? String(value) : value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2);

/** [number, unit] of seconds. */
function seconds(value) {
  if (!Number.isFinite(value)) return ["–", ""];
  if (!value) return ["0", "s"];
  if (value < 1e-3) return [digits(Math.round(value * 1e6)), "µs"];
  return value < 1 ? [digits(value * 1e3), "ms"] : [digits(value), "s"];
}

const percent = (part) => (Number.isFinite(part) ? `${Math.round(1000 * part) / 10} %` : "–");

function age(value) {
  const [d, h, m] = [Math.floor(value / 86400), Math.floor(value / 3600) % 24, Math.floor(value / 60) % 60];
  if (d) return `${d} d ${h} h`;
  return h ? `${h} h ${m} min` : m ? `${m} min` : `${Math.floor(value)} s`;
}

const bytes = (value) => (value >= 1 << 30 ? `${digits(value / 2 ** 30)} GiB` : `${Math.round(value / 2 ** 20)} MiB`);

function show(id, text, unit = "") {
  at(id).replaceChildren(text, ...(unit ? [node("small", {}, unit)] : []));
}

/** A line over time; its own largest value is the top. */
function line(id, values, width) {
  const [svg, high] = [at(id), Math.max(...values.filter(Number.isFinite), 1e-9)];
  svg.setAttribute("viewBox", "0 0 100 38");
  svg.setAttribute("preserveAspectRatio", "none");
  const points = values
    .map((value, n) => [100 - ((values.length - 1 - n) * 100) / (width - 1), 35 - (30 * value) / high])
    .filter(([, y]) => Number.isFinite(y)).map(([x, y]) => `${x.toFixed(2)} ${y.toFixed(2)}`);
  if (points.length < 2) return svg.replaceChildren();
  const path = `M${points.join("L")}`;
  const [left, right] = [points[0], points.at(-1)].map((point) => point.split(" ")[0]);
  svg.replaceChildren(
    node("path", { class: "area", d: `${path}L${right} 38L${left} 38Z` }),
    node("path", { class: "line", d: path }),
  );
}

/** Columns of buckets over time, darker for more values; and the two quantiles over them. */
function heat(id, columns, width) {
  const canvas = at(id);
  const [w, h, scale] = [canvas.clientWidth, canvas.clientHeight, devicePixelRatio || 1];
  [canvas.width, canvas.height] = [w * scale, h * scale];
  const [draw, style] = [canvas.getContext("2d"), getComputedStyle(document.documentElement)];
  const color = (name) => style.getPropertyValue(name).trim();
  draw.scale(scale, scale);
  draw.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const [left, bottom, top] = [46, h - 18, 4];
  const bounds = [1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1, 2.5, Infinity];
  const [cell, row] = [(w - left) / width, (bottom - top) / bounds.length];
  for (const bound of [1e-4, 1e-3, 1e-2, 0.1, 1]) {
    const y = Math.round(bottom - (bounds.indexOf(bound) + 1) * row) + 0.5;
    draw.fillStyle = color("--line");
    draw.fillRect(left, y, w - left, 1);
    draw.fillStyle = color("--soft");
    draw.textAlign = "right";
    draw.fillText(seconds(bound).join(" "), left - 7, y + 4);
  }
  const edge = (fromNow) => Math.round((w - fromNow * cell) * scale) / scale; // whole pixels: no gaps
  const most = Math.max(1, ...columns.flatMap((column) => column.map(([, count]) => count)));
  columns.forEach((column, n) => {
    for (const [bound, count] of column) {
      if (!count) continue;
      draw.fillStyle = `rgb(${color("--heat")} / ${0.14 + 0.86 * Math.sqrt(count / most)})`;
      const [x, y] = [edge(columns.length - n), bottom - (bounds.indexOf(bound) + 1) * row];
      draw.fillRect(x, y, edge(columns.length - n - 1) - x, row - 0.8);
    }
  });
  draw.fillStyle = color("--soft");
  draw.textAlign = "left";
  draw.fillText(`${age(width)} ago`, left, h - 4);
  draw.textAlign = "right";
  draw.fillText("now", w, h - 4);
}

/** A bar for every bucket up to the last one with something in it. */
function bars(id, counts) {
  const svg = at(id);
  const [w, h] = [svg.clientWidth, svg.clientHeight];
  const last = Math.max(5, counts.findLastIndex(([, count]) => count) + 1);
  const shown = counts.slice(0, last + 1).filter(([bound]) => bound !== Infinity);
  const [most, all] = [Math.max(1, ...shown.map(([, n]) => n)), counts.reduce((sum, [, n]) => sum + n, 0)];
  const cell = w / shown.length;
  svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
  svg.replaceChildren(
    ...shown.flatMap(([bound, count], n) => {
      const height = Math.max(count ? 2 : 0, ((h - 40) * count) / most);
      const [x, middle] = [n * cell + 3, (n + 0.5) * cell];
      const label = bound <= 2 ? String(bound) : `≤${short(bound)}`;
      const made = [
        node("rect", { class: "base", x, y: h - 19, width: cell - 6, height: 1 }),
        node("rect", { x, y: h - 19 - height, width: cell - 6, height, rx: 3 }),
        node("text", { x: middle, y: h - 4 }, label),
      ];
      const share = percent(count / all);
      if (count) made.push(node("text", { class: "count", x: middle, y: h - 25 - height }, share));
      return made;
    }),
  );
}

/** dt, bar, dd for each of [name, count, note], the largest first. */
function list(id, entries, none) {
  const most = Math.max(1, ...entries.map(([, count]) => count));
  at(id).replaceChildren(
    ...entries.sort((a, b) => b[1] - a[1]).flatMap(([name, count, note = ""]) => {
      const bar = node("i");
      bar.style.width = `${(100 * count) / most}%`;
      const number = node("dd", { title: count }, short(count), ...(note ? [node("em", {}, note)] : []));
      return [node("dt", {}, name), node("dd", { class: "track" }, bar), number];
    }),
    ...(entries.length ? [] : [node("p", { class: "none" }, none)]),
  );
}
