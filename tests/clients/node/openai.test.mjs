// The SDK of OpenAI for JavaScript, in Node.js and in a browser.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join, normalize } from 'node:path'
import OpenAI from 'openai'
import { zodResponseFormat } from 'openai/helpers/zod'
import { z } from 'zod'
import { chatText, checks, folder, serve, v1, weather, workspace } from './serving.mjs'

const client = new OpenAI({ baseURL: v1, apiKey: 'none', maxRetries: 0 })
const greedy = { model: 'demo', temperature: 0, messages: workspace }
const tool = { type: 'function', function: { name: 'get_weather', parameters: weather } }

checks('openai-node', 'openai', {
  async models() {
    const models = await client.models.list()
    assert.deepEqual(models.data.map(model => model.id), ['demo'])
    assert.equal((await client.models.retrieve('demo')).object, 'model')
  },

  async chat() {
    const answer = await client.chat.completions.create({ ...greedy, max_completion_tokens: 100 })
    assert.equal(answer.choices[0].message.content, await chatText(workspace, 100))
    assert.equal(answer.choices[0].finish_reason, 'stop')
    assert.ok(answer._request_id)
  },

  async stream() {
    const stream = await client.chat.completions.create({
      ...greedy, max_tokens: 100, stream: true, stream_options: { include_usage: true },
    })
    let text = ''
    let usage
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? ''
      usage = chunk.usage ?? usage
    }
    assert.equal(text, await chatText(workspace, 100))
    assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
    const helper = client.chat.completions.stream({ ...greedy, max_tokens: 100 })
    assert.equal(await helper.finalContent(), text)
  },

  async parse_zod() {
    const Node = z.object({ kind: z.enum(['cpu', 'gpu']), count: z.int().min(0).max(9) })
    const answer = await client.chat.completions.parse({ ...greedy, response_format: zodResponseFormat(Node, 'node') })
    Node.parse(answer.choices[0].message.parsed)
  },

  async tools() {
    const asked = {
      ...greedy, tools: [tool], tool_choice: { type: 'function', function: { name: 'get_weather' } }, max_tokens: 200,
    }
    const whole = (await client.chat.completions.create(asked)).choices[0].message.tool_calls
    assert.equal(whole.length, 1)
    assert.ok(weather.properties.city.enum.includes(JSON.parse(whole[0].function.arguments).city))
    const streamed = await client.chat.completions.stream(asked).finalChatCompletion()
    assert.equal(streamed.choices[0].message.tool_calls[0].function.arguments, whole[0].function.arguments)
  },

  async run_tools() {
    const runner = client.chat.completions.runTools({
      model: 'demo', temperature: 0, max_tokens: 200, messages: [{ role: 'user', content: 'What is the weather in Oslo?' }],
      tool_choice: 'auto',
      tools: [{
        type: 'function',
        function: { name: 'get_weather', parameters: weather, parse: JSON.parse, function: () => '4 degrees' },
      }],
    }, { maxChatCompletions: 4 })
    const messages = (await runner.done(), runner.messages)
    assert.ok(messages.length >= 2)
  },

  async responses() {
    const asked = { model: 'demo', temperature: 0, input: workspace, max_output_tokens: 100 }
    const answer = await client.responses.create(asked)
    assert.equal(answer.output_text, await chatText(workspace, 100))
    let text = ''
    for await (const event of await client.responses.create({ ...asked, stream: true })) {
      if (event.type === 'response.output_text.delta') text += event.delta
    }
    assert.equal(text, answer.output_text)
  },

  async errors() {
    await assert.rejects(client.chat.completions.create({ ...greedy, model: 'gpt' }), error => {
      assert.ok(error instanceof OpenAI.NotFoundError)
      assert.equal(error.code, 'model_not_found')
      assert.match(error.message, /demo/)
      return true
    })
    await assert.rejects(client.chat.completions.create({ ...greedy, temperature: 3 }), error => {
      assert.ok(error instanceof OpenAI.BadRequestError)
      assert.equal(error.param, 'temperature')
      return true
    })
    await assert.rejects(client.beta.assistants?.list?.() ?? client.images.generate({ prompt: 'x' }), OpenAI.NotFoundError)
  },

  async in_chromium_with_allowed_origin(context) {
    const chromium = process.env.CHROMIUM
    const sdk = folder('openai')
    const heard = []
    let told
    const result = new Promise(resolve => (told = resolve))
    let address
    const pages = createServer((request, response) => {
      if (request.method === 'POST') {
        request.on('data', data => heard.push(data)).on('end', () => {
          response.end()
          told(JSON.parse(Buffer.concat(heard)))
        })
      } else if (request.url === '/') {
        response.setHeader('content-type', 'text/html')
        response.end(`<script type="module">
          import OpenAI from '/sdk/index.mjs'
          const client = new OpenAI({
            baseURL: '${address}/v1', apiKey: 'right', dangerouslyAllowBrowser: true, maxRetries: 0,
          })
          const ask = { model: 'demo', temperature: 0, max_tokens: 100, messages: ${JSON.stringify(workspace)} }
          const result = {}
          try {
            const { data, response } = await client.chat.completions.create(ask).withResponse()
            result.text = data.choices[0].message.content
            result.id = response.headers.get('x-request-id')
            result.streamed = ''
            for await (const chunk of await client.chat.completions.create({ ...ask, stream: true }))
              result.streamed += chunk.choices[0].delta.content ?? ''
            result.models = (await client.models.list()).data.map(model => model.id)
            await client.models.retrieve('nothing').catch(error => (result.error = error.status + ' ' + error.code))
          } catch (error) {
            result.failed = String(error?.cause ?? error)
          }
          await fetch('/', { method: 'POST', body: JSON.stringify(result) })
        </script>`)
      } else {
        const path = normalize(join(sdk, new URL(request.url, 'http://x').pathname.replace('/sdk/', '/')))
        if (!path.startsWith(sdk) || !existsSync(path)) return response.writeHead(404).end()
        response.setHeader('content-type', 'text/javascript')
        response.end(readFileSync(path))
      }
    })
    await new Promise(ready => pages.listen(0, '127.0.0.1', ready))
    context.after(() => pages.close())
    const origin = `http://127.0.0.1:${pages.address().port}`
    const visit = async () => {
      const profile = mkdtempSync(join(tmpdir(), 'kaito-chromium-'))
      const browser = spawn(chromium, [
        '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', `--user-data-dir=${profile}`, origin,
      ], { stdio: 'ignore', detached: true })
      const gone = new Promise(resolve => browser.on('exit', resolve))
      context.after(async () => {
        // With its helper processes, which write into the profile; they have a group of their own.
        try {
          process.kill(-browser.pid, 'SIGKILL')
        } catch (error) {
          if (error.code !== 'ESRCH') throw error
        }
        await gone
        rmSync(profile, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 })
      })
      return result
    }
    address = await serve(context, '--api-key', 'right', '--allowed-origin', origin)
    const seen = await visit()
    assert.equal(seen.failed, undefined)
    assert.equal(seen.text, await chatText(workspace, 100))
    assert.equal(seen.streamed, seen.text)
    assert.ok(seen.id, 'x-request-id is exposed to pages')
    assert.deepEqual(seen.models, ['demo'])
    assert.equal(seen.error, '404 model_not_found')
  },
})
