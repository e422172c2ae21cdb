// Sends requests to the mount that this page is served from, whatever its path is.

const STORED = "embedroute-key";
export const mount = location.pathname.replace(/\/dashboard\/*$/, "");
export const address = (path) => `${location.origin}${mount}${path}`;
export const getKey = () => sessionStorage.getItem(STORED) ?? "";
export const setKey = (key) => sessionStorage.setItem(STORED, key);

export async function request(path, body) {
  const headers = {};
  if (getKey()) headers.Authorization = `Bearer ${getKey()}`;
  if (body) headers["Content-Type"] = "application/json";
  const began = performance.now();
  const response = await fetch(address(path), { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), cache: "no-store" });
  const answer = await response.json();
  return { status: response.status, headers: response.headers, answer, seconds: (performance.now() - began) / 1000 };
}

export function messageOf({ status, answer }) {
  const error = answer?.error;
  return `${status}: ${typeof error === "string" ? error : error?.message ?? answer?.message ?? "the request failed"}`;
}
