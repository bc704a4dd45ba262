// The settings: what is sent for each, what is refused, and the request as code.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { execFile, execFileSync } from "node:child_process";
import { promisify } from "node:util";
import { answered, say, startBrowser, textsOf } from "./browser.mjs";
import { startStub } from "./stub.mjs";

let stub, browser;
before(async () => {
    browser = await startBrowser();
    stub = await startStub();
});
after(async () => {
    await browser.close();
    await stub.close();
    assert.deepEqual(browser.problems, []);
});

const lastBody = () => stub.requests[stub.requests.length - 1].body;
async function openSettings(page) {
    await page.click("#settings-open");
    for (const summary of await page.locator("#fields summary").all()) await summary.click();
}
const FRAME = { messages: [{ role: "user", content: "q" }], stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };

// What is typed, and what the contract wants in the body.
const TYPED = [
    ["temperature", "0.7", 0.7], ["temperature", "0", 0], ["top_p", "0,9", 0.9], ["max_tokens", "64", 64], ["top_k", "-1", -1], ["min_p", "0.05", 0.05],
    ["repetition_penalty", "1.1", 1.1], ["repetition_penalty", "3", 3], ["presence_penalty", "-2", -2], ["frequency_penalty", "0.5", 0.5], ["seed", "-42", -42],
    ["min_tokens", "5", 5], ["stop", "END\n\\n\\n", ["END", "\n\n"]], ["bad_words", "foo\nbar baz", ["foo", "bar baz"]],
    ["logit_bias", "15043: 5, 29889: −100\n7=0.5", { 15043: 5, 29889: -100, 7: 0.5 }],
];

test("every parameter is sent as typed, and an empty field is not sent", async () => {
    const page = await browser.open(stub.url);
    await openSettings(page);
    assert.equal(await page.locator("#settings-open .dot").isVisible(), false);
    for (const [name, typed, value] of TYPED) {
        await page.fill(`#set-${name}`, typed);
        await page.click("#new");
        await say(page, "q");
        await answered(page);
        assert.deepEqual(lastBody(), { ...FRAME, [name]: value }, name);
        assert.ok(await page.locator("#settings-open .dot").isVisible());
        await page.click(`[data-setting=${name}] button`);
    }
    await page.check("#set-ignore_eos");
    await page.click("#new");
    await say(page, "q");
    await answered(page);
    assert.deepEqual(lastBody(), { ...FRAME, ignore_eos: true });
    await page.click("#reset");
    await page.click("#new");
    await say(page, "q");
    await answered(page);
    assert.deepEqual(lastBody(), FRAME);
    await page.context().close();
});

test("what cannot be sent is said where it was typed, and nothing is sent", async () => {
    const page = await browser.open(stub.url);
    await openSettings(page);
    for (const [name, typed, problem] of [
        ["temperature", "3", "Temperature must be between 0 and 2, not 3."], ["temperature", "warm", 'Temperature must be a number, not "warm".'],
        ["top_p", "0", "Top-p must be between 0.01 and 1, not 0."], ["max_tokens", "0", "Longest answer must be at least 1, not 0."], ["seed", "1.5", "Seed must be a whole number, not 1.5."],
        ["logit_bias", "a: 1", 'Logit bias does not read "a: 1"; write a token id, a colon and a number from −100 to 100.'],
        ["stop", "x\n".repeat(17), "Stop at has 17 lines; at most 16 are allowed."],
        ["schema", "[1]", "The JSON schema must be a JSON object."], ["extra", "{", /^Other fields is not JSON: /],
    ]) {
        await page.fill(`#set-${name}`, typed);
        const shown = await page.innerText(`#set-${name}-problem`);
        if (problem instanceof RegExp) assert.match(shown, problem);
        else assert.equal(shown, problem);
        assert.equal(await page.getAttribute(`#set-${name}`, "aria-invalid"), "true");
        const asked = stub.requests.length;
        await say(page, "q");
        assert.equal(await page.evaluate(() => document.activeElement.id), `set-${name}`);
        assert.equal(stub.requests.length, asked);
        assert.equal(await page.inputValue("#text"), "q");
        await page.click(`[data-setting=${name}] button`);
        assert.ok(await page.isHidden(`#set-${name}-problem`));
    }
    await page.context().close();
});

test("system text of several lines, a JSON schema, other fields", async () => {
    const page = await browser.open(stub.url);
    await openSettings(page);
    await page.fill("#set-system", "Be brief.\nAnswer in French.");
    await page.fill("#set-schema", '{"type": "object", "properties": {"a": {"type": "integer"}}}');
    await page.fill("#set-extra", '{"user": "me", "stream": false}');
    await say(page, "q");
    await answered(page);
    assert.deepEqual(lastBody(), {
        ...FRAME,
        messages: [{ role: "system", content: "Be brief.\nAnswer in French." }, ...FRAME.messages],
        response_format: { type: "json_schema", json_schema: { name: "answer", strict: true, schema: { type: "object", properties: { a: { type: "integer" } } } } },
        user: "me",
    });
    assert.equal(await page.innerText("button.system"), "System Be brief.\nAnswer in French.");
    await page.context().close();
});

test("settings belong to their conversation, and a new one begins with the last", async () => {
    const page = await browser.open(stub.url);
    await openSettings(page);
    await page.fill("#set-temperature", "0.1");
    await say(page, "cold");
    await answered(page);
    await page.click("#new");
    assert.equal(await page.inputValue("#set-temperature"), "0.1");
    await page.fill("#set-temperature", "1.9");
    await say(page, "hot");
    await answered(page);
    await page.click("#conversations a:has-text('cold')");
    await page.waitForFunction(() => document.querySelector("#set-temperature").value === "0.1");
    await page.reload();
    await page.waitForSelector(".answer");
    assert.equal(await page.inputValue("#set-temperature"), "0.1");
    assert.equal(await page.getAttribute("#set-top_p", "placeholder"), "the model's own, else 1");
    await page.context().close();
});

test("models and adapters are chosen from /v1/models", async () => {
    const both = await startStub({ models: [{ id: "base", max_model_len: 2048 }, { id: "default", max_model_len: 2048 }, { id: "poet", max_model_len: 2048, parent: "base" }] });
    const page = await browser.open(both.url);
    await page.waitForFunction(() => document.querySelectorAll("#model option").length === 3);
    assert.deepEqual(await textsOf(page, "#model > option"), ["base", "default"]);
    assert.deepEqual(await textsOf(page, "#model optgroup[label=Adapters] option"), ["poet"]);
    await page.selectOption("#model", "poet");
    await say(page, "q");
    await answered(page);
    assert.equal(both.requests[0].body.model, "poet");
    assert.equal(await page.innerText(".answer h2"), "poet");
    await page.reload();
    await page.waitForFunction(() => document.querySelectorAll("#model option").length === 3);
    assert.equal(await page.inputValue("#model"), "poet");
    // The server serves another model now.
    both.models = [{ id: "other", max_model_len: 1024 }];
    await page.reload();
    await page.waitForFunction(() => document.querySelector("#model").value === "other");
    await say(page, "q");
    await answered(page);
    assert.equal(both.requests[1].body.model, undefined);
    await page.context().close();
    await both.close();
});

test("the request as curl and as Python asks the same", async () => {
    const page = await browser.open(stub.url);
    await openSettings(page);
    await page.fill("#set-temperature", "0.5");
    await page.fill("#set-top_k", "40");
    await page.fill("#text", "It's a \"question\"\nof $two lines");
    await page.click("#request");
    const curl = (await page.innerText("#dialog code")).replace("curl -N", "curl -sN");
    const expected = { ...FRAME, model: "stub-7b", messages: [{ role: "user", content: "It's a \"question\"\nof $two lines" }], temperature: 0.5, top_k: 40 };
    const asked = stub.requests.length;
    await promisify(execFile)("bash", ["-c", curl], { timeout: 20000 });
    assert.deepEqual(stub.requests[asked].body, expected);
    await page.click("#dialog label:has-text('Python')");
    const python = await page.innerText("#dialog code");
    // Python's own reader says what the call has.
    const read = 'import ast, json, sys\ncall = next(node.value for node in ast.parse(sys.stdin.read()).body if isinstance(node, ast.Assign) and node.targets[0].id == "stream")\nprint(json.dumps({word.arg: ast.literal_eval(word.value) for word in call.keywords}))';
    const given = JSON.parse(execFileSync("python3", ["-c", read], { input: python, encoding: "utf8" }));
    const { top_k, stream_options, ...rest } = expected;
    assert.deepEqual(given, { ...rest, extra_body: { top_k } });
    assert.ok(python.includes(`base_url="${stub.url}v1"`));
    await page.click("#dialog label:has-text('JSON')");
    assert.deepEqual(JSON.parse(await page.innerText("#dialog code")), expected);
    await page.context().close();
});

test("colours follow the system until chosen, and the choice stays", async () => {
    const page = await browser.open(stub.url, { colorScheme: "dark" });
    const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const dark = await paper();
    await page.click("label:has-text('Light')");
    assert.notEqual(await paper(), dark);
    await page.reload();
    await page.waitForSelector("#conversations > *");
    assert.notEqual(await paper(), dark);
    await page.click("label:has-text('Auto')");
    assert.equal(await paper(), dark);
    await page.context().close();
});
