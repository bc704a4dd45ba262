// How it looks: narrow and wide, light and dark, enlarged; and what axe-core finds in every state.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { answered, require, say, startBrowser } from "./browser.mjs";
import { logprobsOf, startStub } from "./stub.mjs";

const LONG = "# Title\n\nSome **words**, `code`, a [link](https://example.com) and a-very-long-word-without-any-space-in-it-that-goes-on-and-on-and-on-and-on-and-on.\n\n"
    + "1. one\n   - nested\n2. two\n\n> quoted *text*\n\n- [x] done\n- [ ] not done\n\n```python\ndef f(x): return x  # a comment that makes this line much wider than any phone is, and wider still\n```\n\n"
    + "| Name | A column that is wide | Another column that is wide | Number |\n| - | - | - | -: |\n| a | words of some length in a cell | `code` | 1 |\n\n---\n\n### Deeper\n\n" + "A paragraph of some length that wraps. ".repeat(20);

let stub, browser;
before(async () => {
    browser = await startBrowser();
    stub = await startStub({
        models: [{ id: "stub-7b-with-a-name-that-is-longer-than-a-phone", max_model_len: 4096 }, { id: "adapter", max_model_len: 4096, parent: "stub" }],
        answer: (body) => ({ text: LONG, finish: "length", logprobs: body.logprobs ? logprobsOf : null }),
    });
});
after(async () => {
    await browser.close();
    await stub.close();
    assert.deepEqual(browser.problems, []);
});

// What stands outside the window or wider than it, and what cannot be hit with a finger.
const misplaced = (page) => page.evaluate(() => {
    const faults = [];
    if (document.documentElement.scrollWidth > innerWidth) faults.push(`the page is ${document.documentElement.scrollWidth} wide in ${innerWidth}`);
    for (const scroller of document.querySelectorAll("#scroll, .panel-body, #conversations, .box")) {
        if (scroller.checkVisibility() && scroller.scrollWidth > scroller.clientWidth + 1) faults.push(`${scroller.id || scroller.className} scrolls sideways`);
    }
    const form = document.querySelector(".compose").getBoundingClientRect();
    if (form.top < 0 || form.bottom > innerHeight || form.left < 0 || form.right > innerWidth) faults.push("the message box is outside the window");
    for (const one of document.querySelectorAll("button, select, input:not([type=file], [type=range]), summary, textarea")) {
        if (!one.checkVisibility({ opacityProperty: true, visibilityProperty: true }) || one.closest(".hidden")) continue;
        const box = one.getBoundingClientRect();
        if (box.width && (box.width < 24 || box.height < 24)) faults.push(`${one.id || one.getAttribute("aria-label") || one.textContent} is ${Math.round(box.width)} × ${Math.round(box.height)}`);
    }
    return faults;
});

const axeSource = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const ALL = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
const OF_COLOURS = { type: "rule", values: ["color-contrast", "link-in-text-block"] };
async function findings(page, runOnly) {
    await page.evaluate(`if (!window.axe) { ${axeSource} }`);
    const found = await page.evaluate(async (rules) => {
        const { violations } = await axe.run(document, { runOnly: rules });
        return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.target.join(" ") + " " + (node.any[0]?.message || node.failureSummary)).slice(0, 3).join(" | ")}`);
    }, runOnly);
    return found;
}

// Each state is reached from the one before.
const STATES = [
    ["empty", async () => {}],
    ["answered", async (page) => { await say(page, "a question of a person"); await answered(page); }],
    ["top", (page) => page.evaluate(() => { document.querySelector("#scroll").scrollTop = 0; })],
    ["branches", async (page) => { await page.click("button[aria-label='Write another answer']"); await answered(page); }],
    ["editing", (page) => page.click("button[aria-label='Edit the question']")],
    ["settings", async (page) => {
        await page.keyboard.press("Escape");
        await page.click("#settings-open");
        for (const summary of await page.locator("#fields summary").all()) await summary.click();
        await page.fill("#set-system", "Several\nlines\nof system text");
        await page.fill("#set-top_p", "7");
        await page.check("#set-probabilities");
    }],
    ["settings at their end", (page) => page.evaluate(() => { document.querySelector("#fields").scrollTop = 1e6; })],
    ["tokens", async (page) => {
        await page.click("[data-setting=top_p] button");
        await page.click("#settings-close");
        await page.click(".last button[aria-label='Write another answer']");
        await answered(page);
        await page.click("button[aria-label='Token probabilities']");
        await page.focus(".token >> nth=3");
    }],
    ["list", async (page, phone) => { if (phone) await page.click("#list-open"); }],
    ["delete", async (page) => { await page.hover("#conversations li"); await page.click("#conversations button[aria-label^='Delete']"); }],
    ["keys", async (page) => { await page.click("#dialog button:has-text('Cancel')"); await page.click("#show-keys"); }],
    ["request", async (page, phone) => { await page.keyboard.press("Escape"); if (phone) await page.click("#list-close"); await page.click("#request"); }],
    ["error", async (page) => {
        await page.keyboard.press("Escape");
        const { answer } = stub;
        stub.answer = () => ({ error: { message: "The server failed.", code: null }, status: 500 });
        await say(page, "fails");
        await page.waitForSelector(".unanswered");
        stub.answer = answer;
    }],
    ["text", async (page) => { await page.evaluate(() => changeSettings((settings) => { settings.mode = "text"; }, true)); }],
];

// Dark differs from light in its colours alone, which a desktop shows, and 320 pixels from a phone in nothing that has a name.
for (const [colorScheme, ...windows] of [
    ["light", ["desktop", 1280, 800, false], ["phone", 390, 844, true], ["320 px", 320, 568, true]],
    ["dark", ["desktop", 1280, 800, false]],
]) {
    for (const [name, width, height, phone] of windows) {
        test(`${name}, ${colorScheme}: everything is in its place, and axe-core finds nothing`, { timeout: 90000 }, async () => {
            const page = await browser.open(stub.url, { width, height, colorScheme, isMobile: phone, hasTouch: phone });
            const faults = [];
            for (const [state, enter] of STATES) {
                await enter(page, phone);
                for (const fault of await misplaced(page)) faults.push(`${state}: ${fault}`);
                if (width !== 320) for (const fault of await findings(page, colorScheme === "dark" ? OF_COLOURS : ALL)) faults.push(`${state}: ${fault}`);
            }
            assert.deepEqual(faults, []);
            await page.context().close();
        });
    }
}

test("enlarged to 200 % and 400 %, nothing is cut off", async () => {
    // A window of 1280 × 1024 enlarged is one of half and a quarter of its pixels.
    for (const [width, height] of [[640, 512], [320, 256]]) {
        const page = await browser.open(stub.url, { width, height });
        await say(page, "question");
        await answered(page);
        assert.deepEqual(await misplaced(page), []);
        await page.fill("#text", "line\n".repeat(30));
        assert.deepEqual(await misplaced(page), []);
        await page.click("#settings-open");
        assert.ok(await page.isVisible("#set-system"));
        await page.context().close();
    }
});

test("the settings of a phone are a sheet, and the message box stays where it was", async () => {
    const page = await browser.open(stub.url, { width: 390, height: 844, isMobile: true, hasTouch: true });
    const before = await page.locator(".compose").boundingBox();
    await page.click("#settings-open");
    assert.ok(await page.evaluate(() => document.querySelector("#sheet").open && document.querySelector("#sheet").matches(":modal")));
    assert.deepEqual(await page.locator(".compose").boundingBox(), before);
    const sheet = await page.locator("#sheet").boundingBox();
    assert.equal(Math.round(sheet.y + sheet.height), 844);
    assert.ok(sheet.y >= 60);
    await page.keyboard.press("Escape");
    assert.ok(!await page.evaluate(() => document.querySelector("#sheet").open));
    await page.context().close();
});

test("on a phone Enter is a new line, and the keyboard leaves when a message is sent", async () => {
    const page = await browser.open(stub.url, { width: 390, height: 844, isMobile: true, hasTouch: true });
    assert.notEqual(await page.evaluate(() => document.activeElement.id), "text");
    await page.tap("#text");
    await page.keyboard.type("one");
    await page.keyboard.press("Enter");
    await page.keyboard.type("two");
    assert.equal(await page.inputValue("#text"), "one\ntwo");
    await page.tap("#send");
    await answered(page);
    assert.equal(await page.innerText(".question .said"), "one\ntwo");
    assert.notEqual(await page.evaluate(() => document.activeElement.id), "text");
    await page.context().close();
});

test("a window that becomes narrow takes its panels with it", async () => {
    const page = await browser.open(stub.url);
    await page.click("#settings-open");
    assert.ok(await page.isVisible("#settings"));
    await page.setViewportSize({ width: 600, height: 800 });
    await page.waitForFunction(() => document.querySelector("#sheet").contains(document.querySelector("#settings")));
    assert.ok(await page.isHidden("#settings"));
    assert.ok(await page.isHidden("#list"));
    await page.setViewportSize({ width: 1280, height: 800 });
    await page.waitForFunction(() => document.querySelector("#settings-place").contains(document.querySelector("#settings")));
    assert.ok(await page.isVisible("#settings") && await page.isVisible("#list"));
    await page.context().close();
});

test("nothing moves where motion is not wanted", async () => {
    const page = await browser.open(stub.url);
    const moving = await page.evaluate(() => [...document.querySelectorAll("*")].filter((one) => getComputedStyle(one).animationName !== "none" || !/^0s(, 0s)*$/.test(getComputedStyle(one).transitionDuration)).length);
    assert.equal(moving, 0);
    await page.context().close();
});
