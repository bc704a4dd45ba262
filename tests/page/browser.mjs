// What the tests share: one Chromium a file, a fresh context a test, and words for what a person does.
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";

const root = fileURLToPath(new URL("../../", import.meta.url));
export const require = createRequire(path.join(root, "target/page/package.json"));
const { chromium } = require("playwright-core");

const ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run"];

/** Starts Chromium with an empty profile. Returns `open(url, options)`, which gives a page of its own, and `close()`. */
export async function startBrowser() {
    const profile = mkdtempSync(path.join(tmpdir(), "kaito-page-"));
    const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", headless: true, args: ARGUMENTS, env: { ...process.env, HOME: profile } });
    const problems = [];
    return {
        browser,
        problems,
        async open(url, { width = 1280, height = 800, init = null, ...options } = {}) {
            const context = await browser.newContext({ viewport: { width, height }, reducedMotion: "reduce", ...options });
            const page = await context.newPage();
            page.setDefaultTimeout(15000);
            page.on("pageerror", (error) => problems.push(`${error.message}\n${error.stack}`));
            page.on("console", (message) => { if (message.type() === "error" && !/status of (4|5)\d\d|ERR_|net::/.test(message.text())) problems.push(message.text()); });
            if (init) await page.addInitScript(init);
            await page.goto(url);
            await page.waitForFunction(() => document.querySelector("#conversations").children.length > 0);
            return page;
        },
        async close() {
            await browser.close();
            // Chromium's processes write into it for a moment after they were told to end.
            rmSync(profile, { recursive: true, force: true, maxRetries: 50, retryDelay: 100 });
            // What a failed test has left open, a stub's server say, must not keep the file from ending.
            setTimeout(() => {
                console.error("something is still open long after the last test");
                process.exit(1);
            }, 15000).unref();
        },
    };
}

/** Writes a message and sends it: by Enter, or where that is a new line, by the button. */
export async function say(page, words) {
    await page.fill("#text", words);
    if (await page.evaluate(() => onTouch.matches)) await page.click("#send");
    else await page.press("#text", "Enter");
}

/** Waits until no answer is being written. */
export async function answered(page) {
    await page.waitForFunction(() => !document.querySelector(".turn.writing") && document.querySelector("#send").getAttribute("aria-label") === "Send");
}

export const textsOf = (page, selector) => page.locator(selector).allInnerTexts();

/** Polls an asynchronous function in the page until it returns something true. */
export async function until(page, condition) {
    while (!await page.evaluate(condition)) await page.waitForTimeout(50);
}
