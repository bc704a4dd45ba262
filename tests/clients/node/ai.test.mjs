// The AI SDK, by its provider for compatible servers and by that for OpenAI, which asks /v1/responses.
import assert from 'node:assert/strict'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateObject, generateText, jsonSchema, stepCountIs, streamText, tool } from 'ai'
import { z } from 'zod'
import { chatText, checks, v1, weather, workspace } from './serving.mjs'

globalThis.AI_SDK_LOG_WARNINGS = false
const plain = createOpenAICompatible({ name: 'kaito', baseURL: v1, includeUsage: true })('demo')
const withSchemas = createOpenAICompatible({ name: 'kaito', baseURL: v1, supportsStructuredOutputs: true })('demo')
const openai = createOpenAI({ baseURL: v1, apiKey: 'none' })
const greedy = { temperature: 0, maxRetries: 0, maxOutputTokens: 100, messages: workspace }
const Node = z.object({ kind: z.enum(['cpu', 'gpu']), count: z.int().min(0).max(9) })
const getWeather = execute => tool({ description: 'The weather of a city', inputSchema: jsonSchema(weather), execute })

checks('ai', 'ai', {
  async generateText() {
    const answer = await generateText({ ...greedy, model: plain })
    assert.equal(answer.text, await chatText(workspace, 100))
    assert.equal(answer.finishReason, 'stop')
    assert.ok(answer.usage.inputTokens > 5 && answer.usage.outputTokens > 5)
  },

  async streamText() {
    const result = streamText({ ...greedy, model: plain })
    const parts = await Array.fromAsync?.(result.textStream) ?? await (async () => {
      const parts = []
      for await (const part of result.textStream) parts.push(part)
      return parts
    })()
    assert.ok(parts.length > 5)
    assert.equal(parts.join(''), await chatText(workspace, 100))
    assert.ok((await result.usage).outputTokens > 5)
  },

  async generateObject_json_object() {
    // Without a word that schemas are supported it asks for any object and writes the schema into the prompt.
    const asked = { ...greedy, maxOutputTokens: 300, model: plain, output: 'no-schema' }
    try {
      const { object } = await generateObject(asked)
      assert.equal(typeof object, 'object')
    } catch (error) {
      assert.equal(error.finishReason, 'length', error.message)
      assert.match(error.text, /^\s*\{/)
    }
  },

  async generateObject_schema() {
    const { object } = await generateObject({ ...greedy, model: withSchemas, schema: Node })
    Node.parse(object)
  },

  async tools_two_steps() {
    let called = 0
    const result = await generateText({
      ...greedy, maxOutputTokens: 200, model: plain, messages: [{ role: 'user', content: 'What is the weather in Oslo?' }],
      tools: { get_weather: getWeather(({ city }) => (called += 1, `4 degrees in ${city}`)) },
      stopWhen: stepCountIs(2),
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? 'required' : 'none' }),
    })
    assert.ok(called >= 1)
    assert.equal(result.steps.length, 2)
    assert.equal(result.steps[0].finishReason, 'tool-calls')
    assert.ok(result.text.length > 0)
  },

  async tools_stream() {
    const result = streamText({
      ...greedy, maxOutputTokens: 200, model: plain, messages: [{ role: 'user', content: 'What is the weather in Oslo?' }],
      tools: { get_weather: getWeather(undefined) }, toolChoice: { type: 'tool', toolName: 'get_weather' },
    })
    const calls = await result.toolCalls
    assert.deepEqual(calls.map(call => call.toolName), ['get_weather'])
    assert.ok(weather.properties.city.enum.includes(calls[0].input.city))
  },

  async openai_provider_responses() {
    const expected = await chatText(workspace, 100)
    const answer = await generateText({ ...greedy, model: openai('demo') })
    assert.equal(answer.text, expected)
    let text = ''
    for await (const part of streamText({ ...greedy, model: openai('demo') }).textStream) text += part
    assert.equal(text, expected)
    const { object } = await generateObject({ ...greedy, model: openai('demo'), schema: Node })
    Node.parse(object)
    const called = await generateText({
      ...greedy, maxOutputTokens: 200, model: openai('demo'), messages: [{ role: 'user', content: 'The weather in Oslo?' }],
      tools: { get_weather: getWeather(undefined) }, toolChoice: 'required',
    })
    assert.equal(called.toolCalls[0].toolName, 'get_weather')
  },

  async openai_provider_chat() {
    const answer = await generateText({ ...greedy, model: openai.chat('demo') })
    assert.equal(answer.text, await chatText(workspace, 100))
  },
})
