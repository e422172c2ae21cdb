// Draws the view of the traffic: charts, endpoints, requests with their calls, and callers.
import { lineChart } from "./charts.js";
import { dollars, duration, h, id, number, table } from "./dom.js";

const STEP = 2;
const POINTS = 300;
const SLOW = 3; // times the latency of the fastest endpoint of the model
const OUTCOMES = {
  answered: ["answered", "ok"],
  rate_limited: ["rate limited (429)", "warn"],
  timed_out: ["timed out", "err"],
  unreachable: ["unreachable", "err"],
  invalid_response: ["wrong answers", "lie"],
  account_refused: ["account refused", "err"],
  model_not_found: ["model not found", "err"],
  rejected: ["rejected", "warn"],
  failed: ["failed", "err"],
  cancelled: ["cancelled", "plain"],
};
const expanded = new Set();

export function drawTraffic(report) {
  drawTiles(report);
  id("endpoints").replaceChildren(endpointTable(report.endpoints));
  drawRequests(report.requests);
  id("callers").replaceChildren(callerTable(report.callers));
}

function drawTiles(report) {
  const last = Math.floor(report.now / STEP) * STEP;
  const byTime = new Map(report.points.map((point) => [Math.round(point.at), point]));
  const points = Array.from({ length: POINTS }, (_, at) => byTime.get(Math.round(last - (POINTS - 1 - at) * STEP)));
  const recent = points.slice(-31, -1).filter(Boolean); // the last minute, without the point that is not complete
  const sum = (name, among) => among.reduce((total, point) => total + (point?.[name] ?? 0), 0);
  const all = points.filter(Boolean);
  const requests = sum("requests", recent);
  const errors = sum("errors", recent);
  const looked = sum("hits", recent) + sum("misses", recent);
  const latest = all.findLast((point) => point.p50 != null);
  const column = (read) => points.map((point) => (point ? read(point) : 0));
  const latency = (name) => points.map((point) => point?.[name] ?? null);
  const tiles = [
    tile("Requests per second", number(requests / 60, 1), `${number(sum("requests", all))} in 10 min`, [column((p) => p.requests / STEP)]),
    tile("Errors", requests ? `${number((100 * errors) / requests, 1)} %` : "–", `${number(sum("errors", all))} in 10 min`, [column((p) => p.errors)], errors > 0),
    tile("Latency p50 · p95 · p99", duration(latest?.p50), latest ? `${duration(latest.p95)} · ${duration(latest.p99)}` : "", [latency("p50"), latency("p95"), latency("p99")]),
    tile("Cache hits", looked ? `${number((100 * sum("hits", recent)) / looked)} %` : "–", `${number(sum("hits", all))} inputs in 10 min`, [column((p) => p.hits)]),
    tile("Tokens billed", number(sum("tokens", all)), "in 10 min", [column((p) => p.tokens)]),
    tile("Cost", dollars(sum("cost", all)), `${dollars(sum("cost", all) * 6)} per hour at this rate`, [column((p) => p.cost)]),
  ];
  id("tiles").replaceChildren(...tiles);
}

function tile(name, value, note, series, bad = false) {
  return h("div", { class: bad ? "tile bad" : "tile" }, h("h3", {}, name), h("div", { class: "value" }, value),
    h("div", { class: "note" }, note), lineChart(series, `${name} over 10 minutes, now ${value}`));
}

function endpointTable(endpoints) {
  if (!endpoints.length) return h("p", { class: "empty" }, "No endpoint is configured.");
  const totals = new Map();
  const fastest = new Map();
  for (const { state, outcomes } of endpoints) {
    totals.set(state.model, (totals.get(state.model) ?? 0) + count(outcomes));
    if (state.p50 != null) fastest.set(state.model, Math.min(fastest.get(state.model) ?? Infinity, state.p50));
  }
  const used = endpoints.filter(({ outcomes }) => count(outcomes));
  const shown = [...used, ...endpoints.filter((endpoint) => !used.includes(endpoint))];
  const rows = shown.map((endpoint) => endpointRow(endpoint, totals.get(endpoint.state.model), fastest.get(endpoint.state.model)));
  return table([["Endpoint"], ["State"], ["What it does"], ["Share of calls"], ["p50", "num"], ["p95", "num"], ["p99", "num"], ["Last error"], ["Learned"]], rows);
}

function endpointRow({ state, outcomes }, total, fastest) {
  const own = count(outcomes);
  const share = total ? (100 * own) / total : 0;
  const learned = [
    ...Object.entries(state.caps).map(([measure, most]) => `${number(most)} ${measure} a call`),
    ...state.omitted.map((field) => `without ${field}`),
  ];
  return h("tr", {},
    h("th", { scope: "row" }, state.provider, h("span", { class: "sub" }, state.model === state.upstream_model ? state.model : `${state.model} → ${state.upstream_model}`)),
    h("td", {}, stateBadge(state), state.waiting ? h("span", { class: "sub" }, `${state.waiting} waiting`) : null),
    h("td", {}, verdicts(state, outcomes, fastest), outcomeBar(outcomes)),
    h("td", {}, total ? `${number(share)} %` : "–", bar([[share, "f-blue"]]), h("span", { class: "sub" }, `${number(own)} ${own === 1 ? "call" : "calls"}`, state.price ? ` · $${state.price} per M tokens` : "")),
    h("td", { class: "num" }, duration(state.p50)), h("td", { class: "num" }, duration(state.p95)), h("td", { class: "num" }, duration(state.p99)),
    h("td", {}, state.last_error ?? "–", state.error_age == null ? null : h("span", { class: "sub" }, `${duration(state.error_age)} ago`)),
    h("td", {}, learned.join(", ") || "–"));
}

function stateBadge(state) {
  if (state.rests_for > 0) return [h("span", { class: "badge warn" }, `■ resting ${duration(state.rests_for)}`), h("span", { class: "sub" }, state.reason)];
  if (state.breaker !== "closed") return h("span", { class: "badge warn" }, "◐ probing");
  return h("span", { class: "badge ok" }, "● available");
}

function verdicts(state, outcomes, fastest) {
  const found = [];
  for (const [outcome, [words, kind]] of Object.entries(OUTCOMES)) {
    if (outcome !== "answered" && outcomes[outcome]) found.push([words, kind, outcomes[outcome]]);
  }
  const badges = found.sort((a, b) => b[2] - a[2]).map(([words, kind, times]) => h("span", { class: `badge ${kind}` }, `${words} × ${number(times)}`));
  if (fastest && state.p50 > SLOW * fastest && state.p50 > 0.05) badges.unshift(h("span", { class: "badge warn" }, `slow: ${number(state.p50 / fastest)} × the fastest`));
  if (outcomes.answered) badges.push(h("span", { class: "badge ok" }, `answered × ${number(outcomes.answered)}`));
  return badges.length ? badges : h("span", { class: "badge plain" }, "no calls");
}

function outcomeBar(outcomes) {
  const total = count(outcomes);
  if (!total) return null;
  return bar(Object.entries(outcomes).map(([outcome, times]) => [(100 * times) / total, `f-${OUTCOMES[outcome]?.[1] ?? "plain"}`]));
}

function bar(parts) {
  return h("span", { class: "bar", "aria-hidden": "true" }, parts.map(([percent, kind]) => h("span", { class: kind, css: { width: `${percent}%` } })));
}

const count = (outcomes) => Object.values(outcomes).reduce((total, times) => total + times, 0);

function drawRequests(requests) {
  const focused = document.activeElement?.dataset?.request;
  id("requests").replaceChildren(requestTable(requests));
  if (focused) id("requests").querySelector(`[data-request="${CSS.escape(focused)}"]`)?.focus();
}

function requestTable(requests) {
  if (!requests.length) return h("p", { class: "empty" }, "No request yet. Send one, or use the playground.");
  const rows = requests.flatMap((request) => {
    const key = `${request.id} ${request.at}`;
    return expanded.has(key) ? [requestRow(request, key), detailRow(request)] : [requestRow(request, key)];
  });
  return table([["Request"], ["Time"], ["Caller"], ["Model"], ["Status"], ["Inputs", "num"], ["Cached", "num"], ["Tokens", "num"], ["Took", "num"], ["Served by"]], rows);
}

function requestRow(request, key) {
  const isOpen = expanded.has(key);
  const toggle = (event) => {
    if (isOpen) expanded.delete(key);
    else expanded.add(key);
    const row = event.currentTarget.closest("tr");
    if (isOpen) row.nextElementSibling.remove();
    else row.after(detailRow(request));
    row.replaceWith(requestRow(request, key));
    id("requests").querySelector(`[data-request="${CSS.escape(key)}"]`)?.focus();
  };
  const kind = request.status < 400 ? "ok" : request.status < 500 ? "warn" : "err";
  const route = request.calls.map((call) => call.endpoint).filter((name, at, names) => name !== names[at - 1]).join(" → ");
  return h("tr", {},
    h("td", {}, h("button", { type: "button", class: "open-row", "aria-expanded": String(isOpen), "data-request": key, onclick: toggle }, request.id.slice(0, 14))),
    h("td", {}, new Date(request.at * 1000).toLocaleTimeString()), h("td", {}, request.caller || "–"), h("td", {}, request.model || "–"),
    h("td", {}, h("span", { class: `badge ${kind}` }, String(request.status)), request.code ? h("span", { class: "sub" }, request.code) : null),
    h("td", { class: "num" }, number(request.inputs)), h("td", { class: "num" }, number(request.hits)), h("td", { class: "num" }, number(request.tokens)), h("td", { class: "num" }, duration(request.seconds)),
    h("td", {}, route || (request.status === 200 ? "cache, or a call of another request" : "–")));
}

function detailRow(request) {
  const why = request.events.map(describeEvent).filter(Boolean).map((text) => h("li", {}, text));
  return h("tr", { class: "detail" }, h("td", { colspan: 10 },
    h("strong", {}, `Request ${request.id}`), waterfall(request),
    why.length ? [h("strong", {}, "Why"), h("ol", { class: "why" }, why)] : null));
}

function waterfall(request) {
  if (!request.calls.length) return h("p", { class: "hint" }, "No upstream was called.");
  const end = Math.max(request.seconds, ...request.calls.map((call) => call.began + call.seconds));
  return h("div", { class: "waterfall" }, request.calls.flatMap((call) => {
    const [words, kind] = OUTCOMES[call.outcome] ?? [call.outcome, "plain"];
    const place = { left: `${(100 * call.began) / end}%`, width: `${(100 * call.seconds) / end}%` };
    return [h("span", {}, call.endpoint), h("span", { class: "track", "aria-hidden": "true" }, h("span", { class: `f-${kind}`, css: place })),
      h("span", {}, `${duration(call.seconds)} · ${call.reason ?? words}${call.inputs > 1 ? ` · ${call.inputs} inputs` : ""}`)];
  }));
}

// An event of a trace as a sentence; its fields are those of the field "trace" in responses.
function describeEvent({ stage, action, ...facts }) {
  const details = Object.entries(facts).filter(([, value]) => value != null && value !== "" && !(Array.isArray(value) && !value.length))
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "object" ? JSON.stringify(value) : value}`);
  return `${stage}: ${action}${details.length ? ` (${details.join(", ")})` : ""}`;
}

function callerTable(callers) {
  if (!callers.length) return h("p", { class: "empty" }, "No caller yet.");
  const rows = callers.map((caller) => h("tr", {}, h("th", { scope: "row" }, caller.name),
    ...[number(caller.requests), number(caller.errors), number(caller.limited), number(caller.inputs), number(caller.tokens), dollars(caller.cost)].map((text) => h("td", { class: "num" }, text))));
  return table([["Caller"], ["Requests", "num"], ["Errors", "num"], ["Limited (429)", "num"], ["Inputs", "num"], ["Tokens", "num"], ["Cost", "num"]], rows);
}
