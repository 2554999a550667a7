// SPDX-License-Identifier: Apache-2.0
// The console: what the API tells, for people. No build step, nothing from elsewhere; whatever comes from a record is text,
// never markup. The stream says when something has changed, and carries nodes and leases; the rest is asked for when it is
// looked at.

const $ = (id) => document.getElementById(id);

function h(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (key === "width") node.style.setProperty("width", value);
    else if (key === "color") node.style.setProperty("background", value);
    else if (key === "data") Object.assign(node.dataset, value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((one) => one !== null && one !== undefined && one !== false).map((one) => (one instanceof Node ? one : String(one))));
  return node;
}

// ---- talking to the API -------------------------------------------------------------------------------------------

const state = { nodes: [], leases: [], at: 0, view: "fleet", args: [], find: "", sort: {}, cache: new Map(), selected: 0 };

function headers() {
  const token = sessionStorage.getItem("token");
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { headers: { ...headers(), ...(options.headers ?? {}) }, signal: options.signal });
  if (answer.status === 401 && !$("sign").open) $("sign").showModal();
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw Object.assign(new Error(problem.detail ?? `status ${answer.status}`), { status: answer.status });
  }
  return answer;
}

async function get(path, fresh_ms = 5000) {
  const known = state.cache.get(path);
  if (known && performance.now() - known.at < fresh_ms) return known.value;
  const value = (await ask(path)).json();
  state.cache.set(path, { at: performance.now(), value });
  value.catch(() => state.cache.delete(path));
  return value;
}

async function listen() {
  for (let pause = 500; ; pause = Math.min(pause * 2, 15000)) {
    try {
      const answer = await ask("/v1/stream", { headers: { Accept: "text/event-stream" } });
      tellLink(true);
      pause = 500;
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        text += value;
        for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) take(text.slice(0, end));
      }
    } catch (error) {
      if (error.status === 403) return tellLink(false, "not allowed");
    }
    tellLink(false);
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

function take(block) {
  const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
  if (!data) return;
  const told = JSON.parse(data);
  Object.assign(state, { nodes: told.nodes, leases: told.leases, at: performance.now(), asOf: told.as_of, count: told.count });
  drawStrip();
  if (LIVE.has(state.view)) draw();
}

function tellLink(on, text) {
  $("link").className = `link ${on ? "on" : "off"}`;
  $("link").lastChild.textContent = text ?? (on ? "live" : "reconnecting");
}

// ---- how things are written ---------------------------------------------------------------------------------------

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const money = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const UNIT = { cpu_cores: "cores", memory_gb: "GiB", gpus: "GPUs", state_size_gb: "GiB block", network_gbps: "Gbit/s", max_concurrent_tasks: "in use", max_leases: "leases", max_queue_depth: "waiting", max_task_duration: "age", submit_rate: "requests", api_rate: "calls", log_retention_days: "days" };
const NAME = { gpus: "GPU", cpu_cores: "CPU", memory_gb: "Memory", state_size_gb: "Block" };
const SHORT = { cpu_cores: "cpu", memory_gb: "mem", gpus: "gpu", state_size_gb: "blk", network_gbps: "net" };
const COLORS = ["--accent", "--accent2", "--violet", "--warn", "--good", "--bad"];
const color = (n) => getComputedStyle(document.documentElement).getPropertyValue(COLORS[n % COLORS.length]).trim();

const percent = (share) => `${number.format(share * 100)} %`;
const amounts = (found) => Object.entries(found).map(([key, value]) => `${value} ${UNIT[key] ?? ""}`.trim()).join(" · ");
const short = (id) => id.slice(0, 8);

function left(ms) {
  if (ms <= 0) return "0 s";
  const s = Math.floor(ms / 1000);
  if (s < 60) return `${(ms / 1000).toFixed(1)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

const ago = (seconds) => (seconds === null ? "never" : `${left(seconds * 1000).replace(/\.\d s/, " s")} ago`);
const CHIP = { active: "good", granted: "info", draining: "warn", revoking: "warn", scrubbing: "info", verifying: "info", fenced: "bad", stopped: "bad", idle: "", OK: "good", BEHIND: "warn", STALE: "warn" };
const chip = (text, kind) => h("span", { class: `chip ${kind ?? CHIP[text] ?? ""}` }, text);
const verdict = (text) => chip(text, CHIP[text] ?? "bad");

function bar(share, wide) {
  const level = share >= 0.95 ? "bad" : share >= 0.8 ? "warn" : "";
  return h("span", { class: `bar ${level} ${wide ? "wide" : ""}`, title: percent(share) }, h("i", { width: `${Math.min(100, share * 100)}%` }));
}

function panel(title, span, ...body) {
  const [text, note, right] = [title].flat();
  return h("section", { class: `panel ${span ?? ""}` }, h("h2", {}, text, note ? h("span", { class: "dim" }, note) : null, right ? h("span", { class: "right" }, right) : null), ...body);
}

const empty = (text) => h("p", { class: "empty" }, text);

// A table whose columns can be sorted by: [heading, value to sort by, how it is shown, class].
function table(name, columns, rows, options = {}) {
  const sort = state.sort[name] ?? options.sort ?? [0, 1];
  const kept = rows.filter((row) => !state.find || columns.some(([, value]) => String(value(row) ?? "").toLowerCase().includes(state.find)));
  kept.sort((a, b) => {
    const [x, y] = [columns[sort[0]][1](a), columns[sort[0]][1](b)];
    return sort[1] * (typeof x === "number" && typeof y === "number" ? x - y : String(x ?? "").localeCompare(String(y ?? ""), "en", { numeric: true }));
  });
  const order = (n) => { state.sort[name] = [n, sort[0] === n ? -sort[1] : 1]; draw(); };
  const head = columns.map(([text, , , kind], n) => h("th", { class: kind, scope: "col", tabindex: 0, "aria-sort": sort[0] === n ? (sort[1] > 0 ? "ascending" : "descending") : "none", on: { click: () => order(n), keydown: (e) => e.key === "Enter" && order(n) } }, text));
  const body = kept.map((row, at) => h("tr", { class: options.go ? "go" : null, "aria-selected": options.go && at === state.selected ? "true" : null, on: options.go ? { click: () => options.go(row) } : null }, columns.map(([, value, shown, kind]) => h("td", { class: kind }, shown ? shown(row) : value(row)))));
  if (!kept.length) return empty(rows.length ? "Nothing matches the filter." : options.none ?? "Nothing yet.");
  return h("div", { class: "scroll" }, h("table", { data: { table: name } }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body, options.foot)));
}

function chart(target, series, times, options = {}) {
  const style = getComputedStyle(document.documentElement);
  const [dim, line] = [style.getPropertyValue("--dim").trim(), style.getPropertyValue("--line").trim()];
  const axis = { stroke: dim, grid: { stroke: line, width: 1 }, ticks: { stroke: line }, font: "10px system-ui" };
  const shape = { width: Math.max(240, target.clientWidth), height: options.height ?? 170, cursor: { y: false }, legend: { live: true }, scales: { y: { range: (u, low, high) => [0, Math.max(high * 1.08, 0.001)] } }, axes: [axis, { ...axis, size: 46 }], series: [{ value: (u, t) => (t ? new Date(t * 1000).toISOString().slice(5, 16).replace("T", " ") : "–") }, ...series.map(({ label, fill }, n) => ({ label, stroke: color(n), width: 1.5, fill: fill ? `color-mix(in srgb, ${color(n)} 16%, transparent)` : undefined, points: { show: false } }))] };
  const plot = new uPlot(shape, [times, ...series.map((one) => one.values)], target);
  new ResizeObserver(() => plot.setSize({ width: Math.max(240, target.clientWidth), height: shape.height })).observe(target);
}

// ---- at a glance --------------------------------------------------------------------------------------------------

function tile(title, value, note, kind) {
  return h("div", { class: `tile ${kind ?? ""}` }, h("h3", {}, title), h("b", {}, value), note ? h("small", {}, note) : null);
}

function sums() {
  const [total, held] = [{}, {}];
  for (const node of state.nodes) {
    for (const [key, value] of Object.entries(node.total)) total[key] = (total[key] ?? 0) + value;
    for (const [key, value] of Object.entries(node.held)) held[key] = (held[key] ?? 0) + value;
  }
  return { total, held };
}

function drawStrip() {
  const { total, held } = sums();
  const broken = state.nodes.flatMap((node) => node.logs).filter((log) => !["OK", "BEHIND", "STALE"].includes(log.verdict)).length;
  const fenced = state.nodes.reduce((sum, node) => sum + node.fenced, 0);
  const live = state.nodes.reduce((sum, node) => sum + node.leases, 0);
  const ending = state.nodes.reduce((sum, node) => sum + node.ending, 0) - fenced;
  const tiles = [tile("Nodes", whole.format(state.nodes.length), `${state.nodes.filter((n) => n.state === "active").length} active`), tile("Live leases", whole.format(live), ending ? `${ending} ending` : "")];
  for (const key of ["gpus", "cpu_cores", "memory_gb", "state_size_gb"]) {
    if (!total[key]) continue;
    const share = (held[key] ?? 0) / total[key];
    tiles.push(tile(NAME[key], `${whole.format(share * 100)} %`, `${compact.format(held[key] ?? 0)} / ${compact.format(total[key])} ${UNIT[key]}`, share > 0.95 ? "warn" : ""));
  }
  tiles.push(tile("Fenced", whole.format(fenced), "", fenced ? "warn" : ""), tile("Chains", broken ? `${broken} broken` : "hold", `${whole.format(state.nodes.flatMap((n) => n.logs).reduce((s, l) => s + l.records, 0))} records`, broken ? "bad" : ""));
  $("strip").replaceChildren(...tiles);
}

// ---- views --------------------------------------------------------------------------------------------------------

const go = (view, ...args) => { location.hash = [view, ...args].map(encodeURIComponent).join("/"); };
const LIVE = new Set(["fleet", "nodes", "leases", "chains"]);

function heat() {
  const cells = state.nodes.filter((node) => !state.find || node.name.toLowerCase().includes(state.find)).map((node) => {
    const bad = node.logs.some((log) => !["OK", "BEHIND", "STALE"].includes(log.verdict));
    const rows = Object.keys(node.total).filter((key) => node.total[key]).map((key) => h("div", { class: "row" }, h("span", {}, SHORT[key] ?? key), bar((node.held[key] ?? 0) / node.total[key])));
    return h("button", { type: "button", class: `cell ${bad ? "bad" : node.fenced || node.unhealthy.length ? "warn" : ""}`, title: node.node, on: { click: () => go("nodes", node.node) } }, h("b", {}, node.name), h("span", { class: "dim" }, `${node.state} · ${node.leases} ${node.leases === 1 ? "lease" : "leases"}`), h("div", { class: "rows" }, rows));
  });
  return cells.length ? h("div", { class: "body heat" }, cells) : empty("No node has been pulled yet. `leased-collector enrol` takes one in.");
}

const KIND = { gpu: "GPU", cpu: "cores", mem: "GiB", block: "GiB block", net: "Gbit/s" };

// What a lease holds, by kind: of a hundred cores nobody wants to read the numbers.
function holds(resources) {
  const sum = new Map();
  for (const [id, value] of Object.entries(resources)) sum.set(id.split(":")[0], (sum.get(id.split(":")[0]) ?? 0) + value);
  return [...sum].map(([kind, value]) => `${number.format(value)} ${KIND[kind] ?? kind}`).join(" · ");
}

function leaseTable(leases, options = {}) {
  const now = performance.now() - state.at;
  const remaining = (one) => Math.max(0, one.remaining_ms - now);
  const rows = leases.map((one) => ({ ...one, left: one.state === "granted" || one.state === "active" || one.state === "draining" ? remaining(one) : -1 }));
  const columns = [
    ["Lease", (r) => r.lease_id, (r) => h("span", { class: "mono" }, short(r.lease_id))],
    ["Tenant", (r) => r.tenant],
    ["Node", (r) => r.node_name],
    ["Holds", (r) => holds(r.resources), (r) => h("span", { title: Object.entries(r.resources).map(([id, value]) => `${value} × ${id}`).join("\n") }, holds(r.resources))],
    ["Priority", (r) => r.priority],
    ["State", (r) => r.state, (r) => [chip(r.state), r.ended ? h("span", { class: "faint" }, ` ${r.ended}`) : null]],
    ["Remaining", (r) => r.left, (r) => (r.left < 0 ? "–" : h("span", { data: { until: String(performance.now() + r.left) } }, left(r.left))), "num"],
    ["Gen", (r) => r.generation, null, "num"],
    ["Workload", (r) => r.workload ?? ""],
  ].filter(([heading]) => !options.without?.includes(heading));
  return table(options.name ?? "leases", columns, rows, { sort: [columns.findIndex(([heading]) => heading === "Remaining"), 1], none: "No lease is held.", go: (row) => go("leases", row.lease_id) });
}

async function drawFleet(main) {
  const holder = h("div", { class: "body", id: "use" });
  const feed = h("div", {}, empty("…"));
  main.append(h("div", { class: "grid" }, panel(["Nodes", `${state.nodes.length}`], "s8", heat()), panel("Use of 7 days", "s4", holder), panel(["Leases that end next", `${whole.format(state.count ?? state.leases.length)} not proven clean`], "s8", leaseTable([...state.leases].sort((a, b) => a.remaining_ms - b.remaining_ms).slice(0, 40), { name: "soon" })), panel("Latest records", "s4", feed)));
  const kinds = [["gpu", "gpus"], ["cpu", "cpu_cores"], ["mem", "memory_gb"]].filter(([, key]) => sums().total[key]);
  Promise.all(kinds.map(([kind]) => get(`/v1/governance/allocations/history?period=7d&kind=${kind}`, 60000))).then((found) => {
    if (!holder.isConnected || !found.length) return;
    const times = found[0].points.map((point) => Date.parse(point.ts) / 1000);
    chart(holder, found.map((one, n) => ({ label: `${kinds[n][0]} %`, fill: n === 0, values: one.points.map((point) => (point.allocation_ratio ?? 0) * 100) })), times, { height: 210 });
  }).catch((error) => holder.replaceChildren(empty(error.message)));
  get("/v1/events?limit=60", 900).then(({ events }) => feed.replaceChildren(events.length ? h("div", { class: "scroll feed" }, h("table", {}, h("tbody", {}, events.map((e) => h("tr", {}, h("td", {}, e.at.slice(5, 19).replace("T", " ")), h("td", {}, e.kind), h("td", {}, e.tenant), h("td", { class: "dim" }, e.node_name)))))) : empty("Nothing has happened yet."))).catch((error) => feed.replaceChildren(empty(error.message)));
}

function drawNodes(main) {
  const one = state.nodes.find((node) => node.node === state.args[0]);
  if (one) return drawNode(main, one);
  const columns = [
    ["Node", (n) => n.name],
    ["State", (n) => n.state, (n) => chip(n.state)],
    ["Leases", (n) => n.leases, null, "num"],
    ["Ending", (n) => n.ending, null, "num"],
    ["Fenced", (n) => n.fenced, (n) => (n.fenced ? chip(n.fenced, "bad") : "0"), "num"],
    ...["gpus", "cpu_cores", "memory_gb"].map((key) => [UNIT[key], (n) => (n.held[key] ?? 0) / (n.total[key] || Infinity), (n) => (n.total[key] ? [bar((n.held[key] ?? 0) / n.total[key]), h("span", { class: "dim" }, ` ${number.format(n.held[key] ?? 0)} / ${number.format(n.total[key])}`)] : "–")]),
    ["Policy", (n) => n.policy_generation, null, "num"],
    ["Seen", (n) => n.logs.at(-1)?.age_seconds ?? Infinity, (n) => ago(n.logs.at(-1)?.age_seconds ?? null), "num"],
    ["Chain", (n) => n.logs.at(-1)?.verdict ?? "", (n) => verdict(n.logs.at(-1)?.verdict ?? "none")],
    ["Version", (n) => n.version, (n) => h("span", { class: "dim" }, n.version)],
  ];
  main.append(panel(["Nodes", `${state.nodes.length}`], "", table("nodes", columns, state.nodes, { go: (n) => go("nodes", n.node), none: "No node has been pulled yet." })));
}

function drawNode(main, node) {
  const uses = Object.keys(node.total).map((key) => h("div", {}, h("div", { class: "dim" }, `${UNIT[key]}: ${number.format(node.held[key] ?? 0)} of ${number.format(node.total[key])}`), bar((node.held[key] ?? 0) / (node.total[key] || 1), true)));
  const facts = h("dl", { class: "body kv" }, ...[["Id", h("span", { class: "mono" }, node.node)], ["State", chip(node.state)], ...(node.why ? [["Because", node.why]] : []), ["Version", node.version], ["Policy", `generation ${node.policy_generation}`], ["", h("span", { class: "hash" }, node.policy_hash)], ["Sick", node.unhealthy.join(", ") || "nothing"], ["Refused", `${node.refused} requests`]].flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]));
  main.append(h("div", { class: "grid" }, panel([node.name, "node"], "s4", facts), panel("Capacity", "s4", h("div", { class: "body heat" }, uses)), panel("Logs", "s4", h("div", { class: "body" }, node.logs.map(logFacts))), panel("Leases", "", leaseTable(state.leases.filter((one) => one.node === node.node), { name: "node-leases", without: ["Node"] }))));
}

function logFacts(log) {
  return h("dl", { class: "kv" }, ...[["Log", h("span", { class: "mono" }, log.log_id)], ["Records", whole.format(log.records)], ["Head", h("span", { class: "hash" }, log.head)], ["Signed to", whole.format(log.signed)], ["Cosigned to", whole.format(log.cosigned)], ["Verdict", verdict(log.verdict)], ["", log.why], ["Seen", ago(log.age_seconds)]].flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]));
}

function drawLeases(main) {
  const one = state.leases.find((lease) => lease.lease_id === state.args[0]);
  if (one) {
    const facts = [["Lease", h("span", { class: "mono" }, one.lease_id)], ["Tenant", one.tenant], ["Node", one.node_name], ["State", chip(one.state)], ["Ended", one.ended ?? "not yet"], ["Granted", one.granted_at], ["Generation", one.generation], ["Priority", one.priority], ["Workload", one.workload ?? "–"], ["Holds", Object.entries(one.resources).map(([id, value]) => `${value} × ${id}`).join(", ")], ["Granted by", h("span", {}, `record ${one.sequence} of log `, h("span", { class: "mono" }, one.log_id))], ["Last record", one.last_sequence], ["Proof", h("code", { class: "mono" }, `leasectl audit prove ${one.sequence}`)]];
    return main.append(panel(["Lease", short(one.lease_id)], "s6", h("dl", { class: "body kv" }, facts.flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]))));
  }
  main.append(panel(["Leases", "until they are proven clean", `${state.leases.length}${state.count > state.leases.length ? ` of ${state.count}` : ""}`], "", leaseTable(state.leases)));
}

async function drawTenants(main) {
  const name = state.args[0];
  const { quotas } = await get("/v1/governance/quotas?limit=200");
  if (name) return drawTenant(main, name);
  const used = await Promise.all(quotas.slice(0, 60).map((row) => get(`/v1/governance/usage/${encodeURIComponent(row.tenant)}`).catch(() => null)));
  const costs = await get("/v1/governance/costs?period=30d&top=1000", 30000).catch(() => null);
  const rows = quotas.map((row, n) => ({ ...row, usage: used[n], cost: costs?.by_tenant.find((one) => one.tenant === row.tenant && !one.others)?.cost ?? 0 }));
  const kinds = ["gpus", "cpu_cores", "memory_gb", "max_leases"];
  const columns = [
    ["Tenant", (r) => r.tenant],
    ...kinds.map((key) => [UNIT[key], (r) => r.usage?.quotas[key]?.used ?? 0, (r) => quotaCell(r.usage?.quotas[key])]),
    ["Most used", (r) => r.usage?.max_utilization ?? 0, (r) => (r.usage?.dominant_resource ? [bar(r.usage.max_utilization), h("span", { class: "dim" }, ` ${UNIT[r.usage.dominant_resource] ?? ""}`)] : h("span", { class: "faint" }, "no limit"))],
    ["Policy", (r) => r.policy.mode, (r) => [chip(r.policy.mode), r.usage?.throttled ? chip("throttled", "warn") : null]],
    [`30 days (${costs?.currency ?? ""})`, (r) => r.cost, (r) => money.format(r.cost), "num"],
  ];
  main.append(panel(["Tenants", `${rows.length}`], "", table("tenants", columns, rows, { go: (r) => go("tenants", r.tenant), none: "No tenant yet: nobody had a lease, and no quota was set." })));
}

function quotaCell(row) {
  if (!row || row.used === null) return h("span", { class: "faint" }, "–");
  if (row.limit === null) return `${number.format(row.used)}`;
  return [bar(row.limit ? row.used / row.limit : 1), h("span", { class: row.overage ? "chip bad" : "dim" }, ` ${number.format(row.used)} / ${number.format(row.limit)}`)];
}

async function drawTenant(main, name) {
  const path = encodeURIComponent(name);
  const [quota, usage, changes] = await Promise.all([get(`/v1/governance/quotas/${path}`), get(`/v1/governance/usage/${path}`), get(`/v1/governance/changes?tenant=${path}&limit=50`)]);
  const rows = Object.entries(usage.quotas).map(([key, row]) => ({ key, ...row, source: quota.sources[key] }));
  const columns = [["Limit of", (r) => UNIT[r.key] ?? r.key], ["Used", (r) => (typeof r.used === "number" ? r.used : 0), (r) => r.used ?? "–", "num"], ["Limit", (r) => r.limit ?? "", (r) => r.limit ?? "none", "num"], ["", () => 0, (r) => (typeof r.used === "number" && typeof r.limit === "number" ? bar(r.limit ? r.used / r.limit : 1) : "")], ["Set by", (r) => r.source ?? "", (r) => (r.source ? chip(r.source, r.source === "override" ? "warn" : r.source === "schedule" ? "info" : "") : "")], ["Fleet", (r) => 0, (r) => r.fleet_used ?? "–", "num"], ["Node", (r) => r.node ?? ""]];
  const timed = [...quota.overrides.map((one) => [`until ${one.expires_at}`, amounts(one.quotas), one.reason]), ...quota.scheduled.map((one) => [`${one.schedule} ${one.timezone}, ${one.duration}`, amounts(one.quotas), one.open_until ? `open until ${one.open_until}` : `opens ${one.next_start}`])];
  main.append(h("div", { class: "grid" },
    panel([name, "quota and use"], "s7", table("quota", columns, rows, { none: "No limit, and nothing held." })),
    panel("Overrides and schedules", "s5", timed.length ? h("div", { class: "scroll" }, h("table", {}, h("tbody", {}, timed.map((row) => h("tr", {}, row.map((cell) => h("td", {}, cell))))))) : empty("None.")),
    panel("Leases", "", leaseTable(state.leases.filter((one) => one.tenant === name), { name: "tenant-leases", without: ["Tenant"] })),
    panel(["Sealed changes", `${changes.changes.length}`], "", table("changes", [["#", (c) => c.sequence, null, "num"], ["At", (c) => c.at], ["Who", (c) => c.actor], ["What", (c) => c.action], ["Why", (c) => c.reason], ["Seal", (c) => c.hash, (c) => h("span", { class: "hash" }, c.hash.slice(0, 24))]], changes.changes, { sort: [0, -1], none: "Nothing was ever changed." }))));
}

const thisMonth = () => new Date().toISOString().slice(0, 7);

async function drawBill(main) {
  const [asked, month = thisMonth()] = state.args;
  const { quotas } = await get("/v1/governance/quotas?limit=1000");
  const tenant = asked ?? quotas[0]?.tenant;
  const months = Array.from({ length: 24 }, (_, n) => { const d = new Date(); d.setUTCDate(1); d.setUTCMonth(d.getUTCMonth() - n); return d.toISOString().slice(0, 7); });
  const pick = h("div", { class: "actions" }, h("select", { "aria-label": "Tenant", on: { change: (e) => go("bill", e.target.value, month) } }, quotas.map(({ tenant: one }) => h("option", { selected: one === tenant }, one))), h("select", { "aria-label": "Month", on: { change: (e) => go("bill", tenant, e.target.value) } }, months.map((one) => h("option", { selected: one === month }, one))));
  if (!tenant) return main.append(panel("Bill", "", empty("No tenant yet.")));
  let bill;
  try {
    bill = await get(`/v1/billing/summary?tenant=${encodeURIComponent(tenant)}&month=${month}`, 10000);
  } catch (error) {
    return main.append(panel(["Bill", "", pick], "", empty(error.message)));
  }
  const day = (at) => at.endsWith("T00:00:00Z") ? at.slice(0, 10) : at;
  const part = (item) => item.start && (item.start !== bill.interval.start || item.end !== bill.interval.end);
  const named = (item) => part(item) ? [item.description, " ", h("span", { class: "dim" }, `${day(item.start)} to ${day(item.end)}`)] : [item.description];
  const line = (item) => h("tr", {}, h("td", {}, ...named(item)), h("td", { class: "num" }, number.format(item.quantity)), h("td", { class: "dim" }, item.unit), h("td", { class: "num" }, item.multiplier === 1 ? String(item.unit_price) : `${item.unit_price} × ${item.multiplier}`), h("td", { class: "num" }, money.format(item.total)));
  const foot = (text, value, kind) => h("tr", { class: kind }, h("td", { colspan: 4 }, text), h("td", { class: "num" }, money.format(value)));
  const audit = [["Node", (a) => state.nodes.find((node) => node.node === a.node_id)?.name ?? short(a.node_id)], ["Log", (a) => a.log_id, (a) => h("span", { class: "mono" }, short(a.log_id))], ["Records", (a) => a.first_sequence, (a) => `${whole.format(a.first_sequence)} – ${whole.format(a.last_sequence)}`, "num"], ["Head", (a) => a.head, (a) => h("span", { class: "hash" }, a.head)]];
  // The hours of the bill, which begin and end in the tenant's time zone.
  const hourly = `/v1/billing/usage?tenant=${encodeURIComponent(tenant)}&start=${bill.interval.start}&end=${bill.interval.end}`;
  const holder = h("div", { class: "body" });
  main.append(h("div", { class: "grid" },
    panel([`${tenant}, ${month}`, bill.invoice_id, pick], "s8", h("table", {}, h("thead", {}, h("tr", {}, ["Description", "Quantity", "Unit", "Price", "Total"].map((text, n) => h("th", { class: n === 2 || n === 0 ? "" : "num" }, text)))), h("tbody", {}, bill.line_items.map(line), foot("Subtotal", bill.subtotal), bill.credit_items.map((one) => foot(`Credit for ${one.month}: ${one.reason}`, one.amount)), foot("Credits", bill.credits), foot(`Total (${bill.currency})`, bill.total, "total")))),
    panel("Proof", "s4", h("dl", { class: "body kv" }, ...[["Status", chip(bill.status, bill.status === "final" ? "good" : "warn")], ["Computed to", bill.reach.watermark], ["Nodes behind", bill.reach.behind || "none"], ["SHA-256", h("span", { class: "hash" }, bill.sha256)], ["Recompute", h("code", { class: "mono" }, "leasectl verify --bill bill.json")]].flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]))),
    panel(["Computed from these records", `${bill.audit.length} logs`], "", table("audit", audit, bill.audit, { none: "From no record: the tenant held nothing." })),
    panel(["Hour by hour", "", h("a", { href: `${hourly}&format=csv`, download: "" }, "CSV")], "", holder)));
  const usage = await get(hourly, 60000);
  const by = new Map();
  for (const row of usage.rows) { const at = by.get(row.start) ?? new Map(); at.set(row.kind, (at.get(row.kind) ?? 0) + row.cost); by.set(row.start, at); }
  const kinds = [...new Set(usage.rows.map((row) => row.kind))];
  const hours = [...by.keys()].sort();
  if (hours.length) chart(holder, kinds.map((kind) => ({ label: kind, fill: true, values: hours.map((hour) => by.get(hour).get(kind) ?? 0) })), hours.map((hour) => Date.parse(hour) / 1000));
  else holder.replaceWith(empty("Nothing was held in this month."));
}

async function drawChains(main) {
  const policy = await get("/v1/governance/policy").catch(() => null);
  const changes = await get("/v1/governance/changes?limit=30").catch(() => null);
  const logs = state.nodes.flatMap((node) => node.logs.map((log) => ({ ...log, name: node.name })));
  const columns = [["Node", (l) => l.name], ["Log", (l) => l.log_id, (l) => h("span", { class: "mono" }, short(l.log_id))], ["Verdict", (l) => l.verdict, (l) => [verdict(l.verdict), l.why ? h("span", { class: "dim" }, ` ${l.why}`) : null]], ["Records", (l) => l.records, (l) => whole.format(l.records), "num"], ["Signed", (l) => l.signed, (l) => whole.format(l.signed), "num"], ["Cosigned", (l) => l.cosigned, (l) => whole.format(l.cosigned), "num"], ["Seen", (l) => l.age_seconds ?? Infinity, (l) => ago(l.age_seconds), "num"], ["Head", (l) => l.head, (l) => h("span", { class: "hash" }, l.head)]];
  main.append(h("div", { class: "grid" }, panel(["Logs", "verified, record by record"], "", table("logs", columns, logs, { none: "No log has been pulled yet." })),
    panel(["Policy", policy ? `generation ${policy.generation}` : ""], "s5", policy ? h("dl", { class: "body kv" }, ...[["Fleet", policy.fleet], ["Hash", h("span", { class: "hash" }, policy.policy_hash)], ["Issued", policy.issued_at], ["Ends", policy.expires_at], ["Key", h("span", { class: "hash" }, policy.key)], ["In force on", `${policy.nodes.filter((n) => n.current).length} of ${policy.nodes.length} nodes that asked`]].flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)])) : empty("Not for this token.")),
    panel(["Sealed changes", changes ? `${changes.count}, head ${changes.head.slice(0, 16)}` : ""], "s7", changes ? table("all-changes", [["#", (c) => c.sequence, null, "num"], ["At", (c) => c.at], ["Who", (c) => c.actor], ["What", (c) => c.action], ["Tenant", (c) => c.tenant], ["Why", (c) => c.reason]], changes.changes, { sort: [0, -1], none: "Nothing was ever changed." }) : empty("Not for this token."))));
}

async function drawWaste(main) {
  const [idle, costs, capacity, used, heats] = await Promise.all([get("/v1/governance/optimize/idle", 30000), get("/v1/governance/costs?period=30d&top=12", 30000), get("/v1/governance/capacity", 10000), get("/v1/governance/optimize/waste?last=1h", 30000), get("/v1/governance/heat", 30000)]);
  const parts = [["in use", costs.total_cost], ...costs.pools.map((pool) => [pool.name, pool.cost])].filter(([, cost]) => cost > 0);
  const all = parts.reduce((sum, [, cost]) => sum + cost, 0) || 1;
  const split = h("div", { class: "body" }, h("div", { class: "split", role: "img", "aria-label": parts.map(([name, cost]) => `${name} ${percent(cost / all)}`).join(", ") }, parts.map(([, cost], n) => h("i", { width: `${(cost / all) * 100}%`, color: color(n) }))), h("div", { class: "legend" }, parts.map(([name, cost], n) => h("span", {}, h("i", { color: color(n) }), `${name} ${money.format(cost)} (${percent(cost / all)})`))));
  const most = Math.max(...costs.by_tenant.map((row) => row.cost), 1);
  const tenants = [["Tenant", (r) => (r.others ? `${r.others} others` : r.tenant)], ["", (r) => r.cost, (r) => bar(Math.min(0.79, (r.cost / most) * 0.79))], ["Share", (r) => r.share, (r) => percent(r.share), "num"], [`Cost (${costs.currency})`, (r) => r.cost, (r) => money.format(r.cost), "num"]];
  const named = (id) => state.nodes.find((node) => node.node === id)?.name ?? id;
  const idles = [["What", (r) => r.type === "lease" ? `${r.kind} of ${r.tenant} on ${named(r.node)}` : named(r.resource)], ["Idle since", (r) => r.idle_since], ["Hours", (r) => r.idle_hours, null, "num"], [`Wasted (${idle.currency})`, (r) => r.wasted_cost, (r) => money.format(r.wasted_cost), "num"], ["What to do", (r) => r.recommendation]];
  const share = (value) => (value === null ? "–" : percent(value));
  const uses = [["Lease", (r) => r.lease_id, (r) => h("span", { class: "mono" }, short(r.lease_id))], ["Tenant", (r) => r.tenant], ["Node", (r) => named(r.node)], ["Of", (r) => r.kind], ["Class", (r) => r.waste.replace("_", " ")], ["Used", (r) => r.utilization, (r) => share(r.utilization), "num"], ["Active", (r) => r.active, (r) => share(r.active), "num"], ["Seen", (r) => r.coverage, (r) => percent(r.coverage), "num"]];
  const hot = [["Node", (r) => named(r.node)], ["", (r) => r.heat, (r) => bar(r.heat)], ["Heat", (r) => r.heat, (r) => percent(r.heat), "num"], ["By", (r) => r.by || "–"]];
  const unheard = "No node has sent telemetry";
  const kinds = Object.entries(capacity.current.by_kind).filter(([, row]) => row.total);
  main.append(h("div", { class: "grid" }, panel(["Where 30 days went", costs.period], "", split),
    panel(["Idle nodes and leases", `${money.format(idle.total_waste_last_7d)} ${idle.currency} in 7 days`], "s7", table("idle", idles, idle.idle_resources, { sort: [3, -1], none: "No node or lease has been idle for an hour." })),
    panel("Cost by tenant", "s5", table("costs", tenants, costs.by_tenant, { sort: [3, -1], none: "Nobody cost anything." })),
    panel(["What leases use of what they hold", "the last hour"], "s8", table("uses", uses, used.leases, { sort: [4, 1], none: `${unheard} of leases in the last hour.` })),
    panel(["Heat", "the last quarter of an hour"], "s4", table("hot", hot, heats.nodes, { sort: [2, -1], none: `${unheard} in the last quarter of an hour.` })),
    panel("Capacity now", "", h("div", { class: "body heat" }, kinds.map(([kind, row]) => h("div", {}, h("div", { class: "dim" }, `${kind}: ${number.format(row.allocated)} of ${number.format(row.total)}`), bar(row.allocated / row.total, true)))))));
}

// Who is told what. Read here only: a secret is shown once where it is made, and what is sent again is asked for by name.
async function drawHooks(main) {
  let hooks;
  try {
    hooks = (await get("/v1/webhooks?limit=1000")).webhooks;
  } catch (error) {
    return main.append(panel("Webhooks", "", empty(error.status === 403 ? "Not for this token: it wants the scope webhook." : error.message)));
  }
  const one = hooks.find((hook) => hook.id === state.args[0]);
  if (one) return drawHook(main, one);
  const how = (w) => (w.enabled ? chip("on", "good") : chip(w.disabled_because ?? "off", "bad"));
  const columns = [["Receiver", (w) => w.url, (w) => h("span", { class: "mono" }, w.url)], ["Hears", (w) => w.events.join(", ")], ["Of", (w) => w.tenants?.join(", ") ?? "everybody"], ["Waiting", (w) => w.pending, null, "num"], ["Given up", (w) => w.dead, (w) => (w.dead ? chip(w.dead, "bad") : "0"), "num"], ["State", (w) => w.disabled_because ?? "on", how], ["What for", (w) => w.description]];
  main.append(panel(["Webhooks", `${hooks.length}`], "", table("hooks", columns, hooks, { go: (w) => go("hooks", w.id), sort: [4, -1], none: "Nobody is told anything. `leased-collector webhook add` has somebody told." })));
}

async function drawHook(main, hook) {
  const path = `/v1/webhooks/${encodeURIComponent(hook.id)}/deliveries`;
  const [dead, all] = await Promise.all([get(`${path}?state=dead&limit=200`), get(`${path}?limit=200`)]);
  const facts = [["Id", h("span", { class: "mono" }, hook.id)], ["Receiver", h("span", { class: "mono" }, hook.url)], ["Hears", hook.events.join(", ")], ["Of", hook.tenants?.join(", ") ?? "everybody"], ["Since", hook.created_at], ["State", hook.enabled ? chip("on", "good") : chip(hook.disabled_because ?? "off", "bad")], ["Waiting", hook.pending], ["Given up", hook.dead], ["Again", h("code", { class: "mono" }, `leasectl collector webhook replay ${hook.id}`)]];
  const columns = [["Happened", (d) => d.happened_at], ["What", (d) => d.kind], ["State", (d) => d.state, (d) => chip(d.state, { delivered: "good", dead: "bad" }[d.state] ?? "warn")], ["Attempts", (d) => d.attempts, null, "num"], ["Answer", (d) => d.status ?? "", (d) => d.status ?? "–", "num"], ["Why", (d) => d.why], ["Next", (d) => d.next_attempt_at ?? ""], ["Message", (d) => d.message, (d) => h("span", { class: "mono" }, short(d.message.slice(4)))]];
  main.append(h("div", { class: "grid" }, panel(["Webhook", short(hook.id)], "", h("dl", { class: "body kv" }, facts.flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]))),
    panel(["Given up", `${dead.deliveries.length}`], "", table("dead", columns, dead.deliveries, { sort: [0, -1], none: "Nothing was given up." })),
    panel(["Deliveries", "the newest"], "", table("deliveries", columns, all.deliveries, { sort: [0, -1], none: "It was told nothing yet." }))));
}

const VIEWS = { fleet: ["Fleet", drawFleet], nodes: ["Nodes", drawNodes], leases: ["Leases", drawLeases], tenants: ["Tenants", drawTenants], bill: ["Bill", drawBill], chains: ["Chains", drawChains], waste: ["Waste", drawWaste], hooks: ["Webhooks", drawHooks] };

// Drawn beside what is shown, and put in its place whole, so that nothing flickers; of two drawings the later one counts.
let turn = 0;
async function draw() {
  const mine = ++turn;
  const fresh = h("main", { id: "main", tabindex: -1 });
  const old = $("main");
  const top = old.dataset.view === location.hash ? [old.scrollTop, ...[...old.querySelectorAll(".scroll")].map((one) => one.scrollTop)] : [];
  fresh.dataset.view = location.hash;
  try {
    await VIEWS[state.view][1](fresh);
  } catch (error) {
    fresh.replaceChildren(panel(VIEWS[state.view][0], "", empty(error.message)));
  }
  if (mine !== turn) return;
  const focused = document.activeElement === old;
  old.replaceWith(fresh);
  if (top.length) { fresh.scrollTop = top[0]; [...fresh.querySelectorAll(".scroll")].forEach((one, n) => { one.scrollTop = top[n + 1] ?? 0; }); }
  if (focused) fresh.focus({ preventScroll: true });
  fresh.dataset.drawn = "yes";
}

function route() {
  const [view, ...args] = location.hash.slice(1).split("/").map(decodeURIComponent);
  Object.assign(state, { view: VIEWS[view] ? view : "fleet", args, selected: 0 });
  document.title = `${VIEWS[state.view][0]} · leased`;
  for (const tab of $("tabs").children) tab.toggleAttribute("aria-current", false), tab.dataset.view === state.view && tab.setAttribute("aria-current", "page");
  draw();
}

// ---- keyboard -----------------------------------------------------------------------------------------------------

const KEYS = [["1 – 8", "a view"], ["/", "filter"], ["j, k", "next row, row before"], ["Enter", "open the row"], ["Backspace", "back"], ["t", "light or dark"], ["?", "this help"], ["Esc", "leave the filter"]];

function theme() {
  const dark = (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark")) === "dark";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", document.documentElement.dataset.theme);
  draw();
}

function move(by) {
  const rows = [...document.querySelectorAll("main tr.go")];
  if (!rows.length) return;
  state.selected = Math.max(0, Math.min(rows.length - 1, state.selected + by));
  rows.forEach((row, n) => row.setAttribute("aria-selected", n === state.selected));
  rows[state.selected].scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === $("find")) { if (event.key === "Escape" || event.key === "Enter") { if (event.key === "Escape") { $("find").value = ""; state.find = ""; draw(); } $("find").blur(); } return; }
  if (["INPUT", "SELECT"].includes(event.target.tagName) || document.querySelector("dialog[open]")) return;
  const act = { "/": () => $("find").focus(), j: () => move(1), k: () => move(-1), Enter: () => event.target.tagName !== "BUTTON" && event.target.tagName !== "TH" && document.querySelector("main tr[aria-selected=true]")?.click(), Backspace: () => history.back(), t: theme, "?": () => $("help").showModal() }[event.key];
  if (/^[1-8]$/.test(event.key)) go(Object.keys(VIEWS)[Number(event.key) - 1]);
  else if (act) act();
  else return;
  if (event.key !== "Enter") event.preventDefault();
});

// ---- begin --------------------------------------------------------------------------------------------------------

const kept = localStorage.getItem("theme");
if (kept) document.documentElement.dataset.theme = kept;
$("tabs").append(...Object.entries(VIEWS).map(([view, [text]], n) => h("button", { type: "button", data: { view }, on: { click: () => go(view) } }, text, h("kbd", {}, n + 1))));
$("help-keys").append(...KEYS.flatMap(([key, what]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)]));
$("keys").addEventListener("click", () => $("help").showModal());
$("theme").addEventListener("click", theme);
$("find").addEventListener("input", () => { state.find = $("find").value.trim().toLowerCase(); draw(); });
$("sign").addEventListener("close", () => { sessionStorage.setItem("token", $("token").value.trim()); $("token").value = ""; location.reload(); });
addEventListener("hashchange", route);
setInterval(() => { for (const one of document.querySelectorAll("[data-until]")) one.textContent = left(Number(one.dataset.until) - performance.now()); }, 250);
setInterval(() => { if (!LIVE.has(state.view) && !document.hidden && document.activeElement?.tagName !== "SELECT") draw(); }, 10000);
ask("/v1/governance/policy").then((answer) => answer.json()).then((policy) => { $("fleet").textContent = `fleet ${policy.fleet}`; }).catch(() => {});
drawStrip();
route();
listen();
