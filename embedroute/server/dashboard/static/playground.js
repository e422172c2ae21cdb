// Embeds texts with one or two models, and shows how similar they are.
import { address, messageOf, request } from "./api.js";
import { dollars, duration, h, id, number, svg } from "./dom.js";

let known = "";

export function setModels(endpoints) {
  const models = [...new Set(endpoints.map(({ state }) => state.model))];
  if (known === models.join("\n")) return;
  known = models.join("\n");
  const options = (names) => names.map((name) => h("option", { value: name }, name));
  id("model-a").replaceChildren(...options(models));
  id("model-b").replaceChildren(h("option", { value: "" }, "no other model"), ...options(models));
}

export function startPlayground() {
  id("play").addEventListener("submit", (event) => {
    event.preventDefault();
    run(embed);
  });
  id("explain").addEventListener("click", () => run(explain));
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", () => copy(button.dataset.copy));
  }
}

function bodyFor(model) {
  const body = { model, input: id("texts").value.split("\n").filter((line) => line.trim()) };
  if (id("dimensions").value) body.dimensions = Number(id("dimensions").value);
  return body;
}

async function run(work) {
  const models = [id("model-a").value, id("model-b").value].filter((name, at, names) => name && names.indexOf(name) === at);
  say("Working…");
  try {
    const results = await Promise.all(models.map(work));
    id("results").replaceChildren(...results);
    say("Done.");
  } catch (error) {
    say(error.message);
  }
}

function say(text) {
  id("play-status").textContent = text;
}

async function embed(model) {
  const body = bodyFor(model);
  const result = await request("/v1/embeddings", body);
  if (result.status !== 200) throw new Error(messageOf(result));
  const { answer, headers, seconds } = result;
  const vectors = answer.data.map((row) => row.embedding);
  const facts = { Dimensions: number(vectors[0].length), Tokens: number(answer.usage.prompt_tokens), Cost: answer.usage.cost == null ? null : dollars(answer.usage.cost), "Served by": headers.get("x-embedroute-provider") ?? "the cache", Took: duration(seconds), Cache: headers.get("x-embedroute-cache") };
  return h("article", { class: "result" }, h("h3", {}, answer.model), factList(facts), heatMap(body.input, vectors), scatter(body.input, vectors));
}

function factList(facts) {
  return h("dl", { class: "facts" }, Object.entries(facts).filter(([, value]) => value != null).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

const dot = (a, b) => a.reduce((sum, value, at) => sum + value * b[at], 0);
const similarity = (a, b) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));

function heatMap(texts, vectors) {
  if (texts.length < 2) return h("p", { class: "hint" }, "Write two texts or more to compare them.");
  const values = vectors.map((a) => vectors.map((b) => similarity(a, b)));
  let best = [0, 1];
  values.forEach((row, i) => row.forEach((value, j) => { if (i < j && value > values[best[0]][best[1]]) best = [i, j]; }));
  const isBest = (i, j) => (i === best[0] && j === best[1]) || (i === best[1] && j === best[0]);
  const cell = (value, i, j) => {
    const strength = Math.max(0, Math.min(1, value));
    const color = `color-mix(in srgb, var(--blue) ${Math.round(strength * 45)}%, var(--panel))`;
    return h("td", { class: isBest(i, j) ? "best" : null, css: { background: color } }, value.toFixed(2));
  };
  const rows = texts.map((text, i) => h("tr", {}, h("th", { scope: "row", title: text }, `${i + 1}. ${text}`), values[i].map((value, j) => cell(value, i, j))));
  const head = h("tr", {}, h("td"), texts.map((_, at) => h("th", { scope: "col" }, String(at + 1))));
  return [h("h4", {}, "Cosine similarity"), h("p", { class: "nearest" }, `Nearest pair: “${texts[best[0]]}” and “${texts[best[1]]}” (${values[best[0]][best[1]].toFixed(3)})`),
    h("div", { class: "heat", tabindex: "0", role: "region", "aria-label": "Cosine similarity of each pair" }, h("table", {}, h("thead", {}, head), h("tbody", {}, rows)))];
}

// The two principal components of the vectors, by power iteration.
function project(vectors) {
  const mean = vectors[0].map((_, at) => vectors.reduce((sum, vector) => sum + vector[at], 0) / vectors.length);
  const centered = vectors.map((vector) => vector.map((value, at) => value - mean[at]));
  const gram = centered.map((a) => centered.map((b) => dot(a, b)));
  const axes = [];
  for (let axis = 0; axis < 2; axis += 1) {
    let weights = gram.map((_, at) => Math.sin(at * 7 + axis + 1));
    for (let round = 0; round < 100; round += 1) {
      for (const other of axes) {
        const overlap = dot(weights, other);
        weights = weights.map((value, at) => value - overlap * other[at]);
      }
      weights = gram.map((row) => dot(row, weights));
      const length = Math.sqrt(dot(weights, weights)) || 1;
      weights = weights.map((value) => value / length);
    }
    axes.push(weights);
  }
  return vectors.map((_, at) => [axes[0][at], axes[1][at]]);
}

function scatter(texts, vectors) {
  if (texts.length < 3) return null;
  const places = project(vectors);
  const spread = Math.max(...places.flat().map(Math.abs), 1e-9);
  const [width, height] = [460, 260];
  const points = places.flatMap(([x, y], at) => {
    const [left, top] = [width / 2 + (x / spread) * (width / 2 - 50), height / 2 + (y / spread) * (height / 2 - 24)];
    const label = texts[at].length > 24 ? `${texts[at].slice(0, 23)}…` : texts[at];
    const anchor = left > width / 2 ? "end" : "start";
    return [svg("circle", { cx: left, cy: top, r: 5 }), svg("text", { x: left + (anchor === "end" ? -9 : 9), y: top + 4, "text-anchor": anchor }, `${at + 1}. ${label}`)];
  });
  return [h("h4", {}, "Map of the texts"), svg("svg", { class: "map", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "The texts on their two principal components; near means similar" }, ...points)];
}

async function explain(model) {
  const result = await request("/v1/embeddings?explain=1", bodyFor(model));
  if (result.status !== 200) throw new Error(messageOf(result));
  const { order, filtered, cache, inputs } = result.answer;
  const boxes = order.map((endpoint, at) => h("li", {}, h("div", { class: endpoint.rests_for > 0 ? "box rest" : "box" },
    h("strong", {}, `${at + 1}. ${endpoint.provider}`), h("span", { class: "sub" }, endpoint.model),
    h("span", { class: "sub" }, endpoint.price?.prompt ? `$${endpoint.price.prompt} per M tokens` : "price unknown"),
    h("span", { class: "sub" }, endpoint.rests_for > 0 ? `rests for ${duration(endpoint.rests_for)}` : `${endpoint.chunks.length} ${endpoint.chunks.length === 1 ? "call" : "calls"}${endpoint.cost ? `, ${dollars(endpoint.cost)}` : ""}`))));
  const dropped = filtered.map((endpoint) => h("li", {}, h("div", { class: "box out" }, h("strong", {}, endpoint.provider), h("span", { class: "sub" }, endpoint.model), h("span", { class: "sub" }, `${endpoint.filter}: ${endpoint.reason}`))));
  return h("article", { class: "result" }, h("h3", {}, `Plan for ${result.answer.model}`),
    factList({ Inputs: number(inputs.count), "Of them different": number(inputs.unique), "In the cache": number(cache.hits), "Estimated tokens": number(inputs.estimated_tokens) }),
    h("h4", {}, "Tried in this order"), h("ol", { class: "plan" }, boxes),
    dropped.length ? [h("h4", {}, "Dropped by filters"), h("ul", { class: "plan" }, dropped)] : null);
}

async function copy(kind) {
  const body = bodyFor(id("model-a").value);
  const json = JSON.stringify(body, null, 2);
  const quoted = json.replaceAll("'", "'\\''");
  const url = address("/v1");
  const snippets = {
    curl: `curl ${url}/embeddings \\\n  -H "Authorization: Bearer $EMBEDROUTE_KEY" \\\n  -H "Content-Type: application/json" \\\n  -d '${quoted}'`,
    python: `from openai import OpenAI\n\nclient = OpenAI(base_url="${url}", api_key="…")\nanswer = client.embeddings.create(\n    model=${JSON.stringify(body.model)},\n    input=${JSON.stringify(body.input)},${body.dimensions ? `\n    dimensions=${body.dimensions},` : ""}\n)\nprint(answer.data[0].embedding)`,
    javascript: `import OpenAI from "openai";\n\nconst client = new OpenAI({ baseURL: "${url}", apiKey: "…" });\nconst answer = await client.embeddings.create(${json});\nconsole.log(answer.data[0].embedding);`,
  };
  try {
    await navigator.clipboard.writeText(snippets[kind]);
    say("Copied. The key is not part of it.");
  } catch {
    id("results").replaceChildren(h("pre", {}, snippets[kind]));
    say("Copy the text below.");
  }
}
