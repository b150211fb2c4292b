// The page: asks /metrics once a second, keeps the answers, and shows them. It changes no number.
const POLL_MS = 1000;
const [SHOWN, KEPT] = [30, 120]; // records of the past, at least and at most
const RECENT = 10; // of them, for rates and quantiles
const TIMES = { step: "lstm_step_seconds", queue: "lstm_queue_seconds", compute: "lstm_compute_seconds" };
let records = []; // {ms, scrape, isReady, heat, numbers}, the oldest first

async function poll() {
  try {
    const [metrics, ready] = await Promise.all([fetch("metrics"), fetch("readyz")]);
    if (!metrics.ok) throw new Error(`/metrics: ${metrics.status}`);
    const scrape = parse(await metrics.text());
    add({ ms: performance.now(), scrape, isReady: ready.ok });
    update();
  } catch (error) {
    state("bad", `no answer: ${error.message}`);
  }
  setTimeout(poll, POLL_MS);
}

/** A restarted server counts from 0, so older records are dropped. */
function add(record) {
  const born = (each) => total(each.scrape, "process_start_time_seconds");
  if (records.length && born(records.at(-1)) !== born(record)) records = [];
  const before = records.at(-1) || record;
  record.heat = {};
  for (const [name, metric] of Object.entries(TIMES)) {
    record.heat[name] = buckets(before.scrape, record.scrape, metric);
  }
  record.numbers = {
    sessions: total(record.scrape, "lstm_sessions"),
    steps: rate(before, record, "lstm_steps_total"),
    rows: rate(before, record, "lstm_rows_total"),
    p50: quantile(0.5, record.heat.step),
    p99: quantile(0.99, record.heat.step),
    errors: (failed(record.scrape) - failed(before.scrape)) / ((record.ms - before.ms) / 1000),
  };
  records = [...records, record].slice(-KEPT - 1);
}

const width = () => Math.min(KEPT, Math.max(SHOWN, records.length - 1));

function state(kind, text) {
  at("state").className = `pill ${kind}`;
  at("state").textContent = text;
  document.title = `${text === "ready" ? "" : `${text} · `}lstmserve`;
}

function update() {
  const now = records.at(-1);
  const recent = records.at(-RECENT - 1) || records[0];
  const { scrape } = now;
  state(now.isReady ? "ready" : "bad", now.isReady ? "ready" : "not ready");
  at("quiet").hidden = total(scrape, "lstm_sessions_opened_total") + total(scrape, "lstm_rows_total") > 0;
  showTiles(now, recent);
  for (const [name, metric] of Object.entries(TIMES)) {
    const counts = buckets(recent.scrape, scrape, metric);
    const [p50, p99] = [0.5, 0.99].map((q) => seconds(quantile(q, counts)).join(" "));
    at(`${name}-times`).replaceChildren("p50 ", node("b", {}, p50), "  p99 ", node("b", {}, p99));
    heat(`${name}-heat`, records.slice(1).map((each) => each.heat[name]), width());
  }
  showWork(now);
  showErrors(now);
  showModels(now, recent);
  showServer(now, recent);
}

function showTiles(now, recent) {
  const since = (metric) => (now === recent ? NaN : rate(recent, now, metric));
  const steps = buckets(recent.scrape, now.scrape, TIMES.step);
  const errors = (failed(now.scrape) - failed(recent.scrape)) / ((now.ms - recent.ms) / 1000);
  show("sessions", short(now.numbers.sessions));
  show("steps", short(since("lstm_steps_total")));
  show("rows", short(since("lstm_rows_total")));
  show("p50", ...seconds(quantile(0.5, steps)));
  show("p99", ...seconds(quantile(0.99, steps)));
  show("errors", short(errors));
  for (const name of Object.keys(now.numbers)) {
    line(`${name}-line`, records.slice(1).map((each) => each.numbers[name]), width());
  }
}

function showWork({ scrape }) {
  const sizes = buckets(records[0].scrape, scrape, "lstm_batch_size");
  bars("batches", sizes);
  const [runs, sum] = ["count", "sum"].map(
    (part) => total(scrape, `lstm_batch_size_${part}`) - total(records[0].scrape, `lstm_batch_size_${part}`),
  );
  at("batch-mean").replaceChildren("mean ", node("b", {}, runs ? digits(sum / runs) : "–"));
  const entries = (name, label) => [...sums(scrape, name, label)].filter(([, count]) => count);
  list("opened", entries("lstm_sessions_opened_total", "source"), "none yet");
  list("closed", entries("lstm_sessions_closed_total", "reason"), "none yet");
}

function showErrors({ scrape }) {
  const reasons = [...sums(scrape, "lstm_step_errors_total", "reason")].filter(([, count]) => count);
  list("reasons", reasons, "No step has failed.");
  const all = total(scrape, "lstm_steps_total");
  const part = percent(faults(scrape) / all);
  at("fault").replaceChildren("our fault ", node("b", {}, part), " of steps");
}

function showModels(now, recent) {
  const rows = samples(now.scrape, "lstm_model_info").map(({ labels }) => {
    const where = { model: labels.model, version: labels.version };
    const slots = (kind) => total(now.scrape, "lstm_slots", { ...where, state: kind });
    const [used, places] = [slots("used"), slots("used") + slots("free")];
    const fill = node("i", used > 0.9 * places ? { class: "full" } : {});
    fill.style.width = `${places ? (100 * used) / places : 0}%`;
    const track = node("div", { class: "track" }, fill);
    const difference = total(now.scrape, "lstm_model_difference", where);
    const slotted = places ? [track, `${short(used)} of ${short(places)}`] : ["keeps no state"];
    return node("tr", {},
      node("td", {}, `${labels.model}:${labels.version}`),
      node("td", { class: "wide" }, labels.kind + (labels.window ? `, window ${labels.window}` : "")),
      node("td", { class: "wide" }, difference ? `to ${difference.toPrecision(1)}` : "yes"),
      node("td", { class: "wide" }, node("code", {}, labels.fingerprint.slice(0, 10))),
      node("td", { class: "n" }, short(now === recent ? NaN : rate(recent, now, "lstm_rows_total", where))),
      node("td", { class: "n" }, short(total(now.scrape, "lstm_pending_steps", where))),
      node("td", {}, node("div", { class: "slots" }, ...slotted)));
  });
  at("models").replaceChildren(...rows);
  const methods = [...sums(now.scrape, "lstm_steps_total", "method")];
  list("methods", methods, "none yet");
}

function showServer(now, recent) {
  const { scrape } = now;
  const value = (name) => total(scrape, name);
  const time = (q, name, before = recent) => seconds(quantile(q, buckets(before.scrape, scrape, name))).join(" ");
  const padding = value("lstm_padding_rows_total");
  const cpu = now === recent ? NaN : rate(recent, now, "process_cpu_seconds_total");
  const pairs = [
    ["CPU", Number.isFinite(cpu) ? `${digits(cpu)} cores` : "–"],
    ["memory", bytes(value("process_resident_memory_bytes"))],
    ["open files", short(value("process_open_fds"))],
    ["loop late by", `p99 ${time(0.99, "lstm_loop_lag_seconds", records[0])}`],
    ["padding", `${percent(padding / (padding + value("lstm_rows_total")))} of rows`],
    ["replayed", `${short(value("lstm_steps_replayed_total"))} steps`],
  ];
  if (samples(scrape, "lstm_store_seconds_count").length) {
    const errors = value("lstm_store_errors_total");
    pairs.push(["store", `p50 ${time(0.5, "lstm_store_seconds")}, p99 ${time(0.99, "lstm_store_seconds")}`]);
    pairs.push(["store errors", short(errors)]);
    pairs.push(["not stored for", seconds(value("lstm_durable_lag_seconds")).join(" ")]);
  } else {
    pairs.push(["store", "none: sessions end with the process"]);
  }
  at("server").replaceChildren(...pairs.flatMap(([name, text]) => [node("dt", {}, name), node("dd", {}, text)]));
  const [build] = samples(scrape, "lstm_build_info");
  show("version", build ? build.labels.version : "");
  const up = Date.now() / 1000 - value("process_start_time_seconds");
  at("about").textContent = `${location.host} · up ${age(Math.max(0, up))}`;
}

poll();
