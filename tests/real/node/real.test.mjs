// The AI SDK against the real model.
import assert from 'node:assert/strict'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateObject, generateText, stepCountIs, tool } from 'ai'
import { test } from 'node:test'
import { z } from 'zod'
import { v1 } from './serving.mjs'

const model = createOpenAICompatible({ name: 'kaito', baseURL: v1, supportsStructuredOutputs: true })('smollm2-135m-instruct')
const only = new RegExp(process.env.CLIENTS_ONLY ?? '')
const greedy = { temperature: 0, maxRetries: 0, maxOutputTokens: 150, model }
const check = (name, run) => only.test(name) && test(name, { timeout: 280_000 }, run)
const Person = z.object({ name: z.string().max(24), age: z.int().min(0).max(150) })

check('real/smollm2-135m/ai/object', async () => {
  const { object } = await generateObject({ ...greedy, schema: Person, prompt: 'Anna is 30 years old. Give her name and age as JSON.' })
  assert.deepEqual(object, { name: 'Anna', age: 30 })
})

check('real/smollm2-135m/ai/tools_two_steps', async () => {
  const asked = []
  const result = await generateText({
    ...greedy,
    prompt: 'What is the weather in Paris?',
    tools: {
      get_weather: tool({
        description: 'Get the current weather of a city',
        inputSchema: z.object({ city: z.string().max(24) }),
        execute: ({ city }) => {
          asked.push(city)
          return `It is 21 degrees and sunny in ${city}.`
        },
      }),
    },
    stopWhen: stepCountIs(2),
    prepareStep: ({ stepNumber }) => ({
      toolChoice: stepNumber === 0 ? { type: 'tool', toolName: 'get_weather' } : 'none',
    }),
  })
  assert.equal(asked[0], 'Paris')
  assert.match(result.text, /21|sunny/)
})

check('real/smollm2-135m/ai/responses', async () => {
  const openai = createOpenAI({ baseURL: v1, apiKey: 'none' })('smollm2-135m-instruct')
  const { text } = await generateText({ ...greedy, model: openai, prompt: 'What is the capital of France?' })
  assert.equal(text, 'The capital of France is Paris.')
})
