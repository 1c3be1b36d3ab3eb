// Opens a page in headless Chromium, in both themes and two widths, and prints what it found as JSON:
// node browse.mjs PAGE [FOLDER]. Screenshots go to the folder.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.cwd()}/`);
const puppeteer = require("puppeteer-core");
const axe = require("axe-core").source;
const [page, folder] = process.argv.slice(2);

const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: process.getuid() === 0 ? ["--no-sandbox"] : [],
});
const found = { console: [], requests: [], violations: [], wider: [] };
for (const theme of ["light", "dark"]) {
  for (const width of [1280, 390]) {
    const tab = await browser.newPage();
    tab.on("console", (message) => found.console.push(message.text()));
    tab.on("pageerror", (error) => found.console.push(String(error)));
    tab.on("request", (request) => found.requests.push(request.url().slice(0, 80)));
    await tab.setViewport({ width, height: 900, isMobile: width < 600 });
    await tab.emulateMediaFeatures([{ name: "prefers-color-scheme", value: theme }]);
    await tab.goto(pathToFileURL(page).href);
    await tab.evaluate(() => document.querySelectorAll("details").forEach((d) => (d.open = true)));
    const wide = await tab.evaluate(() => document.documentElement.scrollWidth);
    if (wide > width) found.wider.push([theme, width, wide]);
    await tab.evaluate(axe);
    const result = await tab.evaluate(() => globalThis.axe.run());
    for (const { id, nodes } of result.violations) {
      found.violations.push([theme, width, id, nodes.slice(0, 3).map((node) => node.html.slice(0, 160))]);
    }
    if (folder) await tab.screenshot({ path: `${folder}/${theme}-${width}.png`, fullPage: true });
    await tab.close();
  }
}
await browser.close();
console.log(JSON.stringify(found));
