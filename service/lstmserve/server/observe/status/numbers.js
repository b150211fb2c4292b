// Parses a scrape, and compares two. It draws nothing.
const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** name -> [{labels, value}] of Prometheus' text format. */
function parse(text) {
  const scrape = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : LINE.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] || "").matchAll(LABEL)) {
      labels[name] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    }
    if (!scrape.has(match[1])) scrape.set(match[1], []);
    scrape.get(match[1]).push({ labels, value: Number(match[3].replace("Inf", "Infinity")) });
  }
  return scrape;
}

const samples = (scrape, name) => scrape.get(name) || [];

/** The sum over the samples that have these labels. */
function total(scrape, name, where = {}) {
  const wanted = Object.entries(where);
  return samples(scrape, name)
    .filter(({ labels }) => wanted.every(([key, value]) => labels[key] === value))
    .reduce((sum, { value }) => sum + value, 0);
}

/** Sums by the value of one label. */
function sums(scrape, name, label) {
  const found = new Map();
  for (const { labels, value } of samples(scrape, name)) {
    found.set(labels[label], (found.get(labels[label]) || 0) + value);
  }
  return found;
}

/** [upper bound, how many fell in the bucket between two scrapes], by bound. */
function buckets(before, after, name) {
  const first = sums(before, `${name}_bucket`, "le");
  const bounds = [...sums(after, `${name}_bucket`, "le")]
    .map(([bound, count]) => [Number(bound.replace("Inf", "Infinity")), count - (first.get(bound) || 0)])
    .sort(([a], [b]) => a - b);
  return bounds.map(([bound, count], n) => [bound, n ? count - bounds[n - 1][1] : count]);
}

/** PromQL's histogram_quantile: linear within a bucket; NaN when all buckets are empty. */
function quantile(q, counts) {
  const rank = q * counts.reduce((sum, [, count]) => sum + count, 0);
  let [seen, low] = [0, 0];
  if (!rank) return NaN;
  for (const [bound, count] of counts) {
    if (seen + count >= rank && count) {
      return bound === Infinity ? low : low + ((bound - low) * (rank - seen)) / count;
    }
    [seen, low] = [seen + count, bound];
  }
  return low;
}

/** How much a counter grew per second between two of our records. */
function rate(before, after, name, where = {}) {
  const grown = total(after.scrape, name, where) - total(before.scrape, name, where);
  return grown / ((after.ms - before.ms) / 1000);
}

const failed = (scrape) =>
  samples(scrape, "lstm_steps_total").filter(({ labels }) => labels.code !== "OK")
    .reduce((sum, { value }) => sum + value, 0);
const FAULTS = new Set(["Unavailable", "Internal", "Unknown", "DataLoss"]);
const faults = (scrape) =>
  samples(scrape, "lstm_steps_total").filter(({ labels }) => FAULTS.has(labels.code))
    .reduce((sum, { value }) => sum + value, 0);
