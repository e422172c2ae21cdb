// Uses the example app in a browser as a person would, and prints what the person sees, as JSON.
import { basename } from "node:path";
import { chromium } from "playwright-core";

const [, , url, executablePath, screenshot] = process.argv;
const args = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"];
const browser = await chromium.launch({ executablePath, args });
const page = await browser.newPage();
page.setDefaultTimeout(60_000);
const errors = [];
page.on("pageerror", (error) => errors.push(String(error)));

// The assets of Swagger UI come from a CDN; without a network, from its npm package.
await page.route(/^https:/, (route) => {
  const name = basename(new URL(route.request().url()).pathname);
  if (!name.startsWith("swagger-ui")) return route.abort();
  return route.fulfill({ path: `node_modules/swagger-ui-dist/${name}` });
});

async function say(form, text) {
  await page.fill(`#${form} input`, text);
  await page.click(`#${form} button`);
}

await page.goto(`${url}/`);
await say("search", "anything");
await page.getByText("There are no notes yet.").waitFor();
const notes = ["stock prices fell", "a feline rested on the rug", "bread needs time to rise"];
for (const [index, note] of notes.entries()) {
  await say("add", note);
  await page.getByText(`Added note ${index + 1}.`).waitFor();
}
await say("search", "the cat sat on the mat");
await page.locator("li").first().waitFor();
const hits = await page.locator("li").allTextContents();

await page.click("a[href=docs]");
const operation = page.locator(".opblock-post", { hasText: "/ai/v1/embeddings" });
await operation.locator(".opblock-summary").click();
await operation.getByRole("button", { name: "Try it out" }).click();

async function execute() {
  await operation.locator(".execute").click();
  const status = operation.locator(".live-responses-table .response .response-col_status");
  await status.waitFor();
  const body = operation.locator(".live-responses-table .response .highlight-code").first();
  return { status: (await status.innerText()).trim().slice(0, 3), body: await body.innerText() };
}

const refused = await execute();
await operation.locator(".btn-clear").click();
await page.locator(".scheme-container .authorize").click();
await page.locator(".auth-container input").fill("demo-key");
await page.locator(".auth-btn-wrapper .authorize").click();
await page.locator(".btn-done").click();
const answered = await execute();
if (screenshot) await page.screenshot({ path: screenshot });
await browser.close();
console.log(JSON.stringify({ hits, refused, answered, errors }));
