// Everything by the keyboard alone. No test here touches the mouse.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { answered, startBrowser, textsOf, until } from "./browser.mjs";
import { startStub } from "./stub.mjs";

let stub, browser, page;
before(async () => {
    browser = await startBrowser();
    stub = await startStub({ answer: (body, asked) => ({ text: `answer ${asked}`, finish: asked === 1 ? "length" : "stop" }) });
    page = await browser.open(stub.url);
});
after(async () => {
    await browser.close();
    await stub.close();
    assert.deepEqual(browser.problems, []);
});

const focused = () => page.evaluate(() => document.activeElement.getAttribute("aria-label") || document.activeElement.id || document.activeElement.textContent);
const press = (keys) => page.keyboard.press(keys);
const type = (words) => page.keyboard.type(words);
// Goes on by Tab until something with this name has the focus.
async function tabTo(name, key = "Tab") {
    const seen = [];
    for (let step = 0; step < 80; step += 1) {
        await press(key);
        const now = await focused();
        if (now === name) return;
        seen.push(now);
    }
    assert.fail(`Tab does not lead to ${name}; it leads to ${seen.join(", ")}`);
}

test("the page begins in the message box, and its first link leads there", async () => {
    assert.equal(await focused(), "text");
    await tabTo("Skip to the message box", "Shift+Tab");
    assert.ok(await page.evaluate(() => document.activeElement.getBoundingClientRect().top > 0));
    await press("Enter");
    assert.equal(await focused(), "text");
});

test("Enter sends, Shift+Enter begins a line", async () => {
    await type("first line");
    await press("Shift+Enter");
    await type("second line");
    await press("Enter");
    await answered(page);
    assert.equal(stub.requests[0].body.messages[0].content, "first line\nsecond line");
    assert.equal(await focused(), "text");
});

test("an arrow in the empty box edits the last question, Escape leaves the edit", async () => {
    await press("ArrowUp");
    assert.equal(await focused(), "Your question");
    await press("Escape");
    assert.equal(await focused(), "Edit the question");
    await press("Enter");
    await press("Control+A");
    await type("edited");
    await press("Enter");
    await answered(page);
    assert.deepEqual(await textsOf(page, ".said"), ["edited", "answer 2"]);
    assert.equal(await focused(), "text");
});

test("branches are chosen, answers written anew and copied", async () => {
    await tabTo("Previous version", "Shift+Tab");
    await press("Enter");
    assert.deepEqual((await textsOf(page, ".said"))[1], "answer 1");
    assert.equal(await focused(), "Next version");
    await tabTo("Continue this answer");
    await tabTo("Write another answer", "Shift+Tab");
    await press("Enter");
    await answered(page);
    assert.equal((await textsOf(page, ".said"))[1], "answer 3");
});

test("Escape stops an answer", async () => {
    stub.answer = () => ({ chunks: Array(300).fill("on "), delay: 20 });
    await page.focus("#text");
    await type("again");
    await press("Enter");
    await page.waitForFunction(() => [...document.querySelectorAll(".answer")].at(-1).innerText.includes("on on"));
    await press("Escape");
    await answered(page);
    assert.ok((await textsOf(page, ".note p")).includes("You stopped this answer."));
    stub.answer = () => ({ text: "fine" });
});

test("conversations are made, found, opened, renamed and deleted", async () => {
    await press("Control+Shift+O");
    assert.equal(await focused(), "text");
    await type("zebra");
    await press("Enter");
    await answered(page);
    await press("Control+K");
    assert.equal(await focused(), "Search conversations");
    await type("edited");
    await page.waitForFunction(() => document.querySelector("#found").textContent === "1 conversation found");
    await press("Enter");
    await page.waitForFunction(() => document.querySelector(".said").innerText === "first line\nsecond line");
    assert.equal(await focused(), "text");
    await press("Control+K");
    await press("Escape");
    await page.waitForFunction(() => document.querySelectorAll("#conversations a").length === 2);
    await press("ArrowDown");
    assert.equal(await focused(), "zebra");
    await press("ArrowDown");
    await press("ArrowUp");
    await press("Tab");
    assert.equal(await focused(), "Rename: zebra");
    await press("Enter");
    assert.equal(await focused(), "Title");
    await press("Control+A");
    await type("okapi");
    await press("Enter");
    await until(page, () => document.activeElement.textContent === "okapi");
    await tabTo("Delete: okapi");
    await press("Enter");
    await page.waitForSelector("#dialog[open]");
    assert.equal(await focused(), "Cancel");
    await press("Tab");
    await press("Enter");
    await until(page, () => document.querySelectorAll("#conversations a").length === 1 && document.activeElement.textContent !== "");
    assert.equal(await page.evaluate(() => document.activeElement.localName), "a");
});

test("settings, shortcuts and the list open and close", async () => {
    await press("Control+,");
    assert.equal(await focused(), "Close the settings");
    await tabTo("set-temperature");
    await type("0.3");
    await press("Escape");
    assert.equal(await focused(), "Settings");
    assert.equal(await page.getAttribute("#settings-open", "aria-expanded"), "false");
    await press("Control+/");
    assert.equal(await page.innerText("#dialog h2"), "Keyboard");
    await press("Escape");
    await press("Control+B");
    assert.ok(await page.isHidden("#list"));
    await press("Control+B");
    assert.ok(await page.isVisible("#list"));
});

test("everything that can be reached shows that it has the focus", async () => {
    await page.focus("#text");
    const dim = [];
    for (let step = 0; step < 60; step += 1) {
        await press("Tab");
        const found = await page.evaluate(() => {
            const one = document.activeElement;
            if (one === document.body) return null;
            // A radio button's mark is its neighbour's; the message box marks its frame.
            const shown = one.matches("[type=radio]") ? one.nextElementSibling : one.matches("#text") ? one.parentElement : one;
            const style = getComputedStyle(shown);
            const box = shown.getBoundingClientRect();
            return { name: one.outerHTML.slice(0, 80), shown: (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2) || style.boxShadow !== "none", seen: box.width > 0 && box.right > 0 && box.bottom > 0 && box.left < innerWidth && box.top < innerHeight };
        });
        if (found && !(found.shown && found.seen)) dim.push(found.name);
    }
    assert.deepEqual(dim, []);
});
