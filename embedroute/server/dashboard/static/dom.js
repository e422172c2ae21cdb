// Builds elements. Text is always set as text, so that no name or message can become markup.

export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "css") Object.assign(element.style, value); // CSSOM, which the policy allows
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== ""));
  return element;
}

export function table(columns, rows) {
  const head = columns.map(([name, kind]) => h("th", { scope: "col", class: kind }, name));
  return h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows));
}

export const id = (name) => document.getElementById(name);
export const show = (element, visible) => { element.hidden = !visible; };

export function number(value, digits = 0) {
  return value == null ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
}

export function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 0.0995) return `${number(seconds * 1000, 1)} ms`;
  if (seconds < 0.9995) return `${number(seconds * 1000)} ms`;
  return seconds < 99 ? `${number(seconds, 1)} s` : `${number(seconds / 60, 1)} min`;
}

export function dollars(value) {
  const amount = Number(value);
  return value == null ? "–" : amount === 0 ? "$0" : amount < 0.01 ? `$${amount.toLocaleString("en", { maximumSignificantDigits: 2 })}` : `$${amount.toFixed(2)}`;
}
