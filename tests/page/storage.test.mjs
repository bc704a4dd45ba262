// What the browser keeps: the list, search, files, and what happens where it keeps nothing.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { answered, say, startBrowser, textsOf, until } from "./browser.mjs";
import { startStub } from "./stub.mjs";

let stub, browser;
before(async () => {
    browser = await startBrowser();
    stub = await startStub({ answer: (body) => ({ text: `On ${body.messages?.at(-1).content}` }) });
});
after(async () => {
    await browser.close();
    await stub.close();
    assert.deepEqual(browser.problems, []);
});

const titles = (page) => textsOf(page, "#conversations a");
async function conversations(page, ...questions) {
    for (const question of questions) {
        await page.click("#new");
        await say(page, question);
        await answered(page);
    }
    await until(page, async () => (await store.search("On ")).size === store.heads.size && running.size === 0);
}
// A conversation is read from the browser's storage after the click.
async function opened(page, link, said) {
    await page.click(link);
    await page.waitForFunction(([first, count]) => {
        const found = document.querySelectorAll(".said");
        return found.length === count && found[0].innerText === first;
    }, [said[0], said.length]);
    assert.deepEqual(await textsOf(page, ".said"), said);
}
const chosen = (page, name) => page.setInputFiles("#import-file", name);
const file = (text, name = "in.json") => ({ name, mimeType: "application/json", buffer: Buffer.from(typeof text === "string" ? text : JSON.stringify(text)) });
async function exportOf(page) {
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#export")]);
    assert.match(download.suggestedFilename(), /^kaito-conversations-\d{4}-\d\d-\d\d\.json$/);
    return JSON.parse(await readFile(await download.path(), "utf8"));
}

test("the list survives a reload; conversations are renamed, searched and deleted", async () => {
    const page = await browser.open(stub.url);
    await conversations(page, "apples", "pears", "plums");
    assert.deepEqual(await titles(page), ["plums", "pears", "apples"]);
    await page.reload();
    await page.waitForSelector("#conversations a");
    assert.deepEqual(await titles(page), ["plums", "pears", "apples"]);
    await page.hover("#conversations li:nth-child(2)");
    await page.click("button[aria-label='Rename: pears']");
    await page.fill("#conversations input", "Fruit of the pear tree");
    await page.keyboard.press("Enter");
    await until(page, () => document.querySelectorAll("#conversations a").length === 3);
    assert.ok((await titles(page)).includes("Fruit of the pear tree"));
    await page.fill("#search", "on PLUMS");
    await page.waitForFunction(() => document.querySelector("#found").textContent === "1 conversation found");
    assert.deepEqual(await titles(page), ["plums"]);
    await page.fill("#search", "nowhere");
    await page.waitForFunction(() => document.querySelector("#found").textContent === "0 conversations found");
    assert.equal(await page.innerText("#conversations p"), "No conversation has these words.");
    await page.press("#search", "Escape");
    await page.hover("#conversations li:has-text('plums')");
    await page.click("button[aria-label='Delete: plums']");
    assert.match(await page.innerText("#dialog p"), /“plums” and all its branches are deleted/);
    await page.click("#dialog button:has-text('Cancel')");
    assert.equal((await titles(page)).length, 3);
    await page.click("button[aria-label='Delete: plums']");
    await page.click("#dialog button.danger");
    await until(page, () => document.querySelectorAll("#conversations a").length === 2);
    await page.reload();
    await page.waitForSelector("#conversations a");
    assert.deepEqual((await titles(page)).sort(), ["Fruit of the pear tree", "apples"]);
    await page.click("#delete-all");
    await page.click("#dialog button.danger");
    await until(page, () => document.querySelectorAll("#conversations a").length === 0);
    await page.context().close();
});

test("a conversation that is deleted while its answer is written stays deleted", async () => {
    const slow = await startStub({ answer: () => ({ chunks: Array(100).fill("word "), delay: 20 }) });
    const page = await browser.open(slow.url);
    await say(page, "apples");
    await page.waitForFunction(() => document.querySelector(".answer")?.innerText.includes("word word"));
    await page.hover("#conversations li");
    await page.click("button[aria-label='Delete: apples']");
    await page.click("#dialog button.danger");
    await until(page, () => running.size === 0 && document.querySelectorAll("#conversations a, .turn").length === 0);
    await page.reload();
    await page.waitForSelector("#conversations p");
    assert.equal(await page.evaluate(() => store.heads.size), 0);
    await page.context().close();
    await slow.close();
});

test("an export comes back whole in another browser, once", async () => {
    const page = await browser.open(stub.url);
    await conversations(page, "apples", "pears");
    await page.click("button[aria-label='Write another answer']");
    await answered(page);
    const exported = await exportOf(page);
    assert.deepEqual([exported.format, exported.version, exported.conversations.length], ["kaito-conversations", 1, 2]);
    await page.context().close();
    const other = await browser.open(stub.url);
    await chosen(other, file(exported));
    await until(other, () => document.querySelectorAll("#conversations a").length === 2);
    await opened(other, "#conversations a:has-text('pears')", ["pears", "On pears"]);
    assert.equal(await other.innerText(".answer .branches"), "2 / 2");
    await chosen(other, file(exported));
    await other.waitForFunction(() => document.querySelector("#toast").textContent === "All of these conversations are here already.");
    assert.equal((await titles(other)).length, 2);
    // One that went on since is not overwritten.
    await say(other, "more");
    await answered(other);
    await chosen(other, file(exported));
    await until(other, () => document.querySelectorAll("#conversations a").length === 3);
    await other.context().close();
});

test("a file that is no export is refused with the reason", async () => {
    const page = await browser.open(stub.url);
    const message = { id: "m", parent: null, role: "user", text: "x" };
    const whole = (given) => ({ format: "kaito-conversations", version: 1, conversations: [{ id: "a", title: "t", messages: [message], ...given }] });
    for (const [text, reason] of [
        ["{", "The file is not JSON."],
        [[], 'The file is not an export of this page: "format" must be "kaito-conversations".'],
        [{ ...whole({}), version: 2 }, "The file has version 2; this page reads version 1."],
        [whole({ id: "../x" }), 'conversations[0]: "id" must be 1 to 64 letters and digits.'],
        [whole({ title: 1 }), 'conversations[0]: "title" must be a text.'],
        [whole({ messages: {} }), 'conversations[0]: "messages" must be a list.'],
        [whole({ messages: [message, message] }), 'conversations[0]: messages[1] must have an "id" of its own.'],
        [whole({ messages: [{ ...message, parent: "later" }] }), "conversations[0]: messages[0].parent must be null or the id of an earlier message."],
        [whole({ messages: [{ ...message, role: "root" }] }), 'conversations[0]: messages[0].role must be "user" or "assistant".'],
        [whole({ messages: [{ ...message, text: 5 }] }), "conversations[0]: messages[0].text must be a text."],
        [whole({ messages: [{ ...message, files: [{ name: "x" }] }] }), "conversations[0]: messages[0].files must be a list of {name, text}."],
        [whole({ messages: [{ ...message, tokens: [{ text: 1 }] }] }), "conversations[0]: messages[0].tokens must be a list of {text, logprob, top}."],
    ]) {
        await chosen(page, file(text));
        await page.waitForSelector("#dialog[open]");
        assert.equal(await page.innerText("#dialog p"), reason);
        await page.click("#dialog button:has-text('Close')");
        await page.waitForFunction(() => !document.querySelector("#dialog").open);
    }
    // Settings that are none are left out, and the rest is read.
    await chosen(page, file(whole({ settings: { model: 5, mode: "root", values: { temperature: 1, top_p: "0.5", unknown: "1" } }, evil: "<b>" })));
    await page.click("#conversations a");
    await page.waitForSelector(".said");
    assert.deepEqual(await page.evaluate(() => [current.settings.model, current.settings.mode, current.settings.values, "evil" in current]), ["", "", { top_p: "0.5" }, false]);
    await page.context().close();
});

test("without storage the page works and says what that means", async () => {
    const page = await browser.open(stub.url, { init: () => {
        Object.defineProperty(window, "indexedDB", { get() { throw new DOMException("no", "SecurityError"); } });
        Object.defineProperty(window, "localStorage", { get() { throw new DOMException("no", "SecurityError"); } });
        Object.defineProperty(window, "sessionStorage", { get() { throw new DOMException("no", "SecurityError"); } });
    } });
    assert.equal(await page.innerText(".banner"), "This browser keeps nothing for this page, so conversations are gone when it is closed. Export what you want to keep.");
    await say(page, "apples");
    await answered(page);
    await page.click("#new");
    await say(page, "pears");
    await answered(page);
    await opened(page, "#conversations a:has-text('apples')", ["apples", "On apples"]);
    assert.equal((await exportOf(page)).conversations.length, 2);
    await page.click("label:has-text('Dark')");
    assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "dark");
    await page.context().close();
});

test("a full storage is said, and what was not kept can be exported", async () => {
    // A browser says so when it commits: the transaction is aborted, with the error.
    const page = await browser.open(stub.url, { init: () => {
        const put = IDBObjectStore.prototype.put;
        IDBObjectStore.prototype.put = function (value) {
            const request = put.call(this, value);
            if (window.isFull && this.name === "bodies") {
                Object.defineProperty(this.transaction, "error", { value: new DOMException("The quota has been exceeded.", "QuotaExceededError") });
                this.transaction.abort();
            }
            return request;
        };
    } });
    await conversations(page, "apples");
    await page.evaluate(() => { window.isFull = true; });
    await say(page, "more apples");
    await answered(page);
    await page.waitForSelector(".banner");
    assert.equal(await page.innerText(".banner"), "The browser's storage is full: the latest changes are kept in this tab only. Export them, or delete old conversations.");
    await page.click("#new");
    await opened(page, "#conversations a", ["apples", "On apples", "more apples", "On more apples"]);
    assert.equal((await exportOf(page)).conversations[0].messages.length, 4);
    await page.evaluate(() => { window.isFull = false; });
    await say(page, "room again");
    await answered(page);
    await page.waitForFunction(() => !document.querySelector(".banner"));
    await page.context().close();
});

test("two tabs see each other's conversations", async () => {
    const one = await browser.open(stub.url);
    await conversations(one, "apples");
    const two = await one.context().newPage();
    await two.goto(one.url());
    await two.waitForSelector(".answer");
    await say(one, "more");
    await answered(one);
    await two.waitForFunction(() => document.querySelectorAll(".said").length === 4);
    await two.hover("#conversations li");
    await two.click("button[aria-label='Delete: apples']");
    await two.click("#dialog button.danger");
    await one.waitForFunction(() => document.querySelectorAll("#conversations a, .said").length === 0);
    await one.context().close();
});
