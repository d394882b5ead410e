// Makes one call with the Vercel AI SDK, and prints what comes of it, as ask.mjs does.
// Usage: node ask_vercel.mjs BASE_URL KEY chat|responses|images PARAMETERS
// PARAMETERS are the SDK's own, and "options" of its provider: '{"options":{"user":"alice"}}'.

import { createOpenAI } from "@ai-sdk/openai";
import { generateImage, generateText } from "ai";

const [baseURL, key, method, parameters] = process.argv.slice(2);
const { options, ...settings } = JSON.parse(parameters);
const openai = createOpenAI({
  apiKey: "sk-any",
  baseURL,
  headers: { "x-usagepanda-api-key": key },
});
const prompt = "Hello there";
const more = { ...settings, prompt, providerOptions: { openai: options ?? {} } };
const calls = {
  chat: () => generateText({ ...more, model: openai.chat("gpt-4o-mini") }),
  responses: () => generateText({ ...more, model: openai.responses("gpt-4o-mini") }),
  images: () => generateImage({ ...more, model: openai.image("gpt-image-1") }),
};

try {
  await calls[method]();
  console.log(JSON.stringify({ answered: true }));
} catch (error) {
  const { name, statusCode, message, isRetryable } = error;
  console.log(JSON.stringify({ name, statusCode, message, isRetryable }));
}
