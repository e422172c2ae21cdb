// Polls the numbers, asks for a key if there must be one, and shows one of the two views.
import { messageOf, request, setKey } from "./api.js";
import { id, show } from "./dom.js";
import { drawTraffic } from "./traffic.js";
import { setModels, startPlayground } from "./playground.js";

const PERIOD = 2000;
let paused = false;
let denied = false;
let timer = 0;

async function poll() {
  clearTimeout(timer);
  if (paused || document.hidden || denied) return;
  try {
    const result = await request("/dashboard/data");
    if (result.status === 401 || result.status === 403) return askForKey(messageOf(result));
    if (result.status !== 200) throw new Error(messageOf(result));
    askForKey(null);
    drawTraffic(result.answer);
    setModels(result.answer.endpoints);
    say(`Live · ${new Date(result.answer.now * 1000).toLocaleTimeString()} · ${result.answer.in_flight} in flight`);
  } catch (error) {
    say(`No data: ${error.message}`);
  }
  timer = setTimeout(poll, PERIOD);
}

function say(text) {
  id("status").textContent = text;
}

function askForKey(reason) {
  denied = reason !== null;
  show(id("access"), denied);
  if (denied) {
    id("access-reason").textContent = reason;
    say("Waiting for a key");
  }
  showView();
}

function showView() {
  const view = location.hash === "#playground" ? "playground" : "traffic";
  for (const name of ["traffic", "playground"]) {
    show(id(name), name === view && !denied);
    const tab = id(`tab-${name}`);
    if (name === view) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
}

id("access-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(id("key").value.trim());
  id("key").value = "";
  denied = false;
  poll();
});
id("pause").addEventListener("click", () => {
  paused = !paused;
  id("pause").setAttribute("aria-pressed", String(paused));
  id("pause").textContent = paused ? "Resume" : "Pause";
  if (paused) say("Paused");
  poll();
});
document.addEventListener("visibilitychange", poll);
addEventListener("hashchange", showView);
showView();
startPlayground();
poll();
