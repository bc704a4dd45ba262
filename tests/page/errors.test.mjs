// What goes wrong, and what the page says to do about it.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { answered, say, startBrowser, textsOf } from "./browser.mjs";
import { startStub } from "./stub.mjs";

let browser;
before(async () => { browser = await startBrowser(); });
after(async () => {
    await browser.close();
    assert.deepEqual(browser.problems, []);
});

async function withStub(behaviour, act) {
    const stub = await startStub(behaviour);
    try {
        const page = await browser.open(stub.url);
        await act(page, stub);
        await page.context().close();
    } finally {
        await stub.close();
    }
}
const card = (page) => page.innerText(".unanswered p");

test("a key is asked for on 401, tried, and kept for the session", () => withStub({ key: "secret" }, async (page, stub) => {
    await page.waitForSelector("#dialog[open] #key");
    await page.fill("#key", "wrong");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#dialog[open] p:has-text('The API key is wrong.')");
    await page.fill("#key", "secret");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => !document.querySelector("#dialog").open);
    await say(page, "q");
    await answered(page);
    assert.deepEqual(await textsOf(page, ".said"), ["q", "Hello."]);
    await page.reload();
    await page.waitForSelector(".answer");
    assert.equal(await page.locator("#dialog[open]").count(), 0);
    // The key never leaves in code that is copied.
    await page.click("#request");
    assert.match(await page.innerText("#dialog code"), /-H "Authorization: Bearer \$KAITO_API_KEY"/);
    await page.keyboard.press("Escape");
    stub.key = "new";
    await say(page, "again");
    await page.click("text=Enter the key");
    await page.fill("#key", "new");
    await page.click("text=Use this key");
    await answered(page);
    await page.waitForFunction(() => document.querySelectorAll(".answer").length === 2);
}));

test("a full queue is waited for as long as the server says", () => withStub({}, async (page, stub) => {
    stub.answer = (body, asked) => (asked === 1 ? { status: 429, headers: { "retry-after": "1" }, error: { message: "The queue is full.", code: "queue_full" } } : { text: "Now." });
    await say(page, "q");
    await page.waitForSelector(".unanswered");
    assert.equal(await card(page), "The queue is full. Others are being answered first.");
    await page.waitForSelector(".answer:not(.writing)");
    assert.deepEqual(await textsOf(page, ".said"), ["q", "Now."]);
    assert.equal(stub.requests.length, 2);
}));

test("waiting can be left, and taken up by hand", () => withStub({}, async (page, stub) => {
    stub.answer = () => ({ status: 503, headers: { "retry-after": "600" }, error: { message: "The model is loading: 40 %.", code: "loading" } });
    await say(page, "q");
    await page.waitForSelector(".unanswered");
    assert.match(await page.innerText(".wait"), /^Trying again in \d+ s\.$/);
    await page.click("text=Do not wait");
    assert.equal(await page.locator(".wait").count(), 0);
    stub.answer = () => ({ text: "Loaded." });
    await page.click("text=Try again");
    await answered(page);
    assert.deepEqual(await textsOf(page, ".said"), ["q", "Loaded."]);
}));

// The server's sentence, and what the page adds to it.
for (const [name, reply, words, button] of [
    ["a prompt that is too long", { error: { message: "The prompt has 5000 tokens; the model takes 4096.", code: "context_length_exceeded" } }, "The prompt has 5000 tokens; the model takes 4096. Start a new conversation, shorten the question, or take files out of it.", "New conversation"],
    ["an unknown model", { status: 404, error: { message: "There is no model x; there is base.", code: "model_not_found" } }, "There is no model x; there is base. Choose another model.", "Choose a model"],
    ["a refused schema", { error: { message: "/properties/a: unsupported keyword.", code: "invalid_json_schema" } }, "/properties/a: unsupported keyword.", "Open the schema"],
    ["a refused parameter", { error: { message: "min_p must be between 0 and 1.", param: "min_p" } }, "min_p must be between 0 and 1.", "Open this setting"],
    ["a format that the server lacks", { error: { message: "`response_format` is not supported.", param: "response_format", code: "unsupported_parameter" } }, "`response_format` is not supported.", "Open this setting"],
    ["a model without a chat template", { error: { message: "This model has no chat template; use /v1/completions." } }, "This model has no chat template; use /v1/completions. Such a model goes on with a text.", "Switch to Text"],
    ["a fault", { status: 500, error: { message: "The server failed on this request." } }, "The server failed on this request.", "Try again"],
    ["an error of another shape", { status: 502, error: null }, "The server answered with status 502.", "Try again"],
]) {
    test(`${name} is said with what to do`, () => withStub({ answer: () => (reply.error ? reply : { status: reply.status, error: { message: undefined } }) }, async (page) => {
        await say(page, "q");
        await page.waitForSelector(".unanswered");
        assert.equal(await card(page), words);
        assert.equal(await page.getAttribute(".unanswered", "role"), "alert");
        await page.click(`.unanswered button:has-text('${button}')`);
        if (button === "Open the schema") assert.equal(await page.evaluate(() => document.activeElement.id), "set-schema");
        if (button === "Open this setting") assert.equal(await page.evaluate(() => document.activeElement.id), reply.error.param === "min_p" ? "set-min_p" : "set-schema");
        if (button === "New conversation") assert.equal(await page.locator(".turn").count(), 0);
    }));
}

test("a model without a chat template is asked by /v1/completions after the switch", () => withStub({}, async (page, stub) => {
    stub.answer = (body) => (body.messages ? { error: { message: "This model has no chat template; use /v1/completions." } } : { text: " goes on" });
    await say(page, "q");
    await page.click("text=Switch to Text");
    await page.waitForSelector(".answer:not(.writing)");
    assert.deepEqual(stub.requests.map((request) => request.path), ["/v1/chat/completions", "/v1/completions"]);
}));

test("an error in the stream keeps what came, and the answer can be continued", () => withStub({}, async (page, stub) => {
    stub.answer = () => ({ chunks: ["half ", "an ", "answer"], errorInStream: 2 });
    await say(page, "q");
    await answered(page);
    assert.equal(await page.innerText(".note.bad p"), "The engine has stopped; restart the server.");
    stub.answer = () => ({ text: "apple" });
    await page.click("button[aria-label='Continue this answer']");
    await answered(page);
    assert.equal(await page.innerText(".answer .said"), "half an apple");
}));

test("a connection that breaks off is no answer that ended", () => {
    let seen;
    const shown = new Promise((resolve) => { seen = resolve; });
    return withStub({ answer: () => ({ chunks: ["half ", "an ", "answer"], breakOff: 2, until: () => shown }) }, async (page) => {
        await say(page, "q");
        await page.waitForFunction(() => document.querySelector(".answer .said")?.innerText.trim() === "half an");
        seen();
        await answered(page);
        assert.equal(await page.innerText(".answer .said"), "half an");
        assert.equal(await page.innerText(".note.bad p"), "The connection broke off before the answer was complete.");
    });
});

test("a server that is gone is said, and the question stays", () => withStub({ answer: () => ({ drop: true }) }, async (page, stub) => {
    await say(page, "q");
    await page.waitForSelector(".unanswered");
    assert.equal(await card(page), "The server cannot be reached. Check that the server runs and that this device reaches it.");
    await page.reload();
    await page.waitForSelector(".unanswered");
    assert.equal(await card(page), "This question has no answer yet.");
    stub.answer = () => ({ text: "back" });
    await page.click("text=Ask again");
    await answered(page);
    assert.deepEqual(await textsOf(page, ".said"), ["q", "back"]);
}));

test("while the model loads the page shows how far it is, and begins by itself", () => withStub({
    info: { name: "stub-7b", ready: false, chatTemplate: false, maxSeqLen: null }, models: [],
    health: () => ({ status: 503, body: { detail: "The model is loading: 40 %." } }),
}, async (page, stub) => {
    await page.waitForSelector(".banner");
    assert.equal(await page.innerText(".banner"), "The model is loading: 40 %.");
    assert.equal(await page.getAttribute(".banner progress", "value"), "40");
    assert.ok(await page.isDisabled("#send"));
    await page.fill("#text", "a draft");
    stub.health = () => ({ status: 503, body: { detail: "The model is loading: 85 %." } });
    await page.waitForFunction(() => document.querySelector(".banner progress").value === 85);
    stub.info = { name: "stub-7b", ready: true, chatTemplate: true, maxSeqLen: 4096 };
    stub.models = [{ id: "stub-7b", max_model_len: 4096 }];
    stub.health = () => ({ status: 200, body: { status: "Healthy" } });
    await page.waitForFunction(() => !document.querySelector("#send").disabled && !document.querySelector(".banner"));
    assert.equal(await page.inputValue("#text"), "a draft");
    await say(page, "q");
    await answered(page);
    assert.deepEqual(await textsOf(page, ".said"), ["q", "Hello."]);
}));
